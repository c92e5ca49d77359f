"""The two ways into a workflow: a guider for SamplerCustomAdvanced, and a model patch for KSampler."""

from __future__ import annotations

import logging

import torch
from comfy_api.latest import io

from ..guidance.family import NoScaleError, default_scale_name, model_name, remarks
from ..guidance.guider import AnnealingCFGGuider
from ..guidance.live import LiveChart
from ..guidance.patch import patch_model
from ..guidance.renoising import CHOICES
from ..guidance.run import LARGEST_CFG, PROJECTIONS, Guidance
from ..models.fixed_scale import FixedScale
from ..models.scale_model import ScaleModel
from .host import CATEGORY, where_known
from .lists import numbers_in
from .progress import send_event, show_text
from .scale import AnnealingScale, load_scale_by_name, scale_trained_on

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
            description="A guider with a tiny learned network that chooses the guidance scale at every step, from the noise "
            "level, the size of the gap between the two predictions, and guidance_lambda. Use it in place of CFGGuider with "
            "SamplerCustomAdvanced. It works with every sampler and scheduler.",
            inputs=[
                io.Model.Input("model", tooltip="The model to sample: an epsilon or v-prediction model, or a flow model."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input(
                    "negative",
                    tooltip="What the prompt is compared with: usually an empty prompt, for SDXL base ConditioningZeroOut of the "
                    "positive. It is required. Steps outside its timestep range are not guided.",
                ),
                *_guidance_inputs(),
            ],
            outputs=[
                io.Guider.Output(display_name="guider", tooltip="Connect it to SamplerCustomAdvanced."),
                _trace_output(),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # else two nodes with the same inputs would share one guider, with its chart and trace
            **where_known(io.Schema, search_aliases=_ALIASES),
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        guidance_lambda,
        renoise,
        match_training_steps,
        scale_model=None,
        lambda_per_sample="",
        cfg=0.0,
        projection="auto",
    ) -> io.NodeOutput:
        settings = guidance_lambda, renoise, match_training_steps, scale_model, lambda_per_sample, cfg, projection
        guidance, chart = _guidance_and_chart(cls, model, *settings)
        guider = AnnealingCFGGuider(model, guidance, chart)
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
            description="Gives a model annealing guidance: KSampler and every node built on it then sample with the learned "
            "scale. Their cfg value is not used, and both conditionings are evaluated even at cfg 1. A second such node on the "
            "same model replaces the first. The Annealing Guider ignores this node and uses its own settings.",
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
            not_idempotent=True,  # as for the guider
            **where_known(io.Schema, search_aliases=_ALIASES),
        )

    @classmethod
    def execute(
        cls,
        model,
        guidance_lambda,
        renoise,
        match_training_steps,
        scale_model=None,
        lambda_per_sample="",
        cfg=0.0,
        projection="auto",
    ) -> io.NodeOutput:
        settings = guidance_lambda, renoise, match_training_steps, scale_model, lambda_per_sample, cfg, projection
        guidance, chart = _guidance_and_chart(cls, model, *settings)
        return io.NodeOutput(*patch_model(model, guidance, chart))


# Single words too: the search ranks a whole alias above a part of one.
_ALIASES = [
    *("annealing", "annealing guidance", "guidance", "guidance scale", "learned guidance scale", "lambda"),
    *("cfg", "cfg++", "dynamic cfg", "adaptive cfg", "cfg scheduler"),
]


def _guidance_and_chart(
    node, model, guidance_lambda, renoise, match_training_steps, scale_model, lambda_per_sample, cfg, projection
) -> tuple[Guidance, LiveChart | None]:
    """From the values of _guidance_inputs."""
    scale_model, notes = scale_model_or_default(model, scale_model, cfg)
    lambdas = parse_lambdas(lambda_per_sample, "lambda_per_sample")
    lambdas = guidance_lambda if lambdas is None else lambdas
    guidance = Guidance(scale_model, lambdas, renoise, match_training_steps, cfg, projection)
    return guidance, live_chart(node.hidden, notes)


def scale_model_or_default(model, scale_model: ScaleModel | None, cfg: float = 0.0) -> tuple[ScaleModel, list[str]]:
    """The scale model to use, and what the user should know about it.

    The connected one; else a saved one that was trained on this very model; else that of the model's family; else, with a cfg
    above 1, an untrained rule. AnnealingError where there is none.
    """
    if scale_model is not None:
        return scale_model, remarks(model, scale_model.info)
    if own := scale_trained_on(model):
        return load_scale_by_name(own), [f'The scale "{own}" was trained on this model.']
    try:
        scale_model = load_scale_by_name(default_scale_name(model))
    except NoScaleError:
        if cfg <= 1:
            raise
        note = (
            f"No scale is trained for {model_name(model)} yet: the guidance follows a constant CFG++ rule, as strong as CFG "
            f"{cfg:g}. Train Annealing Scale trains one, once per model."
        )
        return FixedScale("constant", 1.0), [note]
    return scale_model, remarks(model, scale_model.info)


def parse_lambdas(text: str, title: str) -> torch.Tensor | None:
    """The lambdas in a user's text, "0, 0.4, 0.8": [count], each 0..1; None for an empty text. title: the input's name."""
    values = numbers_in(text, title, 1.0, "0, 0.2, 0.4, 0.6, 0.8")
    return torch.tensor(values) if values else None


def live_chart(hidden: io.HiddenHolder | None, notes: list[str]) -> LiveChart | None:
    """The chart of the node that is being executed, found by its hidden inputs; None outside ComfyUI's executor.

    notes: what the user should know before the run. They go to the log, and under the node, above the run's text.
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
            tooltip="The learned scale. Unconnected: a scale that was trained on this model, else that of its family. For SDXL "
            "this is the authors' network, 0.6 MB, downloaded once from their repository; for the Shapes demo it is bundled. "
            "Other models need a scale, or a cfg.",
        ),
        io.Float.Input(
            "guidance_lambda",
            default=0.4,
            min=0.0,
            max=1.0,
            step=0.05,
            round=0.001,
            tooltip="From picture quality (0) to following the prompt (1). Useful from 0 to 0.8. It has no effect on a Fixed "
            "Scale.",
        ),
        io.Combo.Input(
            "renoise",
            options=list(CHOICES),
            default="auto",
            tooltip="The learned scale is about 1 and belongs to samplers that renoise with the unconditional prediction. null: "
            "for those samplers (Annealing Sampler, *_cfg_pp). folded: for all others, the equivalent ordinary CFG scale of "
            "about 3 to 15. auto: chosen by the sampler.",
            **where_known(io.Combo.Input, advanced=True),
        ),
        io.Boolean.Input(
            "match_training_steps",
            default=True,
            tooltip="On: with any number of steps and any sampler, guidance is as strong as at the step count that the scale was "
            "trained for. Off: exactly the paper, weaker with fewer steps and stronger with more.",
            **where_known(io.Boolean.Input, advanced=True),
        ),
        # Last: workflows saved without it give their widgets' values by position.
        io.String.Input(
            "lambda_per_sample",
            default="",
            optional=True,
            tooltip="A guidance_lambda for each sample of the batch, to compare several in one run: 0, 0.2, 0.4, 0.6, 0.8 for a "
            "latent of batch_size 5. Type the numbers here; a list connected to guidance_lambda makes one run per number. "
            "Empty: guidance_lambda for all.",
            **where_known(io.String.Input, advanced=True),
        ),
        io.Float.Input(
            "cfg",
            default=0.0,
            min=0.0,
            max=LARGEST_CFG,
            step=0.5,
            round=0.01,
            optional=True,
            tooltip="Strength as ordinary CFG: 5 is as strong as CFG 5, on average over the run; 1 is no guidance. 0: as the "
            "scale was trained (SDXL's: about 11 at lambda 0.4). Most fine-tunes of SDXL need 4 to 7, few-step models (turbo, "
            "lightning, LCM) 1 to 2. Above 1, models without a scale of their own are guided too, by a constant rule.",
        ),
        io.Combo.Input(
            "projection",
            options=list(PROJECTIONS),
            default="auto",
            optional=True,
            tooltip="on: guide only across the conditional prediction, so that strong guidance over-saturates less (APG with "
            "eta 0). off: guide by the whole gap, as the paper does. auto: as the scale was trained; the authors' is off.",
            **where_known(io.Combo.Input, advanced=True),
        ),
    ]


def _trace_output() -> io.Output:
    return AnnealingTraceType.Output(
        display_name="trace",
        tooltip="Which scales were used, call by call. Empty until the sampling has run. It keeps its runs apart, so that each "
        "plot finds the right one.",
    )


NODES = [AnnealingGuider, AnnealingModelPatch]
