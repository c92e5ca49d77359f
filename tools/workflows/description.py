"""The words in which graphs.py describes a workflow: what is in it and in which order, not where each thing goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOTES = Path(__file__).with_name("notes")
# Their seed would be drawn anew by the interface after every run.
SEEDED = {"RandomNoise", "KSampler"}


@dataclass
class Node:
    """A node of the interface. settings: the values of its widgets and, as Links, what its inputs are connected to."""

    key: str
    type: str
    title: str | None
    tall: int  # at least, in the interface's pixels
    room: int  # what is left for it, where it grows while it runs
    models: list[dict[str, str]]  # where the interface can download what the node loads
    settings: dict[str, Any]


@dataclass
class Group:
    """A titled frame around columns of nodes, side by side; each column's nodes lie under each other, `width` wide."""

    title: str
    columns: list[list[Node]]
    width: int = 320
    colour: str = "#3f789e"


@dataclass
class Workflow:
    """Rows of groups, under each other; the name is the file's and is shown as the title.

    thumbnail: keys of the nodes whose pictures it is made of. Where none can be made here, it is drawn: "scale" (SDXL's over a
    run), "fit" (what training shows).
    """

    name: str
    rows: list[list[Group]]
    thumbnail: list[str] = field(default_factory=list)
    drawn: str = ""


def node(key: str, type: str, title: str | None = None, /, *, tall: int = 0, room: int = 0, models=(), **settings: Any) -> Node:
    if type in SEEDED:
        settings["control_after_generate"] = "fixed"
    return Node(key, type, title, tall, room, list(models), settings)


def note(key: str, title: str, file: str, tall: int) -> Node:
    """A note in the graph, with the text of notes/<file>.md."""
    return Node(key, "MarkdownNote", title, tall, 0, [], {"": (NOTES / f"{file}.md").read_text(encoding="utf-8")})
