"""Beside nodes that change the network's inside: their addition to, or change of, the predictions is the one they make to CFG."""

import pytest
import torch
from beside import CFG, Run, Scene, assert_both_act, assert_close, guided, patch_by, small_scene


@pytest.fixture(scope="module")
def unet():
    return small_scene("SD15")


@pytest.fixture(scope="module")
def dit():
    return small_scene("SD3")


def assert_adds_what_it_adds_to_cfg(scene: Scene, other, run: Run) -> None:
    """At the first call, where x is the same: the guided prediction plus exactly what the node adds beside core's guider."""
    ours, scale = run.with_used()[0]
    theirs = scene.plain(other).calls[0]
    addition = theirs.denoised - guided(theirs, CFG)
    assert addition.abs().max() > 1e-3 * theirs.denoised.abs().max()
    assert_close(ours.denoised, guided(ours, scale) + addition)


def assert_guides_the_changed_predictions(scene: Scene, other, run: Run) -> None:
    """At the first call: the predictions are the ones that the node makes beside core's guider; at all: they are guided."""
    ours, theirs, without = run.calls[0], scene.plain(other).calls[0], scene.plain().calls[0]
    assert torch.equal(ours.cond, theirs.cond) and torch.equal(ours.uncond, theirs.uncond)
    assert not torch.allclose(ours.uncond, without.uncond, rtol=1e-3)
    for call, scale in run.with_used():
        assert_close(call.denoised, guided(call, scale))


@pytest.mark.beside("Perturbed-Attention Guidance", "Both act: its addition, with its own scale, comes on top.")
def test_perturbed_attention_guidance_is_added(unet):
    other = patch_by("nodes_pag", "PerturbedAttentionGuidance", 3.0)
    assert_adds_what_it_adds_to_cfg(unet, other, assert_both_act(unet, other))


@pytest.mark.beside("Self-Attention Guidance", "Both act: its addition, with its own scale, comes on top.")
def test_self_attention_guidance_is_added(unet):
    other = patch_by("nodes_sag", "SelfAttentionGuidance", 0.5, 2.0)
    assert_adds_what_it_adds_to_cfg(unet, other, assert_both_act(unet, other))


@pytest.mark.beside(
    "Skip Layer Guidance (DiT)", "Both act: its addition, with its own scale, comes on top in its range of steps."
)
def test_skip_layer_guidance_is_added(dit):
    other = patch_by("nodes_slg", "SkipLayerGuidanceDiT", 3.0, 0.0, 1.0, double_layers="1", single_layers="")
    assert_adds_what_it_adds_to_cfg(dit, other, assert_both_act(dit, other))


@pytest.mark.beside(
    "Skip Layer Guidance (SD3)", "Both act: its addition, with its own scale, comes on top in its range of steps."
)
def test_skip_layer_guidance_for_sd3_is_added_in_its_range(dit):
    """The first of three steps lies before the range, the second in it."""
    other = patch_by("nodes_sd3", "SkipLayerGuidanceSD3", "1", 3.0, 0.05, 0.5)
    first, second, *_ = assert_both_act(dit, other).with_used()
    assert_close(first[0].denoised, guided(*first))
    assert not torch.allclose(second[0].denoised, guided(*second), rtol=1e-2)


@pytest.mark.beside(
    "Skip Layer Guidance (DiT, simple)", "Both act: the gap to its weakened negative is what is measured and guided."
)
def test_simple_skip_layer_guidance_weakens_the_negative(dit):
    other = patch_by("nodes_slg", "SkipLayerGuidanceDiTSimple", 0.0, 1.0, double_layers="1", single_layers="")
    assert_guides_the_changed_predictions(dit, other, assert_both_act(dit, other))


@pytest.mark.beside("FreeU", "Both act: the gap between the changed predictions is what is measured and guided.")
@pytest.mark.beside("FreeU_V2", "Both act: the gap between the changed predictions is what is measured and guided.")
@pytest.mark.parametrize("name", ["FreeU", "FreeU_V2"])
def test_freeu_changes_the_predictions_that_are_guided(unet, name):
    other = patch_by("nodes_freelunch", name, 1.3, 1.4, 0.9, 0.2)
    assert_guides_the_changed_predictions(unet, other, assert_both_act(unet, other))


@pytest.mark.beside(
    "Normalized Attention Guidance", "Both act: it changes the positive prediction, and the scale follows the gap that is left."
)
def test_normalized_attention_guidance_changes_the_positive(unet):
    pytest.importorskip("comfy_extras.nodes_nag", reason="this ComfyUI has no NAGuidance")
    other = patch_by("nodes_nag", "NAGuidance", 5.0, 0.5, 1.5)
    run = assert_both_act(unet, other)
    theirs, without = unet.plain(other).calls[0], unet.plain().calls[0]
    assert torch.equal(run.calls[0].cond, theirs.cond)
    assert not torch.allclose(theirs.cond, without.cond, rtol=1e-3)
