"""What all figures share: pictures as ComfyUI has them, nothing global touched, a sentence where matplotlib is missing."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from annealing_guidance_pack.plots import figure

ROOT = Path(figure.__file__).resolve().parents[1]


def draw():
    made = figure.new_figure(320, 160)
    axes = made.subplots()
    axes.plot([0, 1], [2, 3], color="#440154", linestyle="-", linewidth=2, label="line")
    axes.legend(loc="upper left")
    figure.dress(axes, "title", "across", "up")
    return made


def test_a_figure_becomes_an_image_of_its_size():
    image = figure.picture_of(draw)
    assert image.shape == (1, 160, 320, 3) and image.dtype == torch.float32
    assert image.min() >= 0 and image.max() == 1
    assert image.amin() < 0.3  # something is drawn on the white


def test_other_users_styles_are_neither_seen_nor_changed():
    matplotlib = pytest.importorskip("matplotlib")
    plain = figure.picture_of(draw)
    with matplotlib.rc_context():
        matplotlib.rcParams.update(
            {"axes.facecolor": "black", "text.color": "white", "font.family": "serif", "axes.grid": False, "figure.dpi": 37}
            | {"legend.facecolor": "red", "xtick.color": "white", "savefig.facecolor": "black", "axes.spines.top": True}
        )
        before = copy.deepcopy(dict(matplotlib.rcParams))
        styled = figure.picture_of(draw)
        assert dict(matplotlib.rcParams) == before
    assert torch.equal(styled, plain)


def test_matplotlib_is_imported_for_a_figure_only_and_pyplot_never():
    code = (
        "import sys; sys.path.insert(0, 'tools');"
        "from devkit.in_process import import_pack; from pathlib import Path;"
        "import importlib; import_pack(Path('.').resolve());"
        "figure = importlib.import_module('annealing_guidance_pack.plots.figure');"
        "before = 'matplotlib' in sys.modules; figure.picture_of(figure.new_figure);"
        "print(before, 'matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


def test_without_matplotlib_the_picture_says_so(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    image = figure.picture_of(draw)
    assert image.shape[0] == 1 and image.shape[3] == 3 and image.dtype == torch.float32
    assert (image < 0.5).any() and image[0, :4].min() == 1  # writing, with a margin
    assert "matplotlib is not installed" in caplog.text and "pip install matplotlib" in caplog.text
    assert figure.preview_of(draw) is None


def test_a_preview_is_what_the_progress_bar_takes():
    kind, picture, size = figure.preview_of(draw)
    assert (kind, picture.size, size) == ("PNG", (320, 160), 320)
