"""Which scale belongs to a model's family, for a guider or patch whose scale_model is unconnected."""

from __future__ import annotations

import comfy.model_base
import comfy.model_sampling
from comfy.model_patcher import ModelPatcher

from ..models import catalogue
from ..models.errors import AnnealingError
from . import coordinates


def default_scale_name(model_patcher: ModelPatcher) -> str:
    """The name of the family's own scale, as the loader lists it.

    A model configuration may name one itself in `annealing_scale` (the bundled Shapes models do). SDXL base and what was
    made from it have the authors' network. AnnealingError for every other model, saying what to do.
    """
    model = model_patcher.model
    # Not by getattr: ComfyUI's configurations answer every unknown name, with a warning in the log.
    if own := vars(model.model_config).get("annealing_scale"):
        return own
    # By the patcher, so that an SDXL turned into a flow model by a ModelSampling node isn't taken for one of epsilon kind.
    model_sampling = model_patcher.get_model_object("model_sampling")
    path = coordinates.path_of(model_sampling)
    # EDM: models of SDXL's architecture that were trained from scratch on other latents
    if (
        isinstance(model, comfy.model_base.SDXL)
        and path == "ve"
        and not isinstance(model_sampling, comfy.model_sampling.EDM)
    ):
        return catalogue.OFFICIAL_SDXL.name
    raise AnnealingError(
        f"scale_model is not connected, and no annealing scale is known for this model ({type(model).__name__}, {path} "
        "prediction): only SDXL and the Shapes demo have their own. Connect Load Annealing Scale with a scale made for this "
        "model, train one for it, or connect Fixed Scale."
    )
