"""How `dev.py test` comes by a browser, and what it says where it can't."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from devkit import SetupError, browser

ROOT = Path(__file__).resolve().parents[2]


class Machine:
    """Which browsers start and which commands work; what was run. In the place of the machine that the tests run on."""

    def __init__(self, monkeypatch, tmp_path, *, starts_after=None, failing=()):
        self.ran, self.starts_after, self.failing = [], starts_after, failing
        monkeypatch.delenv("ANNEALING_BROWSER", raising=False)
        monkeypatch.setenv("ANNEALING_CACHE", str(tmp_path))
        monkeypatch.setattr(browser, "_problem", self.problem)
        monkeypatch.setattr(browser, "_failure", self.failure)

    def problem(self):
        return "" if self.starts_after in (None, *self.ran) else "no browser is here"

    def failure(self, command):
        self.ran.append({"update": "update", "chromium": "apt" if "apt-get" in command else "playwright"}[command[-1]])
        return "Error: no network" if self.ran[-1] in self.failing else ""


def test_a_browser_that_is_here_is_used_and_nothing_is_installed(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, tmp_path)
    assert browser.set_up(print) == "" and machine.ran == []


def test_playwrights_own_comes_first(monkeypatch, tmp_path, capsys):
    machine = Machine(monkeypatch, tmp_path, starts_after="playwright")
    assert browser.set_up(print) == "" and machine.ran == ["playwright"]
    assert "Installing Playwright's Chromium" in capsys.readouterr().out


@pytest.mark.parametrize("failing", [["playwright"], []], ids=["cannot be downloaded", "does not start"])
def test_debians_comes_where_playwrights_does_not(monkeypatch, tmp_path, failing):
    machine = Machine(monkeypatch, tmp_path, starts_after="apt", failing=failing)
    assert browser.set_up(print) == "" and machine.ran == ["playwright", "update", "apt"]


def test_nothing_is_installed_after_a_list_of_packages_that_did_not_come(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, tmp_path, starts_after="apt", failing=["playwright", "update"])
    said = browser.set_up(print)
    assert machine.ran == ["playwright", "update"]
    assert said.count("Error: no network") == 2 and "ANNEALING_BROWSER" in said and "\n" not in said


def test_a_command_that_fails_is_told_in_its_own_words():
    code = "import sys; print('Reading lists'); print('E: Unable to locate package'); print('    at 5:3'); sys.exit(100)"
    assert browser._failure([sys.executable, "-c", code]) == "E: Unable to locate package"
    assert browser._failure([sys.executable, "-c", "print('E: never mind')"]) == ""
    assert "apt" in browser._failure(["/nowhere/apt-get", "update"])


def test_a_command_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(browser, "PATIENCE_S", 0.5)
    assert "not done after" in browser._failure([sys.executable, "-c", "import time; time.sleep(600)"])


def test_a_named_browser_that_does_not_start_is_not_replaced_by_another(monkeypatch, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    monkeypatch.setenv("ANNEALING_BROWSER", str(tmp_path / "nowhere"))
    with sync_api.sync_playwright() as playwright, pytest.raises(SetupError, match="nowhere"):
        browser.launch(playwright)
    assert str(tmp_path / "nowhere") in browser.set_up(lambda text: pytest.fail(text))


@pytest.fixture
def run_tests(tmp_path):
    """Run pytest on some browser tests, and on one that is skipped, with no browser; its status and its lines."""
    (tmp_path / "test_skipped.py").write_text("import pytest\ndef test_it(): pytest.skip('the moon is full')")

    def run(*arguments: str, ci: str = "") -> tuple[int, list[str]]:
        environment = {**os.environ, "ANNEALING_BROWSER": str(tmp_path / "nowhere"), "CI": ci}
        environment.pop("COMFYUI_PATH", None)  # quicker, and none of these tests gets as far as asking for it
        tests = [str(ROOT / "tests" / "browser" / "test_chart.py"), str(tmp_path / "test_skipped.py")]
        command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), *tests, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip().splitlines()

    return run


def test_the_last_line_counts_what_no_browser_left_untested(run_tests):
    status, lines = run_tests("-q")
    assert status == 0
    assert any(line.startswith("SKIPPED [1]") and line.endswith("the moon is full") for line in lines), "other skips, by reason"
    count, rest = lines[-1].split(" ", 1)
    assert int(count) >= 10 and rest.startswith("browser tests were skipped: ") and "To have one, install" in rest


def test_on_ci_a_missing_browser_fails_the_run(run_tests):
    status, lines = run_tests(ci="true")
    assert status == 1 and "browser tests were skipped" in lines[-1]


@pytest.mark.parametrize("chosen", [["-m", "not browser"], ["--collect-only"]], ids=" ".join)
def test_a_run_without_browser_tests_asks_for_no_browser(run_tests, chosen):
    status, lines = run_tests("-q", *chosen, ci="true")
    assert status == 0 and not any("browser tests were skipped" in line for line in lines)
