"""Whole runs on flow models through ComfyUI's own sampling, against the paper's flow step in float64, written out here."""

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.run import Guidance
from closed_form import SmoothScale, closed_form_model, flow_denoised, paper_trajectory, sample
from comfy.model_base import ModelType

GRID = 20  # timesteps per training step, out of 1000


def reference(data, s_values, scale_model, k_of):
    """z' = (1-s') x0 + s' eps_u with v_w = v_u + w (v_c - v_u), all in velocities. k_of(s, s', w): a factor on w."""
    z, means = data.initial_noise.clone(), data.means
    for s, s_next in zip(s_values[:-1], s_values[1:], strict=True):
        v_c = (z - flow_denoised(z, s, means, data.std_cond)) / s
        v_u = (z - flow_denoised(z, s, torch.zeros_like(means), data.std_uncond)) / s
        gap = v_c - v_u
        w = scale_model((1000 * s).expand(len(z)), gap.flatten(1).norm(dim=1), data.lambdas.double())
        w = w * k_of(s, s_next, w)
        v_w = v_u + w.view(-1, 1, 1, 1) * gap
        x0, eps_u = z - s * v_w, z + (1 - s) * v_u
        z = (1 - s_next) * x0 + s_next * eps_u
    return z


def paper(s, s_next, w):
    return 1.0


def matched(s, s_next, w):
    """What makes a step of another size as strong as the training grid's steps that it spans, which each leave 1 - w rho of the
    gap; written in flow times, where w_cfg of a step to s' is (1 - s')/(1 - s'/s)."""

    def w_cfg(following):
        return (1 - following) / (1 - following / s)

    steps = w_cfg((s - GRID / 1000).clamp(min=0)) / w_cfg(s_next)
    a = (1 - s) ** 2
    share = w * 2 * s**2 * a / ((a + s**2) * (a + 3 * s**2))  # of data with variance 1 without, 1/3 with the caption
    return torch.where(share < 1e-6, steps, (1 - (1 - share) ** steps) / share.clamp(min=1e-6))


def even_times(steps, shift=1.0):
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * t / (1 + (shift - 1) * t)


def run(sampler, s_values, renoise, match_training_steps, model_type=ModelType.FLOW):
    data, scale_model = paper_trajectory(50), SmoothScale("velocity", training_grid=GRID)
    guider = AnnealingCFGGuider(closed_form_model(model_type), Guidance(scale_model, data.lambdas, renoise, match_training_steps))
    guider.set_conds(data.positive(), data.negative())
    sampler = null_renoising_sampler() if sampler == "annealing" else comfy.samplers.sampler_object(sampler)
    return data, scale_model, sample(guider, sampler, s_values.float(), data.initial_noise.float())


@pytest.mark.parametrize("s_values", [even_times(50), even_times(12), even_times(28, shift=3.0)], ids=["50", "12", "28 shifted"])
@pytest.mark.parametrize("sampler, renoise", [("annealing", "null"), ("euler_cfg_pp", "null"), ("euler", "folded")])
@pytest.mark.parametrize("match_training_steps, k_of", [(False, paper), (True, matched)], ids=["paper", "matched"])
def test_flow_runs_are_the_papers_flow_step(sampler, renoise, match_training_steps, k_of, s_values):
    data, scale_model, latent = run(sampler, s_values, renoise, match_training_steps)
    torch.testing.assert_close(latent.double(), reference(data, s_values, scale_model, k_of), atol=1e-5, rtol=0)


def test_flow_models_with_their_own_time_units_agree():
    """Flux tells its model sigma, SD3 1000 sigma: the network is given 1000 s either way."""
    data, scale_model, latent = run("annealing", even_times(20), "null", False, ModelType.FLUX)
    torch.testing.assert_close(latent.double(), reference(data, even_times(20), scale_model, paper), atol=1e-5, rtol=0)
