"""The two ways into a workflow: a guider for SamplerCustomAdvanced, and a model patch for KSampler."""

from __future__ import annotations

import logging

import torch
from comfy_api.latest import io

from ..guidance.family import default_scale_name, remarks
from ..guidance.guider import AnnealingCFGGuider
from ..guidance.live import LiveChart
from ..guidance.patch import patch_model
from ..guidance.renoising import CHOICES, Renoise
from ..guidance.run import Guidance
from ..models.scale_model import ScaleModel
from .host import CATEGORY, where_known
from .lists import numbers_in
from .progress import send_event, show_text
from .scale import AnnealingScale, load_scale_by_name

logger = logging.getLogger("annealing_guidance")

AnnealingTraceType = io.Custom("ANNEALING_TRACE")


class AnnealingGuider(io.ComfyNode):
    """Annealing Guider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingGuider",
            display_name="Annealing Guider",
            category=CATEGORY,
            description="A guider whose guidance scale a tiny learned network chooses at every step, from the noise level, the "
            "size of the gap between the two predictions, and guidance_lambda. Takes the place of CFGGuider before "
            "SamplerCustomAdvanced; works with every sampler and scheduler.",
            inputs=[
                io.Model.Input("model", tooltip="The model to sample: an epsilon or v-prediction model, or a flow model."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input(
                    "negative",
                    tooltip="What the prompt is compared with: usually an empty prompt, for SDXL base ConditioningZeroOut of the "
                    "positive. It is needed. Where its timestep range leaves a step out, that step is not guided.",
                ),
                *_guidance_inputs(),
            ],
            outputs=[
                io.Guider.Output(display_name="guider", tooltip="Connect it to SamplerCustomAdvanced."),
                _trace_output(),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # else one with the same inputs gives its guider, and with it its chart and trace, to another
            **where_known(io.Schema, search_aliases=_ALIASES),
        )

    @classmethod
    def execute(
        cls, model, positive, negative, guidance_lambda, renoise, match_training_steps, scale_model=None, lambda_per_sample=""
    ) -> io.NodeOutput:
        guidance = _guidance(model, scale_model, guidance_lambda, renoise, match_training_steps, lambda_per_sample)
        guider = AnnealingCFGGuider(model, guidance, live_chart(cls.hidden, remarks(model, guidance.scale_model.info)))
        guider.set_conds(positive, negative)
        return io.NodeOutput(guider, guider.trace)


class AnnealingModelPatch(io.ComfyNode):
    """Annealing Guidance (KSampler)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingModelPatch",
            display_name="Annealing Guidance (KSampler)",
            category=CATEGORY,
            description="Gives a model annealing guidance, so that KSampler and every node built on it sample with the learned "
            "scale. Their cfg value is then not used, and both conditionings are evaluated even at cfg 1. A second such "
            "node on the same model replaces the first. The Annealing Guider ignores it and uses its own settings.",
            inputs=[
                io.Model.Input("model", tooltip="The model to patch: an epsilon or v-prediction model, or a flow model."),
                *_guidance_inputs(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The patched model, for KSampler. It needs a negative conditioning there; the cfg value is not used.",
                ),
                _trace_output(),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # as the guider
            **where_known(io.Schema, search_aliases=_ALIASES),
        )

    @classmethod
    def execute(
        cls, model, guidance_lambda, renoise, match_training_steps, scale_model=None, lambda_per_sample=""
    ) -> io.NodeOutput:
        guidance = _guidance(model, scale_model, guidance_lambda, renoise, match_training_steps, lambda_per_sample)
        chart = live_chart(cls.hidden, remarks(model, guidance.scale_model.info))
        return io.NodeOutput(*patch_model(model, guidance, chart))


_ALIASES = ["annealing guidance", "learned guidance scale", "dynamic cfg", "adaptive cfg", "cfg scheduler", "cfg++"]


def _guidance(
    model,
    scale_model: ScaleModel | None,
    guidance_lambda: float,
    renoise: Renoise,
    match_training_steps: bool,
    lambda_per_sample: str,
) -> Guidance:
    """The node's inputs as Guidance."""
    lambdas = parse_lambdas(lambda_per_sample, "lambda_per_sample")
    scale_model = scale_model_or_default(model, scale_model)
    return Guidance(scale_model, guidance_lambda if lambdas is None else lambdas, renoise, match_training_steps)


def scale_model_or_default(model, scale_model: ScaleModel | None) -> ScaleModel:
    """The scale model that is connected, else the one of the model's family."""
    return load_scale_by_name(default_scale_name(model)) if scale_model is None else scale_model


def parse_lambdas(text: str, title: str) -> torch.Tensor | None:
    """The lambdas in a user's text, "0, 0.4, 0.8": [count], each 0..1; None for an empty text. title: the input's name."""
    values = numbers_in(text, title, 1.0, "0, 0.2, 0.4, 0.6, 0.8")
    return torch.tensor(values) if values else None


def live_chart(hidden: io.HiddenHolder | None, notes: list[str]) -> LiveChart | None:
    """The chart of the node that is executed, by its hidden inputs; None outside ComfyUI's executor.

    notes: what the user should know before the run: in the log, and under the node, where they stay above the run's text.
    """
    for note in notes:
        logger.warning("Annealing guidance: %s", note)
    node = getattr(hidden, "unique_id", None)
    if node is None:
        return None
    if notes:
        show_text("\n".join(notes), node)
    return LiveChart(node, send_event, lambda text: show_text("\n".join([*notes, text]), node))


def _guidance_inputs() -> list[io.Input]:
    """What guider and patch have in common."""
    return [
        AnnealingScale.Input(
            "scale_model",
            optional=True,
            tooltip="The learned scale. Unconnected: the one of the model's family. For SDXL that is the authors' network, 0.6 "
            "MB, downloaded once from their repository; for the Shapes demo the bundled one. Other models need one.",
        ),
        io.Float.Input(
            "guidance_lambda",
            default=0.4,
            min=0.0,
            max=1.0,
            step=0.05,
            round=0.001,
            tooltip="Between picture quality (0) and following the prompt (1). Useful from 0 to 0.8. It has no effect on a Fixed "
            "Scale.",
        ),
        io.Combo.Input(
            "renoise",
            options=list(CHOICES),
            default="auto",
            tooltip="The learned scale is about 1 and belongs to samplers that renoise with the unconditional prediction. null: "
            "for those (Annealing Sampler, *_cfg_pp). folded: for every other sampler, the equivalent ordinary CFG scale "
            "of about 3 to 15. auto: chooses by the sampler.",
            **where_known(io.Combo.Input, advanced=True),
        ),
        io.Boolean.Input(
            "match_training_steps",
            default=True,
            tooltip="On: the guidance is as strong as at the step count the scale was trained for, at any number of steps and "
            "with any sampler. Off: the paper to the letter, weaker with fewer steps and stronger with more.",
            **where_known(io.Boolean.Input, advanced=True),
        ),
        # Last: workflows saved without it give their widgets' values by position.
        io.String.Input(
            "lambda_per_sample",
            default="",
            optional=True,
            tooltip="A guidance_lambda for each sample of the batch, so that one run shows a sweep: 0, 0.2, 0.4, 0.6, 0.8 for a "
            "latent of batch_size 5. Type the numbers here; a list connected to guidance_lambda makes one run per number. "
            "Empty: guidance_lambda for all.",
            **where_known(io.String.Input, advanced=True),
        ),
    ]


def _trace_output() -> io.Output:
    return AnnealingTraceType.Output(
        display_name="trace",
        tooltip="Which scales were used, call by call. Empty until the sampling has run; a later run replaces it.",
    )


NODES = [AnnealingGuider, AnnealingModelPatch]
