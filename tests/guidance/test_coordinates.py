"""Noise level, timestep and gap of every kind of ComfyUI model; which scale goes with which model."""

import comfy.model_sampling
import pytest
import torch
from annealing_guidance_pack.guidance import coordinates
from annealing_guidance_pack.models import schedule
from annealing_guidance_pack.models.errors import AnnealingError
from closed_form import ClosedFormConfig, SmoothScale
from comfy.model_base import ModelType, model_sampling
from hypothesis import given
from hypothesis import strategies as st
from kinds import KINDS, is_flow, model_of, network_output

VE_TYPES = ["EPS", "V_PREDICTION", "V_PREDICTION_EDM", "STABLE_CASCADE", "EDM", "V_PREDICTION_CONTINUOUS"]
VE_TYPES += [name for name in ["V_PREDICTION_DDPM"] if name in ModelType.__members__]
FLOW_TYPES = ["FLOW", "FLUX", "FLOW_COSMOS"]


def sampling_of(name, **settings):
    return model_sampling(ClosedFormConfig(settings), ModelType[name])


@pytest.mark.parametrize("name", VE_TYPES)
def test_everything_sampled_in_the_ve_form_is_on_the_ve_path(name):
    assert coordinates.path_of(sampling_of(name)) == "ve"


@pytest.mark.parametrize("name", FLOW_TYPES)
def test_flow_models_are_on_the_flow_path_cosmos_too(name):
    assert coordinates.path_of(sampling_of(name)) == "flow"
    assert coordinates.keeps_signal_scaled(sampling_of(name)) == (name != "FLOW_COSMOS")


@pytest.mark.parametrize("name", [name for name in ("IMG_TO_IMG", "IMG_TO_IMG_FLOW") if name in ModelType.__members__])
def test_a_model_without_a_noise_path_is_refused_by_name(name):
    with pytest.raises(AnnealingError, match=f"{name}.*CFGGuider"):
        coordinates.path_of(sampling_of(name))


def test_a_kind_that_nobody_knows_is_refused_by_name():
    class ModelSampling(torch.nn.Module):
        pass

    with pytest.raises(AnnealingError, match="Module.*CFGGuider"):
        coordinates.path_of(ModelSampling())


@pytest.mark.parametrize("name, prediction", [("EPS", "velocity"), ("FLOW", "epsilon"), ("FLOW_COSMOS", "epsilon")])
def test_a_scale_for_the_other_path_is_refused_naming_both(name, prediction):
    with pytest.raises(AnnealingError, match="smooth.*(epsilon.*flow|flow.*epsilon)"):
        coordinates.require_match(SmoothScale(prediction).info, sampling_of(name))


@pytest.mark.parametrize("name", VE_TYPES + FLOW_TYPES)
def test_a_fixed_rule_and_a_scale_of_the_path_fit_every_model(name):
    own = "velocity" if name in FLOW_TYPES else "epsilon"
    for prediction in (None, own):
        coordinates.require_match(SmoothScale(prediction).info, sampling_of(name))


def test_edm_noise_levels_are_relative_to_the_datas_deviation():
    sampling = sampling_of("EDM", sigma_data=0.5)
    torch.testing.assert_close(coordinates.nsr_of_sigma(sampling, torch.tensor([3.0])), torch.tensor([6.0]))


@given(s=st.floats(0.001, 0.999))
def test_the_share_of_noise_over_that_of_data_is_the_nsr_of_flow_models_in_either_form(s):
    expected = torch.tensor([s / (1 - s)])
    torch.testing.assert_close(coordinates.nsr_of_sigma(sampling_of("FLOW"), torch.tensor([s])), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(coordinates.nsr_of_sigma(sampling_of("FLOW_COSMOS"), expected), expected)


def test_pure_noise_is_a_finite_nsr_and_leads_back():
    flow, cosmos = sampling_of("FLOW"), sampling_of("FLOW_COSMOS", sigma_min=0.002, sigma_max=80.0)
    infinite = coordinates.nsr_of_sigma(flow, torch.ones(1))
    assert infinite.item() == schedule.LARGEST_NSR
    assert coordinates.sigma_of_nsr(flow, infinite).item() == 1.0
    assert coordinates.sigma_of_nsr(cosmos, infinite).item() == pytest.approx(80.0)


@pytest.mark.parametrize(
    "dtype, kept", [(torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_half_precision_levels_are_computed_in_single_precision(dtype, kept):
    for name in ("EPS", "FLOW", "FLOW_COSMOS"):
        assert coordinates.nsr_of_sigma(sampling_of(name), torch.tensor([0.5], dtype=dtype)).dtype == kept


BY_NAME = {kind.name: kind for kind in KINDS}
GUIDABLE = [kind for kind in KINDS if kind.path]
VE = [kind for kind in GUIDABLE if not is_flow(kind)]
FLOW = [kind for kind in GUIDABLE if is_flow(kind)]


def own_sampling(kind):
    return model_of(kind).get_model_object("model_sampling")


@pytest.mark.parametrize("kind", VE, ids=str)
def test_the_same_signal_to_noise_ratio_is_the_same_timestep_on_every_model_on_the_ve_path(kind):
    timesteps = torch.tensor([0, 1, 500, 998, 999])
    sigma = schedule.ve_sigmas()[timesteps].float() * kind.sigma_data
    nsr = coordinates.nsr_of_sigma(own_sampling(kind), sigma)
    torch.testing.assert_close(schedule.timestep_of_nsr("ve", nsr), timesteps.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", FLOW, ids=str)
def test_the_same_share_of_noise_is_the_same_timestep_on_every_flow_model(kind):
    """Whatever the model's shift is, and whether it calls its own times 0..1 or 0..1000."""
    s = torch.tensor([0.001, 0.25, 0.5, 0.98])
    sigma = s / (1 - s) if kind.path == "cosmos" else s
    nsr = coordinates.nsr_of_sigma(own_sampling(kind), sigma)
    torch.testing.assert_close(schedule.timestep_of_nsr("flow", nsr), 1000 * s, atol=1e-3, rtol=0)


def test_the_models_own_timesteps_differ_where_the_networks_do_not():
    sigma, names = torch.tensor([0.5]), ["flow 1000", "flow 1", "flux"]
    own = [own_sampling(BY_NAME[name]).timestep(sigma).item() for name in names]
    networks = [schedule.timestep_of_nsr("flow", coordinates.nsr_of_sigma(own_sampling(BY_NAME[name]), sigma)) for name in names]
    assert own == [500, 0.5, 0.5] and [value.item() for value in networks] == [500, 500, 500]


@pytest.mark.parametrize("name", ["v zsnr", "v edm", "v continuous", "edm", "cascade"])
def test_a_sigma_beyond_the_networks_schedule_is_its_last_timestep(name):
    """The network's own training ends at sigma 14.6. With zero terminal SNR models begin at 4518."""
    sigma = own_sampling(BY_NAME[name]).sigma_max[None]
    nsr = coordinates.nsr_of_sigma(own_sampling(BY_NAME[name]), sigma)
    assert nsr.item() > 14.7
    assert schedule.timestep_of_nsr("ve", nsr).item() == 999


def test_the_zero_terminal_snr_model_begins_at_its_huge_sigma():
    assert own_sampling(BY_NAME["v zsnr"]).sigma_max.item() == pytest.approx(4518.7, abs=0.1)


def test_lcms_fifty_noise_levels_are_every_twentieth_timestep():
    nsr = coordinates.nsr_of_sigma(own_sampling(BY_NAME["lcm"]), own_sampling(BY_NAME["lcm"]).sigmas)
    expected = torch.arange(19, 1000, 20).float()
    torch.testing.assert_close(schedule.timestep_of_nsr("ve", nsr), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", GUIDABLE, ids=str)
def test_every_models_levels_lead_back_to_its_sigmas(kind):
    sigma = own_sampling(kind).sigmas[[0, len(own_sampling(kind).sigmas) // 2, -2]]
    back = coordinates.sigma_of_nsr(own_sampling(kind), coordinates.nsr_of_sigma(own_sampling(kind), sigma))
    torch.testing.assert_close(back, sigma, rtol=1e-4, atol=0)


# By how much the gap that a scale network knows is smaller than the gap of the model's own outputs, by how the output is defined.
GAP_OF_OUTPUTS = {
    "eps": lambda sigma: 1,
    "cascade": lambda sigma: 1,
    "x0": lambda sigma: 1 / sigma,
    # c_out of LCM's boundary condition, by its own timestep: nearly 1
    "lcm": lambda sigma: 1,
    "v": lambda sigma: 1 / (1 + sigma**2) ** 0.5,
    "v zsnr": lambda sigma: 1 / (1 + sigma**2) ** 0.5,
    "v edm": lambda sigma: 1 / (1 + sigma**2) ** 0.5,
    "v continuous": lambda sigma: 1 / (1 + sigma**2) ** 0.5,
    "v ddpm": lambda sigma: 1 / (1 + sigma**2) ** 0.5,
    "edm": lambda sigma: 0.5 / (0.5**2 + sigma**2) ** 0.5,
    "flow 1000": lambda sigma: 1,
    "flow 1": lambda sigma: 1,
    "flux": lambda sigma: 1,
    "flow av": lambda sigma: 1,
    "flow, noise x 8": lambda sigma: 1,
    "cosmos": lambda sigma: 1,
}


@pytest.mark.parametrize("kind", GUIDABLE, ids=str)
def test_the_gap_of_every_kind_of_model_follows_from_its_outputs(kind):
    sampling, sigma = own_sampling(kind), torch.tensor([0.7, 0.2])
    cond, uncond, x = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    denoised = predictions_of(sampling, sigma, (cond, uncond), x)
    norm = coordinates.gap_norm(sampling, *denoised, sigma)
    expected = GAP_OF_OUTPUTS[kind.name](sigma) * (cond - uncond).flatten(1).norm(dim=1)
    torch.testing.assert_close(norm, expected, atol=0, rtol=1e-4)
    of_noise_or_velocity = [network_output(kind, one, x, sigma.view(-1, 1, 1, 1)) for one in denoised]
    implied = (of_noise_or_velocity[0] - of_noise_or_velocity[1]).flatten(1).norm(dim=1)
    torch.testing.assert_close(norm, implied, atol=0, rtol=1e-4)


def predictions_of(sampling, sigma, outputs, x):
    return [sampling.calculate_denoised(sigma, output, x) for output in outputs]


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 16, 3, 8, 8), (2, 1, 500)], ids=["image", "video", "packed"])
def test_latents_of_every_rank_and_memory_format_give_one_norm_per_sample(shape):
    cond = torch.randn(shape)
    if len(shape) == 4:
        cond = cond.to(memory_format=torch.channels_last)
    assert coordinates.gap_norm(sampling_of("EPS"), cond, torch.zeros(shape), torch.ones(2)).shape == (2,)


def test_half_precision_norms_do_not_overflow():
    cond = torch.full((1, 4, 128, 128), 100.0, dtype=torch.float16)
    norm = coordinates.gap_norm(sampling_of("EPS"), cond, -cond, torch.ones(1))
    assert norm.item() == pytest.approx(200 * 65536**0.5)


def test_a_model_sampling_node_counts():
    assert issubclass(comfy.model_sampling.X0, comfy.model_sampling.EPS)  # LCM and X0 patches are sampled in the VE form
