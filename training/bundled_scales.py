"""Makes the scale networks that are bundled for the Shapes demo: `python tools/dev.py scale epsilon flow`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ..guidance import paper_schedule
from ..guidance.host_types import ModelSampling
from ..shapes.loader import VARIANTS, captioned_pictures, load_shapes
from .console import PictureLine, fit_and_save
from .fit import FitSettings, LossBalance
from .pictures import Picture, encode, given_pictures
from .profile import ProfileSettings, TrainingGrid
from .shards import MeasuredProfile, measure, measure_into

WEIGHTS = Path(__file__).resolve().parent.parent / "models" / "weights"
# At lambda 0 the fitted scale is near 1 on any grid. So the grid sets the strength there, and the balance of the loss sets how
# far lambda raises it. With these, lambda 0 to 0.9 spans what is useful on Shapes: CFG 3 to 5 on average. On the paper's 50 steps
# a scale of 1 already means CFG 12.
EPSILON_STEP = 100  # timesteps: 10 steps
FLOW_STEPS = 14
BALANCE: LossBalance = "ratio"
PICTURES, SAMPLES = 512, 4


def training_grid(variant: str, model_sampling: ModelSampling) -> TrainingGrid:
    """epsilon: every 100th timestep. flow: even times through the model's own shift, as the Paper Schedule node gives them."""
    return EPSILON_STEP if variant == "epsilon" else tuple(paper_schedule.sigmas(model_sampling, FLOW_STEPS).tolist())


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
    projection: bool = False,
) -> MeasuredProfile:
    """The profile of a Shapes model on a training grid (None: its own), kept in the folder if there is one.

    The negative is the empty prompt, which is zeros.
    """
    model, clip, vae = load_shapes(variant)
    grid = training_grid(variant, model.get_model_object("model_sampling")) if grid is None else grid
    settings = ProfileSettings(grid, samples=SAMPLES, seed=seed, projection=projection)
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
