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


def cfg_guider(model):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(SCENE.positive, SCENE.negative)
    return guider


@pytest.mark.beside(
    "Packs that replace ComfyUI's CFG",
    "Not together: the model patch refuses what it would undo; the Annealing Guider is of its own.",
)
def test_a_subclass_put_in_the_place_of_cfg_guider_is_refused(monkeypatch):
    original = comfy.samplers.CFGGuider

    class Replaced(original):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            return 0.5 * super().predict_noise(x, timestep, model_options or {}, seed)

    monkeypatch.setattr(comfy.samplers, "CFGGuider", Replaced)
    assert_refused(cfg_guider, "Replaced.*a way of its own")


def test_a_predict_noise_replaced_on_the_class_is_refused(monkeypatch):
    original = comfy.samplers.CFGGuider.predict_noise

    def predict_noise(self, *args, **kwargs):
        return 0.5 * original(self, *args, **kwargs)

    monkeypatch.setattr(comfy.samplers.CFGGuider, "predict_noise", predict_noise)
    assert_refused(cfg_guider, "CFGGuider.*a way of its own")


@pytest.mark.parametrize("bound", [True, False])
def test_a_predict_noise_set_on_the_guider_itself_is_refused(bound):
    def replaced(model):
        guider = cfg_guider(model)
        original = guider.predict_noise
        function = lambda self, *args, **kwargs: 0.5 * original(*args, **kwargs)  # noqa: E731
        guider.predict_noise = function.__get__(guider) if bound else lambda *args, **kwargs: function(guider, *args, **kwargs)
        return guider

    assert_refused(replaced, "CFGGuider.*a way of its own")


@pytest.mark.parametrize("batch", [1, 2])
def test_a_predict_noise_that_returns_a_pair_is_refused_before_it_runs(monkeypatch, batch):
    """At batch 2 the pair was once unpacked as the batch, and the run went on."""
    calls = []

    def pair(self, x, timestep, model_options=None, seed=None):
        calls.append(x)
        return x, x

    monkeypatch.setattr(comfy.samplers.CFGGuider, "predict_noise", pair)
    patched, _ = patch_model(SCENE.model(), LEARNED)
    with pytest.raises(AnnealingError, match="a way of its own"):
        sample(cfg_guider(patched), comfy.samplers.sampler_object("euler"), SCENE.sigmas, SCENE.noise[:batch])
    assert not calls


def test_a_sampling_function_that_another_pack_replaced_is_refused(monkeypatch):
    original = comfy.samplers.sampling_function

    def sampling_function(*args, **kwargs):
        return 0.5 * original(*args, **kwargs)

    monkeypatch.setattr(comfy.samplers, "sampling_function", sampling_function)
    assert_refused(cfg_guider, "another node pack has replaced")


def test_what_was_replaced_and_put_back_is_no_obstacle():
    original = comfy.samplers.CFGGuider.predict_noise
    comfy.samplers.CFGGuider.predict_noise = lambda *args, **kwargs: None
    comfy.samplers.CFGGuider.predict_noise = original
    patched, trace = patch_model(SCENE.model(), LEARNED)
    _sample(cfg_guider(patched))
    assert len(trace.calls) == 4


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
