"""The demo in ComfyUI's own nodes, as a user wires it."""

import comfy.model_sampling
import nodes
import pytest
import torch
from annealing_guidance_pack.guidance.family import default_scale_name
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.shapes import loader, scenes
from annealing_guidance_pack.shapes.files import load_part
from annealing_guidance_pack.shapes.judge import Judge
from comfy.ldm.common_dit import pad_to_patch_size

PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module", params=loader.VARIANTS)
def shapes(request):
    """(variant, MODEL, CLIP, VAE)"""
    return request.param, *loader.load_shapes(request.param)


def encode(clip, prompt: str):
    return nodes.CLIPTextEncode().encode(clip, prompt)[0]


def sample(model, positive, negative, cfg: float, steps: int, seed: int = 0):
    """Core's KSampler on an empty latent a row of `positive` conds; returns latents."""
    latent = nodes.EmptyLatentImage().generate(128, 128, positive[0][0].shape[0])[0]
    return nodes.KSampler().sample(model, seed, steps, cfg, "euler", "normal", positive, negative, latent)[0]["samples"]


def test_each_variant_is_the_kind_of_model_it_says(shapes):
    variant, model, _, _ = shapes
    kind = {"epsilon": comfy.model_sampling.EPS, "flow": comfy.model_sampling.CONST}[variant]
    assert isinstance(model.get_model_object("model_sampling"), kind)
    assert default_scale_name(model) == f"shapes_{variant}.safetensors"


def test_the_epsilon_variant_has_the_noise_schedule_of_sdxl():
    from annealing_guidance_pack.models.schedule import ve_sigmas

    model, _, _ = loader.load_shapes("epsilon")
    torch.testing.assert_close(model.get_model_object("model_sampling").sigmas, ve_sigmas().float())


def test_an_unknown_variant_is_refused_in_words():
    with pytest.raises(AnnealingError, match="epsilon or flow"):
        loader.load_shapes("video")


def test_an_unknown_word_reaches_the_user_as_our_error(shapes):
    _, _, clip, _ = shapes
    with pytest.raises(AnnealingError, match="'pink'.*It knows the colours red, orange"):
        encode(clip, "a pink circle")


def test_conditioning_zero_out_is_the_empty_prompt(shapes):
    _, _, clip, _ = shapes
    zeroed = nodes.ConditioningZeroOut().zero_out(encode(clip, PROMPT))[0]
    assert torch.equal(zeroed[0][0], encode(clip, "")[0][0])


def test_weighted_words_scale_their_token_only(shapes):
    _, _, clip, _ = shapes
    plain, weighted = encode(clip, PROMPT)[0][0], encode(clip, "a (red:1.5) circle left of a blue square")[0][0]
    torch.testing.assert_close(weighted[0, 0], plain[0, 0] * 1.5)
    torch.testing.assert_close(weighted[0, 1:], plain[0, 1:])


def test_pictures_survive_the_vae(shapes):
    _, _, _, vae = shapes
    pictures = scenes.render(scenes.place(torch.arange(0, 1152, 72), torch.Generator().manual_seed(1)))
    shown = torch.nn.functional.interpolate(pictures, scale_factor=loader.ENLARGE).movedim(1, -1)
    latents = nodes.VAEEncode().encode(vae, shown)[0]
    assert latents["samples"].shape == (16, 4, 16, 16)
    back = nodes.VAEDecode().decode(vae, latents)[0]
    assert back.shape == shown.shape
    assert (back - shown).abs().mean() < 0.02
    assert back.min() >= 0 and back.max() <= 1


def test_prompts_can_be_concatenated_and_pictures_have_other_sizes(shapes):
    _, model, clip, vae = shapes
    both = nodes.ConditioningConcat().concat(encode(clip, "a red circle"), encode(clip, "left of a blue square"))[0]
    latent = nodes.EmptyLatentImage().generate(192, 128, 1)[0]
    out = nodes.KSampler().sample(model, 0, 2, 3.0, "euler", "normal", both, encode(clip, ""), latent)[0]
    assert nodes.VAEDecode().decode(vae, out)[0].shape == (1, 128, 192, 3)


SIZES = [(144, 128), (120, 120), (136, 200), (8, 8), (8, 72), (512, 24)]


@pytest.mark.parametrize("width, height", SIZES)
def test_pictures_of_any_size_in_eights_come_out_in_that_size(shapes, width, height):
    _, model, clip, vae = shapes
    latent = nodes.EmptyLatentImage().generate(width, height, 2)[0]
    out = nodes.KSampler().sample(model, 0, 2, 3.0, "euler", "normal", encode(clip, PROMPT), encode(clip, ""), latent)[0]
    pictures = nodes.VAEDecode().decode(vae, out)[0]
    assert pictures.shape == (2, height, width, 3) and pictures.isfinite().all()


@pytest.mark.parametrize("width, height", [(144, 128), (120, 120), (136, 200)])
def test_what_the_last_patches_lack_is_filled_as_comfyui_fills_it(shapes, width, height):
    _, model, clip, _ = shapes
    network = model.model.diffusion_model.transformer
    z = torch.randn(2, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
    rest = torch.tensor([0.9, 0.4]), encode(clip, PROMPT)[0][0].expand(2, -1, -1)
    with torch.no_grad():
        whole = network(pad_to_patch_size(z, (4, 4)), *rest)
        torch.testing.assert_close(network(z, *rest), whole[..., : height // 8, : width // 8])


@pytest.mark.parametrize("width, height", [(80, 80), (72, 128), (8, 8)])
def test_areas_of_any_size_in_eights_can_be_prompted(shapes, width, height):
    _, model, clip, _ = shapes
    area = nodes.ConditioningSetArea().append(encode(clip, "a red circle"), width, height, 24, 0, 1.0)[0]
    both = nodes.ConditioningCombine().combine(encode(clip, ""), area)[0]
    latent = nodes.EmptyLatentImage().generate(144, 144, 1)[0]
    sampled, without = (
        nodes.KSampler().sample(model, 0, 2, 3.0, "euler", "normal", positive, encode(clip, ""), latent)[0]["samples"]
        for positive in (both, encode(clip, ""))
    )
    inside = torch.zeros(18, 18, dtype=torch.bool)
    inside[: height // 8, 3 : 3 + width // 8] = True
    assert sampled.isfinite().all()
    assert ((sampled - without).abs().amax((0, 1)) > 1e-3)[inside].float().mean() > 0.9


def test_a_picture_of_an_odd_size_can_be_inpainted(shapes):
    _, model, clip, vae = shapes
    picture = torch.rand(1, 123, 145, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 123, 145)
    mask[:, :, 72:] = 1
    latent = nodes.SetLatentNoiseMask().set_mask(nodes.VAEEncode().encode(vae, picture)[0], mask)[0]
    assert latent["samples"].shape == (1, 4, 15, 18)
    out = nodes.KSampler().sample(model, 0, 2, 3.0, "euler", "normal", encode(clip, PROMPT), encode(clip, ""), latent)[0]
    torch.testing.assert_close(out["samples"][..., :8], latent["samples"][..., :8])
    assert (out["samples"] - latent["samples"])[..., 10:].abs().mean() > 0.1
    assert nodes.VAEDecode().decode(vae, out)[0].shape == (1, 120, 144, 3)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(120, 120), (123, 145), (9, 8), (8, 300)])
def test_the_vae_takes_pictures_of_any_size_whole_and_in_tiles(shapes, size):
    _, _, _, vae = shapes
    height, width = (side // 8 for side in size)
    picture = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(1))
    for latent in (nodes.VAEEncode().encode(vae, picture)[0], nodes.VAEEncodeTiled().encode(vae, picture, 64, 16)[0]):
        assert latent["samples"].shape == (1, 4, height, width)
        for shown in (nodes.VAEDecode().decode(vae, latent)[0], nodes.VAEDecodeTiled().decode(vae, latent, 64, 16)[0]):
            assert shown.shape == (1, 8 * height, 8 * width, 3)


@pytest.mark.parametrize("size", [(7, 7), (1, 64)])
def test_a_picture_too_small_for_the_vae_is_refused_in_words(shapes, size):
    _, _, _, vae = shapes
    with pytest.raises(AnnealingError, match="smaller than 8 x 8"):
        nodes.VAEEncode().encode(vae, torch.rand(1, *size, 3))


@pytest.mark.slow
def test_under_cfg_at_least_80_in_100_held_out_prompts_come_out_right_and_clearly_fewer_without(shapes):
    _, model, clip, vae = shapes
    judge = load_part("judge", Judge())
    prompts, numbers = scenes.held_out_prompts()
    prompts, numbers = prompts[::4], numbers[::4]
    positive = [[torch.cat([encode(clip, prompt)[0][0] for prompt in prompts]), {}]]
    negative = encode(clip, "")

    def accuracy(cfg: float) -> float:
        pictures = nodes.VAEDecode().decode(vae, {"samples": sample(model, positive, negative, cfg, 50)})[0]
        return judge.right(pictures.movedim(-1, 1)[:, :, ::4, ::4], numbers).float().mean().item()

    guided, unguided = accuracy(3.0), accuracy(1.0)
    assert guided >= 0.8
    assert unguided <= guided - 0.08
