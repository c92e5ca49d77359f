"""The picture of a scale model: its scale over timestep and gap norm, and the path of a run across it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..guidance.trace import RunTrace
from ..models.scale_model import ScaleModel
from ..models.scale_network import ScaleNetwork
from .figure import INK, PAPER, dress, new_figure
from .fit_plot import DASHES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESOLUTION = 128  # grid points along each side
PANEL = 512  # pixels, each lambda's side
MOST_IN_A_ROW = 3
MOST_PATHS = 4  # more lines than that hide the map


@torch.no_grad()
def scale_grid(scale_model: ScaleModel, guidance_lambda: float, largest_norm: float) -> torch.Tensor:
    """The scale [RESOLUTION, RESOLUTION]: rows are gap norms from 0 up, columns timesteps from 1000 (noise) to 0."""
    timesteps, norms = torch.linspace(1000, 0, RESOLUTION), torch.linspace(0, largest_norm, RESOLUTION)
    rows, columns = torch.meshgrid(norms, timesteps, indexing="ij")
    return scale_model(columns.flatten(), rows.flatten(), guidance_lambda).cpu().view(RESOLUTION, RESOLUTION)


def map_figure(scale_model: ScaleModel, lambdas: list[float], trace: RunTrace | None) -> Figure:
    """One map per lambda, all with the same colours. trace: a run whose samples' paths are drawn over them."""
    paths = _paths(trace) if trace else []
    largest_norm = _largest_norm(scale_model, paths)
    maps = [scale_grid(scale_model, value, largest_norm) for value in lambdas]
    low, high = (float(f(torch.stack(maps))) for f in (torch.amin, torch.amax))
    columns = min(len(maps), MOST_IN_A_ROW)
    rows = -(-len(maps) // columns)
    figure = new_figure(PANEL * columns + 96, PANEL * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(maps) :]:
        axes.set_visible(False)
    for axes, grid, value in zip(panels, maps, lambdas, strict=False):
        image = axes.imshow(
            grid.numpy(), origin="lower", aspect="auto", extent=(1000, 0, 0, largest_norm), cmap="viridis",
            vmin=low, vmax=max(high, low + 1e-3),
        )  # fmt: skip
        for i, (timesteps, norms) in enumerate(_of_lambda(trace, paths, value)[:MOST_PATHS]):
            axes.plot(timesteps, norms, color=INK, linewidth=4)
            axes.plot(timesteps, norms, color=PAPER, linewidth=2, linestyle=DASHES[i % len(DASHES)])
            axes.plot(timesteps[0], norms[0], marker="o", markersize=9, color=PAPER, markeredgecolor=INK)
        axes.set_xlim(1000, 0)
        axes.set_ylim(0, largest_norm)
        dress(axes, f"lambda {value:g}", "timestep (noise left)", "gap norm")
        axes.grid(False)
    bar = figure.colorbar(image, ax=panels[: len(maps)].tolist(), fraction=0.05, pad=0.02)
    bar.set_label("scale", fontsize=13)
    return figure


def _paths(trace: RunTrace) -> list[tuple[list[float], list[float]]]:
    """Timesteps and gap norms of each sample's calls."""
    timesteps, norms = (torch.stack([getattr(call, name) for call in trace.calls]) for name in ("timestep", "gap_norm"))
    return [(timesteps[:, i].tolist(), norms[:, i].tolist()) for i in range(timesteps.shape[1])]


def _of_lambda(trace: RunTrace | None, paths: list, guidance_lambda: float) -> list:
    """For a sweep, the paths of the samples with this lambda; all paths if no sample has it, or for any other run."""
    lambdas = torch.as_tensor(trace.guidance_lambda if trace else 0.0).reshape(-1).tolist()
    own = [path for path, value in zip(paths, lambdas, strict=False) if abs(value - guidance_lambda) < 1e-3]
    return own if len(lambdas) == len(paths) and own else paths


def _largest_norm(scale_model: ScaleModel, paths: list[tuple[list[float], list[float]]]) -> float:
    """The largest norm to draw: a fifth above the run's, or else as far as the network's inputs are usual."""
    if paths:
        norms = torch.tensor([norms for _, norms in paths])
        return max(1.2 * float(norms.nan_to_num(0.0, 0.0).max()), 1e-3)
    if isinstance(scale_model, ScaleNetwork):
        return min(4.0 * scale_model.config.gap_divisor, scale_model.config.max_gap_norm)
    return 20.0
