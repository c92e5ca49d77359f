"""What is measured of a set of pictures: what they show, how they are distributed, and how sure that is.

Features are the Shapes judge's [N, 128]. All in float64 on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

NEAREST = 5  # neighbours, as in the papers of precision/recall and density/coverage


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] of a set of features."""

    mean: torch.Tensor
    covariance: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> Gaussian:
        features = features.double()
        return cls(features.mean(0), features.T.cov())

    @property
    def root(self) -> torch.Tensor:
        """The symmetric square root of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(a: Gaussian, b: Gaussian, root_of_a: torch.Tensor | None = None) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Frechet 1957, Dowson and Landau 1982), >= 0.

    root_of_a: a.root, where many are compared with the same a.
    """
    root = a.root if root_of_a is None else root_of_a
    # C_a C_b and the symmetric root_a C_b root_a have the same eigenvalues.
    mixed = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    return (a.mean - b.mean).square().sum().add(a.covariance.trace() + b.covariance.trace() - 2 * mixed).item()


def neighbourhoods(real: torch.Tensor, drawn: torch.Tensor) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al., arXiv 1904.06991), density and coverage (Naeem et al., arXiv 2002.09797)."""
    real, drawn = real.double(), drawn.double()
    to_drawn = torch.cdist(real, drawn)
    # Of each point the distance to its NEAREST-th neighbour, itself not counted.
    radius_real, radius_drawn = (torch.cdist(points, points).kthvalue(NEAREST + 1).values for points in (real, drawn))
    inside = to_drawn <= radius_real[:, None]  # [real, drawn]: drawn lies in the neighbourhood of real
    return {
        "precision": inside.any(0).double().mean().item(),
        "recall": (to_drawn <= radius_drawn[None]).any(1).double().mean().item(),
        "density": (inside.double().sum(0) / NEAREST).mean().item(),
        "coverage": (to_drawn.amin(1) <= radius_real).double().mean().item(),
    }


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those points (gain, loss) that no other point beats: more gain and less loss. Sorted by gain."""
    best, kept = float("inf"), []
    for gain, loss in sorted(set(points), key=lambda point: (-point[0], point[1])):
        if loss < best:
            best = loss
            kept.append((gain, loss))
    return kept[::-1]


def hypervolume(points: list[tuple[float, float]], worst: tuple[float, float], ideal: tuple[float, float]) -> float:
    """The share, 0..1, of the rectangle between `worst` and `ideal` (gain, loss) that the points dominate.

    Zitzler and Thiele 1998, for one gain that should be large and one loss that should be small.
    """
    area, reached = 0.0, worst[0]
    for gain, loss in front([(g, max(loss, ideal[1])) for g, loss in points if g > worst[0] and loss < worst[1]]):
        area += (min(gain, ideal[0]) - reached) * (worst[1] - loss)
        reached = min(gain, ideal[0])
    whole = (ideal[0] - worst[0]) * (worst[1] - ideal[1])
    return area / whole if whole > 0 else 0.0
