"""What the pack relies on that no signature shows: keys of dictionaries that the host hands over while it samples."""

import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.patch import patch_model
from annealing_guidance_pack.guidance.run import Guidance
from closed_form import SmoothScale, closed_form_model, conditioning, sample
from comfy.patcher_extension import WrappersMP

SHAPE = (2, 4, 8, 8)
SIGMAS = torch.tensor([14.0, 3.0, 0.5, 0.0])


def run(by, model, sampler=None):
    """One run by core's own guider at a scale of 5, by ours, or by core's with the patch: the final latents."""
    guidance = Guidance(SmoothScale())
    if by == "patch":
        model, _ = patch_model(model, guidance)
    guider = AnnealingCFGGuider(model, guidance) if by == "guider" else comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(torch.ones(SHAPE), 0.5), conditioning(torch.zeros(1, *SHAPE[1:]), 0.9))
    guider.set_cfg(5.0)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    return sample(guider, sampler or comfy.samplers.sampler_object("euler"), SIGMAS, noise, seed=3)


def kinds(args):
    """The keys of a hook's arguments and what is behind them: the shape of a tensor, the type of everything else."""
    return {key: tuple(value.shape) if isinstance(value, torch.Tensor) else type(value) for key, value in args.items()}


def arguments_of(hook, by):
    """What a hook received at the first call of a run."""
    seen, model = [], closed_form_model()

    def post(args):
        seen.append(kinds(args))
        return args["denoised"]

    def pre(args):
        seen.append(kinds(args))
        return args["conds_out"]

    def cfg(args):
        seen.append(kinds(args))
        return args["uncond"] + (args["cond"] - args["uncond"]) * args["cond_scale"]

    def calc_cond_batch(args):
        seen.append(kinds(args))
        return comfy.samplers.calc_cond_batch(args["model"], args["conds"], args["input"], args["sigma"], args["model_options"])

    if hook == "sampler_calc_cond_batch_function":
        model.set_model_sampler_calc_cond_batch_function(calc_cond_batch)
    elif hook == "sampler_cfg_function":
        model.set_model_sampler_cfg_function(cfg)
    elif hook == "sampler_pre_cfg_function":
        model.set_model_sampler_pre_cfg_function(pre)
    else:
        model.set_model_sampler_post_cfg_function(post)
    run(by, model)
    return seen[0]


@pytest.mark.parametrize("by", ["guider", "patch"])
@pytest.mark.parametrize(
    "hook",
    ["sampler_calc_cond_batch_function", "sampler_pre_cfg_function", "sampler_cfg_function", "sampler_post_cfg_function"],
)
def test_other_patches_hooks_receive_what_the_host_itself_gives_them(hook, by):
    core, ours = arguments_of(hook, "core"), arguments_of(hook, by)
    assert core.keys() == ours.keys(), f"{hook}: the host's hooks receive other arguments than ours"
    scale = "cond_scale"
    assert ours.pop(scale, None) in (None, (SHAPE[0], 1, 1, 1))  # ours is one scale per sample
    core.pop(scale, None)
    assert ours == core, f"{hook}: the host's hooks receive arguments of another kind than ours"


def test_post_cfg_hooks_carry_what_null_renoising_needs():
    assert {"uncond", "uncond_denoised", "denoised"} <= arguments_of("sampler_post_cfg_function", "core").keys()


def test_a_run_tells_its_schedule_and_its_seed():
    seen = {}

    def solver(model, x, sigmas, extra_args=None, callback=None, disable=None):
        seen.update(extra_args, schedule=sigmas)
        callback({"x": x, "i": 0, "sigma": sigmas[0], "sigma_hat": sigmas[0], "denoised": x})
        return x

    run("core", closed_form_model(), comfy.samplers.KSAMPLER(solver))
    assert seen["seed"] == 3
    assert torch.equal(seen["model_options"]["transformer_options"]["sample_sigmas"], seen["schedule"])


def test_a_models_wrappers_reach_the_run_and_see_its_guider():
    seen = {}

    def outer_sample(executor, noise, latent_image, sampler, *args, **kwargs):
        seen["before"] = executor.class_obj
        seen["sampler"] = sampler
        return executor(noise, latent_image, sampler, *args, **kwargs)

    def predict_noise(executor, x, timestep, model_options, seed=None, *args, **kwargs):
        guider = executor.class_obj
        seen["prepared"] = set(guider.conds), "model_conds" in guider.conds["negative"][0], guider.inner_model
        seen["sigma"] = timestep
        return executor(x, timestep, model_options, seed, *args, **kwargs)

    model = closed_form_model()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "test", outer_sample)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", predict_noise)
    run("core", model)
    assert isinstance(seen["before"], comfy.samplers.CFGGuider)
    assert callable(seen["sampler"].sampler_function) and isinstance(seen["sampler"].extra_options, dict)
    assert seen["prepared"] == ({"positive", "negative"}, True, model.model)
    assert seen["sigma"].ndim == 1, "predict_noise is called with a sigma per sample"


def test_our_step_asks_for_both_predictions_in_one_call(monkeypatch):
    """Newer hosts spread the conditions of one call over several GPUs."""
    calls = []
    original = comfy.samplers.calc_cond_batch

    def counting(model, conds, *args):
        calls.append(len(conds))
        return original(model, conds, *args)

    monkeypatch.setattr(comfy.samplers, "calc_cond_batch", counting)
    for by in ["guider", "patch"]:
        calls.clear()
        run(by, closed_form_model())
        assert calls == [2] * (len(SIGMAS) - 1)
