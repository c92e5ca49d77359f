"""Strength said in ordinary CFG: what a run comes to, what stays as it is, and what tools read of it."""

import dataclasses

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.patch import patch_model
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.fixed_scale import FixedScale
from annealing_guidance_pack.models.scale_file import load_scale
from closed_form import SmoothScale, closed_form_model, conditioning, paper_trajectory, sample
from comfy.model_base import ModelType
from comfy.patcher_extension import WrappersMP

GOLDEN = paper_trajectory(50)


def sampler_of(name):
    return null_renoising_sampler() if name == "annealing" else comfy.samplers.sampler_object(name)


def guider_of(guidance, model=None):
    guider = AnnealingCFGGuider(model or closed_form_model(), guidance)
    guider.set_conds(GOLDEN.positive(), GOLDEN.negative())
    return guider


def run(guidance, sampler="euler", steps=20, schedule="normal", model=None):
    """The latent and the guider, after a run."""
    guider = guider_of(guidance, model)
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, schedule, steps)
    return sample(guider, sampler_of(sampler), sigmas, GOLDEN.initial_noise.float()), guider


@pytest.fixture(scope="module")
def authors(official_checkpoint):
    network = load_scale(official_checkpoint)
    network.info = dataclasses.replace(network.info, reference_numel=None)  # see PaperTrajectory
    return network


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("cfg", [2.0, 5.0, 12.0])
@pytest.mark.parametrize("sampler", ["euler", "annealing", "dpmpp_2m"])
def test_a_run_comes_to_the_cfg_that_was_asked_for(authors, sampler, cfg, steps):
    _, guider = run(Guidance(authors, GOLDEN.lambdas, cfg=cfg), sampler, steps)
    assert guider.trace.latest.mean_cfg() == pytest.approx(cfg, rel=0.1)


@pytest.mark.parametrize("match_training_steps", [True, False])
@pytest.mark.parametrize("guidance_lambda", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("schedule", ["karras", "normal", "simple"])
def test_at_every_lambda_and_schedule_matched_or_not(authors, schedule, guidance_lambda, match_training_steps):
    guidance = Guidance(authors, guidance_lambda, match_training_steps=match_training_steps, cfg=5.0)
    _, guider = run(guidance, schedule=schedule)
    assert guider.trace.latest.mean_cfg() == pytest.approx(5.0, rel=0.1)


@pytest.mark.parametrize("sampler", ["euler", "annealing", "euler_cfg_pp", "dpmpp_2m", "dpmpp_2m_cfg_pp", "heun"])
@pytest.mark.parametrize("model_type", [ModelType.EPS, ModelType.FLOW], ids=lambda kind: kind.name)
def test_cfg_1_is_sampling_with_the_positive_alone(sampler, model_type):
    model = closed_form_model(model_type)
    ours, _ = run(Guidance(SmoothScale(), cfg=1.0), sampler, model=model)
    alone = comfy.samplers.CFGGuider(model)
    alone.set_conds(GOLDEN.positive(), GOLDEN.positive())
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 20)
    ordinary = {"annealing": "euler", "euler_cfg_pp": "euler", "dpmpp_2m_cfg_pp": "dpmpp_2m"}.get(sampler, sampler)
    expected = sample(alone, sampler_of(ordinary), sigmas, GOLDEN.initial_noise.float())
    torch.testing.assert_close(ours, expected, atol=5e-5, rtol=0)


def test_the_cfg_that_a_run_amounts_to_anyway_changes_nothing():
    model, read = closed_form_model().clone(), []

    def tool(executor, *args, **kwargs):
        read.append(executor.class_obj.cfg)
        return executor(*args, **kwargs)

    model.add_wrapper(WrappersMP.PREDICT_NOISE, tool)
    as_trained, _ = run(Guidance(SmoothScale()), model=model)
    again, _ = run(Guidance(SmoothScale(), cfg=read[0]))
    torch.testing.assert_close(again, as_trained, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["euler", "annealing", "dpmpp_2m"])
def test_the_course_over_the_run_stays_and_its_distance_from_no_guidance_is_scaled(sampler):
    courses = []
    for cfg in (0.0, 4.0):
        # The first call sees one gap, whatever the strength: its share of the run's mean is that of the course.
        _, guider = run(Guidance(FixedScale("cosine", 1.4, 1.05), cfg=cfg), sampler)
        courses.append(torch.stack([call.cfg_scale for call in guider.trace.calls]) - 1)
    ratio = courses[1] / courses[0]
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)


def test_null_and_folded_are_one_picture_at_any_cfg():
    ordinary, _ = run(Guidance(SmoothScale(), cfg=5.0), "euler")
    for sampler in ("annealing", "euler_cfg_pp"):
        torch.testing.assert_close(run(Guidance(SmoothScale(), cfg=5.0), sampler)[0], ordinary, atol=2e-5, rtol=0)


@pytest.mark.parametrize("cfg", [3.0, 5.0, 9.0])
def test_no_call_is_guided_away_from_the_prompt(cfg):
    """Flow runs begin where one training step is worth CFG 1, so the course begins below it."""
    model = closed_form_model(ModelType.FLOW)
    as_trained, stretched = (run(Guidance(SmoothScale(), 0.0, cfg=value), steps=10, model=model)[1] for value in (0.0, cfg))
    assert as_trained.trace.calls[0].cfg_scale.min() < 1 <= torch.cat([c.cfg_scale for c in stretched.trace.calls]).min()
    assert stretched.trace.latest.mean_cfg() == pytest.approx(cfg, rel=0.1)


def test_a_rule_too_weak_to_be_stretched_is_constant_at_that_cfg():
    _, guider = run(Guidance(FixedScale("constant", 0.0), cfg=5.0))
    assert all((call.cfg_scale == 5.0).all() for call in guider.trace.calls)


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("cfg", [0.0, 4.0])
def test_tools_read_from_the_guider_what_the_run_comes_to(authors, cfg, steps):
    seen = []

    def reads(model, x, sigmas, **kwargs):
        seen.append(model.inner_model.cfg)
        return sampler_of("euler").sampler_function(model, x, sigmas, **kwargs)

    sampling = closed_form_model().get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
    guider = guider_of(Guidance(authors, 0.4, cfg=cfg))
    patched, trace = patch_model(closed_form_model(), Guidance(authors, 0.4, cfg=cfg))
    core = comfy.samplers.CFGGuider(patched)
    core.set_conds(GOLDEN.positive(), GOLDEN.negative())
    core.set_cfg(7.0)
    for one, its_trace in ((guider, guider.trace), (core, trace)):
        sample(one, comfy.samplers.KSAMPLER(reads), sigmas, GOLDEN.initial_noise.float())
        assert seen[-1] == pytest.approx(its_trace.latest.mean_cfg(), rel=0.15)
    assert core.cfg == 7.0  # afterwards it is what its own node set


@pytest.mark.parametrize("cfg", [-1.0, 0.5, float("nan"), float("inf"), 1000.0])
def test_a_cfg_that_is_none_is_refused(cfg):
    with pytest.raises(AnnealingError, match="cfg is .* from 1"):
        Guidance(SmoothScale(), cfg=cfg)


def test_few_steps_with_a_scale_made_for_many_are_remarked_unless_a_cfg_is_set(caplog):
    for cfg, steps, said in ((0.0, 4, True), (2.0, 4, False), (0.0, 20, False)):
        caplog.clear()
        run(Guidance(SmoothScale(), cfg=cfg), steps=steps)
        assert any("turbo" in record.message and "was made for 50" in record.message for record in caplog.records) == said


def test_a_conditioning_is_needed_once(authors):
    """The estimate before the run asks the network only, never the model."""
    model = closed_form_model()
    _, guider = run(Guidance(authors, 0.4, cfg=5.0), steps=10, model=model)
    assert model.model.diffusion_model.calls == 10 and conditioning(GOLDEN.means, 0.5)
