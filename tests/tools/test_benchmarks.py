"""The benchmark of costs at its smallest: it runs, and its figures are about what they say."""

from __future__ import annotations

import json
import math
import sys

import pytest

pytest.importorskip("comfy.samplers", reason="needs a ComfyUI: run python tools/dev.py test, or set COMFYUI_PATH")
import cost
from common import paired, stand_in
from common.start import one_start
from common.subject import Subject

SMALL = (2, 4, 8, 8)


@pytest.fixture
def run_cost(tmp_path, monkeypatch):
    """The benchmark's command in this process, which has a ComfyUI already; returns what it wrote."""
    import comfy.utils

    monkeypatch.setattr(cost, "load_hosts", lambda cpu: None)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)
    monkeypatch.setattr(cost, "LATENTS", {"small": SMALL})
    monkeypatch.setattr(cost, "WAYS", {way: cost.WAYS[way] for way in ("euler", "dpmpp_2m")})
    path = tmp_path / "cost.json"

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cost.py", "--seconds", "0.01", "--output", str(path), *arguments])
        cost.main()
        return json.loads(path.read_text())

    return run


def test_a_step_costs_time_and_operations_but_no_predictions_and_keeps_only_its_trace(run_cost):
    rows = run_cost("--parts", "step", "--latents", "small")["step"]
    assert set(rows) == {"small, euler", "small, dpmpp_2m"}
    for row in rows.values():
        # What is added may come out below nothing in a hundredth of a second: that there are figures, and in order, must do.
        assert row["added_ms_low"] <= row["added_ms"] <= row["added_ms_high"] and math.isfinite(row["added_ms"])
        assert row["predictions"] == 1
        assert row["added_operations"] > 20  # the network alone has that many
        assert row["trace_bytes_per_step"] == 5 * 4 * SMALL[0]
        # The trace's sigma and timestep are views of their level's row, five values of which the trace keeps alive: eight in all.
        assert 0 < row["kept_bytes_per_step"] <= 8 * 4 * SMALL[0]
    # No copy of a latent; extrapolating solvers need the pull of two calls.
    assert rows["small, euler"]["added_peak_bytes"] < rows["small, euler"]["latent_bytes"]
    assert rows["small, dpmpp_2m"]["added_operations"] > rows["small, euler"]["added_operations"]


@pytest.mark.slow
def test_the_start_brings_no_modules_but_the_packs_own_and_pythons(tmp_path):
    """Nothing heavy (matplotlib, say) before it is needed. That ComfyUI has read the pack at all, one_start asserts."""
    start = one_start(cpu=True, bytecode=str(tmp_path))
    assert set(start["brought"]) <= sys.stdlib_module_names
    assert start["modules"] > 20


def test_parts_that_were_measured_before_on_this_machine_stay(run_cost, monkeypatch):
    monkeypatch.setattr(cost, "measure_import", lambda options: {"start": {"load_ms": 1.0}})
    run_cost("--parts", "import")
    monkeypatch.setattr(cost, "measure_growth", lambda options: {"batch": {"added_ms": 2.0}})
    results = run_cost("--parts", "growth")
    assert results["import"] == {"start": {"load_ms": 1.0}} and results["growth"] == {"batch": {"added_ms": 2.0}}


@pytest.mark.parametrize("host", ["KSampler", "guider"])
def test_pictures_take_the_same_evaluations_with_and_without_annealing(host):
    row = Subject.shapes("epsilon", 2).row(host, 0.01)
    assert row["evaluations"] == row["cfg_evaluations"] == 2 * 2 * 10
    assert row["pictures_per_second"] > 0 and row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


def test_operations_are_counted_but_not_views():
    import torch

    x = torch.ones(3, 4)
    assert stand_in.operations(lambda: (x + 1).exp()) == 2
    assert stand_in.operations(lambda: torch.broadcast_tensors(x.flatten()[2:].view(2, 5), x[:1, :1])[0].float()) == 0


def test_memory_is_the_most_at_once_and_what_is_left():
    import torch

    kept = []

    def job():
        kept.append(torch.ones(1000))
        torch.ones(2000).exp()

    most, left = stand_in.memory(job)
    assert left == 4000 and 20000 <= most < 20100


def test_pairs_are_compared_pair_by_pair():
    pairs = paired.Pairs([1.0, 10.0, 2.0], [2.0, 20.0, 4.0], [1.0, 1.0, 1.0], [3.0, 3.0, 3.0])
    assert pairs.ratios() == {f"{name}{end}": x for name, x in (("ratio", 2), ("cpu_ratio", 3)) for end in ("", "_low", "_high")}
    assert pairs.added_ms()["added_ms"] == 2000 and pairs.added_ms()["added_ms_high"] == 10000
