"""The profile: all that the fit of a scale network must know about a model.

Once the two predictions of a noised picture are known, the paper's training loss depends on one number, the scale w:

    (1 - lambda) mean((eps_w - eps)^2) + lambda mean(delta'^2)

The first term is exactly quadratic in w, so three coefficients describe it. The second is smooth in w, so a table of values
describes it. For flow models, velocities take the place of the noise. This module needs no ComfyUI; `shards` fills and stores
profiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..models import schedule
from ..models.errors import AnnealingError
from ..models.scale_model import Path, Prediction
from .knots import spread_knots

MIN_PICTURES, MIN_ENTRIES = 8, 64

TrainingGrid = tuple[float, ...] | int


@dataclass(frozen=True)
class ProfileSettings:
    """The settings that a profile's numbers depend on.

    training_grid: as in ScaleInfo: timesteps per step, or falling noise levels that end with 0.
    samples: entries per picture, each at a different step of the grid if there are enough, with its own noise.
    knots: rising scales, above -1. The second term is tabulated from the first to the last, and the fitted scale stays between
        them. Their number sets the accuracy: each entry is measured at about this many scales, which `curve` chooses. Profiles
        in the old format were measured at exactly these scales.
    perturb: whether the conditional embeddings are perturbed (CADS) for the first term, as the paper does.
    projection: whether all is measured of guidance that goes only across the conditional prediction, the gap norm too.
    """

    training_grid: TrainingGrid
    samples: int = 8
    knots: tuple[float, ...] = spread_knots(0.0, 4.0, 9)
    perturb: bool = True
    seed: int = 0
    projection: bool = False


@dataclass(frozen=True)
class Entries:
    """N rows of the table, float32 on the CPU. Each is one picture at one step of the training grid, with one noise.

    picture: [N] int64; timestep: [N], the network's; gap_norm: [N], L2, in the network's units, for a latent of the
    profile's reference_numel values; first: [N, 3], mean((eps_w - eps)^2) = first[0] + first[1] w + first[2] w^2;
    second: [N, TABLE], mean(delta'^2) after the null-renoised steps with the table's scales (`knots.table_scales`).
    """

    picture: torch.Tensor
    timestep: torch.Tensor
    gap_norm: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor

    def __len__(self) -> int:
        return len(self.picture)

    def __getitem__(self, rows: torch.Tensor) -> Entries:
        return Entries(*(tensor[rows] for tensor in vars(self).values()))

    @staticmethod
    def joined(parts: list[Entries]) -> Entries:
        """All of them in one table, in this order."""
        return Entries(*(torch.cat(tensors) for tensors in zip(*(vars(part).values() for part in parts), strict=True)))

    def finite(self) -> torch.Tensor:
        """[N] bool: rows without NaN and infinity."""
        numbers = torch.cat([self.gap_norm[:, None], self.first, self.second.flatten(1)], dim=1)
        return torch.isfinite(numbers).all(dim=1)


@dataclass(frozen=True)
class Profile:
    """A table of entries, the kind of model it was measured on, and how.

    reference_numel: the number of values in a latent for which the gap norms are valid.
    """

    kind: Prediction
    reference_numel: int
    settings: ProfileSettings
    entries: Entries

    def require_usable(self) -> None:
        """AnnealingError if no scale can be fitted to it, saying what is missing."""
        entries, redo = self.entries, "Measure the profile again"
        pictures, timesteps = len(entries.picture.unique()), len(entries.timestep.unique())
        if pictures < MIN_PICTURES or len(entries) < MIN_ENTRIES:
            raise AnnealingError(
                f"The profile has {len(entries)} entries of {pictures} pictures, too few to fit a scale to and to check it on "
                f"others. {redo} with more pictures: at least {MIN_PICTURES} and {MIN_ENTRIES} entries, better a few hundred."
            )
        if not entries.finite().all():
            raise AnnealingError(
                f"The profile holds NaN or infinity in {int((~entries.finite()).sum())} of its {len(entries)} entries: the model "
                f"gave such predictions, often from half precision. {redo} with the model in another precision."
            )
        if timesteps < 2:
            raise AnnealingError(
                f"All entries of the profile are at timestep {entries.timestep[0]:g}, so the scale's course over a run cannot be "
                f"learned. {redo} on a training grid with more steps."
            )
        if not entries.gap_norm.any():
            raise AnnealingError(
                "Every gap of the profile is zero: the positive and the negative prediction never differ, so no scale has any "
                f"effect. {redo} with the pictures' captions as positive and an empty prompt as negative."
            )


def steps_of_grid(path: Path, grid: TrainingGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """(nsr, next nsr) of every step of a training grid but the last: [S] each, float64, descending.

    The last step leads to the picture, where no second gap can be measured. AnnealingError if no step is left.
    """
    nsr = schedule.levels_of_grid(grid, path)
    if len(nsr) < 2:
        raise AnnealingError(f"The training grid {grid} has fewer than two steps. Choose more steps: the paper's has 50.")
    return nsr[:-1], nsr[1:]
