"""models/annealing_guidance/ in a test's own folder, and a training that is brief."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import folder_paths
from annealing_guidance_pack.nodes import scale, train_once
from annealing_guidance_pack.training import once
from annealing_guidance_pack.training.fit import FitSettings


def use_scales_folder(tmp_path: Path, monkeypatch) -> Path:
    """The folder, which is yet to be made."""
    path = tmp_path / "annealing_guidance"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, scale.FOLDER, ([str(path)], scale.EXTENSIONS))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return path


def train_briefly(monkeypatch) -> None:
    """What Train Annealing Scale does, with few pictures, steps and weights."""
    monkeypatch.setattr(train_once, "FIT", FitSettings(steps=100, batch_size=64, hidden_width=16, depth=1))
    monkeypatch.setattr(once, "SAMPLING", dataclasses.replace(once.SAMPLING, steps=2))
    monkeypatch.setattr(once, "SAMPLES", 4)
    for module in (once, train_once):
        monkeypatch.setattr(module, "EFFORTS", {"quick": 16, "normal": 32, "thorough": 64})
