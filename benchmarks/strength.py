"""How far the strength of matched annealing guidance moves with steps, solver and schedule.

    python tools/dev.py bench strength [--kinds epsilon flow] [--steps 8 10 20] [--samplers euler heun]

Models in closed form (Gaussian data, and one whose predictions bend). Each figure is the largest relative deviation of the final
latents, over five samples with their own lambda, from the reference:

    epsilon: against the authors' 50 DDIM steps, with their network. flow (shift 3): against 28 null-renoised steps, with a
             scale rule that needs no weights.
    CFG      plain CFG 7.5 against its own 1000 steps: what the solver itself gets wrong

The aim is at most twice CFG's figure, or 0.06, or 1.5 times the floor where that is larger; `*` marks figures above it, `!` burnt
ones (above 1 where CFG's is below). The floor: how far the reference itself is from the same guidance in 1000 steps, which no
accurate solver can undercut.

Stochastic samplers: 256 seeds of one caption at once, the latents' mean along the caption and their spread, each over that of
the reference over 256 noises. Prints tables and writes `benchmarks/results/strength.json`, for docs/BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from common import RESULTS, ROOT, load_hosts, pack_module, write_results

sys.path.insert(0, str(ROOT / "tests" / "support"))

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
STOCHASTIC = (
    *("euler_ancestral", "euler_ancestral_cfg_pp", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde"),
    *("dpmpp_2m_sde_heun", "dpmpp_3m_sde", "ddpm", "lcm", "res_multistep_ancestral", "er_sde", "seeds_2", "seeds_3"),
    *("sa_solver", "sa_solver_pece", "exp_heun_2_x0_sde"),
)
SEEDS = 256
SCHEDULES = ("karras", "normal", "simple", "sgm_uniform", "beta", "even")
STEPS = (8, 10, 20, 30, 50, 100)
OTHER_SAMPLERS = ("euler", "heun", "dpmpp_2m", "res_multistep", "uni_pc", "ipndm")
OTHER_SCHEDULES, OTHER_STEPS = ("karras", "normal", "simple"), (8, 10, 20, 30)
FLOW_REFERENCE_STEPS = 28
CFG = 7.5
AIM, AIM_OF_CFG, AIM_OF_FLOOR = 0.06, 2.0, 1.5


def authors_network():
    """From ANNEALING_OFFICIAL_CHECKPOINT, else from the folder of the servers that dev.py starts, fetched to it if need be."""
    from devkit.cache import cache_folder
    from devkit.server import base_folder

    catalogue = pack_module("models.catalogue")
    if not (path := os.environ.get("ANNEALING_OFFICIAL_CHECKPOINT")):
        folder = base_folder(cache_folder(), ROOT) / "models" / "annealing_guidance"
        path = catalogue.obtain(catalogue.OFFICIAL_SDXL, [folder])
    return pack_module("models.scale_file").load_scale(path)


@dataclasses.dataclass(frozen=True)
class Data:
    """Two predictions in closed form. predict: (is it a flow model, x [B, ...], sigma) to D_c and D_u.

    noise: [B, ...]; lambdas: [B], or one number. caption: the mean of the data, where it is one. spread: of the data with it.
    """

    predict: Callable
    noise: object
    lambdas: object
    caption: object = None
    spread: float = 0.0


@cache
def golden():
    from closed_form import paper_trajectory

    return paper_trajectory(50)


def gaussian(with_caption: float, without: float, means=None, noise=None, lambdas=None) -> Data:
    """The authors' example, with these standard deviations of the data."""
    import closed_form

    means = (golden().means if means is None else means).float()

    def predict(flow, x, sigma):
        denoised = closed_form.flow_denoised if flow else closed_form.ve_denoised
        return denoised(x, sigma, means, with_caption), denoised(x, sigma, 0.0, without)

    noise = golden().initial_noise if noise is None else noise
    return Data(predict, noise, golden().lambdas if lambdas is None else lambdas, means[0], with_caption)


def two_points() -> Data:
    """Every value of the latent is +m or -m with the caption, +0.3 or -0.3 without: predictions that bend."""
    import torch
    import two_points

    points = 0.4 + 0.6 * torch.rand(golden().means.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)

    def predict(flow, x, sigma):
        denoised = two_points.flow_denoised if flow else two_points.ve_denoised
        return denoised(x, sigma, points, 0.2), denoised(x, sigma, torch.tensor(0.3), 1.0)

    return Data(predict, golden().initial_noise, golden().lambdas)


class Denoiser:
    """A guided prediction as ComfyUI's samplers call it; guided: (D_c, D_u, sigma [B]) to the prediction that a sampler gets."""

    def __init__(self, model, data: Data, flow: bool, guided: Callable):
        self.inner_model = SimpleNamespace(model_patcher=model, inner_model=model.model)
        self.data, self.flow, self.guided = data, flow, guided

    def __call__(self, x, sigma, model_options=None, **_):
        column = (-1, *[1] * (x.ndim - 1))
        cond, uncond = self.data.predict(self.flow, x, sigma.view(column))
        denoised = self.guided(cond, uncond, sigma)
        # CFG++ samplers take the unconditional prediction from a hook.
        for hook in (model_options or {}).get("sampler_post_cfg_function", []):
            denoised = hook({"denoised": denoised, "uncond_denoised": uncond, "cond_denoised": cond, "uncond": [{}]})
        return denoised


class Benchmark:
    """One kind of closed-form model, its scale, and its references."""

    def __init__(self, kind: str, data: Data | None = None) -> None:
        import torch
        from closed_form import SmoothScale, closed_form_model
        from comfy.model_base import ModelType

        self.flow = kind == "flow"
        self.data = data or gaussian(golden().std_cond, golden().std_uncond)
        self.model = closed_form_model(ModelType.FLOW, {"shift": 3.0}) if self.flow else closed_form_model()
        self.sampling = self.model.get_model_object("model_sampling")
        if self.flow:
            times = torch.linspace(1, 0, FLOW_REFERENCE_STEPS + 1)
            self.grid = 3 * times / (1 + 2 * times)
            self.scale = SmoothScale("velocity", training_grid=tuple(self.grid.tolist()))
        else:
            self.grid = golden().sigmas(self.sampling)
            self.scale = authors_network()
            self.scale.info = dataclasses.replace(self.scale.info, reference_numel=None)  # see PaperTrajectory
        self.many = self.sigmas("even", 1000 if self.flow else 981)
        self.reference = self.annealing("annealing", self.grid, match_training_steps=False)
        self.cfg_reference = self.cfg("euler", self.many)

    @property
    def floor(self) -> float:
        """How far the reference itself is from what its steps would lead to if they were small: no solver can be nearer."""
        return max(deviation(self.annealing(name, self.many), self.reference) for name in ("euler", "heun"))

    def sigmas(self, schedule: str, steps: int):
        """Sigmas and a final 0; karras and even begin and end where the paper's 50 steps do, the others are ComfyUI's own."""
        import comfy.k_diffusion.sampling
        import comfy.samplers
        import torch

        first, last = (999, 1000 // FLOW_REFERENCE_STEPS - 1) if self.flow else (980, 0)
        table, zero = self.sampling.sigmas, torch.zeros(1)
        if schedule == "karras":
            return comfy.k_diffusion.sampling.get_sigmas_karras(steps, float(table[last]), float(table[first]))
        if schedule == "even" and self.flow:
            times = torch.linspace(1, 0, steps + 1)
            return 3 * times / (1 + 2 * times)
        if schedule == "even":
            return torch.cat([self.sampling.sigma(torch.linspace(first, last, steps)), zero])
        return comfy.samplers.calculate_sigmas(self.sampling, schedule, steps)

    def annealing(self, name: str, sigmas, match_training_steps: bool = True, stochastic: bool = False):
        """Final latents of the pack's guidance, by its own GuidedRun."""
        run_module, sampler = pack_module("guidance.run"), sampler_named(name, stochastic)
        guidance = run_module.Guidance(self.scale, self.data.lambdas, "auto", match_training_steps)
        guider = SimpleNamespace(model_patcher=self.model, model_options={})
        run = run_module.GuidedRun(guidance, guider, sampler, self.data.noise, sigmas)

        def guided(cond, uncond, sigma):
            level, call = run.guide(cond, uncond, sigma)
            scale = call.cfg_scale.view(-1, *[1] * (cond.ndim - 1))
            return run.deliver(level, cond, uncond, uncond + scale * (cond - uncond))

        return self.sample(sampler, sigmas, guided)

    def cfg(self, name: str, sigmas, stochastic: bool = False):
        """Final latents of plain CFG, with the sampler that renoises with the guided prediction."""
        import torch

        sampler = sampler_named("euler" if name == "annealing" else name.removesuffix("_cfg_pp"), stochastic)
        return self.sample(sampler, sigmas, lambda cond, uncond, sigma: torch.lerp(uncond, cond, CFG))

    def sample(self, sampler, sigmas, guided: Callable):
        import torch

        first, noise = sigmas[0].double(), self.data.noise
        # The start of the authors' runs: ComfyUI itself starts so only where the first sigma is the model's largest.
        x = noise * (first if self.flow else (1 + first**2) ** 0.5)
        sigmas = sigmas.clone()  # uni_pc writes its last one into it
        arguments = {"extra_args": {"seed": 0}, "callback": None, "disable": True, **sampler.extra_options}
        with torch.inference_mode(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            denoiser = Denoiser(self.model, self.data, self.flow, guided)
            x = sampler.sampler_function(denoiser, x.float(), sigmas, **arguments)
        return self.sampling.inverse_noise_scaling(sigmas[-1], x).double()

    def cell(self, sampler: str, schedule: str, steps: int) -> dict[str, float]:
        """Deviation of annealing guidance, and of plain CFG."""
        sigmas = self.sigmas(schedule, steps)
        cfg = deviation(self.cfg(sampler, sigmas), self.cfg_reference)
        return {"annealing": deviation(self.annealing(sampler, sigmas), self.reference), "cfg": cfg}

    def over_seeds(self, latents) -> tuple[float, float]:
        """Size of the mean latent along the caption, and the spread around it over the data's own."""
        mean, caption = latents.mean(0), self.data.caption.double()
        return ((mean * caption).sum() / caption.square().sum()).item(), (latents.std(0).mean() / self.data.spread).item()


def sampler_named(name: str, stochastic: bool = False):
    import comfy.samplers

    if name == "annealing":
        return pack_module("guidance.null_renoising").null_renoising_sampler(eta=float(stochastic))
    if name in OPTIONS and not stochastic:
        return comfy.samplers.ksampler(name, OPTIONS[name])
    return comfy.samplers.sampler_object(name)


def deviation(latent, reference) -> float:
    relative = (latent - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    return relative.nan_to_num(1e9, 1e9).max().clamp(max=1e9).item()


def mark(value: float, cfg: float, aim: float) -> str:
    if value > 1 > cfg:
        return "!"
    return "*" if value > max(aim, AIM_OF_CFG * cfg) else " "


def deterministic_table(benchmark: Benchmark, title: str, samplers, schedules, steps) -> dict:
    """Prints the deviations and (in brackets) those of CFG, and how many miss the aim."""
    floor = benchmark.floor
    aim, rows, marks = max(AIM, AIM_OF_FLOOR * floor), {}, []
    print(f"\n{title}: floor of the reference {floor:.3f}, aim {aim:.3f}", flush=True)
    for sampler in samplers:
        print(f"\n{title}, {sampler}: annealing (CFG) at {', '.join(map(str, steps))} steps", flush=True)
        for schedule in schedules:
            found = [benchmark.cell(sampler, schedule, n) for n in steps]
            row_marks = [mark(cell["annealing"], cell["cfg"], aim) for cell in found]
            texts = [f"{cell['annealing']:7.3f}{m}({cell['cfg']:.3f})" for cell, m in zip(found, row_marks, strict=True)]
            print(f"  {schedule:12}" + "  ".join(texts), flush=True)
            marks += row_marks
            values = {name: [float(f"{cell[name]:.3g}") for cell in found] for name in ("annealing", "cfg")}
            rows[f"{sampler}/{schedule}"] = {**values, "marks": row_marks}
    missed = len(marks) - marks.count(" ")
    print(f"{title}: {missed} of {len(marks)} cells miss the aim, {marks.count('!')} of them burnt", flush=True)
    return {"floor": round(floor, 4), "aim": round(aim, 4), "steps": list(steps), "rows": rows}


def stochastic_table(kind: str, samplers, steps) -> dict[str, dict]:
    """Prints strength and spread of annealing and (in brackets) of CFG, karras schedule; the references first."""
    import torch

    data = golden()
    noise = torch.randn(SEEDS, *data.means.shape[1:], generator=torch.Generator().manual_seed(0))
    one = gaussian(data.std_cond, data.std_uncond, data.means[2:3], noise, float(data.lambdas[2]))
    benchmark = Benchmark(kind, one)
    exact = benchmark.annealing("annealing", benchmark.grid, match_training_steps=False, stochastic=True)
    cfg = benchmark.cfg("euler_ancestral", benchmark.many, stochastic=True)
    references = {"annealing": benchmark.over_seeds(exact), "cfg": benchmark.over_seeds(cfg)}
    cells = {"reference": references}
    print(f"\n{kind}, {SEEDS} seeds: strength, spread (CFG's) at {', '.join(map(str, steps))} steps", flush=True)
    text = "{annealing[0]:.3f},{annealing[1]:.3f} ({cfg[0]:.3f},{cfg[1]:.3f})"
    print(f"  {'reference':24}{text.format(**references)}", flush=True)
    for sampler in samplers:
        row = {}
        for n in steps:
            sigmas = benchmark.sigmas("karras", n)
            latents = {"annealing": benchmark.annealing(sampler, sigmas, stochastic=True)}
            latents["cfg"] = benchmark.cfg(sampler, sigmas, stochastic=True)
            row[f"{sampler}/karras/{n}"] = {name: benchmark.over_seeds(latent) for name, latent in latents.items()}
        cells |= row
        print(f"  {sampler:24}" + "  ".join(text.format(**cell) for cell in row.values()), flush=True)
    return {name: {k: [round(v, 4) for v in pair] for k, pair in cell.items()} for name, cell in cells.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["epsilon", "flow"], choices=["epsilon", "flow"])
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    parser.add_argument("--stochastic", nargs="*", default=STOCHASTIC, help="samplers of the table over seeds")
    parser.add_argument("--parts", nargs="+", default=["authors", "others", "seeds"], choices=["authors", "others", "seeds"])
    parser.add_argument("--output", type=Path, default=RESULTS / "strength.json")
    options = parser.parse_args()
    import comfy.samplers
    import torch

    torch.set_num_threads(1)  # more threads wait for each other at such sizes
    logging.getLogger("annealing_guidance").setLevel(logging.ERROR)
    known = ("annealing", *comfy.samplers.SAMPLER_NAMES)
    samplers, stochastic = ([name for name in names if name in known] for names in (options.samplers, options.stochastic))
    others = {"0.8 and 1": gaussian(0.8, 1.0), "0.2 and 0.9": gaussian(0.2, 0.9), "two points": two_points()}
    for kind in options.kinds:
        if "authors" in options.parts:
            table = deterministic_table(Benchmark(kind), kind, samplers, SCHEDULES, options.steps)
            save(options.output, kind, "authors", table)
        for name, data in others.items() if "others" in options.parts else ():
            few = [n for n in OTHER_STEPS if n in options.steps]
            chosen = [sampler for sampler in OTHER_SAMPLERS if sampler in samplers]
            table = deterministic_table(Benchmark(kind, data), f"{kind}, {name}", chosen, OTHER_SCHEDULES, few)
            save(options.output, kind, name, table)
        if "seeds" in options.parts:
            table = stochastic_table(kind, stochastic, [n for n in options.steps if n <= 50])
            save(options.output, kind, "seeds", table)


def save(path: Path, kind: str, part: str, table: dict) -> None:
    """Into the file of results, whose other parts stay."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results.setdefault(kind, {})[part] = table
    write_results(results, path)


if __name__ == "__main__":
    load_hosts()
    main()
