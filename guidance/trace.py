"""What was used, call by call: filled on the device during a run, read on the host after it."""

from __future__ import annotations

from typing import NamedTuple

import torch

COVERED, NO_NEGATIVE, NO_POSITIVE, NEITHER = 0, 1, 2, 3


_COVERAGE = {
    NO_NEGATIVE: "The negative conditioning covered nothing at some steps (its timestep range?); there the positive "
    "prediction was used without guidance.",
    NO_POSITIVE: "The positive conditioning covered nothing at some steps (its timestep range?); there the negative "
    "prediction was used without guidance.",
    NEITHER: "Neither conditioning covered anything at some steps (their timestep ranges?); the picture is wrong there.",
}


class GuidedCall(NamedTuple):
    """One model call of a run, one value per sample: [B] float32 each.

    sigma: ComfyUI's noise level. timestep: the network's. gap_norm: in the network's units and at its training size.
    scale: the network's w. used: the scale really applied, after folding. coverage: COVERED, or NO_NEGATIVE (the
    negative covered nothing, so the positive prediction was used alone), NO_POSITIVE (the reverse), NEITHER.
    """

    sigma: torch.Tensor
    timestep: torch.Tensor
    gap_norm: torch.Tensor
    scale: torch.Tensor
    used: torch.Tensor
    coverage: torch.Tensor


class AnnealingTrace:
    """The calls of the latest run. A node hands it out empty; it fills when the sampling runs, and a later run replaces it.

    A solver that calls the model more than once a step gives more calls than steps. guidance_lambda is one number, or a
    tensor with one for every sample.
    """

    def __init__(self) -> None:
        self.run = 0  # how many runs began; 0: not sampled yet
        self.scale_name = ""
        self.guidance_lambda: float | torch.Tensor = 0.0
        self.folded = False
        self._on_device: list[GuidedCall] = []
        self._on_host: list[GuidedCall] = []

    def begin(self, scale_name: str, guidance_lambda: float | torch.Tensor, folded: bool) -> None:
        """Forget the previous run."""
        self.run += 1
        self.scale_name, self.guidance_lambda, self.folded = scale_name, guidance_lambda, folded
        self._on_device, self._on_host = [], []

    def record(self, call: GuidedCall) -> None:
        """Keep one call's values where they are: no copy to the host, no waiting for the device."""
        self._on_device.append(call)

    @property
    def calls(self) -> list[GuidedCall]:
        """All calls so far, on the CPU. Reading copies what is new to the host at once, so it belongs after the run."""
        if self._on_device:
            self._on_host = self._on_host + _to_host(self._on_device)
            self._on_device = []
        return self._on_host

    def warnings(self) -> list[str]:
        """What the user should know about the run, one sentence each."""
        if not self.calls:
            return []
        coverage = torch.cat([call.coverage for call in self.calls])
        gaps = torch.cat([call.gap_norm for call in self.calls])
        sentences = [sentence for code, sentence in _COVERAGE.items() if (coverage == code).any()]
        if not gaps.isfinite().all():
            broken = sorted({i + 1 for call in self.calls for i in (~call.gap_norm.isfinite()).nonzero().flatten().tolist()})
            sentences.append(
                f"The model's prediction was not a finite number in sample {', '.join(map(str, broken))} of the batch, and "
                "neither will its picture be. The other samples are not affected."
            )
        return sentences


def _to_host(calls: list[GuidedCall]) -> list[GuidedCall]:
    """One transfer for all calls."""
    sizes = [call.sigma.shape[0] for call in calls]
    host = torch.cat([torch.stack(call) for call in calls], dim=1).cpu()
    return [GuidedCall(*columns) for columns in host.split(sizes, dim=1)]
