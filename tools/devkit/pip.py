"""pip, with what goes wrong told in a sentence."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from . import SetupError
from .process import output_of


class NoSuchBuild(SetupError):
    """pip found nothing that fits, in the indexes that it could reach."""


_THIS_PYTHON = ".".join(map(str, sys.version_info[:2]))
_REASONS = [
    (r"No space left on device|Errno 28", "the disk is full: free some space, or name another cache folder with ANNEALING_CACHE"),
    (
        r"NewConnectionError|NameResolutionError|ConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError",
        "the package index cannot be reached: check the network connection (or pip's settings)",
    ),
    (r"No matching distribution", f"pip finds no build of it for Python {_THIS_PYTHON}: try Python 3.11"),
    (r"No module named pip", "that Python has no pip: install pip there"),
]


def run_pip(python: Path, *arguments: str) -> None:
    """Run pip of that Python; what it prints is shown only where it fails, and then as one sentence."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2", *arguments]
    status, output = output_of(command)
    if status == 0:
        return
    reason = next((text for pattern, text in _REASONS if re.search(pattern, output)), last_line(output))
    kind = NoSuchBuild if "No matching distribution" in output else SetupError
    raise kind(f"pip could not {arguments[0]} {arguments[-1]}: {reason}, and run this again.")


def last_line(output: str | bytes | None) -> str:
    """The line in which a failed program usually says why."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no reason was given"])[-1]
