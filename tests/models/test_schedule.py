"""The noise schedule and the next level on a training grid."""

import pytest
import torch
from annealing_guidance_pack.models.scale_model import ScaleInfo
from annealing_guidance_pack.models.schedule import next_on_training_grid, sigma_of_timestep, timestep_of_sigma, ve_sigmas
from hypothesis import given
from hypothesis import strategies as st

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
grids = st.lists(st.floats(2**-10, 100, width=32), min_size=2, max_size=20, unique=True).map(
    lambda sigmas: (*sorted(sigmas, reverse=True), 0.0)
)


def info(training_grid, prediction="epsilon"):
    return ScaleInfo("a scale", prediction, None, training_grid, "data", "source", "licence", "tests")


def ve(dtype):
    return ve_sigmas().to(dtype)


def test_the_schedule_is_sdxls():
    assert ve_sigmas().shape == (1000,)
    assert ve_sigmas()[[0, -1]].tolist() == pytest.approx([0.0291672, 14.614642], abs=1e-6)


def test_it_is_comfyuis_own_to_the_last_bit(comfyui):
    import comfy.model_sampling

    sigmas = comfy.model_sampling.ModelSamplingDiscrete().sigmas
    assert torch.equal(sigmas, ve(torch.float32))
    assert torch.equal(timestep_of_sigma(sigmas), torch.arange(1000.0))


@DTYPES
def test_timesteps_and_sigmas_match_exactly_at_every_point_of_the_schedule(dtype):
    timesteps = torch.arange(1000, dtype=dtype)
    assert torch.equal(timestep_of_sigma(ve(dtype)), timesteps)
    assert torch.equal(sigma_of_timestep(timesteps), ve(dtype))


@given(st.floats(0, 999))
def test_a_timestep_survives_the_way_to_sigma_and_back(timestep):
    there = sigma_of_timestep(torch.tensor([timestep], dtype=torch.float64))
    assert timestep_of_sigma(there).item() == pytest.approx(timestep, abs=1e-6)


@given(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9))
def test_timestep_rises_with_sigma_and_is_clamped(first, second):
    low, high = timestep_of_sigma(torch.tensor([min(first, second), max(first, second)])).tolist()
    assert 0 <= low <= high <= 999


def test_half_precision_gives_float32_and_any_shape_goes():
    assert timestep_of_sigma(torch.ones(2, 3, dtype=torch.float16)).dtype == torch.float32
    assert timestep_of_sigma(torch.ones(2, 3)).shape == (2, 3)
    assert timestep_of_sigma(torch.ones(3, 2).T).shape == (2, 3)


@DTYPES
@pytest.mark.parametrize("step", [1, 20, 50])
def test_on_the_schedules_grid_the_next_level_is_exact(dtype, step):
    following = next_on_training_grid(ve(dtype), info(step))
    assert torch.equal(following[step:], ve(dtype)[:-step])
    assert following[0] == 0


@DTYPES
def test_the_next_level_rises_with_sigma_below_and_above_the_schedule_too(dtype):
    sigma = torch.logspace(-3, 2, 20_000, dtype=dtype)
    following = next_on_training_grid(sigma, info(20))
    assert (following.diff() >= 0).all()
    assert ((following < sigma) & (following >= 0)).all()
    assert following.diff().max() < 0.02  # continuous: no jump where the grid ends


@given(grids)
def test_on_a_listed_grid_the_next_level_is_exact(grid):
    following = next_on_training_grid(torch.tensor(grid), info(grid))
    assert torch.equal(following, torch.tensor((*grid[1:], 0.0)))


@given(grids, st.lists(st.floats(0, 200), min_size=2, max_size=20))
def test_between_listed_points_the_next_level_rises_and_lies_below(grid, sigmas):
    sigma = torch.tensor(sorted(sigmas), dtype=torch.float64)
    following = next_on_training_grid(sigma, info(grid))
    assert (following.diff() >= -1e-12).all()
    assert (following <= sigma).all() and (following >= 0).all() and (following <= grid[1]).all()


def test_halfway_between_two_listed_points_is_halfway_between_their_successors():
    following = next_on_training_grid(torch.tensor([0.85, 0.5, 0.2]), info((1.0, 0.7, 0.3, 0.1, 0.0), "velocity"))
    assert following.tolist() == pytest.approx([0.5, 0.2, 0.05])


def test_flow_models_step_in_s():
    s = torch.tensor([1.0, 0.5, 0.02, 0.01, 0.0])
    assert next_on_training_grid(s, info(20, "velocity")).tolist() == pytest.approx([0.98, 0.48, 0.0, 0.0, 0.0])


def test_a_fixed_rule_takes_the_models_own_kind():
    sigma = torch.tensor([0.5])
    rule = info(20, prediction=None)
    assert next_on_training_grid(sigma, rule, "velocity").item() == pytest.approx(0.48)
    assert torch.equal(next_on_training_grid(sigma, rule, "epsilon"), next_on_training_grid(sigma, info(20)))
    with pytest.raises(ValueError, match="prediction kind"):
        next_on_training_grid(sigma, rule)


@pytest.mark.parametrize("grid", [20, (14.6, 3.0, 0.0)])
def test_nothing_waits_for_the_device(grid):
    sigma = torch.ones(3, device="meta")  # reading a value back from this device raises
    assert next_on_training_grid(sigma, info(grid)).device.type == "meta"
    assert timestep_of_sigma(sigma).device.type == "meta"


def test_tables_built_while_sampling_serve_training():
    with torch.inference_mode():
        sigma_of_timestep(torch.tensor([3.0], dtype=torch.float64))
    assert not ve_sigmas().is_inference()
    weight = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    (weight * ve_sigmas()).sum().backward()
