"""The strength benchmark's part of docs/BENCHMARKS.md."""

from __future__ import annotations

import math

MULTISTEP = ("lms", "dpmpp_2m", "ipndm", "ipndm_v", "deis", "res_multistep", "gradient_estimation", "uni_pc", "uni_pc_bh2")


def strength(results: dict, table, about) -> dict[str, str]:
    """Per sampler and path: cells that miss the aim, and the typical deviation at each number of steps."""
    kinds = [kind for kind in ("epsilon", "flow") if kind in results]
    return {
        "strength.about": about(results),
        "strength.floors": ", ".join(f"{kind} {results[kind]['authors']['floor']:.3f}" for kind in kinds),
        "strength.samplers": table(*_samplers(results, kinds), first="sampler"),
        "strength.others": table(*_others(results, kinds), first="data"),
    }


def _samplers(results: dict, kinds: list[str]) -> tuple[dict, dict]:
    rows: dict[str, dict] = {}
    columns: dict[str, str] = {}
    for kind in kinds:
        part = results[kind]["authors"]
        shown = [i for i, steps in enumerate(part["steps"]) if steps <= 50]
        columns |= {f"{kind}: missed": f"{{{kind}}}"} | {f"{part['steps'][i]} steps": f"{{{kind}{i}}}" for i in shown}
        for sampler, found in _by_sampler(part).items():
            row = rows.setdefault(sampler, {})
            row[kind] = _missed([mark for one in found for mark in (one["marks"][i] for i in shown)])
            for i in shown:
                row[f"{kind}{i}"] = f"{_geometric([one['annealing'][i] for one in found]):.3f}"
    # Markdown tables need titles of their own.
    titles = {title: text for title, text in columns.items()}
    return rows, titles


def _others(results: dict, kinds: list[str]) -> tuple[dict, dict]:
    rows: dict[str, dict] = {}
    for kind in kinds:
        for name, part in results[kind].items():
            if name in ("authors", "seeds"):
                continue
            found = list(part["rows"].values())
            worst = max(value for one in found for value, cfg in zip(one["annealing"], one["cfg"], strict=True) if cfg < 0.1)
            marks = [mark for one in found for mark in one["marks"]]
            rows[f"{kind}, {name}"] = {"missed": _missed(marks), "floor": f"{part['floor']:.3f}", "worst": f"{worst:.3f}"}
    return rows, {"missed": "{missed}", "floor": "{floor}", "worst where CFG is within 0.1": "{worst}"}


def _by_sampler(part: dict) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for name, row in part["rows"].items():
        found.setdefault(name.split("/")[0], []).append(row)
    return found


def _missed(marks: list[str]) -> str:
    missed, burnt = len(marks) - marks.count(" "), marks.count("!")
    return f"{missed} of {len(marks)}" + (f" ({burnt} burnt)" if burnt else "")


def _geometric(values: list[float]) -> float:
    return math.exp(sum(math.log(max(value, 1e-6)) for value in values) / len(values))
