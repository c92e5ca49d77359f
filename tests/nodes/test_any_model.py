"""Any model in the first minute: a guider or patch dragged in, cfg set, nothing else; and better once a scale was trained."""

from __future__ import annotations

import importlib

import comfy.samplers
import folder_paths
import pytest
import torch
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.nodes import guider, train_once
from annealing_guidance_pack.nodes.guider import AnnealingGuider, AnnealingModelPatch
from annealing_guidance_pack.nodes.train_once import AnnealingTrainScale
from closed_form import GivenNoise
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from scales_folder import train_briefly, use_scales_folder
from small_models import small_clip, small_conditioning, small_latent, small_model

core_nodes = importlib.import_module("nodes")  # ComfyUI's own
STRUCTURES = {"SD15": "Stable Diffusion 1.5", "Flux": "FLUX.1", "Qwen-Image": "Qwen-Image"}
UNTOUCHED = {"guidance_lambda": 0.4, "renoise": "auto", "match_training_steps": True}


@pytest.fixture(autouse=True)
def scales(tmp_path, monkeypatch):
    """No saved scales, and a brief training."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    use_scales_folder(tmp_path, monkeypatch)
    train_briefly(monkeypatch)


@pytest.fixture
def noted(monkeypatch) -> list[str]:
    """What is said under the node before the run."""
    notes: list[str] = []
    chart = guider.live_chart
    monkeypatch.setattr(guider, "live_chart", lambda hidden, said: notes.extend(said) or chart(hidden, said))
    return notes


def sampled(name, model, **inputs):
    """(trace, latent) of ten steps with the Annealing Guider and untouched widgets but for `inputs`."""
    latent = small_latent(name, 1, 8)
    with torch.inference_mode():
        made, trace = AnnealingGuider.execute(
            model=model, positive=small_conditioning(1), negative=small_conditioning(2), **UNTOUCHED | inputs
        ).args
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 10)
        noise = GivenNoise(torch.randn(latent.shape, generator=torch.Generator().manual_seed(3)))
        sampler = comfy.samplers.sampler_object("euler")
        out = SamplerCustomAdvanced.execute(noise, made, sampler, sigmas, {"samples": latent})
    return trace, out.args[0]["samples"]


@pytest.mark.parametrize("name", STRUCTURES)
def test_without_a_cfg_the_error_names_the_model_and_the_ways_in(name):
    with pytest.raises(AnnealingError, match=f"({STRUCTURES[name]}).*Set cfg.*Train Annealing Scale.*Load Annealing Scale"):
        sampled(name, small_model(name))


@pytest.mark.parametrize("name", STRUCTURES)
def test_with_a_cfg_alone_it_is_guided_that_strongly(name, noted):
    trace, latent = sampled(name, small_model(name), cfg=5.0)
    assert trace.latest.mean_cfg() == pytest.approx(5.0, rel=0.1) and latent.isfinite().all()
    assert "No scale is trained for" in noted[0] and STRUCTURES[name] in noted[0]


def test_the_patch_and_ksampler_do_as_well():
    model, latent = small_model("SD15"), {"samples": small_latent("SD15", 1, 8)}
    with torch.inference_mode():
        patched, trace = AnnealingModelPatch.execute(model=model, **UNTOUCHED, cfg=5.0).args
        given = small_conditioning(1), small_conditioning(2)
        core_nodes.KSampler().sample(patched, 3, 10, 8.0, "dpmpp_2m", "karras", *given, latent)
    assert trace.latest.mean_cfg() == pytest.approx(5.0, rel=0.1)


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_scale_that_was_trained_once_is_found_by_the_next_guider(name, noted):
    model = small_model(name)
    with torch.inference_mode():
        widgets = {"prompts": train_once.BUNDLED_PROMPTS, "width": 64, "height": 64, "effort": "quick", "name": "mine"}
        AnnealingTrainScale.execute(model=model, clip=small_clip(), **widgets)
    trace, latent = sampled(name, model)
    assert trace.latest.scale_name.startswith("mine") and latent.isfinite().all()
    assert "was trained on this model" in noted[0]
    trace, _ = sampled(name, model, cfg=5.0)
    assert trace.latest.mean_cfg() == pytest.approx(5.0, rel=0.15)
    with pytest.raises(AnnealingError, match="no annealing scale is known"):
        sampled(name, small_model(name, seed=7))  # another checkpoint
