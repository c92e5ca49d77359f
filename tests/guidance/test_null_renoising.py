"""The Annealing Sampler: its step, its noise, inpainting and previews, with our guider and with core's."""

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models.errors import AnnealingError
from closed_form import SmoothScale, closed_form_model, conditioning, sample
from comfy.model_base import ModelType
from comfy_extras.nodes_custom_sampler import BasicGuider

SHAPE = (2, 4, 8, 8)
SIGMAS = {ModelType.EPS: torch.tensor([14.0, 6.0, 2.0, 0.5, 0.0]), ModelType.FLOW: torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])}
both_kinds = pytest.mark.parametrize("model_type", list(SIGMAS), ids=lambda t: t.name)


def randn(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def core_guider(model_type, cfg=0.8, std_cond=0.5, **negative_options):
    guider = comfy.samplers.CFGGuider(closed_form_model(model_type))
    guider.set_conds(conditioning(randn(1), std_cond), conditioning(torch.zeros(1, *SHAPE[1:]), 0.9, **negative_options))
    guider.set_cfg(cfg)
    return guider


@both_kinds
def test_with_cores_guider_it_is_cores_cfg_pp_step(model_type):
    ours = sample(core_guider(model_type), null_renoising_sampler(), SIGMAS[model_type], randn(2))
    core = sample(core_guider(model_type), comfy.samplers.sampler_object("euler_cfg_pp"), SIGMAS[model_type], randn(2))
    torch.testing.assert_close(ours, core, atol=2e-6, rtol=0)


@both_kinds
def test_renoising_with_the_guided_prediction_is_the_ordinary_step(model_type):
    ours = sample(core_guider(model_type, 3.0), null_renoising_sampler(renoise_mix=0.0), SIGMAS[model_type], randn(2))
    euler = sample(core_guider(model_type, 3.0), comfy.samplers.sampler_object("euler"), SIGMAS[model_type], randn(2))
    torch.testing.assert_close(ours, euler, atol=5e-6, rtol=0)


@both_kinds
def test_eta_is_cores_ddim_noise(model_type):
    """euler_ancestral_cfg_pp takes the same stochastic step, from the same noise, for both kinds."""
    sigmas = SIGMAS[model_type][1:]  # from s = 1 core takes only fresh noise, whatever eta: its ratio there is inf/inf
    ours = sample(core_guider(model_type), null_renoising_sampler(eta=0.7), sigmas, randn(2), seed=9)
    ancestral = comfy.samplers.ksampler("euler_ancestral_cfg_pp", {"eta": 0.7})
    core = sample(core_guider(model_type), ancestral, sigmas, randn(2), seed=9)
    torch.testing.assert_close(ours, core, atol=5e-6, rtol=0)


@both_kinds
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_noise_keeps_the_variance_of_the_data(model_type, eta):
    """Unguided, on data of unit deviation: many small steps, with any eta, end on data of unit deviation."""
    shape = (32, 4, 8, 8)
    guider = comfy.samplers.CFGGuider(closed_form_model(model_type))
    standard = conditioning(torch.zeros(1, *shape[1:]), 1.0)
    guider.set_conds(standard, standard)
    if model_type == ModelType.EPS:
        sigmas, noise = torch.cat([torch.logspace(1.7, -1.7, 400), torch.zeros(1)]), randn(2, shape) * (1 + 50.0**-2) ** 0.5
    else:
        sigmas, noise = torch.linspace(1, 0, 401), randn(2, shape)
    latent = sample(guider, null_renoising_sampler(eta), sigmas, noise)
    assert latent.std().item() == pytest.approx(1.0, abs=0.04)  # five standard errors of 8,192 values


def test_the_mix_interpolates():
    ends = [
        sample(core_guider(ModelType.EPS), null_renoising_sampler(0.0, mix), SIGMAS[ModelType.EPS][:2], randn(2))
        for mix in (0, 1)
    ]
    middle = sample(core_guider(ModelType.EPS), null_renoising_sampler(0.0, 0.25), SIGMAS[ModelType.EPS][:2], randn(2))
    torch.testing.assert_close(middle, torch.lerp(*ends, 0.25), atol=1e-5, rtol=0)


@both_kinds
def test_inpainting_keeps_what_the_mask_keeps(model_type):
    guider = AnnealingCFGGuider(closed_form_model(model_type), Guidance(SmoothScale()))
    guider.set_conds(conditioning(randn(1), 0.5), conditioning(torch.zeros(1, *SHAPE[1:]), 0.9))
    known, mask = randn(3), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1.0
    latent = sample(guider, null_renoising_sampler(), SIGMAS[model_type], randn(2), latent=known, mask=mask)
    torch.testing.assert_close(latent[..., 4:], known[..., 4:])
    assert (latent[..., :4] - known[..., :4]).abs().mean() > 0.1


def test_previews_and_progress_see_every_step():
    steps = []
    guider = core_guider(ModelType.EPS)
    guider.sample(
        randn(2), torch.zeros(SHAPE), null_renoising_sampler(), SIGMAS[ModelType.EPS], seed=0, disable_pbar=True,
        callback=lambda step, denoised, x, total: steps.append((step, denoised.shape, x.shape, total)),
    )  # fmt: skip
    assert steps == [(i, SHAPE, SHAPE, 4) for i in range(4)]


def test_a_guider_without_an_unconditional_prediction_is_an_error():
    guider = BasicGuider.execute(closed_form_model(), conditioning(randn(1), 0.5)).args[0]
    with pytest.raises(AnnealingError, match="gives none.*negative"):
        sample(guider, null_renoising_sampler(), SIGMAS[ModelType.EPS], randn(2))


def test_a_guider_that_runs_no_hooks_is_an_error():
    class Hookless(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            return x * 0.5

    guider = Hookless(closed_form_model())
    guider.set_conds(conditioning(randn(1), 0.5), conditioning(randn(1), 0.5))
    with pytest.raises(AnnealingError, match="post-CFG hooks"):
        sample(guider, null_renoising_sampler(), SIGMAS[ModelType.EPS], randn(2))


def test_under_cores_guider_a_negative_out_of_range_does_not_become_noise():
    """Core hands zeros to the hooks there; the guided prediction renoises instead."""
    late = core_guider(ModelType.EPS, cfg=1.0, start_percent=0.99999)
    plain = core_guider(ModelType.EPS, cfg=1.0)
    ours = sample(late, null_renoising_sampler(), SIGMAS[ModelType.EPS], randn(2))
    torch.testing.assert_close(
        ours, sample(plain, comfy.samplers.sampler_object("euler"), SIGMAS[ModelType.EPS], randn(2)), atol=1e-5, rtol=0
    )
