"""A profile's folder: measured pictures in small files that survive any interruption.

Each process writes its own shards (`*.safetensors`): after every picture, as a whole file, up to 64 pictures in each. So all that
was measured is on disk, and processes on one machine or many can fill one folder. A shard says what it was measured on and how
(`Origin`), and has a SHA-256 of its contents. Broken shards are skipped; shards of another origin are refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from comfy.model_patcher import ModelPatcher

from ..guidance.host_types import Conditioning
from ..models.errors import AnnealingError, in_words
from ..models.safetensors_header import header_of
from ..models.whole_file import write_whole
from .fingerprint import Fingerprint
from .knots import TABLE, squares_of_products
from .measure import measure_picture
from .origin import Origin, origin_of
from .pictures import Picture, require_whole_run
from .profile import Entries, Profile, ProfileSettings

logger = logging.getLogger("annealing_guidance")

FORMAT = "annealing-profile-shard/3"
OLD_FORMAT = "annealing-profile-shard/2"  # products of the gaps at the knots instead of mean squares
PICTURES_PER_SHARD = 64
MAX_SHARD_BYTES = 256 * 2**20  # 64 pictures of 500 entries take 17 MB, or 140 MB in the old format with 33 knots
FIRST_BROKEN = 8  # give up after so many pictures with NaN and none without
_COLUMNS = [field.name for field in fields(Entries)]


def measure_into(
    folder: str | os.PathLike[str],
    model: ModelPatcher,
    pictures: Sequence[Picture],
    negative: Conditioning,
    settings: ProfileSettings,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> MeasuredProfile:
    """Measure the pictures that the folder does not hold yet. Returns the merged profile of all that it holds then.

    model: a ComfyUI MODEL; it stays unchanged, whatever happens. negative: one CONDITIONING for all.
    batch_size: entries evaluated at once; the model sees twice as many rows, as in sampling a batch of that size.
    progress: called with (pictures done, all pictures), first before anything is measured. An exception from it stops the
        measuring.

    Each process measures in its own random order, so that several processes with the same folder share the work. The same
    pictures and settings give the same profile, whatever the order and the interruptions. Pictures for which the model predicts
    NaN or infinity are left out, and the log says so. AnnealingError where nothing can be measured, and for a folder that cannot
    be written to or holds a profile of another origin.
    """
    if not pictures:
        raise AnnealingError("There are no pictures to measure. Give at least a few hundred, with their captions.")
    if not negative or any(len(sequence) != 1 for sequence, _ in negative if sequence is not None):
        raise AnnealingError("There must be one negative conditioning for all pictures. Connect one: an empty prompt.")
    require_whole_run([negative])
    store = _Folder(folder, origin_of(model, negative, settings), _precision(model))
    pictures = list({picture.identity: picture for picture in pictures}.values())
    broken = 0

    def tell() -> None:
        if progress is not None:
            progress(sum(picture.identity in store.measured for picture in pictures), len(pictures))

    tell()
    for i in torch.randperm(len(pictures), generator=torch.Generator().manual_seed(secrets.randbits(63))).tolist():
        picture = pictures[i]
        store.read()
        if picture.identity in store.measured:
            continue
        entries, numel = measure_picture(model, picture, negative, settings, batch_size)
        store.add(_Measured(entries, numel))
        broken += not entries.finite().all()
        if broken >= min(FIRST_BROKEN, len(pictures)) and not store.holds_whole():
            raise AnnealingError(
                f"The model predicted NaN or infinity for all of the first {broken} pictures. Check that it samples properly "
                "with these latents and captions, or run it in another precision."
            )
        tell()
    return store.profile()


def measure(
    model: ModelPatcher,
    pictures: Sequence[Picture],
    negative: Conditioning,
    settings: ProfileSettings,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> MeasuredProfile:
    """`measure_into` a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="annealing-profile-") as folder:
        return measure_into(folder, model, pictures, negative, settings, batch_size, progress)


def load_folder(folder: str | os.PathLike[str]) -> MeasuredProfile:
    """The merged profile of all shards in the folder and its subfolders.

    Broken shards are skipped, and the log says so. AnnealingError for a folder without shards, or with shards of several origins.
    """
    return _Folder(folder, None, "").profile()


def measured_pictures(
    folder: str | os.PathLike[str], model: ModelPatcher, negative: Conditioning, settings: ProfileSettings
) -> set[int]:
    """Identities of the pictures that `measure_into` would not measure again."""
    return _Folder(folder, origin_of(model, negative, settings), _precision(model)).measured


def _precision(model: ModelPatcher) -> str:
    """What the model computes in. NaN in one precision says nothing about another."""
    return f"{model.model_dtype()}, {getattr(model.model, 'manual_cast_dtype', None)}"


@dataclass(frozen=True)
class MeasuredProfile(Profile):
    """A profile that knows what it was measured on."""

    model: Fingerprint


@dataclass(frozen=True)
class _Measured:
    """One picture's entries, gap norms as they were, and the number of values of its latent."""

    entries: Entries
    numel: int

    @property
    def is_finite(self) -> bool:
        return bool(self.entries.finite().all())


@dataclass(frozen=True)
class _Shard:
    origin: Origin
    precision: str
    pictures: dict[int, _Measured]


class _Folder:
    """What a profile's folder holds, and this process's own shards in it.

    origin: the only one that is accepted; None accepts that of the first shard. precision: a picture with NaN counts as measured
    only if it was measured in this precision.
    """

    def __init__(self, path: str | os.PathLike[str], origin: Origin | None, precision: str):
        self.path, self.origin, self.precision = Path(path), origin, precision
        self.measured: set[int] = set()
        self._shards: dict[Path, _Shard] = {}
        self._seen: dict[Path, tuple[int, int]] = {}
        self._own: dict[int, _Measured] = {}
        self._own_path: Path | None = None
        self.read()

    def read(self) -> None:
        """Read what has been written since the last time, also by other processes."""
        for path in sorted(self.path.rglob("*.safetensors")):
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                signature = state.st_mtime_ns, state.st_size
                if path == self._own_path or self._seen.get(path) == signature:
                    continue
                self._seen[path] = signature
                self._take(path)

    def _take(self, path: Path) -> None:
        try:
            shard = _read_shard(_patiently(lambda: _read_bytes(path)))
        except FileNotFoundError:
            return
        except (OSError, safetensors.SafetensorError, ValueError, LookupError, TypeError, RuntimeError) as error:
            logger.warning(
                "Profile: the file %s is skipped, its pictures count as not measured: %s.", path, in_words(error)[:300]
            )
            return
        self.origin = self.origin or shard.origin
        if found := self.origin.differences(shard.origin):
            raise AnnealingError(
                f"{path} is part of another profile and cannot be merged with this one: it was measured with "
                f"{', and '.join(found)}. Use a folder of its own for each model and each choice of settings."
            )
        self._shards[path] = shard
        self._note(shard)

    def _note(self, shard: _Shard) -> None:
        is_ours = shard.precision == self.precision
        self.measured.update(number for number, picture in shard.pictures.items() if is_ours or picture.is_finite)

    def add(self, picture: _Measured) -> None:
        """Write one more picture; it is on disk when this returns."""
        assert self.origin is not None, "measure_into names it"
        self._own[int(picture.entries.picture[0])] = picture
        if self._own_path is None:
            self._own_path = self.path / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(6)}.safetensors"
        shard = _Shard(self.origin, self.precision, dict(self._own))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _write_shard(self._own_path, shard)
        except OSError as error:
            advice = "Free some space" if error.errno == errno.ENOSPC else "Make the folder writable, or choose another"
            raise AnnealingError(
                f"{self._own_path} could not be written: {in_words(error)}. {advice}, and run this again: it goes on "
                f"with what is on disk, {len(self.measured)} pictures."
            ) from error
        self._shards[self._own_path] = shard
        self._note(shard)
        if len(self._own) >= PICTURES_PER_SHARD:
            self._own, self._own_path = {}, None

    def holds_whole(self) -> bool:
        """Whether any picture is without NaN and infinity."""
        return any(picture.is_finite for shard in self._shards.values() for picture in shard.pictures.values())

    def profile(self) -> MeasuredProfile:
        """All of it merged: sorted by picture, each picture once, those with NaN left out."""
        self.read()
        pictures: dict[int, _Measured] = {}
        for _, shard in sorted(self._shards.items()):
            for number, picture in shard.pictures.items():
                if number not in pictures or not pictures[number].is_finite:
                    pictures[number] = picture
        whole = {number: pictures[number] for number in sorted(pictures) if pictures[number].is_finite}
        if len(whole) < len(pictures):
            logger.warning(
                "Profile: %d of %d pictures in %s are left out, as the model predicted NaN or infinity for them.",
                *(len(pictures) - len(whole), len(pictures), self.path),
            )
        if not whole or self.origin is None:
            raise AnnealingError(
                f"{self.path} holds no measured pictures{' without NaN or infinity' if pictures else ''}. Measure a profile into "
                "it first."
            )
        numel = _most_frequent([picture.numel for picture in whole.values()])
        entries = Entries.joined(list(_at_size(whole.values(), numel)))
        return MeasuredProfile(self.origin.kind, numel, self.origin.settings, entries, self.origin.model)


def _most_frequent(values: list[int]) -> int:
    """Of equally frequent ones the largest."""
    return max(set(values), key=lambda value: (values.count(value), value))


def _at_size(pictures: Iterable[_Measured], numel: int) -> Iterator[Entries]:
    """Their entries, with gap norms scaled to latents of `numel` values: a norm grows with the square root of their number."""
    for picture in pictures:
        columns = vars(picture.entries)
        yield Entries(**columns | {"gap_norm": columns["gap_norm"] * (numel / picture.numel) ** 0.5})


def _write_shard(path: Path, shard: _Shard) -> None:
    pictures = list(shard.pictures.values())
    tensors = {name: x.contiguous() for name, x in vars(Entries.joined([picture.entries for picture in pictures])).items()}
    tensors["numel"] = torch.cat([torch.full_like(picture.entries.picture, picture.numel) for picture in pictures])
    metadata = {"format": FORMAT, "precision": shard.precision, **shard.origin.metadata()}
    data = safetensors.torch.save(tensors, metadata=metadata | {"sha256": _checksum(metadata, tensors)})
    _patiently(lambda: write_whole(path, data))


def _patiently(act: Callable[[], Any]) -> Any:
    """On Windows a file cannot be replaced while another process reads it, nor read while it is replaced."""
    for _ in range(10 if sys.platform == "win32" else 0):
        try:
            return act()
        except PermissionError:
            time.sleep(0.05)
    return act()


def _read_bytes(path: Path) -> bytes:
    """The whole file at once, as Windows cannot replace an open one; at most one byte more than allowed."""
    with path.open("rb") as file:
        return file.read(MAX_SHARD_BYTES + 1)


def _read_shard(data: bytes) -> _Shard:
    """From a file's bytes. ValueError and others for a broken one.

    Files may come from strangers. The checksum only detects damage, so everything that is used later is checked here.
    """
    if len(data) > MAX_SHARD_BYTES:
        raise ValueError(f"it is larger than {MAX_SHARD_BYTES // 2**20} MB")
    tensors = safetensors.torch.load(data)
    metadata = (header_of(data) or {}).get("__metadata__") or {}
    if metadata.get("format") not in (FORMAT, OLD_FORMAT):
        raise ValueError(f"its format is {str(metadata.get('format'))[:80]!r}, not {FORMAT}")
    if metadata.pop("sha256", None) != _checksum(metadata, tensors):
        raise ValueError("its contents do not have the checksum that was written with them")
    origin = Origin.from_metadata(metadata)
    numel = tensors.pop("numel")
    entries = Entries(**{name: tensors.pop(name) for name in _COLUMNS})
    rows, knots = len(entries), origin.settings.knots
    is_old = metadata["format"] == OLD_FORMAT
    sizes = [tuple(column.shape) for column in vars(entries).values()]
    if sizes != [(rows,), (rows,), (rows,), (rows, 3), (rows, len(knots), len(knots)) if is_old else (rows, TABLE)]:
        raise ValueError(f"its table has other columns than this version's: {sizes}")
    types = [column.dtype for column in (numel, *vars(entries).values())]
    if types != [torch.int64, torch.int64, *[torch.float32] * 4] or numel.shape != (rows,):
        raise ValueError("its table has other kinds of numbers than this version's")
    if not ((numel > 0) & (numel < 2**40)).all() or not (entries.picture >= 0).all():
        raise ValueError("its pictures' numbers or sizes are impossible")
    if is_old:
        entries = dataclasses.replace(entries, second=squares_of_products(knots, entries.second))
    numbers, counts = entries.picture.unique_consecutive(return_counts=True)
    portions = torch.arange(rows).split(counts.tolist())
    pictures = {
        number: _Measured(entries[portion], int(numel[portion[0]]))
        for number, portion in zip(numbers.tolist(), portions, strict=True)
    }
    return _Shard(origin, metadata["precision"], pictures)


def _checksum(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> str:
    hashed = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        hashed.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + tensor.numpy().tobytes())
    return hashed.hexdigest()
