"""The figure of the fronts: prompts drawn right against Frechet distance, one panel per variant and step count."""

from __future__ import annotations

from pathlib import Path

from . import pack_module
from .measures import front

# Okabe and Ito's colours, which the colour-blind can tell apart; each method has a marker of its own besides.
STYLES = {
    "annealing": ("#D55E00", "o"),
    "annealing at cfg": ("#000000", "*"),
    "CFG": ("#0072B2", "s"),
    "CFG++": ("#009E73", "^"),
    "APG": ("#CC79A7", "D"),
    "RescaleCFG": ("#E69F00", "v"),
    "CFG and projection": ("#56B4E9", "P"),
}
SHOWN = 0.8  # share of prompts right from which on the panels show points
HIGHEST = 2.0  # and up to how many times the smallest FD
WIDTH, PANEL_HEIGHT = 1400, 440


def draw_fronts(cells: list[tuple[str, str, dict]], file: Path) -> None:
    """cells: (variant, steps, {"points": {"CFG 3": row}, ...}); writes a PNG."""
    figures = pack_module("plots.figure")
    variants = len({variant for variant, _, _ in cells})
    figure = figures.new_figure(WIDTH, PANEL_HEIGHT * variants)
    panels = figure.subplots(variants, len(cells) // variants, squeeze=False)
    for panel, (variant, steps, cell) in zip(panels.flat, cells, strict=True):
        for method, (colour, marker) in STYLES.items():
            _draw_method(panel, method, cell["points"], colour, marker)
        least = min(row["fd"] for row in cell["points"].values())
        panel.set_xlim(SHOWN, 1.005)
        panel.set_ylim(0.95 * least, HIGHEST * least)
        panel.set_xticks([0.8, 0.85, 0.9, 0.95, 1.0])
        panel.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        figures.dress(panel, f"{variant}, {steps} steps", "prompts drawn right", "Frechet distance (less is better)")
    keys = [panels[0, 0].plot([], [], marker, color=colour, label=method)[0] for method, (colour, marker) in STYLES.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=figures.FONT_SIZE - 1)
    figure.savefig(file, dpi=figures.DPI)


def _draw_method(panel, method: str, rows: dict[str, dict], colour: str, marker: str) -> None:
    """All settings of a method in their order, those on its front filled, with the 95% interval of each of these."""
    own = [row for name, row in rows.items() if name.rpartition(" ")[0] == method and row["right"] >= SHOWN]
    if not own:
        return
    at = [(row["right"], row["fd"]) for row in own]
    panel.plot(*zip(*at, strict=True), color=colour, linewidth=2 if method == "annealing" else 1, alpha=0.9, zorder=2)
    best = set(front(at))
    for row, point in zip(own, at, strict=True):
        filled = colour if point in best else "white"
        panel.plot(*point, marker, color=colour, markerfacecolor=filled, markersize=8, zorder=4, linestyle="none")
        if point in best and method in ("annealing", "CFG"):
            panel.errorbar(*point, xerr=row["right_interval"], color=colour, linewidth=1, alpha=0.5, zorder=1)
