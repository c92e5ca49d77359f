"""What a measuring says of its pace: counted from the first picture of this run, in words that people say."""

from __future__ import annotations

import pytest
from annealing_guidance_pack.training import console, pace


@pytest.fixture
def clock(monkeypatch):
    times = iter([0.0, 50.0, 52.0, 54.0])  # 50 s for loading the model and the first picture
    monkeypatch.setattr(pace.time, "monotonic", lambda: next(times))


def test_pace_and_time_left_count_from_the_first_picture_of_this_run(clock):
    run = pace.Pace()
    assert [run.words(done, 149) for done in (100, 101, 105, 109)] == [
        "100 of 149 pictures",
        "101 of 149 pictures",
        "105 of 149 pictures, 2.0 pictures/s, 22 s left",
        "109 of 149 pictures, 2.0 pictures/s, 20 s left",
    ]


def test_the_command_prints_one_line_that_ends_with_the_last_picture(capsys):
    line = console.PictureLine("profile")
    for done in range(4):
        line(done, 3)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and printed.endswith("\n") and "\rprofile: 3 of 3 pictures" in printed


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (7260, "2 h 1 min")])
def test_durations_in_words(seconds, words):
    assert pace.duration_in_words(seconds) == words
