"""ComfyUI's own sampler functions in float64, without fresh noise, asked what they do with predictions that are given to them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace

import comfy.samplers
import torch
from annealing_guidance_pack.guidance import coordinates
from comfy_extras import nodes_advanced_samplers
from kinds import KINDS, Kind, model_of, signal
from reference import default_dtype

BY_NAME = {kind.name: kind for kind in KINDS}
EPS, FLOW = BY_NAME["eps"], BY_NAME["flow 1000"]
BOTH = [EPS, FLOW]
# In ComfyUI's list, and what its other nodes make.
MADE_BY_NODES = ("euler_pp", "lcm_upscale")
NAMES = [*comfy.samplers.SAMPLER_NAMES, *MADE_BY_NODES]

Predict = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def sampler_of(name: str, **options):
    """A KSAMPLER as ComfyUI's nodes make it."""
    if name in MADE_BY_NODES:
        return comfy.samplers.KSAMPLER(getattr(nodes_advanced_samplers, f"sample_{name}"), extra_options=options)
    return comfy.samplers.ksampler(name, options) if options else comfy.samplers.sampler_object(name)


def model_sampling_of(kind: Kind):
    return model_of(kind).get_model_object("model_sampling")


def accepts(sampler, option: str) -> bool:
    return option in inspect.signature(sampler.sampler_function).parameters


class Recorder:
    """A model as samplers call it. predict: (number of the call, x, sigma [B]) to the guided and the unconditional prediction."""

    def __init__(self, kind: Kind, predict: Predict):
        patcher = model_of(kind)
        self.inner_model = SimpleNamespace(model_patcher=patcher, inner_model=patcher.model)
        self.predict, self.xs, self.sigmas = predict, [], []

    def __call__(self, x, sigma, model_options=None, **_):
        self.xs.append(x.clone())
        self.sigmas.append(float(sigma[0]))
        guided, uncond = self.predict(len(self.xs) - 1, x, sigma)
        for hook in (model_options or {}).get("sampler_post_cfg_function", []):
            guided = hook({"denoised": guided, "uncond_denoised": uncond, "cond_denoised": guided, "uncond": [{}]})
        return guided


def ran(sampler, kind: Kind, x: torch.Tensor, sigmas: torch.Tensor, predict: Predict) -> Recorder:
    """A run in float64 without fresh noise; the recorder's `xs` are what each call was asked about, and last the result."""
    recorder, options = Recorder(kind, predict), dict(sampler.extra_options)
    if accepts(sampler, "noise_sampler"):
        options["noise_sampler"] = lambda *_: torch.zeros_like(x)
    with default_dtype(torch.float64), torch.no_grad():
        # A clone: uni_pc writes into it.
        result = sampler.sampler_function(
            recorder, x.clone(), sigmas.double().clone(), extra_args={"seed": 0}, callback=None, disable=True, **options
        )
    recorder.xs.append(result)
    return recorder


def constant(value: float) -> Predict:
    return lambda call, x, sigma: (torch.full_like(x, value), torch.full_like(x, value))


def scheduled(kind: Kind, scheduler: str, steps: int) -> torch.Tensor:
    """ComfyUI's schedule with its final 0, float64."""
    return comfy.samplers.calculate_sigmas(model_sampling_of(kind), scheduler, steps).double()


def kept(kind: Kind, start: float, end: float, down: float | None = None) -> tuple[float, float]:
    """Of a first-order step between two sigmas: the factors of x and of the prediction. down: the nsr that it goes down to."""
    levels = torch.tensor([start, end], dtype=torch.float64)
    nsr = coordinates.nsr_of_sigma(model_sampling_of(kind), levels)
    alpha = signal(kind, levels)
    below = float(nsr[1] if down is None else down)
    # Not as a ratio of alphas: that of pure noise is 0.
    keep = below * float(alpha[1]) / (start if kind.path == "flow" else float(nsr[0]))
    return keep, float(alpha[1]) * (1 - below / float(nsr[0]))
