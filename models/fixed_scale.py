"""Fixed rules for the scale: the baselines that a learned scale is compared with."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from .errors import AnnealingError
from .scale_model import ScaleInfo, ScaleModel

Rule = Literal["constant", "linear", "cosine", "interval"]
RULES: tuple[str, ...] = get_args(Rule)
PAPER_GRID = 20  # timesteps per step: the 50-step grid of the paper, whose CFG++ baselines these rules are


class FixedScale(ScaleModel):
    """A CFG++ scale that follows a rule in the progress p = 1 - timestep / 1000 (0: pure noise, 1: the picture).

    constant: scale.
    linear:   from scale at p = 0 to scale_end at p = 1.
    cosine:   the same, along half a cosine.
    interval: scale where start_percent <= p <= end_percent, scale_end elsewhere (limited-interval guidance,
              arXiv 2404.07724).

    Gap and lambda have no effect. The rule fits epsilon and flow models: its training grid is the paper's 20 timesteps per step,
    which means 20 timesteps of SDXL's schedule for epsilon models and 0.02 in s for flow models.
    """

    reads_gap = False

    def __init__(
        self,
        rule: Rule = "constant",
        scale: float = 0.8,
        scale_end: float = 0.1,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
    ):
        numbers = {"scale": scale, "scale_end": scale_end, "start_percent": start_percent, "end_percent": end_percent}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise AnnealingError(f"{name} of the fixed scale is {value}, not a finite number. Set it to a number.")
        if rule not in RULES:
            raise AnnealingError(f'"{rule}" is not a rule for the fixed scale. Choose one of: {", ".join(RULES)}.')
        if start_percent > end_percent:
            raise AnnealingError(
                f"The fixed scale's interval starts at {start_percent} and ends before that, at {end_percent}. Swap the two."
            )
        super().__init__(_info_of(rule, scale, scale_end, start_percent, end_percent))
        self.rule, self.scale, self.scale_end = rule, scale, scale_end
        self.start_percent, self.end_percent = start_percent, end_percent

    def forward(self, timestep: torch.Tensor, gap_norm: torch.Tensor, guidance_lambda: float | torch.Tensor) -> torch.Tensor:
        """See ScaleModel.forward."""
        progress = (1.0 - timestep.to(torch.float32).reshape(-1) / 1000.0).clamp(0, 1)
        end, start = torch.full_like(progress, self.scale_end), torch.full_like(progress, self.scale)
        return torch.lerp(end, start, self._weight(progress))

    def _weight(self, progress: torch.Tensor) -> torch.Tensor:
        """Weight of `scale` against `scale_end`: [B], 0..1."""
        if self.rule == "linear":
            return 1.0 - progress
        if self.rule == "cosine":
            return 0.5 * (1.0 + torch.cos(math.pi * progress))
        if self.rule == "interval":
            return ((progress >= self.start_percent) & (progress <= self.end_percent)).to(progress.dtype)
        return torch.ones_like(progress)


def _info_of(rule: str, scale: float, scale_end: float, start_percent: float, end_percent: float) -> ScaleInfo:
    described = {
        "constant": f"constant {scale:g}",
        "linear": f"linear {scale:g} to {scale_end:g}",
        "cosine": f"cosine {scale:g} to {scale_end:g}",
        "interval": f"{scale:g} from {start_percent:g} to {end_percent:g}, else {scale_end:g}",
    }
    return ScaleInfo(
        name=described[rule],
        prediction=None,
        reference_numel=None,
        training_grid=PAPER_GRID,
        trained_on="nothing: a fixed rule",
        source="the Fixed Scale node",
        licence="none needed",
        created_with="Annealing Guidance for ComfyUI",
    )
