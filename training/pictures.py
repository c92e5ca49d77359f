"""The pictures of a profile: given ones, or ones that the model itself makes from prompts.

A picture's identity is a 63-bit number from the SHA-256 of what it is made of. All randomness comes from a seed made of the
profile's seed and this identity. So a picture's numbers do not depend on the order, the interruptions or the number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import comfy.latent_formats
import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ..guidance import coordinates
from ..guidance.host_types import Conditioning, Latent, Options
from ..models.errors import AnnealingError
from .fingerprint import digest

# Conditionings are prepared once for rows of different noise levels, so none may be limited to some levels.
_RANGES = ("start_percent", "end_percent", "timestep_start", "timestep_end")


@dataclass(frozen=True)
class Picture:
    """One picture to measure.

    identity: 0 .. 2^63 - 1. make: gives its latent [C, ...], as a VAE gives it, and its positive CONDITIONING. It is called only
    when the picture is measured.
    """

    identity: int
    make: Callable[[], tuple[torch.Tensor, Conditioning]]


def encode(clip: Any, text: str) -> Conditioning:
    """The CONDITIONING of a prompt, as CLIP Text Encode gives it."""
    with torch.no_grad():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def identity_of(*parts: Any) -> int:
    """The identity of a picture made of these parts: nested lists, dicts, tensors, strings, numbers."""
    return int.from_bytes(digest(parts)[:8], "big") >> 1


def picture_seed(seed: int, identity: int) -> int:
    """The seed of everything random about a picture: 0 .. 2^63 - 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{identity}".encode()).digest()[:8], "big") >> 1


def given_pictures(latents: Latent | Sequence[Latent], positives: Conditioning | list[Conditioning]) -> list[Picture]:
    """Pictures from latents with captions, as nodes give them.

    latents: a LATENT, or several; each holds one picture or a batch. positives: a CONDITIONING, or several: one per picture
    (a batched one counts as many), or one for all. AnnealingError where they do not fit together.
    """
    rows = [row for latent in ([latents] if isinstance(latents, dict) else latents) for row in _rows_of_latent(latent)]
    captions = conditionings(positives)
    if not rows or len(captions) not in (1, len(rows)):
        raise AnnealingError(
            f"There are {len(rows)} latents and {len(captions)} captions' conditionings: give one of each per picture, or one "
            "conditioning for all."
        )
    if len(captions) == 1:
        captions *= len(rows)
    return [encoded_picture(identity_of(*both), *both) for both in zip(rows, captions, strict=True)]


def encoded_picture(identity: int, latent: torch.Tensor, caption: Conditioning) -> Picture:
    """A picture whose latent [C, ...] and CONDITIONING are known already."""
    return Picture(identity, lambda: (latent, caption))


def _rows_of_latent(latent: Latent) -> list[torch.Tensor]:
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise AnnealingError("A latent holds picture and sound together (nested), which a profile cannot be measured on.")
    if torch.count_nonzero(samples) == 0:
        raise AnnealingError(
            "A latent is empty (all zeros), so it is no picture to learn from. Encode pictures with the VAE, or let the model "
            "make the pictures from the prompts."
        )
    return list(samples)


@dataclass(frozen=True)
class SampleSettings:
    """How a model makes its own pictures.

    cfg: None for 1.0, unguided. scheduler: None for normal (flow models: simple). count: pictures per prompt.
    """

    steps: int = 28
    cfg: float | None = None
    sampler: str = "euler"
    scheduler: str | None = None
    count: int = 1
    seed: int = 0


def sampled_pictures(
    model: ModelPatcher,
    size: Latent,
    positives: Conditioning | list[Conditioning],
    negative: Conditioning,
    settings: SampleSettings,
) -> list[Picture]:
    """Pictures that the model makes from prompts by ComfyUI's sampling, each when it is measured.

    size: an empty LATENT of the pictures' size (from ComfyUI's Empty Latent nodes, or `empty_latent`); its batch size is ignored.
    positives: as in `given_pictures`, one per prompt.
    """
    maker = PictureMaker(model, size, negative, settings)
    return [
        maker.picture(maker.identity(caption, repeat), caption)
        for repeat in range(settings.count)
        for caption in conditionings(positives)
    ]


class PictureMaker:
    """Makes pictures from prompts, one at a time, so that each is the same, whatever was made before it."""

    def __init__(self, model: ModelPatcher, size: Latent, negative: Conditioning, settings: SampleSettings):
        """AnnealingError for a sampler or scheduler that this ComfyUI does not have."""
        is_flow = coordinates.path_of(model.get_model_object("model_sampling")) == "flow"
        cfg = settings.cfg if settings.cfg is not None else 1.0  # guided pictures give too strong a scale
        self.settings = replace(settings, cfg=cfg, scheduler=settings.scheduler or ("simple" if is_flow else "normal"))
        for name, value, known in (
            ("sampler", self.settings.sampler, comfy.samplers.SAMPLER_NAMES),
            ("scheduler", self.settings.scheduler, comfy.samplers.SCHEDULER_NAMES),
        ):
            if value not in known:
                raise AnnealingError(f"There is no {name} {value!r} in this ComfyUI. Choose one of: {', '.join(known)}.")
        require_whole_run([negative])
        self.model, self.negative = model, negative
        empty = torch.zeros_like(size["samples"][:1], dtype=torch.float32, device="cpu")
        self.empty = comfy.sample.fix_empty_latent_channels(model, empty)

    def identity(self, prompt: Any, repeat: int) -> int:
        """For picture number `repeat` of a prompt: its CONDITIONING, or its text and what encodes it."""
        how = asdict(self.settings) | {"shape": list(self.empty.shape)}
        del how["count"]  # so that more pictures per prompt do not change the first ones
        return identity_of("sampled", prompt, how, repeat)

    def picture(self, identity: int, caption: Conditioning) -> Picture:
        """The picture with this identity, sampled with the caption's CONDITIONING when it is measured."""
        return Picture(identity, lambda: (self._latent(identity, caption), caption))

    def _latent(self, identity: int, caption: Conditioning) -> torch.Tensor:
        """The sampled latent: [C, ...]."""
        settings, seed = self.settings, picture_seed(self.settings.seed, identity)
        noise = torch.randn(self.empty.shape, generator=torch.Generator().manual_seed(seed))
        how = settings.steps, settings.cfg, settings.sampler, settings.scheduler
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # samplers that add noise may draw it from here
            samples = comfy.sample.sample(
                self.model, noise, *how, caption, self.negative, self.empty, disable_pbar=True, seed=seed
            )
        return samples[0].cpu()


# Pixels per latent place, if not 8, for hosts whose latent formats do not say it.
_PIXELS = {"Flux2": 16, "LTXV": 32, "HunyuanImage21": 32, "HunyuanVideo15": 16, "Wan22": 16, "ChromaRadiance": 1, "SC_B": 4}


def empty_latent(model: ModelPatcher, width: int, height: int, frames: int = 1) -> Latent:
    """An empty LATENT for pictures of width x height pixels; frames: of the latent, for video models."""
    latent_format = model.get_model_object("latent_format")
    pixels = getattr(latent_format, "spacial_downscale_ratio", None) or _PIXELS.get(type(latent_format).__name__, 8)
    time = [frames] if latent_format.latent_dimensions == 3 else []
    return {"samples": torch.zeros(1, latent_format.latent_channels, *time, height // pixels, width // pixels)}


def conditionings(positives: Conditioning | list[Conditioning]) -> list[Conditioning]:
    """One CONDITIONING per prompt, from a CONDITIONING or several; batched ones are split."""
    several = [positives] if positives and _is_conditioning(positives) else positives
    require_whole_run(several)
    return [single for conditioning in several for single in _singles(conditioning)]


def _is_conditioning(value: list[Any]) -> bool:
    """A CONDITIONING is a list of [sequence, options]."""
    return len(value[0]) == 2 and isinstance(value[0][1], dict)


def _singles(conditioning: Conditioning) -> list[Conditioning]:
    """A batched CONDITIONING, split. Entries for one prompt (combined ones, areas) stay together."""
    size = max(_prompts(sequence, options) for sequence, options in conditioning)
    if size == 1:
        return [conditioning]

    def row(value: Any, i: int) -> Any:
        return value[i : i + 1] if isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == size else value

    return [
        [[row(sequence, i), {key: row(value, i) for key, value in options.items()}] for sequence, options in conditioning]
        for i in range(size)
    ]


def _prompts(sequence: torch.Tensor | None, options: Options) -> int:
    embedding = sequence if sequence is not None else options.get("pooled_output")
    return 1 if embedding is None else len(embedding)


def require_whole_run(several: list[Conditioning]) -> None:
    """AnnealingError for conditionings that are limited to a part of the steps, and for empty ones."""
    if any(not conditioning for conditioning in several):
        raise AnnealingError("A conditioning is empty. Connect CLIP Text Encode nodes with the captions and the negative prompt.")
    if any(key in options for conditioning in several for _, options in conditioning for key in _RANGES):
        raise AnnealingError(
            "A conditioning is limited to a part of the steps (ConditioningSetTimestepRange), and a profile covers all of "
            "them. Connect it without the limit."
        )
