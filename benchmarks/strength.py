"""How far the strength of matched annealing guidance moves with steps, solver and schedule.

    python tools/dev.py bench strength

Models in closed form (Gaussian data, and one whose predictions bend). Each figure is the largest relative deviation of the final
latents, over five samples with their own lambda, from the reference:

    epsilon: against the authors' 50 DDIM steps, with their network. flow (shift 3): against 28 null-renoised steps, with a
             scale rule that needs no weights.
    CFG      plain CFG 7.5 against its own 1000 steps: what the solver itself gets wrong

The aim is at most twice CFG's figure, or 0.06, or 1.5 times the floor where that is larger; `*` marks figures above it, `!` burnt
ones (above 1 where CFG's is below). The floor: how far the reference itself is from the same guidance in 1000 steps, which no
accurate solver can undercut.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from pathlib import Path

from common import RESULTS, ROOT, load_hosts, write_results

if __name__ == "__main__":
    load_hosts()

import comfy.k_diffusion.sampling
import comfy.samplers
import torch
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models import catalogue
from annealing_guidance_pack.models.scale_file import load_scale
from closed_form import SmoothScale, closed_form_model, conditioning, paper_trajectory
from comfy.model_base import ModelType
from devkit.server import base_folder
from two_points import TwoPointDenoiser

# Every sampler of ComfyUI that is deterministic, as it is or with OPTIONS; those that the host lacks are left out.
SAMPLERS = (
    *("annealing", "euler", "euler_cfg_pp", "ddim", "heun", "heunpp2", "exp_heun_2_x0", "dpm_2", "dpm_fast", "dpm_adaptive"),
    *("dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "seeds_2", "seeds_3", "lms", "dpmpp_2m"),
    *("dpmpp_2m_cfg_pp", "dpmpp_3m_sde", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp"),
    *("gradient_estimation", "gradient_estimation_cfg_pp", "uni_pc", "uni_pc_bh2", "sa_solver", "sa_solver_pece"),
)
NO_NOISE = ("dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "seeds_2", "seeds_3", "dpmpp_sde", "dpmpp_3m_sde")
OPTIONS = {name: {"eta": 0.0} for name in NO_NOISE}
OPTIONS |= {name: {"tau_func": lambda sigma: 0.0} for name in ("sa_solver", "sa_solver_pece")}
SCHEDULES = ("karras", "normal", "simple", "sgm_uniform", "beta", "even")
STEPS = (8, 10, 20, 30, 50)
OTHER_SAMPLERS = ("euler", "heun", "dpmpp_2m", "res_multistep", "uni_pc", "ipndm")
OTHER_SCHEDULES, OTHER_STEPS = ("karras", "normal", "simple"), (8, 10, 20, 30)
FLOW_REFERENCE_STEPS = 28
CFG = 7.5
AIM, AIM_OF_CFG, AIM_OF_FLOOR = 0.06, 2.0, 1.5


def authors_network():
    """From ANNEALING_OFFICIAL_CHECKPOINT, else from the folder of the servers that dev.py starts, fetched to it if need be."""
    if not (path := os.environ.get("ANNEALING_OFFICIAL_CHECKPOINT")):
        folder = base_folder(ROOT) / "models" / "annealing_guidance"
        path = catalogue.obtain(catalogue.OFFICIAL_SDXL, [folder])
    network = load_scale(path)
    network.info = dataclasses.replace(network.info, reference_numel=None)  # see PaperTrajectory
    return network


class Case:
    """A closed-form model, a scale, and what they come to in the reference.

    data: standard deviations of Gaussian data with and without caption, as the authors' example has them; None: every value is
    +m or -m with the caption, +0.3 or -0.3 without, so predictions bend.
    """

    def __init__(self, flow: bool, data: tuple[float, float] | None) -> None:
        self.flow, self.golden = flow, paper_trajectory(50)
        self.model = closed_form_model(ModelType.FLOW, {"shift": 3.0}) if flow else closed_form_model()
        self.sampling = self.model.get_model_object("model_sampling")
        means = self.golden.means
        if data:
            self.conditions = conditioning(means, data[0]), conditioning(torch.zeros_like(means[:1]), data[1])
        else:
            self.model.model.diffusion_model = TwoPointDenoiser()
            self.model.model.diffusion_model.model_sampling = self.sampling
            points = 0.4 + 0.6 * torch.rand(means.shape, generator=torch.Generator().manual_seed(0))
            self.conditions = conditioning(points, 0.2), conditioning(torch.full_like(means[:1], 0.3), 1.0)
        grid = self.sigmas("even", FLOW_REFERENCE_STEPS) if flow else self.golden.sigmas(self.sampling)
        self.scale = SmoothScale("velocity", training_grid=tuple(grid.tolist())) if flow else authors_network()
        many = self.sigmas("even", 1000 if flow else 981)
        self.reference = self.annealing("annealing", grid, match_training_steps=False)
        self.cfg_reference = self.cfg("euler", many)
        self.floor = max(deviation(self.annealing(name, many), self.reference) for name in ("euler", "heun"))

    def sigmas(self, schedule: str, steps: int) -> torch.Tensor:
        """Sigmas and a final 0; karras and even begin and end where the paper's 50 steps do, the others are ComfyUI's own."""
        first, last = (999, 1000 // FLOW_REFERENCE_STEPS - 1) if self.flow else (980, 0)
        table = self.sampling.sigmas
        if schedule == "karras":
            return comfy.k_diffusion.sampling.get_sigmas_karras(steps, float(table[last]), float(table[first]))
        if schedule == "even" and self.flow:
            times = torch.linspace(1, 0, steps + 1)
            return 3 * times / (1 + 2 * times)
        if schedule == "even":
            return torch.cat([self.sampling.sigma(torch.linspace(first, last, steps)), torch.zeros(1)])
        return comfy.samplers.calculate_sigmas(self.sampling, schedule, steps)

    def annealing(self, name: str, sigmas: torch.Tensor, match_training_steps: bool = True) -> torch.Tensor:
        """Final latents of the pack's guidance."""
        guidance = Guidance(self.scale, self.golden.lambdas, "auto", match_training_steps)
        return self.sample(AnnealingCFGGuider(self.model, guidance), name, sigmas)

    def cfg(self, name: str, sigmas: torch.Tensor) -> torch.Tensor:
        """Final latents of plain CFG, with the sampler that renoises with the guided prediction."""
        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_cfg(CFG)
        return self.sample(guider, "euler" if name == "annealing" else name.removesuffix("_cfg_pp"), sigmas)

    def sample(self, guider, name: str, sigmas: torch.Tensor) -> torch.Tensor:
        noise = self.golden.initial_noise.float()
        # The start of the authors' runs, as a latent without noise: ComfyUI scales noise so only where the first sigma is the
        # model's largest. On flow models both are the same.
        start = (noise, torch.zeros_like(noise)) if self.flow else (torch.zeros_like(noise), noise * (1 + sigmas[0] ** 2) ** 0.5)
        guider.set_conds(*self.conditions)
        with torch.inference_mode():
            return guider.sample(*start, sampler_named(name), sigmas.clone(), disable_pbar=True, seed=0).double()


def sampler_named(name: str) -> comfy.samplers.Sampler:
    if name == "annealing":
        return null_renoising_sampler()
    return comfy.samplers.ksampler(name, OPTIONS[name]) if name in OPTIONS else comfy.samplers.sampler_object(name)


def deviation(latent: torch.Tensor, reference: torch.Tensor) -> float:
    relative = (latent - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    return float(f"{relative.nan_to_num(1e9, 1e9).max().clamp(max=1e9).item():.3g}")


def deviations(case: Case, samplers, schedules, steps) -> dict:
    """By sampler and schedule: annealing's deviations at each number of steps, CFG's, and which of them miss the aim."""
    aim, rows = max(AIM, AIM_OF_FLOOR * case.floor), {}
    for name in samplers:
        for schedule in schedules:
            runs = [case.sigmas(schedule, n) for n in steps]
            ours = [deviation(case.annealing(name, sigmas), case.reference) for sigmas in runs]
            cfg = [deviation(case.cfg(name, sigmas), case.cfg_reference) for sigmas in runs]
            missed = [a > max(aim, AIM_OF_CFG * c) for a, c in zip(ours, cfg, strict=True)]
            marks = ["!" if a > 1 > c else "*" if miss else " " for a, c, miss in zip(ours, cfg, missed, strict=True)]
            rows[f"{name}/{schedule}"] = {"annealing": ours, "cfg": cfg, "marks": marks}
            print(f"{name:26} {schedule:12} {ours} (CFG {cfg}) {marks}", flush=True)
    return {"floor": round(case.floor, 4), "aim": round(aim, 4), "steps": steps, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "strength.json")
    options = parser.parse_args()
    torch.set_num_threads(1)  # more threads wait for each other at such sizes
    logging.getLogger("annealing_guidance").setLevel(logging.ERROR)
    golden = paper_trajectory(50)
    others = {"0.8 and 1": (0.8, 1.0), "0.2 and 0.9": (0.2, 0.9), "two points": None}
    known = [name for name in SAMPLERS if name in ("annealing", *comfy.samplers.SAMPLER_NAMES)]
    results: dict[str, dict] = {}
    for kind in ("epsilon", "flow"):
        flow = kind == "flow"
        results[kind] = {"authors": deviations(Case(flow, (golden.std_cond, golden.std_uncond)), known, SCHEDULES, STEPS)}
        for name, data in others.items():
            print(f"{kind}, {name}")
            results[kind][name] = deviations(Case(flow, data), OTHER_SAMPLERS, OTHER_SCHEDULES, OTHER_STEPS)
    write_results(results, options.output)


if __name__ == "__main__":
    main()
