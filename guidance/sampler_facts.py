"""What each sampler does with a prediction, as far as guidance must know it.

Three facts: which prediction it renoises with, how often it calls the model in a step, and which level it steps down to before it
adds fresh noise. (history.py has the fourth: how it weighs earlier predictions.) They come from the sampler's options (`eta`) and
its name. For a wrapper, such as detail and noise tools that carry another sampler, they come from the sampler inside.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.samplers
import torch

from . import coordinates
from .host_types import ModelSampling, Sampler
from .null_renoising import sample_null_renoising

# How often ComfyUI's solvers call the model in a step, if more than once.
CALLS_PER_STEP = {
    "heun": 2,
    "heunpp2": 3,
    "exp_heun_2_x0": 2,
    "exp_heun_2_x0_sde": 2,
    "dpm_2": 2,
    "dpm_2_ancestral": 2,
    "dpm_fast": 3,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_2s_ancestral_cfg_pp": 2,
    "dpmpp_sde": 2,
    "seeds_2": 2,
    "seeds_3": 3,
}
ADAPTIVE = "dpm_adaptive"  # calls the model three times a step, and chooses its steps as it goes

# Solvers that step down by r^(1 + eta). All others with an `eta` step down by r sqrt(1 - eta^2 (1 - r^2)), as ancestral steps do.
EXPONENTIAL = ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "exp_heun_2_x0_sde", "seeds_2", "seeds_3")
# On flow models these go down to s' (1 - eta (1 - s'/s)).
ANCESTRAL_ON_FLOW = ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral")
REPLACE_ALL_NOISE = ("lcm", "lcm_upscale")
DEEPEST_WRAPPING = 8

# ComfyUI's samplers that are wrong on flow models with or without guidance, and which to use instead. They add noise as for
# models of the VE form, where the data in x has the factor 1.
WRONG_ON_FLOW = {
    "ddpm": "euler_ancestral",
    "res_multistep_ancestral": "res_multistep",
    "res_multistep_ancestral_cfg_pp": "the Annealing Sampler or euler_ancestral_cfg_pp",
    "dpmpp_2s_ancestral_cfg_pp": "the Annealing Sampler or euler_ancestral_cfg_pp",
}


@dataclass(frozen=True)
class SamplerFacts:
    """name: as in ComfyUI's list, without _gpu. options: what its function is called with, defaults included."""

    name: str
    function: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def uncond_share(self) -> float:
        """The share of the unconditional prediction in its noise: 1 for null renoising (CFG++), 0 for the ordinary step."""
        if self.function is sample_null_renoising:
            return float(self.options["renoise_mix"])
        return float("cfg_pp" in self.name or self.doubles)

    @property
    def is_in_ve_form(self) -> bool:
        """Whether it is a CFG++ sampler that always steps as in the VE form: all of ComfyUI's but Euler's do."""
        return "cfg_pp" in self.name and not self.name.startswith("euler")

    def ve_form_gain(self, levels: torch.Tensor) -> torch.Tensor:
        """For those, the share of a displacement f that they must get, [N], so that x moves by (1 - down/sigma) f.

        Their first-order steps move x by the whole displacement that they get. Their second-order steps, all but the first and
        the last, move x by another multiple: the formulae are those of ComfyUI's k_diffusion/sampling.py.
        """
        ratio = levels[1:] / levels[:-1]
        ratio = ratio * noise_kept(ratio, self.eta)
        moved = torch.ones_like(ratio)
        second_order = slice(1, -1 if levels[-1] <= 0 else None)
        if self.name.startswith("res_multistep"):
            moved[second_order] = ratio[second_order]
        if self.name == "dpmpp_2m_cfg_pp":
            sizes = -levels.log().diff()
            moved[second_order] = 1 + ((1 - ratio[1:]) * sizes[1:] / (2 * sizes[:-1]))[: len(moved[second_order])]
        return (1 - ratio) / moved

    @property
    def doubles(self) -> bool:
        """Whether it is SamplerEulerCFG++'s "alternative": an Euler step with D + (D - D_u), so with D's guidance doubled."""
        return self.name == "euler_pp"

    @property
    def calls_per_step(self) -> int:
        """How often it calls the model in a step; 1 for unknown samplers."""
        return CALLS_PER_STEP.get(self.name, 1)

    @property
    def calls_several_times(self) -> bool:
        """Whether it sees the gap shrink within a step."""
        return self.calls_per_step > 1 or self.name == ADAPTIVE

    @property
    def eta(self) -> float:
        """The share of fresh noise, as in DDIM: 0 none, 1 ancestral."""
        if self.name in ("ddpm", "sa_solver", "sa_solver_pece"):
            return 1.0
        eta = self.options.get("eta", 0.0)
        return float(eta) if isinstance(eta, int | float) and math.isfinite(eta) else 0.0

    def levels(self, sigmas: torch.Tensor) -> torch.Tensor:
        """The levels that its steps go through, for the schedule that it gets: [N + 1], falling."""
        if self.name != "dpm_fast":
            return sigmas
        # As many calls as the schedule has steps, three for each step of its own, which are even in log sigma and never reach 0.
        last = sigmas[-1] if sigmas[-1] > 0 else sigmas[-2]
        steps = (len(sigmas) - 1) // 3 + 1
        return torch.linspace(math.log(sigmas[0]), math.log(last), steps + 1, dtype=sigmas.dtype).exp()

    def level_down(self, model_sampling: ModelSampling, sigma: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """The nsr that its step from `sigma` goes down to, before it adds fresh noise up to `following`: same shape."""
        nsr, target = (coordinates.nsr_of_sigma(model_sampling, level) for level in (sigma, following))
        if self.name in REPLACE_ALL_NOISE:
            return torch.zeros_like(target)
        ratio, eta = (target / nsr).clamp(max=1.0), self.eta
        if self.name == "er_sde":
            scaler = self.options.get("noise_scaler") or er_sde_noise
            return nsr * scaler(target) / scaler(nsr)
        if self.name.startswith("sa_solver"):
            return target * ratio ** torch.tensor([self.tau(model_sampling, level) ** 2 for level in following.tolist()])
        if self.name in EXPONENTIAL:
            return target * ratio**eta
        if self.name in ANCESTRAL_ON_FLOW and coordinates.keeps_signal_scaled(model_sampling):
            return coordinates.nsr_of_sigma(model_sampling, following * (1 + (following / sigma - 1) * eta))
        return target * noise_kept(ratio, eta)

    def tau(self, model_sampling: ModelSampling, sigma: float) -> float:
        """SA-Solver's share of fresh noise in the step to `sigma`."""
        if tau_func := self.options.get("tau_func"):
            return float(tau_func(sigma))
        return float(model_sampling.percent_to_sigma(0.2) >= sigma >= model_sampling.percent_to_sigma(0.8))


def noise_kept(ratio: torch.Tensor, eta: float) -> torch.Tensor:
    """The share of the target's noise that an ancestral step down by `ratio` keeps; the rest is fresh: same shape, 0..1.

    sqrt(1 - eta^2 (1 - ratio^2)): DDIM, arXiv 2010.02502, eq. 16.
    """
    return (1.0 - eta**2 * (1.0 - ratio.square())).clamp(min=0.0).sqrt()


def er_sde_noise(nsr: torch.Tensor) -> torch.Tensor:
    """ER-SDE's default noise scaling, arXiv 2309.06169."""
    return nsr * ((nsr**0.3).exp() + 10.0)


def facts_of(sampler: Sampler, depth: int = 0) -> SamplerFacts:
    """What is known of a sampler: its own facts if it is ComfyUI's or this pack's, else those of the first one that it wraps."""
    own = _own_facts(sampler)
    if own.function is sample_null_renoising or _is_comfyuis(own.function) or depth == DEEPEST_WRAPPING:
        return own
    return next((facts_of(inner, depth + 1) for inner in _wrapped(sampler)), own)


def _is_comfyuis(function: object) -> bool:
    return str(getattr(function, "__module__", "")).startswith(("comfy.", "comfy_extras."))


def _own_facts(sampler: Sampler) -> SamplerFacts:
    function: Any = getattr(sampler, "sampler_function", sampler)
    given = dict(getattr(sampler, "extra_options", None) or {})
    while isinstance(function, partial):
        given, function = {**function.keywords, **given}, function.func
    name = getattr(function, "__name__", type(function).__name__)
    # ComfyUI defines these two again for each sampler.
    name = name.removesuffix("_function") if name in ("dpm_fast_function", "dpm_adaptive_function") else name
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return SamplerFacts(name.removeprefix("sample_").removesuffix("_gpu"), function, defaults | given)


def _wrapped(sampler: Sampler) -> Iterator[Sampler]:
    """Samplers among a sampler's options and attributes, its function's bound arguments, and what the function closes over."""
    function = getattr(sampler, "sampler_function", sampler)
    held = [*(getattr(sampler, "extra_options", None) or {}).values(), *getattr(sampler, "__dict__", {}).values()]
    while isinstance(function, partial):
        held += [*function.args, *function.keywords.values()]
        function = function.func
    for cell in getattr(function, "__closure__", None) or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    for holder in (function, getattr(function, "__self__", None)):  # a callable object, or the object of a method
        held += getattr(holder, "__dict__", {}).values()
    for value in held:
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not sampler and one is not function and _is_sampler(one):
                yield one


def _is_sampler(value: object) -> bool:
    if hasattr(value, "sampler_function") or isinstance(value, comfy.samplers.Sampler):
        return True
    while isinstance(value, partial):
        value = value.func
    if not inspect.isfunction(value):
        return False
    return value is sample_null_renoising or (_is_comfyuis(value) and value.__name__.startswith(("sample_", "dpm_")))
