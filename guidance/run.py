"""The guidance of one sampling run: what the user asked for, fitted to the model, the sampler and the schedule."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import comfy.samplers
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher

from ..models import schedule
from ..models.errors import AnnealingError
from ..models.scale_model import ScaleModel
from . import coordinates, renoising, sampler_facts, strength
from .course import Course, Level
from .delivery import Delivery
from .extent import GapExtent, has_frames_on_batch
from .host_types import Sampler
from .live import LiveChart, can_follow
from .trace import AnnealingTrace, GuidedCall, RunTrace

logger = logging.getLogger("annealing_guidance")

Projection = Literal["auto", "on", "off"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
LARGEST_CFG = 100.0
FEW_STEPS, MANY_STEPS = 8, 28
# A run that exceeds CFG 1 by less than this has no course to stretch: it gets a constant CFG.
LEAST_ABOVE_ONE = 0.02


@dataclass(frozen=True)
class Guidance:
    """What the user asked for. AnnealingError for values that no widget offers: links and the API let them through.

    guidance_lambda: 0 (sample quality) .. 1 (prompt alignment), or one per sample [B].
    cfg: strength as ordinary CFG, on average over a run, 1 .. LARGEST_CFG; 0: as trained.
    projection: guide only across the conditional prediction; auto: as the scale was trained.
    """

    scale_model: ScaleModel
    guidance_lambda: float | torch.Tensor = 0.4
    renoise: renoising.Renoise = "auto"
    match_training_steps: bool = True
    cfg: float = 0.0
    projection: Projection = "auto"

    def __post_init__(self) -> None:
        if self.renoise not in renoising.CHOICES:
            raise AnnealingError(f'renoise is "{self.renoise}". Choose one of: {", ".join(renoising.CHOICES)}.')
        lambdas = torch.as_tensor(self.guidance_lambda)
        if not ((lambdas >= 0) & (lambdas <= 1)).all():
            raise AnnealingError(f"guidance_lambda is {self.guidance_lambda}. Set it to a number from 0 to 1.")
        if not (self.cfg == 0 or 1 <= self.cfg <= LARGEST_CFG):
            raise AnnealingError(
                f"cfg is {self.cfg}. Set it to the CFG that you would use, from 1 (no guidance) to {LARGEST_CFG:g}, or to 0 for "
                "the strength that the scale was trained with."
            )
        if self.projection not in PROJECTIONS:
            raise AnnealingError(f'projection is "{self.projection}". Choose one of: {", ".join(PROJECTIONS)}.')

    @property
    def projects(self) -> bool:
        """Whether the guidance goes only across the conditional prediction."""
        return self.projection == "on" or (self.projection == "auto" and self.scale_model.info.projection)


class GuidedRun:
    """One sampling run's guidance; AnnealingError where it does not fit the model or the batch.

    noise, latent_shapes: as outer_sample gets them; [B, ...], or [B, 1, N] with several shapes. sigmas: [N + 1].
    """

    def __init__(
        self,
        guidance: Guidance,
        guider: comfy.samplers.CFGGuider,
        sampler: Sampler,
        noise: torch.Tensor,
        sigmas: torch.Tensor,
        latent_shapes: Sequence[Sequence[int]] | None = None,
    ):
        patcher: ModelPatcher = guider.model_patcher
        # From the patcher, so that ModelSampling nodes count.
        model_sampling = patcher.get_model_object("model_sampling")
        coordinates.require_match(guidance.scale_model.info, model_sampling)
        facts = sampler_facts.facts_of(sampler)
        renoised = renoising.uncond_share(guidance.renoise, facts)
        frames_on_batch = has_frames_on_batch(patcher, guider.model_options)

        self.guidance = guidance
        self.trace: RunTrace | None = None
        self.live: LiveChart | None = None
        self.folded = renoised == 0
        self.course = Course(model_sampling, guidance.scale_model.info, facts, sigmas, renoised, patcher.load_device)
        self.advice = [*renoising.advice(guidance.renoise, facts, model_sampling), *self._few_steps()]
        self.deliver = Delivery(renoised > 0, self.course.remembers)
        self.extent = GapExtent(latent_shapes or [noise.shape], frames_on_batch)
        self.extent.follow_mask(guider.model_options)
        self.several_calls = facts.calls_several_times
        self.guidance_lambda = guidance.guidance_lambda
        one_lambda = not isinstance(self.guidance_lambda, torch.Tensor) or self.guidance_lambda.numel() == 1
        self.is_one_for_all = noise.shape[0] == 1 or (one_lambda and (frames_on_batch or not guidance.scale_model.reads_gap))
        if isinstance(self.guidance_lambda, torch.Tensor):
            _require_one_lambda_per_sample(self.guidance_lambda.numel(), noise.shape[0])
            self.guidance_lambda = self.guidance_lambda.to(patcher.load_device)
        self.stretch = self._stretch() if guidance.cfg else None

    def guide(self, cond: torch.Tensor, uncond: torch.Tensor, sigma: torch.Tensor) -> tuple[Level, GuidedCall]:
        """For a pair of denoised predictions [B, ...] at sigma [B]: their noise level, and the scale of each sample."""
        level, info = self.course.at(sigma.to(torch.float32)), self.guidance.scale_model.info
        other = self.extent.across(cond, uncond) if info.projection else uncond
        gap_norm = self.extent.gap_norm(cond, other, info.reference_numel) / level.divisor
        with torch.no_grad():
            scale = self.guidance.scale_model(level.timestep, gap_norm, self.guidance_lambda)
        cfg_scale = strength.cfg_scale(level, scale, self.guidance.match_training_steps, self.several_calls)
        if self.stretch:
            # Stretching values below 1, as at the start of flow runs, must not end in guidance away from the prompt.
            cfg_scale = torch.addcmul(self.stretch.offset, self.stretch.factor, cfg_scale).clamp(min=1.0)
        return level, GuidedCall(level.sigma, level.timestep, gap_norm, scale, cfg_scale, None)

    def _few_steps(self) -> list[str]:
        """A warning where so few steps suggest a few-step model, which needs hardly any guidance."""
        info = self.guidance.scale_model.info
        trained = len(schedule.levels_of_grid(info.training_grid, info.path or "ve"))
        if self.guidance.cfg or self.course.steps > FEW_STEPS or trained < MANY_STEPS:
            return []
        return [
            f'This run has {self.course.steps} steps, and the scale "{info.name}" was made for {trained}. A model made for few '
            "steps (turbo, lightning, LCM) needs hardly any guidance: set cfg to 1 to 2 there."
        ]

    def record(self, call: GuidedCall) -> None:
        """Keep what was used, and show it, without waiting for the device."""
        if self.trace:
            self.trace.record(call)
        if self.live:
            self.live.record(call)

    def made(self, output: torch.Tensor) -> None:
        """Keep what identifies the run's result."""
        if self.trace and isinstance(output, torch.Tensor):
            self.trace.finish(output)

    def expected_cfg(self) -> float:
        """The ordinary CFG that the run will amount to, on average over steps and samples, for gaps of a usual size.

        Detail tools read it as `guider.cfg`. Call it before the run: it reads values, so it waits for the device.
        """
        return self.guidance.cfg or float(self._usual_cfg().mean())

    def _usual_cfg(self) -> torch.Tensor:
        """The CFG that the run amounts to as trained, for each lambda [L], on average over its steps and usual gaps."""
        levels, scale_model = self.course.of_steps(), self.guidance.scale_model
        norms = usual_gap_norms(scale_model, levels.timestep)
        means = []
        with torch.no_grad():
            for value in torch.as_tensor(self.guidance_lambda, dtype=torch.float32).reshape(-1).tolist():
                scales = torch.stack([scale_model(levels.timestep, norm, value) for norm in norms])
                cfg = strength.cfg_scale(levels, scales, self.guidance.match_training_steps, self.several_calls)
                means.append(cfg.mean())
        return torch.stack(means)

    def _stretch(self) -> Stretch:
        """What makes the run amount to the requested cfg: its distance from CFG 1 is scaled."""
        usual, asked = self._usual_cfg(), self.guidance.cfg
        above_one = usual - 1
        factor = torch.where(above_one > LEAST_ABOVE_ONE, (asked - 1) / above_one, 0.0)
        return Stretch(factor, torch.where(above_one > LEAST_ABOVE_ONE, 1 - factor, asked))


class Stretch(NamedTuple):
    """cfg_scale' = offset + factor cfg_scale, for each sample or for all: [B] or [1]."""

    factor: torch.Tensor
    offset: torch.Tensor


def usual_gap_norms(scale_model: ScaleModel, timestep: torch.Tensor) -> list[torch.Tensor]:
    """Gap norms [T] that are usual at these timesteps: those in the scale's file, else some around its gap divisor."""
    info = scale_model.info
    if info.typical_gaps and info.path:
        nsr = schedule.levels_of_grid(info.training_grid, info.path)
        known = schedule.timestep_of_nsr(info.path, nsr).flip(0).tolist()
        norms = np.interp(timestep.tolist(), known, info.typical_gaps[::-1])
        return [torch.tensor(norms, dtype=torch.float32, device=timestep.device)]
    divisor = getattr(getattr(scale_model, "config", None), "gap_divisor", 5.0)
    return [torch.full_like(timestep, divisor * times) for times in (0.5, 1.0, 2.0, 4.0)]


@contextmanager
def guided_run(
    guidance: Guidance,
    trace: AnnealingTrace,
    live: LiveChart | None,
    guider: comfy.samplers.CFGGuider,
    sampler: Sampler,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    latent_shapes: Sequence[Sequence[int]] | None,
) -> Iterator[GuidedRun]:
    """One run: its guidance, its trace and its chart. Warnings go to the log before and after it."""
    run = GuidedRun(guidance, guider, sampler, noise, sigmas, latent_shapes)
    for sentence in run.advice:
        logger.warning("Annealing guidance: %s", sentence)
    recorded = run.trace = trace.begin(guidance.scale_model.info.name, guidance.guidance_lambda, run.folded)
    run.live = live if live and can_follow(guider.model_patcher.load_device) else None
    if run.live:
        lambdas = torch.as_tensor(guidance.guidance_lambda).reshape(-1).tolist()
        run.live.begin(recorded.run_id, len(sigmas) - 1, run.folded, lambdas)
    before, guider.cfg = guider.cfg, run.expected_cfg()
    try:
        yield run
    finally:
        guider.cfg = before
    # The only wait for the device, after the last step.
    if run.live:
        run.live.finish(_summary(recorded, run.advice))
    for sentence in recorded.warnings():
        logger.warning("Annealing guidance: %s", sentence)


def _summary(trace: RunTrace, advice: list[str]) -> str:
    """The text under the node after the run."""
    mean = trace.mean_cfg()
    return " ".join([*([f"CFG {mean:.1f} on average."] if mean is not None else []), *advice])


def _require_one_lambda_per_sample(lambdas: int, batch: int) -> None:
    if lambdas not in (1, batch):
        raise AnnealingError(
            f"lambda_per_sample has {lambdas} numbers, but the batch to be sampled has {batch} "
            f"{'sample' if batch == 1 else 'samples'}. Give as many numbers as samples (the latent's batch_size), one number "
            "for all, or leave it empty to use guidance_lambda."
        )
