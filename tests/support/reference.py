"""What a guided run ought to give, in float64: the guided denoiser written from its formulae, in ComfyUI's own samplers.

Shared with the code under test are only the scale model, ComfyUI's samplers, and the two approximations for large steps: the
saturation (tests/guidance/test_few_steps.py) and the correction for multistep solvers (test_multistep.py). Everything else is
written out here again, from the definitions.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import comfy.k_diffusion.sampling
import numpy as np
import torch
from annealing_guidance_pack.guidance import folding
from annealing_guidance_pack.guidance.multistep import Multistep
from closed_form import flow_denoised, ve_denoised
from kinds import Kind, is_flow, model_of, network_level, network_output, signal

# sigma of timesteps 0..999: betas evenly spaced in their square roots
_ABAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
_VE_SIGMAS = np.sqrt((1 - _ABAR) / _ABAR)


def timestep(kind: Kind, sigma: torch.Tensor) -> torch.Tensor:
    """The network's: 1000 s, or by interpolating the schedule in log sigma, with its ends beyond it. [B], float64."""
    level = network_level(kind, sigma.double())
    if is_flow(kind):
        return 1000 * level
    return torch.from_numpy(np.interp(level.log().numpy(), np.log(_VE_SIGMAS), np.arange(1000)))


def next_training_level(kind: Kind, sigma: torch.Tensor, grid: int) -> torch.Tensor:
    """`grid` timesteps below; below the first of them in proportion, down to 0."""
    if is_flow(kind):
        return (network_level(kind, sigma) - grid / 1000).clamp(min=0)
    t = timestep(kind, sigma).numpy()
    level = np.exp(np.interp(t - grid, np.arange(1000), np.log(_VE_SIGMAS)))
    return torch.from_numpy(np.where(t < grid, _VE_SIGMAS[0] * t / grid, level))


def gap_norm(kind: Kind, cond: torch.Tensor, uncond: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Norm of the difference of what the network would have answered: noise, or velocity. [B]."""
    sigma = sigma.view(-1, *[1] * (x.ndim - 1))
    gap = network_output(kind, cond, x, sigma) - network_output(kind, uncond, x, sigma)
    return gap.flatten(1).norm(dim=1)


def folding_factor(kind: Kind, level: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """How many times the null-renoised scale an ordinary first-order step needs."""
    ratio = (following / level).clamp(max=0.999)
    return (1 - following if is_flow(kind) else 1) / (1 - ratio)


@dataclass
class Data:
    """data ~ N(mean, std^2) with and without the caption. means: [B, ...]."""

    cond_mean: torch.Tensor
    cond_std: float
    uncond_mean: torch.Tensor
    uncond_std: float


class GuidedDenoiser:
    """D_u + w (D_c - D_u) in float64, called as ComfyUI's samplers call their model."""

    def __init__(
        self,
        kind: Kind,
        data: Data,
        scale_model,
        guidance_lambda: float,
        folded: bool,
        several_calls: bool,
        sampler: str,
        eta=0.0,
    ):
        self.kind, self.data, self.scale_model, self.guidance_lambda = kind, data, scale_model, guidance_lambda
        self.folded, self.several_calls, self.multistep = folded, several_calls, Multistep(sampler)
        self.eta = eta
        self.sigmas = torch.empty(0)  # the schedule of the run
        # where samplers look for the model's sampling
        patcher = model_of(kind)
        self.inner_model = SimpleNamespace(model_patcher=patcher, inner_model=patcher.model)

    def predictions(self, x, sigma):
        sigma = sigma.view(-1, *[1] * (x.ndim - 1))
        denoised = partial(flow_denoised, noise_std=self.kind.noise_scale) if self.kind.path == "flow" else ve_denoised
        data = self.data
        return (
            denoised(x, sigma, data.cond_mean.double(), data.cond_std),
            denoised(x, sigma, data.uncond_mean.double(), data.uncond_std),
        )

    def next_level(self, sigma):
        """Of the run's own schedule, by value."""
        below = [[s for s in self.sigmas.tolist() if s < one * (1 - 1e-5)] for one in sigma.tolist()]
        return network_level(self.kind, torch.tensor([max(values, default=0.0) for values in below], dtype=torch.float64))

    def used_scale(self, cond, uncond, x, sigma):
        """As folded, and as matched to the training's steps, as the defaults of the nodes ask."""
        info, level = self.scale_model.info, network_level(self.kind, sigma)
        norm = gap_norm(self.kind, cond, uncond, x, sigma) * math.sqrt(info.reference_numel / x[0].numel())
        scale = self.scale_model(timestep(self.kind, sigma), norm, self.guidance_lambda)
        own = folding_factor(self.kind, level, self.next_level(sigma))
        train = folding_factor(self.kind, level, next_training_level(self.kind, sigma, info.training_grid))
        if not self.folded:
            return scale * train / own * self.saturation(scale, level, own, train)
        ratio = (self.next_level(sigma) / level).clamp(max=0.999)
        down = level * ratio * (1 - self.eta**2 * (1 - ratio**2)).clamp(min=0).sqrt()  # before noise is added
        used = scale * train * self.saturation(scale, level, folding_factor(self.kind, level, down), train)
        return self.multistep.corrected(used, cond, uncond, level, ratio, lambda a, b: (a * b).flatten(1).sum(dim=1))

    def saturation(self, scale, level, own, train):
        """Not written out again: it is an approximation, with tests of its own."""
        prediction = "velocity" if is_flow(self.kind) else "epsilon"
        return folding.saturation(prediction, scale, level, own, train, self.several_calls)

    def __call__(self, x, sigma, model_options=None, **_):
        dtype, x, sigma = x.dtype, x.double(), sigma.double().expand(x.shape[0])
        cond, uncond = self.predictions(x, sigma)
        scale = self.used_scale(cond, uncond, x, sigma).view(-1, *[1] * (x.ndim - 1))
        denoised = (uncond + scale * (cond - uncond)).to(dtype)
        # the CFG++ samplers take the unconditional prediction from a hook
        for hook in (model_options or {}).get("sampler_post_cfg_function", []):
            denoised = hook({"denoised": denoised, "uncond_denoised": uncond.to(dtype), "cond_denoised": cond.to(dtype)})
        return denoised


def starting_latent(kind: Kind, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Pure noise of an empty latent at the model's largest sigma."""
    # ComfyUI gives models of the VE form the unit variance of the data too.
    return noise * kind.noise_scale * (torch.sqrt(1 + sigma**2) if kind.path == "ve" else sigma)


def final_latent(
    sampler, denoiser: GuidedDenoiser, noise: torch.Tensor, sigmas: torch.Tensor, noises: list, dtype=torch.float64
) -> torch.Tensor:
    """The run of a KSAMPLER of ComfyUI, with the fresh noise that another run drew.

    dtype: of the sampler's own arithmetic. The denoiser's is float64 either way.
    """
    sigmas = sigmas.to(dtype, copy=True)
    x = starting_latent(denoiser.kind, noise.to(dtype), sigmas[0])
    denoiser.sigmas = sigmas
    with replayed_noise(noises, dtype), default_dtype(dtype):
        x = sampler.sampler_function(denoiser, x, sigmas, extra_args={"seed": 0}, callback=None, disable=True)
    # uni_pc writes its last sigma into the schedule; ComfyUI takes the data's factor out of a flow model's x with it.
    return x / signal(denoiser.kind, sigmas[-1])


def null_renoised_run(denoiser: GuidedDenoiser, noise: torch.Tensor, sigmas: torch.Tensor, eta=0.0, seed=0) -> torch.Tensor:
    """The paper's step, x' = alpha' D_w + sigma' (x - alpha D_u) / sigma, written out; eta as in DDIM."""
    draw = comfy.k_diffusion.sampling.default_noise_sampler(noise, seed)
    return _first_order_run(denoiser, noise, sigmas, lambda guided, uncond: uncond, eta, draw)


def ordinary_run(denoiser: GuidedDenoiser, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """DDIM, which is Euler: the same with the guided prediction in the noise too."""
    return _first_order_run(denoiser, noise, sigmas, lambda guided, uncond: guided)


def _first_order_run(denoiser, noise, sigmas, renoise_with, eta=0.0, draw=None):
    kind, sigmas = denoiser.kind, sigmas.double()
    denoiser.sigmas = sigmas
    x = starting_latent(kind, noise.double(), sigmas[0])
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        cond, uncond = denoiser.predictions(x, sigma.expand(len(x)))
        w = denoiser.used_scale(cond, uncond, x, sigma.expand(len(x))).view(-1, *[1] * (x.ndim - 1))
        guided = uncond + w * (cond - uncond)
        eps = (x - signal(kind, sigma) * renoise_with(guided, uncond)) / sigma
        if eta:
            ratio = (following / signal(kind, following)) / (sigma / signal(kind, sigma))
            fresh = eta * (1 - ratio**2).sqrt()
            eps = (1 - fresh**2).sqrt() * eps + fresh * kind.noise_scale * draw(sigma, following).double()
        x = signal(kind, following) * guided + following * eps
    return x


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype):
    """Constants that samplers make by themselves are of the default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class OtherNoiseDrawn(Exception):
    """The reference drew more or less noise than the run."""


SOURCES = ("default_noise_sampler", "BrownianTreeNoiseSampler")


@contextlib.contextmanager
def recorded_noise(noises: list):
    """Keeps the fresh noise that ComfyUI's samplers draw meanwhile, in their order."""

    def recording(make):
        def recording_sampler(*args, **kwargs):
            draw = make(*args, **kwargs)

            def drawn(*sigmas):
                noises.append(draw(*sigmas))
                return noises[-1]

            return drawn

        return recording_sampler

    with _sources_replaced(recording):
        yield


@contextlib.contextmanager
def replayed_noise(noises: list, dtype: torch.dtype):
    """Gives ComfyUI's samplers the recorded noise instead of fresh one."""
    remaining = list(noises)

    def draw(*sigmas):
        if not remaining:
            raise OtherNoiseDrawn("more")
        return remaining.pop(0).to(dtype)

    with _sources_replaced(lambda make: lambda *args, **kwargs: draw):
        yield
    if remaining:
        raise OtherNoiseDrawn("less")


@contextlib.contextmanager
def _sources_replaced(by):
    module = comfy.k_diffusion.sampling
    originals = {name: getattr(module, name) for name in SOURCES}
    try:
        for name, make in originals.items():
            setattr(module, name, by(make))
        yield
    finally:
        for name, make in originals.items():
            setattr(module, name, make)
