"""The strength benchmark's part of docs/BENCHMARKS.md."""

from __future__ import annotations

import math
from collections.abc import Callable

PATHS = ("epsilon", "flow")
MOST_STEPS = 50  # more are measured, but nobody asks


def strength(results: dict, table: Callable, about: Callable) -> dict[str, str]:
    """For each path a table of the samplers: cells that miss the aim, and the typical deviation at each number of steps."""
    words = {"strength.about": about(results), "strength.others": table(*_others(results), first="other data")}
    for path in PATHS:
        words[f"strength.{path}"] = table(*_samplers(results[path]["authors"]), first="sampler")
        words[f"strength.{path}_floor"] = f"{results[path]['authors']['floor']:.3f}"
    return words


def _samplers(part: dict) -> tuple[dict, dict]:
    shown = [i for i, steps in enumerate(part["steps"]) if steps <= MOST_STEPS]
    rows = {}
    for sampler, found in _by_sampler(part).items():
        row = {f"at{i}": f"{_typical([one['annealing'][i] for one in found]):.3f}" for i in shown}
        rows[sampler] = {"missed": _missed([one["marks"][i] for one in found for i in shown]), **row}
    return rows, {"missed": "{missed}"} | {f"{part['steps'][i]} steps": f"{{at{i}}}" for i in shown}


def _others(results: dict) -> tuple[dict, dict]:
    rows = {}
    for path in PATHS:
        for name, part in results[path].items():
            if name not in ("authors", "seeds"):
                found = list(part["rows"].values())
                pairs = [pair for one in found for pair in zip(one["annealing"], one["cfg"], strict=True)]
                worst = max(ours for ours, cfg in pairs if cfg < 0.1)
                marks = [mark for one in found for mark in one["marks"]]
                rows[f"{path}, {name}"] = {"missed": _missed(marks), "floor": f"{part['floor']:.3f}", "worst": f"{worst:.3f}"}
    return rows, {"missed": "{missed}", "floor": "{floor}", "worst where CFG's is below 0.1": "{worst}"}


def _by_sampler(part: dict) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for name, row in part["rows"].items():
        found.setdefault(name.split("/")[0], []).append(row)
    return found


def _missed(marks: list[str]) -> str:
    burnt = marks.count("!")
    return f"{len(marks) - marks.count(' ')} of {len(marks)}" + (f", {burnt} burnt" if burnt else "")


def _typical(values: list[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(math.log(max(value, 1e-6)) for value in values) / len(values))
