"""`--write-page` writes docs/COMPATIBILITY.md instead of comparing it: python tools/dev.py compatibility."""


def pytest_addoption(parser):
    parser.addoption("--write-page", action="store_true", help="write docs/COMPATIBILITY.md from what the tests find")
