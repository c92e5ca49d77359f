"""Which samplers renoise with the unconditional prediction, and what is said where the choice does not fit."""

import logging
from functools import partial

import comfy.k_diffusion.sampling as k_diffusion
import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance import renoising
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.sampler import null_renoising_sampler
from annealing_guidance_pack.guidance.run import Guidance
from closed_form import SmoothScale, closed_form_model, conditioning, sample
from comfy.model_base import ModelType


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_auto_folds_for_every_sampler_of_core_but_the_cfg_pp_ones(name):
    assert renoising.is_folded("auto", comfy.samplers.sampler_object(name)) == ("cfg_pp" not in name)


@pytest.mark.parametrize("mix, folded", [(1.0, False), (0.5, False), (0.0, True)])
def test_auto_asks_the_annealing_sampler_how_it_renoises(mix, folded):
    assert renoising.is_folded("auto", null_renoising_sampler(renoise_mix=mix)) == folded


def test_wrapped_samplers_are_recognised():
    inner = comfy.samplers.sampler_object("euler_cfg_pp")
    wrapping = comfy.samplers.KSAMPLER(lambda *args, **kwargs: None, extra_options={"wrapped_sampler": inner})
    assert not renoising.is_folded("auto", wrapping)
    bound = comfy.samplers.KSAMPLER(partial(k_diffusion.sample_euler_ancestral_cfg_pp, eta=0.5))
    assert not renoising.is_folded("auto", bound)


def test_a_sampler_that_is_no_ksampler_is_folded():
    class Foreign(comfy.samplers.Sampler):
        pass

    assert renoising.is_folded("auto", Foreign())


@pytest.mark.parametrize("sampler, renoise, said", [
    ("euler", "auto", None),
    ("euler", "folded", None),
    ("euler", "null", 'renoise is "null", but the sampler euler does not renoise'),
    ("euler_cfg_pp", "auto", None),
    ("euler_cfg_pp", "null", None),
    ("euler_cfg_pp", "folded", 'renoise is "folded", but the sampler euler_cfg_pp renoises'),
])  # fmt: skip
def test_a_choice_that_does_not_fit_is_honoured_with_one_warning(sampler, renoise, said, caplog):
    mean = torch.zeros(1, 4, 8, 8)
    guider = AnnealingCFGGuider(closed_form_model(), Guidance(SmoothScale(), renoise=renoise))
    guider.set_conds(conditioning(mean + 1, 0.5), conditioning(mean, 0.9))
    with caplog.at_level(logging.WARNING):
        sample(guider, comfy.samplers.sampler_object(sampler), torch.tensor([14.0, 3.0, 1.0, 0.0]), torch.randn(1, 4, 8, 8))
    ours = [record.message for record in caplog.records if record.name == "annealing_guidance"]
    assert [said in message for message in ours] == [True] if said else ours == []
    if renoise != "auto":
        assert guider.trace.folded == (renoise == "folded")


@pytest.mark.parametrize("name, instead", [
    ("dpmpp_2m_cfg_pp", "Annealing Sampler or euler_cfg_pp"),
    ("dpmpp_2s_ancestral_cfg_pp", "Annealing Sampler or euler_cfg_pp"),
    ("res_multistep_cfg_pp", "Annealing Sampler or euler_cfg_pp"),
    ("res_multistep_ancestral_cfg_pp", "Annealing Sampler or euler_cfg_pp"),
    ("gradient_estimation_cfg_pp", "Annealing Sampler or euler_cfg_pp"),
    ("res_multistep_ancestral", "Use res_multistep."),
    ("ddpm", "Use euler_ancestral."),
    ("euler_cfg_pp", None),
    ("euler_ancestral_cfg_pp", None),
    ("res_multistep", None),
])  # fmt: skip
def test_samplers_whose_flow_step_is_wrong_are_named_with_what_to_use_instead(name, instead):
    """That these are all of them, and that they are wrong, is measured in tests/compatibility/test_samplers.py."""
    sampler = comfy.samplers.sampler_object(name)
    folded = renoising.is_folded("auto", sampler)
    flow, ve = (closed_form_model(kind).get_model_object("model_sampling") for kind in (ModelType.FLOW, ModelType.EPS))
    assert renoising.advice(folded, sampler, ve) is None
    advice = renoising.advice(folded, sampler, flow)
    if instead is None:
        assert advice is None
    else:
        assert name in advice and "not correct for flow models" in advice and instead in advice


def test_a_wrapped_sampler_whose_flow_step_is_wrong_is_named():
    def detail_tool(*args, **kwargs):
        pass

    inner = comfy.samplers.sampler_object("res_multistep_cfg_pp")
    wrapping = comfy.samplers.KSAMPLER(detail_tool, extra_options={"wrapped_sampler": inner})
    flow = closed_form_model(ModelType.FLOW).get_model_object("model_sampling")
    assert "sampler res_multistep_cfg_pp is not correct" in renoising.advice(False, wrapping, flow)
