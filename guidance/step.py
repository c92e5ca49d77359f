"""The guided step: Algorithm 4 inside ComfyUI's own path from conditions to a denoised prediction.

    cond, uncond = both predictions
    w            = network(timestep, |gap|, lambda)          Algorithm 4's scale, by the model's own gap      run.py
    cfg_scale    = the ordinary CFG that makes this step the null-renoised one with w                         strength.py
    guided       = ComfyUI's cfg_function, with everybody's hooks, always in ordinary CFG                     hooks.py
    return         what the sampler must be handed so that its step is this one                               delivery.py

course.py has what depends on the noise level alone: how strong a training step is here, how far the sampler's own step goes, what
the solver remembers. The guider and the model patch both call this one function.
"""

from __future__ import annotations

import comfy.samplers
import torch
from comfy.model_base import BaseModel

from . import hooks, strength
from .coverage import covers_nothing, may_cover_nothing
from .host_types import Options, PreparedConditioning
from .run import GuidedRun
from .trace import NO_NEGATIVE, NO_POSITIVE, GuidedCall


def guided_step(
    run: GuidedRun,
    model: BaseModel,
    positive: PreparedConditioning,
    negative: PreparedConditioning,
    x: torch.Tensor,
    sigma: torch.Tensor,
    model_options: Options,
) -> torch.Tensor:
    """What the sampler takes for the denoised prediction, shaped like x.

    It replaces comfy.samplers.sampling_function and keeps its order of calls and hooks. x: [B, ...] of any rank; sigma: [B] or
    [1], ComfyUI's; positive, negative: the run's prepared conditionings. AnnealingError where a hook needs a single number.
    """
    conds = [positive, negative]
    predictions = _predict(model, conds, x, sigma, model_options)
    predictions, coverage = _covered(conds, predictions)

    own_cond = predictions[0]
    level, call = run.guide(own_cond, predictions[1], sigma.expand(x.shape[0]))
    one_for_all = run.is_one_for_all and (coverage is None or len(x) == 1)
    call = _with_coverage(call, coverage)
    pre_cfg = model_options.get(hooks.PRE_CFG, [])
    if pre_cfg:
        tiny = call.cfg_scale.abs() < strength.LEAST_FOR_HOOKS
        call = call._replace(cfg_scale=torch.where(tiny, strength.LEAST_FOR_HOOKS, call.cfg_scale))
    run.record(call)

    # The scale is chosen once: pre-CFG hooks (APG divides by it), the step and post-CFG hooks all see the same.
    scale = hooks.for_hooks(call.cfg_scale, x, one_for_all)
    for hook in pre_cfg:
        predictions = hooks.guarded(hook, model_options, one_for_all)(
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
    options = hooks.guarded_options(model_options, one_for_all)
    guided = comfy.samplers.cfg_function(
        model, cond, uncond, scale, x, sigma, model_options=options, cond=positive, uncond=negative
    )
    if run.guidance.projects:
        guided = run.extent.across(own_cond, guided)
    return run.deliver(level, cond, uncond, guided)


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
    """Predictions with nothing missing, and the trace's coverage code per sample [B]; None where all is surely covered.

    A gap to a missing prediction is garbage. So the other prediction takes the place of the missing one, in the whole latent or
    outside an area. Hooks, guidance and null renoising then all see the plain prediction.
    """
    if not any(may_cover_nothing(side) for side in conds):
        return predictions, None
    cond, uncond = predictions[:2]
    no_cond, no_uncond = (covers_nothing(*pair) for pair in zip(conds, predictions, strict=False))
    covered = [torch.where(no_cond, uncond, cond), torch.where(no_uncond, cond, uncond)]
    code = no_uncond.flatten(1).all(dim=1) * NO_NEGATIVE + no_cond.flatten(1).all(dim=1) * NO_POSITIVE
    return covered + list(predictions[2:]), code


def _with_coverage(call: GuidedCall, coverage: torch.Tensor | None) -> GuidedCall:
    """The call with the scale of the plain prediction where one side is missing: 1 without a negative, 0 without a positive."""
    if coverage is None:
        return call
    scale = torch.where(coverage == NO_NEGATIVE, 1.0, torch.where(coverage == NO_POSITIVE, 0.0, call.cfg_scale))
    return call._replace(cfg_scale=scale, coverage=coverage.to(scale.dtype))
