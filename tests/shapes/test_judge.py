"""The judge reads pictures right, and says when a picture is badly drawn."""

import pytest
import torch
from annealing_guidance_pack.shapes import scenes
from annealing_guidance_pack.shapes.autoencoder import AutoEncoder
from annealing_guidance_pack.shapes.files import load_part
from annealing_guidance_pack.shapes.judge import Judge


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_part("judge", Judge())


@pytest.fixture(scope="module")
def drawn() -> tuple[scenes.Scenes, torch.Tensor, torch.Tensor]:
    """2,304 fresh scenes, each number twice, their pictures and numbers."""
    numbers = torch.arange(scenes.N_SCENES).repeat(2)
    batch = scenes.place(numbers, torch.Generator().manual_seed(99))
    return batch, scenes.render(batch), numbers


def test_at_least_99_in_100_rendered_pictures_are_read_entirely_right(judge, drawn):
    _, pictures, numbers = drawn
    assert judge.right(pictures, numbers).float().mean() >= 0.99


def test_pictures_that_went_through_the_vae_are_read_as_well(judge, drawn):
    _, pictures, numbers = drawn
    vae = load_part("autoencoder", AutoEncoder())
    assert judge.right(vae.decode(vae.encode(pictures[:576])), numbers[:576]).float().mean() >= 0.99


def test_another_scene_than_the_one_asked_for_is_wrong(judge, drawn):
    _, pictures, numbers = drawn
    assert judge.right(pictures[:256], numbers[1:257]).float().mean() <= 0.01


def test_places_are_read_within_a_pixel(judge, drawn):
    batch, pictures, _ = drawn
    seen = judge.read(pictures)
    assert (seen.centre - batch.centre).abs().mean() < 1
    assert (seen.radius - batch.radius).abs().mean() < 1


def test_the_drawing_error_grows_with_blur_and_with_burnt_colours(judge, drawn):
    _, pictures, _ = drawn
    clean = judge.drawing_error(pictures[:64])
    blurred = torch.nn.functional.avg_pool2d(pictures[:64], 5, stride=1, padding=2, count_include_pad=False)
    burnt = ((pictures[:64] - 0.5) * 2 + 0.5).clamp(0, 1)
    assert (judge.drawing_error(blurred) > clean).float().mean() > 0.95
    assert (judge.drawing_error(burnt) > clean).float().mean() > 0.95
