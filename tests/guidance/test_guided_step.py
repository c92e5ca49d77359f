"""The guided step inside ComfyUI's sampling: rows, hooks, batches, missing and broken predictions, no waiting for the device."""

import logging

import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance import trace as traces
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.guidance.step import guided_step
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.fixed_scale import FixedScale
from closed_form import SmoothScale, closed_form_model, conditioning, run_of, sample
from comfy.model_base import ModelType
from no_waiting import NoWaiting

SHAPE = (3, 4, 8, 8)
SIGMAS = torch.tensor([14.0, 6.0, 2.0, 0.5, 0.0])


@pytest.fixture
def means():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))


def guider_of(model, means, guidance=None, **negative_options):
    guider = AnnealingCFGGuider(model, guidance or Guidance(SmoothScale("epsilon")))
    guider.set_conds(conditioning(means, 0.5), conditioning(torch.zeros_like(means[:1]), 0.9, **negative_options))
    return guider


def core_guider(model, means, cfg):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(means, 0.5), conditioning(torch.zeros_like(means[:1]), 0.9))
    guider.set_cfg(cfg)
    return guider


def euler():
    return comfy.samplers.sampler_object("euler")


def used_of(guider):
    return torch.stack([call.cfg_scale for call in guider.trace.calls])


def test_a_constant_scale_is_core_cfg(means, noise):
    model = closed_form_model()
    guidance = Guidance(FixedScale("constant", 0.8), renoise="null", match_training_steps=False)
    ours = sample(guider_of(model, means, guidance), euler(), SIGMAS, noise)
    torch.testing.assert_close(ours, sample(core_guider(model, means, 0.8), euler(), SIGMAS, noise), atol=2e-6, rtol=0)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_cfg_pp", "dpmpp_2s_ancestral_cfg_pp"])
def test_as_many_rows_and_calls_as_core(means, noise, sampler):
    counts = []
    for make in (guider_of, lambda model, means: core_guider(model, means, 7.0)):
        model = closed_form_model()
        sample(make(model, means), comfy.samplers.sampler_object(sampler), SIGMAS, noise)
        counts.append((model.model.diffusion_model.rows, model.model.diffusion_model.calls))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("sampler", ["annealing", "euler", "dpmpp_2m", "heun", "dpmpp_2m_cfg_pp"])
def test_every_sample_of_a_batch_is_the_sample_run_alone(means, noise, sampler):
    def run(means, noise):
        solver = null_renoising_sampler() if sampler == "annealing" else comfy.samplers.sampler_object(sampler)
        return sample(guider_of(closed_form_model(), means), solver, SIGMAS, noise)

    alone = torch.cat([run(means[i : i + 1], noise[i : i + 1]) for i in range(len(means))])
    torch.testing.assert_close(run(means, noise), alone, atol=2e-6, rtol=0)


def test_a_batch_as_large_as_the_latent_is_wide_is_guided_per_sample(means):
    """Where a scale of shape [B] would silently multiply columns."""
    means, noise = torch.randn(2, 8, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    batch = sample(guider_of(closed_form_model(), means), euler(), SIGMAS, noise)
    alone = sample(guider_of(closed_form_model(), means[5:6]), euler(), SIGMAS, noise[5:6])
    torch.testing.assert_close(batch[5:6], alone, atol=2e-6, rtol=0)


@pytest.mark.parametrize("model_type", [ModelType.V_PREDICTION_EDM, ModelType.FLOW_COSMOS, ModelType.EDM], ids=lambda t: t.name)
def test_every_kind_of_model_can_be_asked_for_a_scale(means, noise, model_type):
    """The step itself, without a sampler: one scale per sample, finite, for kinds that the closed form has no network for."""
    model = closed_form_model(model_type)
    _, call = run_of(model, Guidance(SmoothScale()), noise, SIGMAS).guide(means, noise, torch.full((3,), 2.0))
    assert call.cfg_scale.shape == (3,) and call.cfg_scale.isfinite().all()


# ---- hooks


def test_post_cfg_hooks_receive_the_scale_that_was_used(means, noise):
    seen = []
    model = closed_form_model().clone()
    model.set_model_sampler_post_cfg_function(lambda args: seen.append(args) or args["denoised"])
    guider = guider_of(model, means)
    sample(guider, euler(), SIGMAS, noise)
    for args, used in zip(seen, used_of(guider), strict=True):
        assert args["cond_scale"].shape == (3, 1, 1, 1)
        assert torch.equal(args["cond_scale"].flatten(), used)
        guided = args["uncond_denoised"] + (args["cond_denoised"] - args["uncond_denoised"]) * args["cond_scale"]
        assert torch.equal(args["denoised"], guided)
        assert args["cond"] and args["uncond"]


def test_pre_cfg_hooks_see_both_predictions_and_the_scale_that_theirs_are_guided_with(means, noise):
    seen, after = [], []

    def double_the_gap(args):
        cond, uncond = args["conds_out"]
        seen.append(args)
        return [uncond + 2 * (cond - uncond), uncond]

    plain, hooked = closed_form_model(), closed_form_model().clone()
    hooked.set_model_sampler_pre_cfg_function(double_the_gap)
    hooked.set_model_sampler_post_cfg_function(lambda args: after.append(args) or args["denoised"])
    guiders = [guider_of(model, means) for model in (plain, hooked)]
    for guider in guiders:
        sample(guider, euler(), SIGMAS, noise)
    # The scale is chosen by the model's own gap, as in training.
    first, first_hooked = (guider.trace.calls[0] for guider in guiders)
    assert torch.equal(first_hooked.gap_norm, first.gap_norm)
    assert torch.equal(first_hooked.cfg_scale, first.cfg_scale)
    for told, used in zip(seen, after, strict=True):
        assert torch.equal(told["cond_scale"], used["cond_scale"])
        cond, uncond = told["conds_out"]
        torch.testing.assert_close(used["denoised"], uncond + 2 * told["cond_scale"] * (cond - uncond))
    assert {"conds", "conds_out", "cond_scale", "timestep", "input", "sigma", "model", "model_options"} == set(seen[0])


def test_hooks_may_divide_by_a_scale_of_zero(means, noise):
    """APG does: it adds the gap divided by the scale, which is then multiplied by it."""
    model = _patched_by("nodes_apg", "APG", 0.0, 0.0, -0.5)(closed_form_model())
    guider = guider_of(model, means, Guidance(FixedScale("constant", 0.0)))
    pictures = sample(guider, euler(), SIGMAS, noise)
    # What is left of APG at scale 0 is the gap as it is: no guidance beyond the conditional prediction.
    expected = sample(core_guider(closed_form_model(), means, 1.0), euler(), SIGMAS, noise)
    torch.testing.assert_close(pictures, expected, atol=0.02, rtol=0)


def test_a_sampler_cfg_function_keeps_working(means, noise):
    model = closed_form_model().clone()
    scales = []

    def cond_only(args):
        scales.append(args["cond_scale"])
        return args["cond"]  # x - denoised

    model.set_model_sampler_cfg_function(cond_only)
    ours = sample(guider_of(model, means), euler(), SIGMAS, noise)
    plain = closed_form_model()
    torch.testing.assert_close(ours, sample(core_guider(plain, means, 1.0), euler(), SIGMAS, noise), atol=1e-5, rtol=0)
    assert all(scale.shape == (3, 1, 1, 1) for scale in scales)


@pytest.mark.parametrize("name", ["APG", "CFGZeroStar", "RescaleCFG", "TCFG", "Mahiro", "FreSca", "CFGNorm"])
def test_cores_own_patches_work_with_it(means, noise, name):
    model = CORE_PATCHES[name](closed_form_model())
    assert sample(guider_of(model, means), euler(), SIGMAS, noise).isfinite().all()


def _patched_by(module, node, *arguments):
    def patch(model):
        node_class = getattr(__import__(f"comfy_extras.{module}", fromlist=[node]), node)
        return node_class.execute(model, *arguments).args[0]

    return patch


def _rescale_cfg(model):
    from comfy_extras.nodes_model_advanced import RescaleCFG

    return RescaleCFG().patch(model, 0.7)[0]


CORE_PATCHES = {
    "APG": _patched_by("nodes_apg", "APG", 1.0, 5.0, 0.0),
    "CFGZeroStar": _patched_by("nodes_cfg", "CFGZeroStar"),
    "CFGNorm": _patched_by("nodes_cfg", "CFGNorm", 1.0),
    "RescaleCFG": _rescale_cfg,
    "TCFG": _patched_by("nodes_tcfg", "TCFG"),
    "Mahiro": _patched_by("nodes_mahiro", "Mahiro"),
    "FreSca": _patched_by("nodes_fresca", "FreSca", 1.0, 1.25, 2),
}


# ---- missing conditionings


@pytest.mark.parametrize("negative", [None, []])
def test_a_missing_negative_is_an_error_at_once(means, negative):
    guider = AnnealingCFGGuider(closed_form_model(), Guidance(SmoothScale("epsilon")))
    with pytest.raises(AnnealingError, match="no negative conditioning"):
        guider.set_conds(conditioning(means, 0.5), negative)


@pytest.mark.parametrize("sampler", ["annealing", "euler"])
def test_a_negative_that_covers_nothing_leaves_the_plain_conditional_prediction(means, noise, sampler, caplog):
    """A timestep range that ends before the run starts; null renoising too must not see the zeros."""
    solver = null_renoising_sampler() if sampler == "annealing" else euler()
    guider = guider_of(closed_form_model(), means, start_percent=0.99999, end_percent=1.0)
    with caplog.at_level(logging.WARNING):
        ours = sample(guider, solver, SIGMAS, noise)
    plain = sample(core_guider(closed_form_model(), means, 1.0), euler(), SIGMAS, noise)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)
    assert (used_of(guider) == 1).all()
    assert all((call.coverage == traces.NO_NEGATIVE).all() for call in guider.trace.calls)
    assert sum("negative conditioning covered nothing" in record.message for record in caplog.records) == 1


def test_a_negative_with_a_range_guides_inside_it_only(means, noise):
    model = closed_form_model()
    sampling = model.get_model_object("model_sampling")
    guider = guider_of(model, means, start_percent=0.0, end_percent=0.5)
    sample(guider, null_renoising_sampler(), SIGMAS, noise)
    inside = SIGMAS[:-1] >= sampling.percent_to_sigma(0.5)
    assert inside.any() and not inside.all()
    for call, is_inside in zip(guider.trace.calls, inside, strict=True):
        assert (call.coverage == (traces.COVERED if is_inside else traces.NO_NEGATIVE)).all()


def test_a_positive_that_covers_nothing_leaves_the_plain_negative_prediction(means, noise):
    guider = AnnealingCFGGuider(closed_form_model(), Guidance(SmoothScale("epsilon")))
    guider.set_conds(conditioning(means, 0.5, start_percent=0.99999), conditioning(torch.zeros_like(means[:1]), 0.9))
    ours = sample(guider, euler(), SIGMAS, noise)
    alone = sample(core_guider(closed_form_model(), means, 0.0), euler(), SIGMAS, noise)
    torch.testing.assert_close(ours, alone, atol=1e-5, rtol=0)
    assert (used_of(guider) == 0).all()


def test_a_prediction_of_zeros_is_a_prediction_where_nothing_limits_the_conditioning(means, noise):
    guider = AnnealingCFGGuider(closed_form_model(), Guidance(SmoothScale("epsilon")))
    guider.set_conds(conditioning(means, 0.5), conditioning(torch.zeros_like(means[:1]), 0.0))  # std 0: D is the mean, zero
    sample(guider, euler(), SIGMAS, noise)
    assert all((call.coverage == traces.COVERED).all() for call in guider.trace.calls)


# ---- broken predictions


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_sample_does_not_touch_the_others_and_is_reported(means, noise, broken, caplog):
    whole = sample(guider_of(closed_form_model(), means), euler(), SIGMAS, noise)
    spoilt = means.clone()
    spoilt[1] = broken
    guider = guider_of(closed_form_model(), spoilt)
    with caplog.at_level(logging.WARNING):
        latent = sample(guider, euler(), SIGMAS, noise)
    torch.testing.assert_close(latent[[0, 2]], whole[[0, 2]], atol=2e-6, rtol=0)
    assert used_of(guider).isfinite().all()
    assert any("sample 2 of the batch" in record.message for record in caplog.records)


# ---- runs


def test_a_cached_guider_run_twice_gives_the_same_and_its_trace_the_latest_run(means, noise):
    guider = guider_of(closed_form_model(), means)
    first = sample(guider, euler(), SIGMAS, noise)
    calls = guider.trace.calls
    assert torch.equal(first, sample(guider, euler(), SIGMAS, noise))
    assert guider.trace.run_id == 2 and len(guider.trace.calls) == len(calls)
    sample(guider, euler(), SIGMAS[2:], noise)
    assert len(guider.trace.calls) == 2


def test_the_form_is_chosen_anew_for_every_run(means, noise):
    guider = guider_of(closed_form_model(), means)
    sample(guider, euler(), SIGMAS, noise)
    assert guider.trace.folded
    sample(guider, null_renoising_sampler(), SIGMAS, noise)
    assert not guider.trace.folded


def test_two_guiders_share_no_state(means, noise):
    model, scale_model = closed_form_model(), SmoothScale("epsilon")
    low, high = (guider_of(model, means, Guidance(scale_model, value)) for value in (0.0, 1.0))
    alone = sample(low, euler(), SIGMAS, noise)
    other = sample(high, euler(), SIGMAS, noise)
    assert not torch.equal(alone, other)
    assert torch.equal(alone, sample(low, euler(), SIGMAS, noise))
    assert (used_of(high) > used_of(low)).all()


def test_a_run_that_fails_leaves_the_guider_usable(means, noise):
    guider = guider_of(closed_form_model(), means)
    whole = sample(guider, euler(), SIGMAS, noise)

    def failing(model, x, sigmas, **kwargs):
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        sample(guider, comfy.samplers.KSAMPLER(failing), SIGMAS, noise)
    assert torch.equal(whole, sample(guider, euler(), SIGMAS, noise))


@pytest.mark.parametrize("prediction, model_type", [("velocity", ModelType.EPS), ("epsilon", ModelType.FLOW)])
def test_a_scale_for_another_kind_of_model_is_an_error(prediction, model_type):
    with pytest.raises(AnnealingError, match="was made for"):
        AnnealingCFGGuider(closed_form_model(model_type), Guidance(SmoothScale(prediction)))


def test_a_custom_sampler_between_scheduled_sigmas_gets_its_own_noise_level(means, noise):
    """Solvers that call the model between scheduled sigmas: the scale goes by noise level, not by counting."""
    guider = guider_of(closed_form_model(), means)
    sample(guider, comfy.samplers.sampler_object("dpm_2"), SIGMAS, noise)
    sigmas = torch.stack([call.sigma[0] for call in guider.trace.calls])
    assert len(sigmas) > len(SIGMAS) - 1
    assert (used_of(guider) > 0).all()


@pytest.mark.parametrize("model_type", [ModelType.EPS, ModelType.FLOW], ids=lambda t: t.name)
@pytest.mark.parametrize("match_training_steps", [True, False])
@pytest.mark.parametrize("sampler", ["euler", "euler_cfg_pp", "dpmpp_2m", "heun"])
def test_the_step_never_waits_for_the_device(means, noise, sampler, match_training_steps, model_type):
    model = closed_form_model(model_type)
    guidance = Guidance(SmoothScale(), match_training_steps=match_training_steps)
    run = run_of(model, guidance, noise, SIGMAS / 14, comfy.samplers.sampler_object(sampler))
    run.trace = traces.RunTrace(1, "", 0.4, True)
    limited = [{"timestep_start": 1.0}]
    options = {
        "sampler_calc_cond_batch_function": lambda args: [means, noise],
        "sampler_pre_cfg_function": [lambda args: args["conds_out"]],
    }
    with NoWaiting():
        for sigma in (1.0, 0.5):
            guided_step(run, model.model, limited, limited, noise, torch.full((3,), sigma), options)
    assert len(run.trace.calls) == 2
