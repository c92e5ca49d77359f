"""Annealing guidance as a MODEL patch: the same guided step inside KSampler and every other node that uses CFGGuider."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from ..models.errors import AnnealingError
from . import coordinates
from .guider import NO_NEGATIVE_GIVEN, AnnealingCFGGuider
from .host_types import Options, Sampler
from .live import LiveChart
from .run import Guidance, GuidedRun, guided_run
from .step import guided_step
from .trace import AnnealingTrace

KEY = "annealing_guidance"


def patch_model(
    model_patcher: ModelPatcher, guidance: Guidance, live: LiveChart | None = None
) -> tuple[ModelPatcher, AnnealingTrace]:
    """A clone of the model that is guided wherever it is sampled, and the trace of its runs. live: the chart that follows them.

    On a model that was patched before, the new guidance replaces the old.
    """
    coordinates.require_match(guidance.scale_model.info, model_patcher.get_model_object("model_sampling"))
    patch = AnnealingPatch(guidance, live)
    patched = model_patcher.clone()
    for wrapper_type, wrapper in ((WrappersMP.OUTER_SAMPLE, patch.outer_sample), (WrappersMP.PREDICT_NOISE, patch.predict_noise)):
        patched.remove_wrappers_with_key(wrapper_type, KEY)
        patched.add_wrapper_with_key(wrapper_type, KEY, wrapper)
    return patched, patch.trace


class AnnealingPatch:
    """The two wrappers: one sees each run begin, with its sampler; the other replaces the guider's prediction."""

    def __init__(self, guidance: Guidance, live: LiveChart | None = None):
        self.guidance = guidance
        self.trace = AnnealingTrace()
        self.live = live
        self.run: GuidedRun | None = None

    def outer_sample(
        self,
        executor: WrapperExecutor,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        sampler: Sampler,
        sigmas: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Wraps CFGGuider.outer_sample: AnnealingError for a guider whose own guidance the patch would undo."""
        guider = executor.class_obj
        if isinstance(guider, AnnealingCFGGuider):  # has its own guidance
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        _require_cfg(guider)
        shapes = kwargs.get("latent_shapes")
        try:
            with guided_run(self.guidance, self.trace, self.live, guider, sampler, noise, sigmas, shapes) as run:
                self.run = run
                output = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
                run.made(output)
        finally:
            self.run = None
        return output

    def predict_noise(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Wraps CFGGuider.predict_noise: the guided denoised prediction [B, ...] instead."""
        guider, run = executor.class_obj, self.run
        if run is None:
            return executor(*args, **kwargs)

        def guided(
            x: torch.Tensor, timestep: torch.Tensor, model_options: Options | None = None, seed: int | None = None
        ) -> torch.Tensor:
            positive, negative = guider.conds["positive"], guider.conds["negative"]
            return guided_step(run, guider.inner_model, positive, negative, x, timestep, model_options or {})

        # Only the innermost function is replaced: other packs' wrappers still run, whether they were added before or after.
        rest = WrapperExecutor.new_class_executor(guided, guider, executor.wrappers, executor.idx + 1)
        return rest.execute(*args, **kwargs)


def _require_cfg(guider: comfy.samplers.CFGGuider) -> None:
    """AnnealingError for a guider that does more than CFG with a positive and a negative: the patch would undo it."""
    if not guider.conds.get("negative"):
        raise AnnealingError(NO_NEGATIVE_GIVEN)
    name = type(guider).__name__
    if others := sorted(set(guider.conds) - {"positive", "negative"}):
        raise AnnealingError(
            "The Annealing Guidance patch guides with a positive and a negative conditioning, but this guider "
            f"({name}) also combines: {', '.join(others)}. Use KSampler or CFGGuider, or remove the patch."
        )
    if not _predicts_by_cfg(guider):
        raise AnnealingError(
            f"The Annealing Guidance patch takes the place of CFG, but this guider ({name}) guides in a way of its own, which "
            "the patch would undo: the guider is not ComfyUI's CFGGuider, or another node pack has replaced ComfyUI's CFG. Use "
            "KSampler or CFGGuider without that pack, or remove the patch."
        )


def _predicts_by_cfg(guider: comfy.samplers.CFGGuider) -> bool:
    """Whether the guider predicts by ComfyUI's own code: not a subclass's, not a replaced function, not one set on the guider.

    Judged by where the functions were defined, since another pack may have replaced them before this one was imported.
    """
    functions = (getattr(guider.predict_noise, "__func__", None), comfy.samplers.sampling_function)
    return all(getattr(function, "__globals__", None) is vars(comfy.samplers) for function in functions)
