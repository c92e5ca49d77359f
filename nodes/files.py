"""Names that users give to files and folders, and the paths that they mean."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from ..models.errors import AnnealingError, in_words

_NOT_IN_NAMES = set('<>:"|?*')  # Windows refuses them; : would also be a drive
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789¹²³")}
_LONGEST = 200  # bytes; file systems allow 255 for a name, old Windows 260 for the whole path


def inside(folder: str | Path, name: str, title: str) -> Path:
    """The path that a user's name means below a folder. / and \\ make sub-folders. Nothing leads out of it, not even a link.

    title: the input that holds the name, for the AnnealingError.
    """
    parts = name.strip().replace("\\", "/").split("/")
    if len(name.encode(errors="replace")) > _LONGEST or not all(map(_is_plain, parts)):
        raise AnnealingError(
            f"{title} is {name[:120]!r}, and no file can be kept under that name in {folder}. Use letters, digits, - and _, "
            "with / for a sub-folder."
        )
    path = Path(folder, *parts)
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise AnnealingError(f"{title} is {name!r}, and a link there leads out of {folder}. Choose another name.")
    return path


def _is_plain(part: str) -> bool:
    """Whether every operating system accepts it as a name and shows it unchanged."""
    is_device = part.partition(".")[0].strip().upper() in _DEVICES
    return part != "" and part == part.strip(" .") and part.isprintable() and not is_device and not _NOT_IN_NAMES & set(part)


def numbered_files(prefix: Path) -> dict[int, Path]:
    """The files named `<prefix>_00001.safetensors` and so on, by number. Raises OSError where the folder cannot be read."""
    if not prefix.parent.is_dir():
        return {}
    pattern = re.compile(re.escape(prefix.name) + r"_(\d+)\.safetensors", re.IGNORECASE)
    return {int(match[1]): file for file in prefix.parent.iterdir() if (match := pattern.fullmatch(file.name))}


def free_path(prefix: Path) -> Path:
    """`<prefix>_00001.safetensors`, or the number after the highest existing one.

    The file is created empty, so that no other process takes the same name.
    """
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(max(numbered_files(prefix), default=0) + 1):
            path = prefix.with_name(f"{prefix.name}_{number:05d}.safetensors")
            try:
                path.touch(exist_ok=False)
                return path
            except FileExistsError:
                continue
    except OSError as error:
        raise AnnealingError(f"No file can be created in {prefix.parent}: {in_words(error)}. Choose another name.") from error
    raise AssertionError("itertools.count has no end")
