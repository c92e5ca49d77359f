"""Saved workflows keep loading: what they hold of our nodes changes only with a word in the changelog."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import annealing_guidance_pack as pack
import pytest

ROOT = Path(pack.__file__).parent
SNAPSHOT = ROOT / "tests" / "data" / "object_info.json"
# What a saved workflow or a run depends on; newer hosts tell more, and words may change at any time.
KEPT = ("default", "min", "max", "step", "round", "multiline", "control_after_generate", "forceInput")
# Lists whose items lie on the user's disk or belong to the host.
NOT_OURS = {"scale_name", "profile_name", "sampler_name"}


def object_info() -> dict[str, Any]:
    """Our part of the server's /object_info, less words and what only some hosts tell."""
    nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    return {node.GET_SCHEMA().node_id: public_face(node.GET_NODE_INFO_V1()) for node in nodes}


def public_face(info: dict[str, Any]) -> dict[str, Any]:
    return {
        "inputs": {
            group: {name: public_input(name, *spec) for name, spec in inputs.items()}
            for group, inputs in info["input"].items()
            if group != "hidden"
        },
        "outputs": [list(output) for output in zip(info["output"], info["output_name"], info["output_is_list"], strict=True)],
        "output_node": info["output_node"],
    }


def public_input(name: str, kind: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
    options = options or {}
    kept = {key: options[key] for key in KEPT if key in options}
    if kind == "COMBO" and name not in NOT_OURS:
        kept["options"] = list(options["options"])
    return {"type": kind, **kept}


def changed_nodes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Nodes that came, went or changed, the order of inputs included: saved widget values are told apart by it."""
    return [node for node in sorted(old.keys() | new.keys()) if json.dumps(old.get(node)) != json.dumps(new.get(node))]


def newest_entries(changelog: str) -> str:
    """The changelog's first section: [Unreleased], or the newest version."""
    return re.split(r"^## ", changelog, flags=re.MULTILINE)[1]


def test_what_saved_workflows_hold_changes_only_with_a_word_in_the_changelog(request):
    current = object_info()
    changed = changed_nodes(json.loads(SNAPSHOT.read_text(encoding="utf-8")), current)
    entries = newest_entries((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    unsaid = [node for node in changed if f"`{node}`" not in entries]
    if changed and not unsaid and request.config.getoption("--write-snapshot"):
        SNAPSHOT.write_text(json.dumps(current, indent=1) + "\n", encoding="utf-8")
        return
    assert not changed, (
        f"{', '.join(changed)} changed for those who have saved workflows. If none of theirs stops loading by it, say it in the "
        f"first section of CHANGELOG.md with the node's id (not said yet: {', '.join(unsaid) or 'none'}), then run "
        "python tools/dev.py test tests/nodes/test_saved_workflows.py --write-snapshot"
    )


def test_every_node_is_named_in_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [node for node in object_info() if f"`{node}`" not in changelog] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node["inputs"]["required"].pop("guidance_lambda"),
        lambda node: node["inputs"]["required"]["guidance_lambda"].update(default=0.5),
        lambda node: node["inputs"]["required"]["renoise"]["options"].append("new"),
        lambda node: node["inputs"]["required"].update(model=node["inputs"]["required"].pop("model")),
        lambda node: node["outputs"].reverse(),
        lambda node: node["inputs"]["optional"]["scale_model"].update(type="MODEL"),
    ],
    ids=["an input gone", "another default", "another choice", "another order", "outputs swapped", "another type"],
)
def test_a_change_is_seen(change):
    old, new = (json.loads(json.dumps(object_info())) for _ in range(2))
    change(new["AnnealingGuider"])
    assert changed_nodes(old, new) == ["AnnealingGuider"]


def test_words_and_what_newer_hosts_tell_are_no_change():
    spec = {"default": 1, "tooltip": "Other words.", "advanced": True, "socketless": None}
    assert public_input("steps", "INT", spec) == public_input("steps", "INT", {"default": 1})
