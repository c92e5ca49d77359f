"""Which training grid suits the Shapes demo: scales fitted on several, by prompts drawn right and by drawing error.

    python tools/dev.py bench training_grid

The learned scale is near 1 on any grid; the fewer steps the grid has, the weaker the guidance that a scale of 1 means.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import RESULTS, load_hosts, pack_module, write_results
from prompt_following import HEADER, STEPS, Benchmark, table_row

GRIDS = (20, 50, 100)  # timesteps per step of the epsilon variant: 50, 20, 10 steps
LAMBDAS = (0.0, 0.4, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=128, help="how many of the 512 held-out prompts")
    parser.add_argument("--pictures", type=int, default=192, help="training pictures")
    parser.add_argument("--output", type=Path, default=RESULTS / "training_grid.json")
    options = parser.parse_args()
    shapes, fit, files = pack_module("training.shapes"), pack_module("training.fit"), pack_module("models.scale_file")
    null = pack_module("guidance.sampler").null_renoising_sampler()
    benchmark = Benchmark("epsilon", options.prompts)
    results: dict[str, dict] = {}
    for grid in GRIDS:
        with tempfile.TemporaryDirectory() as folder:
            profile = shapes.measure_shapes("epsilon", options.pictures, grid=grid)
            shapes.fit_shapes("epsilon", profile, fit.FitSettings(), Path(folder))
            scale = files.load_scale(Path(folder) / "shapes_epsilon.safetensors")
        print(HEADER, flush=True)
        for value in LAMBDAS:
            name = f"{grid} timesteps a step, lambda {value:g}"
            results[name] = benchmark.measure(benchmark.annealing(scale, value), null, benchmark.schedule("paper", STEPS))
            print(table_row(name, results[name]), flush=True)
    write_results({"prompts": options.prompts, "results": results}, options.output)


if __name__ == "__main__":
    load_hosts()
    main()
