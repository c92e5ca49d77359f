"""The course of one run from noise to picture: a table of all that depends on the noise level alone, computed once.

It holds two kinds of facts about a noise level. From the training: the network's timestep, how strong one training step is here,
and how the gap responds. From the run: which of the sampler's steps a call belongs to, how far that step goes down, and how the
solver weighs its predictions.

Calls are looked up by the level that the model gets, not counted. So the table also serves solvers that call between scheduled
levels, wrappers that pass a slightly different level, and runs that go back to more noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from ..models import schedule
from ..models.scale_model import ScaleInfo
from . import coordinates, history
from .host_types import ModelSampling
from .sampler_facts import SamplerFacts

# Bounds how short a step may be. A run of 1000 steps stays below this ratio; adaptive solvers and added noise may not.
LARGEST_RATIO = 0.999
# Samplers compute levels through logarithms: a level within this relative distance is the same level.
SAME_LEVEL = 1e-5
# A call belongs to the step above it, unless it is nearer (in log sigma) than this share of the step to the level below.
NEAR = 0.45
# The assumed data: unit variance, and this share of it left once the caption is known.
REMAINING_VARIANCE = 1 / 3
LEAST_DIVISOR = 1e-6  # some samplers ask at level 0, where the gap is 0 too
# Table points between two timesteps: the network's timestep is off by at most 1e-3, and exact at scheduled levels.
POINTS_PER_TIMESTEP = 4

# A row of the table: the cell's lower level; five values to interpolate (timestep, gap divisor, gap response, k of a training
# step that leaves noise, k of one that leads to the picture), their slopes; then the step's k, gain, is-last, number and weights.
_VALUES, _SLOPES, _K, _GAIN, _IS_LAST, _STEP, _WEIGHTS = slice(1, 6), slice(6, 11), 11, 12, 13, 14, slice(15, None)
_K_ONWARDS, _K_TO_PICTURE = [4, 9], [5, 10]  # value and slope


class Level(NamedTuple):
    """What one call needs to know of its noise level: [B] each, float32.

    sigma: ComfyUI's. timestep: the network's. divisor: of the gap, see coordinates.gap_divisor.
    training_k: k of one training step from here; k: of the sampler's own step, >= 1. See folding_factor.
    response: the share of the gap that is gone once guidance has moved x by the gap.
    gain: the share of a displacement that the sampler must get: 1 for an ordinary sampler, 1 / k for null renoising.
    step: the number of the sampler's step, from 0.
    weights: [B, K], the solver's on this prediction and on the ones before it.
    """

    sigma: torch.Tensor
    timestep: torch.Tensor
    divisor: torch.Tensor
    training_k: torch.Tensor
    k: torch.Tensor
    response: torch.Tensor
    gain: torch.Tensor
    step: torch.Tensor
    weights: torch.Tensor


def folding_factor(nsr: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """k, >= 1: the ordinary CFG that one unit of the learned scale is worth in a step from nsr down to `following`.

    k = 1 / (1 - following / nsr). An ordinary first-order step moves x by (1 - following / nsr) of a displacement of the
    prediction, the null-renoised step by all of it. In noise-to-signal ratios this is one formula for both paths.
    """
    ratio = (following / nsr).nan_to_num(0.0).clamp(0.0, LARGEST_RATIO)
    return 1.0 / (1.0 - ratio)


def gap_response(nsr: torch.Tensor) -> torch.Tensor:
    """By how much D_u - D_c grows, relative to x, when x moves: same shape, 0..0.27.

    For Gaussian data of variance v the best denoiser has the slope v/(v + nsr^2), so with v = 1 without and v =
    REMAINING_VARIANCE with the caption it is (1 - v) nsr^2 / ((1 + nsr^2)(v + nsr^2)): nothing where all is noise or all is
    known, largest in between.
    """
    variance = nsr**2
    return (1.0 - REMAINING_VARIANCE) / ((1.0 + variance) * (REMAINING_VARIANCE / variance + 1.0))


class Course:
    """One run's table. Building it reads the schedule's values; looking up a call does not wait for the device."""

    def __init__(
        self,
        model_sampling: ModelSampling,
        info: ScaleInfo,
        facts: SamplerFacts,
        sigmas: torch.Tensor,
        renoised: float,
        device: torch.device,
    ):
        """sigmas: the run's schedule [N + 1]. renoised: the share of the unconditional prediction in the sampler's noise."""
        self._tracker = StepTracker(facts.calls_per_step) if facts.calls_per_step > 1 else None
        steps = _Steps(model_sampling, facts, sigmas, renoised)
        self._pauses = _Pauses(steps.pauses, device) if renoised and steps.pauses else None
        cells = _cells(model_sampling, info, steps)
        if not self._tracker:  # a cell's step is then the call's
            cells[:, _K_ONWARDS] = torch.where(cells[:, _IS_LAST, None] > 0, cells[:, _K_TO_PICTURE], cells[:, _K_ONWARDS])
        self._starts = cells[1:, 0].contiguous().to(device)
        self._cells = cells.to(device)
        self._first_levels = steps.levels[:-1].float().to(device)
        self.steps = len(steps.k)
        self.remembers = int((steps.weights[:, 1:] != 0).sum(1).max())

    def of_steps(self) -> Level:
        """For the first call of each of the sampler's steps, noise first: [N]."""
        return self._level(self._first_levels)

    def at(self, sigma: torch.Tensor) -> Level:
        """For a call at sigma [B], float32. Ask once per call, in order: a call's step may depend on the calls before it."""
        level = self._level(sigma, self._tracker.start_of_step(sigma) if self._tracker else None)
        return level._replace(gain=level.gain * self._pauses.moves(sigma)) if self._pauses else level

    def _level(self, sigma: torch.Tensor, start_of_step: torch.Tensor | None = None) -> Level:
        if sigma.device != self._cells.device:
            self._starts, self._cells = self._starts.to(sigma.device), self._cells.to(sigma.device)
        cells = self._cells[self._cell(sigma)]
        values = torch.addcmul(cells[:, _VALUES], cells[:, _SLOPES], (sigma - cells[:, 0]).unsqueeze(1))
        timestep, divisor, response, k_onwards, k_to_picture = values.unbind(1)
        training_k = k_onwards
        if start_of_step is not None:
            cells = self._cells[self._cell(start_of_step)]
            training_k = torch.lerp(k_onwards, k_to_picture, cells[:, _IS_LAST])
        k, gain, step, weights = cells[:, _K], cells[:, _GAIN], cells[:, _STEP], cells[:, _WEIGHTS]
        return Level(sigma, timestep, divisor, training_k, k, response, gain, step, weights)

    def _cell(self, sigma: torch.Tensor) -> torch.Tensor:
        return torch.bucketize(sigma, self._starts, right=True)


class StepTracker:
    """Where the step in progress began, for a solver that calls the model several times in a step."""

    def __init__(self, calls_per_step: int):
        self._calls = calls_per_step
        self._state: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def start_of_step(self, sigma: torch.Tensor) -> torch.Tensor:
        """The level [B] at which the step began that a call at sigma [B] belongs to.

        A step begins after as many calls as the solver makes in one, or where the level rises. It also begins at a second call in
        a row at a level that isn't the step's first: some solvers make fewer calls in their last steps.
        """
        if self._state is None:
            self._state = sigma, sigma, torch.ones_like(sigma)
            return sigma
        last, start, calls = self._state
        begins = (calls >= self._calls) | (sigma > last * (1 + SAME_LEVEL))
        begins = begins | ((sigma > last * (1 - SAME_LEVEL)) & (calls > 1))
        start, calls = torch.where(begins, sigma, start), torch.where(begins, 1.0, calls + 1)
        self._state = sigma, start, calls
        return start


class _Pauses:
    """Levels that come twice in a row, where schedules were joined: the sampler's step between them is empty."""

    def __init__(self, levels: Sequence[float], device: torch.device):
        self._levels = torch.tensor(levels, dtype=torch.float32, device=device)
        self._state: tuple[torch.Tensor, torch.Tensor] | None = None

    def moves(self, sigma: torch.Tensor) -> torch.Tensor:
        """0 for a call whose step is empty, else 1: [B]."""
        self._levels = self._levels.to(sigma.device)
        repeats = (self._levels[None] / sigma[:, None] - 1).abs().lt(SAME_LEVEL).sum(1)
        last, calls = self._state if self._state is not None else (torch.zeros_like(sigma), torch.zeros_like(repeats))
        calls = torch.where((sigma / last - 1).abs() < SAME_LEVEL, calls + 1, 1)
        self._state = sigma, calls
        return (calls > repeats).to(sigma.dtype)


class _Steps:
    """The sampler's own steps, noise first, in float64: k, gain and weights of each, and where each one ends."""

    def __init__(self, model_sampling: ModelSampling, facts: SamplerFacts, sigmas: torch.Tensor, renoised: float):
        given = sigmas.detach().to("cpu", torch.float64).flatten()
        # In falling order, each level once, because a run may go back to more noise, or pause.
        levels = facts.levels(given.unique().flip(0)) if len(given) > 1 else given
        if len(levels) < 2:
            levels = torch.tensor([float(given[0]) if len(given) else 1.0, 0.0], dtype=torch.float64)
        self.levels = levels
        self.pauses = [
            level for level, following in zip(given.tolist(), given[1:].tolist(), strict=False) if level == following > 0
        ]
        self.ends_in_the_picture = bool(levels[-1] <= 0)
        start, end = levels[:-1], levels[1:]
        nsr = coordinates.nsr_of_sigma(model_sampling, start)
        down = torch.where(end > 0, facts.level_down(model_sampling, start, end), 0.0)
        self.k = folding_factor(nsr, down)
        self.weights = self._weights(model_sampling, facts)
        self.gain = self._gain(facts, renoised)

    def _weights(self, model_sampling: ModelSampling, facts: SamplerFacts) -> torch.Tensor:
        """[N, MOST]"""
        levels = self.levels.clone()
        snr_levels = levels.clone()
        if coordinates.keeps_signal_scaled(model_sampling) and snr_levels[0] >= 1:
            # Solvers in log SNR begin a little below pure noise, where it is infinite.
            snr_levels[0] = float(model_sampling.percent_to_sigma(1e-4))
        log_snr = -coordinates.nsr_of_sigma(model_sampling, snr_levels).log()
        options = {**facts.options, "tau": partial(facts.tau, model_sampling)}
        # CFG++ samplers extrapolate the unconditional prediction as their ordinary counterparts extrapolate the whole one.
        name = facts.name.removesuffix("_cfg_pp") if facts.is_in_ve_form else facts.name
        rows = history.weights_of(name, levels.tolist(), log_snr.tolist(), options)
        table = torch.zeros(len(rows), history.MOST, dtype=torch.float64)
        for row, weights in zip(table, rows, strict=True):
            row[: len(weights)] = torch.tensor(weights, dtype=torch.float64)
        return table

    def _gain(self, facts: SamplerFacts, renoised: float) -> torch.Tensor:
        """v / f, where v is what a sampler that renoises with the unconditional prediction gets for a displacement f: [N].

        An ordinary first-order step moves x/alpha by (1 - r) f, with r = 1 - 1/k. A null-renoised step moves it by v, or by
        (1 - (1 - m) r) v with the share m of the unconditional prediction. A few of ComfyUI's use another multiple.
        """
        if not renoised:
            return torch.ones_like(self.k)
        if facts.doubles:
            return torch.full_like(self.k, 0.5)
        if facts.is_in_ve_form:
            return facts.ve_form_gain(self.levels)
        return 1.0 / (self.k * (1.0 - (1.0 - renoised) * (1.0 - 1.0 / self.k)))

    def upper_ends(self) -> torch.Tensor:
        """The level up to which a call belongs to each step, falling: [N]; the first is infinite."""
        start, following = self.levels[:-1], self.levels[1:]
        ends = torch.exp(start[:-1].log() * NEAR + following[:-1].log() * (1 - NEAR))
        return torch.cat([torch.tensor([torch.inf], dtype=torch.float64), ends])


def _cells(model_sampling: ModelSampling, info: ScaleInfo, steps: _Steps) -> torch.Tensor:
    """The table, float32 [M, ...], rising."""
    path = coordinates.path_of(model_sampling)
    sigma = _levels_of_table(model_sampling, info, steps)
    nsr = coordinates.nsr_of_sigma(model_sampling, sigma).clamp(min=1e-12)
    following = [schedule.next_on_training_grid(nsr, info, path, last_step) for last_step in (False, True)]
    divisor = coordinates.gap_divisor(model_sampling, sigma).double().clamp(min=LEAST_DIVISOR)
    training_k = [folding_factor(nsr, level) for level in following]
    values = torch.stack([schedule.timestep_of_nsr(path, nsr), divisor, gap_response(nsr), *training_k], dim=1)
    slopes = torch.cat([values.diff(dim=0) / sigma.diff()[:, None], torch.zeros_like(values[:1])])

    middle = torch.cat([(sigma[1:] + sigma[:-1]) / 2, sigma[-1:]])
    step = (steps.upper_ends()[None] > middle[:, None]).sum(1) - 1
    is_last = (step == len(steps.k) - 1) & steps.ends_in_the_picture
    of_step = torch.stack([steps.k[step], steps.gain[step], is_last.double(), step.double()], dim=1)
    return torch.cat([sigma[:, None], values, slopes, of_step, steps.weights[step]], dim=1).float()


def _levels_of_table(model_sampling: ModelSampling, info: ScaleInfo, steps: _Steps) -> torch.Tensor:
    """ComfyUI's sigmas of the cells, rising from 0: every level where a value bends or jumps, and enough between them."""
    path = coordinates.path_of(model_sampling)
    count = schedule.TIMESTEPS * POINTS_PER_TIMESTEP
    if path == "ve":
        nsr = schedule.sigma_of_timestep(torch.linspace(0, schedule.TIMESTEPS - 1, count, dtype=torch.float64))
        nsr = torch.cat([torch.logspace(-6, -1, 200, dtype=torch.float64), nsr, torch.logspace(1, 5, 400, dtype=torch.float64)])
    else:
        share = torch.linspace(0, 1, count + 1, dtype=torch.float64)[1:]
        nsr = torch.cat([torch.logspace(-6, -3, 60, dtype=torch.float64), schedule.nsr_of_share(share)])
    if not isinstance(info.training_grid, int):
        grid = torch.tensor(info.training_grid[:-1], dtype=torch.float64)
        nsr = torch.cat([nsr, grid if path == "ve" else schedule.nsr_of_share(grid)])
    sigma = torch.cat([coordinates.sigma_of_nsr(model_sampling, nsr).double(), steps.levels, steps.upper_ends()[1:]])
    # Unique in float32, in which the device compares them.
    sigma = torch.cat([torch.zeros(1, dtype=torch.float64), sigma]).float().unique()
    return sigma[sigma.isfinite()].double()
