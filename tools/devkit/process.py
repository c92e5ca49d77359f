"""Child processes: captured with a log, or attached to the terminal."""

from __future__ import annotations

import os
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


def stop(child: subprocess.Popen, patience: float = 10.0) -> None:
    """End a child: politely first, by force after `patience` seconds."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(patience)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def output_of(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """(exit status, output and errors together) of a command; a command that cannot be started has status 127."""
    try:
        done = subprocess.run(
            command,
            env=environment or os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        return 127, str(error)
    return done.returncode, done.stdout
