"""A ring of points in two dimensions, where all is known: what do constant scales and the learned one do to a class?

After the 2-D example of the paper (arXiv 2506.24108), designed anew. Data: narrow Gaussians side by side on a ring. A caption
names a direction; its own data is the quarter of the ring around it, with soft ends. The model predicts the posterior means for
captions of which WRONG belonged to other points: with right ones the conditional prediction is the best there is, and guidance
can only do harm; with some wrong, as collected captions are, guidance has something to put right. The scales are learned with the
pack's own profiler and fit from points with right captions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from study import fitted, save

# isort: split
import comfy.latent_formats
import comfy.samplers
import numpy
import torch
from annealing_guidance_pack.guidance import paper_schedule
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models.scale_model import ScaleModel
from annealing_guidance_pack.training.pictures import given_pictures
from annealing_guidance_pack.training.profile import ProfileSettings
from annealing_guidance_pack.training.shards import measure
from closed_form import closed_form_model
from common import confidence

POINTS, STEPS = 4096, (50, 20, 10)
CFG_SCALES = (1.0, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 12.0)
CFG_PP_SCALES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5)
LAMBDAS = (0.0, 0.4, 0.6, 0.8, 0.9, 1.0)
GRIDS = {"50 steps": 20, "5 steps": 200}  # what the scales are trained for, in timesteps per step; the first is the paper's
PICTURES, NOISE_LEVELS = 512, 49
LEVEL = 0.99  # share of aligned points at which the methods are compared

MODES, RADIUS, BLUR = 96, math.sqrt(2), 0.05  # so each coordinate has unit variance
ARC_END, SOFTNESS = math.cos(math.pi / 4), 0.05  # of a caption's part of the ring, as cosines: 45 degrees, over about 4
WRONG = 0.4
_ANGLES = torch.arange(MODES) * (2 * math.pi / MODES)
AXES = torch.stack([_ANGLES.cos(), _ANGLES.sin()], dim=1)  # the modes' directions, unit vectors: [M, 2]
UP = torch.tensor([[0.0, 1.0]])  # the caption that is drawn: by symmetry every other is the same


def mode_weights(direction: torch.Tensor, wrong: float = 0.0) -> torch.Tensor:
    """The modes' probabilities given captions, unit vectors [B, 2]: [B, M]."""
    right = torch.sigmoid((direction @ AXES.T - ARC_END) / SOFTNESS)
    return (1 - wrong) * right / right.sum(dim=1, keepdim=True) + wrong / MODES


def data(direction: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A point of each caption's own data: [B, 2]."""
    mode = torch.multinomial(mode_weights(direction), 1, generator=generator)[:, 0]
    return RADIUS * AXES[mode] + BLUR * torch.randn(len(mode), 2, generator=generator)


def denoised(x: torch.Tensor, sigma: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """E[x0 | x] for x = x0 + sigma noise: x [B, 2], sigma [B, 1], weights of the modes [B, M] -> [B, 2]."""
    variance = BLUR**2 + sigma**2
    centre = torch.softmax(weights.log() + x @ (RADIUS * AXES).T / variance, dim=1) @ (RADIUS * AXES)
    return centre + BLUR**2 / variance * (x - centre)


class RingDenoiser(torch.nn.Module):
    """The network of the model: answers with the noise, as an SDXL network does, for latents [B, 2, 1, 1]."""

    dtype = torch.float32

    def __init__(self, wrong: float) -> None:
        super().__init__()
        self.register_buffer("wrong", torch.tensor(wrong))  # a weight: by these profiles tell models apart

    def forward(self, x, timestep, context=None, transformer_options=None, **kwargs):
        sigmas = transformer_options["sigmas"]  # exact, where the timestep is the nearest entry of ComfyUI's table
        sigma = sigmas.repeat(len(x) // len(sigmas))[:, None]
        pointing = context[:, 0] @ AXES  # perturbed embeddings too; the empty prompt's is zero
        weights = mode_weights(torch.nn.functional.normalize(pointing), self.wrong)
        weights = torch.where((pointing == 0).all(dim=1, keepdim=True), 1 / MODES, weights)
        unscaled = x.flatten(1) * (sigma**2 + 1).sqrt()
        return ((unscaled - denoised(unscaled, sigma, weights)) / sigma).view_as(x)


def ring_model(wrong: float):
    """The MODEL as a loader node would return it: SDXL's noise schedule, latents of two channels."""
    model = closed_form_model()
    model.model.diffusion_model = RingDenoiser(wrong)
    model.model.latent_format = comfy.latent_formats.LatentFormat()
    model.model.latent_format.latent_channels = 2
    return model


def conditioning(direction: torch.Tensor) -> list:
    """The CONDITIONING of captions [B, 2]; of zero: of the empty prompt. Of unit variance, as text embeddings roughly are."""
    return [[math.sqrt(2) * (direction @ AXES.T)[:, None], {"pooled_output": None}]]


class MeanGap(ScaleModel):
    """A network that is told the batch's mean gap instead of each sample's own: a schedule over time and nothing more."""

    def __init__(self, network) -> None:
        super().__init__(network.info)
        self.network = network

    def forward(self, timestep, gap_norm, guidance_lambda):
        return self.network(timestep, gap_norm.mean().expand_as(gap_norm), guidance_lambda)


class Ring:
    """The model, the scales learned on it, and n points of noise, the same for all methods."""

    def __init__(self, n: int) -> None:
        self.model = ring_model(WRONG)
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn(n, 2, 1, 1, generator=generator)
        self.own_data = data(UP.expand(n, -1), generator)
        self.networks = {name: self.trained(grid) for name, grid in GRIDS.items()}

    def trained(self, grid: int):
        generator = torch.Generator().manual_seed(1)
        captions = torch.nn.functional.normalize(torch.randn(PICTURES, 2, generator=generator))
        pictures = given_pictures({"samples": data(captions, generator)[:, :, None, None]}, conditioning(captions))
        settings = ProfileSettings(grid, samples=NOISE_LEVELS)
        return fitted(measure(self.model, pictures, conditioning(torch.zeros(1, 2)), settings, batch_size=NOISE_LEVELS))

    def methods(self) -> Iterator[tuple]:
        """(method, its setting, guider, sampler)."""
        euler, cfg_pp = (comfy.samplers.sampler_object(name) for name in ("euler", "euler_cfg_pp"))

        def cfg(scale: float, model=self.model):
            guider = comfy.samplers.CFGGuider(model)
            guider.set_cfg(scale)
            return guider

        def annealing(scale_model, *settings):
            return AnnealingCFGGuider(self.model, Guidance(scale_model, *settings))

        yield "right captions, no guidance", 1.0, cfg(1.0, ring_model(0.0)), euler
        yield from (("CFG", scale, cfg(scale), euler) for scale in CFG_SCALES)
        yield from (("CFG++", scale, cfg(scale), cfg_pp) for scale in CFG_PP_SCALES)
        chosen, null = self.networks["5 steps"], null_renoising_sampler()
        for value in LAMBDAS:
            for name, network in self.networks.items():
                yield f"annealing, trained for {name}", value, annealing(network, value), null
            yield "annealing, gap at its mean", value, annealing(MeanGap(chosen), value), null
            yield "learned scale as CFG", value, annealing(chosen, value, "null", False), euler

    def sample(self, guider, sampler, steps: int) -> torch.Tensor:
        """Points [n, 2], from the paper's schedule."""
        guider.set_conds(conditioning(UP), conditioning(torch.zeros(1, 2)))
        sigmas = paper_schedule.sigmas(self.model.get_model_object("model_sampling"), steps)
        with torch.no_grad():
            empty = torch.zeros_like(self.noise)
            return guider.sample(self.noise, empty, sampler, sigmas, disable_pbar=True, seed=0).flatten(1)

    def measure(self, points: torch.Tensor) -> dict[str, float]:
        """How points compare with the caption's own data.

        aligned: share within the caption's quarter of the ring, with half its 95% interval. coverage: of those, over how many
        modes they spread (the exponential of the entropy), as a share of the modes over which the own data does. off_ring: mean
        distance from the ring's middle line. distance: energy distance to the own data, 0 for the same distribution.
        """
        n, inside = len(points), (torch.nn.functional.normalize(points) @ UP[0]) >= ARC_END
        counts = torch.bincount((points[inside] @ AXES.T).argmax(1), minlength=MODES)
        own = mode_weights(UP)[0] * ((AXES @ UP[0]) >= ARC_END)
        reached, whole = (torch.special.entr(part / part.sum().clamp(min=1e-9)).sum() for part in (counts, own))

        def apart(a: torch.Tensor, b: torch.Tensor) -> float:
            return torch.cdist(a, b).sum().item() / n / (n - 1 if a is b else n)

        return {
            "aligned": (aligned := inside.float().mean().item()),
            "aligned_interval": confidence(aligned, n),
            "coverage": (reached - whole).exp().item(),
            "off_ring": (points.norm(dim=1) - RADIUS).abs().mean().item(),
            "distance": 2 * apart(points, self.own_data) - apart(points, points) - apart(self.own_data, self.own_data),
        }


def at_level(rows: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Each method at LEVEL, on straight lines over log(1 - aligned) between its settings; without those that do not get there."""
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows.values()):
        own = sorted((r for r in rows.values() if r["method"] == method and r["aligned"] < 1), key=lambda row: row["aligned"])
        if own and own[0]["aligned"] <= LEVEL < own[-1]["aligned"]:
            at, places = math.log(1 - LEVEL), [math.log(1 - row["aligned"]) for row in reversed(own)]
            figures = {key: [row[key] for row in reversed(own)] for key in ("coverage", "off_ring", "distance", "setting")}
            found[method] = {key: float(numpy.interp(at, places, values)) for key, values in figures.items()}
    return found


def main() -> None:
    # One method uses the scale in a way that the pack advises against, once for every run.
    logging.getLogger("annealing_guidance").setLevel(logging.ERROR)
    ring = Ring(POINTS)
    results: dict[str, dict] = {str(steps): {} for steps in STEPS}
    for steps in STEPS:
        for method, setting, *run in ring.methods():
            row = {"method": method, "setting": setting, **ring.measure(ring.sample(*run, steps))}
            results[str(steps)][f"{method} {setting:g}"] = row
    compared = {steps: at_level(rows) for steps, rows in results.items()}
    settings = {"samples": POINTS, "wrong_captions": WRONG, "training_points": PICTURES, "level": LEVEL}
    save(__file__, {**settings, "at_level": compared, "steps": results})


if __name__ == "__main__":
    main()
