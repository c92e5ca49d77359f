"""The profile and the fit on the Shapes models themselves, and the scales that are bundled for them."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from annealing_guidance_pack.models.scale_file import load_scale
from annealing_guidance_pack.training import bundled_scales, shards
from annealing_guidance_pack.training.fit import FitSettings
from annealing_guidance_pack.training.knots import Tabulated
from annealing_guidance_pack.training.once import own_grid
from annealing_guidance_pack.training.profile import Profile, ProfileSettings
from annealing_guidance_pack.training.shards import measure
from annealing_guidance_pack.training.training_grid import training_grid

ROOT = Path(__file__).resolve().parents[2]
PICTURES = 16


@pytest.fixture(scope="module", params=["epsilon", "flow"])
def variant(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def profile(variant) -> Profile:
    return bundled_scales.measure_shapes(variant, PICTURES)


@pytest.mark.parametrize("grid", ["own", "paper 4", "paper 20", "paper 50", "karras 10", "simple 20"])
def test_the_tabulated_second_term_is_the_model_s_own_on_every_grid(variant, grid):
    model, clip, vae = bundled_scales.load_shapes(variant)
    model_sampling = model.get_model_object("model_sampling")
    if grid == "own":
        levels = own_grid(model)
    else:
        levels = training_grid(model_sampling, int(grid.split()[1]), grid.split()[0])
    pictures = bundled_scales.training_pictures(clip, vae, PICTURES, seed=0)
    empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    settings = ProfileSettings(levels, samples=2)
    profile = measure(model, pictures, empty, settings)
    for two in ((0.35, 0.7), (1.05, 2.2)):  # a table's ends are measured
        direct = measure(model, pictures, empty, dataclasses.replace(settings, knots=two)).entries
        torch.testing.assert_close(direct.first, profile.entries.first, rtol=1e-4, atol=1e-6)
        for scale, second in zip(two, (direct.second[:, 0], direct.second[:, -1]), strict=True):
            tabulated = Tabulated(settings.knots, profile.entries.second)(torch.full((len(second),), scale))
            torch.testing.assert_close(tabulated.mean(), second.mean(), rtol=0.005, atol=0)
            torch.testing.assert_close(tabulated, second, rtol=0.02, atol=0)


def test_the_command_writes_a_scale_that_lambda_moves(variant, profile, tmp_path, capsys):
    quick = FitSettings(steps=200, batch_size=256, hidden_width=32, depth=1)
    bundled_scales.fit_shapes(variant, profile, quick, tmp_path)
    scale = load_scale(tmp_path / f"shapes_{variant}.safetensors")
    at = profile.entries.timestep, profile.entries.gap_norm
    assert scale(*at, 0.0).mean() < scale(*at, 0.8).mean()
    assert scale.info.projection  # as the profile was measured
    assert "lambda 0.4" in capsys.readouterr().out


def test_the_bundled_scale_belongs_to_the_model(variant):
    model, _, _ = bundled_scales.load_shapes(variant)
    info = load_scale(bundled_scales.WEIGHTS / model.model.model_config.annealing_scale).info
    assert info.prediction == {"epsilon": "epsilon", "flow": "velocity"}[variant]
    assert info.reference_numel == 4 * 16 * 16
    assert info.training_grid == pytest.approx(own_grid(model))
    assert info.projection
    assert info.licence == "Apache-2.0"


def test_profiles_that_are_there_are_not_measured_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bundled_scales, "FitSettings", functools.partial(FitSettings, steps=10, hidden_width=8, depth=0))
    command = ["flow", "--pictures", "16", "--profiles", str(tmp_path), "--output", str(tmp_path)]
    bundled_scales.main(command)
    (shard,) = (tmp_path / "shapes_flow").iterdir()
    monkeypatch.setattr(shards, "measure_picture", None)
    bundled_scales.main(command)
    assert (tmp_path / "shapes_flow.safetensors").is_file()
    assert list((tmp_path / "shapes_flow").iterdir()) == [shard]


def test_training_pictures_are_the_same_for_a_seed():
    _, clip, vae = bundled_scales.load_shapes("flow")
    one, again = (bundled_scales.training_pictures(clip, vae, 4, seed=1) for _ in range(2))
    assert [picture.identity for picture in one] == [picture.identity for picture in again]
    assert one[0].make()[0].shape == (4, 16, 16)


def test_the_command_tells_a_user_s_mistake_in_one_sentence(comfyui, tmp_path):
    (tmp_path / "shapes_flow").touch()  # in the place of the folder
    command = [sys.executable, "-m", "devkit.in_process", "training.bundled_scales", "flow"]  # as `dev.py scale flow` does
    command += ["--pictures", "8", "--profiles", str(tmp_path)]
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui), "PYTHONPATH": str(ROOT / "tools")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "could not be written" in done.stderr and "Traceback" not in done.stderr
