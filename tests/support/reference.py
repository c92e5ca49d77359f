"""What a guided run ought to give, in float64: the guided denoiser written from its formulae, in ComfyUI's own samplers.

Shared with the code under test are the scale model, ComfyUI's samplers, what is known of each of them (tests/guidance/
test_samplers.py, test_history.py), and how training steps compose (test_strength.py). Everything else is written out here
again, from the definitions and call by call.
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
from annealing_guidance_pack.guidance import history, sampler_facts, strength
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


def nsr(kind: Kind, sigma: torch.Tensor) -> torch.Tensor:
    """Noise-to-signal ratio, float64: of data with unit variance, and s/(1-s) of a flow model. Pure noise counts as 1e9."""
    level = network_level(kind, sigma.double())
    return (level / (1 - level)).clamp(max=1e9) if is_flow(kind) else level


def next_training_nsr(kind: Kind, sigma: torch.Tensor, grid: int, last_step: bool) -> torch.Tensor:
    """`grid` timesteps below. Beyond the ends of the training's levels with the ratio of its first, or last, step."""
    n, low = nsr(kind, sigma), network_level(kind, sigma.double())
    if is_flow(kind):
        step = grid / 1000
        following = (low - step).clamp(min=0)
        following = following / (1 - following)
        end = low < 2 * step
        ratio = step / (1 - step) / (2 * step / (1 - 2 * step))
    else:
        t = timestep(kind, sigma).numpy()
        following = torch.from_numpy(
            np.where(t < grid, _VE_SIGMAS[0] * t / grid, np.exp(np.interp(t - grid, np.arange(1000), np.log(_VE_SIGMAS))))
        )
        following = torch.where(low > _VE_SIGMAS[-1], n * (_VE_SIGMAS[-1 - grid] / _VE_SIGMAS[-1]), following)
        end, ratio = low < _VE_SIGMAS[grid], _VE_SIGMAS[0] / _VE_SIGMAS[grid]
    return following if last_step else torch.where(end, n * ratio, following)


def gap_norm(kind: Kind, cond: torch.Tensor, uncond: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Norm of the difference of what the network would have answered: noise, or velocity. [B]."""
    sigma = sigma.view(-1, *[1] * (x.ndim - 1))
    gap = network_output(kind, cond, x, sigma) - network_output(kind, uncond, x, sigma)
    return gap.flatten(1).norm(dim=1)


def folding_factor(n: float, following: float) -> float:
    """How many times the null-renoised scale an ordinary first-order step needs."""
    return 1 / (1 - min(following / n, 0.999))


@dataclass
class Data:
    """data ~ N(mean, std^2) with and without the caption. means: [B, ...]."""

    cond_mean: torch.Tensor
    cond_std: float
    uncond_mean: torch.Tensor
    uncond_std: float


class GuidedDenoiser:
    """The guided prediction in float64, called as ComfyUI's samplers call their model. Set `sigmas` before each run."""

    def __init__(self, kind: Kind, data: Data, scale_model, guidance_lambda: float, sampler):
        self.kind, self.data, self.scale_model, self.guidance_lambda = kind, data, scale_model, guidance_lambda
        self.facts = sampler_facts.facts_of(sampler)
        # where samplers look for the model's sampling
        patcher = model_of(kind)
        self.inner_model = SimpleNamespace(model_patcher=patcher, inner_model=patcher.model)
        self.model_sampling = patcher.get_model_object("model_sampling")
        self.sigmas = torch.empty(0)

    @property
    def sigmas(self) -> torch.Tensor:
        return self._sigmas

    @sigmas.setter
    def sigmas(self, sigmas: torch.Tensor) -> None:
        """A new run: the sampler's own levels, and nothing remembered."""
        self._sigmas = sigmas
        self.calls_in_step, self.start, self.last, self.earlier = 0, None, None, []
        if len(sigmas):
            self.levels = self.facts.levels(sigmas.double().unique().flip(0))

    def predictions(self, x, sigma):
        sigma = sigma.view(-1, *[1] * (x.ndim - 1))
        denoised = partial(flow_denoised, noise_std=self.kind.noise_scale) if self.kind.path == "flow" else ve_denoised
        data = self.data
        return (
            denoised(x, sigma, data.cond_mean.double(), data.cond_std),
            denoised(x, sigma, data.uncond_mean.double(), data.uncond_std),
        )

    def step_of(self, sigma: float) -> int:
        """The sampler's step that a call at this level belongs to: of solvers with several calls the one in progress."""
        again = self.last is not None and abs(sigma / self.last - 1) < 1e-5 and self.calls_in_step > 1
        if self.last is None or sigma > self.last * (1 + 1e-5) or self.calls_in_step >= self.facts.calls_per_step or again:
            self.start, self.calls_in_step = sigma, 0
        self.calls_in_step, self.last = self.calls_in_step + 1, sigma
        steps = list(zip(self.levels.tolist(), self.levels[1:].tolist(), strict=False))
        nearer = [
            i
            for i, (high, low) in enumerate(steps)
            if low <= 0 or self.start > math.exp(0.45 * math.log(high) + 0.55 * math.log(low))
        ]
        return nearer[0] if nearer else len(steps) - 1

    def handed_and_uncond(self, x, sigma):
        """What the sampler is handed, and the unconditional prediction."""
        cond, uncond = self.predictions(x, sigma)
        info, n = self.scale_model.info, nsr(self.kind, sigma)
        i = self.step_of(sigma[0].item())
        start, end = self.levels[i : i + 1].double(), self.levels[i + 1 : i + 2].double()
        last = end.item() <= 0
        down = 0.0 if last else self.facts.level_down(self.model_sampling, start, end).item()
        k = folding_factor(nsr(self.kind, start).item(), down)

        norm = gap_norm(self.kind, cond, uncond, x, sigma) * math.sqrt(info.reference_numel / x[0].numel())
        scale = self.scale_model(timestep(self.kind, sigma), norm, self.guidance_lambda)
        training_k = 1 / (1 - (next_training_nsr(self.kind, sigma, info.training_grid, last) / n).clamp(max=0.999))
        response = (2 / 3) / ((1 + n**2) * (1 / 3 / n**2 + 1))  # of data with variance 1 without, 1/3 with the caption
        cfg_scale = k * strength.pull(scale, response, training_k / k, self.facts.calls_several_times)
        guided = uncond + cfg_scale.view(-1, *[1] * (x.ndim - 1)) * (cond - uncond)
        return self.handed(cond, uncond, guided, i, k), uncond

    def handed(self, cond, uncond, guided, i, k):
        """What makes the sampler's step the first-order one in what guidance adds to the conditional prediction."""
        weights, share = self.weights(i), self.facts.uncond_share
        if not share:
            v = (guided - cond - sum(b * v for b, v in zip(weights[1:], self.earlier, strict=False))) / weights[0]
            self.earlier = [v, *self.earlier]
            return cond + v
        gain = (
            self.facts.ve_form_gain(self.levels.double())[i]
            if self.facts.is_in_ve_form
            else 1 / (k * (1 - (1 - share) * (1 - 1 / k)))
        )
        # As the ordinary solver would extrapolate the conditional prediction.
        self.earlier = [cond - uncond, *self.earlier]
        extrapolated = sum(b * gap for b, gap in zip(weights, self.earlier, strict=False))
        return uncond + gain * (guided - cond + extrapolated)

    def weights(self, i):
        """The solver's own, of step i."""
        levels = self.levels.double()
        first = (
            levels[:1]
            if levels[0] < 1 or self.kind.path != "flow"
            else self.model_sampling.percent_to_sigma(1e-4) * torch.ones(1)
        )
        log_snr = -nsr(self.kind, torch.cat([first.double(), levels[1:]])).log()
        options = {**self.facts.options, "tau": partial(self.facts.tau, self.model_sampling)}
        name = self.facts.name.removesuffix("_cfg_pp") if self.facts.is_in_ve_form else self.facts.name
        return history.weights_of(name, levels.tolist(), log_snr.tolist(), options)[i]

    def __call__(self, x, sigma, model_options=None, **_):
        dtype, x, sigma = x.dtype, x.double(), sigma.double().expand(x.shape[0])
        handed, uncond = self.handed_and_uncond(x, sigma)
        cond, denoised = self.predictions(x, sigma)[0], handed.to(dtype)
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
        guided, uncond = denoiser.handed_and_uncond(x, sigma.expand(len(x)))
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
