"""Child processes: their output taken, or attached to the terminal."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_attached(command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None) -> int:
    """Run a command on this terminal and return its exit status; it is ended with us."""
    with subprocess.Popen(command, env=environment, cwd=folder) as child:
        try:
            return child.wait()
        except BaseException:
            stop(child)
            raise


def stop(child: subprocess.Popen) -> None:
    """End a child: politely first, by force after ten seconds."""
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def output_of(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    patience_s: float | None = None,
) -> tuple[int, str]:
    """(exit status, output and errors together) of a command; 127 where it cannot be started, 124 where it took too long."""
    how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    try:
        done = subprocess.run(command, env=environment, cwd=folder, timeout=patience_s, errors="replace", check=False, **how)
    except subprocess.TimeoutExpired:
        return 124, f"not done after {patience_s:.0f} s"
    except OSError as error:
        return 127, str(error)
    return done.returncode, done.stdout
