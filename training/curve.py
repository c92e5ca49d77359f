"""At which scales to measure the gap after a step: at few where it changes evenly, at many where it jumps.

Most gaps are told by five scales. At a few steps of a run, where the model decides what the picture shows, the gap jumps from
one course to another within a tenth of a scale, and no fixed set of few scales tells where.
So every interval between two measured scales is halved where the gap in its middle, or in the middle of an interval beside it,
was not the one that the cubic spline through the scales known before had told.
"""

from __future__ import annotations

import math

import torch

from .knots import TABLE, spline_weights

USUAL_KNOTS, USUAL_TOLERANCE = 9, 0.05
# Rounding makes every gap differ from the spline, everywhere alike. What was known of the model's precision did not stop the
# halving then; so that it ends with some 17 scales, a gap no further off than twice the nearest one so far counts as told.
JUDGED, ALIKE = 14, 2.0


def tolerance(knots: int) -> float:
    """How far the spline may miss a measured gap, as a share of its norm, before more scales are measured around it.

    knots >= 2: about as many scales are then measured, on average.
    """
    return USUAL_TOLERANCE * ((USUAL_KNOTS - 1) / (knots - 1)) ** 2


class GapCurve:
    """One gap as a function of the scale. Measure what `wanted` names, hand it to `take`, until nothing is wanted.

    wanted: indices of the table's scales (knots.table_scales). tolerance: see there. rounding: the root mean square of what the
    model's precision leaves open in a gap's values.
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
        told = _weights(known, middles).float() @ torch.stack([self._gaps[i] for i in known])
        measured = torch.stack([self._gaps[i] for i in middles])
        errors, squares = (x.square().mean(1).tolist() for x in (told - measured, measured))
        self._errors += errors
        least = ALIKE * min(self._errors) if len(self._errors) >= JUDGED else 0.0
        limits = (max(self._tolerance * square, self._rounding, least) for square in squares)
        missed = {start: error > limit for (start, _), error, limit in zip(self._intervals, errors, limits, strict=True)}
        halves = []
        for (start, end), middle in zip(self._intervals, middles, strict=True):
            # Halfway through a jump every spline is right by chance, but not in the intervals beside it.
            width = end - start
            if width > 2 and any(missed.get(start + beside) for beside in (-width, 0, width)):
                halves += [(start, middle), (middle, end)]
        self._intervals = halves
        self.wanted = [_middle(interval) for interval in halves]

    def mean_squares(self) -> torch.Tensor:
        """The gap's mean square at all scales of the table: [TABLE], float32. NaN all over where a gap held NaN or infinity."""
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
