"""What every scale model is: a module that gives one guidance scale per sample, and the facts about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Prediction = Literal["epsilon", "velocity"]  # what a scale file calls the kind of model
Path = Literal["ve", "flow"]  # how noise is mixed in: x = x0 + sigma noise, or x = (1 - s) x0 + s noise

PATHS: dict[Prediction, Path] = {"epsilon": "ve", "velocity": "flow"}
PREDICTIONS: dict[Path, Prediction] = {"ve": "epsilon", "flow": "velocity"}


@dataclass(frozen=True)
class ScaleInfo:
    """What a guider must know about a scale model to use it as it was trained.

    name: shown to the user, in messages and plots.
    prediction: the kind of prediction whose gap the scale was trained on; None for a rule that fits any model.
    reference_numel: values per latent (C*H*W) in training. A gap norm of another latent is multiplied by
        sqrt(reference_numel / numel) before it is passed in. None: the norm is used as it is.
    training_grid: the steps that the scale was trained for. An int is a number of timesteps per step on the
        1000-step schedule. A tuple holds descending noise levels, noise-to-signal ratios (ve) or times (flow), and ends with 0.0.
    trained_on, source, licence, created_with: where it comes from, for people.
    typical_gaps: median gap norm at each step of the training grid, from noise to picture, at reference_numel; None if it
        was not measured.
    fingerprint: of the model that it was trained on, as `training.own_scale` writes and compares it; None: not known.
    projection: whether it was trained for guidance only across the conditional prediction, and on the norm of that gap.
    """

    name: str
    prediction: Prediction | None
    reference_numel: int | None
    training_grid: tuple[float, ...] | int
    trained_on: str
    source: str
    licence: str
    created_with: str
    typical_gaps: tuple[float, ...] | None = None
    fingerprint: str | None = None
    projection: bool = False

    @property
    def path(self) -> Path | None:
        """The noise path of the models that the scale was made for; None for a rule that fits any model."""
        return PATHS[self.prediction] if self.prediction else None


class ScaleModel(torch.nn.Module):
    """Base of the learned network and of the fixed rules.

    The scale is a CFG++ scale. It is valid only with null renoising, or folded into an ordinary CFG scale; it is never itself
    an ordinary CFG scale.
    """

    reads_gap = True  # False: all samples at one noise level get one scale

    def __init__(self, info: ScaleInfo):
        super().__init__()
        self.info = info

    def forward(self, timestep: torch.Tensor, gap_norm: torch.Tensor, guidance_lambda: float | torch.Tensor) -> torch.Tensor:
        """Scale [B], float32, on timestep's device.

        timestep: [B], 0..999 (flow: 0..1000), the noise level in training timesteps, continuous.
        gap_norm: [B], >= 0, L2 norm of the gap per sample, already rescaled to info.reference_numel.
        guidance_lambda: a number or [B], 0 (sample quality) .. 1 (prompt alignment); clamped to that range.
        """
        raise NotImplementedError
