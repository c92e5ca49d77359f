"""Noise levels: the 1000-step schedule of SDXL, and the next noise level on a scale model's training grid.

Pure torch, element by element, on any device and without host synchronisation. float64 in gives float64 out; everything
else is computed in float32. Sigma is ComfyUI's: sqrt((1 - abar) / abar) in the VE form, s in 0..1 for flow models.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from .scale_model import Prediction, ScaleInfo

TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012  # "scaled linear": linear in sqrt(beta)


@lru_cache(maxsize=1)
def ve_sigmas() -> torch.Tensor:
    """Sigma of each timestep 0..999 of SDXL's schedule, ascending: [1000], float64, on the CPU. Do not write into it."""
    with torch.inference_mode(False):  # a table first built during sampling must serve training too
        betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS, dtype=torch.float64) ** 2
        abar = torch.cumprod(1.0 - betas, dim=0)
        return ((1.0 - abar) / abar).sqrt()


def timestep_of_sigma(sigma: torch.Tensor) -> torch.Tensor:
    """Timestep of a VE sigma, continuous, 0..999: linear in log sigma between the schedule's points, exact at them.

    sigma: any shape, > 0; values beyond the schedule's ends get 0 and 999.
    """
    sigma = _floating(sigma)
    table = _ve_table(sigma.device, sigma.dtype)
    sigma = sigma.clamp(table[0], table[-1])
    upper = torch.searchsorted(table, sigma.contiguous()).clamp(1, TIMESTEPS - 1)
    lower = upper - 1
    low, high = table[lower], table[upper]
    # Ratios, not differences of logarithms: at a point of the table the fraction is exactly 0 or 1.
    return lower + torch.log(sigma / low) / torch.log(high / low)


def sigma_of_timestep(timestep: torch.Tensor) -> torch.Tensor:
    """VE sigma of a timestep: the inverse of timestep_of_sigma. Any shape; clamped to 0..999."""
    timestep = _floating(timestep).clamp(0, TIMESTEPS - 1)
    table = _ve_table(timestep.device, timestep.dtype)
    lower = timestep.long()
    upper = (lower + 1).clamp(max=TIMESTEPS - 1)  # at the last point the fraction is 0
    low, high = table[lower], table[upper]
    return low * (high / low) ** (timestep - lower)


def next_on_training_grid(
    sigma: torch.Tensor, info: ScaleInfo, prediction: Prediction | None = None, timestep: torch.Tensor | None = None
) -> torch.Tensor:
    """The noise level one training step below `sigma`, in the same units: same shape, >= 0, and 0 after the last step.

    Exact at the grid's own points, and piecewise linear in the grid's index between them, so that it is continuous and
    rises with sigma. Above the first grid point it is the level after the first.

    prediction: the kind of the model that `sigma` belongs to. Needed only where info.prediction is None (a fixed rule,
        which fits both kinds); otherwise info.prediction says it.
    timestep: that of `sigma`, where it is known already.

    Grids: a tuple of sigmas is used as it is. n timesteps per step mean, on the VE form, t - n on the 1000-step
    schedule (t = n, 2n, ... end on t = 0, whose next level is 0), and on flow models s - n/1000.
    """
    sigma = _floating(sigma)
    grid = info.training_grid
    if not isinstance(grid, int):
        return _next_in_table(sigma, _table_of(grid, sigma.device, sigma.dtype))
    kind = info.prediction or prediction
    if kind is None:
        raise ValueError(f'"{info.name}" fits any model: say the prediction kind of the model that sigma belongs to')
    if kind == "velocity":
        return (sigma - grid / TIMESTEPS).clamp(min=0)
    timestep = timestep_of_sigma(sigma) if timestep is None else timestep
    # Below one step: between the last grid point (t = 0, next level 0) and the one before it (t = n, next sigma(0)).
    below_one_step = _ve_table(sigma.device, sigma.dtype)[0] * timestep / grid
    return torch.where(timestep < grid, below_one_step, sigma_of_timestep(timestep - grid))


def _next_in_table(sigma: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """next_on_training_grid for explicit sigmas. grid: [K], ascending, grid[0] = 0."""
    sigma = sigma.clamp(grid[0], grid[-1])
    upper = torch.searchsorted(grid, sigma.contiguous()).clamp(1, grid.numel() - 1)
    fraction = (sigma - grid[upper - 1]) / (grid[upper] - grid[upper - 1])
    return torch.lerp(grid[(upper - 2).clamp(min=0)], grid[upper - 1], fraction)


def _floating(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.to(torch.float32)


@lru_cache(maxsize=16)
def _ve_table(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False):
        return ve_sigmas().to(dtype).to(device)


@lru_cache(maxsize=16)
def _table_of(grid: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A training grid's descending sigmas as an ascending table [K]."""
    with torch.inference_mode(False):
        return torch.tensor(grid[::-1], dtype=dtype, device=device)
