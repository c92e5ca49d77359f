"""Beside nodes that combine, place, time and mask conditionings: each prediction is the one they promise, and that is guided."""

import comfy.hooks
import comfy.sd
import node_helpers
import pytest
import torch
from annealing_guidance_pack.guidance.trace import COVERED, NO_NEGATIVE
from beside import (
    Run,
    Scene,
    assert_both_act,
    assert_close,
    closed_form_scene,
    core_node,
    guided,
    patch_by,
    predictions_at,
    small_scene,
)
from closed_form import conditioning, ve_denoised
from small_models import CONTEXT, small_conditioning, small_controlnet

SCENE = closed_form_scene()
MEAN = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
OTHER = conditioning(MEAN, 0.7)
LEFT = torch.zeros(8, 8)
LEFT[:, :4] = 1.0
SIDES = pytest.mark.parametrize("side", ["positive", "negative"])


@pytest.fixture(scope="module")
def unet():
    return small_scene("SD15")


def node(name: str, *arguments, module: str = "nodes"):
    """The first output of a node that takes no MODEL."""
    node_class = core_node(module, name)
    return getattr(node_class(), node_class.FUNCTION)(*arguments)[0]


def other_at(call) -> torch.Tensor:
    """What OTHER predicts at a call of SCENE."""
    return ve_denoised(call.x, call.sigma.view(-1, 1, 1, 1), MEAN, 0.7)


def prediction_of(side: str, call) -> torch.Tensor:
    return call.cond if side == "positive" else call.uncond


def assert_guided(run) -> None:
    for call, scale in run.with_used():
        assert_close(call.denoised, guided(call, scale))


@pytest.mark.beside("Conditioning (Combine)", "Both act: the prompts' predictions are averaged, then guided.")
@SIDES
def test_combined_prompts_are_averaged_and_then_guided(side):
    scene = SCENE.but(**{side: node("ConditioningCombine", getattr(SCENE, side), OTHER)})
    run = assert_both_act(scene, without=SCENE)
    for call in run.calls:
        one = prediction_of(side, predictions_at(call, SCENE))
        assert_close(prediction_of(side, call), (one + other_at(call)) / 2)
    assert_guided(run)


@pytest.mark.beside("Conditioning (Concat)", "Both act: the longer prompt's prediction is guided.")
@SIDES
def test_a_concatenated_prompt_is_guided(unet, side):
    scene = unet.but(**{side: node("ConditioningConcat", getattr(unet, side), small_conditioning(5))})
    assert_guided(assert_both_act(scene, without=unet))


@pytest.mark.beside("Conditioning (Set Mask)", "Both act: each prompt is guided where its mask is.")
@SIDES
def test_masked_prompts_are_guided_where_their_masks_are(side):
    left = node("ConditioningSetMask", OTHER, LEFT, "default", 1.0)
    right = node("ConditioningSetMask", getattr(SCENE, side), 1 - LEFT, "default", 1.0)
    run = assert_both_act(SCENE.but(**{side: left + right}), without=SCENE)
    for call in run.calls:
        one = prediction_of(side, predictions_at(call, SCENE))
        assert_close(prediction_of(side, call), torch.where(LEFT > 0, other_at(call), one))
    assert_guided(run)


@pytest.mark.beside("Conditioning (Set Area)", "Both act: each prompt is guided where its area is.")
@SIDES
def test_a_prompt_with_an_area_is_guided_there(side):
    scene = small_scene("SD3", size=16)
    area = node("ConditioningSetArea", small_conditioning(5), 64, 128, 0, 0, 1.0)
    run = assert_both_act(scene.but(**{side: getattr(scene, side) + area}), without=scene)
    first, without = prediction_of(side, run.calls[0]), prediction_of(side, scene.plain_alone.calls[0])
    assert torch.equal(first[..., 8:], without[..., 8:])
    assert (first[..., :8] - without[..., :8]).abs().mean() > 0.01
    assert_guided(run)


@pytest.mark.parametrize("covers", ["mask", "area"])
def test_where_no_positive_covers_the_negative_is_left_alone(covers):
    """Core guides away from nothing there, which burns; here such places have no gap, in the scale and in the picture."""
    scene = small_scene("SD3", size=16)
    if covers == "mask":
        mask = torch.zeros(16, 16)
        mask[:, :8] = 1.0
        positive = node("ConditioningSetMask", scene.positive, mask, "default", 1.0)
    else:
        positive = node("ConditioningSetArea", scene.positive, 64, 128, 0, 0, 1.0)
    run = scene.but(positive=positive).annealed()
    for call, scale in run.with_used():
        assert torch.equal(call.cond[..., 8:], call.uncond[..., 8:])
        assert_close(call.denoised, guided(call, scale))
        assert (call.cond - call.uncond)[..., :8].abs().mean() > 0.01
    assert all((call.coverage == COVERED).all() for call in run.trace)


@pytest.mark.beside(
    "Conditioning (Set Timestep Range)",
    "Both act: prompts change as set. At steps that no negative covers, the positive prediction is used without guidance, and a "
    "line in the log says so.",
)
@SIDES
def test_prompts_with_ranges_are_guided_in_their_range(side):
    early = node("ConditioningSetTimestepRange", OTHER, 0.0, 0.5)
    late = node("ConditioningSetTimestepRange", getattr(SCENE, side), 0.5, 1.0)
    run = assert_both_act(SCENE.but(**{side: early + late}), without=SCENE)
    border = SCENE.model().get_model_object("model_sampling").percent_to_sigma(0.5)
    assert {bool(call.sigma[0] > border) for call in run.calls} == {True, False}
    for call in run.calls:
        late_one = prediction_of(side, predictions_at(call, SCENE))
        assert_close(prediction_of(side, call), other_at(call) if call.sigma[0] > border else late_one)
    assert_guided(run)


def test_steps_without_a_negative_are_not_guided():
    scene = SCENE.but(negative=node("ConditioningSetTimestepRange", SCENE.negative, 0.0, 0.5))
    for arrangement in ("guider", "patch last"):
        run = scene.annealed(arrangement=arrangement)
        assert_close(run.calls[-1].denoised, run.calls[-1].cond, 1e-6)
        assert [int(call.coverage[0]) for call in run.trace] == [COVERED, COVERED, COVERED, NO_NEGATIVE]


# ---- inpainting


@pytest.mark.beside("Set Latent Noise Mask", "Both act: the kept part comes out as it was, the rest is guided.")
def test_the_part_outside_a_noise_mask_is_kept():
    latent = torch.randn(SCENE.noise.shape, generator=torch.Generator().manual_seed(4))
    whole = SCENE.but(latent=latent)
    run = assert_both_act(whole.but(mask=LEFT[None, None]), without=whole)
    assert_close(run.latent[..., 4:], latent[..., 4:], 1e-6)
    assert (run.latent - latent)[..., :4].abs().mean() > 0.1


@pytest.mark.beside("Differential Diffusion", "Both act: each place changes from the step on that its mask value allows.")
def test_differential_diffusion_lets_each_place_change_from_its_step_on():
    mask = torch.linspace(0, 1, 8).expand(8, 8)
    scene = SCENE.but(latent=torch.randn(SCENE.noise.shape, generator=torch.Generator().manual_seed(4)), mask=mask[None, None])
    run = assert_both_act(scene, patch_by("nodes_differential_diffusion", "DifferentialDiffusion", 1.0))
    model_sampling = SCENE.model().get_model_object("model_sampling")
    first, last = (model_sampling.timestep(sigma) for sigma in (SCENE.sigmas[0], model_sampling.sigma_min))
    for call in run.calls:
        threshold = (model_sampling.timestep(call.sigma[0]) - last) / (first - last)
        noised = scene.latent + scene.noise * call.sigma[0]
        kept = (mask < threshold).expand_as(noised)
        assert_close(call.x[kept], noised[kept])


@pytest.mark.beside("Inpaint models (InpaintModelConditioning)", "Both act: both prompts see the picture and its mask.")
def test_an_inpaint_model_sees_its_picture_in_both_predictions():
    scene = small_scene("SD15 inpaint")
    picture = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    added = {"concat_latent_image": picture, "concat_mask": LEFT.repeat_interleave(8, 0).repeat_interleave(8, 1)[None, None]}
    positive, negative = (node_helpers.conditioning_set_values(side, added) for side in (scene.positive, scene.negative))
    inpainting = scene.but(positive=positive, negative=negative, latent=picture, mask=LEFT[None, None])
    run = assert_both_act(inpainting, without=scene.but(latent=picture))
    without = predictions_at(run.calls[0], scene)
    for side in ("positive", "negative"):
        assert (prediction_of(side, run.calls[0]) - prediction_of(side, without)).abs().mean() > 0.01


# ---- ControlNet


@pytest.mark.beside("ControlNet", "Both act: the gap between the controlled predictions is what is measured and guided.")
def test_a_controlnet_steers_both_predictions_in_its_range(unet):
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(6))
    apply = core_node("nodes", "ControlNetApplyAdvanced")()
    positive, negative = apply.apply_controlnet(unet.positive, unet.negative, small_controlnet(), image, 1.0, 0.0, 0.3)
    scene = unet.but(positive=positive, negative=negative)
    run = assert_both_act(scene, without=unet)
    for call, controlled in zip(run.calls, (True, False, False), strict=True):
        without = predictions_at(call, unet)
        for side in ("positive", "negative"):
            change = (prediction_of(side, call) - prediction_of(side, without)).abs().mean()
            assert change > 0.01 if controlled else change < 1e-4
    assert_guided(run)


# ---- hooks


LORA_AT = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"  # where the prompt enters


def lora() -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 for one attention of the small SD15."""
    up, down = torch.randn(128, 2, generator=torch.Generator().manual_seed(0)), torch.ones(2, CONTEXT)
    return {f"{LORA_AT}.lora_up.weight": up, f"{LORA_AT}.lora_down.weight": down}


def with_lora(model):
    """What the Load LoRA node does."""
    return comfy.sd.load_lora_for_models(model, None, lora(), 1.0, 0.0)[0]


def assert_predictions(unet: Scene, side: str, run: Run, has_lora: list[bool]) -> None:
    """Call by call: this side's prediction is the model's with or without the LoRA loaded, the other side's is without."""
    for call, loaded in zip(run.calls, has_lora, strict=False):
        without, with_it = predictions_at(call, unet), predictions_at(call, unet, with_lora)
        assert not torch.allclose(prediction_of(side, without), prediction_of(side, with_it), rtol=1e-2)
        assert_close(prediction_of(side, call), prediction_of(side, with_it if loaded else without), 1e-4)
        unhooked = "negative" if side == "positive" else "positive"
        assert_close(prediction_of(unhooked, call), prediction_of(unhooked, without), 1e-4)


@pytest.mark.beside("LoRA hooks", "Both act: the LoRA changes only the prompts that carry it.")
@SIDES
def test_a_lora_hook_changes_only_its_prompts_prediction(unet, side):
    hooks = comfy.hooks.create_hook_lora(lora(), 1.0, 0.0)
    scene = unet.but(**{side: comfy.hooks.set_hooks_for_conditioning(getattr(unet, side), hooks)})
    run = assert_both_act(scene, without=unet)
    assert_predictions(unet, side, run, [True])
    assert_guided(run)


@pytest.mark.beside("Hook keyframes", "Both act: the LoRA's strength changes over the steps as set.")
def test_a_scheduled_lora_hook_changes_its_prompts_prediction_as_scheduled(unet):
    keyframes = node("CreateHookKeyframe", 0.0, 0.0, module="nodes_hooks")
    keyframes = node("CreateHookKeyframe", 1.0, 0.3, keyframes, module="nodes_hooks")
    hooks = node("SetHookKeyframes", comfy.hooks.create_hook_lora(lora(), 1.0, 0.0), keyframes, module="nodes_hooks")
    scene = unet.but(positive=comfy.hooks.set_hooks_for_conditioning(unet.positive, hooks))
    run = assert_both_act(scene, without=unet)
    assert_predictions(unet, "positive", run, [False, True])
