"""The guidance is one whatever sampler it is handed to: the null-renoised form and the folded one give one picture."""

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.run import Guidance
from beside import assert_close, patch_by
from closed_form import SmoothScale, closed_form_model, conditioning, sample
from comfy.model_base import ModelType

SHAPE = (2, 4, 8, 8)
MEANS, NOISE = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
TYPES = {"eps": ModelType.EPS, "flow": ModelType.FLOW}
models = pytest.mark.parametrize("kind", TYPES)

HOOKS = {
    "no hook": lambda model: model,
    "RescaleCFG": patch_by("nodes_model_advanced", "RescaleCFG", 0.7),
    "APG": patch_by("nodes_apg", "APG", 0.3, 2.0, 0.0),
    "APG with momentum": patch_by("nodes_apg", "APG", 1.0, 0.0, -0.4),
    "CFGZeroStar": patch_by("nodes_cfg", "CFGZeroStar"),
    "TCFG": patch_by("nodes_tcfg", "TCFG"),
    "Mahiro": patch_by("nodes_mahiro", "Mahiro"),
}
hooks = pytest.mark.parametrize("hook", HOOKS)


def picture(kind, sampler, hook="no hook", sigmas=None, steps=8, told=None):
    """The final latents; told: collects the CFG number that a hook is told at each call."""
    model = closed_form_model(TYPES[kind], {"shift": 3.0} if kind == "flow" else None).clone()
    if sigmas is None:
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    if told is not None:
        model.set_model_sampler_pre_cfg_function(lambda args: told.append(args["cond_scale"].flatten()) or args["conds_out"])
    guider = AnnealingCFGGuider(HOOKS[hook](model), Guidance(SmoothScale()))
    guider.set_conds(conditioning(MEANS, 0.4), conditioning(0 * MEANS[:1] + 0.2, 0.9))
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    return sample(guider, sampler, sigmas, NOISE, seed=4)


def ancestral(name, eta):
    return comfy.samplers.ksampler(name, {"eta": eta})


def annealing(mix, eta=0.0):
    return null_renoising_sampler(eta=eta, renoise_mix=mix)


@models
@hooks
def test_samplers_of_the_first_order_give_one_picture_however_they_renoise(kind, hook):
    expected = picture(kind, "euler", hook)
    for sampler in (annealing(0.0), annealing(0.5), annealing(1.0), "euler_cfg_pp"):
        assert_close(picture(kind, sampler, hook), expected, 2e-5)


@models
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_with_fresh_noise_too(kind, eta):
    # From s = 1 core's sampler takes only fresh noise, whatever eta: its ratio there is inf/inf
    sigmas = torch.tensor([13.0, 6.0, 2.0, 0.5, 0.0] if kind == "eps" else [0.95, 0.8, 0.5, 0.2, 0.0])
    expected = picture(kind, annealing(0.0, eta), sigmas=sigmas)
    for sampler in (annealing(0.5, eta), annealing(1.0, eta), ancestral("euler_ancestral_cfg_pp", eta)):
        assert_close(picture(kind, sampler, sigmas=sigmas), expected, 2e-5)
    if kind == "eps":  # on flow models euler_ancestral adds another share of noise
        assert_close(picture(kind, ancestral("euler_ancestral", eta), sigmas=sigmas), expected, 2e-5)


@models
@pytest.mark.parametrize("name", ["dpmpp_2m", "res_multistep", "gradient_estimation"])
def test_solvers_of_the_second_order_give_the_picture_of_their_cfg_pp_form(name, kind):
    """The prediction is extrapolated alike in both, and the guidance in neither."""
    expected = picture(kind, name)
    assert_close(picture(kind, f"{name}_cfg_pp"), expected, 1e-5)
    assert ((expected - picture(kind, "euler")).norm() / expected.norm()) > 0.005  # it is no first-order picture


def test_second_order_with_fresh_noise_too():
    expected = picture("eps", ancestral("res_multistep_ancestral", 0.5))
    assert_close(picture("eps", ancestral("res_multistep_ancestral_cfg_pp", 0.5)), expected, 1e-5)


@models
@pytest.mark.parametrize("samplers", [
    ["euler", "euler_cfg_pp", annealing(1.0), annealing(0.5)],
    ["dpmpp_2m", "dpmpp_2m_cfg_pp"],
    ["res_multistep", "res_multistep_cfg_pp"],
    ["gradient_estimation", "gradient_estimation_cfg_pp"],
], ids=lambda samplers: samplers[0])  # fmt: skip
def test_hooks_are_told_one_cfg_number_whatever_the_sampler(kind, samplers):
    numbers = []
    for sampler in samplers:
        picture(kind, sampler, told=(told := []))
        numbers.append(torch.stack(told))
    assert numbers[0].mean() > 2  # ordinary CFG, and not the learned scale of about 1
    for other in numbers[1:]:
        torch.testing.assert_close(other, numbers[0], rtol=1e-4, atol=0)
