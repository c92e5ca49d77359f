"""Which scale an unconnected scale_model means."""

import comfy.model_base
import pytest
from annealing_guidance_pack.guidance.family import default_scale_name
from annealing_guidance_pack.models import catalogue
from annealing_guidance_pack.models.errors import AnnealingError
from closed_form import ClosedFormSDXL, closed_form_model
from comfy.model_base import ModelType


@pytest.mark.parametrize("model_type", [ModelType.EPS, ModelType.V_PREDICTION], ids=lambda t: t.name)
def test_sdxl_has_the_authors_network(model_type):
    assert default_scale_name(closed_form_model(model_type, base=ClosedFormSDXL)) == catalogue.OFFICIAL_SDXL.name


def test_a_configuration_may_name_its_own():
    model = closed_form_model()
    model.model.model_config.annealing_scale = "shapes_epsilon.safetensors"
    assert default_scale_name(model) == "shapes_epsilon.safetensors"


@pytest.mark.parametrize(
    "model_type, base",
    [(ModelType.EPS, comfy.model_base.BaseModel), (ModelType.FLOW, ClosedFormSDXL), (ModelType.EDM, ClosedFormSDXL)],
    ids=["another epsilon model", "SDXL made a flow model", "SDXL's architecture trained anew"],
)
def test_other_models_get_an_error_that_says_what_to_do(model_type, base):
    with pytest.raises(AnnealingError, match="scale_model is not connected.*Load Annealing Scale.*train.*Fixed Scale"):
        default_scale_name(closed_form_model(model_type, base=base))
