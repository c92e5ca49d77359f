"""How many pictures a scale needs: fits to parts of one profile of a Shapes model, compared on pictures that none of them saw.

    python tools/dev.py bench profile_size

Every fit's loss is measured on the same 256 other pictures, as per cent above (negative: below) the loss of the constant scales
that are best on those very pictures, one for each lambda. `scale`: the mean over these pictures and their noise levels.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from common import RESULTS, load_hosts, pack_module, write_results
from common.demo import study_grid

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["epsilon", "flow"])
    parser.add_argument("--output", type=Path, default=RESULTS / "profile_size.json")
    options = parser.parse_args()
    shapes, fit = pack_module("training.shapes"), pack_module("training.fit")
    results: dict[str, dict] = {}
    for variant in options.variants:
        grid = study_grid(variant, shapes.load_shapes(variant)[0].get_model_object("model_sampling"))
        whole, judged = (shapes.measure_shapes(variant, count, seed, grid) for count, seed in ((max(SIZES), 0), (JUDGED, 1)))
        print("pictures   loss    " + "  ".join(f"scale at lambda {value:g}" for value in LAMBDAS), flush=True)
        for count in SIZES:
            row = fitted_and_judged(first_pictures(whole, count), judged, fit.FitSettings())
            results.setdefault(variant, {})[str(count)] = row
            scales = "  ".join(f"{scale:17.2f}" for scale in row["scale"].values())
            print(f"{count:8d}  {row['above_best_constant_percent']:+5.2f}% {scales}", flush=True)
    write_results({"judged_on": JUDGED, "results": results}, options.output)


if __name__ == "__main__":
    load_hosts()
    main()
