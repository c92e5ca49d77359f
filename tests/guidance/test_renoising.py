"""Which form of the guidance a sampler is handed, and what is said where the choice does not fit."""

import logging

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance import renoising
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.guidance.sampler_facts import facts_of
from closed_form import SmoothScale, closed_form_model, conditioning, sample
from comfy.model_base import ModelType
from probing import NAMES, sampler_of

MEAN = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
SIGMAS = torch.tensor([14.0, 3.0, 1.0, 0.0])


def share(renoise, sampler):
    return renoising.uncond_share(renoise, facts_of(sampler))


@pytest.mark.parametrize("name", NAMES)
def test_auto_folds_for_every_sampler_of_comfyuis_but_those_that_renoise_with_the_unconditional_prediction(name):
    assert share("auto", sampler_of(name)) == float("cfg_pp" in name or name == "euler_pp")


@pytest.mark.parametrize("mix", [1.0, 0.5, 0.0])
def test_auto_asks_the_annealing_sampler_how_it_renoises(mix):
    assert share("auto", null_renoising_sampler(renoise_mix=mix)) == mix


@pytest.mark.parametrize("renoise, sampler, expected", [
    ("null", sampler_of("euler"), 1.0),
    ("null", sampler_of("euler_cfg_pp"), 1.0),
    ("null", null_renoising_sampler(renoise_mix=0.5), 0.5),
    ("null", comfy.samplers.KSAMPLER(lambda *args: None), 1.0),
    ("folded", sampler_of("euler_cfg_pp"), 0.0),
    ("folded", null_renoising_sampler(renoise_mix=0.5), 0.0),
    ("folded", sampler_of("euler"), 0.0),
])  # fmt: skip
def test_a_choice_counts_more_than_what_is_known(renoise, sampler, expected):
    assert share(renoise, sampler) == expected


def test_a_sampler_that_is_no_ksampler_is_folded():
    class Foreign(comfy.samplers.Sampler):
        pass

    assert share("auto", Foreign()) == 0


def guider_of(renoise):
    guider = AnnealingCFGGuider(closed_form_model(), Guidance(SmoothScale(), renoise=renoise))
    guider.set_conds(conditioning(MEAN, 0.5), conditioning(0 * MEAN, 0.9))
    return guider


@pytest.mark.parametrize("sampler, renoise, said", [
    ("euler", "auto", None),
    ("euler", "folded", None),
    ("euler", "null", 'renoise is "null", but the sampler euler does not renoise'),
    ("euler_cfg_pp", "auto", None),
    ("euler_cfg_pp", "null", None),
    ("euler_cfg_pp", "folded", 'renoise is "folded", but the sampler euler_cfg_pp renoises'),
])  # fmt: skip
def test_a_choice_that_does_not_fit_is_honoured_with_one_warning(sampler, renoise, said, caplog):
    guider = guider_of(renoise)
    with caplog.at_level(logging.WARNING):
        sample(guider, comfy.samplers.sampler_object(sampler), SIGMAS, NOISE)
    ours = [record.message for record in caplog.records if record.name == "annealing_guidance"]
    ours = [message for message in ours if "This run has 3 steps" not in message]
    assert [said in message for message in ours] == [True] if said else ours == []
    assert guider.trace.folded == (renoise == "folded" or (renoise == "auto" and sampler == "euler"))


@pytest.mark.parametrize("sampler", ["euler", "euler_cfg_pp"])
def test_the_choices_name_two_forms_of_which_auto_takes_the_fitting_one(sampler):
    auto, null, folded = (sample(guider_of(choice), sampler_of(sampler), SIGMAS, NOISE) for choice in ("auto", "null", "folded"))
    assert not torch.allclose(null, folded, rtol=0.01)
    assert torch.equal(auto, null if sampler == "euler_cfg_pp" else folded)


WRONG = {
    "dpmpp_2s_ancestral_cfg_pp": "Annealing Sampler or euler_ancestral_cfg_pp",
    "res_multistep_ancestral_cfg_pp": "Annealing Sampler or euler_ancestral_cfg_pp",
    "res_multistep_ancestral": "Use res_multistep.",
    "ddpm": "Use euler_ancestral.",
}


@pytest.mark.parametrize("name", NAMES)
def test_samplers_whose_flow_step_is_wrong_are_named_with_what_to_use_instead(name):
    """That these are all of them, and that they are wrong, is measured in tests/compatibility/test_samplers.py."""
    flow, ve = (closed_form_model(kind).get_model_object("model_sampling") for kind in (ModelType.FLOW, ModelType.EPS))
    facts = facts_of(sampler_of(name))
    assert renoising.advice("auto", facts, ve) == []
    advice = renoising.advice("auto", facts, flow)
    if name not in WRONG:
        assert advice == []
    else:
        assert [name in said and "not correct for flow models" in said and WRONG[name] in said for said in advice] == [True]


def test_a_wrong_choice_with_a_wrong_sampler_is_said_in_two_sentences():
    flow = closed_form_model(ModelType.FLOW).get_model_object("model_sampling")
    assert len(renoising.advice("null", facts_of(sampler_of("ddpm")), flow)) == 2


def test_a_wrapped_sampler_whose_flow_step_is_wrong_is_named():
    def detail_tool(*args, **kwargs):
        pass

    wrapping = comfy.samplers.KSAMPLER(detail_tool, extra_options={"wrapped_sampler": sampler_of("res_multistep_ancestral")})
    flow = closed_form_model(ModelType.FLOW).get_model_object("model_sampling")
    (said,) = renoising.advice("auto", facts_of(wrapping), flow)
    assert "sampler res_multistep_ancestral is not correct" in said
