"""What it costs to keep one setting for everything, against a CFG chosen by hand for each model and step count.

Of a point: loss = 10 (1 - share of prompts drawn right) + FD, so that a percent of prompts weighs as much as 0.1 of FD. Of a
setting in a cell (a model at a step count): regret = its loss minus that of the cell's best constant CFG or CFG++. Below 0:
better than anything that constant guidance gives there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import pack_module

RIGHT_WEIGHT = 10.0
CONSTANT = "CFG", "CFG++"
RIVALS = *CONSTANT, "APG", "CFG and projection"  # drawn in every cell with as many settings as a front needs
Cell = tuple[str, str, dict]  # variant, steps, {"points": {"CFG 3": row}, ...}


class Regret(NamedTuple):
    """Of one setting: its regret in each cell, {(variant, steps): (regret, half its 95% interval)}."""

    method: str
    setting: str
    cells: dict[tuple[str, str], tuple[float, float]]

    @property
    def worst(self) -> tuple[float, float]:
        return max(self.cells.values(), key=lambda cell: cell[0])

    @property
    def mean(self) -> float:
        return sum(value for value, _ in self.cells.values()) / len(self.cells)


def loss(row: dict) -> float:
    return RIGHT_WEIGHT * (1 - row["right"]) + row["fd"]


def parts(name: str) -> tuple[str, str]:
    """ "CFG, linear, rising 3" -> its method and its setting."""
    method, _, setting = name.rpartition(" ")
    return (method, setting) if setting.replace(".", "").isdigit() else (name, "")


def best_constant(points: dict[str, dict]) -> str:
    """The name of the constant CFG or CFG++ with the least loss."""
    return min((name for name in points if parts(name)[0] in CONSTANT), key=lambda name: loss(points[name]))


def regrets(cells: list[Cell]) -> list[Regret]:
    """Of every setting that was drawn in all of these cells."""
    names = [name for name in cells[0][2]["points"] if all(name in cell["points"] for _, _, cell in cells)]
    found = []
    for name in names:
        at = {}
        for variant, steps, cell in cells:
            row, best = cell["points"][name], cell["points"][best_constant(cell["points"])]
            at[variant, steps] = loss(row) - loss(best), row["regret_interval"]
        found.append(Regret(*parts(name), at))
    return found


def best_settings(found: list[Regret], shown: Callable[[str], bool]) -> list[Regret]:
    """Of each method that is shown the setting with the least worst regret; least regret first."""
    best: dict[str, Regret] = {}
    for regret in found:
        if shown(regret.method) and (regret.method not in best or regret.worst[0] < best[regret.method].worst[0]):
            best[regret.method] = regret
    return sorted(best.values(), key=lambda regret: regret.worst[0])


def draw_regrets(rows: dict[str, Regret], file: Path) -> None:
    """A line per setting, named by the key: its regret in each cell as a dot, the worst filled. Writes a PNG."""
    figures = pack_module("plots.figure")
    figure = figures.new_figure(1200, 60 * len(rows) + 150)
    panel = figure.subplots()
    for y, regret in enumerate(rows.values()):
        colour = "#D55E00" if regret.method.startswith("annealing") else "#0072B2"
        values = [value for value, _ in regret.cells.values()]
        panel.plot([min(values), max(values)], [y, y], color=colour, linewidth=2, alpha=0.4, zorder=1)
        dot = {"marker": "o", "color": colour, "linestyle": "none"}
        panel.plot(values, [y] * len(values), markerfacecolor="white", markersize=7, zorder=2, **dot)
        panel.plot(max(values), y, markersize=9, zorder=3, **dot)
    figures.dress(panel, "", "regret against the best constant CFG or CFG++ of each cell (less is better)", "")
    panel.axvline(0.0, color=figures.INK, linewidth=1, zorder=0)
    panel.set_yticks(range(len(rows)), list(rows), fontsize=figures.FONT_SIZE - 2)
    panel.invert_yaxis()
    figure.savefig(file, dpi=figures.DPI)
