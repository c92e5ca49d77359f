"""How many pictures a scale needs: fits to parts of one profile of a Shapes model, compared on pictures that none of them saw.

    python tools/dev.py bench profile_size [--only size|table]

Every fit's loss is measured on the same 256 other pictures, as per cent above (negative: below) the loss of the constant scales
that are best on those very pictures, one for each lambda. `scale`: the mean over these pictures and their noise levels.

And how exact a profile's table is: the second term by number of knots and training grid, at all scales of the table, against the
model's own at these very scales. `mean`: the worst scale's error of the mean over the entries. `worst`: of any entry at any
scale. `p95`: 95th percentile over both. `scales`: how many an entry was measured at, on average.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from common import RESULTS, counted, load_hosts, pack_module, write_results
from common.demo import study_grid

GRIDS = ("paper 50", "paper 28", "paper 14", "paper 4", "karras 10", "exponential 8")
KNOTS = (5, 9, 17)
ALL_KNOTS = 2049  # so exact that every scale of the table is measured
TABLED = 12  # pictures
SIZES = (16, 32, 64, 128, 256, 512)
JUDGED = 256
LAMBDAS = (0.0, 0.4, 0.8)


def first_pictures(profile, count: int):
    """The same profile with its first pictures only."""
    entries = profile.entries
    return dataclasses.replace(profile, entries=entries[entries.picture.unique_consecutive(return_inverse=True)[1] < count])


def fitted_and_judged(profile, judged, settings) -> dict:
    """Loss and mean scale, on the judged profile, of a fit to the other one."""
    import torch

    module = pack_module("training.fit")
    fitted = module.fit(profile, settings, name="part", trained_on="Shapes", source="benchmark", licence="Apache-2.0")
    ratio = module._ratio(judged.entries, judged, settings)
    loss = module.ProfileLoss(judged.entries, judged.settings.knots, ratio)
    best = module._best_constants(loss, loss)
    above = 100 * (module._held_out_loss(fitted.network, loss) / best - 1)
    with torch.no_grad():
        at = judged.entries.timestep, judged.entries.gap_norm
        scales = {f"lambda {value:g}": float(fitted.network(*at, value).mean()) for value in LAMBDAS}
    return {"above_best_constant_percent": above, "scale": scales}


def table_errors(variant: str) -> dict:
    """Grid by knots: how far the table is from the model."""
    shapes, shards, profiles, knots_of = (
        pack_module(f"training.{name}") for name in ("bundled_scales", "shards", "profile", "knots")
    )
    model, clip, vae = shapes.load_shapes(variant)
    pictures = shapes.training_pictures(clip, vae, TABLED, seed=5)
    negative = pack_module("training.pictures").encode(clip, "")
    results: dict[str, dict] = {}
    for grid in GRIDS:
        scheduler, steps = grid.split()
        levels = pack_module("training.training_grid").training_grid(
            model.get_model_object("model_sampling"), int(steps), scheduler
        )
        found = {}
        for knots in (ALL_KNOTS, *KNOTS):
            settings = profiles.ProfileSettings(levels, samples=4, knots=knots_of.spread_knots(0.0, 4.0, knots), seed=5)
            watched, rows = counted(model)
            second = shards.measure(watched, pictures, negative, settings).entries.second.double()
            found[knots] = second, sum(rows) / 2 / len(second) - 1
        exact = found[ALL_KNOTS][0]
        for knots in KNOTS:
            second, scales = found[knots]
            errors, mean = (second / exact - 1).abs(), (second.mean(0) / exact.mean(0) - 1).abs().max()
            row = {
                "mean": float(mean),
                "worst": float(errors.max()),
                "p95": float(errors.flatten().quantile(0.95)),
                "scales": scales,
            }
            results.setdefault(grid, {})[str(knots)] = row
            print(f"{variant:8} {grid:14} {knots:2d} knots  " + "  ".join(f"{k} {v:.4f}" for k, v in row.items()), flush=True)
    return results


def fits_by_size(variant: str) -> dict:
    """Pictures: the loss and the scale of a fit to as many."""
    shapes, fit = pack_module("training.bundled_scales"), pack_module("training.fit")
    grid = study_grid(variant, shapes.load_shapes(variant)[0].get_model_object("model_sampling"))
    whole, judged = (shapes.measure_shapes(variant, count, seed, grid) for count, seed in ((max(SIZES), 0), (JUDGED, 1)))
    print("pictures   loss    " + "  ".join(f"scale at lambda {value:g}" for value in LAMBDAS), flush=True)
    results = {}
    for count in SIZES:
        row = results[str(count)] = fitted_and_judged(first_pictures(whole, count), judged, fit.FitSettings())
        scales = "  ".join(f"{scale:17.2f}" for scale in row["scale"].values())
        print(f"{count:8d}  {row['above_best_constant_percent']:+5.2f}% {scales}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["epsilon", "flow"])
    parser.add_argument("--only", choices=["size", "table"], help="one half of it; the other stays as it is in the output")
    parser.add_argument("--output", type=Path, default=RESULTS / "profile_size.json")
    options = parser.parse_args()
    results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    results.pop("machine", None)
    if options.only != "table":
        results |= {"judged_on": JUDGED, "results": {variant: fits_by_size(variant) for variant in options.variants}}
    if options.only != "size":
        results["table"] = {variant: table_errors(variant) for variant in options.variants}
    write_results(results, options.output)


if __name__ == "__main__":
    load_hosts()
    main()
