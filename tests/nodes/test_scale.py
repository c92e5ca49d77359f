"""Load Annealing Scale and Fixed Scale (baseline), in ComfyUI."""

import dataclasses
import hashlib
import json
import logging
import os
import urllib.request
from pathlib import Path

import comfy.utils
import folder_paths
import pytest
import torch
from annealing_guidance_pack.models import catalogue
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.fixed_scale import FixedScale
from annealing_guidance_pack.models.scale_file import save_scale
from annealing_guidance_pack.nodes import scale
from annealing_guidance_pack.nodes.scale import AnnealingFixedScale, AnnealingScaleLoader, load_scale_by_name, scale_names
from client import WorkflowError, run_workflow
from loopback import CERTIFICATE, Loopback, body
from scales import INFO, made_up_network
from scales_folder import use_scales_folder

OFFICIAL = catalogue.OFFICIAL_SDXL.name


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/annealing_guidance/, empty, and no network."""
    path = use_scales_folder(tmp_path, monkeypatch)
    path.mkdir()
    monkeypatch.setenv(catalogue.OFFLINE_VARIABLE, "1")
    return path


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """The folder of bundled scales, empty."""
    path = tmp_path / "weights"
    path.mkdir()
    monkeypatch.setattr(scale, "BUNDLED", path)
    return path


def executed(node, **inputs):
    return node.execute(**inputs).args[0]


# --- the folder and the list ------------------------------------------------------------------------------------------


def test_the_folder_is_registered():
    paths, extensions = folder_paths.folder_names_and_paths["annealing_guidance"]
    assert os.path.join(folder_paths.models_dir, "annealing_guidance") in paths
    assert extensions == {".safetensors", ".pt"}


def test_what_extra_model_paths_names_stays_and_is_searched(folder, tmp_path):
    extra = tmp_path / "elsewhere"
    save_scale(made_up_network(), extra / "mine.safetensors")
    folder_paths.folder_names_and_paths.pop(scale.FOLDER)
    folder_paths.add_model_folder_path(scale.FOLDER, str(extra))  # as ComfyUI does for extra_model_paths.yaml
    scale.register_folder()
    assert "mine.safetensors" in scale_names()
    assert load_scale_by_name("mine.safetensors").info == dataclasses.replace(INFO, name="mine")
    assert os.path.join(folder_paths.models_dir, scale.FOLDER) in folder_paths.get_folder_paths(scale.FOLDER)


def test_the_list_offers_the_catalogue_what_is_bundled_and_the_users_files(folder, bundled):
    save_scale(made_up_network(), bundled / "ours.safetensors")
    save_scale(made_up_network(), folder / "sub" / "mine.safetensors")
    (folder / "notes.txt").touch()
    (folder / catalogue.OFFICIAL_SDXL.file_name).touch()  # offered as the catalogue's entry
    assert scale_names() == [OFFICIAL, "ours.safetensors", os.path.join("sub", "mine.safetensors")]
    assert AnnealingScaleLoader.INPUT_TYPES()["required"]["scale_name"][1]["options"] == scale_names()


def test_a_file_added_later_is_offered(folder):
    before = scale_names()
    save_scale(made_up_network(), folder / "new.safetensors")
    os.utime(folder, ns=(1, 1))  # a coarse clock may give the folder the same time
    assert set(scale_names()) - set(before) == {"new.safetensors"}


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_users_file_and_a_bundled_one(folder, bundled):
    save_scale(made_up_network(seed=1), bundled / "ours.safetensors")
    save_scale(made_up_network(seed=2), folder / "mine.safetensors")
    inputs = torch.tensor([500.0]), torch.tensor([3.0]), 0.4
    for name, seed in [("ours.safetensors", 1), ("mine.safetensors", 2)]:
        loaded = executed(AnnealingScaleLoader, scale_name=name)
        assert torch.equal(loaded(*inputs), made_up_network(seed=seed)(*inputs))


def test_a_bundled_name_means_the_bundled_file(folder, bundled, caplog):
    save_scale(made_up_network(seed=1), bundled / "ours.safetensors")
    save_scale(made_up_network(seed=2), folder / "ours.safetensors")
    loaded = load_scale_by_name("ours.safetensors")
    assert torch.equal(loaded.layers[0].weight, made_up_network(seed=1).layers[0].weight)
    assert scale_names().count("ours.safetensors") == 1
    assert str(folder / "ours.safetensors") in caplog.text


@pytest.mark.parametrize("name", ["nothing.safetensors", "", "../outside.safetensors", "sub/../../outside.safetensors", None, 7])
def test_an_unknown_name_or_one_outside_the_folder(folder, name):
    save_scale(made_up_network(), folder.parent / "outside.safetensors")
    with pytest.raises(AnnealingError, match="no annealing scale named") as caught:
        load_scale_by_name(name)
    assert OFFICIAL in str(caught.value) and str(folder) in str(caught.value)
    if name is not None:
        assert AnnealingScaleLoader.validate_inputs(scale_name=name) == str(caught.value)


def test_an_absolute_name(folder):
    save_scale(made_up_network(), folder.parent / "outside.safetensors")
    with pytest.raises(AnnealingError, match="no annealing scale named"):
        load_scale_by_name(str(folder.parent / "outside.safetensors"))


def test_known_names_are_valid_and_linked_ones_are_left_to_the_run(folder):
    assert AnnealingScaleLoader.validate_inputs(scale_name=OFFICIAL) is True
    assert AnnealingScaleLoader.validate_inputs() is True


def test_a_changed_file_is_read_again(folder):
    path = folder / "mine.safetensors"
    save_scale(made_up_network(), path)
    first = AnnealingScaleLoader.fingerprint_inputs(scale_name="mine.safetensors")
    assert AnnealingScaleLoader.fingerprint_inputs(scale_name="mine.safetensors") == first
    os.utime(path, ns=(1, 1))
    assert AnnealingScaleLoader.fingerprint_inputs(scale_name="mine.safetensors") != first
    path.unlink()
    assert AnnealingScaleLoader.fingerprint_inputs(scale_name="mine.safetensors") is None


# --- the catalogue ----------------------------------------------------------------------------------------------------


def test_without_network_the_entry_says_where_the_file_goes(folder):
    with pytest.raises(AnnealingError) as caught:
        load_scale_by_name(OFFICIAL)
    assert catalogue.OFFICIAL_SDXL.url in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["checkpoint.pt", catalogue.OFFICIAL_SDXL.file_name])
def test_the_authors_file_placed_by_hand_is_used(folder, official_checkpoint, name):
    (folder / name).write_bytes(official_checkpoint.read_bytes())
    assert load_scale_by_name(OFFICIAL).info.reference_numel == 65536


def test_an_entry_is_fetched_once_with_progress_and_a_line_in_the_log(folder, monkeypatch, caplog, tmp_path):
    save_scale(made_up_network(), tmp_path / "origin.safetensors")
    content = (tmp_path / "origin.safetensors").read_bytes()
    progress = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *steps, node_id: progress.append((*steps, node_id)))
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(catalogue.OFFLINE_VARIABLE)
    caplog.set_level(logging.INFO)
    with Loopback().running() as site:
        site.answers["/origin.safetensors"] = body(content)
        url, sha256 = f"{site.address}/origin.safetensors", hashlib.sha256(content).hexdigest()
        entry = catalogue.CatalogueEntry("Ours (downloads)", "fetched.safetensors", url, len(content), sha256)
        monkeypatch.setattr(catalogue, "CATALOGUE", (entry,))
        before = AnnealingScaleLoader.fingerprint_inputs(scale_name=entry.name)
        loaded = [load_scale_by_name(entry.name, node_id="5") for _ in range(2)]
        assert site.requests == ["/origin.safetensors"]
    assert [model.info.name for model in loaded] == ["fetched"] * 2
    assert progress[-1] == (len(content), len(content), None, "5")
    assert caplog.text.count(url) == 1
    assert AnnealingScaleLoader.fingerprint_inputs(scale_name=entry.name) == before  # the next run need not sample again


# --- the fixed rule ---------------------------------------------------------------------------------------------------


def test_the_fixed_scale_with_its_defaults_and_with_a_rule():
    defaults = {name: options[1].get("default", None) for name, options in AnnealingFixedScale.INPUT_TYPES()["required"].items()}
    model = executed(AnnealingFixedScale, **defaults)
    assert isinstance(model, FixedScale)
    assert model(torch.tensor([900.0, 100.0]), torch.ones(2), 0.4).tolist() == pytest.approx([0.8, 0.8])
    model = executed(AnnealingFixedScale, **(defaults | {"rule": "linear", "scale": 1.0, "scale_end": 0.5}))
    assert model(torch.tensor([1000.0, 500.0]), torch.ones(2), 0.4).tolist() == pytest.approx([1.0, 0.75])


# --- in a running ComfyUI ---------------------------------------------------------------------------------------------


def shown(node):
    return {"scale": node, "show": {"class_type": "PreviewAny", "inputs": {"source": ["scale", 0]}}}


def load_node(name):
    return shown({"class_type": "AnnealingScaleLoader", "inputs": {"scale_name": name}})


@pytest.mark.server
def test_the_server_offers_and_loads_a_users_file(server):
    folder = Path(server.base) / "models" / "annealing_guidance"
    save_scale(made_up_network(), folder / "served.safetensors")
    with urllib.request.urlopen(f"{server.address}/object_info/AnnealingScaleLoader", timeout=30) as response:
        offered = json.load(response)["AnnealingScaleLoader"]["input"]["required"]["scale_name"][1]["options"]
    assert offered[0] == OFFICIAL and "served.safetensors" in offered
    run_workflow(server.address, load_node("served.safetensors"))
    (folder / "served.safetensors").write_bytes(b"truncated")
    with pytest.raises(WorkflowError, match="truncated, or of another format"):
        run_workflow(server.address, load_node("served.safetensors"))


@pytest.mark.server
def test_the_server_refuses_an_unknown_name_in_words(server):
    with pytest.raises(WorkflowError, match="no annealing scale named 'nothing'.*choose one of"):
        run_workflow(server.address, load_node("nothing"))


@pytest.mark.server
def test_the_server_runs_a_fixed_scale(server):
    inputs = {"rule": "interval", "scale": 1.0, "scale_end": 0.1, "start_percent": 0.2, "end_percent": 0.8}
    run_workflow(server.address, shown({"class_type": "AnnealingFixedScale", "inputs": inputs}))
    backwards = inputs | {"start_percent": 0.9}
    with pytest.raises(WorkflowError, match="interval starts at 0.9"):
        run_workflow(server.address, shown({"class_type": "AnnealingFixedScale", "inputs": backwards}))
