"""The folded scale makes an ordinary first-order step the null-renoised one; own and training steps are told apart."""

import math

import pytest
import torch
from annealing_guidance_pack.guidance.folding import (
    LARGEST_PULL,
    folding_factor,
    gap_response,
    level_before_noise,
    next_own_sigma,
    saturation,
    used_scale,
)
from comfy.k_diffusion.sampling import get_ancestral_step
from hypothesis import given
from hypothesis import strategies as st

values = st.floats(-5, 5)


@given(level=st.floats(0.01, 0.999), fraction=st.floats(0, 0.99), w=st.floats(-2, 3), x=values, cond=values, uncond=values)
@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
def test_an_ordinary_step_with_the_folded_scale_is_the_null_renoised_step(kind, level, fraction, w, x, cond, uncond):
    sigma, sigma_next = torch.tensor(level).double(), torch.tensor(level * fraction).double()
    alpha, alpha_next = (1 - sigma, 1 - sigma_next) if kind == "velocity" else (1.0, 1.0)

    null = alpha_next * (uncond + w * (cond - uncond)) + sigma_next * (x - alpha * uncond) / sigma
    folded = uncond + w * folding_factor(kind, sigma, sigma_next) * (cond - uncond)
    ordinary = folded + (sigma_next / sigma) * (x - folded)  # ComfyUI's euler

    torch.testing.assert_close(ordinary, null, atol=1e-9, rtol=1e-9)


@given(s=st.floats(0.05, 0.95), fraction=st.floats(0, 0.9))
def test_both_forms_are_one_formula_in_the_ratio_of_noise_to_signal(s, fraction):
    """So a flow model that ComfyUI samples in the VE form (Cosmos) is folded alike in either."""
    s, following = torch.tensor(s).double(), torch.tensor(s * fraction).double()
    ve = folding_factor("epsilon", s / (1 - s), following / (1 - following))
    torch.testing.assert_close(folding_factor("velocity", s, following), ve)


@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
def test_the_last_step_needs_no_folding(kind):
    assert folding_factor(kind, torch.tensor([0.3]), torch.tensor([0.0])) == 1


@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
def test_steps_of_no_size_and_level_zero_give_finite_factors(kind):
    level = torch.tensor([0.5, 0.5, 0.0])
    assert folding_factor(kind, level, torch.tensor([0.5, 0.49999, 0.0])).isfinite().all()


def test_used_scale_follows_the_table():
    w, k_own, k_train = torch.tensor([0.8]), torch.tensor([2.0]), torch.tensor([8.0])
    assert used_scale(w, k_own, k_train, folded=False, match_training_steps=False).item() == pytest.approx(0.8)
    assert used_scale(w, k_own, k_train, folded=False, match_training_steps=True).item() == pytest.approx(3.2)
    assert used_scale(w, k_own, k_train, folded=True, match_training_steps=False).item() == pytest.approx(1.6)
    assert used_scale(w, k_own, k_train, folded=True, match_training_steps=True).item() == pytest.approx(6.4)


SCHEDULE = torch.tensor([14.6, 7.0, 3.0, 1.0, 0.0])


@pytest.mark.parametrize(
    "sigma, expected",
    [(14.6, 7.0), (3.0, 1.0), (1.0, 0.0), (5.0, 3.0), (20.0, 14.6), (0.5, 0.0), (0.0, 0.0)],
    ids=["first", "middle", "last", "between", "above", "below the last", "zero"],
)
def test_the_next_own_sigma_is_found_by_value(sigma, expected):
    assert next_own_sigma(torch.tensor([sigma]), SCHEDULE).item() == pytest.approx(expected)


def test_a_sigma_that_came_through_logarithms_is_still_the_same_sigma():
    for factor in (1 - 1e-6, 1 + 1e-6):
        assert next_own_sigma(torch.tensor([3.0 * factor]), SCHEDULE).item() == 1.0


def test_each_sample_has_its_own_next_sigma_in_any_order_of_the_schedule():
    found = next_own_sigma(torch.tensor([14.6, 1.0]), SCHEDULE.flip(0))
    torch.testing.assert_close(found, torch.tensor([7.0, 0.0]))


def one(value):
    return torch.tensor([value], dtype=torch.float64)


kinds = pytest.mark.parametrize("kind", ["epsilon", "velocity"])
calls = pytest.mark.parametrize("several_calls", [False, True])
levels, scales = st.floats(0.01, 0.99), st.floats(-2, 8)


@given(level=levels, w=scales)
@kinds
def test_a_step_of_the_trainings_size_is_left_as_it_is(kind, level, w):
    torch.testing.assert_close(saturation(kind, one(w), one(level), one(3.0), one(3.0)), one(1.0))


@given(level=levels, w=st.floats(0.2, 1.3), parts=st.integers(2, 200))
@kinds
@calls
def test_more_and_smaller_steps_than_the_trainings_leave_the_same_gap(kind, several_calls, level, w, parts):
    """For a solver exact in small steps, and with one call up to what its bound costs: (1 - p/b)^b in the limit."""
    p = w * gap_response(kind, one(level))
    pull = p / parts * saturation(kind, one(w), one(level), one(float(parts)), one(1.0), several_calls)
    left = (1 - pull + several_calls * pull**2 / 2) ** parts
    least = 1 - p if several_calls else (1 - p / LARGEST_PULL) ** LARGEST_PULL
    assert least - 1e-9 <= left <= 1 - p + 1e-9


@given(level=levels, w=scales, steps=st.floats(0.05, 200), more=st.floats(1.01, 10))
@kinds
@calls
def test_larger_steps_pull_more_but_never_by_more_than_the_bound(kind, several_calls, level, w, steps, more):
    response, bound = gap_response(kind, one(level)), 1.0 if several_calls else LARGEST_PULL

    def pull(n):  # the share of the gap that the step takes
        return one(w).abs() * response * n * saturation(kind, one(w), one(level), one(1.0), one(n), several_calls)

    assert 0 <= pull(steps) <= pull(steps * more) + 1e-12
    # A scale that takes nearly everything at once is beyond any training; it keeps its own size.
    assert pull(steps * more) <= max(bound, (w * response).abs().item() * 1.2) + 1e-9


@given(s=st.floats(0.05, 0.95))
def test_the_gaps_response_is_that_of_gaussian_data_in_either_form(s):
    sigma2 = (s / (1 - s)) ** 2
    expected = 1 / (1 + sigma2) - (1 / 3) / (1 / 3 + sigma2)
    torch.testing.assert_close(gap_response("epsilon", one(s / (1 - s))), one(expected))
    torch.testing.assert_close(gap_response("velocity", one(s)), one(expected))


@kinds
def test_the_gap_does_not_respond_where_nothing_or_everything_is_known(kind):
    ends = torch.tensor([0.0, 1.0 if kind == "velocity" else float("inf")])
    torch.testing.assert_close(gap_response(kind, ends), torch.zeros(2))


def test_one_large_step_leaves_what_the_training_steps_in_it_left():
    """At sigma 0.8: three training steps within 0.1; ten, which unsaturated would overshoot to -1.7, up to the bound."""
    p = gap_response("epsilon", one(0.8))

    def left(n, several_calls=False):
        pull = n * p * saturation("epsilon", one(1.0), one(0.8), one(1.0), one(n), several_calls)
        return 1 - pull + several_calls * pull**2 / 2

    assert (left(3.0) - (1 - p) ** 3).abs() < 0.1
    assert 1 - LARGEST_PULL < left(10.0) < 1 - LARGEST_PULL + 0.05
    torch.testing.assert_close(left(2.0, several_calls=True), (1 - p) ** 2)


@given(level=st.floats(0.01, 14), ratio=st.floats(0, 0.99), eta=st.floats(0, 1))
def test_the_level_before_noise_is_comfyuis(level, ratio, eta):
    down, up = get_ancestral_step(one(level), one(level * ratio), eta)
    found = level_before_noise(one(level), one(level * ratio), eta)
    torch.testing.assert_close(found, down, atol=1e-6, rtol=1e-6)


def test_a_solver_that_replaces_all_noise_goes_down_to_none():
    assert level_before_noise(one(2.0), one(1.0), math.inf) == 0
