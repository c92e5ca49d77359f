"""The trace: what a run used, call by call. It is filled on the device during the run and read on the host after it."""

from __future__ import annotations

from typing import NamedTuple

import torch

COVERED, NO_NEGATIVE, NO_POSITIVE, NEITHER = 0, 1, 2, 3
MOST_RUNS = 64  # of one guider; more than any workflow plots
SAMPLED = 4096  # values of a latent that identify its run

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
    scale: the network's w. cfg_scale: the ordinary CFG scale that was applied, and that hooks saw. coverage: COVERED,
    NO_NEGATIVE (the negative covered nothing, so the positive prediction was used alone), NO_POSITIVE (the reverse), NEITHER;
    None where all is surely covered.
    """

    sigma: torch.Tensor
    timestep: torch.Tensor
    gap_norm: torch.Tensor
    scale: torch.Tensor
    cfg_scale: torch.Tensor
    coverage: torch.Tensor | None


class RunTrace:
    """The calls of one run: kept on the device while it samples, read on the host after it.

    A solver that calls the model more than once a step gives more calls than steps. guidance_lambda is one number, or a
    tensor with one for every sample. folded: whether the sampler got ordinary CFG, and not the null-renoised form.
    """

    def __init__(self, run_id: int, scale_name: str, guidance_lambda: float | torch.Tensor, folded: bool):
        self.run_id, self.scale_name, self.guidance_lambda, self.folded = run_id, scale_name, guidance_lambda, folded
        self._on_device: list[GuidedCall] = []
        self._on_host: list[GuidedCall] = []
        self._latent: tuple[tuple[int, int], torch.Tensor] | None = None

    def record(self, call: GuidedCall) -> None:
        """Keep one call's values where they are: no copy to the host, no waiting for the device."""
        self._on_device.append(call)

    def finish(self, latent: torch.Tensor) -> None:
        """Keep what identifies the run's result [B, ...]."""
        self._latent = _known_by(latent)

    def made(self, latent: torch.Tensor) -> bool:
        """Whether this latent [B, ...], or the packed one of its parts, is the result of this run."""
        if getattr(latent, "is_nested", False):
            latent = torch.cat([part.flatten(1) for part in latent.unbind()], dim=1)
        size, values = _known_by(latent)
        return self._latent is not None and self._latent[0] == size and torch.equal(self._latent[1], values)

    @property
    def calls(self) -> list[GuidedCall]:
        """All calls so far, on the CPU. Read it after the run: it copies new values to the host and waits for them."""
        if self._on_device:
            self._on_host = self._on_host + _to_host(self._on_device)
            self._on_device = []
        return self._on_host

    def mean_cfg(self) -> float | None:
        """The mean CFG scale over calls and samples; None for a run without a call, or without a finite scale."""
        scales = torch.cat([call.cfg_scale for call in self.calls]) if self.calls else torch.empty(0)
        scales = scales[scales.isfinite()]
        return float(scales.mean()) if scales.numel() else None

    def warnings(self) -> list[str]:
        """What the user should know about the run, one sentence each."""
        if not self.calls:
            return []
        coverage = torch.cat([call.coverage for call in self.calls if call.coverage is not None])
        gaps = torch.cat([call.gap_norm for call in self.calls])
        sentences = [sentence for code, sentence in _COVERAGE.items() if (coverage == code).any()]
        if not gaps.isfinite().all():
            broken = sorted({i + 1 for call in self.calls for i in (~call.gap_norm.isfinite()).nonzero().flatten().tolist()})
            sentences.append(
                f"The model predicted NaN or infinity in sample {', '.join(map(str, broken))} of the batch, so its picture is "
                "broken. The other samples are not affected."
            )
        return sentences


class AnnealingTrace:
    """The runs of one guider or patched model, the latest last. A node gives it out empty; sampling fills it."""

    def __init__(self) -> None:
        self._runs: list[RunTrace] = []
        self._count = 0

    def begin(self, scale_name: str, guidance_lambda: float | torch.Tensor, folded: bool) -> RunTrace:
        """A new run. The oldest is forgotten where there are more than MOST_RUNS."""
        self._count += 1
        run = RunTrace(self._count, scale_name, guidance_lambda, folded)
        self._runs = [*self._runs, run][-MOST_RUNS:]
        return run

    @property
    def latest(self) -> RunTrace:
        """The latest run; an empty one if nothing was sampled yet."""
        return self._runs[-1] if self._runs else RunTrace(0, "", 0.0, False)

    def run_of(self, latent: torch.Tensor | None) -> tuple[RunTrace, bool]:
        """The run whose result this latent is, or else the latest run; and whether it is surely the right one.

        One guider can feed several samplers, so its latest run need not be the one that made a given latent.
        """
        if latent is not None:
            for run in reversed(self._runs):
                if run.made(latent):
                    return run, True
        return self.latest, len(self._runs) <= 1

    @property
    def run_id(self) -> int:
        """How many runs began; 0: not sampled yet."""
        return self._count

    @property
    def calls(self) -> list[GuidedCall]:
        """Of the latest run."""
        return self.latest.calls

    @property
    def folded(self) -> bool:
        """Of the latest run."""
        return self.latest.folded


def _known_by(latent: torch.Tensor) -> tuple[tuple[int, int], torch.Tensor]:
    """(batch, number of values) of a latent, and some SAMPLED of its values, evenly spread, on the host."""
    values = latent.detach().flatten()
    return (len(latent), values.numel()), values[:: max(1, values.numel() // SAMPLED)].to("cpu", torch.float32, copy=True)


def _to_host(calls: list[GuidedCall]) -> list[GuidedCall]:
    """One transfer for all calls."""
    sizes = [call.sigma.shape[0] for call in calls]
    whole = [
        torch.stack([*call[:-1], torch.zeros_like(call.scale) if call.coverage is None else call.coverage]) for call in calls
    ]
    host = torch.cat(whole, dim=1).cpu()
    return [GuidedCall(*columns) for columns in host.split(sizes, dim=1)]
