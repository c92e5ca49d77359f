"""Train Annealing Scale: one node from a model and its text encoder to a scale that the guider finds, on models of several
structures, and what it says where that cannot work."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import sys
from pathlib import Path

import comfy.model_management
import comfy.supported_models
import folder_paths
import pytest
import torch
from annealing_guidance_pack.models import whole_file
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.scale_file import load_scale, save_scale
from annealing_guidance_pack.nodes import progress, train_once
from annealing_guidance_pack.nodes.scale import load_scale_by_name, scale_trained_on
from annealing_guidance_pack.nodes.train_once import BUNDLED_PROMPTS, AnnealingTrainScale
from annealing_guidance_pack.shapes.loader import load_shapes
from annealing_guidance_pack.training import once
from annealing_guidance_pack.training.shards import load_folder
from comfy.weight_adapter import LoRAAdapter
from scales_folder import train_briefly, use_scales_folder
from small_models import small_clip, small_conditioning, small_model

STRUCTURES = ["SD15", "SDXL", "SD3", "Flux", "Qwen-Image"]
USUAL = {name: getattr(once, name) for name in ("SAMPLING", "SAMPLES", "EFFORTS")}
SIDE = 64  # pixels: latents of 8 x 8


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch) -> Path:
    """ComfyUI's output folder and models/annealing_guidance/, empty; a brief fit."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    train_briefly(monkeypatch)
    return use_scales_folder(tmp_path, monkeypatch)


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The lines under the node."""
    lines: list[str] = []
    for module in (progress, train_once):
        monkeypatch.setattr(module, "show_text", lambda text, *_: lines.append(text))
    return lines


def trained(model, clip=None, **changed):
    """(scale, plot) as the executor gets them: in inference mode, untouched widgets but for what is changed."""
    widgets = {"prompts": BUNDLED_PROMPTS, "width": SIDE, "height": SIDE, "effort": "quick", "name": ""}
    with torch.inference_mode():
        return AnnealingTrainScale.execute(model=model, clip=small_clip() if clip is None else clip, **widgets | changed).args


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def rows_counted(model) -> list[int]:
    """Grows by the rows of every call of the model."""
    counted: list[int] = []
    model.model.diffusion_model.register_forward_pre_hook(lambda module, given: counted.append(given[0].shape[0]))
    return counted


def test_its_inputs_and_outputs_are_the_public_ones():
    schema = AnnealingTrainScale.GET_SCHEMA()
    assert schema.node_id == "AnnealingTrainScale" and schema.display_name == "Train Annealing Scale (once per model)"
    assert [given.id for given in schema.inputs] == [
        *("model", "clip", "prompts", "negative", "width", "height", "effort", "name")
    ]  # fmt: skip
    assert [output.io_type for output in schema.outputs] == ["ANNEALING_SCALE", "IMAGE"]
    assert all(given.tooltip for given in (*schema.inputs, *schema.outputs)) and schema.category.endswith("/training")


# --- one node, any model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURES)
def test_one_node_trains_a_scale_that_the_model_finds_again(name, folders, said):
    model = small_model(name)
    options = repr(model.model_options)
    network, plot = trained(model)
    family = type(model.model.model_config).__name__
    assert files(folders) == [f"{family}_00001.safetensors"]
    assert scale_trained_on(small_model(name)) == f"{family}_00001.safetensors"
    info = load_scale_by_name(f"{family}_00001.safetensors").info
    assert info == network.info and info.prediction == ("epsilon" if name.startswith("SD") and name != "SD3" else "velocity")
    assert info.reference_numel == (4 if info.prediction == "epsilon" else 16) * 8 * 8
    assert network(torch.tensor([500.0]), torch.tensor([1.0]), 0.4).isfinite().all()
    assert len(info.typical_gaps) == (20 if info.prediction == "epsilon" else len(info.training_grid) - 1)
    assert plot.shape == (1, 512, 1024, 3)
    assert any("pictures/s" in line or "s/picture" in line for line in said) and any("left" in line for line in said)
    assert said[-1].startswith("Trained in") and repr(model.model_options) == options


@pytest.mark.parametrize("variant", ["epsilon", "flow"])
def test_the_demo_is_trained_with_untouched_widgets(variant, folders):
    """The bundled list stands for captions that the demo knows; the pictures are of its own size."""
    model, clip, _ = load_shapes(variant)
    network, _ = trained(model, clip, width=0, height=0)
    assert (
        network.info.reference_numel == 1024
        and scale_trained_on(load_shapes(variant)[0]) == f"shapes_{variant}_00001.safetensors"
    )
    assert scale_trained_on(load_shapes({"epsilon": "flow", "flow": "epsilon"}[variant])[0]) is None


def test_a_second_run_loads_the_file_at_once_and_other_wishes_train_anew(folders, said):
    model, clip = small_model("Flux"), small_clip()
    counted = rows_counted(model)
    first, _ = trained(model, clip)
    spent = len(counted)
    again, plot = trained(model.clone(), clip)
    assert len(counted) == spent and said[-1].startswith("Loaded") and files(folders) == ["FluxSchnell_00001.safetensors"]
    assert again.info == first.info and all(map(torch.equal, again.parameters(), first.parameters()))
    assert plot.shape[0] == 1 and plot.shape[3] == 3
    trained(model, clip, prompts="a cat\na dog")
    trained(model, clip, height=2 * SIDE)
    trained(model, clip, negative=small_conditioning(9))
    trained(model, clip, name="other/name")
    assert files(folders) == [*(f"FluxSchnell_0000{k}.safetensors" for k in (1, 2, 3, 4)), "other/name_00001.safetensors"]
    spent = len(counted)
    trained(model, clip, prompts=" a cat \n\n a dog\na cat\n")  # the same two prompts
    assert len(counted) == spent


def test_more_effort_goes_on_from_less_and_less_is_served_by_more(folders):
    model, clip = small_model("Flux"), small_clip()
    counted = rows_counted(model)
    trained(model, clip)
    quick = sum(counted)
    network, _ = trained(model, clip, effort="normal")
    assert "of 32 pictures" in network.info.created_with and sum(counted) < 2.2 * quick
    spent = sum(counted)
    assert trained(model, clip)[0].info == network.info and sum(counted) == spent


def test_quick_costs_no_more_than_sampling_forty_pictures(monkeypatch):
    monkeypatch.setattr(once, "SAMPLING", USUAL["SAMPLING"])
    monkeypatch.setattr(once, "SAMPLES", USUAL["SAMPLES"])
    monkeypatch.setattr(train_once, "EFFORTS", USUAL["EFFORTS"])
    model = small_model("Flux")
    counted = rows_counted(model)
    trained(model)
    assert sum(counted) <= 40 * 20 * 2
    assert sum(counted) == pytest.approx(32 * (once.SAMPLING.steps + 2 * once.SAMPLES * (1 + once.KNOTS)), rel=0.02)


def test_cancel_loses_nothing_and_the_next_run_goes_on(folders, monkeypatch, said):
    model, clip = small_model("Flux"), small_clip()
    counted = rows_counted(model)
    show = progress.show_text

    def cancel_after_ten(text, *_):
        show(text)
        if text.startswith("10 of"):
            comfy.model_management.interrupt_current_processing()

    with monkeypatch.context() as patch:
        patch.setattr(progress, "show_text", cancel_after_ten)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            trained(model, clip)
    assert files(folders) == []
    spent = sum(counted)
    network, _ = trained(model, clip)
    assert "of 16 pictures" in network.info.created_with and sum(counted) - spent < 0.7 * spent


def test_it_takes_the_name_of_the_models_file_from_the_workflow(folders, monkeypatch):
    graph = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux\\dev: v1.0.safetensors"}},
        "2": {"class_type": "LoraLoader", "inputs": {"lora_name": "style.safetensors", "model": ["1", 0], "clip": ["4", 0]}},
        "3": {"class_type": "AnnealingTrainScale", "inputs": {"model": ["2", 0], "clip": ["4", 0]}},
        "4": {"class_type": "CLIPLoader", "inputs": {"clip_name": "t5.safetensors", "loop": ["2", 0]}},
    }
    assert train_once._file_in_workflow(graph, "3") == "dev: v1.0"
    assert train_once._file_in_workflow(graph, "9") is None and train_once._file_in_workflow(None, None) is None
    monkeypatch.setattr(train_once, "_file_in_workflow", lambda *_: "dev: v1.0")
    trained(small_model("Flux"))
    assert files(folders) == ["dev_ v1.0_00001.safetensors"]
    assert load_scale(folders / "dev_ v1.0_00001.safetensors").info.trained_on == "dev_ v1.0, on pictures of its own"


@pytest.mark.parametrize(
    ("name", "size"), [("SD15", (512, 512)), ("SDXL", (1024, 1024)), ("SD3", (1024, 1024)), ("Flux", (1024, 1024))]
)
def test_the_size_is_that_of_the_models_family(name, size):
    assert once.usual_size(small_model(name)) == size


def test_sd2_is_told_apart_by_its_prediction_and_video_models_by_their_class():
    model = small_model("SD15")
    model.model.model_config = comfy.supported_models.SD20(model.model.model_config.unet_config)
    assert once.usual_size(model) == (512, 512)
    model.model.model_type = comfy.model_base.ModelType.V_PREDICTION
    assert once.usual_size(model) == (768, 768)
    model.model.__class__ = type("WAN21", (), {})
    assert once.usual_size(model) == (832, 480)


def test_the_bundled_prompts_are_varied_and_so_is_every_part_of_them():
    lines = once.lines_of(BUNDLED_PROMPTS)
    assert len(lines) == 128 and max(map(len, lines)) > 100 and min(map(len, lines)) < 10
    quick = once.spread_over(lines, 32)
    assert len(set(quick)) == 32
    assert any('"' in line for line in quick) and any("portrait" in line or "a man" in line for line in quick)
    assert once.spread_over(["a", "b"], 32) == ["a", "b"]


def test_sdxl_is_compared_with_zeros_and_others_with_the_empty_prompt():
    clip = small_clip()
    zeros = once.usual_negative(small_model("SDXL"), clip)
    assert not zeros[0][0].any() and not zeros[0][1]["pooled_output"].any()
    assert once.usual_negative(small_model("SD15"), clip)[0][0].any()


def test_without_matplotlib_the_scale_still_comes_out(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model = small_model("Flux")
    for _ in range(2):  # trained, then loaded
        network, plot = trained(model)
        assert network(torch.tensor([500.0]), torch.tensor([1.0]), 0.4).isfinite().all() and plot.shape[0] == 1


# --- what cannot work -------------------------------------------------------------------------------------------------


def refused(match: str, folders: Path, model=None, **changed) -> None:
    with pytest.raises(AnnealingError, match=match):
        trained(model or small_model("Flux"), **changed)
    assert files(folders) == [] and not list(folders.parent.glob("output/**/*.safetensors"))


@pytest.mark.parametrize("prompts", ["", "  ", "\n \t\r\n  "])
def test_no_prompts(folders, prompts):
    refused("prompts is empty", folders, prompts=prompts)


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_text_encoder_of_another_model_is_found_before_the_first_picture(name, folders):
    model = small_model(name)
    counted = rows_counted(model)
    refused(r"embeddings of width 16\).*Connect the text encoder that belongs to the model", folders, model, clip=small_clip(16))
    assert len(counted) <= 1


def test_the_demos_text_encoder_with_another_model_and_the_other_way_round(folders):
    refused("embeddings of width 64|doesn't know", folders, clip=load_shapes("flow")[1])
    refused("Connect the text encoder that belongs", folders, load_shapes("flow")[0], width=0, height=0)


def test_a_checkpoint_without_a_text_encoder(folders):
    with pytest.raises(AnnealingError, match="clip is nothing.*Connect a CLIP"), torch.inference_mode():
        AnnealingTrainScale.execute(small_model("Flux"), None, "a cat", SIDE, SIDE, "quick", "")


def test_a_model_that_predicts_the_same_for_every_prompt(folders):
    model = small_model("SD15")
    for name, parameter in model.model.diffusion_model.named_parameters():
        if "attn2.to_v" in name:
            parameter.data.zero_()
    counted = rows_counted(model)
    refused("predicts the same for a prompt and for the negative", folders, model)
    assert sum(counted) <= 12


def test_a_model_that_predicts_nan(folders):
    model = small_model("Flux")
    next(model.model.diffusion_model.parameters()).data.fill_(torch.nan)
    refused("NaN or infinity", folders, model)


@pytest.mark.parametrize("name", ["../outside", "a/../../b", "/etc/passwd", "question?", "con"])
def test_no_name_leads_out_of_its_folder(folders, name):
    refused("^name is", folders, name=name)


def test_pictures_smaller_than_a_latent(folders):
    refused("smaller than one place", folders, small_model("Flux"), width=0, height=4)


def test_a_full_disk_leaves_nothing_half_written_and_the_next_run_goes_on(folders, monkeypatch):
    model, clip = small_model("Flux"), small_clip()
    replace = os.replace

    def full(source, target):
        if Path(target).parent == folders:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(whole_file.os, "replace", full)
        with pytest.raises(AnnealingError, match="could not be written: .*disk is full"):
            trained(model, clip)
    assert files(folders) == [] and scale_trained_on(model) is None
    counted = rows_counted(model)
    trained(model, clip)
    assert sum(counted) <= 12 and files(folders) == ["FluxSchnell_00001.safetensors"]  # only the trial


def test_two_trainings_at_once_under_one_name_give_two_whole_files(folders, monkeypatch):
    """The second one runs from beginning to end while the first is measuring its pictures."""
    model, clip = small_model("Flux"), small_clip()
    inner = []

    def another_meanwhile(text, *_):
        if text.startswith("5 of") and not inner:
            inner.append(text)
            trained(small_model("Flux", seed=1), clip)
            inner.append(trained(model.clone(), clip)[0])

    monkeypatch.setattr(progress, "show_text", another_meanwhile)
    network, _ = trained(model, clip)
    assert files(folders) == [f"FluxSchnell_0000{k}.safetensors" for k in (1, 2, 3)]
    assert all(map(torch.equal, network.parameters(), inner[1].parameters()))
    assert scale_trained_on(model) == "FluxSchnell_00003.safetensors"
    assert scale_trained_on(small_model("Flux", seed=1)) == "FluxSchnell_00001.safetensors"


def test_another_checkpoint_or_lora_under_the_same_name_neither_disturbs_nor_is_disturbed(folders):
    clip = small_clip()
    lora = small_model("Flux")
    key = next(key for key in lora.model.state_dict() if key.endswith("img_attn.qkv.weight"))
    weight = lora.model.state_dict()[key]
    up, down = torch.ones(weight.shape[0], 2), torch.ones(2, weight.shape[1])
    for number, model in enumerate([small_model("Flux"), small_model("Flux", seed=1)], start=1):
        network, _ = trained(model, clip, name="mine")
        assert network.info.name == f"mine_0000{number}" and "of 16 pictures" in network.info.created_with
    lora.add_patches({key: LoRAAdapter(set(), (up, down, 2.0, None, None, None))}, 1.0)
    assert trained(lora, clip, name="mine")[0].info.name == "mine_00001"  # LoRAs on top don't matter
    trained(lora, clip, name="mine", width=2 * SIDE)
    assert len(list(folders.parent.glob("output/annealing_profiles/mine/*"))) == 3
    assert len(load_folder(next(folders.parent.glob("output/annealing_profiles/mine/*"))).entries) == 64


def test_a_scale_of_the_other_path_is_left_alone(folders, caplog):
    model, clip = small_model("Flux"), small_clip()
    network, _ = trained(model, clip)
    other = type(network)(dataclasses.replace(network.info, prediction="epsilon"), network.config)
    save_scale(other, folders / "FluxSchnell_00001.safetensors")
    with caplog.at_level(logging.WARNING):
        trained(model, clip)
    assert '"FluxSchnell_00001.safetensors" was trained on this model, but as a model of epsilon prediction' in caplog.text
    assert scale_trained_on(model) == "FluxSchnell_00002.safetensors"
    assert load_scale(folders / "FluxSchnell_00001.safetensors").info.prediction == "epsilon"
