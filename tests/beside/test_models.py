"""Beside nodes that change the model as a whole: its noise levels, its windows, its caches, its compilation."""

import importlib
import shutil

import comfy.samplers
import comfy.supported_models
import pytest
import torch
from annealing_guidance_pack.models import schedule
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.nodes.host import where_known
from beside import (
    ARRANGEMENTS,
    Scene,
    assert_both_act,
    assert_close,
    closed_form_scene,
    core_node,
    patch_by,
    small_scene,
)

SCENE = closed_form_scene()


# ---- noise levels


def with_its_schedule(scene: Scene, other) -> Scene:
    """The scene on the schedule that BasicScheduler gives for the model with the other node."""
    return scene.but(sigmas=comfy.samplers.calculate_sigmas(other(scene.model()).get_model_object("model_sampling"), "normal", 4))


@pytest.mark.beside("ModelSamplingDiscrete", "Both act: the scale goes by the noise levels that it sets (img_to_img: refused).")
@pytest.mark.parametrize(
    "sampling, zsnr", [("eps", True), ("v_prediction", False), ("v_prediction", True), ("lcm", False), ("x0", False)]
)
def test_discrete_sampling_of_another_kind_gives_its_noise_levels(sampling, zsnr):
    other = patch_by("nodes_model_advanced", "ModelSamplingDiscrete", sampling, zsnr)
    run = assert_both_act(with_its_schedule(SCENE, other), other, without=SCENE)
    for call in run.trace:
        torch.testing.assert_close(call.timestep, schedule.timestep_of_sigma(call.sigma), atol=1e-3, rtol=1e-5)


@pytest.mark.beside("ModelSamplingContinuousEDM", "Both act: the scale goes by the noise levels that it sets.")
@pytest.mark.parametrize(
    "sampling, level",
    [
        ("eps", lambda sigma: schedule.timestep_of_sigma(sigma)),
        ("v_prediction", lambda sigma: schedule.timestep_of_sigma(sigma)),
        ("edm", lambda sigma: schedule.timestep_of_sigma(sigma / 0.5)),
        ("edm_playground_v2.5", lambda sigma: schedule.timestep_of_sigma(sigma / 0.5)),
        ("cosmos_rflow", lambda sigma: 1000 * sigma / (sigma + 1)),
    ],
)
def test_continuous_sampling_gives_its_noise_levels(sampling, level):
    other = patch_by("nodes_model_advanced", "ModelSamplingContinuousEDM", sampling, 80.0, 0.02)
    run = assert_both_act(with_its_schedule(SCENE, other), other, without=SCENE)
    for call in run.trace:
        torch.testing.assert_close(call.timestep, level(call.sigma), atol=1e-3, rtol=1e-5)


@pytest.mark.beside("ModelSamplingContinuousV", "Both act: the scale goes by the noise levels that it sets.")
def test_continuous_v_sampling_gives_its_noise_levels():
    other = patch_by("nodes_model_advanced", "ModelSamplingContinuousV", "v_prediction", 500.0, 0.03)
    assert_both_act(with_its_schedule(SCENE, other), other, without=SCENE)


@pytest.mark.beside("ModelSamplingSD3", "Both act: the scale goes by the shifted noise levels.")
@pytest.mark.beside("ModelSamplingAuraFlow", "Both act: the scale goes by the shifted noise levels.")
@pytest.mark.beside("ModelSamplingFlux", "Both act: the scale goes by the shifted noise levels.")
@pytest.mark.parametrize(
    "node, arguments",
    [("ModelSamplingSD3", [6.0]), ("ModelSamplingAuraFlow", [1.73]), ("ModelSamplingFlux", [1.15, 0.5, 1024, 1024])],
)
def test_a_shift_gives_its_noise_levels(node, arguments):
    scene = small_scene("SD3")
    other = patch_by("nodes_model_advanced", node, *arguments)
    run = assert_both_act(with_its_schedule(scene, other), other, without=scene)
    for call in run.trace:
        torch.testing.assert_close(call.timestep, 1000 * call.sigma, atol=1e-3, rtol=1e-5)


def test_a_sampling_without_a_noise_path_is_refused():
    other = patch_by("nodes_model_advanced", "ModelSamplingDiscrete", "img_to_img", False)
    for arrangement in ARRANGEMENTS:
        with pytest.raises(AnnealingError, match="cannot guide this model"):
            SCENE.annealed(other, arrangement)


# ---- context windows


def context_windows(length: int, overlap: int, dim: int):
    node = core_node("nodes_context_windows", "ContextWindowsManualNode")
    arguments = [length, overlap, "standard_static", 1, False, "pyramid", dim]
    return patch_by("nodes_context_windows", "ContextWindowsManualNode", *arguments, **where_known(node.execute, freenoise=False))


@pytest.mark.beside("Context Windows", "Both act: the windows' predictions are fused, and the scale is chosen for their gap.")
def test_context_windows_are_fused_and_then_guided():
    """Along the latent's height, as along a video's frames."""
    assert_both_act(small_scene("SD15", size=16), context_windows(8, 4, 2))


# ---- caches


def network_calls(scene: Scene, run) -> int:
    """How often the network itself ran."""
    calls = []
    handle = scene.model().model.diffusion_model.time_embed.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        run()
    finally:
        handle.remove()
    return len(calls)


@pytest.mark.beside("EasyCache", "Both act: at steps that it skips, its estimates of the two predictions are guided.")
def test_easycache_skips_network_calls_but_not_guidance():
    scene = small_scene("SD15", size=16, steps=8)
    other = patch_by("nodes_easycache", "EasyCacheNode", 0.5, 0.1, 0.9, False)
    run = assert_both_act(scene, other)
    assert len(run.trace) == 8
    assert 0 < network_calls(scene, lambda: scene.annealed(other)) < 8


@pytest.mark.beside(
    "LazyCache",
    "Both act: at steps that it skips, the guided prediction is estimated as a whole, and no new scale is chosen. Samplers that "
    "renoise with the unconditional prediction (Annealing Sampler, *_cfg_pp) then use an old one: take EasyCache with those.",
)
def test_lazycache_skips_whole_steps():
    scene = small_scene("SD15", size=16, steps=8)
    other = patch_by("nodes_easycache", "LazyCacheNode", 0.5, 0.1, 0.9, False)
    run = assert_both_act(scene, other)
    assert len(run.calls) == 8
    assert len(run.trace) == network_calls(scene, lambda: scene.annealed(other)) < 8


# ---- compilation


@pytest.mark.slow
@pytest.mark.beside("TorchCompileModel", "Both act: the network is compiled, guidance runs outside of it.")
def test_a_compiled_network_is_guided_as_the_plain_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # the user's may hold half a file of a killed process
    if not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        pytest.skip("torch.compile's inductor needs a C++ compiler, and this machine has none")
    scene = small_scene("SD3")
    torch._dynamo.utils.counters.clear()
    for arrangement in ("guider", "patch first"):
        run = scene.annealed(patch_by("nodes_torch_compile", "TorchCompileModel", "inductor"), arrangement)
        assert_close(run.latent, scene.annealed_alone.latent, 1e-3)
        assert_close(run.used(), scene.annealed_alone.used(), 1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


# ---- cfg


@pytest.mark.beside("CFGOverride", "Has no effect: annealing guidance does not use the cfg value.")
def test_a_cfg_override_changes_nothing():
    if not hasattr(importlib.import_module("comfy_extras.nodes_custom_sampler"), "CFGOverride"):
        pytest.skip("this ComfyUI has no CFGOverride")
    override = patch_by("nodes_custom_sampler", "CFGOverride", 1.0, 0.0, 1.0)
    for arrangement in ARRANGEMENTS:
        assert torch.equal(SCENE.annealed(override, arrangement).latent, SCENE.annealed_alone.latent)
