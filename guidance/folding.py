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

A matched step is corrected by `saturation`, because strengths compose and do not add up: each of the training steps that a
larger one spans would have seen the gap that the one before it left, the one large step sees only the first.
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
# The largest share of the gap that a step may take where the solver calls the model once per step. Most of these extrapolate
# from earlier steps and so amplify what they are given: on x' = -x, two-step Adams-Bashforth is stable up to a step of 1,
# gradient estimation (gamma 2) up to 2/3, three-step Adams-Bashforth (ipndm, lms) up to 6/11.
LARGEST_PULL = 2 / 3


def next_own_sigma(sigma: torch.Tensor, schedule: torch.Tensor) -> torch.Tensor:
    """The largest scheduled sigma below each sigma, 0 where none is: same shape.

    Looked up by value, never by counting calls, so it holds for solvers that call the model between scheduled sigmas.
    sigma: [B]; schedule: [N] in any order.
    """
    below = schedule[None, :] < sigma[:, None] * (1.0 - SAME_SIGMA)
    return torch.where(below, schedule[None, :], 0.0).amax(dim=1)


def step_ratio(level: torch.Tensor, next_level: torch.Tensor) -> torch.Tensor:
    """r, the ratio of the next noise level to this one, 0..LARGEST_RATIO, elementwise."""
    return (next_level / level).nan_to_num(0.0).clamp(0.0, LARGEST_RATIO)


def folding_factor(kind: Prediction, level: torch.Tensor, next_level: torch.Tensor) -> torch.Tensor:
    """k above, elementwise, >= 1. level, next_level: the network's noise levels, level > next_level >= 0."""
    ratio = step_ratio(level, next_level)
    if kind == "velocity":
        return (1.0 - next_level) / (1.0 - ratio)
    return 1.0 / (1.0 - ratio)


def level_before_noise(level: torch.Tensor, next_level: torch.Tensor, eta: float) -> torch.Tensor:
    """The level that a step with eta goes down to before it adds fresh noise up to the next level s', elementwise.

    s'_down^2 = s'^2 (1 - eta^2 (1 - r^2)): s' at eta 0, s' r for an ancestral step (eta 1), which therefore pulls as far as
    two steps of ratio r would; 0 where all noise is replaced (eta inf).
    """
    return next_level * (1.0 - eta**2 * (1.0 - step_ratio(level, next_level).square())).clamp(min=0.0).sqrt()


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
    """What a matched scale is multiplied by, > 0, so that an own step does what the training steps in it did. All [B].

    One training step moves x by w times the gap, so it takes the share p = |w| gap_response of the gap and leaves 1 - p;
    n = k_train / k_own of them leave (1 - p)^n. A matched step without correction would take n p: it overshoots once that
    exceeds 1 and burns where it exceeds 2. The share to take instead:

        one call per step        f = b (1 - (1 - p/b)^n)            b = LARGEST_PULL
        several                  z, with 1 - z + z^2/2 = (1 - p)^n, and at most 1

    The first is p at n = 1 (the training step itself), rises with n and stays below b; with b = 1 it is the composition
    1 - (1 - p)^n, which is right for euler. For n below 1 it is a little more than n p: many small steps see the gap shrink
    inside what was one training step. The second allows for solvers that call the model again within the step and so see
    the gap shrink themselves: told to take z, a second-order one leaves 1 - z + z^2/2, the least at z = 1.

    k_own is that of the step down to where fresh noise is added (level_before_noise): an ancestral step pulls further.

    Without state: it holds for calls between scheduled steps, and for steps back.
    """
    steps = k_train / k_own
    largest = 1.0 if several_calls else LARGEST_PULL
    # From 0.9 on, one training step takes about all there is. The lower end only keeps 0/0 away.
    share = (scale.abs() * gap_response(kind, level) / largest).clamp(1e-6, 0.9)
    composed = -torch.expm1(steps * torch.log1p(-share))
    if several_calls:
        composed = composed.clamp(max=0.5)
        composed = 2 * composed / (1 + (1 - 2 * composed).sqrt())
    return composed / (steps * share)
