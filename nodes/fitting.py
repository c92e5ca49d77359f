"""Training a scale, second half: fit a scale network to a profile, and save it as a file."""

from __future__ import annotations

import time
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io, ui

from ..models.scale_file import save_scale
from ..models.scale_model import ScaleModel
from ..plots.figure import picture_of, preview_of
from ..plots.fit_plot import fit_figure, loss_figure
from ..training.fit import Check, FitSettings, fit
from ..training.own_scale import fingerprint_text
from ..training.pace import duration_in_words
from .files import free_path, inside
from .host import TRAINING_ALIASES, TRAINING_CATEGORY, where_known
from .progress import show_text
from .scale import FOLDER, AnnealingScale
from .training import AnnealingProfile

PREVIEW_EVERY_S = 2.0


class AnnealingFit(io.ComfyNode):
    """Fit Annealing Scale."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingFit",
            display_name="Fit Annealing Scale",
            category=TRAINING_CATEGORY,
            description="Trains the scale network on a profile: it takes seconds on the CPU and does not need the model. Some "
            "pictures are held out and decide when to stop.",
            inputs=[
                AnnealingProfile.Input("profile", tooltip="From Profile Guidance or Load Annealing Profile."),
                io.String.Input(
                    "trained_on",
                    default="",
                    tooltip="Kept in the file, for people: the model and the pictures. Empty: not stated.",
                ),
                io.String.Input(
                    "licence",
                    default="",
                    tooltip="Kept in the file: the terms under which you share the scale. Empty: not stated.",
                ),
                io.Combo.Input(
                    "gap_divisor",
                    options=["p95", "5.0"],
                    default="p95",
                    tooltip="What the gap's size is divided by before the network sees it. p95: the profile's 95th percentile, "
                    "right for any model. 5.0: the paper's number, for SDXL.",
                    **where_known(io.Combo.Input, advanced=True),
                ),
                io.Combo.Input(
                    "loss_balance",
                    options=["auto", "none", "ratio"],
                    default="auto",
                    tooltip="none: the paper's loss. ratio: its second part is made as large as the first. Without that, lambda "
                    "would hardly move the scale of flow models. auto: ratio for flow models, none for the others.",
                    **where_known(io.Combo.Input, advanced=True),
                ),
                *_expert_fit_inputs(),
            ],
            outputs=[
                AnnealingScale.Output(
                    display_name="scale_model",
                    tooltip="The learned scale. Connect it to the Annealing Guider, and to Save Annealing Scale to keep it.",
                ),
                io.Custom("LOSS_MAP").Output(
                    display_name="loss_map", tooltip="Held-out loss every 100 steps, for Plot Loss Graph."
                ),
                io.Image.Output(
                    display_name="plot",
                    tooltip="Left, the learned scale over a run for five lambdas; right, its loss on the held-out pictures "
                    "against the best constant scale.",
                ),
            ],
            **where_known(io.Schema, search_aliases=TRAINING_ALIASES),
        )

    @classmethod
    def execute(
        cls, profile, trained_on, licence, gap_divisor, loss_balance, hidden_width, depth, steps, learning_rate, seed
    ) -> io.NodeOutput:
        settings = FitSettings(
            loss_balance=loss_balance,
            gap_divisor=gap_divisor if gap_divisor == "p95" else float(gap_divisor),
            hidden_width=hidden_width,
            depth=depth,
            steps=steps,
            learning_rate=learning_rate,
            seed=seed,
        )
        began = time.monotonic()
        fitted = fit(
            profile,
            settings,
            name="fitted",
            trained_on=trained_on.strip() or "not stated",
            source="Fit Annealing Scale",
            licence=licence.strip() or "not stated",
            progress=FitProgress(),
            fingerprint=fingerprint_text(profile.model),
        )
        better = 100 * (1 - fitted.held_out_loss / fitted.constant_loss)
        show_text(
            f"held-out loss {fitted.held_out_loss:.5g}, {abs(better):.2f}% {'below' if better >= 0 else 'above'} the best "
            f"constant scale's; {duration_in_words(time.monotonic() - began)}"
        )
        losses = {"loss": [check.held_out_loss for check in fitted.history]}
        return io.NodeOutput(fitted.network, losses, picture_of(lambda: fit_figure(fitted, profile, steps)))


def _expert_fit_inputs() -> list[io.Input]:
    advanced = where_known(io.Int.Input, advanced=True)
    return [
        io.Int.Input("hidden_width", default=128, min=1, max=1024, tooltip="Width of the network's layers.", **advanced),
        io.Int.Input("depth", default=3, min=0, max=16, tooltip="Layers of the network after the first.", **advanced),
        io.Int.Input(
            "steps",
            default=2000,
            min=200,
            max=100_000,
            tooltip="The most steps. The fit ends earlier when the held-out loss has not improved for 1000 steps.",
            **advanced,
        ),
        io.Float.Input(
            "learning_rate",
            default=1e-3,
            min=1e-6,
            max=1.0,
            step=1e-5,
            round=1e-6,
            tooltip="The learning rate at the start; it falls to zero along a cosine.",
            **where_known(io.Float.Input, advanced=True),
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**63 - 1,
            control_after_generate=False,
            tooltip="For the fit and for the choice of held-out pictures.",
            **advanced,
        ),
    ]


class FitProgress:
    """Moves the bar, shows the loss so far as a preview every few seconds, obeys Cancel."""

    def __init__(self) -> None:
        self.bar: comfy.utils.ProgressBar | None = None
        self.drawn = time.monotonic()

    def __call__(self, step: int, steps: int, history: list[Check]) -> None:
        self.bar = self.bar or comfy.utils.ProgressBar(steps)
        preview = None
        if (now := time.monotonic()) - self.drawn > PREVIEW_EVERY_S:
            self.drawn, preview = now, preview_of(lambda: loss_figure(history, steps))
        self.bar.update_absolute(step, steps, preview)
        comfy.model_management.throw_exception_if_processing_interrupted()


class AnnealingScaleSave(io.ComfyNode):
    """Save Annealing Scale."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingScaleSave",
            display_name="Save Annealing Scale",
            category=TRAINING_CATEGORY,
            description="Saves a learned scale into models/annealing_guidance/, where Load Annealing Scale finds it (press R to "
            "refresh its list). Existing files are never overwritten.",
            is_output_node=True,
            inputs=[
                AnnealingScale.Input("scale_model", tooltip="The learned scale, from Fit Annealing Scale."),
                io.String.Input(
                    "filename_prefix",
                    default="my_scale",
                    tooltip="Name of the file; a number is added: my_scale_00001.safetensors. Use / for a sub-folder.",
                ),
            ],
            outputs=[],
            **where_known(io.Schema, search_aliases=TRAINING_ALIASES),
        )

    @classmethod
    def execute(cls, scale_model, filename_prefix: str) -> io.NodeOutput:
        path = save_numbered(scale_model, filename_prefix, "filename_prefix")
        text = f"Saved as {path}"
        show_text(text)
        return io.NodeOutput(ui=ui.PreviewText(text))


def save_numbered(scale_model: ScaleModel, name: str, title: str) -> Path:
    """Save the scale in models/annealing_guidance/ as a new file, `<name>_00001.safetensors` or a later number.

    title: as in `inside`.
    """
    path = free_path(scales_prefix(name, title))
    try:
        save_scale(scale_model, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def scales_prefix(name: str, title: str) -> Path:
    """The path of such files in models/annealing_guidance/, without number and ending."""
    return inside(folder_paths.get_folder_paths(FOLDER)[0], name, title)


NODES = [AnnealingFit, AnnealingScaleSave]
