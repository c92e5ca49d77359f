"""A world of two numbers in which everything is known: points on a ring, captions that name a direction, the best denoisers.

Data: M narrow Gaussians side by side on a ring of radius sqrt(2), so each coordinate has unit variance. A caption names a
direction; its own data is the quarter of the ring around it, with soft ends. A latent is [2, 1, 1].

The model has learned from captions of which a share WRONG belonged to other points. Its predictions are the posterior means
for exactly that:

    unconditional   D_u = E[x0 | x]              conditional   D_c = E[x0 | x, a caption that is right with 1 - WRONG]

Why wrong captions: with perfect ones the conditional prediction is the best there is, and guidance can only do harm. With
some wrong, as collected captions are, the model follows the prompt too weakly, and guidance has something to put right. How
much is known as well (`exact_scale`).
"""

from __future__ import annotations

import math

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.supported_models_base
import torch

MODES = 96
RADIUS = math.sqrt(2)
BLUR = 0.05  # standard deviation of each Gaussian
ARC_END, SOFTNESS = math.cos(math.pi / 4), 0.05  # of a caption's part of the ring, as cosines: 45 degrees, over about 4
WRONG = 0.4
CPU = torch.device("cpu")

_ANGLES = torch.arange(MODES) * (2 * math.pi / MODES)
AXES = torch.stack([_ANGLES.cos(), _ANGLES.sin()], dim=1)  # the modes' directions, unit vectors: [M, 2]


def mode_weights(direction: torch.Tensor, wrong: float = 0.0) -> torch.Tensor:
    """The modes' probabilities given captions, unit vectors [B, 2]: [B, M]. wrong: the share of captions that say nothing."""
    right = torch.sigmoid((direction @ AXES.T - ARC_END) / SOFTNESS)
    return (1 - wrong) * right / right.sum(dim=1, keepdim=True) + wrong / MODES


def draw(weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One point of each of these mixtures: weights [B, M] -> [B, 2]."""
    mode = torch.multinomial(weights, 1, generator=generator)[:, 0]
    return RADIUS * AXES[mode] + BLUR * torch.randn(len(mode), 2, generator=generator)


def denoised(x: torch.Tensor, sigma: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """E[x0 | x] for x = x0 + sigma noise: x [B, 2], sigma [B, 1], weights of the modes [B, M] -> [B, 2]."""
    variance = BLUR**2 + sigma**2
    centre = torch.softmax(weights.log() + _likelihood(x, variance), dim=1) @ (RADIUS * AXES)
    return centre + BLUR**2 / variance * (x - centre)


def exact_scale(x: torch.Tensor, sigma: torch.Tensor, direction: torch.Tensor, wrong: float = WRONG) -> torch.Tensor:
    """The scale with which ordinary CFG repairs the wrong captions: [B], 1 or more; inputs as above.

    With p the probability, given x, that the caption is right, D_c = p D_right + (1 - p) D_u. So the scale 1/p gives D_right,
    the prediction of a model that has seen right captions only. It differs from point to point and from step to step.
    """
    likelihood = _likelihood(x, BLUR**2 + sigma**2)
    right = torch.logsumexp(mode_weights(direction).log() + likelihood, dim=1)
    either = torch.logsumexp(mode_weights(direction, wrong).log() + likelihood, dim=1)
    return (either - right).exp() / (1 - wrong)


def _likelihood(x: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """log p(x | mode) less what all modes share: [B, M]. They lie equally far from the origin, so inner products are enough."""
    return x @ (RADIUS * AXES).T / variance


def embedding(direction: torch.Tensor) -> torch.Tensor:
    """Captions [B, 2] as the model is told them, [B, 1, M], of unit variance as text embeddings roughly are."""
    return math.sqrt(2) * (direction @ AXES.T)[:, None]


def read_embedding(context: torch.Tensor, wrong: float) -> torch.Tensor:
    """The modes' weights for embeddings [B, 1, M], perturbed ones too; the empty prompt's, which is zeros, are all equal."""
    pointing = context[:, 0] @ AXES
    weights = mode_weights(torch.nn.functional.normalize(pointing), wrong)
    return torch.where((pointing == 0).all(dim=1, keepdim=True), 1 / MODES, weights)


class RingDenoiser(torch.nn.Module):
    """The network of the model: answers with the noise, as an SDXL network does, for latents [B, 2, 1, 1]."""

    dtype = torch.float32

    def __init__(self, wrong: float):
        super().__init__()
        # A buffer, so that two models with other captions have other weights, by which profiles are told apart.
        self.register_buffer("wrong", torch.tensor(wrong))

    def forward(self, x, timestep, context=None, transformer_options=None, **kwargs):
        sigmas = transformer_options["sigmas"]  # exact, where the timestep is the nearest entry of ComfyUI's table
        sigma = sigmas.repeat(len(x) // len(sigmas))[:, None]
        unscaled = x.flatten(1) * (sigma**2 + 1).sqrt()
        clean = denoised(unscaled, sigma, read_embedding(context, self.wrong))
        return ((unscaled - clean) / sigma).view_as(x)


class TwoNumbers(comfy.latent_formats.LatentFormat):
    latent_channels = 2


class RingConfig(comfy.supported_models_base.BASE):
    """Enough of a model configuration for BaseModel: SDXL's noise schedule, latents of two channels."""

    latent_format = TwoNumbers

    def __init__(self):
        super().__init__({"disable_unet_model_creation": True, "in_channels": 2})


def ring_model(wrong: float = WRONG) -> comfy.model_patcher.ModelPatcher:
    """The MODEL as a loader node would return it. wrong: the share of wrong captions that it has learned from."""
    model = comfy.model_base.BaseModel(RingConfig())
    model.diffusion_model = RingDenoiser(wrong)
    # This network does not read the timestep, and to look it up would take longer than everything else together.
    model.model_sampling.timestep = torch.zeros_like
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def conditioning(direction: torch.Tensor | None) -> list:
    """The CONDITIONING of captions [B, 2], or of the empty prompt."""
    values = torch.zeros(1, 1, MODES) if direction is None else embedding(direction)
    return [[values, {"pooled_output": None}]]
