"""The Annealing Sampler's null renoising: the step that the learned scale was made for.

Algorithm 4 of "Navigating with Annealing Guidance Scale in Diffusion Space" (arXiv 2506.24108); the step is that of
CFG++ (arXiv 2406.08070). Written for x = alpha x0 + sigma eps, where alpha is 1 in ComfyUI's VE form and 1 - s for flow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import torch
from comfy.k_diffusion.sampling import default_noise_sampler
from tqdm.auto import trange

from ..models.errors import AnnealingError
from .coverage import covers_nothing, may_cover_nothing
from .host_types import Options


class UnconditionalPrediction:
    """A post-CFG hook that keeps the unconditional prediction of the latest call, as ComfyUI's CFG++ samplers do."""

    def __init__(self) -> None:
        self.denoised: torch.Tensor | None = None

    def __call__(self, args: Options) -> torch.Tensor:
        """The guided prediction as it was; args: ComfyUI's, for post-CFG hooks."""
        if not args["uncond"]:
            raise AnnealingError(
                "The Annealing Sampler renoises with the unconditional prediction, but this guider gives none. Use a guider "
                "with a negative conditioning (Annealing Guider, CFGGuider), or another sampler."
            )
        uncond: torch.Tensor = args["uncond_denoised"]
        guided: torch.Tensor = args["denoised"]
        if may_cover_nothing(args["uncond"]):
            # A guider may let zeros through, and renoising with zeros would break the picture.
            uncond = torch.where(covers_nothing(args["uncond"], uncond), guided, uncond)
        self.denoised = uncond
        return guided


@torch.no_grad()
def sample_null_renoising(
    model: comfy.samplers.KSamplerX0Inpaint,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: Options | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    eta: float = 0.0,
    renoise_mix: float = 1.0,
    noise_sampler: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """x' = alpha' D_w + sigma' eps, with eps from the unconditional prediction: the k-diffusion sampler signature.

    eta: 0 (deterministic) .. 1, the share of fresh noise as in DDIM. renoise_mix: 1 renoises with eps_u (null
    renoising), 0 with the guided eps_w (the ordinary DDIM step), between them with their mixture.
    """
    model_sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    is_flow = isinstance(model_sampling, comfy.model_sampling.CONST)
    noise_scale = getattr(model_sampling, "noise_scale", 1.0)  # newer hosts: flow models whose noise isn't of unit variance

    extra_args = {} if extra_args is None else extra_args
    noise_sampler = default_noise_sampler(x, seed=extra_args.get("seed")) if noise_sampler is None else noise_sampler
    unconditional = UnconditionalPrediction()
    model_options = comfy.model_patcher.set_model_options_post_cfg_function(
        extra_args.get("model_options", {}).copy(), unconditional, disable_cfg1_optimization=True
    )
    extra_args = {**extra_args, "model_options": model_options}

    ones = x.new_ones([x.shape[0]])
    for i in trange(len(sigmas) - 1, disable=disable):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        alpha, alpha_next = (1 - sigma, 1 - sigma_next) if is_flow else (1, 1)

        denoised = model(x, sigma * ones, **extra_args)
        if unconditional.denoised is None:
            raise AnnealingError(
                "The Annealing Sampler renoises with the unconditional prediction, but this guider never ran ComfyUI's "
                "post-CFG hooks, which carry it. Use the Annealing Guider or CFGGuider, or another sampler."
            )
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

        # The noise in x, by a mix of the unconditional and the guided prediction.
        renoise_with = torch.lerp(denoised, unconditional.denoised, renoise_mix)
        eps = (x - alpha * renoise_with) / sigma
        if eta > 0:
            # DDIM (arXiv 2010.02502, eq. 16) in noise-to-signal ratios: std = eta sqrt(1 - r^2) of the next level.
            ratio = (sigma_next / alpha_next) / (sigma / alpha)
            fresh = eta * (1 - ratio**2).clamp(min=0).sqrt()
            eps = (1 - fresh**2).sqrt() * eps + fresh * noise_scale * noise_sampler(sigma, sigma_next)
        x = alpha_next * denoised + sigma_next * eps
    return x


def null_renoising_sampler(eta: float = 0.0, renoise_mix: float = 1.0) -> comfy.samplers.KSAMPLER:
    """The sampler as ComfyUI's SAMPLER type, with inpainting, previews and callbacks."""
    return comfy.samplers.KSAMPLER(sample_null_renoising, extra_options={"eta": eta, "renoise_mix": renoise_mix})
