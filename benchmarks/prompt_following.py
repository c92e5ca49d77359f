"""How often the Shapes demo draws what the prompt says, and how cleanly, with and without annealing guidance.

    python tools/dev.py bench prompt_following

512 prompts of scenes that no training saw, the same noise for every method, ComfyUI's own guiders and samplers. Prints a table
and writes it to `benchmarks/results/prompt_following.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from common import RESULTS, confidence, load_hosts, pack_module, write_results
from common.demo import Demo

STEPS = 50
CFG_SCALES = (1.0, 2.0, 3.0, 5.0, 7.5)
CFG_PP_SCALES = (0.4,)
LAMBDAS = (0.0, 0.4, 0.8)
HEADER = f"{'':50} prompts right      drawing error"


def table_row(name: str, row: dict[str, float]) -> str:
    """One line of the printed table."""
    share = f"{100 * row['prompts_right']:5.1f}% +- {100 * row['interval']:.1f}"
    return f"{name:50} {share:18} {row['drawing_error']:10.4f}"


class Benchmark(Demo):
    """One variant of the demo with the methods that README.md compares."""

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
        sigmas = self.schedule("paper", STEPS)
        quick = self.schedule("karras", 20)
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
    parser.add_argument("--output", type=Path, default=RESULTS / "prompt_following.json")
    options = parser.parse_args()
    results: dict[str, dict] = {}
    for variant in options.variants:
        print(f"\n{variant}, {options.prompts} held-out prompts, {STEPS} steps", flush=True)
        print(HEADER, flush=True)
        results[variant] = {}
        for name, method in Benchmark(variant, options.prompts).methods().items():
            row = results[variant][name] = method()
            print(table_row(name, row), flush=True)
    write_results({"prompts": options.prompts, "steps": STEPS, "variants": results}, options.output)


if __name__ == "__main__":
    load_hosts()
    main()
