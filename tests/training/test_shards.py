"""A profile's folder: what is measured stays, whatever happens; what does not belong together is not merged."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import two_points
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.training import shards
from annealing_guidance_pack.training.knots import Tabulated
from annealing_guidance_pack.training.origin import Origin
from annealing_guidance_pack.training.pictures import given_pictures
from annealing_guidance_pack.training.profile import Profile, ProfileSettings
from annealing_guidance_pack.training.shards import load_folder, measure, measure_into, measured_pictures

SETTINGS = ProfileSettings(20, samples=4)


def pictures(count: int, seed: int = 0) -> list:
    latents, captions = two_points.pictures(count, seed)
    return given_pictures({"samples": torch.stack(latents)}, captions)


def fill(folder, those, **options) -> Profile:
    arguments = {"model": two_points.two_point_model("epsilon"), "negative": two_points.NEGATIVE, "settings": SETTINGS} | options
    return measure_into(folder, pictures=those, **arguments)


def assert_same(one: Profile, other: Profile) -> None:
    assert dataclasses.replace(one, entries=None) == dataclasses.replace(other, entries=None)
    for name, tensor in vars(one.entries).items():
        assert torch.equal(tensor, getattr(other.entries, name)), name


def files(folder) -> list:
    return sorted(folder.rglob("*.safetensors"))


class Stop(Exception):
    pass


def stop_after(count: int):
    def progress(done, total):
        if done == count:
            raise Stop

    return progress


@pytest.fixture(scope="module")
def ten() -> Profile:
    return measure(two_points.two_point_model("epsilon"), pictures(10), two_points.NEGATIVE, SETTINGS)


def test_an_interrupted_measuring_goes_on_where_it_was_and_gives_the_same_table(tmp_path, ten):
    for count in (3, 4, 8):
        with pytest.raises(Stop):
            fill(tmp_path, pictures(10), progress=stop_after(count))
    told = []
    profile = fill(tmp_path, pictures(10), progress=lambda *figures: told.append(figures))
    assert told == [(8, 10), (9, 10), (10, 10)]
    assert_same(profile, ten)
    assert_same(load_folder(tmp_path), ten)


def test_nothing_is_measured_twice(tmp_path, ten):
    model = two_points.two_point_model("epsilon")
    fill(tmp_path, pictures(10), model=model)
    rows = model.model.diffusion_model.rows
    assert_same(fill(tmp_path, pictures(10) + pictures(10), model=model), ten)
    assert model.model.diffusion_model.rows == rows
    assert measured_pictures(tmp_path, model, two_points.NEGATIVE, SETTINGS) == {picture.identity for picture in pictures(10)}


def test_more_pictures_can_be_added_and_are_sorted_in(tmp_path, ten):
    fill(tmp_path, pictures(10)[6:])
    assert_same(fill(tmp_path, pictures(10)[:6]), ten)
    assert ten.entries.picture.diff().min() >= 0 and len(ten.entries.picture.unique()) == 10


def test_shards_are_whole_after_every_picture_and_a_full_one_is_left_alone(tmp_path, monkeypatch, ten):
    monkeypatch.setattr(shards, "PICTURES_PER_SHARD", 4)
    seen = []
    fill(tmp_path, pictures(10), progress=lambda *_: seen.append(len(files(tmp_path)) and len(load_folder(tmp_path).entries)))
    assert seen == [4 * done for done in range(11)]
    assert len(files(tmp_path)) == 3
    assert_same(load_folder(tmp_path), ten)


def test_a_folder_of_several_runs_folders_is_their_union(tmp_path, ten):
    fill(tmp_path / "one", pictures(10)[:7])
    fill(tmp_path / "two", pictures(10)[4:])
    assert_same(load_folder(tmp_path), ten)


def break_off(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_a_bit_of_the_tensors(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 4]) + data[-99:]


def change_the_seed(data: bytes) -> bytes:
    return data.replace(b'\\"seed\\": 0', b'\\"seed\\": 1')


@pytest.mark.parametrize("harm", [break_off, flip_a_bit_of_the_tensors, change_the_seed, lambda data: b"", lambda data: b"{}"])
def test_a_corrupted_shard_is_skipped_told_and_measured_again(tmp_path, ten, harm, caplog):
    fill(tmp_path, pictures(10)[:6])
    (broken,) = files(tmp_path)
    fill(tmp_path, pictures(10)[6:8])
    assert harm(broken.read_bytes()) != broken.read_bytes()
    broken.write_bytes(harm(broken.read_bytes()))
    assert len(load_folder(tmp_path).entries.picture.unique()) == 2
    assert f"{broken} is skipped" in caplog.text
    assert_same(fill(tmp_path, pictures(10)), ten)


def test_a_shard_with_another_versions_columns_is_skipped(tmp_path, ten, caplog):
    fill(tmp_path, pictures(10)[:1])
    (path,) = files(tmp_path)
    shard = shards._read_shard(path.read_bytes())
    for number, picture in shard.pictures.items():
        fewer = dataclasses.replace(picture.entries, second=picture.entries.second[:, ::2])
        shard.pictures[number] = dataclasses.replace(picture, entries=fewer)
    shards._write_shard(path, shard)
    assert_same(fill(tmp_path, pictures(10)), ten)
    assert "other columns than this version's" in caplog.text


def test_a_profile_in_the_old_format_is_read_and_its_measuring_goes_on(tmp_path, monkeypatch, ten):
    """It holds the products of the gaps at its knots. Here gaps of two values: 1 + w and 2 - w + w^2."""
    fill(tmp_path, pictures(10)[:3])
    (path,) = files(tmp_path)
    shard = shards._read_shard(path.read_bytes())
    knots = torch.tensor(SETTINGS.knots)
    gaps = torch.stack([1 + knots, 2 - knots + knots**2])
    for number, picture in shard.pictures.items():
        products = (gaps.T @ gaps / 2).expand(SETTINGS.samples, -1, -1)
        shard.pictures[number] = dataclasses.replace(picture, entries=dataclasses.replace(picture.entries, second=products))
    with monkeypatch.context() as patch:
        patch.setattr(shards, "FORMAT", "annealing-profile-shard/2")
        shards._write_shard(path, shard)

    old = load_folder(tmp_path)
    scale = torch.linspace(0.0, 4.0, len(old.entries))
    expected = ((1 + scale) ** 2 + (2 - scale + scale**2) ** 2) / 2
    torch.testing.assert_close(Tabulated(SETTINGS.knots, old.entries.second)(scale), expected, rtol=1e-4, atol=0)
    both = fill(tmp_path, pictures(10))
    assert both.entries.picture.tolist() == ten.entries.picture.tolist()
    is_new = ~torch.isin(both.entries.picture, old.entries.picture.unique())
    assert torch.equal(both.entries.second[is_new], ten.entries.second[is_new])


def test_a_profile_that_does_not_name_projection_is_one_without_it(tmp_path, monkeypatch, ten):
    """As files were before it could be measured."""
    metadata = Origin.metadata

    def before(origin):
        settings = json.loads(metadata(origin)["settings"])
        del settings["projection"]
        return metadata(origin) | {"settings": json.dumps(settings)}

    with monkeypatch.context() as patch:
        patch.setattr(Origin, "metadata", before)
        fill(tmp_path, pictures(10)[:3])
    assert_same(fill(tmp_path, pictures(10)), ten)


def test_files_that_are_no_shards_are_skipped(tmp_path, caplog):
    import safetensors.torch

    fill(tmp_path, pictures(2))
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    (tmp_path / "notes.txt").write_text("mine")
    assert len(load_folder(tmp_path).entries) == 8
    assert "other.safetensors is skipped" in caplog.text


OTHER_NEGATIVE = [[1.1 * two_points.NEGATIVE[0][0], {}]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": dataclasses.replace(SETTINGS, training_grid=50)}, r"another training_grid \(20, here 50\)"),
        ({"settings": dataclasses.replace(SETTINGS, seed=7)}, r"another seed \(0, here 7\)"),
        ({"settings": dataclasses.replace(SETTINGS, perturb=False)}, r"another perturb \(True, here False\)"),
        ({"settings": dataclasses.replace(SETTINGS, knots=(0.0, 1.0))}, "another knots"),
        ({"settings": dataclasses.replace(SETTINGS, projection=True)}, r"another projection \(False, here True\)"),
        ({"negative": OTHER_NEGATIVE}, "another negative prompt"),
        ({"model": two_points.two_point_model("velocity")}, "another way of sampling.*other kind of prediction"),
    ],
)
def test_profiles_of_other_settings_or_models_refuse_to_merge_and_say_what_differs(tmp_path, change, message):
    fill(tmp_path, pictures(2))
    (whole,) = files(tmp_path)
    with pytest.raises(AnnealingError, match=message):
        fill(tmp_path, pictures(3), **change)
    assert files(tmp_path) == [whole]


def test_a_folder_with_two_profiles_is_refused(tmp_path):
    fill(tmp_path / "one", pictures(2))
    fill(tmp_path / "two", pictures(2), negative=OTHER_NEGATIVE)
    with pytest.raises(AnnealingError, match="another negative prompt"):
        load_folder(tmp_path)


def test_a_picture_with_nan_is_told_kept_out_and_not_measured_again(tmp_path, ten, caplog):
    latents, captions = two_points.pictures(10)
    latents.append(torch.full_like(latents[0], torch.nan))
    those = given_pictures({"samples": torch.stack(latents)}, [*captions, captions[0]])
    fill(tmp_path, those[:10])
    assert_same(fill(tmp_path, those[10:]), ten)
    assert "1 of 11 pictures" in caplog.text and "NaN" in caplog.text
    model = two_points.two_point_model("epsilon")
    assert_same(fill(tmp_path, those, model=model), ten)
    assert model.model.diffusion_model.rows == 0


def test_nan_of_another_precision_is_measured_again(tmp_path, monkeypatch):
    latents = [torch.full_like(latent, torch.nan) for latent in two_points.pictures(1)[0]]
    broken = given_pictures({"samples": torch.stack(latents)}, two_points.pictures(1)[1])
    fill(tmp_path, pictures(2) + broken)
    monkeypatch.setattr(shards, "_precision", lambda model: "torch.float64, None")
    model = two_points.two_point_model("epsilon")
    fill(tmp_path, pictures(2) + broken, model=model)
    assert model.model.diffusion_model.rows == 2 * SETTINGS.samples * (1 + 5)  # one picture's; NaN is not looked into further


def test_a_model_that_predicts_nothing_but_nan_is_found_out_soon(tmp_path):
    latents, captions = two_points.pictures(40)
    those = given_pictures({"samples": torch.full_like(torch.stack(latents), torch.nan)}, captions)
    told = []
    with pytest.raises(AnnealingError, match="all of the first 8 pictures"):
        fill(tmp_path, those, progress=lambda *figures: told.append(figures))
    assert len(told) == 8
    with pytest.raises(AnnealingError, match="no measured pictures without NaN"):
        load_folder(tmp_path)


def test_what_cannot_be_measured_is_refused_in_words(tmp_path):
    with pytest.raises(AnnealingError, match="no pictures"):
        fill(tmp_path, [])
    for negative in ([], [[torch.ones(2, 1, 257), {}]]):
        with pytest.raises(AnnealingError, match="one negative"):
            fill(tmp_path, pictures(1), negative=negative)
    with pytest.raises(AnnealingError, match="fewer than two steps"):
        fill(tmp_path, pictures(1), settings=ProfileSettings((1.0, 0.0)))
    with pytest.raises(AnnealingError, match="no measured pictures"):
        load_folder(tmp_path)
    video = two_points.two_point_model("epsilon")
    video.set_additional_models("ADE", [video.clone()])  # as AnimateDiff-Evolved does
    with pytest.raises(AnnealingError, match="frames of one video"):
        fill(tmp_path, pictures(1), model=video)


def test_it_measures_into_a_folder_in_inference_mode_as_nodes_run(tmp_path, ten):
    with torch.inference_mode():
        inside = pictures(10)
        assert_same(fill(tmp_path, inside), ten)


def test_an_unwritable_place_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AnnealingError, match="could not be written"):
        fill(tmp_path / "file" / "folder", pictures(1))
