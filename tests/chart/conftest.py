"""Helm, kubeconform and the binary where they are, the chart rendered, and loud skips."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/residuald"
TOOLS = ROOT / ".tools"
VALUES = sorted((Path(__file__).parent / "values").glob("*.yaml"))


def pytest_addoption(parser):
    parser.addoption("--regenerate", action="store_true", help="write golden manifests and the chart's table of values")


def skip(what, install):
    """Says loudly that a test is skipped, or fails where skips are not allowed."""
    if os.environ.get("RESIDUALD_TEST_STRICT"):
        pytest.fail(f"RESIDUALD_TEST_STRICT is set and {what} cannot run: {install}")
    # Past pytest, which hides the output of tests that do not fail.
    print(f"\n!!! SKIPPED {what}: {install}", file=sys.__stderr__)
    pytest.skip(install)


def tool(name, install):
    """The path of a command: of .tools, beside this Python, or of the system."""
    places = [str(TOOLS), str(Path(sys.executable).parent), os.environ["PATH"]]
    found = shutil.which(name, path=os.pathsep.join(places))
    return found or skip(name, install)


def run(*command, **options):
    return subprocess.run([str(part) for part in command], text=True, capture_output=True, **options)


def helm(*arguments):
    return run(tool("helm", "make chart-tools"), *arguments)


def template(*arguments):
    """`helm template` of the chart; the cluster's version is pinned, because Helm's own changes with Helm."""
    return helm("template", "residuald", CHART, "--namespace", "scoring", "--kube-version", "1.37.0", *arguments)


@cache
def manifests(values):
    rendered = template("--values", values)
    assert rendered.returncode == 0, rendered.stderr
    return rendered.stdout


def objects(text):
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.fixture
def regenerate(request):
    return request.config.getoption("--regenerate")


@pytest.fixture(params=VALUES, ids=lambda path: path.stem)
def values(request):
    return request.param
