"""Which form of the scale a sampler needs: null for one that renoises with the unconditional prediction, else folded."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import comfy.model_sampling
import torch

from .host_types import ModelSampling, Sampler
from .sampler import sample_null_renoising

Renoise = Literal["auto", "null", "folded"]
CHOICES: tuple[Renoise, ...] = get_args(Renoise)

# ComfyUI's solvers that evaluate the model more than once per step, by the beginning of their names. Not dpm_fast: it spends
# the scheduled number of calls on fewer and larger steps of third order, and needs the more careful rule.
SEVERAL_CALLS = ("heun", "dpm_2", "dpm_adaptive", "dpmpp_2s", "dpmpp_sde", "seeds")

# ComfyUI's solvers that step further down than to the next level and add fresh noise up to it, by a part of their names. Not
# er_sde and sa_solver, which add little.
ADD_NOISE = ("ancestral", "dpmpp_sde", "m_sde", "x0_sde", "seeds", "ddpm")

# ComfyUI's samplers that are wrong on flow models under any guidance, and which to use instead: they add noise as for models
# of the VE form, where the data in x has the factor 1.
WRONG_ON_FLOW = {"ddpm": "euler_ancestral", "res_multistep_ancestral": "res_multistep"}


def calls_several_times(sampler: Sampler) -> bool:
    """Whether the sampler calls the model several times per step. Unknown samplers count as calling it once."""
    return sampler_name(sampler).startswith(SEVERAL_CALLS)


def fresh_noise(sampler: Sampler) -> float:
    """eta: 0 for a sampler that adds no noise, 1 for an ancestral one, inf for one that replaces all noise (lcm)."""
    name = sampler_name(sampler)
    if name == "lcm":
        return math.inf
    adds_noise = any(part in name for part in ADD_NOISE)
    return float(getattr(sampler, "extra_options", {}).get("eta", 1.0)) if adds_noise else 0.0


def unconditional_share(sampler: Sampler) -> float:
    """How much of the unconditional prediction a sampler renoises with: 1 for null renoising (CFG++), 0 for the ordinary step.

    Recognised by the sampler's function: the Annealing Sampler's own, and every one with cfg_pp in its name.
    """
    return max(map(_own_unconditional_share, _with_wrapped(sampler)))


def _own_unconditional_share(sampler: Sampler) -> float:
    if _function_of(sampler) is sample_null_renoising:
        return sampler.extra_options["renoise_mix"]
    return 1.0 if "cfg_pp" in sampler_name(sampler) else 0.0


def is_folded(renoise: Renoise, sampler: Sampler) -> bool:
    """Whether the run folds its scale. auto: unless the sampler renoises with the unconditional prediction."""
    return renoise == "folded" or (renoise == "auto" and unconditional_share(sampler) == 0)


def advice(folded: bool, sampler: Sampler, model_sampling: ModelSampling) -> str | None:
    """One sentence where the choice and the sampler, or the sampler and the model, do not go together; else None."""
    name, share = sampler_name(sampler), unconditional_share(sampler)
    if not folded and share == 0:
        return (
            f'renoise is "null", but the sampler {name} does not renoise with the unconditional prediction: a scale of about 1 '
            'is then almost no guidance. Choose "auto", or the Annealing Sampler.'
        )
    if folded and share > 0:
        return (
            f'renoise is "folded", but the sampler {name} renoises with the unconditional prediction: the guidance counts '
            'twice and pictures may burn. Choose "auto".'
        )
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return next(filter(None, map(_advice_on_flow, map(sampler_name, _with_wrapped(sampler)))), None)
    return None


def _advice_on_flow(name: str) -> str | None:
    """For a sampler whose step is wrong on flow models: one sentence with what to use instead."""
    # They leave out the factor 1 - s' of the flow path; euler_cfg_pp and euler_ancestral_cfg_pp have it.
    if "cfg_pp" in name and not name.startswith("euler"):
        return f"The step of the sampler {name} is not correct for flow models. Use the Annealing Sampler or euler_cfg_pp."
    if name in WRONG_ON_FLOW:
        return (
            f"The step of the sampler {name} is not correct for flow models, with or without guidance. Use {WRONG_ON_FLOW[name]}."
        )
    return None


def sampler_name(sampler: Sampler) -> str:
    """The sampler's name as ComfyUI's lists show it."""
    function = _function_of(sampler)
    return getattr(function, "__name__", type(function).__name__).removeprefix("sample_")


def _with_wrapped(sampler: Sampler) -> list[Sampler]:
    """The sampler, and those that it wraps: detail and noise tools carry another one among their options."""
    options = getattr(sampler, "extra_options", {}).values()
    return [sampler, *(inner for option in options if hasattr(option, "sampler_function") for inner in _with_wrapped(option))]


def _function_of(sampler: Sampler) -> Callable[..., torch.Tensor]:
    function: Any = getattr(sampler, "sampler_function", sampler)
    while isinstance(function, partial):
        function = function.func
    return function
