"""Options and fixtures for the tests of deploy/."""

import pytest
from tools import SKIPPED, VALUES


def pytest_addoption(parser):
    parser.addoption("--regenerate", action="store_true", help="rewrite the golden manifests and the table of values")


def pytest_terminal_summary(terminalreporter):
    if SKIPPED:
        terminalreporter.write_line(f"!!! SKIPPED some tests of deploy/: {'; '.join(sorted(SKIPPED))}")


@pytest.fixture
def regenerate(request):
    return request.config.getoption("--regenerate", default=False)


@pytest.fixture(params=VALUES, ids=lambda path: path.stem)
def values(request):
    return request.param
