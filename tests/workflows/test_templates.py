"""The templates in workflows/: saved by the interface, whole, and right for the nodes that a running ComfyUI offers."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request

import pytest
from PIL import Image
from templates import FOLDER, NAMES, NEEDS_A_CHECKPOINT, NOTES, SDXL, api_format, numbered, real_nodes, settings, template

THUMBNAIL_BYTES = 100_000
API = FOLDER / "api"
USERS_FILES = ("ckpt_name", "unet_name", "clip_name", "vae_name", "folder")  # lists of what the user has

each_template = pytest.mark.parametrize("name", NAMES)


def test_the_templates_are_the_announced_ones():
    assert NAMES == (
        "01 Hello - nothing to download",
        "02 Compare with CFG - nothing to download",
        "03 KSampler - nothing to download",
        "04 Which lambda, how strong - nothing to download",
        "05 Image to image, inpainting - nothing to download",
        "06 SDXL in 25 steps",
        "07 SDXL as in the paper",
        "08 Train once for your model - checkpoint",
        "09 Train once for your model - separate files",
        "10 Train with one node - nothing to download",
        "11 Train with three nodes - nothing to download",
        "12 Train on your own pictures",
    )
    assert {path.stem for path in FOLDER.glob("*.jpg")} == set(NAMES)


@each_template
def test_it_is_what_the_interface_saves(name):
    saved = template(name)
    assert saved["version"] == 0.4
    assert {"id", "last_node_id", "last_link_id", "groups", "config", "extra"} <= saved.keys()
    ids = [node["id"] for node in saved["nodes"]]
    assert len(set(ids)) == len(ids) and max(ids) <= saved["last_node_id"]


@each_template
def test_its_thumbnail_is_a_small_picture(name):
    path = FOLDER / f"{name}.jpg"
    assert path.stat().st_size < THUMBNAIL_BYTES
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.size == (512, 512)


@each_template
def test_it_explains_itself_and_every_node_is_in_a_group(name):
    saved = template(name)
    (text,) = (node["widgets_values"][0] for node in saved["nodes"][:1])
    assert saved["nodes"][0]["type"] in NOTES and text.startswith("# ") and len(text) > 200
    for node in saved["nodes"]:
        assert any(_inside(node, group["bounding"]) for group in saved["groups"]), f"{node['type']} lies outside the groups"


def _inside(node: dict, bounding: list[float]) -> bool:
    (x, y), (width, height), (left, top, wide, tall) = node["pos"], node["size"], bounding
    return left <= x and top <= y and x + width <= left + wide and y + height <= top + tall


@each_template
def test_no_node_covers_another(name):
    boxes = [(*node["pos"], *node["size"]) for node in template(name)["nodes"]]
    for number, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[:number]:
            apart = x >= other_x + other_width or other_x >= x + width
            assert apart or y >= other_y + other_height or other_y >= y + height


@each_template
def test_nothing_of_the_machine_it_was_made_on_is_in_it(name):
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert not re.search(r"127\.0\.0\.1|localhost|[A-Za-z]:\\\\|\"[^\"]*(/root|/home|/tmp|/Users|/work)\b", text)


@each_template
def test_its_links_fit_the_slots_at_both_ends(name):
    saved = template(name)
    nodes = {node["id"]: node for node in saved["nodes"]}
    for number, source, output, target, input_, kind in saved["links"]:
        assert number in nodes[source]["outputs"][output]["links"]
        assert nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][input_]["link"] == number
    linked = {slot["link"] for node in nodes.values() for slot in node.get("inputs", []) if slot.get("link") is not None}
    assert linked == {link[0] for link in saved["links"]}


@each_template
def test_seeds_stay_so_that_pressing_run_gives_what_the_notes_say(name):
    for node in real_nodes(template(name)):
        assert settings(node).get("control_after_generate", "fixed") == "fixed"


@each_template
def test_every_node_names_its_pack(name):
    ours = ("Annealing", "Shapes")
    for node in real_nodes(template(name)):
        expected = "annealing-guidance" if node["type"].startswith(ours) else "comfy-core"
        assert node["properties"]["cnr_id"] == expected, node["type"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", node["properties"]["ver"])


@pytest.mark.parametrize("name", SDXL)
def test_the_checkpoint_carries_the_address_it_can_be_downloaded_from(name):
    (loader,) = (node for node in template(name)["nodes"] if node["type"] == "CheckpointLoaderSimple")
    (model,) = loader["properties"]["models"]
    assert model["name"] == settings(loader)["ckpt_name"] and model["directory"] == "checkpoints"
    assert model["url"].startswith("https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/")
    assert model["url"].endswith(model["name"])


@pytest.mark.parametrize(("number", "name"), [("11", "train_shapes"), ("08", "train_your_model"), ("12", "train_your_pictures")])
def test_the_training_templates_are_the_api_workflows(number, name):
    """The same nodes with the same settings, wired alike, whatever the nodes are called."""
    shown = api_format(template(numbered(number)))
    assert _shape(shown) == _shape(json.loads((API / f"{name}.json").read_text(encoding="utf-8")))


def _shape(workflow: dict, node: str | None = None) -> list:
    """A workflow without its nodes' names: each node is told by all that leads to it."""
    if node is None:
        return sorted(json.dumps(_shape(workflow, name), sort_keys=True) for name in workflow)
    told = {}
    for name, value in workflow[node]["inputs"].items():
        told[name] = [_shape(workflow, str(value[0])), value[1]] if isinstance(value, list) else value
        if type(value) is float and value.is_integer():
            told[name] = int(value)  # as JavaScript writes it
    optional = {"lambda_per_sample": "", "cfg": 0, "projection": "auto"}  # an API workflow may leave them out
    return [workflow[node]["class_type"], {name: value for name, value in told.items() if optional.get(name) != value}]


@pytest.mark.server
@each_template
def test_every_setting_is_one_that_the_running_comfyui_takes(name, object_info):
    for node in real_nodes(template(name)):
        offered = object_info[node["type"]]["input"]
        inputs = {**offered.get("required", {}), **offered.get("optional", {})}
        given = {slot["name"] for slot in node["inputs"] if slot.get("link") is not None} | settings(node).keys()
        assert offered.get("required", {}).keys() <= given, node["type"]
        assert given - {"control_after_generate"} <= inputs.keys(), node["type"]
        for setting, value in settings(node).items():
            if setting != "control_after_generate" and setting not in USERS_FILES:
                _check(node["type"], setting, value, *inputs[setting])


def _check(node: str, name: str, value: object, kind: object, options: dict | None = None) -> None:
    options = options or {}
    choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
    if choices is not None:
        assert value in choices, f"{node}.{name}: {value!r}"
    elif kind in ("INT", "FLOAT"):
        assert options["min"] <= value <= options["max"], f"{node}.{name}: {value!r}"
    else:
        assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind]), f"{node}.{name}: {value!r}"


def test_those_that_need_a_checkpoint_are_the_ones_that_load_one():
    loaders = ("CheckpointLoaderSimple", "UNETLoader")
    loads = {name for name in NAMES if any(node["type"] in loaders for node in template(name)["nodes"])}
    assert loads == set(NEEDS_A_CHECKPOINT)


@pytest.mark.server
def test_comfyui_serves_them(server):
    with urllib.request.urlopen(f"{server.address}/workflow_templates", timeout=60) as answer:
        assert set(json.load(answer)["annealing-guidance"]) == set(NAMES)
    for suffix in ("json", "jpg"):
        file = urllib.parse.quote(f"{NAMES[0]}.{suffix}")
        address = f"{server.address}/api/workflow_templates/annealing-guidance/{file}"
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert answer.read() == (FOLDER / f"{NAMES[0]}.{suffix}").read_bytes()
