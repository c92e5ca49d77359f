"""The training workflows through the API of a running ComfyUI, and what Cancel does there."""

import io
import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from annealing_guidance_pack.models.scale_file import load_scale
from annealing_guidance_pack.shapes.loader import captioned_pictures
from annealing_guidance_pack.training.shards import load_folder
from client import WorkflowError, run_workflow
from PIL import Image

pytestmark = pytest.mark.server

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows" / "api"
QUICK_FIT = {"steps": 200, "hidden_width": 16, "depth": 1}


def workflow(name: str, **changes: dict) -> dict:
    """A bundled workflow with some inputs of some nodes changed."""
    nodes = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    for node, inputs in changes.items():
        assert inputs.keys() <= nodes[node]["inputs"].keys()
        nodes[node]["inputs"] |= inputs
    return nodes


def folder_of(server, profile_name: str) -> Path:
    return Path(server.base) / "output" / "annealing_profiles" / profile_name


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_the_demo_trains_a_scale_and_samples_with_it(server):
    nodes = workflow(
        "train_shapes",
        drawn={"count": 16},
        profile={"profile_name": "demo"},
        fit=QUICK_FIT,
        scale={"filename_prefix": "demo"},
        sigmas={"steps": 8},
    )
    nodes["losses"] = {"class_type": "LossGraphNode", "inputs": {"loss": ["fit", 1], "filename_prefix": "losses"}}
    saved = run_workflow(server.address, nodes)
    assert saved.keys() == {"plot", "picture", "losses"}
    assert pixels(saved["plot"][0]).shape == (512, 1024, 3)
    assert pixels(saved["picture"][0]).shape == (128, 128, 3) and pixels(saved["picture"][0]).std() > 10
    assert len(load_folder(folder_of(server, "demo")).entries) == 4 * 16
    scale = load_scale(Path(server.base) / "models" / "annealing_guidance" / "demo_00001.safetensors")
    assert (scale.info.prediction, scale.info.reference_numel, scale.info.licence) == ("velocity", 1024, "Apache-2.0")
    with urllib.request.urlopen(f"{server.address}/object_info", timeout=30) as response:
        offered = json.load(response)
    names = {node: offered[node]["input"]["required"] for node in ("AnnealingScaleLoader", "AnnealingProfileLoader")}
    assert "demo_00001.safetensors" in names["AnnealingScaleLoader"]["scale_name"][1]["options"]
    assert "demo" in names["AnnealingProfileLoader"]["profile_name"][1]["options"]


def test_the_workflow_with_pictures_trains_on_a_folder_of_them(server):
    folder = Path(server.base) / "input" / "training_pictures"
    folder.mkdir(parents=True)
    pictures, captions = captioned_pictures(10, seed=5)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        Image.fromarray((picture.numpy() * 255).round().astype(np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    nodes = workflow("train_your_pictures", resized={"width": 128, "height": 128}, profile={"batch_size": 8}, fit=QUICK_FIT)
    # The demo in the place of the big model: the same three outputs.
    nodes["loader"] = {"class_type": "ShapesLoader", "inputs": {"variant": "epsilon"}}
    saved = run_workflow(server.address, nodes)
    assert pixels(saved["plot"][0]).shape == (512, 1024, 3)
    profile = load_folder(folder_of(server, "your_model"))
    assert (len(profile.entries), profile.kind, profile.settings.training_grid) == (80, "epsilon", 20)
    assert load_scale(Path(server.base) / "models" / "annealing_guidance" / "your_model_00001.safetensors")


def test_one_node_trains_a_scale_and_the_next_run_loads_it(server):
    nodes = workflow("train_your_model", train={"effort": "quick", "name": "once"}, latent={"width": 128, "height": 128})
    nodes["loader"] = {"class_type": "ShapesLoader", "inputs": {"variant": "flow"}}
    nodes["prompt"]["inputs"]["text"] = "a red circle left of a green cross"
    told: list[tuple[str, int]] = []
    saved = run_workflow(server.address, nodes, lambda node, done, total: told.append((node, total)))
    assert pixels(saved["plot"][0]).shape == (512, 1024, 3)  # the fit's plot
    assert ("train", 32) in told and ("train", 2000) in told
    path = Path(server.base) / "models" / "annealing_guidance" / "once_00001.safetensors"
    scale = load_scale(path)
    assert scale.info.prediction == "velocity" and scale.info.fingerprint and "32 pictures" in scale.info.created_with

    told.clear()
    nodes["train"]["inputs"] |= {"width": 128, "height": 128}  # what 0 means for the demo
    saved = run_workflow(server.address, nodes, lambda node, done, total: told.append((node, total)))
    assert not [total for node, total in told if node == "train"] and pixels(saved["plot"][0]).shape == (512, 1632, 3)
    assert sorted(path.parent.glob("once_*")) == [path]


def test_cancel_keeps_what_was_measured_and_the_next_run_goes_on(server):
    nodes = workflow("train_shapes", drawn={"count": 40}, profile={"profile_name": "cancelled"}, fit=QUICK_FIT)
    nodes = {name: nodes[name] for name in ("loader", "drawn", "dataset", "negative", "profile", "fit", "plot")}

    requests = []

    def cancel_after_three(node, done, total):  # newer hosts do not tell every picture
        if node == "profile" and done >= 3 and not requests:
            requests.append(urllib.request.Request(f"{server.address}/interrupt", data=b"", method="POST"))
            urllib.request.urlopen(requests[0], timeout=30)

    with pytest.raises(WorkflowError, match="interrupted"):
        run_workflow(server.address, nodes, cancel_after_three)
    (shard,) = folder_of(server, "cancelled").glob("*.safetensors")
    content = shard.read_bytes()
    measured = len(load_folder(shard.parent).entries) // 4
    assert 3 <= measured < 40

    seen = []
    run_workflow(server.address, nodes, lambda node, done, total: seen.append(done) if node == "profile" else None)
    assert seen[0] == measured and seen[-1] == 40
    assert shard.read_bytes() == content
    assert len(load_folder(shard.parent).entries) == 4 * 40


def test_a_profile_that_is_too_small_is_refused_in_words(server):
    nodes = workflow("train_shapes", drawn={"count": 3}, profile={"profile_name": "small"})
    with pytest.raises(WorkflowError, match=r"AnnealingFit \(fit\): The profile has 12 entries of 3 pictures, too few"):
        run_workflow(server.address, nodes)
