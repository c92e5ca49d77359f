"""The profile's second term: the mean square of the gap after a step, as a function of the scale.

It is stored at TABLE scales, evenly spaced in u = log(1 + scale). A cubic spline in u gives values and slopes between them.
`curve` finds the numbers with few model calls.
"""

from __future__ import annotations

import math

import torch

TABLE = 129


def spread_knots(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` >= 2 scales from low > -1 to high, both included: the extrema of a Chebyshev polynomial in log(1 + scale)."""
    start, end = math.log1p(low), math.log1p(high)
    inner = (start + (end - start) * (0.5 - 0.5 * math.cos(math.pi * k / (count - 1))) for k in range(1, count - 1))
    return (low, *map(math.expm1, inner), high)


def table_scales(low: float, high: float) -> list[float]:
    """The TABLE scales from low > -1 to high, both included."""
    inner = torch.linspace(math.log1p(low), math.log1p(high), TABLE, dtype=torch.float64).expm1().tolist()[1:-1]
    return [low, *inner, high]


class Tabulated:
    """The mean squares of N gaps, each a differentiable function of a scale. Only for scales within the table's range.

    knots: the profile's; the first and the last are the ends of the table. values: [N, TABLE].
    """

    def __init__(self, knots: tuple[float, ...], values: torch.Tensor):
        self.low, self.high, self.values = knots[0], knots[-1], values
        places = torch.arange(TABLE, dtype=torch.float64)
        self.slopes = (values.to(torch.float64) @ spline_weights(places, places, slope=True).T).to(torch.float32)

    def __call__(self, scale: torch.Tensor, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Function rows[i] at scale[i]: [B]."""
        start, end = math.log1p(self.low), math.log1p(self.high)
        position = (torch.log1p(scale) - start) * ((TABLE - 1) / (end - start))
        left = position.detach().floor().long().clamp(0, TABLE - 2)
        weights = _hermite(position - left)
        own = torch.arange(len(self.values))[rows]
        at = (self.values[own, left], self.slopes[own, left], self.values[own, left + 1], self.slopes[own, left + 1])
        return torch.stack([weight * number for weight, number in zip(weights, at, strict=True)]).sum(dim=0)


def spline_weights(points: torch.Tensor, at: torch.Tensor, slope: bool = False) -> torch.Tensor:
    """[T, K]: the weights of the values at K points in a cubic spline, or in its slope, at T places [T]; all float64.

    points: [K], K >= 3, rising from 0. The spline's third derivative does not jump at its second and last but one point ("not a
    knot"): through three points it is a parabola, through four a single cubic.
    """
    bends = points[2:-2] if len(points) > 3 else points[:0]

    def basis(x: torch.Tensor, slope: bool = False) -> torch.Tensor:
        powers = torch.arange(min(len(points), 4), dtype=torch.float64)
        x, beyond = x[:, None] / points[-1], (x[:, None] - bends) / points[-1]
        if slope:
            parts = powers * x ** (powers - 1).clamp(min=0), 3 * beyond.clamp(min=0) ** 2
            return torch.cat(parts, dim=1) / points[-1]
        return torch.cat((x**powers, beyond.clamp(min=0) ** 3), dim=1)

    return torch.linalg.solve(basis(points), basis(at, slope), left=False)


def _hermite(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weights of an interval's left value, left slope, right value and right slope at its place t, 0 to 1."""
    s = 1 - t
    return s * s * (1 + 2 * t), s * s * t, t * t * (1 + 2 * s), -t * t * s


def squares_of_products(knots: tuple[float, ...], products: torch.Tensor) -> torch.Tensor:
    """[N, TABLE], from an old profile, which stored the products [N, K, K] of the gaps at each two of K knots.

    The gap is the polynomial in log(1 + scale) through its K values, so its mean square is never negative.
    """
    scales = torch.tensor(table_scales(knots[0], knots[-1]), dtype=torch.float64)
    at_knots = _chebyshev(torch.tensor(knots, dtype=torch.float64), knots)
    weights = (_chebyshev(scales, knots) @ at_knots.inverse()).to(torch.float64)
    parts = [torch.einsum("tk,nkl,tl->nt", weights, part.to(torch.float64), weights) for part in products.split(256)]
    return torch.cat(parts).to(torch.float32)


def _chebyshev(scale: torch.Tensor, knots: tuple[float, ...]) -> torch.Tensor:
    """Chebyshev polynomials T_0 .. T_{K-1} of log(1 + scale), mapped to -1..1: [T, K]."""
    start, end = math.log1p(knots[0]), math.log1p(knots[-1])
    u = (2.0 * torch.log1p(scale) - start - end) / (end - start)
    polynomials = [torch.ones_like(u), u]
    while len(polynomials) < len(knots):
        polynomials.append(2.0 * u * polynomials[-1] - polynomials[-2])
    return torch.stack(polynomials[: len(knots)], dim=-1)
