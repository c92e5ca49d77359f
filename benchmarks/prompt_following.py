"""How often the Shapes demo draws what the prompt says, and how cleanly, with and without annealing guidance.

    python tools/dev.py bench prompt_following

512 prompts of scenes that no training saw, the same noise for every method, ComfyUI's own guiders and samplers. Prints a table
and writes it to `benchmarks/results/prompt_following.json`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from devkit import SetupError  # noqa: E402
from devkit.in_process import PACK, import_comfyui, import_pack  # noqa: E402

STEPS = 50
CFG_SCALES = (1.0, 2.0, 3.0, 5.0, 7.5)
CFG_PP_SCALES = (0.4,)
LAMBDAS = (0.0, 0.4, 0.8)
BATCH = 64
HEADER = f"{'':50} prompts right      drawing error"


def load_hosts() -> None:
    """Make the ComfyUI of COMFYUI_PATH and the pack importable; before anything else."""
    try:
        import_comfyui(Path(os.environ["COMFYUI_PATH"]), cpu=True)
    except SetupError as error:
        sys.exit(f"dev.py bench: {error}")
    import_pack(ROOT)


def pack_module(name: str) -> ModuleType:
    """A module of the pack."""
    return importlib.import_module(f"{PACK}.{name}")


def confidence(share: float, n: int) -> float:
    """Half the width of the 95% interval of a share (Wilson)."""
    z = 1.96
    return z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)


def table_row(name: str, row: dict[str, float]) -> str:
    """One line of the printed table."""
    share = f"{100 * row['prompts_right']:5.1f}% +- {100 * row['interval']:.1f}"
    return f"{name:50} {share:18} {row['drawing_error']:10.4f}"


class Benchmark:
    """One variant of the demo, its held-out prompts, and the noise that all methods share."""

    def __init__(self, variant: str, n: int) -> None:
        import torch

        scenes, files = pack_module("shapes.scenes"), pack_module("shapes.files")
        self.model, clip, self.vae = pack_module("shapes.loader").load_shapes(variant)
        prompts, numbers = scenes.held_out_prompts()
        every = len(prompts) // n
        self.prompts, self.numbers = prompts[::every][:n], numbers[::every][:n]
        self.positive = torch.cat([clip.encode(prompt) for prompt in self.prompts])
        self.negative = [[clip.encode(""), {}]]
        self.noise = torch.stack([torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(n)])
        self.judge = files.load_part("judge", pack_module("shapes.judge").Judge())
        self.scale = pack_module("nodes.scale").load_scale_by_name(f"shapes_{variant}.safetensors")

    def paper_sigmas(self, steps: int = STEPS):
        return pack_module("guidance.paper_schedule").sigmas(self.model.get_model_object("model_sampling"), steps)

    def cfg(self, scale: float):
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_cfg(scale)
        return guider

    def annealing(self, scale_model, guidance_lambda: float):
        guidance = pack_module("guidance.step").Guidance(scale_model, guidance_lambda)
        return pack_module("guidance.guider").AnnealingCFGGuider(self.model, guidance)

    def pictures(self, guider, sampler, sigmas):
        """Batches of drawn pictures [b, 3, 32, 32] and the rows of the prompts they belong to."""
        import torch

        for rows in torch.arange(len(self.prompts)).split(BATCH):
            guider.set_conds([[self.positive[rows], {}]], self.negative)
            empty = torch.zeros(len(rows), 4, 16, 16)
            latents = guider.sample(self.noise[rows], empty, sampler, sigmas, disable_pbar=True, seed=0)
            yield self.vae.decode(latents).movedim(-1, 1)[:, :, ::4, ::4], rows

    def measure(self, guider, sampler, sigmas) -> dict[str, float]:
        """Share of prompts drawn entirely right, its 95% interval, and the mean drawing error (0..1)."""
        import torch

        right, error = [], []
        for pictures, rows in self.pictures(guider, sampler, sigmas):
            right.append(self.judge.right(pictures, self.numbers[rows]))
            error.append(self.judge.drawing_error(pictures))
        share = torch.cat(right).float().mean().item()
        return {
            "prompts_right": share,
            "interval": confidence(share, len(self.prompts)),
            "drawing_error": torch.cat(error).mean().item(),
        }

    def methods(self) -> dict[str, Callable[[], dict[str, float]]]:
        """Name to measurement, 50 steps of the paper's schedule unless the name says otherwise."""
        import comfy.samplers

        euler, dpmpp_2m = comfy.samplers.sampler_object("euler"), comfy.samplers.sampler_object("dpmpp_2m")
        null = pack_module("guidance.sampler").null_renoising_sampler()
        fixed = pack_module("models.fixed_scale").FixedScale
        sigmas = self.paper_sigmas()
        quick = comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "karras", 20)
        methods = {}
        for scale in CFG_SCALES:
            name = f"CFG {scale:g}" if scale != 1 else "no guidance (CFG 1)"
            methods[name] = lambda scale=scale: self.measure(self.cfg(scale), euler, sigmas)
        for scale in CFG_PP_SCALES:
            rule = fixed("constant", scale)
            methods[f"CFG++ {scale:g}"] = lambda rule=rule: self.measure(self.annealing(rule, 0.0), null, sigmas)
        for value in LAMBDAS:
            methods[f"annealing, lambda {value:g}"] = lambda value=value: self.measure(
                self.annealing(self.scale, value), null, sigmas
            )
        if self.scale.info.prediction == "epsilon":
            methods["CFG 5, dpmpp_2m karras, 20 steps"] = lambda: self.measure(self.cfg(5.0), dpmpp_2m, quick)
            methods["annealing, lambda 0.4, dpmpp_2m karras, 20 steps"] = lambda: self.measure(
                self.annealing(self.scale, 0.4), dpmpp_2m, quick
            )
        return methods


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["epsilon", "flow"], choices=["epsilon", "flow"])
    parser.add_argument("--prompts", type=int, default=512, help="how many of the 512 held-out prompts")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "prompt_following.json")
    options = parser.parse_args()
    results: dict[str, dict] = {}
    for variant in options.variants:
        print(f"\n{variant}, {options.prompts} held-out prompts, {STEPS} steps", flush=True)
        print(HEADER, flush=True)
        results[variant] = {}
        for name, method in Benchmark(variant, options.prompts).methods().items():
            row = results[variant][name] = method()
            print(table_row(name, row), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"prompts": options.prompts, "steps": STEPS, "variants": results}, indent=1) + "\n")
    print(f"\n{options.output}")


if __name__ == "__main__":
    load_hosts()
    main()
