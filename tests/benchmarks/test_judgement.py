"""How pictures are judged: perfect ones, and what resampling scenes says of a point."""

import pytest
import quality
import torch
from common.demo import Demo

PICTURES = 32


@pytest.fixture(scope="module")
def judgement(tmp_path_factory) -> quality.Judgement:
    return quality.Judgement(quality.Gallery(tmp_path_factory.mktemp("points"), Demo("epsilon", PICTURES)))


def test_perfect_pictures_are_read_as_right_and_are_nearer_than_pictures_of_other_prompts(judgement):
    perfect = judgement.perfect()
    assert perfect["right"] == 1
    other = judgement.gallery.rendered(1, quality.SEED + 1)
    halved = torch.arange(PICTURES) // 2  # of half of the prompts only
    point = {name: values[halved] for name, values in other.items()}
    assert perfect["fd"] < judgement.position(point)[0, 1].item()


def test_the_resamples_of_a_point_lie_around_it(judgement):
    point = judgement.gallery.rendered(1, quality.SEED + 2)
    found = judgement.position(point)
    assert found.shape == (1 + quality.RESAMPLES, 2)
    assert found[1:, 1].mean().item() == pytest.approx(found[0, 1].item(), rel=1e-4)
    assert found[1:, 1].std() > 0
