"""At which scales to measure the gap after a step: at few where it changes evenly, at many where it jumps.

Five scales describe most gaps. But at a few steps of a run, where the model decides what the picture shows, the gap jumps within
a tenth of a scale, and no small fixed set of scales finds the jump.

So intervals between measured scales are halved where a cubic spline fails. The spline through the scales known so far predicts
the gap in the middle of each interval. If the measured gap differs, the interval and its two neighbours are halved.
"""

from __future__ import annotations

import math

import torch

from .knots import TABLE, spline_weights

USUAL_KNOTS, USUAL_TOLERANCE = 9, 0.05
# Rounding makes every gap differ from the spline, by about the same amount everywhere, and the estimate from the model's
# precision may be too small to stop the halving. So from JUDGED gaps on, one that is at most ALIKE times as far off as the best
# so far counts as predicted. The halving then ends at about 17 scales.
JUDGED, ALIKE = 14, 2.0


def tolerance(knots: int) -> float:
    """How far the spline may miss a measured gap, as a share of its norm, before more scales are measured around it.

    knots >= 2: about the number of scales that are measured then, on average.
    """
    return USUAL_TOLERANCE * ((USUAL_KNOTS - 1) / (knots - 1)) ** 2


class GapCurve:
    """One gap as a function of the scale. Measure the gaps at the `wanted` scales and pass them to `take`, until none is wanted.

    wanted: indices of the table's scales (knots.table_scales). tolerance: as the function of that name gives it. rounding: the
    root mean square of the rounding errors in a gap's values.
    """

    def __init__(self, tolerance: float, rounding: float):
        self._tolerance, self._rounding = tolerance**2, rounding**2
        self._gaps: dict[int, torch.Tensor] = {}
        self._intervals = [(0, TABLE // 2), (TABLE // 2, TABLE - 1)]
        self._errors: list[float] = []
        self.wanted = [0, *(_middle(interval) for interval in self._intervals), TABLE // 2, TABLE - 1]

    def take(self, gaps: list[torch.Tensor]) -> None:
        """The gaps [values] at the scales that were wanted, in their order, float32 on the CPU."""
        self._gaps |= dict(zip(self.wanted, gaps, strict=True))
        middles = [_middle(interval) for interval in self._intervals]
        known = sorted(self._gaps.keys() - set(middles))
        predicted = _weights(known, middles).float() @ torch.stack([self._gaps[i] for i in known])
        measured = torch.stack([self._gaps[i] for i in middles])
        errors, squares = (x.square().mean(1).tolist() for x in (predicted - measured, measured))
        self._errors += errors
        least = ALIKE * min(self._errors) if len(self._errors) >= JUDGED else 0.0
        limits = (max(self._tolerance * square, self._rounding, least) for square in squares)
        missed = {start: error > limit for (start, _), error, limit in zip(self._intervals, errors, limits, strict=True)}
        halves = []
        for (start, end), middle in zip(self._intervals, middles, strict=True):
            # In the middle of a jump a spline may be right by chance, but then it is wrong in the intervals beside it.
            width = end - start
            if width > 2 and any(missed.get(start + beside) for beside in (-width, 0, width)):
                halves += [(start, middle), (middle, end)]
        self._intervals = halves
        self.wanted = [_middle(interval) for interval in halves]

    def mean_squares(self) -> torch.Tensor:
        """The gap's mean square at all scales of the table: [TABLE], float32. All NaN if a gap held NaN or infinity."""
        known = sorted(self._gaps)
        gaps = torch.stack([self._gaps[i] for i in known])
        products = (gaps @ gaps.T / gaps.shape[1]).to(torch.float64)
        weights = _weights(known, list(range(TABLE)))
        squares = torch.einsum("tk,kl,tl->t", weights, products, weights).clamp(min=0.0)
        return (squares if torch.isfinite(products).all() else torch.full_like(squares, math.nan)).to(torch.float32)


def _middle(interval: tuple[int, int]) -> int:
    return sum(interval) // 2


def _weights(known: list[int], at: list[int]) -> torch.Tensor:
    return spline_weights(torch.tensor(known, dtype=torch.float64), torch.tensor(at, dtype=torch.float64))
