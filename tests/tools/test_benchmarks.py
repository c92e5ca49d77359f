"""The benchmark of costs at its smallest: it runs, and its figures are about what they say."""

from __future__ import annotations

import math
import sys

import numpy
import pytest

pytest.importorskip("comfy.samplers", reason="needs a ComfyUI: run python tools/dev.py test, or set COMFYUI_PATH")
import cost
import torch
from common import stand_in, turns
from common.demo import Demo

SMALL = (2, 4, 8, 8)


def test_a_step_costs_time_and_operations_but_no_predictions_and_keeps_only_its_trace():
    rows = {way: cost.step_row(SMALL, way, 0.01) for way in ("euler", "dpmpp_2m")}
    for row in rows.values():
        # What is added may come out below nothing in a hundredth of a second: that there are figures, and in order, must do.
        assert row["added_ms_low"] <= row["added_ms"] <= row["added_ms_high"] and math.isfinite(row["added_ms"])
        assert row["predictions"] == 1
        assert row["added_operations"] > 20  # the network alone has that many
        assert row["trace_bytes_per_step"] == 5 * 4 * SMALL[0]
    # No copy of a latent; extrapolating solvers need the pull of two calls.
    assert rows["euler"]["added_peak_bytes"] < rows["euler"]["latent_bytes"]
    assert rows["dpmpp_2m"]["added_operations"] > rows["euler"]["added_operations"]


@pytest.mark.slow
def test_the_start_brings_no_modules_but_the_packs_own_and_pythons(tmp_path):
    """Nothing heavy (matplotlib, say) before it is needed. That ComfyUI has read the pack at all, the start itself asserts."""
    _, modules = cost.one_start(str(tmp_path))
    own = {name for name in modules if name.startswith(str(cost.ROOT).replace(".", "_x_"))}  # what ComfyUI calls the pack
    assert {name.partition(".")[0] for name in modules - own} <= sys.stdlib_module_names
    assert len(own) > 20


def test_pictures_by_ksampler_are_compared():
    demo = Demo("epsilon", 2)
    row = cost.picture_row(demo.model, [[demo.positive, {}]], demo.negative, demo.scale, (2, 4, 16, 16), 0.01)
    assert 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


def test_operations_are_counted_but_not_views():
    x = torch.ones(3, 4)
    assert stand_in.Watched(lambda: (x + 1).exp()).operations == 2
    views = stand_in.Watched(lambda: torch.broadcast_tensors(x.flatten()[2:].view(2, 5), x[:1, :1])[0].float())
    assert views.operations == views.peak_bytes == 0


def test_memory_is_the_most_at_once():
    kept = []

    def job():
        kept.append(torch.ones(1000))
        torch.ones(2000).view(2, 1000).exp()
        torch.ones(1000).exp_()

    assert stand_in.Watched(job).peak_bytes == 4 * (1000 + 2 * 2000)


def test_each_goes_first_in_every_other_pair():
    order = []
    times = turns.in_turns((lambda: order.append(0), lambda: order.append(1)), 0.0)
    assert times.shape == (turns.FEWEST_PAIRS, 2, 2) and (times >= 0).all()
    assert order == [0, 1, *[1, 0, 0, 1] * (turns.FEWEST_PAIRS // 2), 1, 0]


def test_a_median_lies_within_its_interval():
    found = turns.with_interval("x", numpy.array([1.0, 10.0, 2.0]))
    assert found["x_low"] <= found["x"] == 2.0 <= found["x_high"] == 10.0
