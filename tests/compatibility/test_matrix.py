"""Every sampler of ComfyUI on every kind of model, by the guider and by the model patch: right, warned of, or refused.

tests/support/compatibility.py runs and judges one cell.
"""

import compatibility
import pytest
import reference
import torch
from annealing_guidance_pack.guidance import coordinates, course
from annealing_guidance_pack.guidance.extent import GapExtent
from annealing_guidance_pack.models import schedule
from comfy.model_base import ModelType
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingDiscrete
from compatibility import ENTRIES, SAMPLERS, SEED, SHAPE
from kinds import KINDS, model_of

GUIDABLE = [kind for kind in KINDS if kind.path]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_cell_is_right_or_the_user_is_told(sampler, kind, entry):
    compatibility.outcome(sampler, kind, entry)


def test_every_kind_of_model_that_comfyui_has_is_in_the_matrix():
    assert {kind.model_type for kind in KINDS} >= set(ModelType.__members__)


@pytest.mark.parametrize("node, settings", [(ModelSamplingDiscrete, [False]), (ModelSamplingContinuousEDM, [120.0, 0.002])])
def test_every_kind_of_prediction_that_a_node_makes_is_in_the_matrix(node, settings):
    tested = {type(model_of(kind).get_model_object("model_sampling")).calculate_denoised for kind in KINDS}
    for choice in node.INPUT_TYPES()["required"]["sampling"][0]:
        (model,) = node().patch(model_of(KINDS[0]), choice, *settings)
        assert type(model.get_model_object("model_sampling")).calculate_denoised in tested, choice


@pytest.mark.parametrize("kind", GUIDABLE, ids=str)
@pytest.mark.parametrize("sampler, formula", [
    ("euler", reference.ordinary_run),
    ("ddim", reference.ordinary_run),
    ("euler_cfg_pp", reference.null_renoised_run),
])  # fmt: skip
def test_comfyuis_first_order_samplers_in_the_reference_are_the_written_step(sampler, formula, kind):
    noise = compatibility.Noise_RandomNoise(SEED).generate_noise({"samples": torch.zeros(SHAPE)})
    denoiser = compatibility.denoiser_of(sampler, kind)
    written = formula(denoiser, noise, compatibility.sigmas_of(sampler, kind))
    torch.testing.assert_close(compatibility.expected(sampler, kind), written, atol=0, rtol=1e-9)


BREAKS = {
    "gap": lambda patch: patch.setattr(GapExtent, "gap_norm", scaled(GapExtent.gap_norm, 1.5)),
    "timestep": lambda patch: patch.setattr(schedule, "timestep_of_nsr", scaled(schedule.timestep_of_nsr, 0.7)),
    "noise level": lambda patch: patch.setattr(coordinates, "nsr_of_sigma", scaled(coordinates.nsr_of_sigma, 0.9)),
    "training grid": lambda patch: patch.setattr(schedule, "next_on_training_grid", scaled(schedule.next_on_training_grid, 0.98)),
    "own step": lambda patch: patch.setattr(course, "folding_factor", scaled(course.folding_factor, 1.01)),
}


def scaled(function, factor):
    return lambda *args, **kwargs: factor * function(*args, **kwargs)


@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.parametrize("kind", GUIDABLE, ids=str)
def test_a_cell_fails_where_a_formula_is_wrong(kind, broken, monkeypatch):
    BREAKS[broken](monkeypatch)
    with pytest.raises(AssertionError, match="from the float64 reference"):
        ran = compatibility.run.__wrapped__("euler", kind, "guider")
        monkeypatch.undo()
        compatibility.deviation(ran, "euler", kind)
