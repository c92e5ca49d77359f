"""At which scales a gap is measured: few where it changes evenly, more around a jump, and not ever more where it is noise."""

from __future__ import annotations

import pytest
import torch
from annealing_guidance_pack.training.curve import GapCurve, tolerance
from annealing_guidance_pack.training.knots import TABLE, Tabulated, spread_knots, table_scales

KNOTS = spread_knots(0.0, 4.0, 9)
SCALES = torch.tensor(table_scales(0.0, 4.0), dtype=torch.float64)
VALUES = 2000
DIRECTIONS = torch.randn(3, VALUES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def fading(scale: torch.Tensor) -> torch.Tensor:
    """Gaps [B, values] that shrink evenly."""
    return (1 / (1 + scale))[:, None] * DIRECTIONS[0] + 0.3 * DIRECTIONS[1]


def jumping(scale: torch.Tensor) -> torch.Tensor:
    """Gaps that change from one to another, a third as large, within some 0.4 around scale 0.8."""
    share = torch.sigmoid((scale - 0.8) / 0.1)[:, None]
    return (1 - share) * DIRECTIONS[0] + 0.3 * share * DIRECTIONS[1] + 0.1 * DIRECTIONS[2]


def measured(gaps, knots: int = 9, rounding: float = 0.0) -> tuple[GapCurve, list[float]]:
    """(the curve, the scales that it asked for)."""
    curve, asked = GapCurve(tolerance(knots), rounding), []
    while curve.wanted:
        scale = SCALES[curve.wanted]
        asked += scale.tolist()
        curve.take(list(gaps(scale).float()))
    assert len(asked) == len(set(asked))
    return curve, asked


@pytest.mark.parametrize("gaps", [fading, jumping])
def test_the_mean_square_and_its_slope_are_the_gaps_own_at_any_scale(gaps):
    curve, _ = measured(gaps)
    table = Tabulated(KNOTS, curve.mean_squares()[None])
    scale = torch.linspace(0.01, 3.99, 200, dtype=torch.float64, requires_grad=True)
    exact = gaps(scale).square().mean(1)
    own = table(scale.float(), torch.zeros(200, dtype=torch.long))
    torch.testing.assert_close(own.double(), exact, rtol=0.02, atol=0)
    own, slope = (torch.autograd.grad(values.sum(), scale)[0] for values in (own, exact))
    torch.testing.assert_close(own, slope, rtol=0, atol=0.03 * float(slope.abs().max()))


def test_even_gaps_are_measured_at_five_scales_and_jumps_where_they_are():
    assert len(measured(fading)[1]) == 5
    _, asked = measured(jumping)
    assert 9 < len(asked) < 35
    assert sum(0.3 < scale < 1.3 for scale in asked) > 2 * sum(scale > 3.0 for scale in asked)


def test_more_knots_measure_at_more_scales_and_come_nearer():
    errors, counts = [], []
    for knots in (3, 9, 33):
        curve, asked = measured(jumping, knots)
        exact = jumping(SCALES).square().mean(1)
        errors.append(float((curve.mean_squares() / exact - 1).abs().max()))
        counts.append(len(asked))
    assert errors[0] > errors[1] > errors[2] and counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_noise_is_not_chased(noise):
    generator = torch.Generator().manual_seed(1)

    def noisy(scale: torch.Tensor) -> torch.Tensor:
        return fading(scale) + noise * torch.randn(len(scale), VALUES, generator=generator, dtype=torch.float64)

    unforeseen, _ = measured(noisy), measured(noisy, rounding=2 * noise)
    assert len(unforeseen[1]) <= 21
    assert len(measured(noisy, rounding=2 * noise)[1]) == 5
    exact = fading(SCALES).square().mean(1) + noise**2
    torch.testing.assert_close(unforeseen[0].mean_squares().double(), exact, rtol=0.6 * noise, atol=0)


def test_a_gap_of_zero_and_one_of_nan_need_five_scales():
    nothing, asked = measured(lambda scale: torch.zeros(len(scale), VALUES))
    assert len(asked) == 5 and not nothing.mean_squares().any()
    broken, asked = measured(lambda scale: torch.where(scale[:, None] > 3.0, torch.nan, fading(scale)))
    assert len(asked) == 5 and broken.mean_squares().isnan().all() and len(broken.mean_squares()) == TABLE
