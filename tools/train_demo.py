"""Runs `shapes.train`, which needs no ComfyUI: `tools/dev.py train` calls this in the Python that has torch."""

import importlib
import sys
from pathlib import Path

from devkit.in_process import import_pack

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    pack = import_pack(ROOT).__name__
    try:
        importlib.import_module(f"{pack}.shapes.train").main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
