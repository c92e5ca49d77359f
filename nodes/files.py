"""Names that users give to files and folders, and where those lie."""

from __future__ import annotations

from pathlib import Path

from ..models.errors import AnnealingError

_NOT_IN_NAMES = set('<>:"|?*') | {chr(code) for code in range(32)}  # Windows refuses them; : would also be a drive


def inside(folder: str | Path, name: str, title: str) -> Path:
    """The path that a user's name means below a folder. / and \\ make sub-folders; nothing leads out of it.

    title: the input that holds the name, for the AnnealingError.
    """
    parts = name.strip().replace("\\", "/").split("/")
    if any(part.strip(" .") != part or not part or _NOT_IN_NAMES & set(part) for part in parts):
        raise AnnealingError(
            f"{title} is {name[:120]!r}, and no file can be kept under that name in {folder}. Use letters, digits, - and _, "
            "with / for a sub-folder."
        )
    return Path(folder, *parts)
