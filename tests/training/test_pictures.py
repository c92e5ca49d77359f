"""What pictures are made of: batches, lists and captions as nodes give them, identities, pictures that the model makes itself."""

from __future__ import annotations

import dataclasses

import comfy.samplers
import pytest
import torch
import two_points
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.training.measure import measure_picture
from annealing_guidance_pack.training.pictures import SampleSettings, empty_latent, given_pictures, picture_seed, sampled_pictures
from annealing_guidance_pack.training.profile import ProfileSettings
from closed_form import conditioning

LATENTS, CAPTIONS = two_points.pictures(4)
BATCH = {"samples": torch.stack(LATENTS)}
SIZE = {"samples": torch.zeros(3, *two_points.SHAPE)}
QUICK = SampleSettings(steps=6)


def identities(pictures) -> list[int]:
    return [picture.identity for picture in pictures]


def made(*arguments, **settings) -> list:
    return sampled_pictures(two_points.two_point_model("epsilon"), SIZE, *arguments, dataclasses.replace(QUICK, **settings))


def test_a_batch_a_list_and_a_list_of_batches_are_the_same_pictures():
    singles = [{"samples": latent[None]} for latent in LATENTS]
    batches = [{"samples": torch.stack(LATENTS[:3])}, {"samples": LATENTS[3][None]}]
    batched_captions = [[torch.cat([caption[0][0] for caption in CAPTIONS]), {"pooled_output": None}]]
    expected = identities(given_pictures(BATCH, CAPTIONS))
    for latents in (singles, batches):
        for captions in (CAPTIONS, batched_captions, [batched_captions]):
            assert identities(given_pictures(latents, captions)) == expected
    for picture, latent, caption in zip(given_pictures(BATCH, [batched_captions]), LATENTS, CAPTIONS, strict=True):
        given_latent, given_caption = picture.make()
        assert torch.equal(given_latent, latent) and torch.equal(given_caption[0][0], caption[0][0])


def test_one_caption_serves_all_pictures():
    for captions in (CAPTIONS[0], CAPTIONS[:1]):
        assert [picture.make()[1] for picture in given_pictures(BATCH, captions)] == [CAPTIONS[0]] * 4


def test_everything_of_a_batched_conditioning_is_taken_apart():
    pooled, mask, layers = torch.randn(4, 6), torch.ones(4, 5), torch.randn(4, 2, 5, 3)
    options = {"pooled_output": pooled, "attention_mask": mask, "conditioning_llama3": layers, "guidance": 3.5}
    pictures = given_pictures(BATCH, [[torch.randn(4, 5, 8), options]])
    ((sequence, third),) = pictures[2].make()[1]
    assert sequence.shape == (1, 5, 8) and third["guidance"] == 3.5 and third["attention_mask"].shape == (1, 5)
    assert torch.equal(third["pooled_output"], pooled[2:3]) and torch.equal(third["conditioning_llama3"], layers[2:3])


def test_combined_conditionings_stay_with_their_picture():
    combined = CAPTIONS[0] + CAPTIONS[1]
    assert given_pictures({"samples": LATENTS[0][None]}, combined)[0].make()[1] == combined


def test_the_identity_is_that_of_latent_and_caption_whatever_their_type_and_place():
    (picture,) = given_pictures({"samples": LATENTS[0][None].half()}, CAPTIONS[0])
    assert 0 <= picture.identity < 2**63
    (in_double,) = given_pictures({"samples": LATENTS[0][None].half().double()}, CAPTIONS[0])
    assert in_double.identity == picture.identity
    other_pooled = [[CAPTIONS[0][0][0], {"pooled_output": torch.ones(1, 4)}]]
    others = given_pictures({"samples": LATENTS[0][None]}, [CAPTIONS[1]]) + given_pictures(
        {"samples": LATENTS[1][None]}, CAPTIONS[0]
    )
    others += given_pictures({"samples": LATENTS[0][None]}, [other_pooled])
    assert len({picture.identity, *identities(others)}) == 4


def test_seeds_differ_by_picture_and_by_the_profiles_seed():
    seeds = {picture_seed(seed, identity) for seed in range(3) for identity in (0, 1, 2**63 - 1)}
    assert len(seeds) == 9 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("latents", "captions", "message"),
    [
        (BATCH, CAPTIONS[:2], "4 latents and 2 captions"),
        ([], CAPTIONS, "0 latents and 4"),
        (SIZE, CAPTIONS[0], "is empty"),
        (BATCH, [CAPTIONS[0], [], CAPTIONS[2], CAPTIONS[3]], "conditioning is empty"),
        (BATCH, [[CAPTIONS[0][0][0], {"start_percent": 0.0, "end_percent": 0.5}]], "part of the steps"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_words(latents, captions, message):
    with pytest.raises(AnnealingError, match=message):
        given_pictures(latents, captions)


@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
def test_the_model_makes_pictures_of_its_own_that_follow_the_prompt(kind):
    model = two_points.two_point_model(kind)
    pictures = sampled_pictures(model, SIZE, CAPTIONS, two_points.NEGATIVE, QUICK)
    assert len(pictures) == 4 and model.model.diffusion_model.rows == 0  # nothing is made before it is asked for
    for picture, caption in zip(pictures, CAPTIONS, strict=True):
        latent, given = picture.make()
        assert given == caption and latent.shape == two_points.SHAPE and latent.isfinite().all()
        points = caption[0][0][0, 0, 1:].view(two_points.SHAPE)
        assert torch.corrcoef(torch.stack([latent.abs().flatten(), points.flatten()]))[0, 1] > 0.5


def test_a_sampled_picture_is_the_same_every_time_and_in_inference_mode():
    one, again = (
        made(CAPTIONS, two_points.NEGATIVE, sampler="euler_ancestral"),
        made(CAPTIONS, two_points.NEGATIVE, sampler="euler_ancestral"),
    )
    before = torch.random.get_rng_state()
    with torch.inference_mode():
        repeated = again[2].make()[0]
    assert torch.equal(one[2].make()[0], repeated)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_samplers_of_other_packs_that_draw_from_torchs_own_generator_are_tamed(monkeypatch):
    def sample_global_noise(model, x, sigmas, **kwargs):
        return torch.randn_like(x)

    names = [*comfy.samplers.SAMPLER_NAMES, "global_noise"]
    monkeypatch.setattr(comfy.samplers.k_diffusion_sampling, "sample_global_noise", sample_global_noise, raising=False)
    monkeypatch.setattr(comfy.samplers, "SAMPLER_NAMES", names)
    monkeypatch.setattr(comfy.samplers.KSampler, "SAMPLERS", names)
    one, again = (made(CAPTIONS[0], two_points.NEGATIVE, sampler="global_noise")[0] for _ in range(2))
    latent = one.make()[0]
    torch.rand(1)
    before = torch.random.get_rng_state()
    assert torch.equal(again.make()[0], latent)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_repeats_and_settings_make_other_pictures_and_more_repeats_keep_the_first():
    one = identities(made(CAPTIONS, two_points.NEGATIVE))
    three = identities(made(CAPTIONS, two_points.NEGATIVE, count=3))
    assert three[:4] == one and len(set(three)) == 12
    for change in ({"seed": 1}, {"cfg": 2.0}, {"steps": 7}, {"sampler": "heun"}, {"scheduler": "karras"}):
        assert not set(identities(made(CAPTIONS, two_points.NEGATIVE, **change))) & set(three)


def test_unknown_samplers_are_refused():
    with pytest.raises(AnnealingError, match="no sampler 'eular'"):
        made(CAPTIONS, two_points.NEGATIVE, sampler="eular")
    with pytest.raises(AnnealingError, match="no scheduler"):
        made(CAPTIONS, two_points.NEGATIVE, scheduler="none")


def test_an_empty_latent_has_the_models_channels_and_size():
    assert empty_latent(two_points.two_point_model("epsilon"), 512, 256)["samples"].shape == (1, 4, 32, 64)


def test_a_latent_of_another_model_is_refused():
    (picture,) = given_pictures({"samples": torch.ones(1, 16, 8, 8)}, conditioning(torch.ones(1, *two_points.SHAPE), 1.0))
    with pytest.raises(AnnealingError, match="has 16 channels, and this model's latents have 4"):
        measure_picture(two_points.two_point_model("epsilon"), picture, two_points.NEGATIVE, ProfileSettings(20), 16)
