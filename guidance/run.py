"""The guidance of one sampling run: what the user asked for, fitted to the model, the sampler and the schedule."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ..models.errors import AnnealingError
from ..models.scale_model import ScaleModel
from . import coordinates, renoising, samplers, strength
from .course import Course, Level
from .delivery import Delivery
from .extent import GapExtent, has_frames_on_batch
from .host_types import Sampler
from .live import LiveChart, can_follow
from .trace import AnnealingTrace, GuidedCall, RunTrace

logger = logging.getLogger("annealing_guidance")


@dataclass(frozen=True)
class Guidance:
    """What the user asked for; AnnealingError for what the host lets through though no widget offers it.

    guidance_lambda: 0 (sample quality) .. 1 (prompt alignment), or one per sample [B].
    """

    scale_model: ScaleModel
    guidance_lambda: float | torch.Tensor = 0.4
    renoise: renoising.Renoise = "auto"
    match_training_steps: bool = True

    def __post_init__(self) -> None:
        if self.renoise not in renoising.CHOICES:
            raise AnnealingError(f'renoise is "{self.renoise}". Choose one of: {", ".join(renoising.CHOICES)}.')
        lambdas = torch.as_tensor(self.guidance_lambda)
        if not ((lambdas >= 0) & (lambdas <= 1)).all():
            raise AnnealingError(f"guidance_lambda is {self.guidance_lambda}. Set it to a number from 0 to 1.")


class GuidedRun:
    """One sampling run's guidance; AnnealingError where it does not fit the model or the batch.

    noise: [B, ...], or [B, 1, N] where latent_shapes names several parts; both as outer_sample is given them. sigmas: [N + 1].
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
        facts = samplers.facts_of(sampler)
        renoised = renoising.uncond_share(guidance.renoise, facts)
        frames_on_batch = has_frames_on_batch(patcher, guider.model_options)

        self.guidance = guidance
        self.trace: RunTrace | None = None
        self.live: LiveChart | None = None
        self.folded = renoised == 0
        self.advice = renoising.advice(guidance.renoise, facts, model_sampling)
        self.course = Course(model_sampling, guidance.scale_model.info, facts, sigmas, renoised, patcher.load_device)
        self.deliver = Delivery(renoised > 0, 0 if renoised else self.course.remembers)
        self.extent = GapExtent(latent_shapes or [noise.shape], frames_on_batch)
        self.extent.follow_mask(guider.model_options)
        self.several_calls = facts.calls_several_times
        self.guidance_lambda = guidance.guidance_lambda
        one_lambda = not isinstance(self.guidance_lambda, torch.Tensor) or self.guidance_lambda.numel() == 1
        self.is_one_for_all = noise.shape[0] == 1 or (one_lambda and (frames_on_batch or not guidance.scale_model.reads_gap))
        if isinstance(self.guidance_lambda, torch.Tensor):
            _require_one_lambda_per_sample(self.guidance_lambda.numel(), noise.shape[0])
            self.guidance_lambda = self.guidance_lambda.to(patcher.load_device)

    def guide(self, cond: torch.Tensor, uncond: torch.Tensor, sigma: torch.Tensor) -> tuple[Level, GuidedCall]:
        """Of a pair of denoised predictions [B, ...] at sigma [B]: where on the way they are, and the scale of each sample."""
        level = self.course.at(sigma.to(torch.float32))
        gap_norm = self.extent.gap_norm(cond, uncond, self.guidance.scale_model.info.reference_numel) / level.divisor
        with torch.no_grad():
            scale = self.guidance.scale_model(level.timestep, gap_norm, self.guidance_lambda)
        cfg_scale = strength.cfg_scale(level, scale, self.guidance.match_training_steps, self.several_calls)
        return level, GuidedCall(level.sigma, level.timestep, gap_norm, scale, cfg_scale, None)

    def record(self, call: GuidedCall) -> None:
        """Keep what was used, and show it. No waiting for the device."""
        if self.trace:
            self.trace.record(call)
        if self.live:
            self.live.record(call)

    def made(self, output: torch.Tensor) -> None:
        """Keep what the run's result is known by."""
        if self.trace and isinstance(output, torch.Tensor):
            self.trace.finish(output)

    def expected_cfg(self) -> float:
        """The ordinary CFG that the run will amount to, on average over steps and samples, for gaps of a usual size.

        Tools read it as `guider.cfg` (detail tools scale by it). Reads values, so it belongs before the run.
        """
        levels = self.course.of_steps()
        scale_model, norms = self.guidance.scale_model, usual_gap_norms(self.guidance.scale_model, levels.timestep)
        lambdas = torch.as_tensor(self.guidance_lambda, device=levels.sigma.device).reshape(-1)
        scales = torch.stack(
            [scale_model(levels.timestep, norm, value) for norm in norms for value in lambdas.unique()]
        )
        cfg = strength.cfg_scale(levels, scales, self.guidance.match_training_steps, self.several_calls)
        return float(cfg.mean())


def usual_gap_norms(scale_model: ScaleModel, timestep: torch.Tensor) -> list[torch.Tensor]:
    """Gap norms [T] that runs meet at these timesteps: those that the scale's file names, else some around its gap divisor."""
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
    """A run under way: its guidance, and a trace and a chart that follow it. Says what the user should know, before and after."""
    run = GuidedRun(guidance, guider, sampler, noise, sigmas, latent_shapes)
    for sentence in run.advice:
        logger.warning("Annealing guidance: %s", sentence)
    recorded = run.trace = trace.begin(guidance.scale_model.info.name, guidance.guidance_lambda, run.folded)
    run.live = live if live and can_follow(guider.model_patcher.load_device) else None
    if run.live:
        lambdas = torch.as_tensor(guidance.guidance_lambda).reshape(-1).tolist()
        run.live.begin(recorded.run_id, len(sigmas) - 1, run.folded, lambdas)
    asked, guider.cfg = guider.cfg, run.expected_cfg()
    try:
        yield run
        # The only wait for the device, after the last step.
        if run.live:
            run.live.finish(_summary(recorded, run.advice))
        for sentence in recorded.warnings():
            logger.warning("Annealing guidance: %s", sentence)
    finally:
        guider.cfg = asked


def _summary(trace: RunTrace, advice: list[str]) -> str:
    """What is said under the node when the run is over."""
    mean = trace.mean_cfg()
    return " ".join([*([f"CFG {mean:.1f} on average."] if mean is not None else []), *advice])


def _require_one_lambda_per_sample(lambdas: int, batch: int) -> None:
    if lambdas not in (1, batch):
        raise AnnealingError(
            f"lambda_per_sample has {lambdas} numbers, but the batch to be sampled has {batch} "
            f"{'sample' if batch == 1 else 'samples'}. Give as many numbers as samples (the latent's batch_size), one number "
            "for all, or leave it empty to use guidance_lambda."
        )
