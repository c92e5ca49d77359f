"""Names that come with a workflow, perhaps a stranger's: none leads out of its folder, and none breaks the server."""

from __future__ import annotations

import sys
from pathlib import Path

import folder_paths
import pytest
import torch
from annealing_guidance_pack.guidance.trace import AnnealingTrace
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.nodes.files import inside
from annealing_guidance_pack.nodes.fitting import AnnealingScaleSave
from annealing_guidance_pack.nodes.plots import _write_table
from annealing_guidance_pack.nodes.scale import AnnealingScaleLoader, load_scale_by_name
from annealing_guidance_pack.nodes.training import AnnealingProfileLoader
from hypothesis import example, given
from hypothesis import strategies as st
from scales import made_up_network

BAD = [
    *("", " ", ".", "..", "../outside", "a/../../outside", "a/..", "/etc/outside", "//server/share/x", "\\\\server\\share\\x"),
    *("C:\\outside", "C:outside", "\\outside", "..\\outside", "a\0b", "\0", "a\nb", "a\x7fb", "a\u202eb", "\ud800", "a/", "a//b"),
    *("CON", "con", "nul", "NUL.txt", "a/COM1", "LPT9.safetensors", "aux .x", "COM¹", "a.", "a /b", "...", "x" * 300, "é" * 150),
    *("a?b", "a*b", "a|b", "a<b", "file:stream", "~/x/../..", "a" + "/a" * 150),
]
GOOD = ["my_scale", "a/b", "a\\b", "Größe", "日本", "a.b", "a b", "CONSOLE", "community/COM", "~x", "%date%"]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_leads_out_or_that_some_system_refuses_is_refused(tmp_path, name):
    with pytest.raises(AnnealingError, match="name_of_it"):
        inside(tmp_path, name, "name_of_it")


@pytest.mark.parametrize("name", GOOD)
def test_ordinary_names_lie_inside_and_can_be_made(tmp_path, name):
    path = inside(tmp_path, name, "name_of_it")
    path.mkdir(parents=True)
    assert path.is_relative_to(tmp_path) and path != tmp_path


@given(st.text(st.characters(), max_size=30))
@example("..\\..")
def test_any_text_gives_a_path_inside_or_an_error(name):
    folder = Path(__file__).parent
    try:
        path = inside(folder, name, "name_of_it")
    except AnnealingError:
        return
    assert folder in path.parents and folder.resolve() in path.resolve().parents


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_that_leads_out_is_not_followed(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside").mkdir()
    (folder / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    for name in ("link", "link/x"):
        with pytest.raises(AnnealingError, match="leads out"):
            inside(folder, name, "name_of_it")
    (tmp_path / "other").symlink_to(folder, target_is_directory=True)  # the folder itself may be one: a models folder elsewhere
    assert inside(tmp_path / "other", "x", "name_of_it") == tmp_path / "other" / "x"


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """ComfyUI's output and models folders, with a file beside them that must stay as it is."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "annealing_guidance", ([str(tmp_path / "models")], {".safetensors"}))
    (tmp_path / "output").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "outside").write_text("untouched")
    return tmp_path


@pytest.mark.parametrize("name", [name for name in BAD if name.strip()])
def test_no_node_reads_or_writes_under_such_a_name(folders, name):
    before = sorted(folders.rglob("*"))
    for act in (
        lambda: AnnealingScaleSave.execute(made_up_network(), name),
        lambda: load_scale_by_name(name),
        lambda: AnnealingProfileLoader.execute(name),
        lambda: _write_table(AnnealingTrace(), name),
    ):
        with pytest.raises(AnnealingError):
            act()
    assert isinstance(AnnealingScaleLoader.validate_inputs(name), str)
    assert isinstance(AnnealingProfileLoader.validate_inputs(name), str)
    assert AnnealingScaleLoader.fingerprint_inputs(name) is None
    AnnealingProfileLoader.fingerprint_inputs(name)
    assert sorted(folders.rglob("*")) == before and (folders / "outside").read_text() == "untouched"


@pytest.mark.parametrize("value", [["a"], {"a": 1}, 7, 1.5, True, [[]]], ids=str)
def test_a_name_that_is_no_text_is_refused_before_anything_runs(value):
    for node in (AnnealingScaleLoader, AnnealingProfileLoader):
        assert isinstance(node.validate_inputs(value), str)


def test_a_saved_scale_is_where_it_was_said_to_be(folders):
    with torch.inference_mode():
        AnnealingScaleSave.execute(made_up_network(), "a/b")
    assert [path.relative_to(folders).as_posix() for path in folders.rglob("*.safetensors")] == ["models/a/b_00001.safetensors"]
