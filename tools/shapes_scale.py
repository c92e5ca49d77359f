"""Runs `training.bundled_scales` with COMFYUI_PATH's ComfyUI: `tools/dev.py scale` calls this in ComfyUI's own Python."""

import importlib
import sys
from pathlib import Path

from devkit.in_process import import_both

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    import torch

    on_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    pack = import_both(ROOT, "scale", cpu=not on_gpu)
    training = importlib.import_module(f"{pack}.training.bundled_scales")
    errors = importlib.import_module(f"{pack}.models.errors")
    try:
        training.main(sys.argv[1:])
    except errors.AnnealingError as error:
        sys.exit(f"dev.py scale: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
