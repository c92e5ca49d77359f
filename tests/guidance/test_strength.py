"""From the learned scale to ordinary CFG: one training step is the scale itself, and more of them compose."""

import math

import pytest
import torch
from annealing_guidance_pack.guidance.course import Level, folding_factor, gap_response
from annealing_guidance_pack.guidance.strength import LARGEST_SHARE, cfg_scale, pull
from hypothesis import given
from hypothesis import strategies as st

ratios = st.floats(0.02, 20)
scales = st.floats(-2, 8)
calls = pytest.mark.parametrize("several_calls", [False, True], ids=["one call", "several calls"])


def one(value):
    return torch.tensor([value], dtype=torch.float64)


@given(
    nsr=st.floats(0.01, 100),
    fraction=st.floats(0, 0.99),
    w=scales,
    x=st.floats(-5, 5),
    cond=st.floats(-5, 5),
    uncond=st.floats(-5, 5),
)
@pytest.mark.parametrize("path", ["ve", "flow"])
def test_an_ordinary_step_with_the_folded_scale_is_the_null_renoised_step(path, nsr, fraction, w, x, cond, uncond):
    nsr, following = one(nsr), one(nsr * fraction)
    sigma, sigma_next = (nsr, following) if path == "ve" else (nsr / (1 + nsr), following / (1 + following))
    alpha, alpha_next = (1.0, 1.0) if path == "ve" else (1 - sigma, 1 - sigma_next)

    null = alpha_next * (uncond + w * (cond - uncond)) + sigma_next * (x - alpha * uncond) / sigma
    folded = uncond + w * folding_factor(nsr, following) * (cond - uncond)
    ordinary = folded + (sigma_next / sigma) * (x - folded)  # ComfyUI's euler

    torch.testing.assert_close(ordinary, null, atol=1e-9, rtol=1e-9)


def test_the_last_step_needs_no_folding_and_steps_of_no_size_give_finite_factors():
    assert folding_factor(one(0.3), one(0.0)) == 1
    nsr = torch.tensor([0.5, 0.5, 0.0, 0.5])
    k = folding_factor(nsr, torch.tensor([0.5, 0.49999, 0.0, 0.7]))
    assert k.isfinite().all() and (k >= 1).all()


@given(nsr=st.floats(0.001, 100))
def test_the_gaps_response_is_that_of_gaussian_data(nsr):
    variance = nsr**2
    expected = 1 / (1 + variance) - (1 / 3) / (1 / 3 + variance)
    assert gap_response(one(nsr)).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_gap_does_not_respond_where_nothing_or_everything_is_known():
    torch.testing.assert_close(gap_response(torch.tensor([0.0, 1e9])), torch.zeros(2))
    assert gap_response(torch.logspace(-3, 3, 1000)).max() < 0.27


@given(nsr=ratios, w=scales)
def test_one_training_step_is_the_scale_itself(nsr, w):
    torch.testing.assert_close(pull(one(w), gap_response(one(nsr)), one(1.0), False), one(w), atol=1e-9, rtol=1e-6)


def test_no_training_step_is_no_guidance():
    for several_calls in (False, True):
        assert pull(one(1.3), one(0.2), one(0.0), several_calls).abs().item() < 1e-9


@given(nsr=ratios, w=st.floats(0.1, 3), first=st.floats(0.1, 5), second=st.floats(0.1, 5))
def test_two_steps_in_a_row_leave_of_the_gap_what_one_step_of_both_leaves(nsr, w, first, second):
    response = gap_response(one(nsr))
    left = [1 - pull(one(w), response, one(steps), False) * response for steps in (first, second, first + second)]
    torch.testing.assert_close(left[0] * left[1], left[2], atol=1e-9, rtol=1e-6)


@given(nsr=ratios, w=st.floats(0.1, 3), steps=st.integers(2, 6))
def test_several_training_steps_leave_what_each_left_of_what_the_one_before_it_had_left(nsr, w, steps):
    response = gap_response(one(nsr))
    taken = pull(one(w), response, one(float(steps)), False)
    torch.testing.assert_close(1 - taken * response, (1 - w * response) ** steps, atol=1e-9, rtol=1e-6)


@given(nsr=ratios, w=scales, steps=st.floats(0.01, 500), more=st.floats(1.01, 10))
@calls
def test_more_training_steps_pull_more_but_never_beyond_all_of_the_gap(several_calls, nsr, w, steps, more):
    response = gap_response(one(nsr))
    few, many = (pull(one(w), response, one(n), several_calls) * math.copysign(1, w) for n in (steps, steps * more))
    assert 0 <= few <= many + 1e-9
    # A scale that takes nearly everything at once is beyond any training; it keeps its own size.
    beyond = max(1.0, abs(w) * response.item() / LARGEST_SHARE)
    assert (many * response).item() <= beyond + 1e-6


@given(nsr=ratios, w=st.floats(0.05, 2), steps=st.floats(0.05, 60))
def test_a_second_order_solver_leaves_what_the_training_steps_left_up_to_half_of_the_gap(nsr, w, steps):
    response = gap_response(one(nsr))
    z = pull(one(w), response, one(steps), True) * response
    left = 1 - z + z**2 / 2
    torch.testing.assert_close(left, ((1 - w * response) ** steps).clamp(min=0.5), atol=1e-6, rtol=1e-5)


@given(w=scales, steps=st.floats(0.05, 50), nsr=ratios)
@calls
def test_a_negative_scale_pulls_the_other_way_by_as_much(several_calls, w, steps, nsr):
    response = gap_response(one(nsr))
    torch.testing.assert_close(
        pull(one(-w), response, one(steps), several_calls), -pull(one(w), response, one(steps), several_calls)
    )


@calls
def test_where_the_gap_does_not_respond_strength_grows_with_the_number_of_steps(several_calls):
    for steps in (0.5, 1.0, 7.0):
        assert pull(one(1.2), one(0.0), one(steps), several_calls).item() == pytest.approx(1.2 * steps, rel=1e-4)


def level(k, training_k, response=0.2) -> Level:
    others = {name: one(1.0) for name in ("sigma", "timestep", "divisor", "gain", "step", "weights")}
    return Level(k=one(k), training_k=one(training_k), response=one(response), **others)


def test_unmatched_the_cfg_scale_is_the_papers_step_to_the_letter():
    assert cfg_scale(level(k=2.0, training_k=8.0), one(0.8), False, False).item() == pytest.approx(1.6)


def test_matched_the_cfg_scale_moves_x_by_as_many_training_steps_as_the_own_step_spans():
    four = cfg_scale(level(k=2.0, training_k=8.0), one(0.8), True, False).item()
    assert four == pytest.approx(2 * (1 - (1 - 0.8 * 0.2) ** 4) / 0.2)
    assert cfg_scale(level(k=8.0, training_k=8.0), one(0.8), True, False).item() == pytest.approx(6.4)
    half = cfg_scale(level(k=16.0, training_k=8.0), one(0.8), True, False).item()
    assert half == pytest.approx(16 * (1 - (1 - 0.8 * 0.2) ** 0.5) / 0.2)


def test_single_precision_on_half_a_million_levels_stays_finite():
    w, response, steps = torch.rand(3, 500_000, generator=torch.Generator().manual_seed(0))
    for several_calls in (False, True):
        assert pull(12 * w - 4, 0.27 * response, 1000 * steps**4, several_calls).isfinite().all()
