"""Runs ComfyUI's main.py in its own Python: `python launch_comfyui.py <main.py> <its arguments>`.

Two things are added: the process ends when the one that started it is gone (its standard input closes), so that no server is
left behind even by a killed parent; and torchvision gets its missing operators where it would not load without them.
"""

import importlib.metadata
import importlib.util
import os
import runpy
import sys
import threading
from pathlib import Path


def _end_with_parent() -> None:
    # The bare descriptor: a thread inside sys.stdin would crash the interpreter's ordinary end.
    while os.read(0, 1):
        pass
    os._exit(1)


def _torch_is_cpu_only() -> bool:
    """From the package's version: importing torch would keep ComfyUI from configuring it first, which matters on a GPU."""
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    if _torch_is_cpu_only():
        shim = importlib.util.spec_from_file_location("torchvision_shim", Path(__file__).with_name("torchvision_shim.py"))
        module = importlib.util.module_from_spec(shim)
        shim.loader.exec_module(module)
        module.define_missing_operators()
    # As `python main.py` would have it, and without this folder, whose modules are not ComfyUI's business.
    sys.path[:] = [str(Path(script).parent), *(path for path in sys.path if Path(path) != Path(__file__).parent)]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
