"""Draws docs/icon.png and docs/banner.png for ComfyUI's registry: `python tools/dev.py artwork`.

Both show what the pack does: noise that comes to rest while the scale, here that of the bundled network, runs its course.
"""

import sys
from pathlib import Path

from devkit.in_process import import_pack

ROOT = Path(__file__).resolve().parent.parent
GROUND, DOTS = "#14181f", "#8b97a8"
COLOURS = ["#56b4e9", "#009e73", "#f0e442", "#e69f00", "#d55e00"]  # Okabe and Ito's, told apart by everybody
LAMBDAS = [0.0, 0.2, 0.4, 0.6, 0.8]
GAP_NORM = 5.0


def scale_curves():
    """(progress 0..1, scales of each lambda) of the bundled network."""
    import torch
    from annealing_guidance_pack.models.scale_file import load_scale

    network = load_scale(ROOT / "models" / "weights" / "shapes_epsilon.safetensors")
    progress = torch.linspace(0, 1, 200)
    timestep, gap_norm = 999 * (1 - progress), torch.full_like(progress, GAP_NORM)
    with torch.no_grad():
        return progress.numpy(), [network(timestep, gap_norm, value).numpy() for value in LAMBDAS]


def draw(axes, columns: int, rows: int, line_width: float, dot: float) -> None:
    """Dots that settle from left to right into a grid, and the scale's course over them; both axes from 0 to 1."""
    import numpy as np

    random = np.random.default_rng(7)
    x, y = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
    unrest = (1 - x) ** 1.5 * 1.4
    shift = random.normal(size=(2, *x.shape)) * unrest
    axes.scatter(x + shift[0] / columns, y + shift[1] / rows, s=dot, c=DOTS, alpha=0.25 + 0.75 * x, linewidths=0)
    progress, curves = scale_curves()
    low, high = min(curve.min() for curve in curves), max(curve.max() for curve in curves)
    for curve, colour in zip(curves, COLOURS, strict=True):
        axes.plot(progress, 0.15 + 0.7 * (curve - low) / (high - low), color=colour, linewidth=line_width, solid_capstyle="round")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")


def main() -> None:
    from matplotlib.figure import Figure

    folder = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "docs"
    import_pack(ROOT)
    icon = Figure(figsize=(4, 4), dpi=100, facecolor=GROUND)
    draw(icon.add_axes((0.06, 0.06, 0.88, 0.88)), columns=9, rows=9, line_width=7, dot=60)
    icon.savefig(folder / "icon.png", facecolor=GROUND)
    banner = Figure(figsize=(12.6, 5.4), dpi=100, facecolor=GROUND)
    draw(banner.add_axes((0.03, 0.06, 0.94, 0.58)), columns=42, rows=11, line_width=4.5, dot=26)
    banner.text(0.04, 0.80, "Annealing Guidance", color="white", fontsize=44, fontweight="bold")
    banner.text(0.042, 0.70, "The guidance scale, chosen at every step by a tiny learned network", color="#c3ccd8", fontsize=17)
    banner.savefig(folder / "banner.png", facecolor=GROUND)


if __name__ == "__main__":
    main()
