"""Makes the ComfyUI that COMFYUI_PATH names importable in the test process, on the CPU and with its own scratch folders."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from devkit.torchvision_shim import define_missing_operators


def comfyui_path() -> Path | None:
    """The folder that COMFYUI_PATH names; None where the variable is not set."""
    value = os.environ.get("COMFYUI_PATH")
    return Path(value).resolve() if value else None


def load(path: Path) -> None:
    """Put ComfyUI on `sys.path` and import enough of it that any later import order works.

    ComfyUI reads its arguments when `comfy.cli_args` is first imported, so they are set for just that import.
    Models, outputs and settings go to a temporary folder: tests never write into the ComfyUI that they use.
    """
    scratch = tempfile.mkdtemp(prefix="annealing-tests-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    define_missing_operators()
    sys.path.insert(0, str(path))
    own_arguments = sys.argv
    sys.argv = ["main.py", "--cpu", "--base-directory", scratch, "--database-url", "sqlite:///:memory:"]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = own_arguments
    # ComfyUI's `nodes` puts `comfy/`, which has a `utils.py`, first on the path: the package `utils` must be there before.
    importlib.import_module("utils.extra_config")
