"""The methods of benchmarks/quality.py are what their names say."""

import math

import pytest
import quality
import torch
from annealing_guidance_pack.models.scale_network import ScaleNetwork
from common.ablations import ByAngle, ByGap, FixedScale, Frozen
from common.demo import Demo
from common.methods import SCHEDULES, Methods, ScheduledCFGGuider


@pytest.fixture(scope="module")
def methods() -> Methods:
    return Methods(Demo("flow", 2), 3)


def latents(methods, guider, sampler, sigmas):
    demo = methods.demo
    guider.set_conds([[demo.positive, {}]], demo.negative)
    return guider.sample(demo.noise, torch.zeros_like(demo.noise), sampler, sigmas, disable_pbar=True, seed=0)


def test_a_schedule_that_does_not_change_is_cfg(methods):
    guider = ScheduledCFGGuider(methods.demo.model)
    guider.set_rule(3.0, lambda progress, ratio: 1.0)
    ours = latents(methods, guider, methods.euler, methods.sigmas)
    assert torch.equal(ours, latents(methods, *methods.rivals()["CFG"]["3"]()))


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "interval"])
def test_every_schedule_guides_as_much_as_cfg_on_average(name):
    shares = [SCHEDULES[name]((k + 0.5) / 1000, 1.0) for k in range(1000)]
    assert sum(shares) / 1000 == pytest.approx(1, abs=1e-3)
    least, most = (math.log(2), 2 * math.log(2)) if name.startswith("exponential") else (0.0, 2.0)
    assert min(shares) == pytest.approx(least, abs=0.01) and max(shares) == pytest.approx(most, abs=0.01)
    assert (shares == sorted(shares)) == ("rising" in name)


def test_cfg_pp_with_the_folded_constant_draws_as_the_annealing_sampler_does(methods):
    (name, build), *_ = methods.rivals()["CFG++"].items()
    guider = methods.demo.annealing(FixedScale("constant", float(name)), 0.0, match_training_steps=False)
    guider.guidance.scale_model.scale = build()[0].cfg  # the name is rounded
    torch.testing.assert_close(
        latents(methods, guider, methods.null, methods.sigmas), latents(methods, *build()), atol=1e-4, rtol=1e-4
    )


def test_cfg_and_projection_is_guidance_across_the_conditional_prediction(methods):
    seen = {}

    def across(args):
        cond, uncond = args["conds_out"]
        gap = cond - uncond
        share = (gap * cond).flatten(1).sum(1) / cond.square().flatten(1).sum(1)
        seen["share"] = share.abs().max().item()
        gap = gap - share[:, None, None, None] * cond
        return [cond, cond - gap]

    model = methods.demo.model.clone()
    model.set_model_sampler_pre_cfg_function(across)
    ours = latents(methods, methods.demo.cfg(6.0, model), methods.euler, methods.sigmas)
    theirs = latents(methods, *methods.rivals()["CFG and projection"]["5"]())
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert seen["share"] > 1e-3  # there was something to project


def test_annealing_projects_and_draws_the_same_null_renoised_and_folded(methods):
    guider, null, sigmas = methods.ours()["annealing"]["0.4"]()
    projected = latents(methods, guider, null, sigmas)
    torch.testing.assert_close(projected, latents(methods, guider, methods.euler, sigmas), atol=1e-4, rtol=1e-4)
    plain = latents(methods, *methods.annealing(methods.demo.scale, projection="off")["0.4"]())
    assert (projected - plain).abs().max() > 1e-2


def test_frozen_inputs_are_the_mean_of_the_run_and_the_others_stay(methods):
    scale: ScaleNetwork = methods.demo.scale
    timesteps, norms = torch.tensor([900.0, 300.0]), torch.tensor([8.0, 2.0])
    asked, gap = torch.tensor([880.0, 310.0]), torch.tensor([5.0, 6.0])
    cases = {(False, False): (asked, gap), (True, False): (asked, norms), (False, True): (torch.full((2,), 600.0), gap)}
    for (gap_frozen, timestep_frozen), inputs in cases.items():
        frozen = Frozen(scale, (timesteps, norms), gap_frozen, timestep_frozen)
        assert torch.equal(frozen(asked, gap, 0.4), scale(*inputs, 0.4))
    both = Frozen(scale, (timesteps, norms), True, True)(asked, gap, 0.4)
    assert torch.equal(both, scale(torch.full((2,), 600.0), torch.full((2,), 5.0), 0.4))


@pytest.mark.parametrize("power", [1.0, -1.0])
def test_giving_more_by_the_gap_leaves_the_mean_scale_of_a_timestep(power):
    norms = torch.tensor([[1.0, 2.0, 3.0, 2.0]])
    rule = ByGap(FixedScale("constant", 0.5), power, torch.tensor([700.0]), norms)
    scales = rule(torch.full((4,), 700.0), norms[0], 0.0)
    assert scales.mean().item() == pytest.approx(0.5)
    assert (scales[0] > scales[2]) == (power > 0)


def test_lambda_rises_with_the_cosine_between_velocity_and_gap():
    class Lambda:
        info = FixedScale().info

        def __call__(self, timestep, gap_norm, guidance_lambda):
            return guidance_lambda

    rule = ByAngle.__new__(ByAngle)
    torch.nn.Module.__init__(rule)
    rule.scale_model, rule.cosine = Lambda(), torch.tensor([-1.0, 0.0, 1.0])
    assert rule(torch.zeros(3), torch.ones(3), 0.5).tolist() == [0.0, 0.5, 1.0]


def test_a_point_is_drawn_once_and_kept(methods, tmp_path):
    gallery = quality.Gallery(tmp_path, methods.demo)
    assert gallery.point(3, "CFG", "3", None) is None
    drawn = gallery.point(3, "CFG", "3", methods.rivals()["CFG"]["3"])
    again = gallery.point(3, "CFG", "3", None)
    assert set(drawn) == set(again) == {"features", "right", "drawing_error", "colour_error", "saturation"}
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    assert [path.suffix for path in tmp_path.rglob("*.*")] == [".safetensors"]
