"""The bundled templates as the interface saves them, and as ComfyUI's API takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def numbered(number: str) -> str:
    """The template's name by its number, which stays when its title is reworded: "02"."""
    (name,) = (name for name in NAMES if name.startswith(f"{number} "))
    return name


SDXL = (numbered("06"), numbered("07"))
NEEDS_A_CHECKPOINT = (*SDXL, *map(numbered, ("08", "09", "12")))
NEEDS_NOTHING = tuple(name for name in NAMES if name not in NEEDS_A_CHECKPOINT)
NOTES = ("MarkdownNote", "Note")  # only the interface knows them

Template = dict[str, Any]


def template(name: str) -> Template:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def real_nodes(saved: Template) -> list[dict[str, Any]]:
    """Those that the server runs."""
    return [node for node in saved["nodes"] if node["type"] not in NOTES]


def settings(node: dict[str, Any]) -> dict[str, Any]:
    """The values of a node's widgets by their names. A seed is followed by what the interface does to it after a run."""
    values = iter(node.get("widgets_values", []))
    named = {}
    for slot in node["inputs"]:
        if "widget" in slot:
            named[slot["name"]] = next(values)
            if slot["name"] in ("seed", "noise_seed") and node["type"] in ("RandomNoise", "KSampler"):
                named["control_after_generate"] = next(values)
    assert not list(values), f"{node['type']} has more values than widgets"
    return named


def api_format(saved: Template) -> dict[str, dict[str, Any]]:
    """The workflow as the interface queues it."""
    sources = {number: (str(node), slot) for number, node, slot, *_ in saved["links"]}
    return {
        str(node["id"]): {
            "class_type": node["type"],
            "inputs": {
                **{name: value for name, value in settings(node).items() if name != "control_after_generate"},
                **{slot["name"]: list(sources[slot["link"]]) for slot in node["inputs"] if slot.get("link") is not None},
            },
        }
        for node in real_nodes(saved)
    }
