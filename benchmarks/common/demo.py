"""The Shapes demo as a subject of benchmarks: its models, its held-out prompts, and the noise that all methods share."""

from __future__ import annotations

from collections.abc import Iterator

import comfy.samplers
import torch

from . import pack_module

BATCH = 64


class Demo:
    """One variant of the demo and n of its 512 held-out prompts; beyond 512 each prompt comes again, with other noise."""

    def __init__(self, variant: str, n: int) -> None:
        scenes, files = pack_module("shapes.scenes"), pack_module("shapes.files")
        self.variant = variant
        self.model, self.clip, self.vae = pack_module("shapes.loader").load_shapes(variant)
        prompts, numbers = scenes.held_out_prompts()
        every = max(len(prompts) // n, 1)
        chosen = (torch.arange(n) * every) % len(prompts)
        self.prompts, self.numbers = [prompts[i] for i in chosen], numbers[chosen]
        self.positive = torch.cat([self.clip.encode(prompt) for prompt in self.prompts])
        self.negative = [[self.clip.encode(""), {}]]
        self.noise = torch.stack([torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(n)])
        self.judge = files.load_part("judge", pack_module("shapes.judge").Judge())
        self.scale = pack_module("nodes.scale").load_scale_by_name(f"shapes_{variant}.safetensors")

    @property
    def model_sampling(self):
        return self.model.get_model_object("model_sampling")

    def schedule(self, scheduler: str, steps: int):
        """The sigmas of one of ComfyUI's schedulers, or of "paper", the Paper Schedule: [steps + 1]."""
        if scheduler == "paper":
            return pack_module("guidance.paper_schedule").sigmas(self.model_sampling, steps)
        return comfy.samplers.calculate_sigmas(self.model_sampling, scheduler, steps)

    def cfg(self, scale: float, model=None):
        """ComfyUI's CFGGuider; model: the demo's, patched by another node, or as it is."""
        guider = comfy.samplers.CFGGuider(model or self.model)
        guider.set_cfg(scale)
        return guider

    def annealing(self, scale_model, guidance_lambda: float, model=None, **settings):
        guidance = pack_module("guidance.run").Guidance(scale_model, guidance_lambda, **settings)
        return pack_module("guidance.guider").AnnealingCFGGuider(model or self.model, guidance)

    def pictures(self, guider, sampler, sigmas) -> Iterator[tuple]:
        """Batches of drawn pictures [b, 3, 32, 32], on the CPU, and the rows [b] of the prompts they belong to."""
        for rows in torch.arange(len(self.prompts)).split(BATCH):
            guider.set_conds([[self.positive[rows], {}]], self.negative)
            empty = torch.zeros(len(rows), 4, 16, 16)
            latents = guider.sample(self.noise[rows], empty, sampler, sigmas, disable_pbar=True, seed=0)
            yield self.decoded(latents), rows

    def decoded(self, latents):
        """Pictures [b, 3, 32, 32] of latents, on the CPU; the demo shows them four times as large."""
        return self.vae.decode(latents).cpu().movedim(-1, 1)[:, :, ::4, ::4]

    def through_autoencoder(self, pictures):
        """Pictures [n, 3, 32, 32] encoded and decoded: the best that a model can draw."""
        large = pack_module("shapes.loader").enlarged(pictures)
        return torch.cat([self.decoded(self.vae.encode(part)) for part in large.split(BATCH)])


def spread(pictures):
    """How colourful pictures [B, 3, H, W] are: mean difference of the largest and the smallest channel of a pixel, [B]."""
    return (pictures.amax(1) - pictures.amin(1)).mean((1, 2))
