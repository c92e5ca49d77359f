"""What the pack adds to ComfyUI's start, in a fresh process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

from . import ROOT

# What ComfyUI's main.py does before it comes to the packs, and then the pack, by ComfyUI's own loader.
START = """
import asyncio, json, sys, time
from pathlib import Path
sys.path.insert(0, {tools!r})
from devkit.in_process import import_comfyui
import_comfyui(Path({comfyui!r}), cpu={cpu!r})
import execution, nodes, server
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
sys.dont_write_bytecode, sys.pycache_prefix = False, {bytecode!r}
before = set(sys.modules)
print("{marker}", file=sys.stderr, flush=True)
clock, cpu = time.perf_counter(), time.process_time()
loaded = asyncio.run(nodes.load_custom_node({root!r}))
clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
assert loaded, "ComfyUI could not load the pack"
print(json.dumps({{"clock": clock, "cpu": cpu, "modules": sorted(set(sys.modules) - before)}}))
"""
MARKER = "the pack begins here"
IMPORT_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(.+)")


def one_start(cpu: bool, bytecode: str) -> dict:
    """A fresh process: milliseconds of the pack's load, of its imports, and the modules that only it brought.

    bytecode: the folder for Python's compiled modules of the pack, which the first start fills, as a user's first start does.
    """
    code = START.format(
        tools=str(ROOT / "tools"),
        comfyui=os.environ["COMFYUI_PATH"],
        cpu=cpu,
        root=str(ROOT),
        marker=MARKER,
        bytecode=bytecode,
    )
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    said = json.loads(done.stdout.splitlines()[-1])
    times = [(int(us) / 1e3, name) for us, name in IMPORT_LINE.findall(done.stderr.rpartition(MARKER)[2])]
    own = re.sub(r"\.", "_x_", str(ROOT))  # what ComfyUI calls the pack
    others = [(ms, name) for ms, name in times if not name.startswith(own)]
    brought = {name.partition(".")[0] for name in said["modules"] if not name.startswith(own)}
    return {
        "load_ms": 1e3 * said["clock"],
        "load_cpu_ms": 1e3 * said["cpu"],
        "import_ms": sum(ms for ms, _ in times),
        "others_ms": sum(ms for ms, _ in others),
        "modules": len(said["modules"]),
        "brought": sorted(brought),
    }
