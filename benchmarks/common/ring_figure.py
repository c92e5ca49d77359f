"""The figure of the ring: clouds of points with the way of a few of them, the trade-off, and the scale that would be right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import pack_module, ring_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 1600, 1420  # pixels
DRAWN, PATHS = 1500, 5  # points and paths in a panel
SIDE, BOTTOM, TOP = 2.0, -1.65, 2.35  # of a panel: from -SIDE to SIDE, from BOTTOM to TOP
# Okabe and Ito's colours, by lightness far apart too; marker and dash tell the methods apart without colour.
LOOKS = {
    "CFG": ("CFG, constant", "#E69F00", "s", "-"),
    "CFG++": ("CFG++, constant", "#56B4E9", "^", "-"),
    "annealing, trained for 5 steps": ("annealing, made for 5 steps", "#2b1055", "o", "-"),
    "annealing, trained for 50 steps": ("annealing, made for 50 steps", "#2b1055", "X", ":"),
    "learned scale as CFG": ("same scale, ordinary CFG", "#009E73", "D", (0, (4, 1.5))),
}
LAMBDA_LOOKS = {0.0: ("#2b1055", "-"), 0.8: ("#2a788e", (0, (6, 2))), 1.0: ("#d0b000", (0, (2, 1.2)))}


@dataclass(frozen=True)
class Cloud:
    """What a panel shows. points: [n, 2]; paths: x / sqrt(1 + sigma^2) from noise to picture, [T, n, 2]."""

    title: str
    points: torch.Tensor
    paths: torch.Tensor
    figures: dict[str, float]


def write_figure(clouds: list[Cloud], rows: dict[str, dict], network, wrong: float, path: Path) -> None:
    """clouds: ten; rows: of the results at one number of steps; network: a scale network trained for the paper's steps."""
    new_figure = pack_module("plots.figure").new_figure
    figure = new_figure(WIDTH, HEIGHT)
    above, below = figure.subfigures(2, 1, height_ratios=(1.86, 1))
    for axes, cloud in zip(above.subplots(2, 5).flatten(), clouds, strict=True):
        _draw_cloud(axes, cloud)
    left, middle, right = below.subplots(1, 3, width_ratios=(1.25, 1, 1.1))
    _draw_fronts(left, rows, "coverage", "alignment costs coverage ...", "share of the class covered", legend=True)
    _draw_fronts(middle, rows, "off_ring", "... and leads off the ring", "mean distance from the ring", legend=False)
    _draw_scales(right, network, wrong)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=figure.dpi, pil_kwargs={"optimize": True})


def _draw_cloud(axes: Axes, cloud: Cloud) -> None:
    look = pack_module("plots.figure")
    axes.imshow(_density(), origin="lower", extent=(-SIDE, SIDE, BOTTOM, TOP), interpolation="bilinear", zorder=0)
    for i in range(PATHS):
        way = cloud.paths[:, i]
        axes.plot(way[:, 0], way[:, 1], color=look.INK, linewidth=1.3, alpha=0.75, zorder=3)
        axes.plot(*way[0], marker="o", markersize=6, color=look.PAPER, markeredgecolor=look.INK, zorder=4)
    points = cloud.points[:DRAWN]
    axes.scatter(points[:, 0], points[:, 1], s=7, color="#D55E00", alpha=0.5, linewidth=0, zorder=2)
    axes.set(xlim=(-SIDE, SIDE), ylim=(BOTTOM, TOP), aspect="equal", xticks=[], yticks=[])
    axes.set_title(cloud.title, fontsize=look.FONT_SIZE + 1, fontfamily=look.FONT, color=look.INK)
    aligned, coverage, off = (cloud.figures[key] for key in ("aligned", "coverage", "off_ring"))
    said = f"{100 * aligned:.1f}% aligned, {100 * coverage:.0f}% covered\n{off:.3f} off the ring"
    axes.set_xlabel(said, fontsize=look.FONT_SIZE - 1, fontfamily=look.FONT, color=look.INK)
    for spine in axes.spines.values():
        spine.set(color=look.FAINT)


def _density() -> torch.Tensor:
    """The ring in grey, the class's part in blue: [H, W, 3], 0..1."""
    y, x = torch.meshgrid(torch.linspace(BOTTOM, TOP, 301), torch.linspace(-SIDE, SIDE, 301), indexing="ij")
    radius = (x**2 + y**2).sqrt()
    ring = torch.exp(-((radius - ring_model.RADIUS) ** 2) / (2 * ring_model.BLUR**2))[..., None]
    inside = torch.sigmoid((y / radius.clamp(min=0.1) - ring_model.ARC_END) / ring_model.SOFTNESS)[..., None]
    colour = torch.lerp(torch.tensor([0.80, 0.80, 0.80]), torch.tensor([0.45, 0.68, 0.92]), inside)
    return 1 - ring * (1 - colour)


def _misses(aligned: float) -> float:
    """Where a share of aligned points lies on the axis: by how many are not, so that 99% and 99.9% are apart."""
    return -math.log10(1 - min(aligned, 0.9996))


def _draw_fronts(axes: Axes, rows: dict[str, dict], key: str, title: str, ylabel: str, legend: bool) -> None:
    look = pack_module("plots.figure")
    for method, (label, colour, marker, dash) in LOOKS.items():
        own = [row for row in rows.values() if row["method"] == method and row["aligned"] >= 0.64]
        x, y = [_misses(row["aligned"]) for row in own], [row[key] for row in own]
        axes.plot(
            x, y, color=colour, marker=marker, markersize=7, linewidth=2, linestyle=dash, label=label,
            markeredgecolor=look.PAPER, markeredgewidth=0.7,
        )  # fmt: skip
    perfect = rows["right captions, no guidance 1"]
    axes.plot(
        _misses(perfect["aligned"]), perfect[key], marker="*", markersize=17, color="#F0E442", markeredgecolor=look.INK,
        linestyle="none", label="right captions, unguided",
    )  # fmt: skip
    ticks = (0.7, 0.9, 0.97, 0.99, 0.999, 1)
    axes.set_xticks([_misses(tick) for tick in ticks], [f"{100 * tick:g}" for tick in ticks])
    axes.set_ylim(0, None)
    if legend:
        axes.legend(loc="lower left", handlelength=2.4, borderpad=0.3, labelspacing=0.25)
    look.dress(axes, title, "% aligned", ylabel)


@torch.no_grad()
def _draw_scales(axes: Axes, network, wrong: float) -> None:
    """The exact scale and the learned ones at the noised data of the class, over the paper's timesteps."""
    schedule = pack_module("models.schedule")
    look = pack_module("plots.figure")
    generator = torch.Generator().manual_seed(3)
    caption, n = torch.tensor([[0.0, 1.0]]), 2000
    right, told = ring_model.mode_weights(caption), ring_model.mode_weights(caption, wrong)
    data = ring_model.draw(right.expand(n, -1), generator)
    timesteps = torch.arange(980, 0, -20)
    exact, learned = [], {value: [] for value in LAMBDA_LOOKS}
    for timestep in timesteps:
        sigma = schedule.sigma_of_timestep(timestep.double()).float().expand(n, 1)
        x = data + sigma * torch.randn(n, 2, generator=generator)
        exact.append(ring_model.exact_scale(x, sigma, caption, wrong))
        uncond = ring_model.denoised(x, sigma, torch.full_like(right, 1 / ring_model.MODES))
        norm = (ring_model.denoised(x, sigma, told) - uncond).norm(dim=1) / sigma[:, 0]
        timestep = schedule.timestep_of_sigma(sigma[:, 0])
        for value, scales in learned.items():
            scales.append(network(timestep, norm, value).mean())
    exact = torch.stack(exact)
    low, high = exact.quantile(0.1, dim=1), exact.quantile(0.9, dim=1)
    axes.fill_between(timesteps, low, high, color="#009E73", alpha=0.22, linewidth=0)
    axes.plot(timesteps, exact.median(1).values, color="#009E73", linewidth=5, alpha=0.8, label="exact (band: 80%)")
    for value, (colour, dash) in LAMBDA_LOOKS.items():
        axes.plot(
            timesteps, torch.stack(learned[value]), color=colour, linestyle=dash, linewidth=2.4, label=f"learned, λ {value:g}"
        )
    axes.set_xlim(1000, 0)
    axes.set_ylim(0, None)
    axes.legend(loc="lower left", handlelength=2.4, borderpad=0.3, labelspacing=0.25)
    look.dress(axes, "the scale that would be right", "timestep (noise left)", "scale of ordinary CFG")
