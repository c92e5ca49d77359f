"""Which models count as one: copies in another precision do; other weights, LoRAs and ways of sampling do not."""

from __future__ import annotations

import comfy.model_management
import comfy.model_sampling
import pytest
import torch
from annealing_guidance_pack.training.fingerprint import alike, digest, fingerprint, samples_of
from comfy.weight_adapter import LoRAAdapter
from small_models import small_model

KEY = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"


def with_lora(strength: float = 1.0, seed: int = 0, key: str = KEY, model=None):
    model = (model or small_model("SD3")).clone()
    weight = model.model.state_dict()[key]
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(weight.shape[0], 2, generator=generator), torch.randn(2, weight.shape[1], generator=generator)
    assert model.add_patches({key: LoRAAdapter(set(), (up, down, 2.0, None, None, None))}, strength) == [key]
    return model


def shifted(shift: float):
    class Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    model = small_model("SD3")
    sampling = Sampling(model.model.model_config)
    sampling.set_parameters(shift=shift)
    model.add_object_patch("model_sampling", sampling)
    return model


def v_prediction():
    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
        pass

    model = small_model("SDXL")
    model.add_object_patch("model_sampling", Sampling(model.model.model_config))
    return model


def slightly_merged():
    """One per cent of another checkpoint in every weight."""
    model, other = small_model("SD3"), small_model("SD3", seed=1)
    for mine, theirs in zip(model.model.diffusion_model.parameters(), other.model.diffusion_model.parameters(), strict=True):
        mine.data.lerp_(theirs.data, 0.01)
    return model


@pytest.mark.parametrize(
    "again",
    [
        lambda: small_model("SD3"),
        lambda: small_model("SD3", dtype=torch.bfloat16),
        lambda: small_model("SD3", dtype=torch.float16),
        lambda: shifted(3.0),  # its own shift
    ],
)
def test_copies_of_a_model_are_one_model_in_any_of_the_usual_precisions(again):
    assert fingerprint(small_model("SD3")).differences(fingerprint(again())) == []
    assert fingerprint(again()).differences(fingerprint(small_model("SD3"))) == []


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (lambda: small_model("SD3"), lambda: small_model("SDXL"), "another model (SDXL, this one is SD3)"),
        (lambda: small_model("SDXL"), lambda: small_model("SDXL", seed=1), "other weights"),
        (lambda: small_model("SD3"), slightly_merged, "other weights"),
        (lambda: small_model("SD3"), lambda: small_model("SD3", dtype=torch.float8_e4m3fn), "other weights"),
        (lambda: small_model("SD3"), with_lora, "other LoRAs"),
        (with_lora, lambda: with_lora(0.9), "other LoRAs"),
        (with_lora, lambda: with_lora(seed=1), "other LoRAs"),
        (with_lora, lambda: with_lora(key=KEY.replace("x_block", "context_block")), "other LoRAs"),
        (with_lora, lambda: with_lora(model=with_lora()), "other LoRAs"),
        (lambda: small_model("SD3"), lambda: shifted(1.0), "another way of sampling"),
        (lambda: small_model("SDXL"), v_prediction, "another way of sampling"),
    ],
)
def test_what_differs_is_said(one, other, said):
    (difference,) = fingerprint(one()).differences(fingerprint(other()))
    assert said in difference


def test_a_loaded_model_with_its_lora_baked_in_is_the_one_it_was():
    model = with_lora()
    before = fingerprint(model)
    bare = fingerprint(small_model("SD3"))
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    try:
        assert not torch.equal(model.model.state_dict()[KEY], small_model("SD3").model.state_dict()[KEY])
        assert fingerprint(model) == before
        assert bare.weights == before.weights
    finally:
        comfy.model_management.unload_all_models()


def test_samples_are_compared_tensor_by_tensor():
    assert alike([[100.0, 200.0], [1.0]], [[100.1, 200.0], [1.0]])
    assert not alike([[100.0, 200.0], [1.0]], [[100.0, 200.0], [1.1]])
    assert not alike([[1.0]], [[1.0], [1.0]])
    assert alike([[0.0]], [[0.0]]) and not alike([[0.1]], [[0.0]])
    assert not alike([[float("nan")]], [[1.0]]) and not alike([[1.0]], [[float("nan")]])


def test_the_digest_takes_everything_in_but_type_of_numbers_and_device():
    values = torch.arange(6.0)
    same = [{"b": values.half(), "a": 1}, {"a": 1, "b": values}]
    assert digest(same[0]) == digest(same[1])
    others = [
        {"a": 1, "b": values.view(2, 3)},
        {"a": 2, "b": values},
        {"a": 1, "c": values},
        {"a": "1", "b": values},
        [1, values],
    ]
    assert len({digest(value) for value in [same[0], *others, None, [], [[]], [None]]}) == 10
    assert len(samples_of([torch.randn(1000)], 8)[0]) == 8 and samples_of([torch.ones(3)]) == [[1.0, 1.0, 1.0]]
