"""Frechet distance, neighbourhoods and hypervolume, against closed forms and counting."""

import math

import pytest
import torch
from common.measures import Gaussian, frechet_distance, front, hypervolume, neighbourhoods
from hypothesis import given
from hypothesis import strategies as st

shares = st.floats(0, 1)
points = st.lists(st.tuples(shares, shares), min_size=1, max_size=6)
WORST, IDEAL = (0.0, 1.0), (1.0, 0.0)


def gaussian(mean, covariance):
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64))


def test_the_frechet_distance_of_axis_aligned_gaussians_is_the_sum_over_the_axes():
    a, b = gaussian([0.0, 1.0], [[4.0, 0.0], [0.0, 9.0]]), gaussian([3.0, 1.0], [[1.0, 0.0], [0.0, 25.0]])
    assert frechet_distance(a, b) == pytest.approx(3**2 + (2 - 1) ** 2 + (3 - 5) ** 2)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b, a.root))


def test_the_frechet_distance_of_turned_gaussians_is_that_of_the_matrix_square_root():
    a, b = gaussian([0.0, 0.0], [[2.0, 1.0], [1.0, 2.0]]), gaussian([0.0, 0.0], [[3.0, -1.0], [-1.0, 1.0]])
    values = torch.linalg.eigvals(a.covariance @ b.covariance).real  # the trace of the root is the sum of their roots
    expected = float(a.covariance.trace() + b.covariance.trace() - 2 * values.sqrt().sum())
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_a_set_is_at_no_distance_from_itself_even_where_it_fills_few_dimensions():
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(3, 8)
    assert abs(frechet_distance(Gaussian.of(features), Gaussian.of(features))) < 1e-5


def test_pictures_like_the_real_ones_have_full_neighbourhoods_and_far_ones_none():
    real = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    same, far = neighbourhoods(real, real), neighbourhoods(real, real + 100)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    assert same["density"] >= 1
    assert set(far.values()) == {0.0}


def test_one_picture_drawn_over_and_over_is_precise_but_covers_little():
    real = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    found = neighbourhoods(real, real[:1].expand(60, 4) + 1e-4 * torch.randn(60, 4))
    assert found["precision"] == 1
    assert found["coverage"] < 0.5 and found["recall"] < 0.1


@given(points=points)
def test_the_hypervolume_is_the_share_of_the_rectangle_that_the_points_dominate(points):
    grid = (torch.arange(40) + 0.5) / 40
    gain, loss = torch.meshgrid(grid, grid, indexing="ij")
    dominated = torch.zeros_like(gain, dtype=torch.bool)
    for g, lo in points:
        dominated |= (gain <= g) & (loss >= lo)
    assert math.isclose(hypervolume(points, WORST, IDEAL), dominated.double().mean().item(), abs_tol=0.06)


@given(points=points, other=st.tuples(shares, shares))
def test_a_further_point_never_makes_it_smaller_and_a_dominated_one_changes_nothing(points, other):
    before, after = hypervolume(points, WORST, IDEAL), hypervolume([*points, other], WORST, IDEAL)
    assert 0 <= before <= after + 1e-12 <= 1 + 1e-9
    if any(g >= other[0] and lo <= other[1] for g, lo in points):
        assert after == pytest.approx(before)


@given(points=points)
def test_the_front_holds_exactly_the_points_that_none_beats(points):
    def beaten(p):
        return any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in points)

    assert sorted(front(points)) == sorted({p for p in points if not beaten(p)})


def test_points_beyond_the_rectangle_count_for_nothing():
    assert hypervolume([(0.2, 0.5)], (0.3, 1.0), IDEAL) == hypervolume([(0.5, 1.2)], (0.3, 1.0), IDEAL) == 0.0
