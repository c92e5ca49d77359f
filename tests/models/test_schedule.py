"""The noise schedule and the next level on a training grid."""

import pytest
import torch
from annealing_guidance_pack.models.scale_model import ScaleInfo
from annealing_guidance_pack.models.schedule import (
    LARGEST_NSR,
    next_on_training_grid,
    nsr_of_share,
    share_of_nsr,
    sigma_of_timestep,
    timestep_of_nsr,
    timestep_of_sigma,
    ve_sigmas,
)
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


def test_timesteps_of_both_paths():
    nsr = torch.tensor([0.25, 1.0, 4.0])
    torch.testing.assert_close(timestep_of_nsr("flow", nsr), torch.tensor([200.0, 500.0, 800.0]))
    assert torch.equal(timestep_of_nsr("ve", nsr), timestep_of_sigma(nsr))


@given(st.floats(0, 1))
def test_the_share_of_noise_survives_the_way_to_the_nsr_and_back(share):
    nsr = nsr_of_share(torch.tensor([share], dtype=torch.float64))
    assert 0 <= nsr <= LARGEST_NSR
    assert share_of_nsr(nsr).item() == pytest.approx(share, abs=1e-8)


@DTYPES
@pytest.mark.parametrize("step", [1, 20, 50])
def test_on_the_schedules_grid_the_next_level_is_exact(dtype, step):
    following = next_on_training_grid(ve(dtype), info(step))
    assert torch.equal(following[step:], ve(dtype)[:-step])


@DTYPES
@pytest.mark.parametrize("step", [1, 20, 50])
def test_on_flow_models_the_next_level_is_one_step_less_of_the_time(dtype, step):
    share = torch.arange(2 * step, 1001, step, dtype=dtype) / 1000
    following = share_of_nsr(next_on_training_grid(nsr_of_share(share), info(step, "velocity")))
    torch.testing.assert_close(following, share - step / 1000, atol=1e-6, rtol=1e-6)


ENDS = [
    # grid, path, the first step, and the last that leaves noise, in noise-to-signal ratios
    (20, "epsilon", (14.6146, 12.4), (0.2, 0.0292)),
    ((14.0, 7.0, 2.0, 0.5, 0.0), "epsilon", (14.0, 7.0), (2.0, 0.5)),
    (20, "velocity", (LARGEST_NSR, 49.0), (1 / 24, 1 / 49)),
    ((0.9, 0.6, 0.2, 0.1, 0.0), "velocity", (9.0, 1.5), (0.25, 1 / 9)),
]
ends = pytest.mark.parametrize("grid, prediction, first, last", ENDS)


@ends
def test_above_its_first_level_the_grid_goes_on_with_the_ratio_of_its_first_step(grid, prediction, first, last):
    if grid == 20:
        first = first[0], next_on_training_grid(torch.tensor([first[0]], dtype=torch.float64), info(grid, prediction)).item()
    above = first[0] * torch.tensor([1.0, 1.5, 20.0, 300.0], dtype=torch.float64)
    following = next_on_training_grid(above, info(grid, prediction))
    torch.testing.assert_close(following / above, torch.full_like(above, first[1] / first[0]), atol=1e-7, rtol=1e-4)


@ends
def test_below_its_last_but_one_level_the_grid_goes_on_with_the_ratio_of_its_last_step(grid, prediction, first, last):
    if prediction == "epsilon" and grid == 20:
        last = float(ve_sigmas()[20]), float(ve_sigmas()[0])
    below = last[0] * torch.tensor([0.999, 0.5, 0.01, 1e-4], dtype=torch.float64)
    following = next_on_training_grid(below, info(grid, prediction))
    torch.testing.assert_close(following / below, torch.full_like(below, last[1] / last[0]), atol=0, rtol=1e-6)


@ends
def test_the_runs_last_step_takes_the_trainings_last_level_to_the_picture(grid, prediction, first, last):
    last_level = float(ve_sigmas()[0]) if (prediction, grid) == ("epsilon", 20) else last[1]
    below = last_level * torch.tensor([1.0, 0.5, 0.01], dtype=torch.float64)
    following = next_on_training_grid(below, info(grid, prediction), last_step=True)
    torch.testing.assert_close(following, torch.zeros_like(below), atol=1e-9, rtol=0)


@ends
@DTYPES
@pytest.mark.parametrize("last_step", [False, True])
def test_the_next_level_rises_with_the_nsr_and_lies_below_it_at_every_nsr(dtype, last_step, grid, prediction, first, last):
    nsr = torch.logspace(-5, 5, 20_000, dtype=dtype)
    following = next_on_training_grid(nsr, info(grid, prediction), last_step=last_step)
    assert ((following < nsr) & (following >= 0)).all()
    assert (following.diff() >= -1e-6 * nsr[1:]).all()
    # Continuous, but for the end of the training in a step that leaves noise.
    jumps = following.diff() > 0.02 * nsr[1:]
    assert not jumps.any()


@given(grids)
def test_on_a_listed_grid_the_next_level_is_exact(grid):
    following = next_on_training_grid(torch.tensor(grid[:-1]), info(grid), last_step=True)
    assert torch.equal(following, torch.tensor(grid[1:]))


@given(grids, st.lists(st.floats(1e-3, 200), min_size=2, max_size=20), st.booleans())
def test_between_and_beyond_listed_points_the_next_level_rises_and_lies_below(grid, levels, last_step):
    nsr = torch.tensor(sorted(levels), dtype=torch.float64)
    following = next_on_training_grid(nsr, info(grid), last_step=last_step)
    assert (following.diff() >= -1e-9).all()
    assert (following < nsr).all() and (following >= 0).all()


def test_a_grid_of_one_level_ends_in_the_picture_at_once():
    for prediction in ("epsilon", "velocity"):
        assert torch.equal(next_on_training_grid(torch.tensor([0.1, 0.7, 3.0]), info((0.7, 0.0), prediction)), torch.zeros(3))


def test_halfway_between_two_listed_points_is_halfway_between_their_successors():
    share = torch.tensor([0.85, 0.5, 0.2])
    following = next_on_training_grid(nsr_of_share(share), info((1.0, 0.7, 0.3, 0.1, 0.0), "velocity"), last_step=True)
    assert share_of_nsr(following).tolist() == pytest.approx([0.5, 0.2, 0.05])


def test_a_fixed_rule_takes_the_models_own_path():
    nsr = torch.tensor([1.0])
    rule = info(20, prediction=None)
    assert share_of_nsr(next_on_training_grid(nsr, rule, "flow")).item() == pytest.approx(0.48)
    assert torch.equal(next_on_training_grid(nsr, rule, "ve"), next_on_training_grid(nsr, info(20)))
    with pytest.raises(ValueError, match="noise path"):
        next_on_training_grid(nsr, rule)


def test_a_scales_own_path_counts_and_not_the_models():
    nsr = torch.tensor([1.0])
    assert torch.equal(next_on_training_grid(nsr, info(20, "velocity"), "ve"), next_on_training_grid(nsr, info(20, "velocity")))


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
