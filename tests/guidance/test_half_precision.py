"""Latents in half precision, as some samplers keep them: guided as in single precision, within its rounding."""

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance.course import Course
from annealing_guidance_pack.guidance.delivery import Delivery
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.patch import patch_model
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.guidance.sampler_facts import facts_of
from closed_form import SmoothScale, closed_form_model, conditioning, sample
from comfy.model_base import ModelType
from probing import EPS, model_sampling_of, sampler_of, scheduled

SHAPE = (2, 4, 8, 8)
MEANS, NOISE = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
precisions = pytest.mark.parametrize("dtype, bound", [(torch.float16, 0.01), (torch.bfloat16, 0.08)], ids=str)


class HalfModel:
    """The model as a sampler in half precision calls it."""

    def __init__(self, model, dtype, seen):
        self.model, self.inner_model, self.dtype, self.seen = model, model.inner_model, dtype, seen

    def __call__(self, x, sigma, **kwargs):
        denoised = self.model(x, sigma, **kwargs)
        self.seen.append(x.dtype)
        return denoised.to(self.dtype)


def in_half(inner, dtype, seen):
    def half_sampler(model, x, sigmas, **kwargs):
        return inner.sampler_function(HalfModel(model, dtype, seen), x.to(dtype), sigmas, **kwargs, **inner.extra_options).float()

    return comfy.samplers.KSAMPLER(half_sampler)


def latent(entry, model_type, sampler):
    model, guidance = closed_form_model(model_type), Guidance(SmoothScale())
    if entry == "guider":
        guider = AnnealingCFGGuider(model, guidance)
    else:
        guider = comfy.samplers.CFGGuider(patch_model(model, guidance)[0])
    guider.set_conds(conditioning(MEANS, 0.5), conditioning(0 * MEANS[:1], 0.9))
    sigmas = torch.tensor(
        [14.0, 9.0, 6.0, 3.5, 2.0, 1.0, 0.5, 0.0] if model_type is ModelType.EPS else [0.95, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.0]
    )
    return sample(guider, sampler, sigmas, NOISE)


@pytest.mark.parametrize("entry", ["guider", "patch"])
@pytest.mark.parametrize("model_type", [ModelType.EPS, ModelType.FLOW], ids=lambda t: t.name)
@pytest.mark.parametrize("name", ["euler", "euler_cfg_pp", "dpmpp_2m", "lms", "ipndm", "heun"])
@precisions
def test_a_sampler_in_half_precision_gives_the_picture_of_single_precision(entry, model_type, name, dtype, bound):
    seen = []
    found = latent(entry, model_type, in_half(sampler_of(name), dtype, seen))
    expected = latent(entry, model_type, sampler_of(name))
    assert dtype in seen
    assert found.isfinite().all() and ((found - expected).norm() / expected.norm()) < bound


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "euler_cfg_pp"])
@precisions
def test_what_is_handed_over_keeps_the_predictions_type(name, dtype, bound):
    facts, sigmas = facts_of(sampler_of(name)), scheduled(EPS, "karras", 5).float()
    way = Course(model_sampling_of(EPS), SmoothScale().info, facts, sigmas, facts.uncond_share, torch.device("cpu"))
    halved, single = (Delivery(facts.uncond_share > 0, way.remembers) for _ in range(2))
    for sigma in sigmas[:-1]:
        level = way.at(sigma.expand(2))
        exact = single(level, 0.3 * MEANS, 0.1 * MEANS, MEANS)
        found = halved(level, *(values.to(dtype) for values in (0.3 * MEANS, 0.1 * MEANS, MEANS)))
        assert found.dtype == dtype
        assert ((found.float() - exact).norm() / exact.norm()) < bound
