"""The model patch under guiders that are not CFG: each refused in a sentence, none silently undone."""

import comfy.samplers
import pytest
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.patch import patch_model
from annealing_guidance_pack.models.errors import AnnealingError
from beside import LEARNED, closed_form_scene, core_node
from closed_form import sample

SCENE = closed_form_scene()


def assert_refused(make_guider, sentence: str) -> None:
    """With the patch the guider is refused; without it, it samples."""
    _sample(make_guider(SCENE.model()))
    patched, trace = patch_model(SCENE.model(), LEARNED)
    with pytest.raises(AnnealingError, match=sentence):
        _sample(make_guider(patched))
    assert trace.run_id == 0


def _sample(guider):
    return sample(guider, comfy.samplers.sampler_object("euler"), SCENE.sigmas, SCENE.noise)


@pytest.mark.beside(
    "PerpNegGuider", "Not together: it guides in a way of its own. The model patch refuses it; the Annealing Guider replaces it."
)
def test_the_perp_neg_guider_is_refused():
    node = core_node("nodes_perpneg", "PerpNegGuider")
    assert_refused(
        lambda model: node.execute(model, SCENE.positive, SCENE.negative, SCENE.negative, 8.0, 1.0).args[0],
        "Guider_PerpNeg.*also combines: empty_negative_prompt",
    )


@pytest.mark.beside(
    "DualCFGGuider", "Not together: it combines three prompts. The model patch refuses it; the Annealing Guider replaces it."
)
@pytest.mark.parametrize("style", ["regular", "nested"])
def test_the_dual_cfg_guider_is_refused(style):
    node = core_node("nodes_custom_sampler", "DualCFGGuider")
    assert_refused(
        lambda model: node.execute(model, SCENE.positive, SCENE.positive, SCENE.negative, 8.0, 8.0, style).args[0],
        "Guider_DualCFG.*also combines: middle",
    )


@pytest.mark.beside("BasicGuider", "Not together: it has no negative. The model patch refuses it.")
def test_the_basic_guider_is_refused():
    node = core_node("nodes_custom_sampler", "BasicGuider")
    assert_refused(lambda model: node.execute(model, SCENE.positive).args[0], "no negative conditioning")


@pytest.mark.beside("DualModelGuider", "Not together: its negative runs on another model. The model patch refuses it.")
def test_the_dual_model_guider_is_refused():
    if not hasattr(__import__("comfy_extras.nodes_custom_sampler", fromlist=["_"]), "DualModelGuider"):
        pytest.skip("this ComfyUI has no DualModelGuider")
    node = core_node("nodes_custom_sampler", "DualModelGuider")
    assert_refused(
        lambda model: node.execute(model, SCENE.positive, 4.0, SCENE.model(), SCENE.negative).args[0],
        "Guider_DualModel.*a way of its own",
    )


@pytest.mark.beside("Guiders of other packs", "Not together, where they guide in a way of their own: refused by the model patch.")
def test_a_guider_that_guides_in_a_way_of_its_own_is_refused():
    class Doubling(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            self.cfg *= 2
            return super().predict_noise(x, timestep, model_options or {}, seed)

    def guider_of(model):
        guider = Doubling(model)
        guider.set_conds(SCENE.positive, SCENE.negative)
        return guider

    assert_refused(guider_of, "Doubling.*a way of its own")


def test_a_guider_that_only_adds_around_cfg_is_guided():
    class Named(comfy.samplers.CFGGuider):
        name = "only a name"

    patched, trace = patch_model(SCENE.model(), LEARNED)
    guider = Named(patched)
    guider.set_conds(SCENE.positive, SCENE.negative)
    _sample(guider)
    assert len(trace.calls) == 4


@pytest.mark.beside("Annealing Guider with the model patch", "The Annealing Guider uses its own settings; the patch rests.")
def test_the_annealing_guider_ignores_a_patch_on_its_model():
    patched, trace = patch_model(SCENE.model(), LEARNED)
    guider = AnnealingCFGGuider(patched, LEARNED)
    guider.set_conds(SCENE.positive, SCENE.negative)
    _sample(guider)
    assert trace.run_id == 0 and len(guider.trace.calls) == 4
