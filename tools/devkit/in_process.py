"""ComfyUI and the pack inside the running process, without a server: for tests and training. Needs ComfyUI's own Python."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from . import ROOT, SetupError
from .torchvision_shim import define_missing_operators

PACK = "annealing_guidance_pack"


def import_comfyui(folder: Path, cpu: bool, arguments: Sequence[str] = ()) -> None:
    """Make `import comfy...` work, in any order, as ComfyUI's own start does.

    ComfyUI reads its arguments when `comfy.cli_args` is first imported, so they are set for just that import.
    Its models, outputs and settings go to a temporary folder: nothing is written into the ComfyUI that is used.
    arguments: more of main.py's.
    SetupError where this Python lacks what that ComfyUI needs, as after an update without its requirements.
    """
    scratch = tempfile.mkdtemp(prefix="annealing-guidance-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    define_missing_operators()
    sys.path.insert(0, str(folder))
    own_arguments = sys.argv
    sys.argv = ["main.py", "--base-directory", scratch, "--database-url", "sqlite:///:memory:", *(["--cpu"] if cpu else [])]
    sys.argv += arguments
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = own_arguments
    try:
        importlib.import_module("comfy.sd")  # most of ComfyUI and of its requirements hang on this one
    except Exception as error:
        raise SetupError(
            f"The ComfyUI in {folder} cannot be imported by {sys.executable} ({type(error).__name__}: {error}): install its "
            "requirements.txt there, or unset COMFYUI_PATH to have a ComfyUI set up in the cache."
        ) from error
    # ComfyUI's `nodes` puts `comfy/`, which has a `utils.py`, first on the path: the package `utils` must be there before.
    importlib.import_module("utils.extra_config")


def import_both(cpu: bool = True) -> str:
    """The ComfyUI that COMFYUI_PATH names, as tools/dev.py sets it, and the pack; the pack's package name.

    Ends the process where that ComfyUI cannot be imported.
    """
    try:
        import_comfyui(Path(os.environ["COMFYUI_PATH"]), cpu)
    except SetupError as error:
        sys.exit(f"dev.py: {error}")
    return import_pack(ROOT).__name__


def import_pack(root: Path) -> ModuleType:
    """The repository's root as the package `annealing_guidance_pack`: by path, as ComfyUI imports it."""
    spec = importlib.util.spec_from_file_location(PACK, root / "__init__.py", submodule_search_locations=[str(root)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Runs the main() of a module of the pack: `python -m devkit.in_process shapes.train <its arguments>`."""
    import torch

    on_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    pack = import_both(cpu=not on_gpu)
    errors = importlib.import_module(f"{pack}.models.errors")
    try:
        importlib.import_module(f"{pack}.{sys.argv[1]}").main(sys.argv[2:])
    except errors.AnnealingError as error:
        sys.exit(f"dev.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
