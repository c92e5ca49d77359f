"""A real browser on the real interface: headless, set up where this machine has none, as soon as a test wants one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from devkit import browser as browsers

VIEWPORT = {"width": 1600, "height": 1000}
MISSING = pytest.StashKey[str]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Set a browser up if a test that was chosen needs one; where that fails, those tests are skipped."""
    config, waiting = session.config, _browser_tests(session)
    if not waiting or config.option.collectonly:
        return
    config.stash[MISSING] = missing = browsers.set_up(config.get_terminal_writer().line)
    for item in waiting if missing else ():
        item.add_marker(pytest.mark.skip(reason="no browser"))


@pytest.hookimpl(wrapper=True, tryfirst=True)  # after everybody else's last words
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Say what the missing browser left untested. On CI nobody reads it, so there the run fails."""
    yield
    if missing := session.config.stash.get(MISSING, ""):
        if os.environ.get("CI", "").lower() not in ("", "0", "false") and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        count = len(_browser_tests(session))
        session.config.get_terminal_writer().line(f"{count} browser tests were skipped: {missing}", red=True)


def _browser_tests(session: pytest.Session) -> list[pytest.Item]:
    return [item for item in session.items if item.get_closest_marker("browser")]


# Not for the whole session: while playwright runs it keeps an event loop running, and other tests start their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = browsers.launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(params=["classic", "nodes2"])
def interface(request) -> str:
    """Both ways in which ComfyUI draws its nodes."""
    return request.param


@pytest.fixture
def open_page(server, browser, interface) -> Iterator[Callable[[], object]]:
    """Opens ComfyUI's interface, ready to load graphs. What it complains of our scripts is gathered in `page.complaints`."""
    context = browser.new_context(viewport=VIEWPORT)
    context.on("page", _listen)

    def opened():
        return browsers.open_interface(context, server.address, **{"VueNodes.Enabled": interface == "nodes2"})

    yield opened
    context.close()


@pytest.fixture
def page(open_page):
    return open_page()


def _listen(page) -> None:
    page.complaints = []
    page.on("pageerror", lambda error: _keep_ours(page.complaints, f"{error} {error.stack}"))
    page.on("console", lambda message: _keep_ours(page.complaints, message.text) if message.type == "error" else None)


def _keep_ours(complaints: list[str], text: str) -> None:
    if any(name in text for name in ("annealing_chart", "scale_chart", "annealing_guidance")):
        complaints.append(text)
