"""What a profile's numbers depend on besides its pictures, as its files remember it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ..guidance import coordinates
from ..guidance.extent import has_frames_on_batch
from ..guidance.host_types import Conditioning
from ..models import schedule
from ..models.errors import AnnealingError
from ..models.scale_model import PREDICTIONS, Prediction
from .fingerprint import Fingerprint, Samples, alike, fingerprint, samples_of
from .profile import ProfileSettings, TrainingGrid, steps_of_grid

MAX_KNOTS, MAX_GRID = 256, 10_000


@dataclass(frozen=True)
class Origin:
    """What a profile's numbers depend on besides its pictures. negative: samples of the negative's embeddings."""

    kind: Prediction
    settings: ProfileSettings
    model: Fingerprint
    negative: Samples

    def differences(self, other: Origin) -> list[str]:
        """What differs in the other one, as parts of a sentence; empty where both belong to one profile."""
        found = self.model.differences(other.model)
        if self.kind != other.kind:
            found.append(f"the other kind of prediction ({other.kind}, here {self.kind})")
        if not alike(self.negative, other.negative):
            found.append("another negative prompt")
        for field in fields(ProfileSettings):
            mine, theirs = getattr(self.settings, field.name), getattr(other.settings, field.name)
            if mine != theirs:
                found.append(f"another {field.name} ({_short(theirs)}, here {_short(mine)})")
        return found

    def metadata(self) -> dict[str, str]:
        """As safetensors keeps it: each field as JSON."""
        return {field.name: json.dumps(asdict(self)[field.name]) for field in fields(self)}

    @staticmethod
    def from_metadata(metadata: dict[str, str]) -> Origin:
        """LookupError, TypeError or ValueError where something is missing or impossible: the file may be a stranger's."""
        facts = {field.name: json.loads(metadata[field.name]) for field in fields(Origin)}
        if facts["kind"] not in ("epsilon", "velocity"):
            raise ValueError(f"its kind of prediction is {facts['kind']!r}")
        settings, fingerprint = facts["settings"], facts["model"]
        settings["training_grid"] = _training_grid(settings["training_grid"])
        settings["knots"] = tuple(_numbers(settings["knots"]))
        if not 2 <= len(settings["knots"]) <= MAX_KNOTS or settings["knots"][0] <= -1 or not _rising(settings["knots"]):
            raise ValueError("its knots are not a few rising numbers")
        settings.setdefault("projection", False)  # files of before it could be measured do not name it
        kinds = {"samples": int, "perturb": bool, "seed": int, "projection": bool}
        if any(type(settings[name]) is not kind for name, kind in kinds.items()):
            raise ValueError("its settings are not what they should be")
        texts = [fingerprint["architecture"], fingerprint["patches"], fingerprint["sampling"], fingerprint.get("merged", "")]
        if any(type(text) is not str or not text.isprintable() for text in texts):
            raise ValueError("it does not say what model it was measured on")
        fingerprint["architecture"].split()[0]  # its class
        for samples in (facts["negative"], fingerprint["weights"], fingerprint["levels"]):
            for values in samples:
                _numbers(values)
        return Origin(facts["kind"], ProfileSettings(**settings), Fingerprint(**fingerprint), facts["negative"])


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, list) or not all(type(x) is float or (type(x) is int and abs(x) < 2**63) for x in values):
        raise ValueError("it holds something else where numbers belong")
    return [float(x) for x in values]


def _rising(values: Sequence[float]) -> bool:
    """False if NaN or infinity is among them, too."""
    return all(a < b for a, b in pairwise(values)) and all(map(math.isfinite, values))


def _training_grid(value: Any) -> TrainingGrid:
    if type(value) is int and 1 <= value <= schedule.TIMESTEPS:
        return value
    levels = tuple(_numbers(value))
    if not 2 <= len(levels) <= MAX_GRID or levels[-1] != 0 or not _rising(levels[::-1]):
        raise ValueError("its training grid is neither a number of timesteps nor falling noise levels that end with 0")
    return levels


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:40]} ... {text[-12:]}"


def origin_of(model: ModelPatcher, negative: Conditioning, settings: ProfileSettings) -> Origin:
    """AnnealingError for a model or a training grid that no profile can be measured on."""
    if has_frames_on_batch(model, model.model_options):
        raise AnnealingError(
            "This model takes a batch as the frames of one video (AnimateDiff, SVD, context windows along the batch), and a "
            "profile is measured on batches of single pictures. Measure it on the model without them."
        )
    path = coordinates.path_of(model.get_model_object("model_sampling"))
    steps_of_grid(path, settings.training_grid)
    embeddings = [tensor for sequence, options in negative for tensor in (sequence, *options.values())]
    embeddings = [tensor for tensor in embeddings if isinstance(tensor, torch.Tensor) and tensor.numel() > 0]
    return Origin(PREDICTIONS[path], settings, fingerprint(model), samples_of(embeddings, 64))
