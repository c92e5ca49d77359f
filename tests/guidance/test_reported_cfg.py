"""`guider.cfg` during a run: what other tools read is the ordinary CFG that the run amounts to."""

import dataclasses

import comfy.k_diffusion.sampling
import comfy.samplers
import pytest
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.patch import patch_model
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models.fixed_scale import FixedScale
from annealing_guidance_pack.models.scale_file import load_scale
from closed_form import closed_form_model, paper_trajectory, sample
from comfy.patcher_extension import WrappersMP
from probing import sampler_of

GOLDEN = paper_trajectory(50)


@pytest.fixture(scope="module")
def network(official_checkpoint):
    network = load_scale(official_checkpoint)
    network.info = dataclasses.replace(network.info, reference_numel=None)  # see PaperTrajectory
    return network


def ran(entry, guidance, steps, sampler="euler", fails=False):
    """What a tool reads as the guider's cfg at every call, the mean that was really used, and the guider after the run."""
    read, model = [], closed_form_model().clone()

    def tool(executor, *args, **kwargs):
        read.append(executor.class_obj.cfg)
        if fails:
            raise RuntimeError("stopped")
        return executor(*args, **kwargs)

    model.add_wrapper(WrappersMP.PREDICT_NOISE, tool)
    if entry == "guider":
        guider = AnnealingCFGGuider(model, guidance)
        trace = guider.trace
    else:
        model, trace = patch_model(model, guidance)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_cfg(99.0)
    guider.set_conds(GOLDEN.positive(), GOLDEN.negative())
    table = model.get_model_object("model_sampling").sigmas
    sigmas = comfy.k_diffusion.sampling.get_sigmas_karras(steps, float(table[0]), float(table[980]))
    try:
        sample(guider, sampler_of(sampler), sigmas, GOLDEN.noise(sigmas[0]))
    except RuntimeError:
        assert fails
    return read, trace.latest.mean_cfg(), guider


@pytest.mark.parametrize("entry", ["guider", "patch"])
@pytest.mark.parametrize("sampler", ["euler", "euler_cfg_pp", "dpmpp_2m"])
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_it_is_near_the_mean_that_the_run_uses(entry, sampler, steps, network):
    read, mean, guider = ran(entry, Guidance(network, GOLDEN.lambdas), steps, sampler)
    assert len(set(read)) == 1
    assert read[0] == pytest.approx(mean, rel=0.15)


@pytest.mark.parametrize("entry, before", [("guider", 1.0), ("patch", 99.0)])
@pytest.mark.parametrize("fails", [False, True])
def test_after_the_run_it_is_what_it_was(entry, before, fails):
    read, _, guider = ran(entry, Guidance(FixedScale()), 5, fails=fails)
    assert guider.cfg == before and read[0] != before


def test_of_a_rule_it_is_exact():
    read, mean, _ = ran("guider", Guidance(FixedScale("constant", 0.8), match_training_steps=False), 20)
    assert read[0] == pytest.approx(mean, rel=1e-5)
