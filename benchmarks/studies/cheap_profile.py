"""How cheap a profile may be: fits to parts of one profile with fewer noise levels a picture and fewer knots, on 32 pictures as
Train Annealing Scale's "quick" has them and on 128 as "normal" has them.

    python benchmarks/studies/cheap_profile.py [--profiles FOLDER]      (in ComfyUI's own Python, with COMFYUI_PATH)

Every fit is judged on 256 other pictures, 4 noise levels each, at 13 knots: loss in per cent above that of the constant scales
that are best on those very pictures, one for each lambda. Mean and standard deviation over several sets of pictures.
`rows`: what measuring a picture costs, in evaluations of one latent with one prompt; sampling it in 20 steps with CFG costs 40.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import load_hosts, pack_module, write_results

MOST_KNOTS, MOST_SAMPLES = 13, 8
PICTURES, JUDGED = 256, 256
# (noise levels, knots); the knots of every second, third, fourth of 13 Chebyshev extrema are those of 7, 5 and 4.
CHOICES = [(8, 13), (4, 13), (2, 13), (4, 7), (4, 5), (4, 4), (2, 7), (2, 5)]
SETS = {32: 4, 128: 2}
JUDGED_SAMPLES = 4
LAMBDAS = (0.0, 0.4, 0.8)


class Judge:
    """Loss and mean scale of a fit, on pictures that none of them saw."""

    def __init__(self, profile) -> None:
        self.module = pack_module("training.fit")
        self.entries, settings = profile.entries, self.module.FitSettings()
        self.loss = self.module.ProfileLoss(
            profile.entries, profile.settings.knots, self.module._ratio(profile.entries, profile, settings)
        )
        self.best = self.module._best_constants(self.loss, self.loss)

    def __call__(self, profile) -> dict[str, float]:
        import torch

        fitted = self.module.fit(profile, self.module.FitSettings(), "part", "Shapes", "study", "Apache-2.0")
        loss = self.module._held_out_loss(fitted.network, self.loss)
        with torch.no_grad():
            at = self.entries.timestep, self.entries.gap_norm
            scales = {f"scale at {value:g}": float(fitted.network(*at, value).mean()) for value in LAMBDAS}
        return {"above_best_constant_percent": 100 * (loss / self.best - 1)} | scales


def part_of(profile, pictures: range, samples: int, knots: int):
    """The profile of these pictures with their first noise levels and every n-th knot."""
    import torch

    entries, step = profile.entries, (MOST_KNOTS - 1) // (knots - 1)
    of_picture = entries.picture.unique_consecutive(return_inverse=True)[1]
    number = torch.arange(len(entries)) - torch.searchsorted(of_picture, of_picture)  # of the row within its picture
    chosen = entries[(of_picture >= pictures.start) & (of_picture < pictures.stop) & (number < samples)]
    chosen = dataclasses.replace(chosen, second=chosen.second[:, ::step, ::step])
    settings = dataclasses.replace(profile.settings, samples=samples, knots=profile.settings.knots[::step])
    return dataclasses.replace(profile, entries=chosen, settings=settings)


def measured(variant: str, count: int, seed: int, folder: Path):
    """A profile of rendered pictures on the grid that Train Annealing Scale trains for."""
    shapes, profiles = pack_module("training.bundled_scales"), pack_module("training.profile")
    once, knots = pack_module("training.once"), pack_module("training.knots")
    model, clip, vae = shapes.load_shapes(variant)
    grid = once.own_grid(model)
    settings = profiles.ProfileSettings(grid, MOST_SAMPLES, knots.spread_knots(0.0, 4.0, MOST_KNOTS), seed=seed)
    pictures = shapes.training_pictures(clip, vae, count, seed)
    negative = once.encode(clip, "")
    line = pack_module("training.console").PictureLine(f"{variant}, seed {seed}")
    return pack_module("training.shards").measure_into(
        folder / f"{variant}_{seed}", model, pictures, negative, settings, MOST_SAMPLES, progress=line
    )


def begun(study: str, text: str) -> tuple[argparse.Namespace, dict[str, dict]]:
    """(the command line's options, the results so far) of a study, by its file and its docstring."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["epsilon", "flow"])
    parser.add_argument("--profiles", type=Path, help="folder that keeps the profiles")
    parser.add_argument("--output", type=Path, default=Path(study).with_suffix(".json"))
    options = parser.parse_args()
    return options, json.loads(options.output.read_text())["results"] if options.output.is_file() else {}


def main() -> None:
    options, results = begun(__file__, __doc__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.profiles or Path(temporary)
        for variant in options.variants:
            whole, judged = (measured(variant, count, seed, folder) for count, seed in ((PICTURES, 0), (JUDGED, 1)))
            judge = Judge(part_of(judged, range(JUDGED), JUDGED_SAMPLES, MOST_KNOTS))
            for count, sets in SETS.items():
                for samples, knots in CHOICES:
                    parts = [range(count * k, count * (k + 1)) for k in range(sets)]
                    rows = [judge(part_of(whole, part, samples, knots)) for part in parts]
                    losses = [row["above_best_constant_percent"] for row in rows]
                    figures = {
                        "rows": samples * 2 * (1 + knots),
                        "above_best_constant_percent": statistics.mean(losses),
                        "deviation": statistics.stdev(losses),
                    } | {name: statistics.mean(row[name] for row in rows) for name in rows[0] if name.startswith("scale")}
                    figures = {name: round(value, 3) for name, value in figures.items()}
                    choice = f"{samples} levels, {knots} knots"
                    results.setdefault(variant, {}).setdefault(f"{count} pictures", {})[choice] = figures
                    print(variant, count, choice, json.dumps(figures), flush=True)
                    write_results(
                        {"judged_on": JUDGED, "sets": {str(n): k for n, k in SETS.items()}, "results": results}, options.output
                    )


if __name__ == "__main__":
    load_hosts()
    main()
