"""Writes locales/en/nodeDefs.json from the nodes' schemas: `tools/dev.py locales` calls this in ComfyUI's own Python.

The other languages are translated by hand. What changed in English is printed, as the same change is due in each of them.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

from devkit import ROOT
from devkit.in_process import import_both


def main() -> None:
    pack = importlib.import_module(import_both())
    nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    path = locale_file("en")
    before = texts_by_key(json.loads(path.read_text("utf-8"))) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(english(nodes), indent=2, ensure_ascii=False) + "\n", "utf-8", newline="\n")
    after = texts_by_key(english(nodes))
    changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    print("\n".join(f"Changed, translate it in every language: {key}" for key in sorted(changed)) or "Nothing has changed.")


def locale_file(language: str) -> Path:
    return ROOT / "locales" / language / "nodeDefs.json"


def english(nodes: list) -> dict[str, dict]:
    """The nodes' names, descriptions and tooltips, laid out as ComfyUI's frontend looks them up."""
    return {schema.node_id: _texts_of(schema) for schema in (node.GET_SCHEMA() for node in nodes)}


def _texts_of(schema) -> dict:
    # An output without a name of its own is called after its type, which the frontend translates itself.
    outputs = {
        str(i): {**({"name": output.display_name} if output.display_name else {}), "tooltip": output.tooltip}
        for i, output in enumerate(schema.outputs)
    }
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {entry.id: {"name": entry.display_name or entry.id, "tooltip": entry.tooltip} for entry in schema.inputs},
        **({"outputs": outputs} if outputs else {}),
    }


def texts_by_key(tree: dict | str, *path: str) -> dict[str, str]:
    """The texts of a locale file by their place: {"AnnealingFit.inputs.seed.tooltip": ...}."""
    return dict(_texts(tree, path))


def _texts(tree: dict | str, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if not isinstance(tree, dict):
        yield ".".join(path), tree
        return
    for key, value in tree.items():
        yield from _texts(value, (*path, key))


if __name__ == "__main__":
    main()
