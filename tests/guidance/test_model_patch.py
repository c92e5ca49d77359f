"""The model patch in KSampler: the guider's own pictures, beside other packs' wrappers, one patch at a time."""

import importlib

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.patch import KEY, patch_model
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models.errors import AnnealingError
from closed_form import SmoothScale, closed_form_model, conditioning, sample
from comfy.model_base import ModelType
from comfy.nested_tensor import NestedTensor
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import BasicScheduler, Noise_RandomNoise

SHAPE = (2, 4, 8, 8)
SEED = 5

core_nodes = importlib.import_module("nodes")  # ComfyUI's own, not the pack's


@pytest.fixture
def positive():
    return conditioning(torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)), 0.5)


@pytest.fixture
def negative():
    return conditioning(torch.zeros(1, *SHAPE[1:]), 0.9)


def ksampler(model, positive, negative, sampler="euler", cfg=8.0, steps=6):
    with torch.inference_mode():
        latent = {"samples": torch.zeros(SHAPE)}
        return core_nodes.KSampler().sample(model, SEED, steps, cfg, sampler, "normal", positive, negative, latent)[0]["samples"]


def by_guider(model, positive, negative, guidance, sampler="euler", steps=6):
    guider = AnnealingCFGGuider(model, guidance)
    guider.set_conds(positive, negative)
    noise = Noise_RandomNoise(SEED).generate_noise({"samples": torch.zeros(SHAPE)})
    sigmas = BasicScheduler.execute(model, "normal", steps, 1.0).args[0]
    return sample(guider, comfy.samplers.sampler_object(sampler), sigmas, noise, seed=SEED), guider.trace


@pytest.mark.parametrize("model_type", [ModelType.EPS, ModelType.FLOW], ids=lambda t: t.name)
@pytest.mark.parametrize("sampler", ["euler", "euler_cfg_pp", "dpmpp_2m", "dpmpp_sde", "heun"])
def test_ksampler_with_the_patch_is_the_guider_bit_for_bit(positive, negative, sampler, model_type):
    guidance = Guidance(SmoothScale())
    patched, trace = patch_model(closed_form_model(model_type), guidance)
    latent, guider_trace = by_guider(closed_form_model(model_type), positive, negative, guidance, sampler)
    assert torch.equal(ksampler(patched, positive, negative, sampler), latent)
    for ours, theirs in zip(trace.calls, guider_trace.calls, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_ksamplers_cfg_is_ignored_and_cfg_1_drops_nothing(positive, negative):
    patched, _ = patch_model(closed_form_model(), Guidance(SmoothScale()))
    assert torch.equal(ksampler(patched, positive, negative, cfg=1.0), ksampler(patched, positive, negative, cfg=8.0))


def test_the_patched_model_leaves_the_original_alone(positive, negative):
    model = closed_form_model()
    before = ksampler(model, positive, negative)
    patched, _ = patch_model(model, Guidance(SmoothScale()))
    assert not torch.equal(before, ksampler(patched, positive, negative))
    assert torch.equal(before, ksampler(model, positive, negative))


def test_a_second_patch_replaces_the_first(positive, negative):
    model = closed_form_model()
    strong, weak = Guidance(SmoothScale(), 1.0), Guidance(SmoothScale(), 0.0)
    once, _ = patch_model(model, weak)
    twice, trace = patch_model(patch_model(model, strong)[0], weak)
    assert torch.equal(ksampler(once, positive, negative), ksampler(twice, positive, negative))
    assert len(trace.calls) == 6
    assert len(twice.get_wrappers(WrappersMP.PREDICT_NOISE, KEY)) == 1


@pytest.mark.parametrize("added", ["before", "after"])
def test_other_packs_wrappers_keep_running(positive, negative, added):
    calls = []

    def count(executor, *args, **kwargs):
        calls.append(args[1])
        return executor(*args, **kwargs)

    def add_counter(model):
        model = model.clone()
        model.add_wrapper(WrappersMP.PREDICT_NOISE, count)
        return model

    guidance = Guidance(SmoothScale())
    if added == "before":
        patched, trace = patch_model(add_counter(closed_form_model()), guidance)
    else:
        patched, trace = patch_model(closed_form_model(), guidance)
        patched = add_counter(patched)
    latent = ksampler(patched, positive, negative)
    assert len(calls) == len(trace.calls) == 6
    assert torch.equal(latent, by_guider(closed_form_model(), positive, negative, guidance)[0])


def test_a_guider_keeps_its_own_guidance_on_a_patched_model(positive, negative):
    patched, trace = patch_model(closed_form_model(), Guidance(SmoothScale(), 1.0))
    own = Guidance(SmoothScale(), 0.0)
    latent, _ = by_guider(patched, positive, negative, own)
    assert torch.equal(latent, by_guider(closed_form_model(), positive, negative, own)[0])
    assert trace.run_id == 0


def test_ksampler_without_a_negative_is_an_error(positive):
    patched, _ = patch_model(closed_form_model(), Guidance(SmoothScale()))
    with pytest.raises(AnnealingError, match="no negative conditioning"):
        ksampler(patched, positive, [])


def test_a_scale_for_another_kind_of_model_is_an_error():
    with pytest.raises(AnnealingError, match="was made for"):
        patch_model(closed_form_model(ModelType.FLOW), Guidance(SmoothScale("epsilon")))


def test_a_model_turned_into_another_kind_after_the_patch_is_an_error(positive, negative):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    patched, _ = patch_model(closed_form_model(), Guidance(SmoothScale("epsilon")))
    (flow,) = ModelSamplingSD3().patch(patched, 3.0)
    with pytest.raises(AnnealingError, match="was made for"):
        ksampler(flow, positive, negative)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_cfg_pp"])
def test_packed_latents_are_guided_by_the_patch_as_by_the_guider(sampler):
    """Video with sound: the patch is told the parts' shapes as the guider is."""
    parts = [(2, 4, 3, 8, 8), (2, 8, 10)]
    values = sum(torch.Size(part[1:]).numel() for part in parts)
    means = torch.randn(2, 1, values, generator=torch.Generator().manual_seed(1))
    conds = conditioning(means, 0.5), conditioning(0 * means[:1], 0.5)
    noise = [torch.randn(part, generator=torch.Generator().manual_seed(2)) for part in parts]
    guidance, sigmas = Guidance(SmoothScale()), torch.tensor([14.0, 6.0, 2.0, 0.5, 0.0])
    patched, trace = patch_model(closed_form_model(), guidance)
    guiders = [comfy.samplers.CFGGuider(patched), AnnealingCFGGuider(closed_form_model(), guidance)]
    results = []
    for guider in guiders:
        guider.set_conds(*conds)
        zeros = NestedTensor([torch.zeros(part) for part in parts])
        with torch.inference_mode():
            packed = guider.sample(NestedTensor(noise), zeros, comfy.samplers.sampler_object(sampler), sigmas, seed=0)
        results.append(packed.unbind())
    for by_patch, by_guider, shape in zip(*results, parts, strict=True):
        assert by_patch.shape == shape and torch.equal(by_patch, by_guider)
    # The gap is that of the video's part alone.
    for ours, theirs in zip(trace.calls, guiders[1].trace.calls, strict=True):
        assert torch.equal(ours.gap_norm, theirs.gap_norm)
    gap = (means[:, 0, :768] * 14 / (0.5**2 + 14**2)).norm(dim=1)
    assert torch.allclose(trace.calls[0].gap_norm, gap, rtol=1e-4)
