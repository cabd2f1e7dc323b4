"""Finds the tools that tests need, or skips with a message; and provides the stack that the live tests share."""

import os
import shutil
from pathlib import Path

import pytest
from deployed import ROOT
from stack import Stack

# The names of each command (Debian's first), and Debian's package.
NEEDED = {
    "promtool": (["promtool"], "prometheus"),
    "prometheus": (["prometheus"], "prometheus"),
    "alertmanager": (["prometheus-alertmanager", "alertmanager"], "prometheus-alertmanager"),
}
SKIPPED = set()


def skip(install):
    if os.environ.get("RESIDUALD_TEST_STRICT"):
        pytest.fail(f"RESIDUALD_TEST_STRICT is set and a tool is missing: {install}")
    SKIPPED.add(install)
    pytest.skip(install)


def pytest_addoption(parser):
    parser.addoption("--render", metavar="DIR", help="draw the dashboards into DIR; needs matplotlib")


def pytest_terminal_summary(terminalreporter):
    if SKIPPED:
        terminalreporter.write_line(f"!!! SKIPPED some tests of monitoring: {'; '.join(sorted(SKIPPED))}")


def tool(name):
    names, package = NEEDED[name]
    found = [path for path in map(shutil.which, names) if path]
    return found[0] if found else skip(f"install {name} (Debian: {package})")


@pytest.fixture(scope="session")
def promtool():
    return tool("promtool")


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """Daemon, Prometheus and Alertmanager, after a quiet hour and the start of an outbreak of anomalies."""
    residuald = Path(os.environ.get("RESIDUALD", ROOT / "target/release/residuald"))
    if not residuald.exists():
        skip("build residuald (make build)")
    with Stack(tmp_path_factory.mktemp("stack"), residuald, tool("prometheus"), tool("alertmanager")) as stack:
        stack.live_through_an_outbreak()
        yield stack
