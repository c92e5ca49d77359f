"""A browser for the tests and the templates: one that is here, else Playwright's own, else Debian's chromium.

Runs in ComfyUI's own Python, where the package playwright is.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Callable

from . import SetupError
from .host import one_at_a_time
from .process import output_of

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No sandbox: test machines often run as root, where Chromium has none. Playwright adds --headless and more of this kind.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync", "--disable-component-update"]
HOW = (
    "install Chrome or Chromium (Debian: sudo apt-get install chromium), or run `playwright install --with-deps chromium`, "
    "or name a browser's program in ANNEALING_BROWSER"
)
APT = ["apt-get", "-o", "DPkg::Lock::Timeout=120"]
# Where a browser may come from, and the commands that install it. Only root may use apt; for others it fails at once.
WAYS = {
    "Playwright's Chromium": [[sys.executable, "-m", "playwright", "install", "chromium"]],
    "Debian's chromium": [[*APT, "update"], [*APT, "install", "--yes", "--no-install-recommends", "chromium"]],
}
PATIENCE_S = 600.0  # for each of the commands


def launch(playwright):
    """A headless browser: the one that ANNEALING_BROWSER names, else the first of those found here that starts.

    playwright: what `sync_playwright()` gives. SetupError where none starts.
    """
    from playwright.sync_api import Error

    if named := os.environ.get("ANNEALING_BROWSER"):
        places = [{"executable_path": named}]
    else:
        # Chrome where its installer puts it; and without a place, Playwright's own.
        places = [*({"executable_path": path} for path in map(shutil.which, PROGRAMS) if path), {"channel": "chrome"}, {}]
    for place in places:
        try:
            return playwright.chromium.launch(args=ARGUMENTS, **place)
        except Error as error:
            refusal = str(error).splitlines()[0].removeprefix("BrowserType.launch: ")
    raise SetupError(refusal if named else "no Chromium or Chrome is here")


def open_interface(context, address: str, **settings: object):
    """ComfyUI's interface in a new page of a browser or of a browser's context, with these of its settings; ready for graphs."""
    for name, value in {"TutorialCompleted": True, **settings}.items():
        request = urllib.request.Request(f"{address}/settings/Comfy.{name}", data=json.dumps(value).encode(), method="POST")
        urllib.request.urlopen(request).close()
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_function("window.app?.graph && window.app.extensionManager")
    page.wait_for_function("document.querySelector('canvas') && !document.querySelector('#splash-loader')")
    return page


def set_up(say: Callable[[str], object]) -> str:
    """Make sure that `launch` gives a browser; "" or else why it can't and what to do. say: prints what takes long."""
    if not (problem := _problem()):
        return ""
    if not os.environ.get("ANNEALING_BROWSER"):
        with one_at_a_time():
            for name, commands in WAYS.items():
                say(f"No browser is here. Installing {name} ...")
                failure = next(filter(None, map(_failure, commands)), "") or _problem()
                if not failure:
                    return ""
                problem += f"; {name}: {failure}"
    return f"{problem}. To have one, {HOW}."


def _problem() -> str:
    """Why no browser starts; "" where one does."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return "the Python package playwright is missing, which `python tools/dev.py test` brings"
    try:
        with sync_playwright() as playwright:
            launch(playwright).close()
    except SetupError as error:
        return str(error)
    return ""


def _failure(command: list[str]) -> str:
    """Run an installing command; "" or its last words."""
    status, said = output_of(command, {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, patience_s=PATIENCE_S)
    if status == 0:
        return ""
    lines = said.strip().splitlines() or ["no reason was given"]  # Playwright's last ones are a list of its functions
    return next((line for line in lines if line.startswith(("Error", "E:"))), lines[-1])
