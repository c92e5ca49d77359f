"""What a sampler must be handed so that its step is the guided one."""

from __future__ import annotations

import torch

from .course import Level
from .coverage import per_sample


class Delivery:
    """Fits guided predictions to a run's sampler. Remembers what a multistep solver remembers; never waits for the device."""

    def __init__(self, renoises: bool, remembers: int):
        """renoises: whether the sampler renoises with the unconditional prediction. remembers: how many earlier calls it uses."""
        self._renoises, self._remembers = renoises, remembers
        self._earlier: list[tuple[torch.Tensor, torch.Tensor]] = []  # step and displacement of each call, newest first

    def __call__(self, level: Level, cond: torch.Tensor, uncond: torch.Tensor, guided: torch.Tensor) -> torch.Tensor:
        """The denoised prediction for the sampler, shaped as all three [B, ...]; uncond: what the sampler takes for D_u.

        The conditional prediction keeps the solver's full order, and what guidance adds to it moves x as in a first-order step.
        So CFG 1 is sampling with the positive alone, with every solver.
        """
        if self._renoises:
            if self._remembers:
                guided = guided + self._extrapolation(level, cond - uncond)
            return torch.lerp(uncond, guided, per_sample(level.gain, guided).to(guided.dtype))
        return cond + self._without_extrapolation(level, guided - cond) if self._remembers else guided

    def _without_extrapolation(self, level: Level, displacement: torch.Tensor) -> torch.Tensor:
        """v with b_0 v_i + sum_j b_j v_{i-j} = f: the exact inverse of the solver's weights, value by value (history.py)."""
        handed = self._with_earlier(level, displacement, -1.0) / _weight(level, 0, displacement)
        self._remember(level, handed)
        return handed

    def _extrapolation(self, level: Level, gap: torch.Tensor) -> torch.Tensor:
        """What the ordinary solver would add to the gap, for one that extrapolates the unconditional prediction alone."""
        extrapolated = self._with_earlier(level, gap * _weight(level, 0, gap), 1.0)
        self._remember(level, gap)
        return extrapolated - gap

    def _with_earlier(self, level: Level, displacement: torch.Tensor, sign: float) -> torch.Tensor:
        """displacement + sign sum_j b_j (those before). A step back to more noise discards what came before it."""
        for j, (step, earlier) in enumerate(self._earlier, 1):
            counts = per_sample((step < level.step).to(earlier.dtype), earlier)
            displacement = torch.addcmul(displacement, counts * _weight(level, j, earlier), earlier, value=sign)
        return displacement

    def _remember(self, level: Level, displacement: torch.Tensor) -> None:
        self._earlier = [(level.step, displacement), *self._earlier][: self._remembers]


def _weight(level: Level, j: int, like: torch.Tensor) -> torch.Tensor:
    return per_sample(level.weights[:, j], like).to(like.dtype)
