"""What annealing guidance costs beside CFG: time, memory and operations of a step, whole pictures, and ComfyUI's start.

    python tools/dev.py bench cost [--seconds 8] [--authors PATH]

Each figure is a comparison of two jobs that take turns in one process, with a 95% interval: the machine may be busy. The parts:

    step      the guided step against CFGGuider's, both fed the same two predictions (common/stand_in.py), so that only the
              guidance's own work is left: added time, operations and peak memory, and the trace that a step leaves behind.
              --authors: against their module in a checkout of their repository, on the same pair of predictions; from them to
              the guided prediction in both cases.
    pictures  ten steps by KSampler, CFG against the model patch: on Shapes, and on a shrunken SDXL UNet with random weights.
    import    what the pack adds to ComfyUI's start, in fresh processes, after ComfyUI and its own extra nodes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import RESULTS, ROOT, load_hosts, write_results

if __name__ == "__main__":
    load_hosts()

import comfy.utils
import nodes
import numpy
import torch
from annealing_guidance_pack.guidance.patch import patch_model
from annealing_guidance_pack.guidance.run import Guidance
from common.demo import Demo
from common.sdxl import SIZE, random_prompt, random_sdxl
from common.stand_in import StandIn, Watched, chart
from common.turns import in_turns, rounded, with_interval

LATENTS = {"1x4x128x128": (1, 4, 128, 128), "4x16x128x128": (4, 16, 128, 128), "video 1x16x21x60x104": (1, 16, 21, 60, 104)}
# What is measured by name: the Annealing Guider's settings, and the sampler of the run.
WAYS = {
    "to the letter": ({"renoise": "null", "match_training_steps": False}, "euler_cfg_pp"),
    "null renoising": ({}, "euler_cfg_pp"),
    "euler": ({}, "euler"),
    "dpmpp_2m": ({}, "dpmpp_2m"),
}
PICTURE_STEPS, CFG = 10, 5.0
STARTS = 3


def step_row(shape: tuple[int, ...], way: str, seconds: float) -> dict[str, float]:
    """One way of guiding against CFGGuider on the same latents."""
    stand_in, row = StandIn(shape), {}
    settings, sampler = WAYS[way]
    turns, guider = iter(range(10**9)), stand_in.annealing(**settings)

    def measure(*steps) -> None:
        times = in_turns(tuple(lambda step=step: step(next(turns) // 2) for step in steps), seconds)
        before = stand_in.predictions
        cfg, ours = (Watched(lambda step=step: step(1)) for step in steps)
        row.update(
            **with_interval("added_ms", 1e3 * (times[:, 1, 0] - times[:, 0, 0])),
            cfg_ms=rounded(1e3 * numpy.median(times[:, 0, 0])),
            predictions=stand_in.predictions - before - 1,  # CFG's one
            added_operations=ours.operations - cfg.operations,
            added_peak_bytes=ours.peak_bytes - cfg.peak_bytes,
            latent_bytes=stand_in.noise.nbytes,
            trace_bytes_per_step=sum(value.nbytes for value in guider.trace.latest.calls[-1][:-1]),
        )

    stand_in.during_runs([stand_in.cfg(), guider], sampler, measure)
    return row


def authors_row(path: Path, way: str, seconds: float) -> dict[str, float]:
    """Ours against the authors' module on one latent of SDXL's: theirs takes one at a time."""
    file = path / "src" / "model" / "guidance_scale_model.py"
    spec = importlib.util.spec_from_file_location("authors_guidance_scale_model", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stand_in, row = StandIn(LATENTS["1x4x128x128"]), {}
    theirs = module.ScalarMLP(hidden_size=128, output_size=1, n_layers=3).requires_grad_(False)
    timestep, knob = (torch.tensor(value) for value in (500, 0.4))
    cond, uncond = stand_in.cond, stand_in.uncond

    def measure(ours) -> None:
        jobs = lambda: uncond + theirs(timestep, knob, uncond, cond) * (cond - uncond), lambda: ours(1)
        times = in_turns(jobs, seconds)[:, :, 0]
        row.update(with_interval("ratio", times[:, 1] / times[:, 0]), their_ms=rounded(1e3 * numpy.median(times[:, 0])))

    settings, sampler = WAYS[way]
    stand_in.during_runs([stand_in.annealing(**settings)], sampler, measure)
    return row


def measure_step(options: argparse.Namespace) -> dict[str, dict]:
    rows = {f"{name}, {way}": step_row(shape, way, options.seconds) for name, shape in LATENTS.items() for way in WAYS}
    for way in WAYS if options.authors else ():
        rows[f"to the authors' module, {way}"] = authors_row(options.authors, way, options.seconds)
    return rows


def picture_row(model, positive: list, negative: list, scale, shape: tuple[int, ...], seconds: float) -> dict[str, float]:
    """Annealing's pace over CFG's with KSampler: ratio, 1 for no cost, below 1 for slower."""
    patched, latent = patch_model(model, Guidance(scale, 0.4), chart())[0], {"samples": torch.zeros(shape)}
    settings = PICTURE_STEPS, CFG, "euler", "normal", positive, negative, latent
    with torch.inference_mode():
        ours, cfg = (lambda model=model: nodes.common_ksampler(model, 0, *settings) for model in (patched, model))
        times = in_turns((ours, cfg), seconds)
    ratio, cpu_ratio = (times[:, 1] / times[:, 0]).T
    cfg_step = 1e3 * numpy.median(times[:, 1, 0]) / PICTURE_STEPS
    return with_interval("ratio", ratio) | with_interval("cpu_ratio", cpu_ratio) | {"cfg_step_ms": rounded(cfg_step)}


def measure_pictures(options: argparse.Namespace) -> dict[str, dict]:
    rows, seconds = {}, 8 * options.seconds
    for batch in (16, 64):
        demo, shape = Demo("epsilon", batch), (batch, 4, 16, 16)
        row = picture_row(demo.model, [[demo.positive, {}]], demo.negative, demo.scale, shape, seconds)
        rows[f"Shapes epsilon, batch {batch}, KSampler"] = row
    prompts, shape = (random_prompt(1), random_prompt(0)), (1, 4, SIZE, SIZE)
    row = picture_row(random_sdxl(), *prompts, StandIn(shape).scale, shape, seconds)
    rows["shrunken SDXL UNet, batch 1, KSampler"] = row
    return rows


# What ComfyUI's main.py does before it comes to the packs, and then the pack, by ComfyUI's own loader.
START = """
import asyncio, json, sys, time
from pathlib import Path
tools, comfyui, root, bytecode = sys.argv[1:]
sys.path.insert(0, tools)
from devkit.in_process import import_comfyui
import_comfyui(Path(comfyui), cpu=True)
import execution, nodes, server
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
sys.dont_write_bytecode, sys.pycache_prefix = False, bytecode
before, began = set(sys.modules), time.perf_counter()
assert asyncio.run(nodes.load_custom_node(root)), "ComfyUI could not load the pack"
print(json.dumps([1e3 * (time.perf_counter() - began), sorted(set(sys.modules) - before)]))
"""


def one_start(bytecode: str) -> tuple[float, set[str]]:
    """Of a fresh process: milliseconds that the pack took to load, and the modules that only it brought.

    bytecode: the folder for Python's compiled modules of the pack, which the first start fills, as a user's first start does.
    """
    arguments = [str(ROOT / "tools"), os.environ["COMFYUI_PATH"], str(ROOT), bytecode]
    done = subprocess.run([sys.executable, "-c", START, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    milliseconds, modules = json.loads(done.stdout.splitlines()[-1])
    return milliseconds, set(modules)


def measure_import(options: argparse.Namespace) -> dict[str, dict]:
    with tempfile.TemporaryDirectory() as bytecode:
        first, *starts = (one_start(bytecode)[0] for _ in range(1 + STARTS))
    return {"ComfyUI's start": with_interval("load_ms", starts) | {"first_load_ms": rounded(first)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row; pictures get 8 times as long")
    parser.add_argument("--authors", type=Path, help="a checkout of the authors' repository, to compare with their module")
    parser.add_argument("--output", type=Path, default=RESULTS / "cost.json")
    options = parser.parse_args()
    comfy.utils.PROGRESS_BAR_ENABLED = False
    torch.set_num_threads(1)  # more threads wait for each other at such sizes
    results = {}
    for part, measure in {"step": measure_step, "pictures": measure_pictures, "import": measure_import}.items():
        results[part] = measure(options)
        for name, row in results[part].items():
            print(f"{part}: {name}: {json.dumps(row)}", flush=True)
    write_results(results, options.output)


if __name__ == "__main__":
    main()
