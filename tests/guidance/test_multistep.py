"""Multistep solvers: the guidance takes the first-order step, whatever the solver extrapolates."""

import pytest
import torch
from annealing_guidance_pack.guidance.multistep import LEAST, MOST, Multistep


def product(a, b):
    return (a * b).flatten(1).sum(dim=1)


def call(memory, gap, level, ratio=0.5, used=4.0):
    zero, ones = torch.zeros_like(gap), torch.ones(gap.shape[0])
    return memory.corrected(used * ones, gap, zero, level * ones, ratio * ones, product)


def gaps(*sizes):
    direction = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return [size * direction for size in sizes]


def test_dpmpp_2m_extrapolates_the_corrected_pulls_to_the_wanted_one():
    memory, (first, second) = Multistep("dpmpp_2m"), gaps(1.0, 0.6)
    before, now = call(memory, first, 8.0), call(memory, second, 4.0, ratio=0.25)
    c = 2.0 / (2 * 1.0)  # the next step spans two octaves, the last one did one
    torch.testing.assert_close((1 + c) * now * 0.6 - c * before * 1.0, torch.full((2,), 4.0 * 0.6))


def test_gradient_estimation_extrapolates_slopes():
    memory, (first, second) = Multistep("gradient_estimation"), gaps(1.0, 0.6)
    before, now = call(memory, first, 8.0), call(memory, second, 4.0)
    torch.testing.assert_close(2 * now * 0.6 / 4 - before * 1.0 / 8, torch.full((2,), 4.0 * 0.6 / 4))


@pytest.mark.parametrize("name", ["lms", "ipndm", "deis"])
def test_solvers_in_sigma_extrapolate_over_the_steps_sizes(name):
    memory, (first, second) = Multistep(name), gaps(1.0, 0.8)
    before, now = call(memory, first, 8.0), call(memory, second, 6.0)
    c = 3.0 / (2 * 2.0)
    torch.testing.assert_close(((1 + c) * now * 0.8 / 6 - c * before * 1.0 / 8) * 6, torch.full((2,), 4.0 * 0.8))


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m_cfg_pp", "some_other_pack"])
def test_other_samplers_get_what_was_wanted(name):
    memory = Multistep(name)
    for level, gap in zip((8.0, 4.0), gaps(1.0, 0.6), strict=True):
        torch.testing.assert_close(call(memory, gap, level), torch.full((2,), 4.0))


def test_the_first_step_the_last_step_and_a_step_back_get_what_was_wanted():
    memory, (first, second) = Multistep("dpmpp_2m"), gaps(1.0, 0.6)
    assert call(memory, first, 8.0).tolist() == [4, 4]
    assert call(memory, second, 4.0, ratio=0.0).tolist() == [4, 4]
    assert call(memory, second, 6.0).tolist() == [4, 4]


def test_a_second_call_at_the_same_level_takes_the_place_of_the_first():
    """As where a pre-CFG hook asks for the scale before the prediction is final."""
    twice, once = Multistep("dpmpp_2m"), Multistep("dpmpp_2m")
    first, second, third = gaps(1.0, 0.6, 0.4)
    for memory, repeats in ((twice, 2), (once, 1)):
        call(memory, first, 8.0)
        for _ in range(repeats):
            call(memory, second, 4.0)
    torch.testing.assert_close(call(twice, third, 2.0), call(once, third, 2.0))


def test_a_gap_that_turned_or_vanished_keeps_the_correction_in_bounds():
    for now in (-1.0, 1e-6, 0.0):
        memory, (first, second) = Multistep("dpmpp_2m"), gaps(1.0, now)
        call(memory, first, 8.0)
        used = call(memory, second, 4.0)
        assert ((used >= 4 * LEAST - 1e-5) & (used <= 4 * MOST + 1e-5)).all()
