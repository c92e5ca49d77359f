"""A smooth function of the scale, tabulated at a few knots: Chebyshev's points, and the polynomial through them."""

from __future__ import annotations

import math

import torch


def chebyshev_knots(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` >= 2 scales from low to high, both included, denser towards the ends: the extrema of a Chebyshev polynomial.

    At evenly spaced knots a polynomial oscillates near the ends; at these it is near the best one of its degree.
    """
    return tuple(low + (high - low) * (0.5 - 0.5 * math.cos(math.pi * k / (count - 1))) for k in range(count))


class Tabulated:
    """N smooth functions of one scale each, differentiable. Within the knots' range only.

    knots: [K], rising; values: [N, K]. The polynomial through the values; a logarithm or a root in between serves where a
    function falls by orders of magnitude, but fails where one comes near zero, and with 8 knots it is not needed.
    """

    def __init__(self, knots: tuple[float, ...], values: torch.Tensor):
        self.low, self.high = knots[0], knots[-1]
        basis = self._basis(torch.tensor(knots, dtype=torch.float64), len(knots))  # [K, K]
        self.coefficients = torch.linalg.solve(basis, values.to(torch.float64).T).T.to(torch.float32)

    def __call__(self, scale: torch.Tensor, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Function rows[i] at scale[i]: [B]."""
        coefficients = self.coefficients[rows]
        return (self._basis(scale, coefficients.shape[1]) * coefficients).sum(dim=1)

    def _basis(self, scale: torch.Tensor, count: int) -> torch.Tensor:
        """Chebyshev polynomials T_0 .. T_{count-1} of the scale, mapped to -1..1: [B, count]."""
        u = (2.0 * scale - self.low - self.high) / (self.high - self.low)
        polynomials = [torch.ones_like(u), u]
        while len(polynomials) < count:
            polynomials.append(2.0 * u * polynomials[-1] - polynomials[-2])
        return torch.stack(polynomials[:count], dim=-1)
