"""The scenes, their captions and their pictures."""

import torch
from annealing_guidance_pack.shapes import scenes
from hypothesis import given
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1)


def some_scenes(seed: int, n: int = 32) -> scenes.Scenes:
    generator = torch.Generator().manual_seed(seed)
    return scenes.place(torch.randint(scenes.N_SCENES, (n,), generator=generator), generator)


@given(seeds)
def test_a_seed_gives_the_same_pictures_again(seed):
    assert torch.equal(scenes.render(some_scenes(seed, 4)), scenes.render(some_scenes(seed, 4)))


@given(st.lists(st.integers(0, scenes.N_SCENES - 1), min_size=1, max_size=8), seeds)
def test_a_scene_knows_its_number(numbers, seed):
    placed = scenes.place(torch.tensor(numbers), torch.Generator().manual_seed(seed))
    assert scenes.scene_number(placed.colour, placed.shape, placed.axis).tolist() == numbers


@given(seeds)
def test_the_first_object_is_left_of_or_above_the_second_and_they_do_not_touch(seed):
    batch = some_scenes(seed)
    along = batch.centre.gather(2, batch.axis[:, None, None].expand(-1, 2, 1))[..., 0]
    assert (along[:, 1] - along[:, 0] > batch.radius.sum(1)).all()


@given(seeds)
def test_no_shape_is_cut_off_by_the_edge(seed):
    batch = some_scenes(seed)
    reach = 1.05 * batch.radius[..., None]  # a cross reaches furthest
    assert (batch.centre >= reach).all()
    assert (batch.centre <= scenes.SIZE - reach).all()


def test_a_scene_has_two_captions_that_mean_the_same_picture():
    red_circle, blue_square = 0 * 4 + 0, 4 * 4 + 1
    batch = scenes.place(torch.tensor([red_circle * 24 + blue_square, (24 + red_circle) * 24 + blue_square]), torch.Generator())
    assert scenes.caption(batch, 0) == "a red circle left of a blue square"
    assert scenes.caption(batch, 0, swapped=True) == "a blue square right of a red circle"
    assert scenes.caption(batch, 1) == "a red circle above a blue square"
    assert scenes.caption(batch, 1, swapped=True) == "a blue square below a red circle"


def test_captions_are_grammatical():
    orange = scenes.place(torch.tensor([4 * 24]), torch.Generator())
    assert scenes.caption(orange, 0).startswith("an orange circle left of a red circle")


def test_training_and_held_out_scenes_share_nothing_and_are_all():
    training, held_out = scenes.scene_split()
    assert sorted(torch.cat([training, held_out]).tolist()) == list(range(scenes.N_SCENES))
    assert len(held_out) == scenes.N_HELD_OUT


def test_there_are_512_held_out_prompts():
    prompts, numbers = scenes.held_out_prompts()
    assert len(set(prompts)) == len(numbers) == 512
