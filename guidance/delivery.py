"""What a sampler must be handed so that its step is the guided one."""

from __future__ import annotations

import torch

from .course import SAME_LEVEL, Level
from .coverage import per_sample


class Delivery:
    """Fits guided predictions to a run's sampler. Remembers what a multistep solver remembers; never waits for the device."""

    def __init__(self, renoises: bool, remembers: int):
        """renoises: the sampler renoises with the unconditional prediction. remembers: from how many earlier calls it extrapolates."""
        self._renoises, self._remembers = renoises, remembers
        self._handed: list[tuple[torch.Tensor, torch.Tensor]] = []  # level and displacement of each call, newest first

    def __call__(self, level: Level, uncond: torch.Tensor, guided: torch.Tensor) -> torch.Tensor:
        """The denoised prediction for the sampler, shaped as `guided` [B, ...]; uncond: what the sampler takes for D_u."""
        if self._renoises:
            return torch.lerp(uncond, guided, per_sample(level.gain, guided).to(guided.dtype))
        return uncond + self._without_extrapolation(level, guided - uncond) if self._remembers else guided

    def _without_extrapolation(self, level: Level, displacement: torch.Tensor) -> torch.Tensor:
        """v with b_0 v_i + sum_j b_j v_{i-j} = f: the solver's weights taken out exactly, value by value (history.py)."""
        for j, (sigma, earlier) in enumerate(self._handed, 1):
            # What was handed out at a lower level, before a step back to more noise, counts no longer.
            weight = torch.where(sigma > level.sigma * (1 + SAME_LEVEL), level.weights[:, j], 0.0)
            displacement = torch.addcmul(displacement, per_sample(weight, earlier).to(earlier.dtype), earlier, value=-1)
        displacement = displacement / per_sample(level.weights[:, 0], displacement).to(displacement.dtype)
        self._handed = [(level.sigma, displacement), *self._handed][: self._remembers]
        return displacement
