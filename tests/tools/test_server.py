"""The pack in a booted ComfyUI, and the demo's client against it."""

import asyncio
import io
import json
import urllib.request

import annealing_guidance_pack as pack
import demo
import pytest
from client import WorkflowError, run_workflow
from PIL import Image

pytestmark = pytest.mark.server

CORE_WORKFLOW = {
    "image": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 2, "color": 0xFF0000}},
    "save": {"class_type": "SaveImage", "inputs": {"images": ["image", 0], "filename_prefix": "test"}},
}


def test_the_server_offers_every_node_of_the_pack(server):
    extension = asyncio.run(pack.comfy_entrypoint())
    expected = {node.GET_SCHEMA().node_id for node in asyncio.run(extension.get_node_list())}
    with urllib.request.urlopen(f"{server.address}/object_info", timeout=30) as response:
        offered = json.load(response)
    assert expected and expected <= offered.keys(), server.log.read_text()[-2000:]
    undescribed = [
        f"{node}.{name}"
        for node in expected
        for group, inputs in offered[node]["input"].items()
        if group != "hidden"
        for name, (_kind, *options) in inputs.items()
        if not options or not options[0].get("tooltip")
    ]
    assert not undescribed, "inputs without a tooltip"


def test_a_workflow_of_core_nodes_gives_its_pictures(server):
    pictures = run_workflow(server.address, CORE_WORKFLOW)
    assert list(pictures) == ["save"]
    assert [picture[:4] for picture in pictures["save"]] == [b"\x89PNG"] * 2


def test_a_refused_workflow_names_the_node_and_the_reason(server):
    no_width = {"class_type": "EmptyImage", "inputs": {"width": 0, "height": 8, "batch_size": 1, "color": 0}}
    with pytest.raises(WorkflowError, match=r"EmptyImage \(image\).*width"):
        run_workflow(server.address, {**CORE_WORKFLOW, "image": no_width})


def test_an_unknown_node_is_refused_by_name(server):
    with pytest.raises(WorkflowError, match="NoSuchNode"):
        run_workflow(server.address, {"save": {"class_type": "NoSuchNode", "inputs": {}}})


def test_a_node_that_fails_while_running_is_named(server):
    inputs = {"string": "text", "regex_pattern": "(", "replace": ""}
    broken = {
        "replace": {"class_type": "RegexReplace", "inputs": inputs},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["replace", 0]}},
    }
    with pytest.raises(WorkflowError, match=r"RegexReplace \(replace\): .*unterminated"):
        run_workflow(server.address, broken)


def test_a_server_that_is_not_there_is_reported():
    with pytest.raises(WorkflowError, match="was lost"):
        run_workflow("http://127.0.0.1:9", CORE_WORKFLOW)


@pytest.mark.parametrize("variant", ["epsilon", "flow"])
def test_the_demo_workflow_gives_five_different_pictures(server, variant):
    template = json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))
    template["sigmas"]["inputs"]["steps"] = 4
    seen = []
    workflow = demo.workflow_for(template, variant, demo.PROMPTS[0], seed=1)
    saved = run_workflow(server.address, workflow, lambda node, done, total: seen.append((node, done, total)))
    assert saved.keys() == demo.saving_nodes(template).keys()
    pictures = [Image.open(io.BytesIO(files[0])) for files in saved.values()]
    assert {picture.size for picture in pictures} == {(128, 128)}
    assert len({picture.tobytes() for picture in pictures}) == 5
    assert {("cfg_5_sampling", 1, 4), ("cfg_5_sampling", 4, 4)} <= set(seen)


def test_an_unknown_word_in_a_demo_prompt_is_named(server):
    template = json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))
    with pytest.raises(WorkflowError, match="elephant"):
        run_workflow(server.address, demo.workflow_for(template, "epsilon", "a red elephant", seed=1))
