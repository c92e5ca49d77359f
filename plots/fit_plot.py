"""The picture of a fit: the scale that was learned, and how its held-out loss fell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..models.scale_model import PATHS
from ..models.scale_network import ScaleNetwork
from ..models.schedule import timestep_of_nsr
from ..training.fit import Check, Fit
from ..training.profile import Profile, steps_of_grid
from .figure import FONT_SIZE, INK, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAMBDAS = (0.0, 0.2, 0.4, 0.6, 0.8)
# Near viridis, from dark to light as lambda rises: lightness alone tells them apart, and so do dash and marker.
COLOURS = ("#440154", "#3f4889", "#2a788e", "#1f9e6e", "#d0b000")
DASHES = ("-", (0, (6, 2)), (0, (3, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1.2)))
MARKERS = ("o", "s", "^", "D", "v")
GAP_QUANTILES = torch.linspace(0.1, 0.9, 9)
MEDIAN = 4


def fit_figure(fit: Fit, profile: Profile, steps: int) -> Figure:
    """The fitted scale over a run, beside the held-out loss. steps: those of the fit without early stopping."""
    figure = new_figure()
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_scales(left, fit.network, profile)
    _draw_losses(right, fit.history, steps, fit.constant_loss)
    return figure


def loss_figure(history: list[Check], steps: int) -> Figure:
    """The held-out loss so far, for the preview while the fit runs."""
    figure = new_figure(512, 320)
    _draw_losses(figure.subplots(), history, steps)
    return figure


@torch.no_grad()
def scale_bands(network: ScaleNetwork, profile: Profile, guidance_lambda: float) -> torch.Tensor:
    """The scale at every step of the profile's grid, over the gaps that the profile saw there: [S, 9], S steps, noisy first.

    Columns: at the 10th, 20th .. 90th percentile of the step's gap norms. NaN for a step without entries.
    """
    timesteps = step_timesteps(profile)
    entries = profile.entries
    norms = torch.full((len(timesteps), len(GAP_QUANTILES)), torch.nan)
    nearest = (entries.timestep[:, None] - timesteps).abs().argmin(dim=1)
    for step in nearest.unique().tolist():
        norms[step] = entries.gap_norm[nearest == step].quantile(GAP_QUANTILES)
    scales = network(timesteps[:, None].expand_as(norms), norms, guidance_lambda).view_as(norms)
    return torch.where(norms.isnan(), torch.nan, scales)


def step_timesteps(profile: Profile) -> torch.Tensor:
    """The network's timestep of every step of the profile's training grid that can be measured, noisy first: [S]."""
    path = PATHS[profile.kind]
    nsr, _ = steps_of_grid(path, profile.settings.training_grid)
    return timestep_of_nsr(path, nsr).float()


def _draw_scales(axes: Axes, network: ScaleNetwork, profile: Profile) -> None:
    timesteps = step_timesteps(profile)
    steps = torch.arange(1, len(timesteps) + 1)
    every = max(len(steps) // 6, 1)
    for guidance_lambda, colour, dash, marker in zip(LAMBDAS, COLOURS, DASHES, MARKERS, strict=True):
        scales = scale_bands(network, profile, guidance_lambda)
        known = ~scales[:, MEDIAN].isnan()
        x, scales = steps[known].numpy(), scales[known]
        low, high = scales.amin(1).numpy(), scales.amax(1).numpy()
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(
            x, scales[:, MEDIAN].numpy(), color=colour, linestyle=dash, linewidth=2.4,
            marker=marker, markersize=7, markevery=every, label=f"{guidance_lambda:.1f}",
        )  # fmt: skip
    ticks = torch.linspace(0, len(steps) - 1, min(5, len(steps))).round().long()
    axes.set_xticks(steps[ticks].tolist(), [f"{steps[i]}\nt={timesteps[i]:.0f}" for i in ticks.tolist()])
    axes.set_xlim(1, max(len(steps), 2))
    axes.legend(title="lambda", loc="best", handlelength=3)
    dress(axes, "fitted scale (band: 80% of the gaps)", f"step of the {len(steps) + 1} trained for, noise first", "scale")


def _draw_losses(axes: Axes, history: list[Check], steps: int, constant_loss: float | None = None) -> None:
    """With constant_loss: in per cent above the best constant scale (below 0: better). Without it: the loss itself."""
    x, losses = [check.step for check in history], [check.held_out_loss for check in history]
    if constant_loss is not None:
        losses = [100 * (loss / constant_loss - 1) for loss in losses]
        axes.axhline(0, color=INK, linewidth=2, linestyle=(0, (4, 2)), label="best constant")
    axes.plot(x, losses, color=COLOURS[1], linewidth=2.4, marker="o", markersize=5, label="learned scale")
    best = min(range(len(losses)), key=losses.__getitem__)
    axes.plot(x[best], losses[best], marker="*", markersize=16, color=COLOURS[4], markeredgecolor=INK, linestyle="none")
    axes.set_xlim(0, steps * 1.03)
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=6)
    axes.yaxis.get_offset_text().set(color=INK, fontsize=FONT_SIZE - 2)
    if constant_loss is not None:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -0.5), max(high, 0.5))  # a difference far below 1% must look like no difference
        axes.yaxis.set_major_formatter("{x:+.3g}%")
        axes.legend(loc="best")
    dress(axes, "held-out loss (star: kept)", "step of the fit", "")
