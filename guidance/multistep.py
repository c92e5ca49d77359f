"""Multistep solvers: the guided part of their extrapolation is taken out again.

dpmpp_2m, ipndm and their like step with (1 + c) D_i - c D_{i-1}, the prediction extrapolated from this call and the one before.
With D = D_u + w (D_c - D_u) they extrapolate the guidance too. Strong guidance uses the gap up within a few steps, so that the
line through two calls says nothing about the next: at few steps that is what burns. The scale handed to them is therefore
the w~_i whose extrapolation, seen along the gap g_i = D_c - D_u, is the wanted pull w_i g_i:

    (1 + c) w~_i - c a = w_i,     a = <w~_{i-1} g_{i-1}, g_i> / |g_i|^2

so that the guidance takes the first-order step for which the scale was matched, while D_u keeps the solver's full order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .coverage import per_sample
from .folding import SAME_SIGMA

# What the solvers extrapolate, by the beginning of their names: D in log sigma, or the slope (x - D)/sigma in sigma. Those
# of higher order are treated as if of second: with three and four calls taken into account nothing came out better.
IN_LOG_SIGMA = ("dpmpp_2m", "res_multistep", "unipc", "sa_solver")
IN_SIGMA = ("lms", "ipndm", "deis", "gradient_estimation")
# gradient_estimation's c, whatever the steps' sizes (gamma 2).
GRADIENT_ESTIMATION = 1.0
# How far the correction may go: where the gap has turned since the last call, the formula means little.
LEAST, MOST = 0.3, 2.0


class Multistep:
    """What one run remembers of its last two calls. Reads no tensor's value, so it never waits for the device."""

    def __init__(self, sampler_name: str):
        self._name = sampler_name
        self._latest: tuple[torch.Tensor, torch.Tensor] | None = None
        self._before: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def applies(self) -> bool:
        """Whether the sampler is known to extrapolate."""
        return self._name.startswith(IN_LOG_SIGMA + IN_SIGMA) and "cfg_pp" not in self._name

    def corrected(
        self,
        used: torch.Tensor,
        cond: torch.Tensor,
        uncond: torch.Tensor,
        level: torch.Tensor,
        ratio: torch.Tensor,
        product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """w~ for the wanted w, [B].

        used: the wanted scale w; level: the noise level; ratio: of the next level to it; all [B]. cond, uncond: denoised
        predictions [B, ...]. product: the inner product of two latents, [B], in any unit.

        A second call at the same level takes the place of the first; after a step back to more noise it begins anew.
        """
        if not self.applies:
            return used
        gap = cond.to(torch.float32) - uncond.to(torch.float32)
        if self._latest is None or self._before is None:
            self._latest = self._before = (torch.zeros_like(level), torch.zeros_like(gap))
        self._before = last_level, last_pull = _call_before(level, self._latest, self._before)

        weight, carry = self._weight(level, ratio, last_level)
        along = product(last_pull, gap) / product(gap, gap)
        share = (1 + weight * carry * (along / used).nan_to_num(1.0)) / (1 + weight)
        used = used * share.clamp(LEAST, MOST)
        self._latest = level, per_sample(used, gap) * gap
        return used

    def _weight(self, level: torch.Tensor, ratio: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """c, 0 on the first and the last step, and what the pull of the call before counts now."""
        if self._name.startswith(IN_LOG_SIGMA):
            weight, carry = -torch.log(ratio) / (2 * torch.log(last / level)), torch.ones_like(level)
        else:
            weight, carry = level * (1 - ratio) / (2 * (last - level)), level / last
        if self._name.startswith("gradient_estimation"):
            weight = torch.full_like(level, GRADIENT_ESTIMATION)
        known = (last > 0) & (ratio > 0)
        return torch.where(known, weight, 0.0), torch.where(known, carry, 0.0)


def _call_before(
    level: torch.Tensor, latest: tuple[torch.Tensor, torch.Tensor], before: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Level and pull of the latest call with more noise than this; zeros where there is none."""
    further, nearer = latest[0] > level * (1 + SAME_SIGMA), latest[0] < level * (1 - SAME_SIGMA)
    chosen = []
    for newer, older in zip(latest, before, strict=True):
        kept = torch.where(per_sample(nearer, older), 0.0, older)
        chosen.append(torch.where(per_sample(further, newer), newer, kept))
    return chosen[0], chosen[1]
