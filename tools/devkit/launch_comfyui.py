"""Runs ComfyUI's main.py in its own Python: `python launch_comfyui.py <main.py> <its arguments>`.

Two things are added: the process ends when the one that started it is gone (its standard input closes), so that no server is
left behind even by a killed parent; and torchvision gets its missing operators where it would not load without them.
"""

import os
import runpy
import sys
import threading
from pathlib import Path

from torchvision_shim import define_missing_operators


def _end_with_parent() -> None:
    # The bare descriptor: a thread inside sys.stdin would crash the interpreter's ordinary end.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # As `python main.py` would have it: its folder comes first, in the place of this one.
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    define_missing_operators()
    runpy.run_path(sys.argv[0], run_name="__main__")
