"""Noise level, timestep and gap of every kind of ComfyUI model; which scale goes with which model."""

import comfy.model_sampling
import pytest
import torch
from annealing_guidance_pack.guidance import units
from annealing_guidance_pack.models import schedule
from annealing_guidance_pack.models.errors import AnnealingError
from closed_form import ClosedFormConfig, SmoothScale
from comfy.model_base import ModelType, model_sampling

EPSILON_TYPES = ["EPS", "V_PREDICTION", "V_PREDICTION_EDM", "STABLE_CASCADE", "EDM", "V_PREDICTION_CONTINUOUS"]
VELOCITY_TYPES = ["FLOW", "FLUX", "FLOW_COSMOS"]


def sampling_of(name, **settings):
    return model_sampling(ClosedFormConfig(settings), ModelType[name])


@pytest.mark.parametrize("name", EPSILON_TYPES)
def test_everything_sampled_in_the_ve_form_is_of_epsilon_kind(name):
    assert units.prediction_kind(sampling_of(name)) == "epsilon"


@pytest.mark.parametrize("name", VELOCITY_TYPES)
def test_flow_models_are_of_velocity_kind(name):
    assert units.prediction_kind(sampling_of(name)) == "velocity"


def test_a_model_without_a_noise_path_is_refused_by_name():
    with pytest.raises(AnnealingError, match="IMG_TO_IMG.*CFGGuider"):
        units.prediction_kind(sampling_of("IMG_TO_IMG"))


@pytest.mark.parametrize("name, prediction", [("EPS", "velocity"), ("FLOW", "epsilon"), ("FLOW_COSMOS", "epsilon")])
def test_a_scale_for_the_other_kind_is_refused_naming_both(name, prediction):
    with pytest.raises(AnnealingError, match="smooth.*(epsilon.*flow|flow.*epsilon)"):
        units.require_match(SmoothScale(prediction).info, sampling_of(name))


@pytest.mark.parametrize("name", EPSILON_TYPES + VELOCITY_TYPES)
def test_a_fixed_rule_fits_every_model(name):
    units.require_match(SmoothScale(None).info, sampling_of(name))


@pytest.mark.parametrize("name", ["EPS", "V_PREDICTION", "V_PREDICTION_EDM", "V_PREDICTION_CONTINUOUS"])
def test_the_same_sigma_is_the_same_timestep_whatever_the_model_calls_it(name):
    sigma = schedule.ve_sigmas()[[0, 500, 999]].float()
    level = units.noise_level(sampling_of(name), sigma)
    torch.testing.assert_close(units.network_timestep("epsilon", level), torch.tensor([0.0, 500.0, 999.0]), atol=1e-3, rtol=0)


def test_edm_noise_levels_are_relative_to_the_datas_deviation():
    sampling = sampling_of("EDM", sigma_data=0.5)
    torch.testing.assert_close(units.noise_level(sampling, torch.tensor([3.0])), torch.tensor([6.0]))


def test_cosmos_levels_are_flow_times():
    level = units.noise_level(sampling_of("FLOW_COSMOS"), torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(units.network_timestep("velocity", level), torch.tensor([500.0, 800.0]))


def predictions_of(sampling, sigma, outputs, x):
    return [sampling.calculate_denoised(sigma, output, x) for output in outputs]


@pytest.mark.parametrize("name", ["EPS", "FLOW", "FLUX", "FLOW_COSMOS"])
def test_the_gap_is_that_of_the_models_own_outputs(name):
    """EPS models answer with eps, flow models with v: the norm of the difference of the two answers, per sample."""
    torch.manual_seed(0)
    sampling, sigma = sampling_of(name), torch.tensor([0.7, 0.2])
    cond, uncond, x = torch.randn(3, 2, 4, 8, 8)
    norm = units.gap_norm(sampling, *predictions_of(sampling, sigma, (cond, uncond), x), sigma)
    torch.testing.assert_close(norm, (cond - uncond).flatten(1).norm(dim=1), atol=1e-4, rtol=1e-4)


def test_the_gap_of_a_v_prediction_model_is_that_of_the_noise_it_implies():
    """v = alpha eps - sigma x0 in the VP form, so eps_c - eps_u = alpha (v_c - v_u) with alpha = 1/sqrt(1 + sigma^2)."""
    torch.manual_seed(0)
    sampling, sigma = sampling_of("V_PREDICTION"), torch.tensor([0.7, 6.0])
    cond, uncond, x = torch.randn(3, 2, 4, 8, 8)
    norm = units.gap_norm(sampling, *predictions_of(sampling, sigma, (cond, uncond), x), sigma)
    expected = (cond - uncond).flatten(1).norm(dim=1) / (1 + sigma**2) ** 0.5
    torch.testing.assert_close(norm, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 16, 3, 8, 8), (2, 1, 500)], ids=["image", "video", "packed"])
def test_latents_of_every_rank_and_memory_format_give_one_norm_per_sample(shape):
    cond = torch.randn(shape)
    if len(shape) == 4:
        cond = cond.to(memory_format=torch.channels_last)
    assert units.gap_norm(sampling_of("EPS"), cond, torch.zeros(shape), torch.ones(2)).shape == (2,)


def test_half_precision_norms_do_not_overflow():
    cond = torch.full((1, 4, 128, 128), 100.0, dtype=torch.float16)
    norm = units.gap_norm(sampling_of("EPS"), cond, -cond, torch.ones(1))
    assert norm.item() == pytest.approx(200 * 65536**0.5)


def test_norms_are_rescaled_to_the_training_size():
    info = SmoothScale(reference_numel=65536).info
    assert units.norm_at_reference_size(torch.tensor([3.0]), 65536 // 4, info).item() == pytest.approx(6.0)
    assert units.norm_at_reference_size(torch.tensor([3.0]), 65536 * 4, info).item() == pytest.approx(1.5)
    assert units.norm_at_reference_size(torch.tensor([3.0]), 99, SmoothScale().info).item() == 3.0


def test_a_model_sampling_node_counts():
    assert issubclass(comfy.model_sampling.X0, comfy.model_sampling.EPS)  # LCM and X0 patches are sampled in the VE form
