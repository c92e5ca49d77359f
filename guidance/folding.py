"""From a CFG++ scale to the scale that the sampler in use needs.

The learned scale w belongs to the null-renoised step: x0 guided by w, renoised with the unconditional prediction. With
r the ratio of the next noise level to this one, an ordinary first-order step with w_cfg = k w is the same step, where

    epsilon:  k = 1 / (1 - r)              velocity:  k = (1 - s') / (1 - r)              last step (s' = 0):  k = 1

The next noise level is either the run's own or the one on the network's training grid:

    renoise   match_training_steps   used scale
    null      off                    w                       the paper to the letter
    null      on                     w k_train / k_own       as strong as at the training's step count
    folded    off                    w k_own                 the paper's step, with an ordinary sampler
    folded    on                     w k_train               as strong as at the training's step count, any solver

A matched step that spans several training steps is weakened by `saturation`: each of those steps would have seen the gap
that the one before it left, the one large step sees only the first.
"""

from __future__ import annotations

import torch

from ..models.scale_model import Prediction

# A next level nearer than this counts as this near. A run of 1000 steps stays below it; added noise and adaptive solvers may not.
LARGEST_RATIO = 0.999
# Samplers reach scheduled sigmas through logarithms: a sigma within this relative distance is the same sigma.
SAME_SIGMA = 1e-5
# The assumed data: unit variance, and this share of it left once the caption is known.
REMAINING_VARIANCE = 1 / 3
# How much of the gap a large step may take beyond what one training step takes. Solvers that extrapolate from earlier steps
# amplify what they are given: on x' = -x, gradient estimation (gamma 2) is stable up to a step of 2/3, three-step
# Adams-Bashforth (lms, ipndm) up to 6/11.
LARGEST_EXCESS = 1 / 2
# How sharply the excess bends towards that bound, for solvers with one and with several model calls per step; by measurement
# (benchmarks/strength.py).
SHARPNESS_ONE_CALL, SHARPNESS_SEVERAL_CALLS = 1, 3


def next_own_sigma(sigma: torch.Tensor, schedule: torch.Tensor) -> torch.Tensor:
    """The largest scheduled sigma below each sigma, 0 where none is: same shape.

    Looked up by value, never by counting calls, so it holds for solvers that call the model between scheduled sigmas.
    sigma: [B]; schedule: [N] in any order.
    """
    below = schedule[None, :] < sigma[:, None] * (1.0 - SAME_SIGMA)
    return torch.where(below, schedule[None, :], 0.0).amax(dim=1)


def folding_factor(kind: Prediction, level: torch.Tensor, next_level: torch.Tensor) -> torch.Tensor:
    """k above, elementwise, >= 1. level, next_level: the network's noise levels, level > next_level >= 0."""
    ratio = (next_level / level).nan_to_num(0.0).clamp(0.0, LARGEST_RATIO)
    if kind == "velocity":
        return (1.0 - next_level) / (1.0 - ratio)
    return 1.0 / (1.0 - ratio)


def used_scale(
    scale: torch.Tensor, k_own: torch.Tensor, k_train: torch.Tensor, folded: bool, match_training_steps: bool
) -> torch.Tensor:
    """The scale to hand to the sampler, by the table above. All tensors [B]."""
    if folded:
        return scale * (k_train if match_training_steps else k_own)
    return scale * (k_train / k_own) if match_training_steps else scale


def gap_response(kind: Prediction, level: torch.Tensor) -> torch.Tensor:
    """By how much D_u - D_c grows, relative to x, when x moves: d(D_u - D_c)/dx, same shape, 0..0.27.

    For Gaussian data of variance v the best denoiser has the slope v/(v + sigma^2) at noise-to-signal ratio sigma, so
    with v = 1 without and v = REMAINING_VARIANCE with the caption it is (1 - v) sigma^2 / ((1 + sigma^2)(v + sigma^2)):
    nothing where all is noise or all is known, largest in between.
    """
    variance = (level / (1.0 - level)) ** 2 if kind == "velocity" else level**2
    response = (1.0 - REMAINING_VARIANCE) / ((1.0 + variance) * (REMAINING_VARIANCE / variance + 1.0))
    return response.nan_to_num(0.0)


def saturation(
    kind: Prediction,
    scale: torch.Tensor,
    level: torch.Tensor,
    k_own: torch.Tensor,
    k_train: torch.Tensor,
    several_calls: bool = False,
) -> torch.Tensor:
    """What a matched scale is multiplied by, 0..1: 1 for own steps up to the training's size, less for larger. All [B].

    One training step moves x by w times the gap, so it shrinks the gap by p = w * gap_response. An own step that pulls as
    much as n = k_train / k_own of them would shrink it by n p, which overshoots once it exceeds 1 and burns where it
    exceeds 2. In truth each of the n meets the smaller gap that the one before it left. So what goes beyond one training
    step, e = (n - 1) p, is taken as

        p + e / (1 + (e / b)^q)^(1/q)       b = LARGEST_EXCESS, q = the sharpness

    which is p at n = 1, n p while e is small, rises with n, and never exceeds p + b. With q = 1 it has the form of an
    implicit (backward Euler) step and stays near the composition 1 - (1 - p)^n. A solver that calls the model again within
    its step meets the smaller gap by itself (heun: 1 - z + z^2/2 for 1 - z), so there the bound bends later.

    Without state: it holds for calls between scheduled steps, and for steps back.
    """
    sharpness = SHARPNESS_SEVERAL_CALLS if several_calls else SHARPNESS_ONE_CALL
    steps = (k_train / k_own).clamp(min=1.0)
    excess = (steps - 1.0) * scale.abs() * gap_response(kind, level) / LARGEST_EXCESS
    return (1.0 + (steps - 1.0) / (1.0 + excess**sharpness) ** (1.0 / sharpness)) / steps
