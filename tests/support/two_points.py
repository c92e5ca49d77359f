"""A closed-form model whose prediction bends: every value of the data is +m or -m, blurred, so the gap is not linear in x."""

from __future__ import annotations

import comfy.model_sampling
import torch
from closed_form import GaussianDenoiser, closed_form_model, conditioning
from comfy.model_base import ModelType

SHAPE = (4, 8, 8)
KINDS = {"epsilon": ModelType.EPS, "velocity": ModelType.FLOW}
NEGATIVE = conditioning(torch.full((1, *SHAPE), 0.3), 1.0)


def ve_denoised(x, sigma, points, blur):
    """E[x0 | x] for x = x0 + sigma noise, x0 = +-points + blur noise, value by value."""
    variance = blur**2 + sigma**2
    centre = points * torch.tanh(points * x / variance)
    return centre + blur**2 / variance * (x - centre)


def flow_denoised(x, s, points, blur):
    """E[x0 | x] for x = (1 - s) x0 + s noise: the same, with x and the noise level divided by 1 - s."""
    signal = (1 - s).clamp(min=1e-4)
    return ve_denoised(x / signal, s / signal, points, blur)


class TwoPointDenoiser(GaussianDenoiser):
    def forward(self, x, timestep, context=None, transformer_options=None, **kwargs):
        sigmas = transformer_options["sigmas"]
        sigma = sigmas.repeat(x.shape[0] // sigmas.shape[0]).view(-1, *[1] * (x.ndim - 1))
        blur, points = context[:, 0, 0].view(sigma.shape), context[:, 0, 1:].reshape(x.shape)
        self.rows += x.shape[0]
        if isinstance(self.model_sampling, comfy.model_sampling.CONST):
            return (x - flow_denoised(x, sigma, points, blur)) / sigma
        unscaled = x * (sigma**2 + 1) ** 0.5
        return (unscaled - ve_denoised(unscaled, sigma, points, blur)) / sigma


def two_point_model(kind: str):
    """A MODEL of either kind, whose captions are the points."""
    patcher = closed_form_model(KINDS[kind])
    denoiser = TwoPointDenoiser()
    denoiser.model_sampling = patcher.model.model_sampling
    patcher.model.diffusion_model = denoiser
    return patcher


def pictures(count: int, seed: int = 0) -> tuple[list[torch.Tensor], list[list]]:
    """Latents [4, 8, 8] and the conditioning of each, which knows half of where its values are."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randn(count, *SHAPE, generator=generator).sign()
    points = 0.4 + 0.6 * torch.rand(count, *SHAPE, generator=generator)
    latents = signs * points + 0.2 * torch.randn(count, *SHAPE, generator=generator)
    return list(latents), [conditioning(points[i : i + 1], 0.2) for i in range(count)]
