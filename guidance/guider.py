"""The Annealing Guider: ComfyUI's CFGGuider with the guided step in the place of its fixed scale."""

from __future__ import annotations

import comfy.samplers

from ..models.errors import AnnealingError
from . import units
from .live import LiveChart
from .step import Guidance, GuidedRun, guided_step
from .trace import AnnealingTrace

NO_NEGATIVE_GIVEN = (
    "Annealing guidance compares the positive with the negative prediction, but no negative conditioning is connected. "
    "Connect one: an empty prompt, or for SDXL base ConditioningZeroOut of the positive."
)


class AnnealingCFGGuider(comfy.samplers.CFGGuider):
    """A guider whose scale a scale model chooses at every call. Conditions, hooks, areas and inpainting stay ComfyUI's own.

    trace: filled during every run, replaced by the next one. live: the chart that follows every run, if any.
    """

    def __init__(self, model_patcher, guidance: Guidance, live: LiveChart | None = None):
        super().__init__(model_patcher)
        units.require_match(guidance.scale_model.info, model_patcher.get_model_object("model_sampling"))
        self.guidance = guidance
        self.trace = AnnealingTrace()
        self.live = live
        self.run: GuidedRun | None = None

    def set_conds(self, positive, negative) -> None:
        if not negative:
            raise AnnealingError(NO_NEGATIVE_GIVEN)
        super().set_conds(positive, negative)

    def outer_sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
        # Guiders are cached between runs: everything that belongs to a run begins here.
        self.run = GuidedRun(self.guidance, self.trace, self.model_patcher, sampler, self.live)
        try:
            self.run.begin(self, noise, sigmas, kwargs.get("latent_shapes"))
            output = super().outer_sample(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            run, self.run = self.run, None
        run.finish()
        return output

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        conds = self.conds
        return guided_step(self.run, self.inner_model, conds["positive"], conds["negative"], x, timestep, model_options or {})
