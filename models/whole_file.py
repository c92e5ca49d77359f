"""Writing a file so that nobody ever sees a half-written one."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a temporary file in the path's folder and rename it. If anything fails, no temporary file remains.

    Processes that write the same path at the same time each use their own temporary file. The last to rename wins.
    Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
