"""A real browser on the real interface: headless Chromium or Chrome, where this machine has one."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Iterator

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VIEWPORT = {"width": 1600, "height": 1000}


# Not for the whole session: while playwright runs it keeps an event loop running, and other tests start their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Chromium. ANNEALING_BROWSER names its program; otherwise the one on the path, else an installed Chrome."""
    api = pytest.importorskip("playwright.sync_api", reason="the browser tests need the Python package playwright")
    program = os.environ.get("ANNEALING_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with api.sync_playwright() as playwright:
        try:
            # No sandbox: test machines often run as root, where Chromium has none.
            where = {"executable_path": program} if program else {"channel": "chrome"}
            browser = playwright.chromium.launch(args=["--no-sandbox", "--disable-gpu"], **where)
        except api.Error as error:
            pytest.skip(f"no Chromium or Chrome can be started; ANNEALING_BROWSER can name one ({str(error).splitlines()[0]})")
        yield browser
        browser.close()


@pytest.fixture(params=["classic", "nodes2"])
def interface(request) -> str:
    """Both ways in which ComfyUI draws its nodes."""
    return request.param


@pytest.fixture
def open_page(server, browser, interface) -> Iterator[Callable[[], object]]:
    """Opens ComfyUI's interface, ready to load graphs. What it complains of our scripts is gathered in `page.complaints`."""
    settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": interface == "nodes2"}
    for name, value in settings.items():
        body = json.dumps(value).encode()
        urllib.request.urlopen(urllib.request.Request(f"{server.address}/settings/{name}", data=body, method="POST")).close()
    context = browser.new_context(viewport=VIEWPORT)

    def opened():
        page = context.new_page()
        page.complaints = []
        page.on("pageerror", lambda error: _keep_ours(page.complaints, f"{error} {error.stack}"))
        page.on("console", lambda message: _keep_ours(page.complaints, message.text) if message.type == "error" else None)
        page.goto(server.address)
        page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=120_000)
        page.wait_for_function("document.querySelector('canvas') && !document.querySelector('#splash-loader')", timeout=60_000)
        return page

    yield opened
    context.close()


@pytest.fixture
def page(open_page):
    return open_page()


def _keep_ours(complaints: list[str], text: str) -> None:
    if any(name in text for name in ("annealing_chart", "scale_chart", "annealing_guidance")):
        complaints.append(text)
