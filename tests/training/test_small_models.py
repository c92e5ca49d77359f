"""Profile and fit on ComfyUI's own model classes, shrunk: epsilon, v-prediction and flow, bfloat16 and 8-bit weights."""

from __future__ import annotations

import dataclasses

import comfy.model_sampling
import pytest
import torch
from annealing_guidance_pack.training.fit import FitSettings, fit
from annealing_guidance_pack.training.pictures import SampleSettings, given_pictures, sampled_pictures
from annealing_guidance_pack.training.profile import Profile, ProfileSettings
from annealing_guidance_pack.training.shards import measure
from small_models import small_conditioning, small_latent, small_model

QUICK = FitSettings(steps=100, batch_size=64, hidden_width=16, depth=1)
SETTINGS = ProfileSettings(100, samples=8, knots=(0.0, 2.0))
NEGATIVE = small_conditioning(99)


def with_v_prediction(model):
    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
        pass

    model.add_object_patch("model_sampling", Sampling(model.model.model_config))
    return model


def pictures(name: str, count: int = 8) -> list:
    latents = torch.randn(small_latent(name, count, size=8).shape, generator=torch.Generator().manual_seed(5))
    return given_pictures({"samples": latents}, [small_conditioning(seed) for seed in range(count)])


MODELS = {
    "SDXL": lambda: small_model("SDXL"),
    "SDXL v-prediction": lambda: with_v_prediction(small_model("SDXL")),
    "SD3": lambda: small_model("SD3"),
    "SD3 bfloat16": lambda: small_model("SD3", dtype=torch.bfloat16),
    "SDXL 8-bit": lambda: small_model("SDXL", dtype=torch.float8_e4m3fn),
}


def profile_of(name: str, count: int) -> Profile:
    return measure(MODELS[name](), pictures(name.split()[0], count), NEGATIVE, SETTINGS)


@pytest.mark.parametrize("name", [name for name in MODELS if "8-bit" not in name])
def test_a_scale_is_fitted_to_the_model_and_the_model_is_left_as_it_was(name):
    model = MODELS[name]()
    before = {key: tensor.clone() for key, tensor in model.model.state_dict().items()}
    options = repr(model.model_options)
    with torch.inference_mode():
        profile = measure(model, pictures(name.split()[0]), NEGATIVE, SETTINGS)
        result = fit(profile, QUICK, name=name, trained_on="", source="", licence="")
    assert profile.kind == ("velocity" if name.startswith("SD3") else "epsilon")
    assert len(profile.entries) == 64 and profile.entries.finite().all()
    assert profile.reference_numel == small_latent(name.split()[0], size=8).numel()
    assert result.network.info.prediction == profile.kind
    assert result.network(profile.entries.timestep, profile.entries.gap_norm, 0.4).isfinite().all()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.model.state_dict().items())
    assert repr(model.model_options) == options


def test_pooled_embeddings_reach_the_model_perturbed():
    only_pooled = [[torch.zeros(1, 5, 24), small_conditioning(0)[0][1]]]  # zeros stay what they are
    picture = given_pictures({"samples": pictures("SDXL", 1)[0].make()[0][None]}, only_pooled)
    one, other = (
        measure(small_model("SDXL"), picture, NEGATIVE, dataclasses.replace(SETTINGS, perturb=perturb)).entries
        for perturb in (True, False)
    )
    assert not torch.isclose(one.first, other.first).all(1).any()
    assert torch.equal(one.timestep, other.timestep)


@pytest.mark.parametrize(("rough", "exact", "tolerance"), [("SD3 bfloat16", "SD3", 0.03), ("SDXL 8-bit", "SDXL", 0.3)])
def test_coarser_weights_give_nearly_the_same_table(rough, exact, tolerance):
    one, other = profile_of(rough, 1).entries, profile_of(exact, 1).entries
    for name in ("gap_norm", "first", "second"):
        a, b = getattr(one, name), getattr(other, name)
        assert 0 < float((a - b).norm() / b.norm()) < tolerance, name


@pytest.mark.parametrize("name", ["SDXL", "SD3"])
def test_pictures_of_the_model_s_own_have_its_channels_even_from_an_empty_latent_of_four(name):
    model = small_model(name)
    size = {"samples": torch.zeros(1, 4, 8, 8)}  # as Empty Latent Image gives it
    (picture,) = sampled_pictures(model, size, small_conditioning(1), NEGATIVE, SampleSettings(steps=3))
    latent, _ = picture.make()
    assert latent.shape == small_latent(name, size=8)[0].shape
    assert len(measure(model, [picture], NEGATIVE, SETTINGS).entries) == 8
