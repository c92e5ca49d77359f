"""Noise levels: the 1000-step schedule of SDXL, and the next noise level on a scale model's training grid.

One coordinate serves all models, the noise-to-signal ratio `nsr`: sigma of data with unit variance on the VE path (there it is
sqrt((1 - abar) / abar)), s / (1 - s) on the flow path.

All functions work element by element, on any device and without waiting for it. float64 in gives float64 out; everything else is
computed in float32.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from .scale_model import Path, ScaleInfo

TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012  # "scaled linear": linear in sqrt(beta)
LARGEST_NSR = 1e9  # instead of infinity, where a flow model has noise alone


@lru_cache(maxsize=1)
def ve_sigmas() -> torch.Tensor:
    """Sigma of each timestep 0..999 of SDXL's schedule, ascending: [1000], float64, on the CPU. Do not write into it."""
    with torch.inference_mode(False):  # a table that is built during sampling must serve training too
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


def timestep_of_nsr(path: Path, nsr: torch.Tensor) -> torch.Tensor:
    """The timestep that a network was trained with at this noise-to-signal ratio: 0..999 (ve), 0..1000 (flow)."""
    return timestep_of_sigma(nsr) if path == "ve" else TIMESTEPS * share_of_nsr(nsr)


def share_of_nsr(nsr: torch.Tensor) -> torch.Tensor:
    """The flow time s, 0..1, of the noise-to-signal ratio s / (1 - s)."""
    return nsr / (1.0 + nsr)


def nsr_of_share(share: torch.Tensor) -> torch.Tensor:
    """The noise-to-signal ratio s / (1 - s) of a flow time, at most LARGEST_NSR."""
    return (share / (1.0 - share)).clamp(max=LARGEST_NSR)


def next_on_training_grid(nsr: torch.Tensor, info: ScaleInfo, path: Path | None = None, last_step: bool = False) -> torch.Tensor:
    """The noise-to-signal ratio one training step below `nsr`: same shape, 0 <= next < nsr.

    Exact at the grid's own points and continuous between them. Beyond its ends the grid continues with a constant ratio: above
    its first level that of its first step, below its last but one that of its last step that leaves noise.

    path: of the model that `nsr` belongs to. Needed only where info.path is None (a fixed rule, which fits both).
    last_step: whether the run's own step leads to the picture. If so, the grid's last level does too, and all levels below it.

    Grids: n timesteps per step mean on the VE path t - n on the 1000-step schedule (t = n, 2n, ... end on t = 0, after which
    comes the picture), and on the flow path s - n/1000. A tuple holds noise-to-signal ratios (ve) or times (flow);
    between them the steps are linear.
    """
    path = info.path or path
    if path is None:
        raise ValueError(f'"{info.name}" fits any model: say the noise path of the model that nsr belongs to')
    nsr = _floating(nsr)
    first, second, last_but_one, last = _ends(info.training_grid, path)
    following = _next_inside(nsr, info.training_grid, path)
    following = torch.where(nsr > first, nsr * (second / first), following)
    return following if last_step else torch.where(nsr < last_but_one, nsr * (last / last_but_one), following)


def levels_of_grid(grid: tuple[float, ...] | int, path: Path) -> torch.Tensor:
    """The nsr of every level of a training grid that has noise, descending: [S], float64."""
    if not isinstance(grid, int):
        levels = torch.tensor(grid[:-1], dtype=torch.float64)
    elif path == "flow":
        levels = torch.arange(TIMESTEPS // grid, 0, -1, dtype=torch.float64) * grid / TIMESTEPS
    else:
        levels = sigma_of_timestep(torch.arange(TIMESTEPS // grid - 1, -1, -1, dtype=torch.float64) * grid)
    return levels if path == "ve" else nsr_of_share(levels)


def _ends(grid: tuple[float, ...] | int, path: Path) -> tuple[float, float, float, float]:
    """The nsr of the grid's first, second, last but one and last level with noise. A grid of one level ends at once: ratio 0."""
    if not isinstance(grid, int):
        levels = torch.tensor(grid[:-1], dtype=torch.float64)
        nsr = (levels if path == "ve" else nsr_of_share(levels)).tolist()
        return (nsr[0], nsr[1], nsr[-2], nsr[-1]) if len(nsr) > 1 else (nsr[0], 0.0, nsr[0], 0.0)
    if path == "ve":
        sigmas = ve_sigmas()
        below_first = TIMESTEPS - 1 - grid
        second = float(sigmas[below_first]) if below_first >= 0 else 0.0
        return float(sigmas[-1]), second, float(sigmas[min(grid, TIMESTEPS - 1)]), float(sigmas[0])
    step = torch.tensor([1.0, 1 - grid / TIMESTEPS, min(2 * grid / TIMESTEPS, 1.0), grid / TIMESTEPS], dtype=torch.float64)
    return tuple(nsr_of_share(step).tolist())


def _next_inside(nsr: torch.Tensor, grid: tuple[float, ...] | int, path: Path) -> torch.Tensor:
    """next_on_training_grid within the grid's ends, and down to the picture below its last level."""
    if not isinstance(grid, int):
        table = _table_of(grid, nsr.device, nsr.dtype)
        if path == "ve":
            return _next_in_table(nsr, table)
        return nsr_of_share(_next_in_table(share_of_nsr(nsr), table))
    if path == "flow":
        return nsr_of_share((share_of_nsr(nsr) - grid / TIMESTEPS).clamp(min=0))
    timestep = timestep_of_sigma(nsr)
    # Below one step: between the last grid point (t = 0, next level 0) and the one before it (t = n, next sigma(0)).
    below_one_step = _ve_table(nsr.device, nsr.dtype)[0] * timestep / grid
    return torch.where(timestep < grid, below_one_step, sigma_of_timestep(timestep - grid))


def _next_in_table(level: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """The level after `level` on a grid of explicit levels [K], ascending, grid[0] = 0."""
    level = level.clamp(grid[0], grid[-1])
    upper = torch.searchsorted(grid, level.contiguous()).clamp(1, grid.numel() - 1)
    fraction = (level - grid[upper - 1]) / (grid[upper] - grid[upper - 1])
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
