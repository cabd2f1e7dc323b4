"""Tests that the README is short, that the book is complete, and that every relative link and anchor resolves."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "docs/src"
BOOK = ROOT / "docs/book"
SOURCES = [
    "README.md",
    "ARCHITECTURE.md",
    "docs/src/**/*.md",
    "deploy/**/*.md",
    "tests/README.md",
    "models/*/README.md",
]


def tool(name, target, *folders):
    path = os.pathsep.join(map(str, [*folders, os.environ["PATH"]]))
    if found := shutil.which(name, path=path):
        return found
    if os.environ.get("RESIDUALD_TEST_STRICT"):
        pytest.fail(f"RESIDUALD_TEST_STRICT is set and {name} is missing: `make {target}`")
    return pytest.skip(f"!!! SKIPPED: {name} is missing: `make {target}`")


def unresolved(files):
    """The report of the link checker, or "" without errors. It checks only relative links and anchors, offline."""
    lychee = tool("lychee", "venv", ROOT / ".venv/bin")
    command = [lychee, "--offline", "--include-fragments", "--no-progress", "--mode", "plain", *files]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.fixture(scope="module")
def book():
    cargo = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    mdbook = tool("mdbook", "mdbook", cargo / "bin")
    # mdBook only logs a message if an included file is missing.
    built = subprocess.run([mdbook, "build", "docs"], cwd=ROOT, text=True, capture_output=True)
    assert built.returncode == 0, built.stderr
    assert not re.search(r"\b(WARN|ERROR)\b", built.stderr), built.stderr
    # 404.html is left out, because its links start at the root of a server.
    return [page for page in BOOK.rglob("*.html") if page.name != "404.html"]


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 160] == []


def test_every_page_is_in_the_summary_once():
    listed = re.findall(r"\]\(([^)]+)\)", (SRC / "SUMMARY.md").read_text())
    pages = [str(page.relative_to(SRC)) for page in SRC.rglob("*.md") if page.name != "SUMMARY.md"]
    assert sorted(listed) == sorted(pages)


def test_every_link_resolves_in_the_repository():
    files = [path for pattern in SOURCES for path in ROOT.glob(pattern)]
    assert len(files) > 30
    assert unresolved(files) == ""


def test_every_link_resolves_in_the_built_book(book):
    assert len(book) > 25
    assert unresolved(book) == ""


def test_the_built_book_fetches_nothing(book):
    fetched = re.compile(
        r"""<(?:script|img|iframe|source)[^>]* src=["'](?:https?:)?//|<link[^>]* href=["'](?:https?:)?//"""
    )
    assert [page.name for page in book if fetched.search(page.read_text())] == []
