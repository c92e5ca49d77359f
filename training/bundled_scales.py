"""Makes the scale networks that are bundled for the Shapes demo: `python tools/dev.py scale epsilon flow`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ..shapes.loader import VARIANTS, captioned_pictures, load_shapes
from .console import PictureLine, fit_and_save
from .fit import FitSettings, LossBalance
from .once import own_grid
from .pictures import Picture, encode, given_pictures
from .profile import ProfileSettings, TrainingGrid
from .shards import MeasuredProfile, measure, measure_into

WEIGHTS = Path(__file__).resolve().parent.parent / "models" / "weights"
# What came out best on Shapes, on the steps of once.own_grid (benchmarks/studies/projection.py).
PROJECTION, PERTURB = True, False
BALANCE: LossBalance = "ratio"
PICTURES, SAMPLES = 512, 4


def training_pictures(clip: Any, vae: Any, count: int, seed: int) -> list[Picture]:
    """Pictures (latents 4 x 16 x 16) that the renderer draws, with their captions; never of held-out scenes."""
    pictures, said = captioned_pictures(count, seed)
    with torch.no_grad():
        latents = torch.cat([vae.encode(part) for part in pictures.split(64)])
        captions = [encode(clip, text) for text in said]
    return given_pictures({"samples": latents}, captions)


def measure_shapes(
    variant: str,
    pictures: int,
    seed: int = 0,
    grid: TrainingGrid | None = None,
    folder: Path | None = None,
) -> MeasuredProfile:
    """The profile of a Shapes model on a training grid (None: its own), kept in the folder if there is one.

    The negative is the empty prompt, which is zeros.
    """
    model, clip, vae = load_shapes(variant)
    settings = ProfileSettings(grid or own_grid(model), samples=SAMPLES, perturb=PERTURB, seed=seed, projection=PROJECTION)
    negative = encode(clip, "")
    drawn = training_pictures(clip, vae, pictures, seed)
    inputs = model, drawn, negative, settings
    line = PictureLine(variant)
    return measure_into(folder, *inputs, progress=line) if folder else measure(*inputs, progress=line)


def fit_shapes(variant: str, profile: MeasuredProfile, settings: FitSettings, folder: Path) -> None:
    """Fit, write `shapes_<variant>.safetensors` into the folder, and print what came out."""
    fit_and_save(
        profile,
        settings,
        folder / f"shapes_{variant}.safetensors",
        trained_on=f"Shapes demo model, {variant} variant, on pictures of its own renderer",
        source="bundled with Annealing Guidance",
        licence="Apache-2.0",
    )


def main(arguments: list[str]) -> None:
    """Measure, fit and save what the command line asks for."""
    parser = argparse.ArgumentParser(prog="dev.py scale", description=__doc__)
    parser.add_argument("variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--pictures", type=int, default=PICTURES, help=f"training pictures ({PICTURES})")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="folder for the scale files (models/weights)")
    parser.add_argument("--profiles", type=Path, help="folder for the profiles: what is measured there is kept")
    options = parser.parse_args(arguments)
    for variant in options.variants:
        folder = options.profiles / f"shapes_{variant}" if options.profiles else None
        profile = measure_shapes(variant, options.pictures, folder=folder)
        fit_shapes(variant, profile, FitSettings(loss_balance=BALANCE), options.output)
