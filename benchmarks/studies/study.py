"""What the studies share. To be imported first: it makes ComfyUI and the pack importable.

A study is run once, to choose a constant of the product or to see how far an idea carries: `python tools/dev.py bench NAME`. Its
result is frozen in the JSON file beside it; README.md says what was asked, what came out, and what was chosen by it.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import PACK, load_hosts, write_results

if PACK not in sys.modules:
    load_hosts()

import torch
from annealing_guidance_pack.shapes.loader import load_shapes
from annealing_guidance_pack.training.bundled_scales import training_pictures
from annealing_guidance_pack.training.fit import FitSettings, ProfileLoss, best_constant_loss, fit, loss_ratio, mean_loss
from annealing_guidance_pack.training.knots import spread_knots
from annealing_guidance_pack.training.once import LARGEST_SCALE, own_grid
from annealing_guidance_pack.training.pictures import encode
from annealing_guidance_pack.training.profile import Profile, ProfileSettings
from annealing_guidance_pack.training.shards import measure
from common.demo import Demo
from common.measures import Gaussian, frechet_distance
from quality import Gallery

VARIANTS = "epsilon", "flow"
LAMBDAS = 0.0, 0.4, 0.8


def save(script: str, results: dict) -> None:
    """The result of a study, into the JSON file beside its script."""
    write_results(results, Path(script).with_suffix(".json"))


def counted(model) -> list[int]:
    """The rows of each of a MODEL's evaluations from now on: a list that grows."""
    rows: list[int] = []
    model.model.diffusion_model.register_forward_pre_hook(lambda network, args: rows.append(len(args[0])))
    return rows


def measured(
    variant: str, count: int, seed: int, samples: int = 4, knots: int = 9, grid=None, pictures=None, **settings
) -> tuple:
    """(the profile of a Shapes model, evaluations of the model for each picture).

    Of rendered pictures, or of those that `pictures`, (model, clip, vae) -> list, makes. grid: Train Annealing Scale's own.
    """
    model, clip, vae = load_shapes(variant)
    knots = spread_knots(0.0, LARGEST_SCALE, knots)
    settings = ProfileSettings(grid or own_grid(model), samples, knots, seed=seed, **settings)
    chosen = pictures(model, clip, vae) if pictures else training_pictures(clip, vae, count, seed)
    rows = counted(model)  # from here on: the model may have made the pictures
    return measure(model, chosen, encode(clip, ""), settings), sum(rows) / len(chosen)


def first_pictures(profile: Profile, count: int) -> Profile:
    """The same profile with so many of its pictures only."""
    entries = profile.entries
    return dataclasses.replace(profile, entries=entries[torch.isin(entries.picture, entries.picture.unique()[:count])])


def fitted(profile: Profile, **settings):
    """A scale network fitted to a profile."""
    return fit(profile, FitSettings(**settings), "study", "Shapes", "study", "Apache-2.0").network


class Judge:
    """What a scale network is worth on a profile of pictures that it was not fitted to."""

    def __init__(self, profile: Profile) -> None:
        self.entries = profile.entries
        ratio = loss_ratio(profile.entries, profile, FitSettings())
        self.loss = ProfileLoss(profile.entries, profile.settings.knots, ratio)
        self.best = best_constant_loss(self.loss, self.loss)

    def __call__(self, network) -> dict[str, float]:
        """Its loss, in per cent above that of the constant scales that are best on these very pictures; its mean scales."""
        with torch.no_grad():
            at = self.entries.timestep, self.entries.gap_norm
            scales = {f"scale at {value:g}": float(network(*at, value).mean()) for value in LAMBDAS}
        return {"above_best_constant_percent": 100 * (mean_loss(network, self.loss) / self.best - 1)} | scales


class Drawing(Demo):
    """Held-out prompts of the demo drawn, and what of them is right. references: renderings of each prompt, for the FD."""

    def __init__(self, variant: str, prompts: int, references: int) -> None:
        super().__init__(variant, prompts)
        self.gallery = Gallery(Path(), self)
        self.reference = Gaussian.of(self.gallery.rendered(references)["features"])

    def figures(self, guider, sampler, sigmas) -> dict[str, float]:
        drawn = self.gallery.draw(guider, sampler, sigmas)
        return {
            "right": drawn["right"].all(1).double().mean().item(),
            "fd": frechet_distance(self.reference, Gaussian.of(drawn["features"])),
            **{name: drawn[name].mean().item() for name in ("drawing_error", "colour_error", "saturation")},
        }
