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
"""

from __future__ import annotations

import torch

from ..models.scale_model import Prediction

# A next level nearer than this counts as this near. A run of 1000 steps stays below it; added noise and adaptive solvers may not.
LARGEST_RATIO = 0.999
# Samplers reach scheduled sigmas through logarithms: a sigma within this relative distance is the same sigma.
SAME_SIGMA = 1e-5


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
