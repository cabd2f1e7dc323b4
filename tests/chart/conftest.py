"""Options and fixtures of the tests of deploy/."""

import pytest
from tools import SKIPPED, VALUES


def pytest_addoption(parser):
    parser.addoption("--regenerate", action="store_true", help="write golden manifests and the chart's table of values")


def pytest_terminal_summary(terminalreporter):
    if SKIPPED:
        terminalreporter.write_line(f"!!! SKIPPED tests of deploy/, in part: {'; '.join(sorted(SKIPPED))}")


@pytest.fixture
def regenerate(request):
    return request.config.getoption("--regenerate", default=False)


@pytest.fixture(params=VALUES, ids=lambda path: path.stem)
def values(request):
    return request.param
