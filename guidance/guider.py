"""The Annealing Guider: ComfyUI's CFGGuider with the guided step in the place of its fixed scale."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ..models.errors import AnnealingError
from . import coordinates
from .host_types import Conditioning, Options, Sampler
from .live import LiveChart
from .run import Guidance, GuidedRun, guided_run
from .step import guided_step
from .trace import AnnealingTrace

NO_NEGATIVE_GIVEN = (
    "Annealing guidance compares the positive with the negative prediction, but no negative conditioning is connected. "
    "Connect one: an empty prompt, or for SDXL base ConditioningZeroOut of the positive."
)


class AnnealingCFGGuider(comfy.samplers.CFGGuider):
    """A guider with a scale model that chooses the scale at every call. Conditions, hooks, areas and inpainting stay ComfyUI's.

    trace: filled during every run. live: the chart that follows every run, if any.
    """

    def __init__(self, model_patcher: ModelPatcher, guidance: Guidance, live: LiveChart | None = None):
        super().__init__(model_patcher)
        coordinates.require_match(guidance.scale_model.info, model_patcher.get_model_object("model_sampling"))
        self.guidance = guidance
        self.trace = AnnealingTrace()
        self.live = live
        self.run: GuidedRun | None = None

    def set_conds(self, positive: Conditioning, negative: Conditioning) -> None:
        """As CFGGuider's, but both are needed: AnnealingError without a negative."""
        if not negative:
            raise AnnealingError(NO_NEGATIVE_GIVEN)
        super().set_conds(positive, negative)

    def outer_sample(
        self, noise: torch.Tensor, latent_image: torch.Tensor, sampler: Sampler, sigmas: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """One run of the sampler; ComfyUI calls it with the model loaded."""
        # Guiders are cached between runs: everything that belongs to a run begins and ends here.
        shapes = kwargs.get("latent_shapes")
        try:
            with guided_run(self.guidance, self.trace, self.live, self, sampler, noise, sigmas, shapes) as run:
                self.run = run
                output = super().outer_sample(noise, latent_image, sampler, sigmas, *args, **kwargs)
                run.made(output)
        finally:
            self.run = None
        return output

    def predict_noise(
        self, x: torch.Tensor, timestep: torch.Tensor, model_options: Options | None = None, seed: int | None = None
    ) -> torch.Tensor:
        """The guided denoised prediction, shaped like x: [B, ...]."""
        assert self.run is not None, "ComfyUI predicts inside outer_sample"
        conds = self.conds
        return guided_step(self.run, self.inner_model, conds["positive"], conds["negative"], x, timestep, model_options or {})
