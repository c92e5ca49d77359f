"""The paper's own sampler and schedule."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..guidance import paper_schedule
from ..guidance.null_renoising import null_renoising_sampler
from .host import SAMPLING_CATEGORY, where_known


class AnnealingSampler(io.ComfyNode):
    """Annealing Sampler (null renoising)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingSampler",
            display_name="Annealing Sampler (null renoising)",
            category=SAMPLING_CATEGORY,
            description="The sampler that the learned scale was made for: it guides the picture and puts the noise back with the "
            "unconditional prediction (the CFG++ step). For epsilon, v-prediction and flow models. Use it with the Annealing "
            "Guider, or with CFGGuider at a cfg of about 0.6 to 1.2.",
            inputs=[
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Fresh noise per step, as in DDIM. 0: none, the paper's setting. 1: as much as DDPM.",
                    **where_known(io.Float.Input, advanced=True),
                ),
                io.Float.Input(
                    "renoise_mix",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Which prediction puts the noise back. 1: the unconditional one (null renoising), for which the "
                    "learned scale is made. 0: the guided one, an ordinary DDIM step, for which renoise = auto folds the scale. "
                    "Between them the guidance weakens as the value falls.",
                    **where_known(io.Float.Input, advanced=True),
                ),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="Connect it to SamplerCustomAdvanced or SamplerCustom.")],
            **where_known(io.Schema, search_aliases=["ddim", "null renoising", "cfg++ sampler"]),
        )

    @classmethod
    def execute(cls, eta: float, renoise_mix: float) -> io.NodeOutput:
        return io.NodeOutput(null_renoising_sampler(eta, renoise_mix))


class AnnealingPaperSigmas(io.ComfyNode):
    """Paper Schedule (DDIM)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingPaperSigmas",
            display_name="Paper Schedule (DDIM)",
            category=SAMPLING_CATEGORY,
            description="The noise levels of the paper: evenly spaced timesteps from 980 down to 0 at 50 steps (DDIM, leading "
            "spacing), by the model's own table. For flow models: evenly spaced times from pure noise, with the model's "
            "shift.",
            inputs=[
                io.Model.Input("model", tooltip="The model whose noise levels are used."),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Number of steps. The authors' network was trained for 50. With match_training_steps on, fewer are "
                    "enough.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1: only the last part of a schedule with steps / denoise steps, for img2img, as in "
                    "BasicScheduler.",
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="Noise levels, ending with 0.")],
            **where_known(io.Schema, search_aliases=["ddim", "scheduler", "leading spacing"]),
        )

    @classmethod
    def execute(cls, model, steps: int, denoise: float) -> io.NodeOutput:
        if denoise <= 0:
            return io.NodeOutput(torch.FloatTensor([]))
        total = steps if denoise >= 1 else int(steps / denoise)
        return io.NodeOutput(paper_schedule.sigmas(model.get_model_object("model_sampling"), total)[-(steps + 1) :])


NODES = [AnnealingSampler, AnnealingPaperSigmas]
