"""Lambda Sweep: one prompt, several lambdas, one picture to compare them."""

from __future__ import annotations

import comfy.samplers
import torch
from comfy_api.latest import io
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

from ..guidance.guider import AnnealingCFGGuider
from ..guidance.live import LiveChart
from ..guidance.run import LARGEST_CFG, Guidance
from ..guidance.sampler_facts import facts_of
from ..guidance.trace import AnnealingTrace, GuidedCall, RunTrace
from ..models.errors import AnnealingError
from ..plots.labelled_columns import labelled_columns
from .guider import AnnealingTraceType, live_chart, parse_lambdas, scale_model_or_default
from .host import PICTURES_CATEGORY, where_known
from .lists import numbers_in
from .scale import AnnealingScale


class AnnealingSweep(io.ComfyNode):
    """Lambda Sweep."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingSweep",
            display_name="Lambda Sweep",
            category=PICTURES_CATEGORY,
            description="Samples the same noise with several lambdas, and if you like with ordinary CFG scales, and puts the "
            "pictures side by side with labels. It replaces guider and sampler. Each latent of the batch gives a row.",
            inputs=[
                io.Noise.Input("noise", tooltip="From RandomNoise. Every column starts from the same noise."),
                io.Model.Input("model", tooltip="The model to sample."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What the prompt is compared with: usually an empty prompt."),
                io.Sampler.Input("sampler", tooltip="The sampler, for all columns."),
                io.Sigmas.Input("sigmas", tooltip="The noise levels, for all columns."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="What to sample. Every column is a separate run, so it takes the memory of one run and the time of "
                    "all.",
                ),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                AnnealingScale.Input(
                    "scale_model",
                    optional=True,
                    tooltip="The learned scale. Unconnected: a scale that was trained on this model, else that of its family.",
                ),
                io.String.Input(
                    "lambdas",
                    default="0, 0.2, 0.4, 0.6, 0.8",
                    tooltip="The lambdas to compare, each from 0 to 1, separated by commas.",
                ),
                io.String.Input(
                    "cfg_scales",
                    default="",
                    tooltip="Constant scales to compare with, sampled by ComfyUI's own CFGGuider: 1, 5, 7.5. With a sampler that "
                    "renoises with the unconditional prediction (Annealing Sampler, *_cfg_pp) use CFG++ scales of about 0.6 to "
                    "1.2.",
                ),
                io.String.Input(
                    "cfgs",
                    default="",
                    optional=True,
                    tooltip="Strengths to compare, as ordinary CFG: 3, 5, 7.5. Every lambda is drawn at each of them. Empty: as "
                    "the scale was trained.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="All pictures with their labels, as one picture."),
                io.Latent.Output(display_name="samples", tooltip="The latents, column by column."),
                AnnealingTraceType.Output(display_name="trace", tooltip="Which scales the lambdas used, for Scale Plot."),
            ],
            hidden=[io.Hidden.unique_id],
            **where_known(io.Schema, search_aliases=["compare strengths", "xy plot", "lambda grid"]),
        )

    @classmethod
    def execute(
        cls,
        noise,
        model,
        positive,
        negative,
        sampler,
        sigmas,
        latent_image,
        vae,
        lambdas,
        cfg_scales="",
        scale_model=None,
        cfgs="",
    ) -> io.NodeOutput:
        several = parse_lambdas(lambdas, "lambdas")
        scales = numbers_in(cfg_scales, "cfg_scales", LARGEST_CFG, "1, 5, 7.5")
        strengths = numbers_in(cfgs, "cfgs", LARGEST_CFG, "3, 5, 7.5")
        if several is None:
            raise AnnealingError("lambdas is empty, so there is nothing to compare. Write a few, for example 0, 0.4, 0.8.")
        if not isinstance(latent_image["samples"], torch.Tensor):
            raise AnnealingError(
                "The latent holds several parts (video with sound): they cannot be shown side by side as pictures."
            )

        scale_model, notes = scale_model_or_default(model, scale_model, max(strengths, default=0.0))
        chart = live_chart(cls.hidden, notes)
        settings = [(value, cfg) for value in several.tolist() for cfg in strengths or [0.0]]
        guiders = [AnnealingCFGGuider(model, Guidance(scale_model, value, cfg=cfg), chart) for value, cfg in settings]
        plain = [comfy.samplers.CFGGuider(model) for _ in scales]
        for guider, scale in zip(plain, scales, strict=True):
            guider.set_cfg(scale)
        columns = []
        for guider in (*guiders, *plain):
            guider.set_conds(positive, negative)
            columns.append(SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent_image).args[0]["samples"])

        trace = side_by_side([guider.trace.latest for guider in guiders])
        if chart and len(guiders) > 1:
            _show_all(trace.latest, chart, len(sigmas) - 1)
        labels = [f"lambda {value:g}, CFG {cfg:g}" if cfg else f"lambda {value:g}" for value, cfg in settings]
        labels += [f"{'CFG++' if facts_of(sampler).uncond_share else 'CFG'} {value:g}" for value in scales]
        grid = labelled_columns([_pictures(vae, column) for column in columns], labels)
        return io.NodeOutput(grid, {"samples": torch.cat(columns)}, trace)


def side_by_side(runs: list[RunTrace]) -> AnnealingTrace:
    """Runs with one lambda each, as one run of a wide batch.

    A solver that chooses its own steps may give runs of different lengths. A shorter run is filled up: its last sigma, and NaN.
    """
    lambdas = [torch.full_like(run.calls[0].scale, float(run.guidance_lambda)) for run in runs if run.calls]
    trace = AnnealingTrace()
    whole = trace.begin(runs[0].scale_name, torch.cat(lambdas) if lambdas else runs[0].guidance_lambda, runs[0].folded)
    for i in range(max(len(run.calls) for run in runs)):
        calls = [run.calls[i] if i < len(run.calls) else _ended(run.calls[-1]) for run in runs]
        whole.record(GuidedCall(*(torch.cat(values) for values in zip(*calls, strict=True))))
    return trace


def _ended(last: GuidedCall) -> GuidedCall:
    unknown = torch.full_like(last.scale, torch.nan)
    return last._replace(gap_norm=unknown, scale=unknown, cfg_scale=unknown)


def _show_all(trace: RunTrace, chart: LiveChart, steps: int) -> None:
    """Draw all lambdas' runs in one chart. So far it has shown one run after the other."""
    chart.begin(trace.run_id, steps, trace.folded, torch.as_tensor(trace.guidance_lambda).reshape(-1).tolist())
    for call in trace.calls:
        chart.record(call)
    chart.finish("")


def _pictures(vae, latents: torch.Tensor) -> torch.Tensor:
    """[B, H, W, 3]; for a video, its middle frame."""
    pictures = vae.decode(latents)
    return pictures[:, pictures.shape[1] // 2] if pictures.ndim == 5 else pictures


NODES: list[type[io.ComfyNode]] = [AnnealingSweep]
