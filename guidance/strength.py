"""From the learned scale to ordinary CFG: how strong a call of the run's own sampler must be.

The learned scale w belongs to one null-renoised training step: it moves x by w times the gap. The run's own step may span several
training steps, or a part of one. Strengths compose and do not add up, because each training step sees the gap that the one before
it left. With rho the gap's response, one training step leaves 1 - w rho of the gap, and n leave

    (1 - w rho)^n,    so that together they move x by    pull = (1 - (1 - w rho)^n) / rho    times the gap.
"""

from __future__ import annotations

import torch

from .course import Level

# At 0.9 one training step takes nearly the whole gap. The lower end only prevents 0/0.
LEAST_SHARE, LARGEST_SHARE = 1e-6, 0.9
# Some pre-CFG hooks divide by the scale (APG), and a scale may be 0.
LEAST_FOR_HOOKS = 1e-3


def cfg_scale(level: Level, scale: torch.Tensor, match_training_steps: bool, several_calls: bool) -> torch.Tensor:
    """The ordinary CFG scale [B] that makes the sampler's step the null-renoised one with `scale` [B].

    match_training_steps: as many training steps as the step spans; off, one, which is the paper to the letter.
    several_calls: the solver calls the model again within the step and sees how the gap shrinks.
    """
    if match_training_steps:
        scale = pull(scale, level.response, level.training_k / level.k, several_calls)
    return scale * level.k


def pull(scale: torch.Tensor, response: torch.Tensor, steps: torch.Tensor, several_calls: bool) -> torch.Tensor:
    """By how much of the gap `steps` training steps with `scale` move x, as one step. All [B].

    It is `scale` at one step, rises with their number, and stays below 1 / response.

    A second-order solver sees the gap shrink within its step: taking z of it, it leaves 1 - z + z^2/2. So its z is the root of
    1 - z + z^2/2 = (1 - w rho)^n, at most 1.
    """
    left = (scale.abs() * -response).clamp(-LARGEST_SHARE, -LEAST_SHARE)  # by one step, less 1
    together = torch.expm1(steps * torch.log1p(left))  # by all of them, less 1
    if several_calls:
        together = together.clamp(min=-0.5)
        together = 2 * together / (1 + (1 + 2 * together).sqrt())
    return scale * (together / left)
