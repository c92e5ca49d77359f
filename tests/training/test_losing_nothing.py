"""What really happens to processes that fill a profile's folder: killed, out of space, several at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
import torch
import two_points
from annealing_guidance_pack.models import whole_file
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.training import shards
from annealing_guidance_pack.training.pictures import given_pictures
from annealing_guidance_pack.training.profile import Profile, ProfileSettings
from annealing_guidance_pack.training.shards import load_folder, measure, measure_into

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are forked")

SETTINGS = ProfileSettings(20, samples=4, knots=(0.0, 1.0, 4.0))
COUNT = 24
PATIENCE = 60  # seconds


def pictures() -> list:
    latents, captions = two_points.pictures(COUNT)
    return given_pictures({"samples": torch.stack(latents)}, captions)


def fill(folder) -> Profile:
    return measure_into(folder, two_points.two_point_model("epsilon"), pictures(), two_points.NEGATIVE, SETTINGS)


@pytest.fixture(scope="module")
def expected() -> Profile:
    return measure(two_points.two_point_model("epsilon"), pictures(), two_points.NEGATIVE, SETTINGS)


def assert_same(one: Profile, other: Profile) -> None:
    for name, tensor in vars(one.entries).items():
        assert torch.equal(tensor, getattr(other.entries, name)), name


def start(work, *arguments) -> multiprocessing.Process:
    def run() -> None:
        torch.set_num_threads(1)  # a forked process has no other threads left
        try:
            work(*arguments)
        except AnnealingError as error:
            print(error, flush=True)
            os._exit(7)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def ended(process: multiprocessing.Process) -> int:
    process.join(PATIENCE)
    assert process.exitcode is not None, "the process still runs"
    return process.exitcode


def measured(folder) -> int:
    """Pictures on disk, as another process sees them."""
    return len(shards._Folder(folder, None, "").measured)


def fill_and_die_in_a_write(folder) -> None:
    writes = []

    def replace(*paths) -> None:
        writes.append(paths)
        if len(writes) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        real_replace(*paths)

    real_replace, whole_file.os.replace = os.replace, replace
    fill(folder)


def test_a_process_killed_in_the_middle_of_a_write_loses_only_the_picture_it_was_writing(tmp_path, expected):
    assert ended(start(fill_and_die_in_a_write, tmp_path)) == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()].count(".part") == 1  # really in the middle
    assert measured(tmp_path) == 4
    assert_same(fill(tmp_path), expected)


def fill_but_for_the_last(folder) -> None:
    """Writes as many pictures as it can and waits before the last one, so that however late it is killed, it still runs."""

    def replace(*paths) -> None:
        if measured(folder) == COUNT - 1:
            time.sleep(10 * PATIENCE)
        real_replace(*paths)

    real_replace, whole_file.os.replace = os.replace, replace
    fill(folder)


def test_a_process_killed_at_any_moment_loses_nothing_that_it_told_as_done(tmp_path, expected):
    for count in (3, 9, 17):
        process = start(fill_but_for_the_last, tmp_path)
        deadline = time.monotonic() + PATIENCE
        while (seen := measured(tmp_path)) < count and time.monotonic() < deadline:
            time.sleep(0.003)
        process.kill()
        assert ended(process) == -signal.SIGKILL
        assert measured(tmp_path) >= seen >= count
    assert_same(fill(tmp_path), expected)


def fill_with_little_space(folder) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))
    fill(folder)


def test_without_space_it_ends_with_a_sentence_and_all_that_was_written_counts(tmp_path, expected, capfd):
    assert ended(start(fill_with_little_space, tmp_path)) == 7
    said = capfd.readouterr().out
    before = measured(tmp_path)
    assert 2 < before < COUNT
    assert "could not be written: File too large" in said and f"it goes on with what is on disk, {before} pictures" in said
    assert not list(tmp_path.glob(".*.part"))
    assert_same(fill(tmp_path), expected)


def fill_with_the_other(folder, both_are_here) -> None:
    """From a common start, and slowly enough that neither has done everything before the other gets the processor."""

    def replace(*paths) -> None:
        real_replace(*paths)
        time.sleep(0.1)

    real_replace, whole_file.os.replace = os.replace, replace
    both_are_here.wait(PATIENCE)
    fill(folder)


def test_two_profilers_in_one_folder_share_the_work_and_end_with_the_union(tmp_path, expected):
    both_are_here = multiprocessing.get_context("fork").Barrier(2)
    both = [start(fill_with_the_other, tmp_path, both_are_here) for _ in range(2)]
    assert [ended(process) for process in both] == [0, 0]
    assert_same(load_folder(tmp_path), expected)
    folder = shards._Folder(tmp_path, None, "")
    done = [len(shard.pictures) for shard in folder._shards.values()]
    assert len(done) == 2 and COUNT <= sum(done) < 1.5 * COUNT, done
