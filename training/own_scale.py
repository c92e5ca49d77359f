"""A model's own scale: a scale file keeps a fingerprint of the model that it was trained on, and is found again by it.

The same model: in any precision (float32, bfloat16, float16, and 8-bit floats as ComfyUI casts them), with any LoRAs and any way
of sampling. Another model: another checkpoint, a merge (of files or by nodes), and a copy that was quantised with scales or
packed (scaled 8-bit, GGUF), as its weights have other names or shapes.
"""

from __future__ import annotations

import json
import logging
import math
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from comfy.model_patcher import ModelPatcher

from ..guidance import coordinates
from ..models.errors import AnnealingError
from ..models.scale_file import load_info, load_scale
from ..models.scale_model import PREDICTIONS, Prediction, ScaleInfo
from .fingerprint import Fingerprint, Samples, alike, base_of, merged_of

logger = logging.getLogger("annealing_guidance")

_8_BIT = [
    (getattr(torch, name), digits, smallest)  # bits of the mantissa, exponent of the smallest normal number
    for name, digits, smallest in (("float8_e4m3fn", 3, -6), ("float8_e5m2", 2, -14))
    if hasattr(torch, name)
]
_bases: WeakKeyDictionary[torch.nn.Module, tuple[str, Samples]] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Checkpoint:
    """What a scale file keeps of a Fingerprint."""

    architecture: str
    weights: Samples
    merged: str

    def is_also(self, other: _Checkpoint) -> bool:
        return (self.architecture, self.merged) == (other.architecture, other.merged) and (
            alike(self.weights, other.weights)
            or _rounded_alike(self.weights, other.weights)
            or _rounded_alike(other.weights, self.weights)
        )


def fingerprint_text(fingerprint: Fingerprint) -> str:
    """For ScaleInfo.fingerprint: the parts that do not change with a model's LoRAs and sampling."""
    kept = {"architecture": fingerprint.architecture, "weights": fingerprint.weights, "merged": fingerprint.merged}
    return json.dumps(kept, separators=(",", ":"))


def own_scale(model: ModelPatcher, files: Mapping[str, Path], source: Callable[[str], bool] = lambda source: True) -> str | None:
    """The name of the newest scale file (name: path) that was trained on this very model and can be used with it; or None.

    source: which values of ScaleInfo.source are accepted.

    It reads each file's header once, until the file changes. It skips files that cannot be read, hold something else or do not
    say what they were trained on. It also skips a scale for the model's other path, and logs that. It never raises for a file.
    """
    try:
        noise_path = coordinates.path_of(model.get_model_object("model_sampling"))
    except AnnealingError:
        return None  # sampling it says why not
    found: list[tuple[int, str, ScaleInfo, _Checkpoint]] = []
    for name, path in files.items():
        try:
            state = path.stat()
        except (OSError, ValueError):
            continue
        if path.suffix.lower() == ".safetensors" and stat.S_ISREG(state.st_mode):
            known = _known(path, state.st_mtime_ns, state.st_size)
            if known is not None and source(known[0].source):
                found.append((state.st_mtime_ns, name, *known))
    if not found:
        return None
    this = _checkpoint_of(model)
    for _, name, info, checkpoint in sorted(found, key=lambda one: one[:2], reverse=True):
        if checkpoint.is_also(this) and _is_usable(name, files[name], info.prediction, PREDICTIONS[noise_path]):
            return name
    return None


def _is_usable(name: str, path: Path, prediction: Prediction | None, kind: Prediction) -> bool:
    """Whether the model's own file can be used with it; if not, the log says why."""
    if prediction != kind:
        logger.warning(
            '"%s" was trained on this model, but as a model of %s prediction. It is sampled as one of %s prediction now, so that '
            "scale is not used.",
            *(name, prediction, kind),
        )
        return False
    try:
        load_scale(path)
    except AnnealingError as error:
        logger.warning("%s", error)
        return False
    return True


def _checkpoint_of(model: ModelPatcher) -> _Checkpoint:
    """Computed once per loaded model: copies of a MODEL (LoRAs, other nodes' patches) share its weights."""
    inner = model.model
    if inner not in _bases:
        _bases[inner] = base_of(model)
    return _Checkpoint(*_bases[inner], merged_of(model))


@lru_cache(maxsize=4096)
def _known(path: Path, modified: int, size: int) -> tuple[ScaleInfo, _Checkpoint] | None:
    """What a scale file says of its model, cached by its time and size; None if nothing."""
    try:
        info = load_info(path)
        return None if info.fingerprint is None else (info, _parsed(info.fingerprint))
    except (AnnealingError, LookupError, TypeError, ValueError, RecursionError) as error:
        logger.info("Passed over in the search for a model's own scale: %s: %s", path, str(error)[:300])
        return None


def _parsed(text: str) -> _Checkpoint:
    """LookupError, TypeError, ValueError or RecursionError for anything that fingerprint_text does not write."""
    kept = json.loads(text)
    architecture, weights, merged = kept["architecture"], kept["weights"], kept["merged"]
    if type(architecture) is not str or type(merged) is not str or not weights:
        raise ValueError("its fingerprint is none")
    for values in weights:
        if not values or not all(type(x) in (int, float) and abs(x) < 1e30 and math.isfinite(x) for x in values):
            raise ValueError("its fingerprint holds something else where numbers belong")
    return _Checkpoint(architecture, weights, merged)


def _rounded_alike(rounded: Samples, whole: Samples) -> bool:
    """Whether `rounded` holds 8-bit floats, and those that the values of `whole` round to."""
    if [len(values) for values in rounded] != [len(values) for values in whole]:
        return False
    mine = torch.tensor([x for values in rounded for x in values], dtype=torch.float64)
    theirs = torch.tensor([x for values in whole for x in values], dtype=torch.float64)
    for dtype, digits, smallest in _8_BIT:
        # The samples have five digits, so neither is compared to the last bit.
        representable = (mine.to(dtype).to(torch.float64) - mine).abs() <= 1e-4 * mine.abs()
        half_a_step = torch.exp2(torch.floor(torch.log2(1.0001 * mine.abs())).clamp(min=smallest) - digits - 1)
        if representable.all() and ((mine - theirs).abs() <= 1.01 * half_a_step).all():
            return True
    return False
