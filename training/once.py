"""From a model and its text encoder to a profile, with nothing to prepare: for Train Annealing Scale.

The model makes pictures from prompts and is measured on them, as Profile Guidance does it. Only the choices are made here, so
that users need not: prompts, negative, size, steps, and a profile as small as a fit allows (benchmarks/studies/cheap_profile.py).

A picture costs about 44 rows (evaluations of one latent with one prompt): 20 to make it without guidance and about 24 to measure
it. Sampling a picture in 20 steps with CFG costs 40.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.supported_models
import nodes  # ComfyUI's own, not the pack's
import torch
from comfy.model_patcher import ModelPatcher

from ..guidance import coordinates
from ..guidance.host_types import Conditioning
from ..models.errors import AnnealingError
from ..shapes.loader import ShapesConfig, captioned_pictures
from .fingerprint import digest
from .knots import spread_knots
from .origin import origin_of
from .pictures import SampleSettings, empty_latent, encode, encoded_picture, sampled_pictures
from .profile import ProfileSettings, TrainingGrid
from .shards import MeasuredProfile, measure, measure_into
from .training_grid import training_grid

PROMPTS = Path(__file__).with_name("prompts.txt")
EFFORTS = {"quick": 32, "normal": 128, "thorough": 512}  # pictures
# At lambda 0 a learned scale is about 1 on any grid, so the grid sets the strength: CFG 5 on average, on both paths.
TRAINING_STEPS = {"ve": 20, "flow": 28}
# Unguided: pictures made with CFG give a scale that is far too strong (benchmarks/studies/own_pictures.py).
SAMPLING = SampleSettings(steps=20, cfg=1.0, sampler="dpmpp_2m")
SAMPLES, KNOTS, LARGEST_SCALE = 2, 5, 4.0
SMALL_LATENT = 4 * 64 * 64  # values; up to this size, several noise levels at once cost hardly any memory

_SMALLER = {  # pixels; every other model gets 1024 x 1024
    ShapesConfig: (128, 128),
    comfy.supported_models.SD15: (512, 512),
    comfy.supported_models.SD20: (512, 512),
}
_VIDEO = ("WAN", "Hunyuan_Video", "HunyuanVideo", "LTXV", "GenmoMochi", "Cosmos")  # how the names of ComfyUI's classes begin


@dataclass(frozen=True)
class Request:
    """What a scale is trained with.

    prompts: at least one. negative: None for the model's usual one. width, height: in pixels. pictures: how many the model makes.
    """

    prompts: tuple[str, ...]
    negative: Conditioning | None
    width: int
    height: int
    pictures: int

    def described(self) -> str:
        """For ScaleInfo.source: the same text for the same request, and a different text for any other."""
        how = [SAMPLING.steps, SAMPLING.cfg, SAMPLING.sampler, SAMPLES, KNOTS, LARGEST_SCALE, TRAINING_STEPS]
        number = digest([self.prompts, self.negative, self.width, self.height, how]).hex()[:8]
        return (
            f"Train Annealing Scale: {self.pictures} pictures of {self.width} x {self.height} from {len(self.prompts)} prompts, "
            f"settings {number}"
        )


def default_prompts(model: ModelPatcher) -> list[str]:
    """The bundled list; for the demo model, which knows few words, captions of its own."""
    if isinstance(model.model.model_config, ShapesConfig):
        return list(dict.fromkeys(captioned_pictures(EFFORTS["normal"], seed=0)[1]))
    return lines_of(PROMPTS.read_text(encoding="utf-8"))


def lines_of(text: str) -> list[str]:
    """The prompts in a text, one a line, each once."""
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


def usual_size(model: ModelPatcher) -> tuple[int, int]:
    """(width, height) in pixels of what the model was trained on, by its family."""
    if type(model.model).__name__.startswith(_VIDEO):
        return 832, 480
    if isinstance(model.model, comfy.model_base.SDXL):
        return 1024, 1024
    config = model.model.model_config
    size = next((size for kind, size in _SMALLER.items() if isinstance(config, kind)), (1024, 1024))
    if isinstance(config, comfy.supported_models.SD20) and model.model.model_type == comfy.model_base.ModelType.V_PREDICTION:
        return 768, 768
    return size


def own_grid(model: ModelPatcher) -> TrainingGrid:
    """The steps that the scale is trained for."""
    model_sampling = model.get_model_object("model_sampling")
    return training_grid(model_sampling, TRAINING_STEPS[coordinates.path_of(model_sampling)])


def usual_negative(model: ModelPatcher, clip: Any) -> Conditioning:
    """The empty prompt; for SDXL zeros, as it was trained."""
    empty = encode(clip, "")
    return zeroed(empty) if isinstance(model.model, comfy.model_base.SDXL) else empty


def zeroed(conditioning: Conditioning) -> Conditioning:
    """As ComfyUI's ConditioningZeroOut makes it."""
    return nodes.ConditioningZeroOut().zero_out(conditioning)[0]


def measure_own(
    folder: Path,
    model: ModelPatcher,
    clip: Any,
    request: Request,
    progress: Callable[[int, int], None] | None = None,
) -> MeasuredProfile:
    """The profile of a model on pictures that it makes itself, kept in a subfolder of `folder`.

    An interrupted run resumes, also with more pictures. progress: as in `measure_into`. AnnealingError where the model cannot be
    measured; a clip that does not fit is found before the first picture is made.
    """
    if clip is None:
        raise AnnealingError(
            "clip is empty: the checkpoint holds no text encoder. Connect Load CLIP with the text encoder that belongs to the "
            "model."
        )
    size = empty_latent(model, request.width, request.height)
    if size["samples"].numel() == 0:
        raise AnnealingError(
            f"Pictures of {request.width} x {request.height} are smaller than one place of this model's latents. Set width and "
            "height to what the model was trained on, or to 0."
        )
    settings = ProfileSettings(own_grid(model), SAMPLES, spread_knots(0.0, LARGEST_SCALE, KNOTS))
    chosen = spread_over(request.prompts, request.pictures)
    first = None
    try:
        negative = usual_negative(model, clip) if request.negative is None else request.negative
        first = encode(clip, max(chosen, key=len))
        _require_guidance(model, size["samples"][0], first, negative, settings)
    except (AnnealingError, comfy.model_management.OOM_EXCEPTION):
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        raise AnnealingError(
            f"The model cannot be sampled with what this clip makes of a prompt{_width_of(first)}: "
            f"{str(error)[:200] or type(error).__name__}. Connect the text encoder that belongs to the model."
        ) from error
    positives = [encode(clip, prompt) for prompt in chosen]
    repeats = -(-request.pictures // len(chosen))
    pictures = sampled_pictures(model, size, positives, negative, replace(SAMPLING, count=repeats))[: request.pictures]
    batch_size = SAMPLES if size["samples"].numel() <= SMALL_LATENT else 1
    # One subfolder for each model, LoRA, negative and choice of settings, as a profile's folder cannot hold two of them.
    key = digest([origin_of(model, negative, settings).metadata(), request.prompts, request.width, request.height]).hex()[:12]
    return measure_into(folder / key, model, pictures, negative, settings, batch_size, progress)


def spread_over(prompts: Sequence[str], count: int) -> list[str]:
    """At most `count` prompts, evenly spaced: a list may be sorted by what its prompts are about."""
    count = min(count, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def _require_guidance(
    model: ModelPatcher, latent: torch.Tensor, positive: Conditioning, negative: Conditioning, settings: ProfileSettings
) -> None:
    """Measures one entry as a trial. AnnealingError where positive and negative predictions are the same."""
    trial = replace(settings, samples=1, knots=(0.0, 1.0))
    measured = measure(model, [encoded_picture(0, latent, positive)], negative, trial, batch_size=1)
    if not measured.entries.gap_norm.any():
        raise AnnealingError(
            "The model predicts the same for a prompt and for the negative, so guidance can have no effect and no scale can be "
            "learned. If its guidance is built in or distilled away, sample it at CFG 1; else check that clip belongs to it."
        )


def _width_of(conditioning: Conditioning | None) -> str:
    sequence = conditioning[0][0] if conditioning else None
    return f" (embeddings of width {sequence.shape[-1]})" if isinstance(sequence, torch.Tensor) else ""
