"""Prompt following against picture quality: annealing guidance, what people use instead, and annealing with a part taken out.

    python tools/dev.py bench quality [--variants epsilon flow] [--steps 10 20 50] [--methods CFG annealing ...] [--pictures 1024]

On the Shapes demo, where both can be measured exactly: held-out prompts, the same noise for every method, the same number of
steps and of model evaluations, several strengths of each method. Every point drawn is kept in the cache folder, so a run can
be stopped and continued, and drawn by several processes (one for each variant, say). The figures are then made from all points
that are there and written to `benchmarks/results/quality.json`; docs/BENCHMARKS.md shows them.

Of a point: the share of prompts drawn right (all; colours, shapes, relation alone), the Frechet distance (FD), density,
coverage, precision and recall in the judge's features against 16 renderings of each prompt, the drawing error, the error of
the shapes' colours and the saturation. Of a method: the share of the rectangle between (no guidance's share right, CFG's largest
FD) and (all right, FD 0) that its points dominate. Intervals: 95%, bootstrap over scenes. FD falls with the number of pictures:
what perfect ones have is kept beside the points.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common import RESULTS, load_hosts, pack_module, write_results

if __name__ == "__main__":
    load_hosts(cpu="cuda" not in sys.argv)

import torch
from common import regret
from common.ablations import LAMBDAS, ablations
from common.demo import Demo, spread
from common.measures import Gaussian, frechet_distance, hypervolume, neighbourhoods
from common.methods import WEAK, Methods
from devkit.host import cache_folder
from safetensors.torch import load_file, save_file

STEPS = (20, 10, 50)
VARIANTS = ("epsilon", "flow")
REFERENCES = 16  # renderings of each prompt
RESAMPLES = 200
SEED = 2026


class Gallery:
    """The points drawn so far, as files of what is measured picture by picture."""

    def __init__(self, folder: Path, demo: Demo) -> None:
        weights, shapes = pack_module("training.bundled_scales").WEIGHTS, Path(pack_module("shapes.files").__file__).parent
        self.demo, self.scenes = demo, pack_module("shapes.scenes")
        self.folder = folder / f"{demo.variant}-{digest(*sorted(shapes.rglob('*.safetensors')))}"
        self.scale = digest(weights / f"shapes_{demo.variant}.safetensors")

    def point(self, steps: int, method: str, setting: str, build) -> dict | None:
        """The pictures' figures [n, ...] by name; drawn with `build` if they are not there yet, None where that is not given.

        The file's name tells what else the pictures were made with: the bundled scale, where the method is ours.
        """
        safe = "".join(c if c.isalnum() or c in ".-+" else "_" for c in f"{method} {setting}")
        made_with = f".{self.scale}" if method.startswith("annealing") else ""
        file = self.folder / f"{steps}" / f"{safe}.{len(self.demo.prompts)}{made_with}.safetensors"
        if not file.exists():
            if build is None:
                return None
            began = time.perf_counter()
            figures = self.draw(*build())
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(figures, part := file.with_suffix(".part"))
            part.replace(file)
            right = figures["right"].all(1).double().mean()
            print(
                f"{self.demo.variant:8} {steps:3} {method:28} {setting:6} {right:7.1%} {time.perf_counter() - began:5.0f} s",
                flush=True,
            )
        return load_file(file)

    def draw(self, guider, sampler, sigmas) -> dict:
        """The figures of all prompts' pictures by one run."""
        parts = [self.figures(pictures, rows) for pictures, rows in self.demo.pictures(guider, sampler, sigmas)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def figures(self, pictures, rows) -> dict:
        """Of pictures [b, 3, 32, 32] and the rows of their prompts; "right" is [b, 3]: colours, shapes, relation."""
        with torch.inference_mode():
            judge, scenes, wanted = self.demo.judge, self.scenes, self.scenes.place(self.demo.numbers[rows], torch.Generator())
            read, features = judge.read(pictures), judge.features(pictures)
            drawn_anew = scenes.render(read)
            inside = (drawn_anew - torch.tensor(scenes.BACKGROUND).view(3, 1, 1)).abs().amax(1) > 0.05
            error = (drawn_anew - pictures).square().mean(1)
            right = [
                (read.colour == wanted.colour).all(1),
                (read.shape == wanted.shape).all(1),
                read.axis == wanted.axis,
            ]
            return {
                "features": features.half(),
                "right": torch.stack(right, 1),
                "drawing_error": error.mean((1, 2)).sqrt(),
                "colour_error": ((error * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)).sqrt(),
                "saturation": spread(pictures) / spread(drawn_anew),
            }

    def rendered(self, times: int, seed: int = SEED, draw: Callable = lambda pictures: pictures) -> dict:
        """The same of what the renderer draws for the prompts, each so many times. draw: changes those pictures."""
        generator, parts, rows = torch.Generator().manual_seed(seed), [], torch.arange(len(self.demo.prompts))
        for _ in range(times):
            pictures = self.scenes.render(self.scenes.place(self.demo.numbers, generator))
            parts.append(self.figures(draw(pictures), rows))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class Judgement:
    """Turns the points of one variant into figures with intervals. Every method is resampled alike, so differences are paired."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        n = len(gallery.demo.prompts)
        scene = gallery.demo.numbers.unique(return_inverse=True)[1]
        generator = torch.Generator().manual_seed(SEED)
        rows_of = [torch.nonzero(scene == i).flatten() for i in range(scene.max() + 1)]
        draws = torch.randint(len(rows_of), (RESAMPLES, len(rows_of)), generator=generator)
        self.resamples = [torch.arange(n), *(torch.cat([rows_of[i] for i in draw]) for draw in draws)]
        rendered = gallery.rendered(REFERENCES)["features"].unflatten(0, (REFERENCES, n))
        self.nearest = rendered[0]
        # Pictures of other scenes are compared with renderings of those: what is asked is how well scenes are drawn, not which.
        self.references = [Gaussian.of(rendered[:, rows].flatten(0, 1)) for rows in self.resamples]
        self.roots = [reference.root for reference in self.references]

    def position(self, point: dict):
        """(share right, FD) of all pictures and of each resample: [1 + RESAMPLES, 2]."""
        right, features = point["right"].all(1).double(), point["features"]
        found = torch.tensor(
            [
                (right[rows].mean().item(), frechet_distance(reference, Gaussian.of(features[rows]), root))
                for rows, reference, root in zip(self.resamples, self.references, self.roots, strict=True)
            ]
        )
        # A resample has pictures twice and so varies less, which makes its FD larger.
        found[1:, 1] += found[0, 1] - found[1:, 1].mean()
        return found

    def perfect(self) -> dict[str, float]:
        """The row of a model that draws what the renderer draws: other renderings, through the demo's autoencoder."""
        point = self.gallery.rendered(1, SEED + 1, self.gallery.demo.through_autoencoder)
        return self.row(point, self.position(point))

    def row(self, point: dict, position) -> dict[str, float]:
        share = point["right"].double().mean(0).tolist()
        return {
            "right": position[0, 0].item(),
            "right_interval": interval(position[1:, 0]),
            "fd": position[0, 1].item(),
            "fd_interval": interval(position[1:, 1]),
            **dict(zip(("colours", "shapes", "relation"), share, strict=True)),
            **neighbourhoods(self.nearest, point["features"]),
            **{name: point[name].mean().item() for name in ("drawing_error", "colour_error", "saturation")},
        }


def interval(resampled) -> float:
    """Half the width of the 95% interval from the bootstrap's standard error."""
    return 1.96 * resampled.std().item()


def judge(points: dict[str, dict], judgement: Judgement) -> dict:
    """{"points": {"CFG 3": row}, "fronts": {"CFG": row}} of the drawn {"CFG 3": figures}; fronts need CFG and "no guidance"."""
    at = {name: judgement.position(point) for name, point in points.items()}
    rows = {name: judgement.row(point, at[name]) for name, point in points.items()}
    methods: dict[str, list[str]] = {}
    for name in rows:
        methods.setdefault(regret.parts(name)[0], []).append(name)
    if not {"no guidance", "CFG"} <= set(methods):
        return {"points": rows, "fronts": {}}
    # For the ablations, which have fewer settings: the whole method at just these.
    if whole := [name for name in methods.get("annealing", []) if float(regret.parts(name)[1]) in LAMBDAS]:
        methods["annealing, whole"] = whole
        # Lambda 0 is not weak guidance: that is asked for by `cfg`.
        methods["annealing"] += [f"annealing at cfg {cfg:g}" for cfg in WEAK if f"annealing at cfg {cfg:g}" in rows]
    losses = {name: regret.loss({"right": found[:, 0], "fd": found[:, 1]}) for name, found in at.items()}
    least = torch.stack([losses[name] for name in rows if regret.parts(name)[0] in regret.CONSTANT]).amin(0)
    for name, row in rows.items():
        row["regret_interval"] = interval((losses[name] - least)[1:])
    (start,) = methods.pop("no guidance")
    largest = torch.stack([at[name][:, 1] for name in methods["CFG"]]).amax(0)
    corners = torch.stack([at[start][:, 0], largest], dim=1).tolist()  # of each resample

    def volumes(names: list[str]):
        each = torch.stack([at[name] for name in names], dim=1).tolist()  # [resamples, settings, 2]
        return torch.tensor([hypervolume(map(tuple, p), tuple(c), (1.0, 0.0)) for p, c in zip(each, corners, strict=True)])

    volume, fronts = {method: volumes(names) for method, names in methods.items()}, {}
    for method, values in volume.items():
        fronts[method] = {"hypervolume": values[0].item(), "interval": interval(values[1:])}
        for rival in (name for name in regret.RIVALS if name in volume and name != method):
            gain = values - volume[rival]
            fronts[method] |= {f"over_{rival}": gain[0].item(), f"over_{rival}_interval": interval(gain[1:])}
    return {"points": rows, "fronts": fronts}


def digest(*files: Path) -> str:
    """Short name of what is in files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument("--methods", nargs="+", help="draw only these; figures are made from all that are there")
    parser.add_argument("--settings", nargs="+", help="of these only such settings: 3 0.4")
    parser.add_argument("--pictures", type=int, default=1024, help="per point (1024); 2048 where there is a GPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--draw-only", action="store_true", help="no figures")
    parser.add_argument("--output", type=Path, default=RESULTS / "quality.json")
    options = parser.parse_args()
    results, perfect = {}, None
    for variant in options.variants:
        demo = Demo(variant, options.pictures)
        gallery, judgement = Gallery(cache_folder() / "benchmarks" / "quality", demo), None
        for steps in options.steps:
            methods = Methods(demo, steps)
            points = {}
            for method, settings in {**methods.rivals(), **methods.ours(), **ablations(methods)}.items():
                for setting, build in settings.items():
                    wanted = method in (options.methods or [method]) and setting in (options.settings or [setting])
                    if point := gallery.point(steps, method, setting, build if wanted else None):
                        points[f"{method} {setting}".strip()] = point
            if options.draw_only:
                continue
            judgement = judgement or Judgement(gallery)
            perfect = perfect or judgement.perfect()
            results.setdefault(variant, {})[f"{steps}"] = judge(points, judgement)
    if results:
        write_results({"pictures": options.pictures, "perfect": perfect, "variants": results}, options.output, options.device)


if __name__ == "__main__":
    main()
