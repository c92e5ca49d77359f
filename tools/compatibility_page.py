"""docs/COMPATIBILITY.md: written from what the tests found, read back to compare. Text only, without ComfyUI."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

OLDEST = "0.3.75"  # rows and columns that only a newer ComfyUI has carry its version
MARKS = {"right": "✓", "warned": "⚠", "refused": "✗"}
LARGEST = "*largest deviation*"
APART = ("Not together", "Has no effect")  # what sentences about nodes beside ours begin with where not both act

HEAD = """\
# Compatibility

Every sampler of ComfyUI guides every kind of model right, but for what is named here.
"""

INTRODUCTION = """\
## Every sampler on every kind of model

Each cell is two whole runs through ComfyUI with the nodes' default settings: the Annealing Guider in SamplerCustomAdvanced, and
the model patch in KSampler. The model's best denoiser is known in closed form, and the final latents are compared with the same
run computed in 64 bits from the formulae.

- ✓ right: the same within {tolerance}, relative. (ComfyUI's samplers compute in 32 bits. Where a sampler's own rounding is larger
  than that, the comparison rounds its steps as ComfyUI does, and nothing else.)
- ⚠ what reaches the sampler is right, but the sampler itself is wrong on this kind of model; the log says it once per run.
- ✗ refused with an error before sampling.
- ✓ / ✗ and the like: first the guider, then the patch, where they differ.
"""

NOTE = """\
Samplers that renoise with the unconditional prediction (`*_cfg_pp`, the Annealing Sampler) are handed what makes their own step
the guided one, so guidance is as strong with them as with any other. `euler_cfg_pp` and the Annealing Sampler give the picture of
`euler`; `dpmpp_2m_cfg_pp`, `res_multistep_cfg_pp` and `gradient_estimation_cfg_pp` that of the solver without `_cfg_pp`. The
learned scale changes nothing else in a solver: what it extrapolates from earlier steps is the unguided prediction alone.
"""


@dataclass
class Results:
    """What one ComfyUI's tests found. The page holds the results of several; rows and columns are in the host's order."""

    kinds: dict[str, str]  # each kind's name and its models
    cells: dict[tuple[str, str], str]  # (sampler, kind): mark
    sentences: dict[str, str]  # sampler that is warned of, or kind that is refused: what the user is told
    deviations: dict[str, str] = field(default_factory=dict)  # kind: largest, in words
    since: dict[str, str] = field(default_factory=dict)  # sampler or kind that the oldest ComfyUI lacks: version

    @property
    def samplers(self) -> list[str]:
        return list(dict.fromkeys(sampler for sampler, _ in self.cells))


def cell(verdicts: list[str]) -> str:
    """verdicts: of the guider and of the patch."""
    return " / ".join(dict.fromkeys(MARKS[verdict] for verdict in verdicts))


def merged(page: Results, found: Results) -> Results:
    """The page's results with all that `found` knows replaced by it. What only another ComfyUI has stays."""
    kinds = _in_order(list(page.kinds), list(found.kinds))
    samplers = _in_order(page.samplers, found.samplers)
    cells = {**page.cells, **found.cells}
    known = set(found.kinds) | set(found.samplers)
    return Results(
        {kind: {**page.kinds, **found.kinds}[kind] for kind in kinds},
        {(sampler, kind): cells.get((sampler, kind), "") for sampler in samplers for kind in kinds},
        {name: text for name, text in page.sentences.items() if name not in known} | found.sentences,
        {kind: {**page.deviations, **found.deviations}.get(kind, "") for kind in kinds},
        {**found.since, **page.since},
    )


def _in_order(first: list[str], second: list[str]) -> list[str]:
    """All names of both, those of the longer list in its order and the others after the name that precedes them."""
    names, others = (first, second) if len(first) > len(second) else (second, first)
    names = list(names)
    for i, name in enumerate(others):
        if name not in names:
            names.insert(names.index(others[i - 1]) + 1 if i else 0, name)
    return names


def differences(page: Results, found: Results) -> list[str]:
    """Where the page is not what the tests of this ComfyUI found, one line each. The deviations are not compared."""
    lines = []
    for name in page.samplers:
        if name not in found.samplers and name not in page.since:
            lines.append(f"{name} is on the page, but this ComfyUI has no such sampler")
    for kind in page.kinds:
        if kind not in found.kinds and kind not in page.since:
            lines.append(f"{kind} is on the page, but is not a kind of model of this ComfyUI")
    for kind, models in found.kinds.items():
        if page.kinds.get(kind) != models:
            lines.append(f"{kind}: the page says {page.kinds.get(kind)!r}, the tests {models!r}")
    for key, mark in found.cells.items():
        if page.cells.get(key) != mark:
            lines.append(f"{key[0]} on {key[1]}: the page says {page.cells.get(key)!r}, the tests {mark!r}")
    for name in [*found.samplers, *found.kinds]:
        if page.sentences.get(name) != found.sentences.get(name):
            lines.append(f"{name}: the page says {page.sentences.get(name)!r}, the tests {found.sentences.get(name)!r}")
    return lines


def render(results: Results, tolerance: str, beside: list[tuple[str, str]]) -> str:
    def named(name: str, shown: str) -> str:
        return f"{shown} ({results.since[name]})" if name in results.since else shown

    kinds, samplers = list(results.kinds), results.samplers
    lines = [HEAD, "## Exceptions", "", "What the user is told:", ""]
    lines += [f"- `{name}`: {sentence}" for name, sentence in results.sentences.items()]
    lines += ["", NOTE]
    if beside:
        lines += [
            "## Beside other nodes",
            "",
            "Run together in ComfyUI by the tests in `tests/beside/`. First what does not go together:",
            "",
        ]
        apart = sorted(beside, key=lambda pair: not pair[1].startswith(APART))
        lines += [*_table(["node", "what happens together"], [list(pair) for pair in apart]), ""]
    lines += [INTRODUCTION.format(tolerance=tolerance)]
    lines += _table(["kind", "models"], [[named(kind, kind), models] for kind, models in results.kinds.items()])
    if results.since:
        lines += ["", f"A version in brackets: ComfyUI {OLDEST} lacks it; tested on that version."]
    rows = [[named(name, f"`{name}`"), *(results.cells[name, kind] for kind in kinds)] for name in samplers]
    rows.append([LARGEST, *(results.deviations.get(kind, "") for kind in kinds)])
    lines += ["", f"<details><summary>The table: {len(samplers)} samplers, {len(kinds)} kinds of models</summary>", ""]
    lines += [*_table(["sampler", *(named(kind, kind) for kind in kinds)], rows), "", "</details>", ""]
    lines += [
        "Made by `python tools/dev.py compatibility` in a clone of the repository; the tests fail where this page is not what"
    ]
    lines += ["they find.", ""]
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]


def parse(text: str) -> Results:
    """The results on a page: render's inverse."""
    since: dict[str, str] = {}

    def name_of(shown: str) -> str:
        name, _, version = shown.partition(" (")
        name = name.strip("`")
        if version:
            since[name] = version.rstrip(")")
        return name

    kinds, cells, sentences, deviations = {}, {}, {}, {}
    head: list[str] = []
    for line in text.splitlines():
        if line.startswith("- `"):
            name, _, sentence = line.removeprefix("- `").partition("`: ")
            sentences[name] = sentence
        if not line.startswith("| "):
            head = []
            continue
        row = [column.strip() for column in line.strip("|").split("|")]
        if not head:
            head = row
        elif row[0] == "---":
            continue
        elif head[0] == "kind":
            kinds[name_of(row[0])] = row[1]
        elif head[0] == "sampler" and row[0] == LARGEST:
            deviations = {name_of(kind): text for kind, text in zip(head[1:], row[1:], strict=True)}
        elif head[0] == "sampler":
            cells |= {(name_of(row[0]), name_of(kind)): mark for kind, mark in zip(head[1:], row[1:], strict=True)}
    return Results(kinds, cells, sentences, deviations, since)


def beside_marks(folder: Path) -> list[tuple[str, str]]:
    """The arguments of every @pytest.mark.beside("node", "sentence") in the folder's tests, each once, by node."""
    found = set()
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.beside":
                found.add(tuple(ast.literal_eval(argument) for argument in node.args))
    return sorted(found, key=lambda pair: (pair[0].lower(), pair[1]))
