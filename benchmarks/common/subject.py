"""Whole pictures by ComfyUI's own nodes, with CFG and with annealing guidance, in turns."""

from __future__ import annotations

import statistics

from . import pack_module
from .paired import in_turns, rounded
from .stand_in import StandIn, wait

STEPS, CFG = 10, 5.0


class Subject:
    """A model with what it is to draw, and the four ways to draw it: KSampler and guider, CFG and annealing."""

    def __init__(self, model, positive, negative, scale, shape: tuple[int, ...]) -> None:
        import torch

        self.model, self.positive, self.negative, self.shape = model, positive, negative, shape
        guidance, live = pack_module("guidance.run").Guidance(scale, 0.4), pack_module("guidance.live")
        chart = live.LiveChart("1", lambda event, data: None, lambda text: None)
        self.patched = pack_module("guidance.patch").patch_model(model, guidance, chart)[0]
        self.annealing = pack_module("guidance.guider").AnnealingCFGGuider(model, guidance, chart)
        self.noise, self.rows = torch.randn(shape, generator=torch.Generator().manual_seed(0)), 0
        model.model.diffusion_model.register_forward_pre_hook(self._count)

    @staticmethod
    def shapes(variant: str, batch: int) -> Subject:
        """The demo model, drawing so many of its held-out prompts."""
        from .demo import Demo

        demo = Demo(variant, batch)
        return Subject(demo.model, [[demo.positive, {}]], demo.negative, demo.scale, (batch, 4, 16, 16))

    @staticmethod
    def sdxl(cuda: bool, batch: int) -> Subject:
        from .sdxl import random_prompt, random_sdxl

        model, size = random_sdxl(cuda)
        shape = (batch, 4, size, size)
        return Subject(model, random_prompt(1), random_prompt(0), StandIn(shape).scale, shape)

    def by_ksampler(self, model):
        """The final latents by the function of ComfyUI's KSampler nodes."""
        import nodes
        import torch

        latent, settings = {"samples": torch.zeros(self.shape)}, (STEPS, CFG, "euler", "normal")
        return nodes.common_ksampler(model, 0, *settings, self.positive, self.negative, latent)

    def by_guider(self, guider):
        """The final latents by SamplerCustomAdvanced's guider."""
        import comfy.samplers
        import torch

        guider.set_conds(self.positive, self.negative)
        sigmas = comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "normal", STEPS)
        euler, empty = comfy.samplers.sampler_object("euler"), torch.zeros(self.shape)
        return guider.sample(self.noise, empty, euler, sigmas, disable_pbar=True, seed=0)

    def row(self, host: str, seconds: float) -> dict[str, float]:
        """Annealing's pace over CFG's: ratio, 1 for no cost, below 1 for slower."""
        import comfy.samplers
        import torch

        cfg = comfy.samplers.CFGGuider(self.model)
        cfg.set_cfg(CFG)
        if host == "KSampler":
            jobs = [lambda: self.by_ksampler(self.patched), lambda: self.by_ksampler(self.model)]
        else:
            jobs = [lambda: self.by_guider(self.annealing), lambda: self.by_guider(cfg)]
        evaluations = []
        with torch.inference_mode():
            for job in jobs:
                self.rows = 0
                job()
                evaluations.append(self.rows)
            pairs = in_turns(*jobs, seconds, wait)
        ours, cfg_seconds = statistics.median(pairs.first), statistics.median(pairs.second)
        return {
            **pairs.ratios(),
            "pictures_per_second": rounded(self.shape[0] / ours),
            "cfg_pictures_per_second": rounded(self.shape[0] / cfg_seconds),
            "cfg_step_ms": rounded(1e3 * cfg_seconds / STEPS),
            "evaluations": evaluations[0],
            "cfg_evaluations": evaluations[1],
            "pairs": len(pairs.first),
        }

    def _count(self, network, args) -> None:
        self.rows += args[0].shape[0]
