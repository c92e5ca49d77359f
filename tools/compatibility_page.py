"""docs/COMPATIBILITY.md: its tables and exceptions are written from what the tests found, and read back to compare.

All its other sentences are written in the page itself. Text only, without ComfyUI.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

OLDEST = "0.3.75"  # rows and columns that only a newer ComfyUI has carry its version
MARKS = {"right": "✓", "warned": "⚠", "refused": "✗"}
LARGEST = "*largest deviation*"
APART = ("Not together", "Has no effect")  # what sentences about nodes beside ours begin with where not both act


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

    @property
    def statements(self) -> dict[tuple[str, str], str]:
        """All that is compared: not the deviations."""
        models = {("models", kind): text for kind, text in self.kinds.items()}
        return {**models, **self.cells, **{("what is said", name): text for name, text in self.sentences.items()}}


def cell(verdicts: list[str]) -> str:
    """verdicts: of the guider and of the patch."""
    return " / ".join(dict.fromkeys(MARKS[verdict] for verdict in verdicts))


def merged(page: Results, found: Results) -> Results:
    """The page's results with all that `found` knows replaced by it. What only another ComfyUI has stays."""
    kinds = _in_order(list(page.kinds), list(found.kinds))
    samplers = _in_order(page.samplers, found.samplers)
    cells = {**page.cells, **found.cells}
    known = {*found.kinds, *found.samplers}
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
    """Where the page is not what the tests of this ComfyUI found, one line each."""
    newer = page.since.keys() - {*found.samplers, *found.kinds}
    says = {about: text for about, text in page.statements.items() if not newer & {*about}}
    finds = found.statements
    return [
        f"{', '.join(about)}: the page says {says.get(about)!r}, the tests {finds.get(about)!r}"
        for about in {**says, **finds}
        if says.get(about) != finds.get(about)
    ]


def rewritten(page: str, results: Results, beside: list[tuple[str, str]]) -> str:
    """The page with these results and sentences about nodes beside ours; its other paragraphs stay."""

    def named(name: str, shown: str) -> str:
        return f"{shown} ({results.since[name]})" if name in results.since else shown

    kinds, samplers = list(results.kinds), results.samplers
    rows = [[named(name, f"`{name}`"), *(results.cells[name, kind] for kind in kinds)] for name in samplers]
    deviations = [LARGEST, *(results.deviations.get(kind, "") for kind in kinds)]
    apart_first = sorted(beside, key=lambda pair: not pair[1].startswith(APART))
    summary = f"<details><summary>The table: {len(samplers)} samplers, {len(kinds)} kinds of models</summary>"
    written = {  # by what the paragraph begins with
        "- `": "\n".join(f"- `{name}`: {sentence}" for name, sentence in results.sentences.items()),
        "| node |": _table(["node", "what happens together"], *map(list, apart_first)),
        "| kind |": _table(["kind", "models"], *([named(kind, kind), models] for kind, models in results.kinds.items())),
        "<details>": summary,
        "| sampler |": _table(["sampler", *(named(kind, kind) for kind in kinds)], *rows, deviations),
    }
    paragraphs = page.split("\n\n")
    return "\n\n".join(next((written[start] for start in written if text.startswith(start)), text) for text in paragraphs)


def _table(head: list[str], *rows: list[str]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def parse(page: str) -> Results:
    """The results on a page: what rewritten() wrote."""
    since: dict[str, str] = {}

    def name_of(shown: str) -> str:
        name, _, version = shown.partition(" (")
        name = name.strip("`")
        if version:
            since[name] = version.rstrip(")")
        return name

    tables = {}
    sentences = {}
    for paragraph in page.split("\n\n"):
        lines = paragraph.splitlines()
        if paragraph.startswith("- `"):
            sentences = dict(line.removeprefix("- `").split("`: ", 1) for line in lines)
        elif paragraph.startswith("| "):
            head, _, *rows = ([column.strip() for column in line.strip("|").split("|")] for line in lines)
            tables[head[0]] = (list(map(name_of, head[1:])), rows)
    kinds = {name_of(kind): models for kind, models in tables["kind"][1]}
    columns, rows = tables["sampler"]
    *rows, (_, *deviations) = rows
    cells = {(name_of(name), kind): mark for name, *marks in rows for kind, mark in zip(columns, marks, strict=True)}
    return Results(kinds, cells, sentences, dict(zip(columns, deviations, strict=True)), since)


def beside_marks(folder: Path) -> list[tuple[str, str]]:
    """The arguments of every @pytest.mark.beside("node", "sentence") in the folder's tests, each once, by node."""
    found = set()
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.beside":
                found.add(tuple(ast.literal_eval(argument) for argument in node.args))
    return sorted(found, key=lambda pair: (pair[0].lower(), pair[1]))
