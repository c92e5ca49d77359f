"""The archive that users get: what is in it, that it is allowed in ComfyUI's registry, and that it works where it is unpacked."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import re
import shutil
import sys
import urllib.request
import zipfile
from pathlib import Path

import annealing_guidance_pack as pack
import demo
import pytest
from client import run_workflow
from devkit import SetupError, archive
from devkit.host import Host
from devkit.server import PACK_NAME, Server
from PIL import Image

ROOT = Path(pack.__file__).parent
MEGABYTE = 10**6

# Everything that may be in it, by folder. What is new here is new on every user's disk.
ALLOWED = [
    r"(LICENSE|README\.md|CHANGELOG\.md|SECURITY\.md|__init__\.py|pyproject\.toml|requirements\.txt)",
    r"(guidance|models|nodes|plots|shapes|training)/[a-z_]+\.py",
    r"(models|shapes)/weights/[a-z_]+\.safetensors",
    r"training/prompts\.txt",
    r"tools/train_scale\.py|tools/devkit/(__init__|in_process|torchvision_shim)\.py",
    r"docs/(\w+/)*\w+\.(md|png|jpg|svg)",
    r"web/.*\.(js|css|md|png|jpg|svg)",
    r"locales/[A-Za-z-]+/\w+\.json",
    r"workflows/.*\.(json|jpg)",
]


@pytest.fixture(scope="module")
def files() -> list[str]:
    try:
        return archive.archive_files(ROOT)
    except SetupError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """The archive as `comfy node pack` makes it."""
    target = tmp_path_factory.mktemp("dist") / "pack.zip"
    try:
        archive.tool_python("comfy-cli")
    except (SetupError, OSError) as error:
        pytest.skip(f"comfy-cli cannot be installed here: {error}")
    archive.pack(ROOT, target)
    return target


@pytest.fixture(scope="module")
def installed(packed, tmp_path_factory) -> Path:
    """The base folder of a clean ComfyUI, with the archive unpacked into its custom_nodes/."""
    base = tmp_path_factory.mktemp("clean")
    shutil.unpack_archive(packed, base / "custom_nodes" / PACK_NAME)
    return base


def test_it_carries_only_what_runs(files):
    assert [name for name in files if not any(re.fullmatch(pattern, name) for pattern in ALLOWED)] == []
    assert {"__init__.py", "LICENSE", "README.md", "pyproject.toml", "tools/train_scale.py"} <= set(files)
    assert not any("judge" in name or name.endswith(".pt") for name in files)


def test_it_is_small(files):
    assert sum((ROOT / name).stat().st_size for name in files) < 25 * MEGABYTE


def test_the_pages_in_it_lead_nowhere_that_it_does_not_carry(files):
    pages = [name for name in files if name.endswith(".md")]
    missing = {}
    for page in pages:
        links = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8"))
        targets = [
            (ROOT / page).parent.joinpath(link).resolve() for link in links if "://" not in link and not link.startswith("/")
        ]
        left = [str(target) for target in targets if target.relative_to(ROOT).as_posix() not in files]
        missing |= {page: left} if left else {}
    assert not missing


def test_every_module_in_it_imports_only_what_it_carries(files):
    """Relative imports lead to files of the archive; tools/train_scale.py imports from the folder that it lies in."""
    missing = []
    for name in files:
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))) if name.endswith(".py") else []:
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("devkit")):
                folder = Path(name).parents[max(node.level - 1, 0)].joinpath(*(node.module or "").split("."))
                carried = {f"{folder.as_posix()}.py", f"{folder.as_posix()}/__init__.py"} & {*files}
                # `from . import x`: x may be a module
                carried |= {f"{(folder / alias.name).as_posix()}.py" for alias in node.names} & {*files}
                missing += [] if carried else [f"{name}: {ast.unparse(node)}"]
    assert missing == []


def test_comfyuis_own_command_validates_it_and_packs_just_these_files(packed, files):
    with zipfile.ZipFile(packed) as zipped:
        assert sorted(zipped.namelist()) == files
        assert all(zipped.read(name) == (ROOT / name).read_bytes() for name in files)


def test_what_the_registry_forbids_is_refused(tmp_path, monkeypatch):
    """Its own validation only warns."""
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "LICENSE").touch()
    (tmp_path / ".comfyignore").touch()
    (tmp_path / "bad.py").write_text("exec('1')  # noqa: S102\n")
    try:
        archive.tool_python("comfy-cli")
    except (SetupError, OSError) as error:
        pytest.skip(f"comfy-cli cannot be installed here: {error}")
    archive.git(tmp_path, "init", "--quiet")
    archive.git(tmp_path, "add", "--all")
    with pytest.raises(SetupError, match="exec"):
        archive.pack(tmp_path, tmp_path / "dist" / "pack.zip")


@pytest.mark.server
@pytest.mark.slow
def test_unpacked_into_a_clean_comfyui_it_lists_its_nodes_and_makes_a_picture(comfyui, installed):
    host = Host(comfyui, Path(sys.executable))
    with Server(host, installed, installed / "custom_nodes" / PACK_NAME) as server:
        with urllib.request.urlopen(f"{server.address}/object_info", timeout=60) as response:
            offered = json.load(response)
        assert node_ids() <= offered.keys(), server.log.read_text()[-2000:]
        assert {offered[name]["python_module"] for name in node_ids()} == {f"custom_nodes.{PACK_NAME}"}
        template = json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))
        template["sigmas"]["inputs"]["steps"] = 4
        saved = run_workflow(server.address, demo.workflow_for(template, "epsilon", demo.PROMPTS[0], seed=1))
        pictures = [Image.open(io.BytesIO(contents[0])) for contents in saved.values()]
        assert {picture.size for picture in pictures} == {(128, 128)}
        with urllib.request.urlopen(f"{server.address}/extensions/{PACK_NAME}/annealing_chart.js", timeout=60) as response:
            assert response.read() == (ROOT / "web" / "annealing_chart.js").read_bytes()


def node_ids() -> set[str]:
    return {node.GET_SCHEMA().node_id for node in asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())}


# --- ComfyUI Manager's scanner, which reads the source without running it --------------------------------------------


def scanned_ids(source: str) -> set[str]:
    """Node ids as the scanner finds them: a class whose direct base is io.ComfyNode, a literal node_id in define_schema."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in ("io.ComfyNode", "ComfyNode") for base in node.bases):
            schema = next(item for item in node.body if getattr(item, "name", None) == "define_schema")
            calls = [
                call for call in ast.walk(schema) if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("Schema")
            ]
            keywords = [keyword.value for call in calls for keyword in call.keywords if keyword.arg == "node_id"]
            assert keywords and isinstance(keywords[0], ast.Constant), f"{node.name} has no literal node_id"
            found.add(keywords[0].value)
    return found


def test_the_scanner_finds_every_node_and_nothing_else(files, comfyui):
    sources = [(ROOT / name).read_text(encoding="utf-8") for name in archive.git(ROOT, "ls-files", "-z") if name.endswith(".py")]
    assert set().union(*map(scanned_ids, sources)) == node_ids()
    # So no node_list.json is needed. Where both were defined, ComfyUI would take the mappings and leave the entry point.
    carried = [(ROOT / name).read_text(encoding="utf-8") for name in files if name.endswith(".py")]
    assert not any("NODE_CLASS_MAPPINGS" in source for source in carried)


def test_nothing_runs_or_is_installed_at_install_time(files):
    assert not {"install.py", "prestartup_script.py", "enable.py", "disable.py", "uninstall.py"} & {
        Path(name).name for name in files
    }
    for name in files:
        if name.endswith(".py"):
            imported = set()
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
                imported |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
                imported |= {node.module or ""} if isinstance(node, ast.ImportFrom) and not node.level else set()
            assert not {"subprocess", "pip", "ctypes", "pickle", "marshal"} & {part.split(".")[0] for part in imported}, name


# --- the metadata ----------------------------------------------------------------------------------------------------


def test_the_metadata_is_complete():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for key in ("PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui", "Repository"):
        assert re.search(rf'^{key} = "[^"]+"$', text, re.MULTILINE), key
    assert not re.search(r"^web = ", text, re.MULTILINE)  # named in __init__.py: scripts would load twice
    wanted = re.search(r"^dependencies = (\[.*\])$", text, re.MULTILINE)[1]
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert json.loads(wanted) == [line for line in listed if not line.startswith("#")]
    major, minor, patch = map(int, archive.version_of(ROOT).split("."))
    assert (major, minor, patch) >= (0, 1, 0)


def test_icon_and_banner_have_the_sizes_that_the_registry_asks_for():
    with Image.open(ROOT / "docs" / "icon.png") as icon, Image.open(ROOT / "docs" / "banner.png") as banner:
        assert icon.size == (400, 400)
        assert banner.width * 9 == banner.height * 21


def test_a_release_is_refused_while_anything_is_left_to_fill_in(tmp_path):
    (tmp_path / "pyproject.toml").write_text('version = "1.2.3"\nPublisherId = "OWNER"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [1.2.2] - 2026-01-01\n")
    with pytest.raises(SetupError, match=r"OWNER.*\[1\.2\.3\]"):
        archive.require_releasable(tmp_path)
    (tmp_path / "pyproject.toml").write_text('version = "1.2.3"\nPublisherId = "somebody"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.3] - 2026-02-01\n\nNew.\n\n## [1.2.2] - 2026-01-01\n\nOld.\n")
    archive.require_releasable(tmp_path)
    assert archive.release_notes(tmp_path) == "New."


def test_the_bill_of_materials_lists_every_file_and_what_is_needed_and_fetched(files):
    bill = archive.bill_of_materials(ROOT)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    contained = {part["name"]: part["hashes"][0]["content"] for part in bill["metadata"]["component"]["components"]}
    assert sorted(contained) == files and all(len(value) == 64 for value in contained.values())
    outside = {part["name"]: part.get("scope") for part in bill["components"]}
    assert outside == {
        **dict.fromkeys(["matplotlib", "numpy", "safetensors", "torch"]),
        "SDXL by the paper's authors (downloads 0.6 MB)": "optional",
    }
    json.dumps(bill)
