"""Other packs' hooks in the guided step: a scale of their own, one number where one serves all, a name when they fail."""

from functools import partial

import pytest
import torch
from annealing_guidance_pack.guidance import hooks
from annealing_guidance_pack.guidance.extent import ANIMATEDIFF
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.fixed_scale import FixedScale
from closed_form import SmoothScale, closed_form_model, conditioning, sample
from probing import sampler_of

SIGMAS = torch.tensor([14.0, 6.0, 2.0, 0.5, 0.0])


class Overreach(Exception):
    pass


def ran(add, batch=2, scale=None, guidance_lambda=0.4):
    """The guider after a run with a hook: add(model, hook) for a hook that may fail."""
    means, noise = torch.randn(2, batch, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    model = closed_form_model().clone()
    add(model)
    guider = AnnealingCFGGuider(model, Guidance(scale or SmoothScale(), guidance_lambda))
    guider.set_conds(conditioning(means, 0.5), conditioning(0 * means[:1], 0.9))
    guider.latent = sample(guider, sampler_of("euler"), SIGMAS, noise)
    return guider


def pre(hook):
    return lambda model: model.set_model_sampler_pre_cfg_function(hook)


def cfg(hook):
    return lambda model: model.set_model_sampler_cfg_function(hook)


def post(hook):
    return lambda model: model.set_model_sampler_post_cfg_function(hook)


def needs_a_number(args):
    """Of any kind of hook: what a hook does that formats, compares and rounds its scale."""
    number = float(args["cond_scale"])
    if number > 1e6:
        raise Overreach
    if "conds_out" in args:
        return args["conds_out"]
    if "denoised" in args:
        return args["denoised"]
    return args["uncond"] + number * (args["cond"] - args["uncond"])


KINDS = {"pre": pre, "cfg": cfg, "post": post}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_a_hook_that_needs_a_number_gets_one_at_batch_one(kind):
    torch.testing.assert_close(ran(KINDS[kind](needs_a_number), batch=1).latent, ran(lambda model: None, batch=1).latent)


@kinds
def test_and_with_a_rule_that_is_one_for_the_whole_batch(kind):
    rule = FixedScale("linear", 1.2, 0.2)
    torch.testing.assert_close(ran(KINDS[kind](needs_a_number), scale=rule).latent, ran(lambda model: None, scale=rule).latent)


@kinds
def test_and_for_the_frames_of_a_video_on_the_batch_axis(kind):
    def as_animatediff(model):
        model.set_additional_models(ANIMATEDIFF, [closed_form_model()])

    def with_hook(model):
        as_animatediff(model)
        KINDS[kind](needs_a_number)(model)

    torch.testing.assert_close(ran(with_hook).latent, ran(as_animatediff).latent)


@kinds
@pytest.mark.parametrize("wrapped", [False, True])
def test_with_a_scale_per_sample_the_hook_that_needs_a_number_is_named(kind, wrapped):
    hook = partial(needs_a_number) if wrapped else needs_a_number
    with pytest.raises(AnnealingError, match="needs_a_number.*one scale per sample"):
        ran(KINDS[kind](hook))


def test_the_failing_one_of_several_hooks_is_named():
    def harmless(args):
        return args["denoised"]

    def add(model):
        model.set_model_sampler_post_cfg_function(harmless)
        model.set_model_sampler_post_cfg_function(needs_a_number)

    with pytest.raises(AnnealingError, match="needs_a_number") as caught:
        ran(add)
    assert "harmless" not in str(caught.value)


@kinds
def test_an_error_that_has_nothing_to_do_with_the_scale_passes_through(kind):
    def failing(args):
        raise Overreach

    def of_the_pack(args):
        raise AnnealingError("its own sentence")

    with pytest.raises(Overreach):
        ran(KINDS[kind](failing))
    with pytest.raises(AnnealingError, match="^its own sentence$"):
        ran(KINDS[kind](of_the_pack))


@kinds
def test_at_batch_one_a_hooks_own_error_is_its_own(kind):
    def failing(args):
        raise ValueError("about something else")

    with pytest.raises(ValueError, match="about something else"):
        ran(KINDS[kind](failing), batch=1)


@pytest.mark.parametrize("batch", [1, 2])
def test_what_a_hook_writes_into_its_scale_is_seen_by_nobody_else(batch):
    told = []

    def spoiling_pre(args):
        args["cond_scale"].mul_(0.5)
        return args["conds_out"]

    def spoiling_post(args):
        args["cond_scale"].add_(100)
        return args["denoised"]

    def listening(args):
        told.append(args["cond_scale"].flatten().clone())
        return args["denoised"]

    def add(model):
        model.set_model_sampler_pre_cfg_function(spoiling_pre)
        model.set_model_sampler_post_cfg_function(spoiling_post)
        model.set_model_sampler_post_cfg_function(listening)

    spoilt, plain = ran(add, batch), ran(lambda model: None, batch)
    assert torch.equal(spoilt.latent, plain.latent)
    for call, heard, expected in zip(spoilt.trace.calls, told, plain.trace.calls, strict=True):
        assert torch.equal(call.cfg_scale, heard) and torch.equal(call.cfg_scale, expected.cfg_scale)


def test_hooks_see_the_models_own_options_and_not_the_guarded_ones():
    seen = []

    def listening(args):
        seen.append(args["model_options"])
        return args["denoised"]

    ran(post(listening))
    assert seen[0]["sampler_post_cfg_function"] == [listening]


def test_a_scale_of_one_for_all_has_no_dimension_and_the_latents_type():
    scale = torch.tensor([3.0, 3.0])
    latent = torch.zeros(2, 4, 8, 8, dtype=torch.float16)
    one, each = hooks.for_hooks(scale, latent, True), hooks.for_hooks(scale, latent, False)
    assert one.shape == () and each.shape == (2, 1, 1, 1) and one.dtype == each.dtype == torch.float16
