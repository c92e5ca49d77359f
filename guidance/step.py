"""The guided step: ComfyUI's own path from conditions to a guided prediction, with a learned scale in place of the number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher

from ..models import schedule
from ..models.errors import AnnealingError
from ..models.scale_model import ScaleModel
from . import folding, renoising, units
from .coverage import covers_nothing, may_cover_nothing, per_sample
from .extent import GapExtent, has_frames_on_batch
from .host_types import Options, PreparedConditioning, Sampler
from .live import LiveChart, can_follow
from .multistep import Multistep
from .trace import NO_NEGATIVE, NO_POSITIVE, AnnealingTrace, GuidedCall

logger = logging.getLogger("annealing_guidance")

# Pre-CFG hooks divide by the scale (APG does), and a learned one may be 0 where the gap says nothing.
LEAST_FOR_HOOKS = 1e-3


@dataclass(frozen=True)
class Guidance:
    """What the user asked for; AnnealingError for what the host lets through though no widget offers it.

    guidance_lambda: 0 (sample quality) .. 1 (prompt alignment), or one per sample [B]; scale models clamp it.
    """

    scale_model: ScaleModel
    guidance_lambda: float | torch.Tensor = 0.4
    renoise: renoising.Renoise = "auto"
    match_training_steps: bool = True

    def __post_init__(self) -> None:
        if self.renoise not in renoising.CHOICES:
            raise AnnealingError(f'renoise is "{self.renoise}". Choose one of: {", ".join(renoising.CHOICES)}.')
        if not torch.as_tensor(self.guidance_lambda).isfinite().all():
            raise AnnealingError(f"guidance_lambda is {self.guidance_lambda}. Set it to a number from 0 to 1.")


class GuidedRun:
    """The guidance of one sampling run, resolved for its model and sampler; AnnealingError where they don't fit."""

    def __init__(
        self,
        guidance: Guidance,
        trace: AnnealingTrace,
        model_patcher: ModelPatcher,
        sampler: Sampler,
        live: LiveChart | None = None,
    ):
        self.guidance = guidance
        self.trace = trace
        self.live = live if can_follow(model_patcher.load_device) else None
        # From the patcher, so that ModelSampling nodes count.
        self.model_sampling = model_patcher.get_model_object("model_sampling")
        units.require_match(guidance.scale_model.info, self.model_sampling)
        self.kind = units.prediction_kind(self.model_sampling)
        self.folded = renoising.is_folded(guidance.renoise, sampler)
        self.several_calls = renoising.calls_several_times(sampler)
        self.fresh_noise = renoising.fresh_noise(sampler)
        self.multistep = Multistep(renoising.sampler_name(sampler))
        if advice := renoising.advice(self.folded, sampler, self.model_sampling):
            logger.warning("Annealing guidance: %s", advice)
        self.guidance_lambda = guidance.guidance_lambda
        self.extent = GapExtent()
        trace.begin(guidance.scale_model.info.name, guidance.guidance_lambda, self.folded)

    def begin(
        self,
        guider: comfy.samplers.CFGGuider,
        noise: torch.Tensor,
        sigmas: torch.Tensor,
        latent_shapes: Sequence[Sequence[int]] | None,
    ) -> None:
        """Fit the run to what ComfyUI's guider is about to sample; AnnealingError where the lambdas don't fit the batch.

        noise: [B, ...], or [B, 1, N] where latent_shapes names several parts; both as outer_sample is given them.
        """
        frames_on_batch = has_frames_on_batch(guider.model_patcher, guider.model_options)
        self.extent = GapExtent(latent_shapes or [noise.shape], frames_on_batch)
        self.extent.follow_mask(guider.model_options)
        if isinstance(self.guidance_lambda, torch.Tensor):
            _require_one_lambda_per_sample(self.guidance_lambda.numel(), noise.shape[0])
            self.guidance_lambda = self.guidance_lambda.to(guider.model_patcher.load_device)
        if self.live:
            lambdas = torch.as_tensor(self.guidance.guidance_lambda).reshape(-1).tolist()
            self.live.begin(self.trace.run, len(sigmas) - 1, self.folded, lambdas)

    def record(self, call: GuidedCall) -> None:
        """Keep what was used, and show it. No waiting for the device."""
        self.trace.record(call)
        if self.live:
            self.live.record(call)

    def finish(self) -> None:
        """Report what the user should know. The only wait for the device, after the last step."""
        if self.live:
            self.live.finish()
        for sentence in self.trace.warnings():
            logger.warning("Annealing guidance: %s", sentence)

    def guide(self, cond: torch.Tensor, uncond: torch.Tensor, sigma: torch.Tensor, model_options: Options) -> GuidedCall:
        """The scale of each sample for a pair of denoised predictions [B, ...] at sigma [B]."""
        info = self.guidance.scale_model.info
        level = units.noise_level(self.model_sampling, sigma)
        timestep = units.network_timestep(self.kind, level)
        norm = self.extent.gap_norm(self.model_sampling, cond, uncond, sigma)
        norm = units.norm_at_reference_size(norm, self.extent.numel(cond), info)
        with torch.no_grad():
            scale = self.guidance.scale_model(timestep, norm, self.guidance_lambda)

        next_in_training = schedule.next_on_training_grid(level, info, self.kind, timestep)
        next_level = self._next_level(sigma, model_options, next_in_training)
        k_train, k_own = folding.folding_factor(self.kind, level, torch.stack([next_in_training, next_level]))
        used = folding.used_scale(scale, k_own, k_train, self.folded, self.guidance.match_training_steps)
        if self.guidance.match_training_steps:
            if self.folded and self.fresh_noise:
                reached = folding.level_before_noise(level, next_level, self.fresh_noise)
                k_own = folding.folding_factor(self.kind, level, reached)
            used = used * folding.saturation(self.kind, scale, level, k_own, k_train, self.several_calls)
            if self.folded and self.multistep.applies:
                ratio = folding.step_ratio(level, next_level)
                used = self.multistep.corrected(used, cond, uncond, level, ratio, self.extent.product)
        return GuidedCall(sigma.float(), timestep, norm, scale, used, torch.zeros_like(scale))

    def _next_level(self, sigma: torch.Tensor, model_options: Options, next_in_training: torch.Tensor) -> torch.Tensor:
        """The noise level of the run's own next step; that of the training grid where the run tells no schedule."""
        sigmas = model_options.get("transformer_options", {}).get("sample_sigmas")
        if sigmas is None:
            return next_in_training
        return units.noise_level(self.model_sampling, folding.next_own_sigma(sigma, sigmas.to(sigma.device)))


def guided_step(
    run: GuidedRun,
    model: BaseModel,
    positive: PreparedConditioning,
    negative: PreparedConditioning,
    x: torch.Tensor,
    sigma: torch.Tensor,
    model_options: Options,
) -> torch.Tensor:
    """The guided denoised prediction D_u + w (D_c - D_u), shaped like x, with one w per sample.

    Replaces comfy.samplers.sampling_function, whose order of calls and hooks it keeps. x: [B, ...] of any rank; sigma: [B]
    or [1], ComfyUI's; positive, negative: the run's prepared conditionings.

    The scale is that for the model's own gap, as in training, and the same one reaches the pre-CFG hooks, the step itself,
    sampler_cfg_function and the post-CFG hooks, as [B, 1, ...]: hooks that compute with it (APG divides by it) rely on that.

    extent.py says over which values the gap is measured.
    """
    conds = [positive, negative]
    sigmas = sigma.expand(x.shape[0])
    predictions, coverage = _covered(conds, _predict(model, conds, x, sigma, model_options))

    hooks = model_options.get("sampler_pre_cfg_function", [])
    call = _with_coverage(run.guide(predictions[0], predictions[1], sigmas, model_options), coverage)
    if hooks:
        call = call._replace(used=torch.where(call.used.abs() < LEAST_FOR_HOOKS, LEAST_FOR_HOOKS, call.used))
    run.record(call)
    scale = per_sample(call.used, x).to(x.dtype)
    for hook in hooks:
        predictions = hook(
            {
                "conds": conds,
                "conds_out": predictions,
                "cond_scale": scale,
                "timestep": sigma,
                "input": x,
                "sigma": sigma,
                "model": model,
                "model_options": model_options,
            }
        )

    cond, uncond = predictions[:2]
    with _patch_named(model_options.get("sampler_cfg_function")):
        return comfy.samplers.cfg_function(
            model, cond, uncond, scale, x, sigma, model_options=model_options, cond=positive, uncond=negative
        )


@contextmanager
def _patch_named(cfg_function: Callable[..., object] | None) -> Iterator[None]:
    """Says whose error it is where another pack's sampler_cfg_function, if there is one, cannot use a scale per sample."""
    try:
        yield
    except (TypeError, RuntimeError) as error:
        if cfg_function is None or isinstance(error, comfy.model_management.OOM_EXCEPTION):
            raise
        name = getattr(cfg_function, "__qualname__", type(cfg_function).__name__).split(".<locals>")[0]
        raise AnnealingError(
            f'The patch {name} on this model failed: "{error}". Annealing guidance gives it one scale per sample where CFG '
            "gives one number, and some patches need a number. Remove that patch, or sample its model with CFGGuider."
        ) from error


def _require_one_lambda_per_sample(lambdas: int, batch: int) -> None:
    if lambdas not in (1, batch):
        raise AnnealingError(
            f"lambda_per_sample has {lambdas} numbers, but the batch to be sampled has {batch} "
            f"{'sample' if batch == 1 else 'samples'}. Give as many numbers as samples (the latent's batch_size), one number "
            "for all, or leave it empty to use guidance_lambda."
        )


def _predict(
    model: BaseModel, conds: list[PreparedConditioning], x: torch.Tensor, sigma: torch.Tensor, model_options: Options
) -> list[torch.Tensor]:
    """Both denoised predictions in one call, by ComfyUI's own function or the one that a patch put in its place."""
    if "sampler_calc_cond_batch_function" in model_options:
        return model_options["sampler_calc_cond_batch_function"](
            {"conds": conds, "input": x, "sigma": sigma, "model": model, "model_options": model_options}
        )
    return comfy.samplers.calc_cond_batch(model, conds, x, sigma, model_options)


def _covered(
    conds: list[PreparedConditioning], predictions: list[torch.Tensor]
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Predictions with nothing missing, and the trace's coverage code per sample [B]; None where all is covered for sure.

    A gap to a missing prediction is garbage. There, be it the whole latent or the places outside an area, the other
    prediction takes its place, so that hooks, the guided prediction and null renoising all see the plain prediction.
    """
    if not any(may_cover_nothing(side) for side in conds):
        return predictions, None
    cond, uncond = predictions[:2]
    no_cond, no_uncond = (covers_nothing(*pair) for pair in zip(conds, predictions, strict=False))
    covered = [torch.where(no_cond, uncond, cond), torch.where(no_uncond, cond, uncond)]
    code = no_uncond.flatten(1).all(dim=1) * NO_NEGATIVE + no_cond.flatten(1).all(dim=1) * NO_POSITIVE
    return covered + list(predictions[2:]), code


def _with_coverage(call: GuidedCall, coverage: torch.Tensor | None) -> GuidedCall:
    """The call with the plain prediction's scale where one side was missing: 1 without a negative, 0 without a positive."""
    if coverage is None:
        return call
    used = torch.where(coverage == NO_NEGATIVE, 1.0, torch.where(coverage == NO_POSITIVE, 0.0, call.used))
    return call._replace(used=used, coverage=coverage.to(call.used.dtype))
