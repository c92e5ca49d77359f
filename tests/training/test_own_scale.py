"""A model finds the scale that was trained on it, in any precision and with LoRAs; another checkpoint does not, and no file of
whatever kind is in the way."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from pathlib import Path

import comfy.model_management
import comfy.model_sampling
import folder_paths
import pytest
import torch
import two_points
from annealing_guidance_pack.models import scale_file
from annealing_guidance_pack.models.scale_file import load_scale, save_scale
from annealing_guidance_pack.nodes.scale import load_scale_by_name, scale_trained_on
from annealing_guidance_pack.training import own_scale as module
from annealing_guidance_pack.training.fingerprint import fingerprint
from annealing_guidance_pack.training.own_scale import fingerprint_text, own_scale
from comfy.weight_adapter import LoRAAdapter
from comfy_extras.nodes_model_merging import ModelAdd, ModelMergeSimple
from scales import INFO, made_up_network
from scales_folder import use_scales_folder
from small_models import NAMES, small_model

KIND = dict.fromkeys(["SD3", "Flux", "Qwen-Image"], "velocity")
KEY = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """models/annealing_guidance/, empty."""
    path = use_scales_folder(tmp_path, monkeypatch)
    path.mkdir()
    return path


def save(folder: Path, name: str, model, prediction: str = "velocity", age: float = 0.0, **facts) -> Path:
    """A scale that was trained on the model, `age` seconds ago."""
    info = dataclasses.replace(INFO, prediction=prediction, fingerprint=fingerprint_text(fingerprint(model)), **facts)
    path = folder / f"{name}.safetensors"
    save_scale(made_up_network(info), path)
    os.utime(path, (time.time() - age,) * 2)
    folder_paths.filename_list_cache.clear()
    return path


def lora(model, seed: int = 0):
    model = model.clone()
    weight = model.model.state_dict()[KEY]
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(weight.shape[0], 2, generator=generator), torch.randn(2, weight.shape[1], generator=generator)
    assert model.add_patches({KEY: LoRAAdapter(set(), (up, down, 2.0, None, None, None))}, 1.0) == [KEY]
    return model


def shifted():
    class Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    model = small_model("SD3")
    sampling = Sampling(model.model.model_config)
    sampling.set_parameters(shift=1.0)
    model.add_object_patch("model_sampling", sampling)
    return model


def barely_trained(share: float):
    """A fine-tune that has moved every weight by a share of another model's."""
    model, other = small_model("SD3"), small_model("SD3", seed=1)
    for mine, theirs in zip(model.model.diffusion_model.parameters(), other.model.diffusion_model.parameters(), strict=True):
        mine.data.add_(share * theirs.data)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_a_model_finds_its_scale_and_the_loader_loads_it_under_that_name(folder, name):
    assert scale_trained_on(small_model(name)) is None
    save(folder, "mine", small_model(name), KIND.get(name, "epsilon"))
    assert scale_trained_on(small_model(name)) == "mine.safetensors"
    assert load_scale_by_name("mine.safetensors").info.name == "mine"
    assert scale_trained_on(small_model(name, seed=1)) is None
    assert [scale_trained_on(small_model(other)) for other in NAMES if other != name] == [None] * (len(NAMES) - 1)


PRECISIONS = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("trained_in", PRECISIONS, ids=str)
@pytest.mark.parametrize("used_in", PRECISIONS, ids=str)
def test_the_precision_does_not_matter(folder, trained_in, used_in):
    save(folder, "mine", small_model("SD3", dtype=trained_in))
    eight_bit = trained_in != used_in and {trained_in, used_in} <= set(PRECISIONS[3:])  # one is not a rounding of the other
    assert scale_trained_on(small_model("SD3", dtype=used_in)) == (None if eight_bit else "mine.safetensors")
    assert scale_trained_on(small_model("SD3", seed=1, dtype=used_in)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_light_fine_tune_is_another_model_even_for_an_8_bit_copy(folder, dtype):
    save(folder, "mine", small_model("SD3", dtype=dtype))
    assert scale_trained_on(barely_trained(0.01)) is None
    assert scale_trained_on(barely_trained(0.0)) == "mine.safetensors"


@pytest.mark.parametrize("change", [lambda: lora(small_model("SD3")), shifted], ids=["LoRA", "shift"])
def test_loras_and_the_way_of_sampling_do_not_matter(folder, change):
    save(folder, "mine", change())
    assert scale_trained_on(small_model("SD3")) == scale_trained_on(change()) == "mine.safetensors"


def test_a_lora_that_is_baked_into_the_loaded_weights_does_not_matter(folder):
    save(folder, "mine", small_model("SD3"))
    model = lora(small_model("SD3"))
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    try:
        assert not torch.equal(model.model.state_dict()[KEY], small_model("SD3").model.state_dict()[KEY])
        assert scale_trained_on(model) == "mine.safetensors"
    finally:
        comfy.model_management.unload_all_models()


@pytest.mark.parametrize("merge", [lambda a, b: ModelMergeSimple().merge(a, b, 0.5), lambda a, b: ModelAdd().merge(a, b)])
def test_a_merge_made_by_nodes_is_a_model_of_its_own(folder, merge):
    def merged(seed):
        return merge(small_model("SD3"), small_model("SD3", seed=seed))[0]

    save(folder, "mine", small_model("SD3"))
    assert scale_trained_on(merged(1)) is None
    save(folder, "merged", merged(1), age=-10)
    assert scale_trained_on(merged(1)) == "merged.safetensors" and scale_trained_on(merged(2)) is None
    assert scale_trained_on(small_model("SD3")) == "mine.safetensors"


def test_of_several_the_newest(folder):
    save(folder, "b", small_model("SD3"), age=10)
    save(folder, "a", small_model("SD3"), age=20)
    save(folder, "c", small_model("SD3", seed=1))
    assert scale_trained_on(small_model("SD3")) == "b.safetensors"
    save(folder, "a", small_model("SD3"), age=5)  # trained again
    assert scale_trained_on(small_model("SD3")) == "a.safetensors"


def test_a_scale_of_the_other_path_is_passed_over_with_a_word(folder, caplog):
    save(folder, "older", small_model("SD3"), age=10)
    save(folder, "as_epsilon", small_model("SD3"), "epsilon")
    with caplog.at_level(logging.WARNING):
        assert scale_trained_on(small_model("SD3")) == "older.safetensors"
    assert '"as_epsilon.safetensors" was trained on this model' in caplog.text


def test_a_model_that_nothing_is_known_of_finds_nothing(folder):
    save(folder, "mine", small_model("SD3"))
    assert scale_trained_on(two_points.two_point_model("epsilon")) is None

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.IMG_TO_IMG):
        pass

    pathless = small_model("SD15")
    pathless.add_object_patch("model_sampling", Sampling(pathless.model.model_config))
    assert scale_trained_on(pathless) is None


def test_files_without_a_fingerprint_and_strange_ones_are_passed_over(folder, caplog):
    model = small_model("SD3")
    mine = save(folder, "mine", model, age=100)
    save_scale(made_up_network(), folder / "without.safetensors")
    good = mine.read_bytes()
    text = json.loads(fingerprint_text(fingerprint(model)))
    (folder / "cut.safetensors").write_bytes(good[:-4])  # its header is whole, its network is not
    (folder / "empty.safetensors").touch()
    (folder / "text.safetensors").write_text("<!doctype html>")
    (folder / "huge.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    (folder / "checkpoint.pt").write_bytes(b"PK")
    deep = "[" * 5000
    strange = ["{}", "[]", "1", deep, json.dumps(text | {"weights": []}), json.dumps(text | {"weights": [[[1]]]})]
    strange += [json.dumps(text | {"weights": weights}) for weights in (5, "x", [5], ["ab"], [[True]], [[10**400]], {"a": 1})]
    strange += [json.dumps(text | {"weights": [[x] * 8] * 32}) for x in (float("nan"), float("inf"), 1e300)]
    strange += [json.dumps(text | {"architecture": 5}), json.dumps(text | {"merged": None})]
    for number, said in enumerate(strange):
        info = dataclasses.replace(INFO, prediction="velocity", fingerprint=said)
        save_scale(made_up_network(info), folder / f"strange_{number}.safetensors")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.safetensors")  # nobody writes into it
    (folder / "folder.safetensors").mkdir()
    folder_paths.filename_list_cache.clear()
    with caplog.at_level(logging.WARNING):
        assert scale_trained_on(model) == "mine.safetensors"
    assert "cut.safetensors cannot be used" in caplog.text
    assert own_scale(model, {"gone": folder / "gone.safetensors", "odd": Path("a\0b.safetensors")}) is None
    mine.unlink()
    folder_paths.filename_list_cache.clear()
    assert scale_trained_on(model) is None


def test_a_hundred_files_are_read_once_and_a_model_is_looked_at_once(folder, monkeypatch):
    for number in range(100):
        save_scale(made_up_network(), folder / f"other_{number}.safetensors")
    save(folder, "mine", small_model("SD3"))
    read, looked_at = [], []
    load_info, base_of = module.load_info, module.base_of
    monkeypatch.setattr(module, "load_info", lambda path: (read.append(path), load_info(path))[1])
    monkeypatch.setattr(module, "base_of", lambda model: (looked_at.append(model), base_of(model))[1])
    model = small_model("SD3")
    for again in (model, model.clone(), lora(model)):
        assert scale_trained_on(again) == "mine.safetensors"
    assert len(read) == 101 and len(looked_at) == 1
    save(folder, "mine", small_model("SD3"), age=-10)
    assert scale_trained_on(model) == "mine.safetensors" and len(read) == 102


def test_a_folder_without_scales_costs_no_look_at_the_model(folder, monkeypatch):
    save_scale(made_up_network(), folder / "without.safetensors")
    monkeypatch.setattr(module, "base_of", lambda model: pytest.fail("looked at the model"))
    assert scale_trained_on(small_model("SD3")) is None


def test_the_fingerprint_fits_into_the_file_whatever_the_model(folder):
    text = fingerprint_text(fingerprint(small_model("SDXL")))
    assert len(text) < scale_file.MAX_FINGERPRINT / 2
    assert load_scale(save(folder, "mine", small_model("SDXL"), "epsilon")).info.fingerprint == text
