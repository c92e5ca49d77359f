"""How far the strength of matched annealing guidance moves with steps, solver and schedule.

    python tools/dev.py bench strength [--kinds epsilon flow] [--steps 8 10 20] [--samplers euler heun]

Models in closed form (Gaussian data). Each figure is the largest relative deviation of the final latents, over five samples
with their own lambda, from the reference:

    before   matched, growing linearly with the step      after   matched and saturating: what the nodes do
    epsilon: against the authors' 50 DDIM steps, with their network. flow (shift 3): against 28 null-renoised steps, with a
             scale rule that needs no weights.
    CFG      plain CFG 7.5 against its own 1000 steps: what the solver itself gets wrong

The aim is at most twice CFG's figure, or 0.06 where that is larger; `*` marks figures above it, `!` burnt ones (above 1 where
CFG's is below). Prints tables and writes them to `benchmarks/results/strength.json`.

Measured with ComfyUI 0.3.75 (epsilon; cells above the aim, burnt ones in brackets, of 102 per step count):

    steps        8          10         20         30        50        100
    before    98 (70)    64 (50)    25 (8)     11 (0)     0 (0)     0 (0)
    after     20 (9)     25 (6)     25 (0)     10 (0)     0 (0)     0 (0)

The first-order samplers (at most 0.05), dpm_2, heunpp2 and dpmpp_2s miss nowhere. What is left is the solvers that
extrapolate (lms, ipndm, deis, dpmpp_2m, res_multistep, gradient_estimation, uni_pc) with schedules whose last steps are
large, and heun at 8 to 20 steps: a first-order saturation cannot keep a second-order solver's accuracy.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path

from prompt_following import ROOT, load_hosts, pack_module  # puts tools/ on the path

sys.path.insert(0, str(ROOT / "tests" / "support"))

SAMPLERS = (
    *("annealing", "euler", "euler_cfg_pp", "heun", "heunpp2", "dpm_2", "dpmpp_2s_ancestral", "lms", "dpmpp_2m", "ipndm"),
    *("ipndm_v", "deis", "res_multistep", "gradient_estimation", "ddim", "uni_pc", "uni_pc_bh2"),
)
OPTIONS = {"dpmpp_2s_ancestral": {"eta": 0.0}}  # its deterministic form
SCHEDULES = ("karras", "normal", "simple", "sgm_uniform", "beta", "even")
STEPS = (8, 10, 20, 30, 50, 100)
FLOW_REFERENCE_STEPS = 28
AIM, AIM_OF_CFG = 0.06, 2.0


def authors_network():
    """From ANNEALING_OFFICIAL_CHECKPOINT, else from the folder of the servers that dev.py starts, fetched to it if need be."""
    from devkit.cache import cache_folder
    from devkit.server import base_folder

    catalogue = pack_module("models.catalogue")
    if not (path := os.environ.get("ANNEALING_OFFICIAL_CHECKPOINT")):
        folder = base_folder(cache_folder(), ROOT) / "models" / "annealing_guidance"
        path = catalogue.obtain(catalogue.OFFICIAL_SDXL, [folder])
    return pack_module("models.scale_file").load_scale(path)


class Benchmark:
    """One kind of closed-form model, its scale, and its references."""

    def __init__(self, kind: str) -> None:
        import torch
        from closed_form import SmoothScale, closed_form_model, paper_trajectory
        from comfy.model_base import ModelType

        self.kind, self.data = kind, paper_trajectory(50)
        if kind == "epsilon":
            self.model = closed_form_model()
            self.sampling = self.model.get_model_object("model_sampling")
            self.scale = authors_network()
            self.scale.info = dataclasses.replace(self.scale.info, reference_numel=None)  # see PaperTrajectory
            self.reference = self.data.final_latent
        else:
            self.model = closed_form_model(ModelType.FLOW, {"shift": 3.0})
            self.sampling = self.model.get_model_object("model_sampling")
            times = torch.linspace(1, 0, FLOW_REFERENCE_STEPS + 1)
            grid = 3 * times / (1 + 2 * times)
            self.scale = SmoothScale("velocity", training_grid=tuple(grid.tolist()))
            self.reference = self.sample("annealing", grid, self.annealing(match_training_steps=False))
        self.cfg_reference = self.sample("euler", self.sigmas("even", 981 if kind == "epsilon" else 1000), self.cfg())

    def sigmas(self, schedule: str, steps: int):
        """Sigmas and a final 0; karras and even begin and end where the paper's 50 steps do, the others are ComfyUI's own."""
        import comfy.k_diffusion.sampling
        import comfy.samplers
        import torch

        first, last = (980, 0) if self.kind == "epsilon" else (999, 1000 // FLOW_REFERENCE_STEPS - 1)
        table, zero = self.sampling.sigmas, torch.zeros(1)
        if schedule == "karras":
            return comfy.k_diffusion.sampling.get_sigmas_karras(steps, float(table[last]), float(table[first]))
        if schedule == "even" and self.kind == "epsilon":
            return torch.cat([self.sampling.sigma(torch.linspace(first, last, steps)), zero])
        if schedule == "even":
            times = torch.linspace(1, 0, steps + 1)
            return 3 * times / (1 + 2 * times)
        return comfy.samplers.calculate_sigmas(self.sampling, schedule, steps)

    def cfg(self):
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_cfg(7.5)
        return guider

    def annealing(self, match_training_steps: bool = True):
        guidance = pack_module("guidance.step").Guidance(self.scale, self.data.lambdas, "auto", match_training_steps)
        return pack_module("guidance.guider").AnnealingCFGGuider(self.model, guidance)

    def sample(self, name: str, sigmas, guider):
        import comfy.samplers
        from closed_form import sample

        if name == "annealing":
            sampler = pack_module("guidance.sampler").null_renoising_sampler()
        elif name in OPTIONS:
            sampler = comfy.samplers.ksampler(name, OPTIONS[name])
        else:
            sampler = comfy.samplers.sampler_object(name)
        guider.set_conds(self.data.positive(), self.data.negative())
        noise = self.data.noise(sigmas[0]) if self.kind == "epsilon" else self.data.initial_noise.float()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            return sample(guider, sampler, sigmas, noise).double()

    def cell(self, sampler: str, schedule: str, steps: int) -> dict[str, float]:
        sigmas = self.sigmas(schedule, steps)
        plain = "euler" if sampler in ("annealing", "euler_cfg_pp") else sampler
        after = deviation(self.sample(sampler, sigmas, self.annealing()), self.reference)
        with linear_growth():
            before = deviation(self.sample(sampler, sigmas, self.annealing()), self.reference)
        return {
            "before": before,
            "after": after,
            "cfg": deviation(self.sample(plain, sigmas, self.cfg()), self.cfg_reference),
        }


@contextlib.contextmanager
def linear_growth():
    """Matching without its saturation."""
    folding = pack_module("guidance.folding")
    saturation = folding.saturation
    folding.saturation = lambda *arguments: 1.0
    try:
        yield
    finally:
        folding.saturation = saturation


def deviation(latent, reference) -> float:
    relative = (latent - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    return relative.nan_to_num(1e9, 1e9).max().item()


def figures(cell: dict[str, float]) -> str:
    before, after, cfg = cell["before"], cell["after"], cell["cfg"]
    return f"{before:7.3f}{mark(before, cfg)}/{after:6.3f}{mark(after, cfg)}({cfg:.3f})"


def mark(value: float, cfg: float) -> str:
    if value > 1 > cfg:
        return "!"
    return "*" if value > max(AIM, AIM_OF_CFG * cfg) else " "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["epsilon", "flow"], choices=["epsilon", "flow"])
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "strength.json")
    options = parser.parse_args()
    results: dict[str, dict] = {}
    for kind in options.kinds:
        benchmark, cells = Benchmark(kind), {}
        for sampler in options.samplers:
            print(f"\n{kind}, {sampler}: before / after (CFG) at {', '.join(map(str, options.steps))} steps", flush=True)
            for schedule in SCHEDULES:
                row = [benchmark.cell(sampler, schedule, steps) for steps in options.steps]
                cells |= {f"{sampler}/{schedule}/{n}": cell for n, cell in zip(options.steps, row, strict=True)}
                print(f"  {schedule:12}" + "  ".join(map(figures, row)), flush=True)
        for version in ("before", "after"):
            marks = [mark(cell[version], cell["cfg"]) for cell in cells.values()]
            missed = len(marks) - marks.count(" ")
            print(f"{kind}, {version}: {missed} of {len(marks)} cells miss the aim, {marks.count('!')} of them burnt", flush=True)
        results[kind] = cells
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{options.output}")


if __name__ == "__main__":
    load_hosts()
    main()
