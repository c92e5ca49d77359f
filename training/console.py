"""What the training commands print: the progress, the fit, the fitted scale."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ..models.scale_file import save_scale
from ..models.scale_network import ScaleNetwork
from .fit import Check, FitSettings, fit
from .own_scale import fingerprint_text
from .pace import Pace
from .profile import Profile
from .shards import MeasuredProfile

SHOWN_LAMBDAS = (0.0, 0.4, 0.8)
EVERY_S = 0.5


class PictureLine:
    """A progress callback (done, total): one line with the pictures done, their pace and the time left."""

    def __init__(self, label: str):
        self.label = label
        self.pace = Pace()
        self.printed = -EVERY_S

    def __call__(self, done: int, total: int) -> None:
        """Print the line, twice a second at most."""
        text = f"\r{self.label}: {self.pace.words(done, total)}"
        if done < total and time.monotonic() - self.printed < EVERY_S:
            return
        self.printed = time.monotonic()
        print(f"{text:78}", end="\n" if done == total else "", flush=True)


def fit_and_save(profile: MeasuredProfile, settings: FitSettings, path: Path, **facts: str) -> ScaleNetwork:
    """Fit, save, and print the result. facts: trained_on, source, licence; the name is the file's.

    AnnealingError for an unusable profile, and for a file that cannot be written.
    """
    began = time.monotonic()

    def progress(step: int, steps: int, history: list[Check]) -> None:
        print(f"\r{path.stem}: step {step}/{steps}, held-out loss {history[-1].held_out_loss:.6f} ", end="", flush=True)

    result = fit(profile, settings, name=path.stem, progress=progress, fingerprint=fingerprint_text(profile.model), **facts)
    save_scale(result.network, path)
    print(f"\r{path.stem}: fitted in {time.monotonic() - began:.0f} s, {path}")
    print(f"  held-out loss {result.held_out_loss:.6f}; the best constant scale for each lambda {result.constant_loss:.6f}")
    print_scales(result.network, profile)
    return result.network


@torch.no_grad()
def print_scales(network: ScaleNetwork, profile: Profile, bands: int = 10) -> None:
    """The fitted scale over a run for a few lambdas, each at the median gap of its band of timesteps."""
    entries = profile.entries
    print("  timestep  gap norm   " + "  ".join(f"lambda {value:.1f}" for value in SHOWN_LAMBDAS))
    for rows in entries.timestep.argsort(descending=True).tensor_split(bands):
        timestep, norm = entries.timestep[rows].median(), entries.gap_norm[rows].median()
        scales = [float(network(timestep[None], norm[None], value)) for value in SHOWN_LAMBDAS]
        print(f"  {timestep:8.0f}  {norm:8.2f}   " + "  ".join(f"{scale:10.3f}" for scale in scales))
