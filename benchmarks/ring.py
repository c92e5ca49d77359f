"""A ring of points in two dimensions, where all is known: what constant scales and the learned one do to a class.

    python tools/dev.py bench ring

After the 2-D example of the paper (arXiv 2506.24108), designed anew. The model is exact for captions of which 40% are wrong, so
guidance has something to put right, and how much is known (common/ring_model.py says why and how). The scales are learned with
the pack's own profiler and fit, on points with right captions; the loss is the paper's. ComfyUI's guiders and samplers, the
paper's schedule, 4,096 points, the same noise for all. Some three minutes of one core. Writes benchmarks/results/ring.json and
docs/ring.png.

The exact scale of ordinary CFG is 1.67 (1/0.6) in noise and falls to 1.2 at the end. Measured at 50 steps (ComfyUI 0.3.75;
aligned: within the caption's quarter; coverage: share of it that is reached; distance: energy distance to its own data):

                                          aligned        coverage   off the ring   distance
    no guidance                            65.7% +-1.5   0.98       0.027          0.188 +-0.019
    CFG 2, the best constant               89.9% +-0.9   0.82       0.024          0.027 +-0.003
    CFG++ 0.15, the best constant          88.6% +-1.0   0.83       0.024          0.026 +-0.003
    CFG 5                                  99.7% +-0.2   0.38       0.040          0.192 +-0.004
    CFG++ 0.4                              99.8% +-0.2   0.34       0.043          0.214 +-0.004
    annealing, made for 50 steps, 0.4     100.0%         0.08       0.133          0.429 +-0.001
    annealing, made for 5 steps, 0         98.6% +-0.4   0.56       0.027          0.111 +-0.005
    annealing, made for 5 steps, 0.9       99.8% +-0.1   0.43       0.045          0.178 +-0.004
    the same scale as ordinary CFG, 0.8    93.7% +-0.7   0.85       0.022          0.018 +-0.002
    right captions, no guidance            94.6% +-0.7   0.98       0.027          0.000

- Made for the paper's 50 steps, the learned scale is far too strong here at every lambda and number of steps: at 50 like CFG++
  1.5 and more. At lambda 0 it comes near the exact scale of *ordinary CFG*, which null renoising makes twelve times as strong.
- Made for 5 steps it covers as much as CFG 3.5 to 5. At 99% aligned its coverage is level with the constants' (0.51 against
  CFG's 0.50 and CFG++'s 0.48; 0.50, 0.46 and 0.49 at 20 steps; 0.47, 0.40 and 0.46 at 10). Beyond that, from lambda 0.9 on, it
  is ahead: 0.43 at 99.8%, where CFG has 0.35 and CFG++ 0.33.
- No lambda leads below 98% aligned, so the smallest distance is 0.111, four times that of the best constants.
- Told the mean gap instead of each point's own, the network is no worse but slightly better (0.54 at 99% aligned): what helps
  here is its course over time, not its answer to the gap.
- The same scale taken for that of ordinary CFG, without null renoising, covers more than either constant at equal alignment,
  for every lambda and number of steps but one (level with CFG++ at lambda 0 and 10 steps). It is not the paper's method.

One fit each, one share of wrong captions, two dimensions: a picture to think with, no forecast for images.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from common import RESULTS, ROOT, confidence, load_hosts, pack_module, write_results

STEPS = (50, 20, 10)
CFG_SCALES = (1.0, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 12.0)
CFG_PP_SCALES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5)
LAMBDAS = (0.0, 0.4, 0.6, 0.8, 0.9, 1.0)
GRIDS = {"50 steps": 20, "5 steps": 200}  # what the scales are trained for, in timesteps per step; the first is the paper's
CHOSEN = "5 steps"
PICTURES, NOISE_LEVELS, FIT_STEPS = 512, 49, 2000
LEVEL = 0.99  # share of aligned points at which the methods are compared
HEADER = f"{'':44} {'aligned':16} {'coverage':16} {'off the ring':18} distance to the class's data"


def table_row(name: str, row: dict[str, float]) -> str:
    """One line of the printed table."""
    figures = (f"{row[key]:.3f} +- {row[key + '_interval']:.3f}" for key in ("aligned", "coverage"))
    figures = (*figures, *(f"{row[key]:.4f} +- {row[key + '_interval']:.4f}" for key in ("off_ring", "distance")))
    return f"{name:44} " + "   ".join(figures)


class Ring:
    """The ring's model, the caption "up", and what comes out under a guider: by symmetry every other caption is the same."""

    def __init__(self, n: int, wrong: float, seed: int = 0) -> None:
        import torch
        from common import ring_model

        self.world, self.wrong = ring_model, wrong
        self.model, self.unfailing = ring_model.ring_model(wrong), ring_model.ring_model(0.0)
        self.caption = torch.tensor([[0.0, 1.0]])
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(n, 2, 1, 1, generator=generator)
        self.own_data = ring_model.draw(ring_model.mode_weights(self.caption).expand(n, -1), generator)
        self.own_spread = self._mean_distance(self.own_data, self.own_data, n - 1).mean()

    @property
    def model_sampling(self):
        return self.model.get_model_object("model_sampling")

    def sample(self, guider, sampler, steps: int, callback=None):
        """Points [n, 2], from the paper's schedule."""
        import torch

        guider.set_conds(self.world.conditioning(self.caption), self.world.conditioning(None))
        sigmas = pack_module("guidance.paper_schedule").sigmas(self.model_sampling, steps)
        empty = torch.zeros_like(self.noise)
        with torch.no_grad():
            points = guider.sample(self.noise, empty, sampler, sigmas, callback=callback, disable_pbar=True, seed=0)
        return points.flatten(1)

    def measure(self, points) -> dict[str, float]:
        """How points [n, 2] compare with the caption's own data; each figure with half its 95% interval.

        aligned: share within the caption's quarter of the ring. coverage: of those, over how many modes they spread (the
        exponential of the entropy), as a share of the modes over which the caption's own data does. off_ring: mean distance
        from the ring's middle line. distance: energy distance to the caption's own data, 0 for the same distribution.
        """
        import torch

        world, n = self.world, len(points)
        inside = (torch.nn.functional.normalize(points) @ self.caption[0]) >= world.ARC_END
        nearest = (points[inside] @ world.AXES.T).argmax(1)
        share = torch.bincount(nearest, minlength=world.MODES) / max(len(nearest), 1)
        own = world.mode_weights(self.caption)[0] * ((world.AXES @ self.caption[0]) >= world.ARC_END)
        entropy = torch.special.entr(share).sum()
        coverage = (entropy - torch.special.entr(own / own.sum()).sum()).exp().item()
        spread = (torch.xlogy(share, share) * torch.where(share > 0, share, 1).log()).sum() - entropy**2  # of -log share
        off = (points.norm(dim=1) - world.RADIUS).abs()
        away = 2 * self._mean_distance(points, self.own_data, n)
        among = self._mean_distance(points, points, n - 1)
        aligned = inside.float().mean().item()
        return {
            "aligned": aligned,
            "aligned_interval": confidence(aligned, n),
            "coverage": coverage,
            "coverage_interval": 1.96 * coverage * (spread.clamp(min=0).item() / max(len(nearest), 1)) ** 0.5,
            "off_ring": off.mean().item(),
            "off_ring_interval": 1.96 * off.std().item() / math.sqrt(n),
            "distance": (away.mean() - among.mean() - self.own_spread).item(),
            "distance_interval": 1.96 * (away - 2 * among).std().item() / math.sqrt(n),
        }

    @staticmethod
    def _mean_distance(points, others, count: int):
        """Of each point to the others: [n]."""
        import torch

        return torch.cdist(points, others).sum(1) / count

    def train(self, grid: int):
        """A scale network learned with the pack's own profiler and fit, from points with right captions in all directions."""
        import torch

        training = {name: pack_module(f"training.{name}") for name in ("pictures", "profile", "shards", "fit")}
        generator = torch.Generator().manual_seed(1)
        captions = torch.nn.functional.normalize(torch.randn(PICTURES, 2, generator=generator))
        latents = self.world.draw(self.world.mode_weights(captions), generator)[:, :, None, None]
        pictures = training["pictures"].given_pictures({"samples": latents}, self.world.conditioning(captions))
        settings = training["profile"].ProfileSettings(grid, samples=NOISE_LEVELS)
        negative = self.world.conditioning(None)
        profile = training["shards"].measure(self.model, pictures, negative, settings, batch_size=NOISE_LEVELS)
        settings = training["fit"].FitSettings(steps=FIT_STEPS)
        return training["fit"].fit(profile, settings, "ring", "points on a ring", "", "Apache-2.0").network

    def cfg(self, scale: float, model=None):
        """ComfyUI's CFGGuider."""
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(model or self.model)
        guider.set_cfg(scale)
        return guider

    def annealing(self, scale_model, guidance_lambda: float, **settings):
        guidance = pack_module("guidance.run").Guidance(scale_model, guidance_lambda, **settings)
        return pack_module("guidance.guider").AnnealingCFGGuider(self.model, guidance)

    def methods(self, networks: dict) -> Iterator[tuple[str, float, object, object]]:
        """(method, its setting, guider, sampler). networks: by the steps they were trained for, as in GRIDS."""
        import comfy.samplers

        euler, cfg_pp = comfy.samplers.sampler_object("euler"), comfy.samplers.sampler_object("euler_cfg_pp")
        null = pack_module("guidance.null_renoising").null_renoising_sampler()
        yield "right captions, no guidance", 1.0, self.cfg(1.0, self.unfailing), euler
        for scale in CFG_SCALES:
            yield "CFG", scale, self.cfg(scale), euler
        for scale in CFG_PP_SCALES:
            yield "CFG++", scale, self.cfg(scale), cfg_pp
        for name, network in networks.items():
            for value in LAMBDAS:
                yield f"annealing, trained for {name}", value, self.annealing(network, value), null
        for value in LAMBDAS:
            yield "annealing, gap at its mean", value, self.annealing(mean_gap(networks[CHOSEN]), value), null
        for value in LAMBDAS:
            as_it_is = {"renoise": "null", "match_training_steps": False}
            yield "learned scale as CFG", value, self.annealing(networks[CHOSEN], value, **as_it_is), euler


def mean_gap(network):
    """The same network, told the batch's mean gap instead of each sample's own: a schedule over time and nothing more."""

    class MeanGap(pack_module("models.scale_model").ScaleModel):
        def forward(self, timestep, gap_norm, guidance_lambda):
            return network(timestep, gap_norm.mean().expand_as(gap_norm), guidance_lambda)

    return MeanGap(network.info)


def shown(rows: dict[str, dict]) -> dict[str, str]:
    """The rows that the figure shows as clouds, with their titles; the constants are those nearest to the class's data."""

    def best(method: str) -> str:
        return min((name for name, row in rows.items() if row["method"] == method), key=lambda name: rows[name]["distance"])

    cfg, cfg_pp = best("CFG"), best("CFG++")
    return {
        "right captions, no guidance 1": "the aim: right captions,\nno guidance",
        "CFG 1": "wrong captions,\nno guidance",
        cfg: f"{cfg}\n(the best constant)",
        cfg_pp: f"{cfg_pp}\n(the best constant)",
        "CFG 12": "CFG 12\n(too strong)",
        f"annealing, trained for {CHOSEN} 0": f"annealing, λ 0\n(made for {CHOSEN})",
        f"annealing, trained for {CHOSEN} 0.8": f"annealing, λ 0.8\n(made for {CHOSEN})",
        f"annealing, trained for {CHOSEN} 1": f"annealing, λ 1\n(made for {CHOSEN})",
        "annealing, trained for 50 steps 0.4": "annealing, λ 0.4\n(made for 50 steps)",
        "learned scale as CFG 0.8": "same scale, λ 0.8,\nas ordinary CFG",
    }


def at_level(rows: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Each method at LEVEL, between its two settings around it; without the methods that do not get there.

    Straight lines over log(1 - aligned), as the figure draws them.
    """
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows.values()):
        own = sorted((row for row in rows.values() if row["method"] == method), key=lambda row: row["aligned"])
        for low, high in pairwise(own):
            if low["aligned"] <= LEVEL < high["aligned"] < 1:
                ends = [math.log(1 - row["aligned"]) for row in (low, high)]
                part = (math.log(1 - LEVEL) - ends[0]) / (ends[1] - ends[0])
                figures = ("coverage", "off_ring", "distance", "setting")
                found[method] = {key: low[key] + part * (high[key] - low[key]) for key in figures}
    return found


def clouds(ring: Ring, networks: dict, rows: dict[str, dict]) -> list:
    """These rows sampled again, for the figure: ring_figure.Cloud each."""
    import torch
    from common.ring_figure import Cloud

    guiders = {f"{method} {setting:g}": run for method, setting, *run in ring.methods(networks)}
    sigmas = pack_module("guidance.paper_schedule").sigmas(ring.model_sampling, STEPS[0])
    made = []
    for name, title in shown(rows).items():
        way = []
        points = ring.sample(*guiders[name], STEPS[0], lambda step, x0, x, steps, way=way: way.append(x.flatten(1)))
        path = torch.stack([*way, points]) / (1 + sigmas[:, None, None] ** 2).sqrt()
        made.append(Cloud(title, points, path, rows[name]))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4096, help="points for every method")
    parser.add_argument("--wrong", type=float, default=0.4, help="share of wrong captions that the model has learned from")
    parser.add_argument("--output", type=Path, default=RESULTS / "ring.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "ring.png")
    options = parser.parse_args()
    from common.ring_figure import write_figure

    # One method uses the scale in a way that the pack advises against, once for every run.
    logging.getLogger("annealing_guidance").setLevel(logging.ERROR)
    ring = Ring(options.samples, options.wrong)
    networks = {}
    for name, grid in GRIDS.items():
        print(f"training a scale for {name}", flush=True)
        networks[name] = ring.train(grid)
    results: dict[str, dict] = {}
    for steps in STEPS:
        print(f"\n{steps} steps, {options.samples} points\n{HEADER}", flush=True)
        rows = results[str(steps)] = {}
        for method, setting, guider, sampler in ring.methods(networks):
            name = f"{method} {setting:g}"
            rows[name] = {"method": method, "setting": setting, **ring.measure(ring.sample(guider, sampler, steps))}
            print(table_row(name, rows[name]), flush=True)
    compared = {steps: at_level(rows) for steps, rows in results.items()}
    for steps, methods in compared.items():
        for method, row in methods.items():
            print(f"{steps} steps, at {LEVEL:.0%} aligned: {method:34} " + "  ".join(f"{k} {v:.3f}" for k, v in row.items()))
    settings = {"samples": options.samples, "wrong_captions": options.wrong, "training_points": PICTURES, "level": LEVEL}
    write_results({**settings, "at_level": compared, "steps": results}, options.output)
    rows = results[str(STEPS[0])]
    write_figure(clouds(ring, networks, rows), rows, networks["50 steps"], options.wrong, options.figure)
    print(options.figure)


if __name__ == "__main__":
    load_hosts()
    main()
