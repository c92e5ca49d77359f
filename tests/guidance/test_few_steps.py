"""Few steps, matched: as strong as the paper's 50 within measured bounds, that do not hold without what they test."""

import dataclasses

import comfy.k_diffusion.sampling
import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance import strength
from annealing_guidance_pack.guidance.delivery import Delivery
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models.scale_file import load_scale
from closed_form import closed_form_model, conditioning, paper_trajectory, sample


def deviation(checkpoint, sampler, steps):
    """Largest relative deviation of the final latents from the paper's run, with karras sigmas between its own ends."""
    network = load_scale(checkpoint)
    network.info = dataclasses.replace(network.info, reference_numel=None)  # see PaperTrajectory
    golden, model = paper_trajectory(50), closed_form_model()
    guider = AnnealingCFGGuider(model, Guidance(network, golden.lambdas))
    guider.set_conds(golden.positive(), golden.negative())
    table = model.get_model_object("model_sampling").sigmas
    sigmas = comfy.k_diffusion.sampling.get_sigmas_karras(steps, float(table[0]), float(table[980]))
    sampler = null_renoising_sampler() if sampler == "annealing" else comfy.samplers.sampler_object(sampler)
    latent, expected = sample(guider, sampler, sigmas, golden.noise(sigmas[0])).double(), golden.final_latent
    return ((latent - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).max().item()


def added_up(scale, response, steps, several_calls):
    """Training steps added up, as if each saw the whole gap."""
    return scale * steps


def seen_once(scale, response, steps, several_calls, composed=strength.pull):
    return composed(scale, response, steps, False)


def left_in(delivery, level, displacement):
    return displacement


WITHOUT = {
    "composition": (strength, "pull", added_up),
    "the rule for several calls": (strength, "pull", seen_once),
    "the inverse of the extrapolation": (Delivery, "_without_extrapolation", left_in),
}


# Each bound is about 1.2 times what was measured; without the part that it tests, it is exceeded. Measured in the comments: both.
@pytest.mark.parametrize("without, sampler, steps, bound", [
    ("composition", "annealing", 10, 0.022),  # 0.018, 0.76
    ("composition", "euler", 10, 0.022),  # 0.018, 0.76
    ("composition", "euler_cfg_pp", 10, 0.022),  # 0.018, 0.76
    ("composition", "euler", 20, 0.006),  # 0.0037, 0.010
    ("composition", "heun", 10, 0.42),  # 0.36, 4.0
    ("composition", "dpm_2", 10, 0.27),  # 0.22, 4.1
    ("composition", "dpmpp_2m", 10, 0.2),  # 0.17, 0.81
    ("composition", "dpmpp_2m_cfg_pp", 10, 0.2),  # 0.17, 0.81
    ("composition", "res_multistep", 10, 0.25),  # 0.20, 0.82
    ("the rule for several calls", "heun", 20, 0.05),  # 0.042, 0.071
    ("the rule for several calls", "heun", 30, 0.03),  # 0.024, 0.046
    ("the rule for several calls", "dpm_2", 20, 0.05),  # 0.040, 0.067
    ("the inverse of the extrapolation", "dpmpp_2m", 20, 0.007),  # 0.0050, 0.081
    ("the inverse of the extrapolation", "res_multistep", 20, 0.007),  # 0.0055, 0.087
    ("the inverse of the extrapolation", "ipndm", 20, 0.027),  # 0.022, 0.055
    ("the inverse of the extrapolation", "ipndm_v", 20, 0.03),  # 0.025, 0.061
    ("the inverse of the extrapolation", "lms", 20, 0.03),  # 0.024, 0.053
    ("the inverse of the extrapolation", "deis", 20, 0.03),  # 0.026, 0.055
    ("the inverse of the extrapolation", "uni_pc", 20, 0.015),  # 0.011, 0.036
    ("the inverse of the extrapolation", "uni_pc_bh2", 20, 0.015),  # 0.011, 0.036
    ("the inverse of the extrapolation", "gradient_estimation", 20, 0.075),  # 0.061, 0.11
    ("the inverse of the extrapolation", "ipndm", 10, 0.1),  # 0.080, 0.87
    ("the inverse of the extrapolation", "lms", 10, 0.056),  # 0.046, 0.15
    ("the inverse of the extrapolation", "deis", 10, 0.07),  # 0.057, 0.25
    ("the inverse of the extrapolation", "gradient_estimation", 10, 0.19),  # 0.15, 0.54
])  # fmt: skip
def test_few_steps_are_as_strong_as_the_papers_fifty(official_checkpoint, monkeypatch, without, sampler, steps, bound):
    assert deviation(official_checkpoint, sampler, steps) < bound
    monkeypatch.setattr(*WITHOUT[without])
    assert deviation(official_checkpoint, sampler, steps) > bound


# Measured: 1.00 with all but dpm_2_ancestral (0.74) and lcm (1.06). Taken for solvers that add no
# noise, dpm_2_ancestral was at -5.2 and dpmpp_2s_ancestral at 0.69.
@pytest.mark.parametrize("sampler, within", [
    ("euler_ancestral", 0.03),
    ("dpm_2_ancestral", 0.3),
    ("dpmpp_2s_ancestral", 0.03),
    ("dpmpp_sde", 0.03),
    ("dpmpp_2m_sde", 0.03),
    ("dpmpp_3m_sde", 0.03),
    ("er_sde", 0.03),
    ("sa_solver", 0.03),
    ("seeds_2", 0.03),
    ("res_multistep_ancestral", 0.03),
    ("lcm", 0.09),
])  # fmt: skip
def test_solvers_that_add_noise_are_as_strong_at_twenty_steps_as_at_fifty(official_checkpoint, sampler, within):
    """Mean over 32 noises, along the caption, over that of 50 steps."""
    assert strength_over_noises(official_checkpoint, sampler, 20) == pytest.approx(
        strength_over_noises(official_checkpoint, sampler, 50), rel=within
    )


def strength_over_noises(checkpoint, sampler, steps):
    network = load_scale(checkpoint)
    network.info = dataclasses.replace(network.info, reference_numel=None)
    golden, model = paper_trajectory(50), closed_form_model()
    guider = AnnealingCFGGuider(model, Guidance(network, float(golden.lambdas[2])))
    caption = golden.means[2]
    guider.set_conds(conditioning(caption[None], golden.std_cond), golden.negative())
    table = model.get_model_object("model_sampling").sigmas
    sigmas = comfy.k_diffusion.sampling.get_sigmas_karras(steps, float(table[0]), float(table[980]))
    noise = torch.randn(32, *caption.shape, generator=torch.Generator().manual_seed(0))
    mean = sample(guider, comfy.samplers.sampler_object(sampler), sigmas, noise).double().mean(0)
    return ((mean * caption).sum() / caption.square().sum()).item()
