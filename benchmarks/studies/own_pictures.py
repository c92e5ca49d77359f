"""Is a scale from the model's own pictures as good as one from rendered pictures?

    python benchmarks/studies/own_pictures.py [--variants epsilon flow] [--profiles FOLDER]   (ComfyUI's own Python, COMFYUI_PATH)

Both demo variants, measured and fitted as Train Annealing Scale does (2 noise levels a picture, 5 knots), on 32 and 128 pictures:
rendered ones, and ones that the model made from the same captions with CFG 5, CFG 3 and unguided (CFG 1), in 12 steps of dpmpp_2m
and, for CFG 5, in 28 of euler. Loss: on rendered pictures that none saw, as in cheap_profile.py. Then 20 steps of the Annealing
Sampler over held-out prompts: prompts right, and the Frechet distance to rendered pictures (with few pictures: larger than in
benchmarks/quality.py, and comparable only here). The figures are written as they come.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import cheap_profile
from common import load_hosts, pack_module, write_results

STEPS, LAMBDAS = 20, (0.0, 0.4, 0.8)
SIZES = (32, 128)
PROMPTS = 256
REFERENCES = 8  # renderings of each prompt
SOURCES = {  # None: rendered pictures; else how they were made, if not in 12 steps of dpmpp_2m
    "rendered": None,
    "own, CFG 5": {"cfg": 5.0},
    "own, CFG 3": {"cfg": 3.0},
    "own, unguided": {"cfg": 1.0},
    "own, CFG 5, euler 28 steps": {"cfg": 5.0, "steps": 28, "sampler": "euler"},
}


class Study:
    """One variant."""

    def __init__(self, variant: str, folder: Path) -> None:
        from common.demo import Demo
        from common.measures import Gaussian
        from common.methods import Methods
        from quality import Gallery

        self.variant, self.folder, self.once = variant, folder, pack_module("training.once")
        judged = cheap_profile.measured(variant, cheap_profile.JUDGED, 1, folder)
        self.judge = cheap_profile.Judge(
            cheap_profile.part_of(judged, range(cheap_profile.JUDGED), cheap_profile.JUDGED_SAMPLES, cheap_profile.MOST_KNOTS)
        )
        self.demo = Demo(variant, PROMPTS)
        self.gallery, self.methods = Gallery(folder, self.demo), Methods(self.demo, STEPS)
        self.reference = Gaussian.of(self.gallery.rendered(REFERENCES)["features"])

    def profile(self, source: str, how: dict | None, count: int):
        """Of the first `count` captions of seed 2, measured as Train Annealing Scale does."""
        shapes, pictures, profiles = (pack_module(f"training.{name}") for name in ("bundled_scales", "pictures", "profile"))
        model, clip, vae = shapes.load_shapes(self.variant)
        once, knots = self.once, pack_module("training.knots")
        settings = profiles.ProfileSettings(
            once.own_grid(model), once.SAMPLES, knots.spread_knots(0.0, once.LARGEST_SCALE, once.KNOTS)
        )
        negative = once.encode(clip, "")
        given = shapes.training_pictures(clip, vae, max(SIZES), 2)
        if how is not None:
            positives = [picture.make()[1] for picture in given]
            size = pictures.empty_latent(model, *once.usual_size(model))
            sampling = pictures.SampleSettings(**{"steps": 12, "sampler": "dpmpp_2m"} | how)
            given = pictures.sampled_pictures(model, size, positives, negative, sampling)
        safe = source.replace(", ", "_").replace(" ", "-")
        folder = self.folder / f"own_{self.variant}_{safe}_{count}"
        return pack_module("training.shards").measure_into(folder, model, given[:count], negative, settings, once.SAMPLES)

    def figures(self, source: str, how: dict | None, count: int) -> dict[str, float]:
        from common.measures import Gaussian, frechet_distance

        fit = pack_module("training.fit")
        profile = self.profile(source, how, count)
        figures = self.judge(profile)
        if count != max(SIZES):
            return figures
        scale = fit.fit(profile, fit.FitSettings(), "own", "Shapes", "study", "Apache-2.0").network
        for value in LAMBDAS:
            drawn = self.gallery.draw(self.demo.annealing(scale, value), self.methods.null, self.methods.sigmas)
            figures[f"right at {value:g}"] = drawn["right"].all(1).double().mean().item()
            figures[f"fd at {value:g}"] = frechet_distance(self.reference, Gaussian.of(drawn["features"]))
        return figures


def main() -> None:
    options, results = cheap_profile.begun(__file__, __doc__)
    with tempfile.TemporaryDirectory() as temporary:
        for variant in options.variants:
            study = Study(variant, options.profiles or Path(temporary))
            for source, how in SOURCES.items():
                for count in SIZES:
                    row = {name: round(value, 4) for name, value in study.figures(source, how, count).items()}
                    results.setdefault(variant, {}).setdefault(source, {})[f"{count} pictures"] = row
                    print(variant, source, count, json.dumps(row), flush=True)
                    write_results({"prompts": PROMPTS, "references": REFERENCES, "results": results}, options.output)


if __name__ == "__main__":
    load_hosts()
    main()
