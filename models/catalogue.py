"""Known weights that a user's machine may fetch, and the fetching.

Only what is listed here is ever fetched: over https, from the listed host, no larger than listed, and kept only if it has the
listed SHA-256. ANNEALING_GUIDANCE_OFFLINE=1 forbids every fetch.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from .errors import AnnealingError, in_words
from .whole_file import write_whole

OFFLINE_VARIABLE = "ANNEALING_GUIDANCE_OFFLINE"
SILENCE_SECONDS = 15  # no byte for this long: give up
TOTAL_SECONDS = 120  # the whole download may take this long
CHUNK = 64 * 1024

logger = logging.getLogger("annealing_guidance")

Progress = Callable[[int, int], None]  # bytes so far, total bytes


@dataclass(frozen=True)
class CatalogueEntry:
    """One file that may be fetched.

    name: what the loader's list shows; it says that choosing it downloads. Saved workflows contain it: never change it.
    file_name: the fetched file's name. A file that was placed by hand may also keep the name in its address.
    size: bytes. sha256: of the whole file, hexadecimal.
    """

    name: str
    file_name: str
    url: str
    size: int
    sha256: str

    @property
    def file_names(self) -> tuple[str, ...]:
        """The names under which the file is looked for."""
        return (self.file_name, urlsplit(self.url).path.rsplit("/", 1)[-1])


# Neither the authors' code nor their weights carry a licence: fetched by each user, never bundled.
OFFICIAL_SDXL = CatalogueEntry(
    name="SDXL by the paper's authors (downloads 0.6 MB)",
    file_name="annealing_sdxl_by_authors.pt",
    url="https://raw.githubusercontent.com/annealing-guidance/annealing-guidance/"
    "0381e972a075cc3685d50ac2cb2322a66f6e8164/src/model/checkpoints/checkpoint.pt",
    size=630_081,
    sha256="f55006de3180651251dd86d0a81b7bfae88f45e6beed241355b0fdcc63626af1",
)

CATALOGUE: tuple[CatalogueEntry, ...] = (OFFICIAL_SDXL,)


def obtain(entry: CatalogueEntry, folders: Iterable[str | os.PathLike[str]], progress: Progress | None = None) -> Path:
    """The entry's file from one of the folders, or else fetched into the first of them."""
    folders = [Path(folder) for folder in folders]
    return find(entry, folders) or fetch(entry, folders[0], progress)


def find(entry: CatalogueEntry, folders: Iterable[str | os.PathLike[str]]) -> Path | None:
    """The entry's file, fetched before or placed by hand: the first with the right content. The log names others."""
    for folder in folders:
        for file_name in entry.file_names:
            path = Path(folder) / file_name
            if not path.is_file():
                continue
            if _is_entry(path, entry):
                return path
            logger.warning("%s is not the file of %s (its size or SHA-256 differs) and is not used for it.", path, entry.url)
    return None


def fetch(entry: CatalogueEntry, folder: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """Download the entry's file into the folder, which is created if missing. The file appears whole and verified, or not at all.

    progress: called with (bytes so far, total bytes); an exception from it stops the download.
    Raises AnnealingError with the address and the folder, so that the file can be placed by hand.
    """
    path = Path(folder) / entry.file_name
    if os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
        raise _not_fetched(entry, folder, f"{OFFLINE_VARIABLE} forbids downloads")
    _require_https(entry, folder, entry.url)
    logger.info("Fetching %s (%.1f MB) to %s", entry.url, entry.size / 1e6, path)
    try:
        data = _download(entry, folder, progress)
    except (HTTPException, OSError) as error:
        raise _not_fetched(entry, folder, in_words(error)) from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise _not_fetched(entry, folder, f"what came ({len(data):,} bytes) does not have the expected SHA-256 {entry.sha256}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        if not _is_entry(path, entry):  # Windows refuses to replace a file that another process has just put there
            raise _not_fetched(entry, folder, f"the folder cannot be written to ({in_words(error)})") from error
    return path


def _download(entry: CatalogueEntry, folder: str | os.PathLike[str], progress: Progress | None) -> bytes:
    """The bytes behind the entry's address, never more than its size + 1."""
    deadline = time.monotonic() + TOTAL_SECONDS
    opener = urllib.request.build_opener(_SameHost(entry, folder))
    request = urllib.request.Request(entry.url, headers={"User-Agent": "ComfyUI-annealing-guidance"})
    data = io.BytesIO()
    with opener.open(request, timeout=SILENCE_SECONDS) as response:
        # read1 returns what has arrived, so a server that sends single bytes cannot postpone the deadline.
        while chunk := response.read1(min(CHUNK, entry.size + 1 - data.tell())):
            data.write(chunk)
            if data.tell() > entry.size:
                raise _not_fetched(entry, folder, f"the server sends more than the expected {entry.size:,} bytes")
            if time.monotonic() > deadline:
                raise _not_fetched(entry, folder, f"it took longer than {TOTAL_SECONDS} seconds")
            if progress is not None:
                progress(data.tell(), entry.size)
    return data.getvalue()


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to https on the host that the catalogue names."""

    def __init__(self, entry: CatalogueEntry, folder: str | os.PathLike[str]):
        self.entry, self.folder = entry, folder

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        _require_https(self.entry, self.folder, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_https(entry: CatalogueEntry, folder: str | os.PathLike[str], url: str) -> None:
    if urlsplit(url).scheme != "https" or urlsplit(url).netloc != urlsplit(entry.url).netloc:
        raise _not_fetched(entry, folder, f"it leads to {url[:200]}, and only https from the listed host is followed")


def _is_entry(path: Path, entry: CatalogueEntry) -> bool:
    try:
        same_size = path.stat().st_size == entry.size
        return same_size and hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256
    except OSError:
        return False


def _not_fetched(entry: CatalogueEntry, folder: str | os.PathLike[str], why: str) -> AnnealingError:
    return AnnealingError(
        f'"{entry.name}" could not be fetched: {why}. Download {entry.url} yourself (SHA-256 {entry.sha256}) and put the file '
        f"into {Path(folder).absolute()} as {entry.file_name} or under its own name."
    )
