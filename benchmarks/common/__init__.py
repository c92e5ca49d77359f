"""What the benchmarks share: ComfyUI and the pack as importable modules, and result files that say where they came from."""

from __future__ import annotations

import importlib
import json
import math
import platform
import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests" / "support")]
from devkit.in_process import PACK, import_pack  # noqa: E402, F401
from devkit.in_process import import_both as load_hosts  # noqa: E402, F401

RESULTS = ROOT / "benchmarks" / "results"


def pack_module(name: str) -> ModuleType:
    """A module of the pack."""
    return importlib.import_module(f"{PACK}.{name}")


def machine(device: str = "cpu") -> dict[str, str]:
    """What the figures were measured on. device: torch's name of the device that did the work."""
    import comfyui_version
    import numpy
    import torch

    return {
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
        if device == "cpu"
        else torch.cuda.get_device_name(torch.device(device)),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "comfyui": comfyui_version.__version__,
    }


def write_results(results: dict, path: Path, device: str = "cpu") -> None:
    """Write a result file whole, with the machine and the versions under "machine"; a row of figures is one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    text = json.dumps({**results, "machine": machine(device)}, indent=1)
    part.write_text(re.sub(r"\s+(?=[^{}]*\})", " ", text) + "\n", encoding="utf-8")
    part.replace(path)
    print(f"\n{path}")


def confidence(share: float, n: int) -> float:
    """Half the width of the 95% interval of a share (Wilson)."""
    z = 1.96
    return z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
