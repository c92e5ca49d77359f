"""The cache folder: where it is, one set-up at a time, and folders that appear only when they are complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import SetupError

NAME = "comfyui-annealing-guidance"


def cache_folder() -> Path:
    """`ANNEALING_CACHE`, else the pack's folder in the operating system's cache folder for this user."""
    if named := os.environ.get("ANNEALING_CACHE"):
        return Path(named).expanduser().resolve()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / NAME
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / NAME
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / NAME


@contextlib.contextmanager
def exclusive(cache: Path) -> Iterator[None]:
    """Let one set-up at a time work in the cache. The operating system releases the lock when its holder dies."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle = open(cache / "setup.lock", "a+b")
    except OSError as error:
        raise SetupError(
            f"The cache folder {cache} cannot be written ({error.strerror}): name another with ANNEALING_CACHE."
        ) from error
    with handle:
        _lock(handle.fileno())
        yield


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        while True:
            # Tries for ten seconds, then raises.
            with contextlib.suppress(OSError):
                msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
                return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another set-up is running in the same cache; waiting for it ...", flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `folder` when the block ends well, and vanishes when it does not.

    What a killed run left behind is removed first; so call this only inside `exclusive`.
    """
    prefix = f"{folder.name}.partial-"
    for leftover in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_space(folder: Path, gigabytes: float) -> None:
    """Refuse to begin what will not fit: a full disk half-way costs the user the whole download."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise SetupError(
            f"The set-up needs about {gigabytes:.0f} GB in {folder} and {free:.1f} GB are free: "
            "free some space, or name a folder on another disk with ANNEALING_CACHE."
        )
