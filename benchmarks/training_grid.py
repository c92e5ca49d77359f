"""How a scale should be fitted for the Shapes demo: training grid, balance of the loss, gap divisor.

    python tools/dev.py bench training_grid [--variants epsilon flow] [--prompts 128] [--pictures 96]

At lambda 0 the learned scale is near 1 on any grid, so the fewer steps the grid has, the weaker the guidance; the balance decides
how far lambda raises it. Per fit: the mean scale at three lambdas over the profile, and what it draws in 20 steps: prompts right,
and the Frechet distance as in benchmarks/quality.py (with as many pictures only: larger, and comparable only here).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import RESULTS, load_hosts, pack_module, write_results
from common.demo import Demo
from quality import REFERENCES, VARIANTS, Gallery

STEPS = 20
LAMBDAS = (0.0, 0.4, 0.8)
EPSILON_GRIDS = (20, 50, 100)  # timesteps a step: 50, 20, 10 steps
FLOW_GRIDS = (50, 28, 14)  # steps
PAPER_DIVISOR = 5.0


class Study:
    """The fits of one variant."""

    def __init__(self, variant: str, prompts: int, pictures: int, folder: Path) -> None:
        from common.measures import Gaussian
        from common.methods import Methods

        self.variant, self.pictures, self.folder = variant, pictures, folder
        self.demo = Demo(variant, prompts)
        self.gallery, self.methods = Gallery(folder, self.demo), Methods(self.demo, STEPS)
        self.reference = Gaussian.of(self.gallery.rendered(REFERENCES)["features"])

    def grids(self) -> dict[str, object]:
        """Name to training grid."""
        if self.variant == "epsilon":
            return {f"{1000 // grid} steps": grid for grid in EPSILON_GRIDS}
        return {f"{steps} steps": tuple(self.demo.schedule("paper", steps).tolist()) for steps in FLOW_GRIDS}

    def rows(self):
        """(name of the fit, lambda, figures), as they come."""
        shapes, fitting = pack_module("training.bundled_scales"), pack_module("training.fit")
        chosen = shapes.training_grid(self.variant, self.demo.model_sampling)
        for name, grid in self.grids().items():
            profile = shapes.measure_shapes(self.variant, self.pictures, grid=grid)
            fits = {f"{name}, {balance}": {"loss_balance": balance} for balance in ("none", "ratio")}
            if grid == chosen:
                fits[f"{name}, {shapes.BALANCE}, gap divisor 5"] = {"loss_balance": shapes.BALANCE, "gap_divisor": PAPER_DIVISOR}
            for fit_name, settings in fits.items():
                shapes.fit_shapes(self.variant, profile, fitting.FitSettings(**settings), self.folder)
                scale = pack_module("models.scale_file").load_scale(self.folder / f"shapes_{self.variant}.safetensors")
                for value in LAMBDAS:
                    yield fit_name, value, self.figures(scale, value, profile.entries)

    def figures(self, scale, value: float, entries) -> dict[str, float]:
        import torch
        from common.measures import Gaussian, frechet_distance

        with torch.inference_mode():
            mean = scale(entries.timestep, entries.gap_norm, value).mean().item()
        drawn = self.gallery.draw(self.demo.annealing(scale, value), self.methods.null, self.methods.sigmas)
        return {
            "mean_scale": mean,
            "right": drawn["right"].all(1).double().mean().item(),
            "fd": frechet_distance(self.reference, Gaussian.of(drawn["features"])),
            "colour_error": drawn["colour_error"].mean().item(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--prompts", type=int, default=128, help="how many of the 512 held-out prompts")
    parser.add_argument("--pictures", type=int, default=96, help="training pictures")
    parser.add_argument("--output", type=Path, default=RESULTS / "training_grid.json")
    options = parser.parse_args()
    load_hosts()
    results: dict[str, dict] = {}
    for variant in options.variants:
        with tempfile.TemporaryDirectory() as folder:
            for name, value, row in Study(variant, options.prompts, options.pictures, Path(folder)).rows():
                results.setdefault(variant, {})[f"{name}, lambda {value:g}"] = row
                print(
                    f"{variant:8} {name:32} lambda {value:<4g} scale {row['mean_scale']:.2f}  right {row['right']:6.1%}  "
                    f"FD {row['fd']:.3f}  colour error {row['colour_error']:.4f}",
                    flush=True,
                )
    settings = {"prompts": options.prompts, "training_pictures": options.pictures, "steps": STEPS}
    write_results({**settings, "variants": results}, options.output)


if __name__ == "__main__":
    main()
