"""What annealing guidance costs beside CFG: time, memory and operations of a step, whole pictures, and ComfyUI's start.

    python tools/dev.py bench cost [--parts step pictures import growth] [--full] [--device cuda] [--authors PATH]

Each figure is a comparison of two jobs that take turns in one process, with a 95% interval (median over the pairs, percentile
bootstrap): the machine may be busy. The parts:

    step      the guided step against CFGGuider's, both fed the same two predictions (common/stand_in.py), so that only the
              guidance's own work is left: added time, operations (kernels, on a GPU), peak memory, and the bytes that a step
              leaves behind, which are the trace's. --authors: against their module in a checkout of their repository, on
              the same pair of predictions; from them to the guided prediction in both cases. Added host-device
              synchronisation is looked for on CUDA; where there is none, tests/guidance does it by a dispatch mode.
    pictures  pictures per second by KSampler, CFG against the model patch, and by the two guiders: on Shapes, and on an SDXL
              UNet with random weights (its real size with --device cuda, shrunken on the CPU).
    import    what the pack adds to ComfyUI's start, in fresh processes, after ComfyUI and its own extra nodes: by the clock, and
              by -X importtime; and which modules it loads that ComfyUI had not.
    growth    the added time of a step over batch and size, and the profiler's pace over batch.

On two busy CPU cores, one thread, ComfyUI 0.3.75 (not run on a GPU yet; the results have the intervals):

    step      euler and null renoising add 0.8 ms and 93 operations at 1x4x128x128; 1.3 to 6 ms at 4x16x128x128 and 2.7 to 8 ms at
              the video, by how busy the machine's memory was. No latent is copied, there is one prediction call as with CFG,
              and only the trace stays, 20 bytes a sample. dpmpp_2m, whose extrapolation is taken out, adds 1.1 to 1.3 ms, 5 to
              14 and 10 to 30, and two latents of memory. Before coverage and products were reworked: 1.1 ms, 140 operations
              and two latents (1x4x128x128, euler).
    authors   AIM MISSED: the step takes 2.6 to 2.8 times as long as their module does (2.4 to the letter, 3.7 with
              dpmpp_2m), where at most half was aimed at: 0.8 against 0.31 ms. Theirs is the network alone; ours also finds the
              timestep and the next level from sigma on the device, matches the strength, clamps, folds and keeps a trace.
              What counts is the number of operations, about 8 microseconds each, not the size of the latent.
    pictures  the evaluations are the same. Of CFG's pace by CPU time in two runs: Shapes at batch 16 0.96 to 0.98 (AIM of 0.99
              MISSED: its step takes only 65 ms), at batch 64 0.97 to 1.03, on the shrunken UNet 0.97 to 1.01; but for batch 16
              the intervals are wider than the aim, so there it is neither met nor missed.
    import    35 to 43 ms of CPU time; by the clock 38 ms, and 95 with four other programs running: aim met. The first start,
              which compiles the modules: 99 and 308 ms.

It prints tables and writes them to `benchmarks/results/cost.json`, where the parts that were not run stay, unless they come from
another machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own log

from common import RESULTS, load_hosts, machine, pack_module, write_results
from common.paired import in_turns, rounded, with_interval
from common.start import one_start
from common.subject import Subject

PARTS = ("step", "pictures", "import", "growth")
LATENTS = {"1x4x128x128": (1, 4, 128, 128), "4x16x128x128": (4, 16, 128, 128), "video 1x16x21x60x104": (1, 16, 21, 60, 104)}
# What is measured by name: the Annealing Guider's settings, and the sampler of the run.
WAYS = {
    "to the letter": ({"renoise": "null", "match_training_steps": False}, "euler_cfg_pp"),
    "null renoising": ({}, "euler_cfg_pp"),
    "euler": ({}, "euler"),
    "dpmpp_2m": ({}, "dpmpp_2m"),
}


def step_row(shape: tuple[int, ...], way: str, seconds: float) -> dict[str, float]:
    """One way of guiding against CFGGuider on the same latents."""
    from common.stand_in import StandIn, kernels, memory, on_cuda, operations, wait

    stand_in, row = StandIn(shape), {}
    settings, sampler = WAYS[way]

    def measure(cfg, ours):
        pairs = in_turns(lambda: cfg(next(turns) // 2), lambda: ours(next(turns) // 2), seconds, wait)
        predictions = []
        for job in (cfg, ours):
            before = stand_in.predictions
            job(0)
            predictions.append(stand_in.predictions - before)
        (cfg_peak, _), (peak, _) = (memory(lambda job=job: job(1)) for job in (cfg, ours))
        added = operations(lambda: ours(1)) - operations(lambda: cfg(1))
        added_kernels = kernels(lambda: ours(1)) - kernels(lambda: cfg(1)) if on_cuda() else None
        waits = synchronises(lambda: ours(1)) if on_cuda() else None
        guider.run.live = None  # from here on: it keeps values until it sends them
        row.update(
            **pairs.added_ms(),
            cfg_ms=rounded(1e3 * statistics.median(pairs.first)),
            predictions=predictions[1] / predictions[0],
            added_operations=added,
            added_kernels=added_kernels,
            added_peak_bytes=peak - cfg_peak,
            latent_bytes=stand_in.noise.nbytes,
            kept_bytes_per_step=bytes_kept(ours),
            trace_bytes_per_step=sum(value.nbytes for value in guider.trace.latest.calls[-1][:-1]),
            synchronises=waits,
        )

    turns, guider = iter(range(10**9)), stand_in.annealing(**settings)
    stand_in.during_runs([stand_in.cfg(), guider], sampler, measure)
    return row


def bytes_kept(step) -> float:
    """What a step leaves in use: the difference between 40 and 20 steps, so that what a run keeps once does not count."""
    from common.stand_in import memory

    def kept(steps: int) -> int:
        return memory(lambda: [step(i) is None for i in range(steps)])[1]

    return (kept(40) - kept(20)) / 20


def synchronises(job) -> bool:
    """Whether a job makes the host wait for the GPU, by PyTorch's own watch for it."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        job()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def authors_row(path: Path, way: str, seconds: float) -> dict[str, float]:
    """Ours against the authors' module on one latent of SDXL's: theirs takes one at a time."""
    import torch
    from common.stand_in import StandIn, wait

    file = path / "src" / "model" / "guidance_scale_model.py"
    spec = importlib.util.spec_from_file_location("authors_guidance_scale_model", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stand_in = StandIn(LATENTS["1x4x128x128"])
    theirs = module.ScalarMLP(hidden_size=128, output_size=1, n_layers=3).to(stand_in.device).requires_grad_(False)
    timestep, knob = (torch.tensor(value, device=stand_in.device) for value in (500, 0.4))
    cond, uncond = stand_in.cond, stand_in.uncond

    def their_step():
        scale = theirs(timestep, knob, uncond, cond)
        return uncond + scale * (cond - uncond)

    row = {}

    def measure(ours):
        pairs = in_turns(their_step, lambda: ours(1), seconds, wait)
        row.update(**pairs.ratios(), their_ms=rounded(1e3 * statistics.median(pairs.first)))

    settings, sampler = WAYS[way]
    stand_in.during_runs([stand_in.annealing(**settings)], sampler, measure)
    return row


def measure_step(options: argparse.Namespace) -> dict[str, dict]:
    rows = {}
    for latent in options.latents:
        for way in WAYS:
            rows[f"{latent}, {way}"] = row = step_row(LATENTS[latent], way, options.seconds)
            print_row(f"{latent}, {way}", row)
    for way in WAYS if options.authors else ():
        rows[f"to the authors' module, {way}"] = row = authors_row(options.authors, way, options.seconds)
        print_row(f"to the authors' module, {way}", row)
    return rows


def measure_pictures(options: argparse.Namespace) -> dict[str, dict]:
    cuda = options.device == "cuda"
    size = "SDXL UNet" if cuda else "shrunken SDXL UNet"
    subjects = {
        f"Shapes {variant}, batch {batch}": lambda variant=variant, batch=batch: Subject.shapes(variant, batch)
        for variant in options.variants
        for batch in options.batches
    }
    subjects |= {f"{size}, batch {batch}": lambda batch=batch: Subject.sdxl(cuda, batch) for batch in options.sdxl_batches}
    rows = {}
    for name, make in subjects.items():
        subject = make()
        for host in ("KSampler", "guider"):
            rows[f"{name}, {host}"] = row = subject.row(host, 8 * options.seconds)
            print_row(f"{name}, {host}", row)
    return rows


def measure_import(options: argparse.Namespace) -> dict[str, dict]:
    with tempfile.TemporaryDirectory() as bytecode:
        first, *starts = (one_start(options.device == "cpu", bytecode) for _ in range(1 + options.starts))
    row = {}
    for name in ("load_ms", "load_cpu_ms", "import_ms", "others_ms"):
        row |= with_interval(name, [start[name] for start in starts])
    row |= {"first_load_ms": rounded(first["load_ms"])}  # with compiling its modules
    row |= {"modules": starts[0]["modules"], "brought": starts[0]["brought"], "starts": len(starts)}
    print_row("ComfyUI's start", row)
    return {"ComfyUI's start": row}


def measure_growth(options: argparse.Namespace) -> dict[str, dict]:
    sizes = {f"step, batch {batch} of 4x64x64": (batch, 4, 64, 64) for batch in (1, 4, 16, 64)}
    sizes |= {f"step, 1x4x{size}x{size}": (1, 4, size, size) for size in (32, 64, 128, 256)}
    rows = {}
    for name, shape in sizes.items():
        rows[name] = row = step_row(shape, "euler", options.seconds)
        print_row(name, row)
    for name, row in profiler_rows(options).items():
        rows[name] = row
        print_row(name, row)
    return rows


def profiler_rows(options: argparse.Namespace) -> dict[str, dict]:
    """Entries of a profile per second on Shapes, the batch sizes in turns: each the same 64 entries of one picture."""
    import torch

    measuring, pictures, profiles = (pack_module(f"training.{name}") for name in ("measure", "pictures", "profile"))
    subject = Subject.shapes("epsilon", 1)
    settings = profiles.ProfileSettings(20, samples=64)
    picture = pictures.Picture(0, lambda: (subject.noise[0], subject.positive))
    paces: dict[int, list[float]] = {batch: [] for batch in (1, 4, 16, 64)}
    end = time.perf_counter() + 8 * options.seconds
    with torch.inference_mode():
        while time.perf_counter() < end or len(paces[64]) < 3:
            for batch, seen in paces.items():
                began = time.perf_counter()
                measuring.measure_picture(subject.model, picture, subject.negative, settings, batch)
                seen.append(settings.samples / (time.perf_counter() - began))
    return {f"profiler, batch {batch}": with_interval("entries_per_second", seen) for batch, seen in paces.items()}


def print_row(name: str, row: dict) -> None:
    """Figures with their intervals on one line."""
    texts = []
    for key, value in row.items():
        if f"{key}_low" in row:
            texts.append(f"{key} {value:g} ({row[f'{key}_low']:g} to {row[f'{key}_high']:g})")
        elif not key.endswith(("_low", "_high")) and value is not None:
            texts.append(f"{key} {value if isinstance(value, list) else format(value, 'g')}")
    print(f"{name}: {', '.join(texts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--full", action="store_true", help="longer, with more batch sizes and both variants of Shapes")
    parser.add_argument("--authors", type=Path, help="a checkout of the authors' repository, to compare with their module")
    parser.add_argument("--latents", nargs="+", default=list(LATENTS), choices=list(LATENTS), help="of the part step")
    parser.add_argument("--seconds", type=float, help="for each row; pictures and the profiler get 8 times as long")
    parser.add_argument("--output", type=Path, default=RESULTS / "cost.json")
    options = parser.parse_args()
    options.seconds = options.seconds or (8.0 if options.full else 1.0)
    options.variants = ["epsilon", "flow"] if options.full else ["epsilon"]
    options.batches = [1, 16, 64] if options.full else [16, 64]
    options.sdxl_batches = [1, 4] if options.full else [1]
    options.starts = 9 if options.full else 3
    load_hosts(cpu=options.device == "cpu")
    import comfy.utils
    import torch

    if options.device == "cpu":
        torch.set_num_threads(1)  # more threads wait for each other at such sizes
    comfy.utils.PROGRESS_BAR_ENABLED = False
    measures = {"step": measure_step, "pictures": measure_pictures, "import": measure_import, "growth": measure_growth}
    measured = {}
    for part in options.parts:
        print(f"\n{part}", flush=True)
        measured[part] = measures[part](options)
    before = json.loads(options.output.read_text()) if options.output.exists() else {}
    results = {**before, **measured} if before.get("machine") == machine(options.device) else measured
    write_results({name: results[name] for name in PARTS if name in results}, options.output, options.device)


if __name__ == "__main__":
    main()
