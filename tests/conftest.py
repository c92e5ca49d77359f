"""Shared fixtures. The pack's root is imported as the package `annealing_guidance_pack`, as ComfyUI imports it: by path."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from devkit import SetupError
from devkit.host import Host
from devkit.in_process import import_comfyui, import_pack
from devkit.server import Server, base_folder
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# A deadline per example would fail at random on a machine that is busy with something else. The same examples in each run, so
# that a failure is the change's own; `--hypothesis-profile explore` draws new ones, and more.
settings.register_profile("pack", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, derandomize=False, max_examples=1000)
settings.load_profile("pack")

COMFYUI = Path(os.environ["COMFYUI_PATH"]).resolve() if os.environ.get("COMFYUI_PATH") else None
if COMFYUI:
    try:
        import_comfyui(COMFYUI, cpu=True)
    except SetupError as error:
        sys.exit(f"dev.py test: {error}")
    # ComfyUI's own nodes in the order of its own start: some of their modules import each other, and taken alone, in another
    # order, they cannot be imported. It logs those that lack a package; the tests that need one say so.
    logging.disable(logging.ERROR)
    asyncio.run(importlib.import_module("nodes").init_builtin_extra_nodes())
    logging.disable(logging.NOTSET)
else:
    # These folders test code that imports ComfyUI. `python tools/dev.py test` always provides one.
    collect_ignore = ["beside", "benchmarks", "compatibility", "guidance", "hosts", "nodes", "plots", "shapes", "training"]
import_pack(ROOT)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-snapshot", action="store_true", help="take over changes of the nodes that CHANGELOG.md names")


def pytest_report_header() -> str:
    if COMFYUI is None:
        return "ComfyUI: none (COMFYUI_PATH is not set), so only what needs no ComfyUI is tested; see python tools/dev.py test"
    return f"ComfyUI: {COMFYUI}"


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The real ComfyUI's folder; `import comfy...` works in tests that ask for this."""
    if COMFYUI is None:
        pytest.skip("needs a ComfyUI: run python tools/dev.py test, or set COMFYUI_PATH")
    return COMFYUI


@pytest.fixture(scope="session")
def official_checkpoint() -> Path:
    """The authors' `checkpoint.pt`. It has no licence, so it is never in the repository: looked for, fetched, or skipped."""
    from annealing_guidance_pack.models import catalogue
    from annealing_guidance_pack.models.errors import AnnealingError

    named = os.environ.get("ANNEALING_OFFICIAL_CHECKPOINT")
    beside = ROOT.parent / "shared" / "official" / "checkpoint.pt"
    for path in ([Path(named)] if named else []) + [beside]:
        if path.is_file():
            return path
    # The pack's own folder: of the ComfyUI under test (only read), then of the one that tools/dev.py makes.
    folders = [host / "models" / "annealing_guidance" for host in (COMFYUI, base_folder(ROOT)) if host]
    try:
        return catalogue.find(catalogue.OFFICIAL_SDXL, folders) or catalogue.fetch(catalogue.OFFICIAL_SDXL, folders[-1])
    except AnnealingError as error:
        pytest.skip(f"the authors' network is not here and cannot be fetched: {error}")


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running ComfyUI on the CPU with this pack in it: one for the whole run."""
    host = Host(comfyui, Path(sys.executable))
    with Server(host, tmp_path_factory.mktemp("server"), ROOT) as running:
        yield running


@pytest.fixture(autouse=True)
def _trained_scales_go(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test has the server train is gone after it: else later ones, whose scale_model is unconnected, would find it."""
    if "server" not in request.fixturenames:
        yield
        return
    folder = request.getfixturevalue("server").base / "models" / "annealing_guidance"
    before = set(folder.rglob("*.safetensors"))
    yield
    for path in set(folder.rglob("*.safetensors")) - before:
        path.unlink()
