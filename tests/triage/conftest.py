def pytest_addoption(parser):
    parser.addoption("--screenshots", metavar="DIR", help="write screenshots to DIR")
