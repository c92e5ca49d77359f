"""Inpainting: the gap is measured where the mask lets the picture change, at no cost where there is no mask."""

import importlib

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance.extent import GapExtent
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.patch import patch_model
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models.fixed_scale import FixedScale
from closed_form import SmoothScale, closed_form_model, conditioning, sample
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from hypothesis import given, settings
from hypothesis import strategies as st
from scales import made_up_network

SHAPE = (2, 4, 8, 8)
SIGMAS = torch.tensor([14.0, 6.0, 2.0, 0.5, 0.0])
STD = 0.7
core_nodes = importlib.import_module("nodes")  # ComfyUI's own, not the pack's


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def guider_of(means, model=None, scale_model=None):
    """A guider whose gap is sigma^2 / (STD^2 + sigma^2) times `means` in the denoised prediction, whatever x is."""
    guider = AnnealingCFGGuider(model or closed_form_model(), Guidance(scale_model or SmoothScale("epsilon")))
    guider.set_conds(conditioning(means, STD), conditioning(torch.zeros_like(means[:1]), STD))
    return guider


def run(guider, mask=None, latent=None):
    return sample(guider, comfy.samplers.sampler_object("euler"), SIGMAS, random(*SHAPE, seed=2), latent=latent, mask=mask)


def norms(guider):
    return torch.stack([call.gap_norm for call in guider.trace.calls])


def expected_norms(means, masks):
    """By the definition: sum m d^2 over sum m, times the number of values. masks: [T, B or 1, ...], one per step."""
    shares = masks.expand(len(SIGMAS) - 1, *means.shape).flatten(2)
    mean_square = (shares * means.flatten(1).square()).sum(dim=2) / shares.sum(dim=2)
    factor = SIGMAS[:-1] / (STD**2 + SIGMAS[:-1] ** 2)
    return (mean_square * means[0].numel()).sqrt() * factor[:, None]


def left_half():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    return mask


# ---- what is measured


def test_what_is_kept_does_not_count():
    means = random(*SHAPE)
    other = means.clone()
    other[..., 4:] = 50
    first, second = guider_of(means), guider_of(other)
    latents = [run(guider, left_half()) for guider in (first, second)]
    assert torch.equal(norms(first), norms(second)) and torch.equal(*latents)
    torch.testing.assert_close(norms(first), expected_norms(means, left_half()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale_model", [SmoothScale("epsilon"), made_up_network()], ids=["raw norm", "norm of 65,536 values"])
def test_a_masked_picture_counts_as_a_whole_one_with_the_same_gap_per_value(scale_model):
    means = torch.full(SHAPE, 0.3)
    whole, masked = guider_of(means, scale_model=scale_model), guider_of(means, scale_model=scale_model)
    run(whole)
    run(masked, left_half())
    torch.testing.assert_close(norms(masked), norms(whole), rtol=1e-6, atol=0)


@given(st.integers(0, 2**31), st.floats(0.05, 1))
@settings(max_examples=20)
def test_a_soft_mask_weighs_every_value(seed, strength):
    means, mask = random(*SHAPE, seed=seed), strength * torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    guider = guider_of(means)
    run(guider, mask)
    torch.testing.assert_close(norms(guider), expected_norms(means, mask), rtol=1e-5, atol=0)


def test_a_full_mask_is_no_mask_bit_for_bit():
    masked, plain = guider_of(random(*SHAPE)), guider_of(random(*SHAPE))
    assert torch.equal(run(masked, torch.ones(1, 1, 64, 64)), run(plain))
    assert torch.equal(norms(masked), norms(plain))


def test_a_mask_that_lets_nothing_change_keeps_the_latent_and_counts_as_none():
    masked, plain, kept = guider_of(random(*SHAPE)), guider_of(random(*SHAPE)), random(*SHAPE, seed=5)
    torch.testing.assert_close(run(masked, torch.zeros(1, 1, 8, 8), latent=kept), kept, atol=1e-6, rtol=0)
    run(plain)
    torch.testing.assert_close(norms(masked), norms(plain), rtol=1e-6, atol=0)


def test_each_sample_of_a_batch_has_its_own_mask():
    means = random(*SHAPE)
    masks = torch.cat([left_half(), torch.zeros(1, 1, 8, 8)])
    batch, first, plain = (guider_of(means) for _ in range(3))
    run(batch, masks)
    run(first, left_half())
    run(plain)
    torch.testing.assert_close(norms(batch), torch.stack([norms(first)[:, 0], norms(plain)[:, 1]], dim=1), rtol=1e-6, atol=0)


def test_a_mask_beyond_0_to_1_is_held_to_it():
    guider, plain = guider_of(random(*SHAPE)), guider_of(random(*SHAPE))
    run(guider, 3 * left_half() - 1)
    run(plain, left_half())
    torch.testing.assert_close(norms(guider), norms(plain), rtol=1e-5, atol=0)


# ---- masks that change, and their cost


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_with_differential_diffusion_the_mask_of_the_step_counts(strength):
    means, mask = random(*SHAPE), torch.linspace(0.05, 1, 64).view(1, 1, 8, 8)
    model = DifferentialDiffusion.execute(closed_form_model(), strength).args[0]
    guider, masks = guider_of(means, model), []
    given_function = model.model_options["denoise_mask_function"]

    def remember(*args, **kwargs):
        masks.append(given_function(*args, **kwargs))
        return masks[-1]

    model.set_model_denoise_mask_function(remember)
    run(guider, mask)
    assert len(masks) == 4 and masks[0].mean() < masks[-1].mean()
    torch.testing.assert_close(norms(guider), expected_norms(means, torch.stack(masks)), rtol=1e-5, atol=0)


def test_differential_diffusion_still_acts():
    means, mask = random(*SHAPE), torch.linspace(0.05, 1, 64).view(1, 1, 8, 8)
    model = DifferentialDiffusion.execute(closed_form_model()).args[0]
    core = comfy.samplers.CFGGuider(model)
    core.set_conds(conditioning(means, STD), conditioning(torch.zeros_like(means[:1]), STD))
    core.set_cfg(0.8)
    ours = AnnealingCFGGuider(model, Guidance(FixedScale("constant", 0.8), renoise="null", match_training_steps=False))
    ours.set_conds(conditioning(means, STD), conditioning(torch.zeros_like(means[:1]), STD))
    torch.testing.assert_close(run(ours, mask), run(core, mask), atol=2e-6, rtol=0)
    assert not torch.equal(run(ours, mask), run(ours, torch.ones_like(mask)))


def test_an_unchanging_mask_is_prepared_once_per_run_and_none_without_a_mask(monkeypatch):
    prepared = []
    weight_of = GapExtent._weight_of
    monkeypatch.setattr(GapExtent, "_weight_of", lambda self, like: prepared.append(self) or weight_of(self, like))
    guider = guider_of(random(*SHAPE))
    for mask, count in ((None, 0), (left_half(), 1), (left_half(), 2), (None, 2)):
        run(guider, mask)
        assert len(prepared) == count


def test_a_run_leaves_nothing_in_the_model():
    model = closed_form_model()
    run(guider_of(random(*SHAPE), model), left_half())
    assert "denoise_mask_function" not in model.model_options


def test_ksampler_with_the_patch_measures_as_the_guider_does():
    means, latent = random(*SHAPE), {"samples": torch.zeros(SHAPE), "noise_mask": left_half()}
    positive, negative = conditioning(means, STD), conditioning(torch.zeros_like(means[:1]), STD)
    patched, trace = patch_model(closed_form_model(), Guidance(SmoothScale("epsilon")))
    with torch.inference_mode():
        core_nodes.KSampler().sample(patched, 0, 5, 8.0, "euler", "normal", positive, negative, latent)
    assert len(trace.calls) == 5
    for call in trace.calls:
        share = left_half().expand_as(means).flatten(1)
        gap = ((share * means.flatten(1).square()).sum(dim=1) * 2).sqrt() * call.sigma / (STD**2 + call.sigma**2)
        torch.testing.assert_close(call.gap_norm, gap, rtol=5e-4, atol=0)


# ---- masks of packed latents and of frames


def masked_norm(extent, mask, means, sigma=2.0):
    """The gap norm of predictions that differ by `means`, as a run with this mask measures it."""
    options = {}
    extent.follow_mask(options)
    sigmas = torch.full(means.shape[:1], sigma)
    options["denoise_mask_function"](sigmas, mask, extra_options={})
    return extent.gap_norm(means, torch.zeros_like(means), None)


@pytest.mark.parametrize("shapes, frames_on_batch", [([(3, 40)], False), ([(3, 40)], True), ([(3, 30), (3, 10)], False)])
@pytest.mark.parametrize("masked", [False, True])
def test_products_are_of_the_values_that_the_norm_is_of(shapes, frames_on_batch, masked):
    """In one unit for a whole run, so that their ratio is the share of one latent in another."""
    gap = torch.randn(3, 1, 40, generator=torch.Generator().manual_seed(0))
    extent = GapExtent(shapes, frames_on_batch)
    mask = (torch.arange(40) < 20).float().expand(3, 1, 40) if masked else torch.ones(3, 1, 40)
    norm = masked_norm(extent, mask, gap)
    unit = norm.square() / extent.product(gap, gap)
    torch.testing.assert_close(unit, unit[:1].expand(3))
    torch.testing.assert_close(extent.product(gap, 2 * gap) / extent.product(gap, gap), torch.full((3,), 2.0))


def test_a_packed_latent_is_measured_in_the_first_part_that_changes():
    """Rows: both parts change; the video is given and only its sound is made; nothing changes."""
    video, sound = torch.full((3, 1, 30), 0.2), torch.full((3, 1, 10), 5.0)
    mask = torch.ones(3, 1, 40)
    mask[1, :, :30] = 0
    mask[2] = 0
    extent = GapExtent([(3, 5, 6), (3, 10)])
    norm = masked_norm(extent, mask, torch.cat([video, sound], dim=2))
    everything = (30 * 0.04 + 10 * 25) / 40
    torch.testing.assert_close(norm, (30 * torch.tensor([0.04, 25.0, everything])).sqrt())


def test_masked_frames_count_by_what_changes_in_them():
    means, mask = torch.stack([torch.full((1, 8, 8), value) for value in (1.0, 2.0, 9.0)]), torch.zeros(3, 1, 8, 8)
    mask[0], mask[1, ..., :4] = 1, 1
    norm = masked_norm(GapExtent([(3, 1, 8, 8)], frames_on_batch=True), mask, means)
    torch.testing.assert_close(norm, torch.full((3,), (64 * (64 * 1 + 32 * 4) / 96) ** 0.5))
