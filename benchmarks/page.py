"""docs/BENCHMARKS.md and its figure, from the results of the benchmarks.

    python tools/dev.py bench page [--results FOLDER] [--output FILE] [--beside FOLDER]

The text is benchmarks/page.md, with a word in braces wherever a table belongs.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from statistics import geometric_mean

from common import RESULTS, ROOT, confidence, import_pack
from common.regret import Regret

TEMPLATE = ROOT / "benchmarks" / "page.md"
PAGE = ROOT / "docs" / "BENCHMARKS.md"
FEW_STEPS = "10", "20"  # where all methods were drawn
NO_REGRET = "no guidance", "CFG++"  # CFG++'s numbers mean another strength at each step count: it has no one setting
DEFAULT = "annealing", "0.4"
NONE = {"hypervolume": 0.0}  # of a method that was not drawn
MISSING = "Not measured yet: `python tools/dev.py bench {name}`."


def table(rows: dict[str, dict], columns: dict[str, str], first: str = "") -> str:
    """A Markdown table: one line per row, the columns "title": "a format over the row's keys"."""
    lines = [f"| {first} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(text.format_map(row) for text in columns.values())} |")
    return "\n".join(lines)


def about(results: dict) -> str:
    machine = results["machine"]
    return (
        f"Measured on {machine['device']}, {machine['system']}, Python {machine['python']}, torch {machine['torch']}, "
        f"ComfyUI {machine['comfyui']}."
    )


def cells(results: dict) -> list[tuple[str, str, dict]]:
    """(variant, steps, {"points", "fronts"}) of the quality results, fewest steps first."""
    variants = results["variants"]
    return [(v, steps, variants[v][steps]) for v in variants for steps in sorted(variants[v], key=int)]


def is_ablation(method: str) -> bool:
    return method.startswith(("annealing, ", "constant, ")) and method != "annealing, dpmpp_2m"


def hypervolumes(results: dict, ablations: bool) -> str:
    """Method by (variant, steps): the share dominated, marked where it differs significantly from CFG's."""
    found = cells(results)
    methods = dict.fromkeys(method for _, _, cell in found for method in cell["fronts"])
    rows: dict[str, dict] = {}
    for method in methods:
        if is_ablation(method) != ablations:
            continue
        rows[method] = {}
        for variant, steps, cell in found:
            rows[method][f"{variant}{steps}"] = _marked(cell["fronts"].get(method))
    order = sorted(rows, key=lambda method: -sum(cell["fronts"].get(method, NONE)["hypervolume"] for _, _, cell in found))
    titles = {f"{variant}, {steps} steps": f"{{{variant}{steps}}}" for variant, steps, _ in found}
    return table({method: rows[method] for method in order}, titles)


def _marked(front: dict | None) -> str:
    if front is None:
        return ""
    if "interval" not in front:
        return f"{front['hypervolume']:.3f}"
    text, over = f"{front['hypervolume']:.3f} ± {front['interval']:.3f}", front.get("over_CFG", 0.0)
    if abs(over) <= front.get("over_CFG_interval", 0.0):
        return text
    return f"**{text}**" if over > 0 else f"*{text}*"


def points(results: dict) -> str:
    columns = {
        "right": "{right:.1%} ± {right_interval:.1%}",
        "colours": "{colours:.1%}",
        "shapes": "{shapes:.1%}",
        "relation": "{relation:.1%}",
        "FD": "{fd:.3f} ± {fd_interval:.3f}",
        "precision": "{precision:.3f}",
        "recall": "{recall:.3f}",
        "density": "{density:.3f}",
        "coverage": "{coverage:.3f}",
        "colour error": "{colour_error:.4f}",
        "saturation": "{saturation:.3f}",
    }
    return "\n\n".join(
        f"<details><summary>{variant}, {steps} steps</summary>\n\n{table(cell['points'], columns)}\n\n</details>"
        for variant, steps, cell in cells(results)
    )


def regret_rows(results: dict) -> tuple[dict[str, Regret], dict[str, Regret]]:
    """Each method's best single setting at 10 and 20 steps, and annealing's default; and all settings drawn in all cells."""
    from common.regret import best_settings, regrets

    found = cells(results)
    few = [cell for cell in found if cell[1] in FEW_STEPS]
    all_few = regrets(few)
    best = best_settings(all_few, lambda method: method not in NO_REGRET and not is_ablation(method))
    default = [r for r in all_few if (r.method, r.setting) == DEFAULT and r not in best]
    rows = {f"{r.method} {r.setting}".strip(): r for r in sorted([*best, *default], key=lambda r: r.worst[0])}
    everywhere = {f"{r.method} {r.setting}".strip(): r for r in regrets(found)}
    return rows, everywhere


def regret_table(results: dict) -> str:
    few, everywhere = regret_rows(results)
    rows = {}
    for name, regret in few.items():
        at = {f"{variant}{steps}": f"{value:+.2f}{_half(half)}" for (variant, steps), (value, half) in regret.cells.items()}
        also = everywhere.get(name)
        rows[name] = {
            **at,
            "worst": f"**{regret.worst[0]:+.2f}**{_half(regret.worst[1])}",
            "mean": f"{regret.mean:+.2f}",
            "all": f"{also.worst[0]:+.2f}, {also.mean:+.2f}" if also else "",
        }
    titles = {f"{variant}, {steps}": f"{{{variant}{steps}}}" for variant, steps, _ in cells(results) if steps in FEW_STEPS}
    return table(rows, {"worst": "{worst}", "mean": "{mean}", **titles, "worst, mean with 50 steps": "{all}"}, "one setting")


def _half(half: float | None) -> str:
    return "" if half is None else f" ± {half:.2f}"


def quality(results: dict, page: Path) -> dict[str, str]:
    from common.fronts import draw_fronts
    from common.regret import draw_regrets

    figure = page.with_name("fronts.png")
    draw_fronts(cells(results), figure)
    if few := regret_rows(results)[0]:
        draw_regrets(few, page.with_name("regret.png"))
    return {
        "quality.about": f"{about(results)} {results['pictures']} pictures a point.",
        "quality.figure": f"![Prompts drawn right against Frechet distance, method by method]({figure.name})",
        "quality.regret": regret_table(results),
        "quality.regret_figure": "![Each method's best single setting: its regret in each cell](regret.png)",
        "quality.hypervolumes": hypervolumes(results, ablations=False),
        "quality.ablations": hypervolumes(results, ablations=True),
        "quality.points": points(results),
    }


def strength(results: dict, _page: Path) -> dict[str, str]:
    """For each path a table of the samplers: cells that miss the aim, and the geometric mean of the deviations by steps."""
    words, others = {"strength.about": about(results)}, {}
    for path in ("epsilon", "flow"):
        authors, samplers = results[path]["authors"], {}
        for name, row in authors["rows"].items():
            samplers.setdefault(name.split("/")[0], []).append(row)
        columns = {f"{steps} steps": f"{{at{i}:.3f}}" for i, steps in enumerate(authors["steps"])}
        rows = {}
        for name, found in samplers.items():
            steps = zip(*(row["annealing"] for row in found), strict=True)
            rows[name] = {f"at{i}": geometric_mean(max(x, 1e-6) for x in at) for i, at in enumerate(steps)}
            rows[name]["missed"] = _missed(found)
        words[f"strength.{path}"] = table(rows, {"missed": "{missed}"} | columns, "sampler")
        words[f"strength.{path}_floor"] = f"{authors['floor']:.3f}"
        for name, part in results[path].items():
            if name != "authors":
                found = list(part["rows"].values())
                pairs = [pair for row in found for pair in zip(row["annealing"], row["cfg"], strict=True)]
                worst = max(ours for ours, cfg in pairs if cfg < 0.1)
                others[f"{path}, {name}"] = {"missed": _missed(found), "floor": part["floor"], "worst": worst}
    columns = {"missed": "{missed}", "floor": "{floor:.3f}", "worst where CFG's is below 0.1": "{worst:.3f}"}
    return words | {"strength.others": table(others, columns, "other data")}


def _missed(rows: list[dict]) -> str:
    marks = [mark for row in rows for mark in row["marks"]]
    burnt = marks.count("!")
    return f"{len(marks) - marks.count(' ')} of {len(marks)}" + (f", {burnt} burnt" if burnt else "")


def cost(results: dict, _page: Path) -> dict[str, str]:
    """A table for each part; a row belongs to the first of these shapes whose figures it has."""
    shapes = {
        "added_ms": {
            "added per step": "{added_ms:.2f} ms ({added_ms_low:.2f} to {added_ms_high:.2f})",
            "CFG's own work": "{cfg_ms:.2f} ms",
            "model evaluations": "{predictions:.2f} of CFG's",
            "added operations": "{added_operations}",
            "added peak memory": "{added_peak_bytes} of {latent_bytes} bytes",
            "kept per step": "{trace_bytes_per_step} bytes",
        },
        "their_ms": {
            "time": "{ratio:.2f} of their module's ({ratio_low:.2f} to {ratio_high:.2f})",
            "theirs": "{their_ms:.2f} ms",
        },
        "cfg_step_ms": {
            "speed": "{ratio:.3f} of CFG's ({ratio_low:.3f} to {ratio_high:.3f})",
            "processor time": "{cpu_ratio:.3f} ({cpu_ratio_low:.3f} to {cpu_ratio_high:.3f})",
            "a step of CFG": "{cfg_step_ms:.0f} ms",
        },
        "load_ms": {
            "added": "{load_ms:.0f} ms ({load_ms_low:.0f} to {load_ms_high:.0f})",
            "first start": "{first_load_ms:.0f} ms",
        },
    }
    tables = []
    for part in ("step", "pictures", "import"):
        for key, columns in shapes.items():
            if rows := {name: row for name, row in results[part].items() if key in row}:
                tables.append(table(rows, columns, part))
    return {"cost.about": about(results), "cost.table": "\n\n".join(tables)}


SECTIONS = {"quality": quality, "strength": strength, "cost": cost}


def page_text(results_folder: Path, page: Path) -> str:
    """The page; draws its figures beside it. A section whose results are missing says so."""
    text, words = TEMPLATE.read_text(encoding="utf-8"), {}
    for name, section in SECTIONS.items():
        file = results_folder / f"{name}.json"
        if file.exists():
            words |= section(json.loads(file.read_text(encoding="utf-8")), page)
        else:
            words[f"{name}.about"] = MISSING.format(name=name)
    text = re.sub(r"\{([a-z_.]+)\}", lambda match: words.get(match[1], ""), text)
    return re.sub(r"\n{3,}", "\n\n", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files (benchmarks/results)")
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--beside", type=Path, help="folder of other results to compare with")
    options = parser.parse_args()
    import_pack(ROOT)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page_text(options.results, options.output), encoding="utf-8")
    print(options.output)
    if options.beside:
        print(agreement(*(json.loads((folder / "quality.json").read_text()) for folder in (options.results, options.beside))))


def agreement(found: dict, published: dict) -> str:
    """How many of the points' shares of prompts right agree with the published ones within both intervals."""
    within, lines = [], []
    for variant, steps, cell in cells(found):
        others = published["variants"].get(variant, {}).get(steps, {"points": {}})["points"]
        for name, row in cell["points"].items():
            if not (other := others.get(name)):
                continue
            n, more = found["pictures"], published["pictures"]
            allowed = math.hypot(confidence(row["right"], n), confidence(other["right"], more))
            within.append(abs(row["right"] - other["right"]) <= allowed)
            if not within[-1]:
                lines.append(f"{variant}, {steps} steps, {name}: {row['right']:.1%} here, {other['right']:.1%} there")
    summary = (
        f"Prompts drawn right: {sum(within)} of {len(within)} points agree with docs/BENCHMARKS.md within both 95% intervals."
    )
    return "\n".join([summary, *lines])


if __name__ == "__main__":
    main()
