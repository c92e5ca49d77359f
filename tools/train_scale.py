"""Runs `training.shapes` with the ComfyUI that COMFYUI_PATH names: `tools/dev.py scale` calls this in ComfyUI's own Python."""

import importlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from devkit.torchvision_shim import define_missing_operators

ROOT = Path(__file__).resolve().parent.parent
PACK = "annealing_guidance_pack"


def import_comfyui(folder: Path, scratch: str) -> None:
    """Make `import comfy...` work, as ComfyUI starts itself; it writes into the scratch folder only.

    ComfyUI reads its arguments when `comfy.cli_args` is first imported, so they are set for just that import.
    """
    define_missing_operators()
    sys.path.insert(0, str(folder))
    import torch

    on_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    own_arguments = sys.argv
    sys.argv = ["main.py", "--base-directory", scratch, *([] if on_gpu else ["--cpu"])]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = own_arguments


def import_pack() -> None:
    """The repository's root as one package, by path, as ComfyUI imports it."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        import_comfyui(Path(os.environ["COMFYUI_PATH"]), scratch)
        import_pack()
        training = importlib.import_module(f"{PACK}.training.shapes")
        errors = importlib.import_module(f"{PACK}.models.errors")
        try:
            training.main(sys.argv[1:])
        except errors.AnnealingError as error:
            sys.exit(f"dev.py scale: {error}")
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == "__main__":
    main()
