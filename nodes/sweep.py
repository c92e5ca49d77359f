"""One prompt, several lambdas, one picture to compare them."""

from __future__ import annotations

import comfy.samplers
import torch
from comfy_api.latest import io
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

from ..guidance.guider import AnnealingCFGGuider
from ..guidance.run import Guidance
from ..guidance.samplers import facts_of
from ..models.errors import AnnealingError
from ..plots.grid import labelled_columns
from .guider import AnnealingTraceType, live_chart, parse_lambdas, scale_model_or_default
from .host import CATEGORY, where_known
from .lists import numbers_in
from .scale import AnnealingScale

LARGEST_CFG = 100.0


class AnnealingSweep(io.ComfyNode):
    """Lambda Sweep."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingSweep",
            display_name="Lambda Sweep",
            category=CATEGORY,
            description="Samples the same noise with several lambdas, and with ordinary CFG scales if you like, and lays the "
            "pictures side by side with labels. Takes the place of guider and sampler. A row for each latent of the batch.",
            inputs=[
                io.Noise.Input("noise", tooltip="From RandomNoise. Every column starts from the same noise."),
                io.Model.Input("model", tooltip="The model to sample."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What the prompt is compared with: usually an empty prompt."),
                io.Sampler.Input("sampler", tooltip="The sampler, for all columns."),
                io.Sigmas.Input("sigmas", tooltip="The noise levels, for all columns."),
                io.Latent.Input(
                    "latent_image", tooltip="What to sample. All lambdas are sampled as one batch, so memory counts."
                ),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                AnnealingScale.Input(
                    "scale_model", optional=True, tooltip="The learned scale. Unconnected: the one of the model's family."
                ),
                io.String.Input(
                    "lambdas", default="0, 0.2, 0.4, 0.6, 0.8", tooltip="Which lambdas to compare, each from 0 to 1, with commas."
                ),
                io.String.Input(
                    "cfg_scales",
                    default="",
                    tooltip="Fixed scales to compare with, by ComfyUI's own CFGGuider: 1, 5, 7.5. With a sampler that renoises "
                    "with the unconditional prediction (Annealing Sampler, *_cfg_pp) these are CFG++ scales of about 0.6 to 1.2.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="All pictures with their labels, as one."),
                io.Latent.Output(display_name="samples", tooltip="The latents, column after column."),
                AnnealingTraceType.Output(display_name="trace", tooltip="Which scales the lambdas used, for Scale Plot."),
            ],
            hidden=[io.Hidden.unique_id],
            **where_known(io.Schema, search_aliases=["annealing guidance", "compare cfg", "xy plot", "lambda grid"]),
        )

    @classmethod
    def execute(
        cls, noise, model, positive, negative, sampler, sigmas, latent_image, vae, lambdas, cfg_scales="", scale_model=None
    ) -> io.NodeOutput:
        several = parse_lambdas(lambdas, "lambdas")
        scales = numbers_in(cfg_scales, "cfg_scales", LARGEST_CFG, "1, 5, 7.5")
        if several is None:
            raise AnnealingError("lambdas is empty, so there is nothing to compare. Write a few, for example 0, 0.4, 0.8.")
        if not isinstance(latent_image["samples"], torch.Tensor):
            raise AnnealingError(
                "The latent holds several parts (video with sound): they can't be laid side by side as pictures."
            )
        count = latent_image["samples"].shape[0]

        guidance = Guidance(scale_model_or_default(model, scale_model), several.repeat_interleave(count))
        guider = AnnealingCFGGuider(model, guidance, live_chart(cls.hidden))
        guider.set_conds(positive, negative)
        latents = [_sample(guider, noise, sampler, sigmas, latent_image, columns=len(several))]
        for scale in scales:
            plain = comfy.samplers.CFGGuider(model)
            plain.set_conds(positive, negative)
            plain.set_cfg(scale)
            latents.append(_sample(plain, noise, sampler, sigmas, latent_image, columns=1))

        samples = torch.cat(latents)
        labels = [f"lambda {value:g}" for value in several.tolist()]
        labels += [f"{'CFG++' if facts_of(sampler).uncond_share else 'CFG'} {value:g}" for value in scales]
        columns = [_pictures(vae, part) for part in samples.split(count)]
        return io.NodeOutput(labelled_columns(columns, labels), {"samples": samples}, guider.trace)


class _Tiled:
    """A NOISE: that of the first `count` latents, again for every column."""

    def __init__(self, noise, count: int):
        self.seed, self._noise, self._count = noise.seed, noise, count

    def generate_noise(self, latent: dict) -> torch.Tensor:
        first = {**latent, "samples": latent["samples"][: self._count]}
        return _tiled(self._noise.generate_noise(first), latent["samples"].shape[0] // self._count)


def _tiled(batch: torch.Tensor, columns: int) -> torch.Tensor:
    return batch.repeat(columns, *[1] * (batch.ndim - 1))


def _sample(guider, noise, sampler, sigmas, latent: dict, columns: int) -> torch.Tensor:
    """Latents of `columns` times the batch, by ComfyUI's own sampling node: [columns * B, ...]."""
    wide = {**latent, "samples": _tiled(latent["samples"], columns)}
    if (mask := latent.get("noise_mask")) is not None and mask.shape[0] > 1:
        wide["noise_mask"] = _tiled(mask, columns)
    tiled = _Tiled(noise, latent["samples"].shape[0])
    return SamplerCustomAdvanced.execute(tiled, guider, sampler, sigmas, wide).args[0]["samples"]


def _pictures(vae, latents: torch.Tensor) -> torch.Tensor:
    """[B, H, W, 3]; of a video the frame in its middle."""
    pictures = vae.decode(latents)
    return pictures[:, pictures.shape[1] // 2] if pictures.ndim == 5 else pictures


NODES: list[type[io.ComfyNode]] = [AnnealingSweep]
