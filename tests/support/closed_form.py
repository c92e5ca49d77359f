"""A diffusion model in closed form, as a real ComfyUI model: Gaussian data whose best denoiser is known exactly.

The conditioning carries the data's standard deviation and mean: data ~ N(mean, std^2 I).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models_base
import torch
from annealing_guidance_pack.guidance.run import GuidedRun
from annealing_guidance_pack.models.scale_model import ScaleInfo, ScaleModel
from comfy.model_base import ModelType
from safetensors import safe_open

CPU = torch.device("cpu")
DATA = Path(__file__).resolve().parent.parent / "data"


class GaussianDenoiser(torch.nn.Module):
    """The network of the model: answers in the units that the model's sampling expects. Counts the rows it evaluates."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.model_sampling = None
        self.rows = 0
        self.calls = 0

    def forward(self, x, timestep, context=None, transformer_options=None, **kwargs):
        # The exact sigma: ComfyUI's discrete timestep is only the nearest entry of its table.
        sigmas = transformer_options["sigmas"]
        sigma = sigmas.repeat(x.shape[0] // sigmas.shape[0]).view(-1, *[1] * (x.ndim - 1))
        std, mean = context[:, 0, 0].view(sigma.shape), context[:, 0, 1:].reshape(x.shape)
        self.rows += x.shape[0]
        self.calls += 1
        sampling = self.model_sampling
        if isinstance(sampling, comfy.model_sampling.CONST):
            return (x - flow_denoised(x, sigma, mean, std, getattr(sampling, "noise_scale", 1.0))) / sigma
        if type(sampling).calculate_denoised is not comfy.model_sampling.EPS.calculate_denoised:
            return self.answer_in_any_units(x, sigma, mean, std)
        unscaled = x * (sigma**2 + sampling.sigma_data**2) ** 0.5
        return (unscaled - ve_denoised(unscaled, sigma, mean, std)) / sigma

    def answer_in_any_units(self, x, sigma, mean, std):
        """What a network of any kind sampled in the VE form answers, so that ComfyUI's calculate_denoised finds E[x0 | x].

        Both of ComfyUI's conversions are linear in what they convert, so two evaluations of each are enough to invert them.
        """
        sampling, level, like = self.model_sampling, sigma.double().flatten(), x.double()
        unscaled = like / sampling.calculate_input(level, torch.ones_like(like))
        offset = sampling.calculate_denoised(level, torch.zeros_like(like), unscaled)
        factor = sampling.calculate_denoised(level, torch.ones_like(like), torch.zeros_like(like))
        return ((ve_denoised(unscaled, sigma.double(), mean, std) - offset) / factor).to(x.dtype)


def ve_denoised(x, sigma, mean, std):
    """E[x0 | x] for x = x0 + sigma noise."""
    return mean + std**2 / (std**2 + sigma**2) * (x - mean)


def flow_denoised(x, s, mean, std, noise_std=1.0):
    """E[x0 | x] for x = (1 - s) x0 + s noise."""
    return mean + (1 - s) * std**2 / ((1 - s) ** 2 * std**2 + (s * noise_std) ** 2) * (x - (1 - s) * mean)


class ClosedFormConfig(comfy.supported_models_base.BASE):
    """Enough of a model configuration for BaseModel; SDXL's schedule or a flow model's."""

    def __init__(self, sampling_settings: dict | None = None):
        super().__init__({"disable_unet_model_creation": True, "in_channels": 4})
        self.sampling_settings = sampling_settings or {}


def closed_form_model(
    model_type: ModelType = ModelType.EPS, sampling_settings: dict | None = None, base=comfy.model_base.BaseModel
) -> comfy.model_patcher.ModelPatcher:
    """The MODEL as a loader node would return it. `patcher.model.diffusion_model` counts rows and calls."""
    model = base(ClosedFormConfig(sampling_settings), model_type=model_type)
    model.diffusion_model = GaussianDenoiser()
    model.diffusion_model.model_sampling = model.model_sampling
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


class ClosedFormSDXL(comfy.model_base.SDXL):
    """Of SDXL's class, without its text encoder's parts."""

    def __init__(self, model_config, model_type):
        comfy.model_base.BaseModel.__init__(self, model_config, model_type)

    def encode_adm(self, **kwargs):
        return None


def conditioning(mean: torch.Tensor, std: float, **options) -> list:
    """A CONDITIONING for data ~ N(mean[b], std^2 I), as ComfyUI's nodes make them. mean: [B, ...] or one for all [1, ...]."""
    values = torch.cat([torch.full((mean.shape[0], 1), std), mean.flatten(1).float()], dim=1)
    return [[values[:, None, :], {"pooled_output": None, **options}]]


class GivenNoise:
    """A NOISE that is given, for SamplerCustomAdvanced."""

    def __init__(self, noise: torch.Tensor, seed: int = 0):
        self.noise, self.seed = noise, seed

    def generate_noise(self, latent: dict) -> torch.Tensor:
        return self.noise


def sample(guider, sampler, sigmas, noise, seed: int = 0, latent: torch.Tensor | None = None, mask=None) -> torch.Tensor:
    """Final latents by ComfyUI's own SamplerCustomAdvanced."""
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    latents = {"samples": torch.zeros_like(noise) if latent is None else latent}
    if mask is not None:
        latents["noise_mask"] = mask
    with torch.inference_mode():  # as ComfyUI's executor does
        return SamplerCustomAdvanced.execute(GivenNoise(noise, seed), guider, sampler, sigmas, latents).args[0]["samples"]


def run_of(model, guidance, noise, sigmas, sampler=None) -> GuidedRun:
    """The guidance of a run that is about to begin, without a guider's own part in it."""
    sampler = sampler or comfy.samplers.sampler_object("euler")
    return GuidedRun(guidance, comfy.samplers.CFGGuider(model), sampler, noise, sigmas)


class SmoothScale(ScaleModel):
    """A scale model that needs no weights: moves with all three inputs, as the learned ones do, and is exact in float64."""

    def __init__(self, prediction: str | None = None, reference_numel: int | None = None, training_grid=20):
        facts = {"trained_on": "", "source": "", "licence": "", "created_with": ""}
        super().__init__(ScaleInfo("smooth", prediction, reference_numel, training_grid, **facts))

    def forward(self, timestep, gap_norm, guidance_lambda):
        return 0.6 + 0.3 * torch.cos(timestep / 300) + 0.5 * guidance_lambda + 0.05 * torch.log1p(gap_norm.nan_to_num(posinf=1e4))


@dataclass(frozen=True)
class PaperTrajectory:
    """A whole run of the authors' sampler and network on closed-form models: figures of float64. [B] samples, [T] steps.

    The run fed the raw gap norm of its small latents to the network, so it is reproduced with reference_numel=None.
    """

    timesteps: torch.Tensor  # [T]
    initial_noise: torch.Tensor  # [B, 4, 16, 16], of unit variance in the VP form
    means: torch.Tensor  # of the conditional model, [B, 4, 16, 16]
    scale: torch.Tensor  # [T, B]
    gap_norm: torch.Tensor  # [T, B]
    final_latent: torch.Tensor  # [B, 4, 16, 16]
    lambdas: torch.Tensor  # [B]
    std_cond: float
    std_uncond: float

    def positive(self) -> list:
        return conditioning(self.means, self.std_cond)

    def negative(self) -> list:
        return conditioning(torch.zeros_like(self.means[:1]), self.std_uncond)

    def sigmas(self, model_sampling) -> torch.Tensor:
        return torch.cat([model_sampling.sigmas[self.timesteps], torch.zeros(1)])

    def noise(self, sigma: torch.Tensor) -> torch.Tensor:
        """What becomes initial_noise * sqrt(1 + sigma^2) when ComfyUI multiplies it by its first sigma."""
        return (self.initial_noise * (1 + sigma.double() ** 2) ** 0.5 / sigma.double()).float()


def paper_trajectory(steps: int) -> PaperTrajectory:
    with safe_open(DATA / f"paper_trajectory_{steps}.safetensors", framework="pt") as file:
        tensors, facts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    tensors["gap_norm"] = tensors.pop("delta_norm")
    return PaperTrajectory(
        **tensors,
        lambdas=torch.tensor(json.loads(facts["lambdas"])),
        std_cond=float(facts["std_cond"]),
        std_uncond=float(facts["std_uncond"]),
    )
