"""Whole runs through ComfyUI's own sampling, against figures of the authors' sampler and network."""

import dataclasses

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance import paper_schedule
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models.scale_file import load_scale
from closed_form import closed_form_model, paper_trajectory, sample


@pytest.fixture(scope="module")
def network(official_checkpoint):
    network = load_scale(official_checkpoint)
    network.info = dataclasses.replace(network.info, reference_numel=None)  # see PaperTrajectory
    return network


def sampler_of(name):
    return null_renoising_sampler() if name == "annealing" else comfy.samplers.sampler_object(name)


def run(network, steps, sampler, renoise, match_training_steps):
    golden, model = paper_trajectory(steps), closed_form_model()
    guider = AnnealingCFGGuider(model, Guidance(network, golden.lambdas, renoise, match_training_steps))
    guider.set_conds(golden.positive(), golden.negative())
    sigmas = golden.sigmas(model.get_model_object("model_sampling"))
    return golden, guider.trace, sample(guider, sampler_of(sampler), sigmas, golden.noise(sigmas[0]))


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("sampler", ["annealing", "euler_cfg_pp"])
def test_null_renoising_reproduces_the_papers_run(network, steps, sampler):
    golden, trace, latent = run(network, steps, sampler, "null", False)
    torch.testing.assert_close(latent.double(), golden.final_latent, atol=1e-5, rtol=0)
    scale, gap_norm = (torch.stack([getattr(call, name) for call in trace.calls]).double() for name in ("scale", "gap_norm"))
    torch.testing.assert_close(scale, golden.scale, atol=1e-5, rtol=0)
    torch.testing.assert_close(gap_norm, golden.gap_norm, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("match_training_steps", [True, False])
def test_folded_euler_reproduces_the_papers_run(network, match_training_steps):
    golden, _, latent = run(network, 50, "euler", "folded", match_training_steps)
    torch.testing.assert_close(latent.double(), golden.final_latent, atol=1e-5, rtol=0)


def test_folded_euler_is_the_papers_step_at_any_step_count(network):
    golden, _, latent = run(network, 20, "euler", "folded", False)
    torch.testing.assert_close(latent.double(), golden.final_latent, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", ["annealing", "euler"])
def test_auto_chooses_the_form_that_reproduces_the_papers_run(network, sampler):
    golden, trace, latent = run(network, 50, sampler, "auto", True)
    assert trace.folded == (sampler == "euler")
    torch.testing.assert_close(latent.double(), golden.final_latent, atol=1e-5, rtol=0)


def test_matched_steps_are_equally_strong_with_and_without_null_renoising(network):
    _, _, null = run(network, 20, "annealing", "null", True)
    _, _, folded = run(network, 20, "euler", "folded", True)
    torch.testing.assert_close(null, folded, atol=1e-5, rtol=0)


def strength(latent, golden):
    """How far guidance moves the latents of each sample along the conditional mean: 1 is at it."""
    return (latent * golden.means).sum((1, 2, 3)) / (golden.means**2).sum((1, 2, 3))


def test_a_learned_scale_in_ordinary_cfg_hardly_guides(network):
    """The trap: fed to plain euler as it is, the scale leaves the latents about where the conditional model's own are."""
    golden, _, naive = run(network, 50, "euler", "null", False)
    assert (strength(naive, golden) < 1.15).all()
    assert (strength(golden.final_latent, golden) > 1.5).all()


def test_matching_keeps_the_strength_at_any_number_of_steps(network):
    """With a solver accurate enough that the number of steps alone changes nothing."""

    def spread(match_training_steps):
        golden, model = paper_trajectory(50), closed_form_model()
        guider = AnnealingCFGGuider(model, Guidance(network, golden.lambdas, "auto", match_training_steps))
        guider.set_conds(golden.positive(), golden.negative())
        strengths = []
        for steps in (20, 50, 100):
            sigmas = paper_schedule.sigmas(model.get_model_object("model_sampling"), steps)
            strengths.append(strength(sample(guider, sampler_of("heun"), sigmas, golden.noise(sigmas[0])), golden))
        return (torch.stack(strengths).amax(0) - torch.stack(strengths).amin(0)).max()

    assert spread(True) < 0.02
    assert spread(False) > 0.1
