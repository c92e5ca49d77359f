"""docs/BENCHMARKS.md and its figure, from the results of the benchmarks.

    python tools/dev.py bench page [FOLDER]

The text is benchmarks/page.md, with a word in braces wherever a table belongs.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import geometric_mean

from common import RESULTS, ROOT, confidence, import_pack
from common.fronts import draw_fronts
from common.regret import RIVALS, Regret, best_settings, draw_regrets, regrets

TEMPLATE = ROOT / "benchmarks" / "page.md"
PAGE = ROOT / "docs" / "BENCHMARKS.md"
NO_REGRET = "no guidance", "CFG++"  # CFG++'s numbers mean another strength at each step count: it has no one setting
DEFAULT = "annealing", "0.4"
MISSING = "Not measured yet: `python tools/dev.py bench {name}`."


def table(titles: Iterable[str], rows: dict[str, list[str]], first: str = "") -> str:
    """A Markdown table: the title of each column, each row's name and cells."""
    heads = list(titles)
    lines = [f"| {' | '.join(cells)} |" for cells in ([first, *heads], *([name, *row] for name, row in rows.items()))]
    return "\n".join([lines[0], f"|---|{'---:|' * len(heads)}", *lines[1:]])


def figures(rows: dict[str, dict], columns: dict[str, str], first: str = "") -> str:
    """The same of rows of figures; columns: "title": "a format over the row's keys"."""
    return table(columns, {name: [form.format_map(row) for form in columns.values()] for name, row in rows.items()}, first)


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
    methods = dict.fromkeys(method for _, _, cell in found for method in cell["fronts"] if is_ablation(method) == ablations)
    fronts = {method: [cell["fronts"].get(method) for _, _, cell in found] for method in methods}
    order = sorted(fronts, key=lambda method: -sum(front["hypervolume"] for front in fronts[method] if front))
    titles = (f"{variant}, {steps} steps" for variant, steps, _ in found)
    return table(titles, {method: [_front(front) for front in fronts[method]] for method in order})


def against(results: dict) -> str:
    """How much larger annealing's front is than each rival's, in each cell."""
    found = cells(results)
    rows = {rival: [_gain(cell["fronts"].get("annealing", {}), rival) for _, _, cell in found] for rival in RIVALS}
    return table((f"{variant}, {steps} steps" for variant, steps, _ in found), rows, "larger than the front of")


def _gain(front: dict, rival: str) -> str:
    if f"over_{rival}" not in front:
        return ""
    gain, half = front[f"over_{rival}"], front[f"over_{rival}_interval"]
    return _marked(f"{gain:+.3f} ± {half:.3f}", gain, half)


def _front(front: dict | None) -> str:
    if front is None:
        return ""
    gain, half = front.get("over_CFG", 0.0), front.get("over_CFG_interval", 0.0)
    return _marked("{hypervolume:.3f} ± {interval:.3f}".format_map(front), gain, half)


def _marked(text: str, gain: float, half: float) -> str:
    """Bold where the gain is larger than its interval, in italics where the loss is."""
    mark = "" if abs(gain) <= half else "**" if gain > 0 else "*"
    return f"{mark}{text}{mark}"


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
        f"<details><summary>{variant}, {steps} steps</summary>\n\n{figures(cell['points'], columns)}\n\n</details>"
        for variant, steps, cell in cells(results)
    )


def chosen_regrets(results: dict) -> dict[str, Regret]:
    """Each method's best single setting, and annealing's default."""
    found = regrets(cells(results))
    best = best_settings(found, lambda method: method not in NO_REGRET and not is_ablation(method))
    default = [r for r in found if (r.method, r.setting) == DEFAULT and r not in best]
    return {f"{r.method} {r.setting}".strip(): r for r in sorted([*best, *default], key=lambda r: r.worst[0])}


def regret_table(results: dict) -> str:
    rows = {
        name: [
            f"**{regret.worst[0]:+.2f}** ± {regret.worst[1]:.2f}",
            f"{regret.mean:+.2f}",
            *(f"{value:+.2f} ± {half:.2f}" for value, half in regret.cells.values()),
        ]
        for name, regret in chosen_regrets(results).items()
    }
    return table(["worst", "mean", *(f"{variant}, {steps}" for variant, steps, _ in cells(results))], rows, "one setting")


def quality(results: dict, page: Path) -> dict[str, str]:
    draw_fronts(cells(results), page.with_name("fronts.png"))
    draw_regrets(chosen_regrets(results), page.with_name("regret.png"))
    return {
        "quality.about": f"{about(results)} {results['pictures']} pictures a point.",
        "quality.perfect": "right in {right:.1%}, at FD {fd:.3f}".format_map(results["perfect"]),
        "quality.against": against(results),
        "quality.figure": "![Prompts drawn right against Frechet distance, method by method](fronts.png)",
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
        rows = {}
        for name, found in samplers.items():
            by_steps = zip(*(row["annealing"] for row in found), strict=True)
            rows[name] = [_missed(found), *(f"{geometric_mean(max(x, 1e-6) for x in at):.3f}" for at in by_steps)]
        words[f"strength.{path}"] = table(["missed", *(f"{n} steps" for n in authors["steps"])], rows, "sampler")
        words[f"strength.{path}_floor"] = f"{authors['floor']:.3f}"
        for name, part in results[path].items():
            if name != "authors":
                found = list(part["rows"].values())
                pairs = [pair for row in found for pair in zip(row["annealing"], row["cfg"], strict=True)]
                worst = max(ours for ours, cfg in pairs if cfg < 0.1)
                others[f"{path}, {name}"] = [_missed(found), f"{part['floor']:.3f}", f"{worst:.3f}"]
    return words | {"strength.others": table(["missed", "floor", "worst where CFG's is below 0.1"], others, "other data")}


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
                tables.append(figures(rows, columns, part))
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
    parser.add_argument("folder", type=Path, nargs="?", help="of other results: their page goes there, and is compared with ours")
    folder = parser.parse_args().folder
    import_pack(ROOT)
    page = folder / PAGE.name if folder else PAGE
    page.write_text(page_text(folder or RESULTS, page), encoding="utf-8")
    print(page)
    if folder:
        print(agreement(*(json.loads((results / "quality.json").read_text()) for results in (folder, RESULTS))))


def agreement(found: dict, published: dict) -> str:
    """How many of the points' shares of prompts right agree with the published ones within both intervals."""
    compared, apart = 0, []
    for variant, steps, cell in cells(found):
        others = published["variants"].get(variant, {}).get(steps, {"points": {}})["points"]
        for name in (name for name in cell["points"] if name in others):
            here, there = cell["points"][name]["right"], others[name]["right"]
            compared += 1
            if abs(here - there) > math.hypot(confidence(here, found["pictures"]), confidence(there, published["pictures"])):
                apart.append(f"{variant}, {steps} steps, {name}: {here:.1%} here, {there:.1%} there")
    agree = f"{compared - len(apart)} of {compared} points agree with docs/BENCHMARKS.md within both 95% intervals."
    return "\n".join([f"Prompts drawn right: {agree}", *apart])


if __name__ == "__main__":
    main()
