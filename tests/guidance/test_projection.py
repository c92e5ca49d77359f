"""Projection: guidance across the conditional prediction only, in ordinary CFG whatever the sampler."""

import dataclasses

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance.extent import GapExtent
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.fixed_scale import FixedScale
from closed_form import SmoothScale, closed_form_model, conditioning, run_of, sample
from comfy.model_base import ModelType
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_apg import APG

SHAPE = (3, 4, 8, 8)
SIGMAS = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1, 0.0])
MEANS, NOISE = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))


class Trained(SmoothScale):
    """A scale that says that it was trained with projection."""

    def __init__(self):
        super().__init__()
        self.info = dataclasses.replace(self.info, projection=True)


def run(guidance, sampler="euler", model_type=ModelType.EPS, patch=lambda model: model, mask=None):
    guider = AnnealingCFGGuider(patch(closed_form_model(model_type)), guidance)
    guider.set_conds(conditioning(MEANS, 0.5), conditioning(torch.full_like(MEANS[:1], 0.3), 0.9))
    solver = null_renoising_sampler() if sampler == "annealing" else comfy.samplers.sampler_object(sampler)
    return sample(guider, solver, SIGMAS, NOISE, mask=mask), guider


def projected(cond, uncond, cfg):
    """D_c + (cfg - 1) delta_perp, per sample."""
    delta = (cond - uncond).double()
    flat, along = delta.flatten(1), cond.double().flatten(1)
    share = (flat * along).sum(1) / (along * along).sum(1)
    across = delta - share.view(-1, 1, 1, 1) * cond.double()
    return cond + (cfg - 1) * across


@pytest.mark.parametrize("model_type", [ModelType.EPS, ModelType.FLOW], ids=lambda kind: kind.name)
def test_a_guided_prediction_is_the_conditional_one_and_what_lies_across_it(model_type):
    seen, handed = [], []

    def watched(model):
        model = model.clone()
        model.set_model_sampler_pre_cfg_function(lambda args: seen.append(args["conds_out"]) or args["conds_out"])
        keep = lambda executor, *args, **kwargs: handed.append(executor(*args, **kwargs)) or handed[-1]  # noqa: E731
        model.add_wrapper(WrappersMP.PREDICT_NOISE, keep)
        return model

    _, guider = run(Guidance(SmoothScale(), projection="on"), model_type=model_type, patch=watched)
    pairs = list(zip(seen, handed, guider.trace.calls, strict=True))
    assert len(pairs) == 5
    for (cond, uncond), guided, call in pairs:
        expected = projected(cond, uncond, call.cfg_scale.double().view(-1, 1, 1, 1))
        torch.testing.assert_close(guided.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["annealing", "euler_cfg_pp"])
@pytest.mark.parametrize("model_type", [ModelType.EPS, ModelType.FLOW], ids=lambda kind: kind.name)
def test_null_and_folded_are_one_picture(model_type, sampler):
    guidance = Guidance(SmoothScale(), projection="on", cfg=5.0)
    ordinary, _ = run(guidance, "euler", model_type)
    torch.testing.assert_close(run(guidance, sampler, model_type)[0], ordinary, atol=5e-5, rtol=0)
    assert (ordinary - run(dataclasses.replace(guidance, projection="off"), "euler", model_type)[0]).abs().max() > 0.01


def test_beside_comfyuis_apg_node_it_changes_nothing_more():
    def apg(model):
        return APG.execute(model, 0.0, 0.0, 0.0).args[0]

    for sampler in ("euler", "annealing", "dpmpp_2m"):
        once, _ = run(Guidance(SmoothScale(), projection="off"), sampler, patch=apg)
        both, _ = run(Guidance(SmoothScale(), projection="on"), sampler, patch=apg)
        torch.testing.assert_close(both, once, atol=1e-4, rtol=0)


def test_auto_is_as_the_scale_was_trained():
    for scale, as_if in ((SmoothScale(), "off"), (FixedScale("constant", 0.8), "off"), (Trained(), "on")):
        assert torch.equal(run(Guidance(scale))[0], run(Guidance(scale, projection=as_if))[0])


def test_a_scale_trained_with_it_is_told_the_norm_of_the_projected_gap():
    cond, uncond = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(5))
    norms = []
    for scale in (SmoothScale(), Trained()):
        _, call = run_of(closed_form_model(), Guidance(scale), NOISE, SIGMAS).guide(cond, uncond, torch.ones(3))
        norms.append(call.gap_norm)
    across = projected(cond, uncond, 2.0) - cond
    torch.testing.assert_close(norms[1].double(), across.flatten(1).norm(dim=1), rtol=1e-5, atol=0)
    assert (norms[1] < norms[0]).all()


def test_only_what_the_mask_lets_change_counts():
    run_ = run_of(closed_form_model(), Guidance(SmoothScale(), projection="on"), NOISE, SIGMAS)
    cond, uncond = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(5))
    mask, options = torch.zeros(SHAPE), {}
    mask[..., :4] = 1
    run_.extent = GapExtent([SHAPE])
    run_.extent.follow_mask(options)
    options["denoise_mask_function"](torch.ones(3), mask, extra_options={})
    run_.extent.gap_norm(cond, uncond, None)
    across = cond - run_.extent.across(cond, uncond)
    torch.testing.assert_close((across * cond * mask).flatten(1).sum(1), torch.zeros(3), atol=1e-4, rtol=0)


def test_a_prediction_of_zeros_has_no_direction_to_leave_out():
    run_ = run_of(closed_form_model(), Guidance(SmoothScale(), projection="on"), NOISE, SIGMAS)
    assert torch.equal(run_.extent.across(torch.zeros(SHAPE), NOISE), NOISE)


def test_an_unknown_projection_is_refused():
    with pytest.raises(AnnealingError, match="projection is .*auto, on, off"):
        Guidance(SmoothScale(), projection="sometimes")
