"""Training a scale with one node: the model makes pictures, is measured on them, and the fitted scale is saved."""

from __future__ import annotations

import re
import time
from pathlib import Path, PurePosixPath
from typing import Any

from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context

from ..models.errors import AnnealingError
from ..models.scale_file import load_scale
from ..plots.figure import picture_of
from ..plots.fit_plot import fit_figure
from ..plots.scale_map import map_figure
from ..shapes.loader import ShapesConfig
from ..training.fit import FitSettings, fit
from ..training.once import EFFORTS, PROMPTS, Request, default_prompts, lines_of, measure_own, usual_size
from ..training.own_scale import fingerprint_text, own_scale
from ..training.pace import duration_in_words
from .files import inside, numbered_files
from .fitting import FitProgress, save_numbered, scales_prefix
from .host import TRAINING_ALIASES, TRAINING_CATEGORY, where_known
from .progress import PictureProgress, show_text
from .scale import AnnealingScale
from .training import profiles_folder

FIT = FitSettings()
BUNDLED_PROMPTS = PROMPTS.read_text(encoding="utf-8").strip()
SHOWN_LAMBDAS = [0.0, 0.4, 0.8]
# Loaders' inputs with the file name of a diffusion model, in ComfyUI and common packs.
_MODEL_FILES = ("ckpt_name", "unet_name", "model_name", "gguf_name")


class AnnealingTrainScale(io.ComfyNode):
    """Train Annealing Scale."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingTrainScale",
            display_name="Train Annealing Scale (once per model)",
            category=TRAINING_CATEGORY,
            description="Trains a guidance scale for a model. You need not prepare anything: the model makes pictures from the "
            "prompts and is measured on them, and the fitted scale is saved in models/annealing_guidance/. Later runs load it at "
            "once, and an Annealing Guider whose scale_model is unconnected finds it. Cancel at any time: the next run continues "
            "from there.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to train a scale for, as you sample it, with its LoRAs if any."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model. It encodes the prompts."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default=BUNDLED_PROMPTS,
                    tooltip="What the pictures show, one prompt per line: what you usually make, or the varied list that is "
                    "here. With the Shapes demo, captions of the demo's own kind replace this list.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What you sample with as the negative. Unconnected: the empty prompt; for SDXL zeros, as it was "
                    "trained.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=16384,
                    step=8,
                    tooltip="Width of the pictures in pixels. 0: the size that the model's family was trained on (SDXL and flow "
                    "models: 1024; SD 1.5: 512).",
                ),
                io.Int.Input(
                    "height", default=0, min=0, max=16384, step=8, tooltip="Height of the pictures in pixels. 0: as for width."
                ),
                io.Combo.Input(
                    "effort",
                    options=list(EFFORTS),
                    default="normal",
                    tooltip="How many pictures: quick 32, normal 128, thorough 512. quick takes as long as sampling about 35 "
                    "pictures in 20 steps with CFG, normal 140, thorough 560. More effort continues from less.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Name of the scale's file; a number is added. Use / for a sub-folder. Empty: the model's file name.",
                ),
            ],
            outputs=[
                AnnealingScale.Output(
                    display_name="scale_model",
                    tooltip="The learned scale, as saved. Connect it to the Annealing Guider, or leave the guider's scale_model "
                    "unconnected: it finds the file.",
                ),
                io.Image.Output(
                    display_name="plot",
                    tooltip="Left, the learned scale over a run for five lambdas; right, its loss on held-out pictures against "
                    "the best constant scale. If the scale was loaded: its map for three lambdas.",
                ),
            ],
            hidden=[io.Hidden.prompt],
            **where_known(io.Schema, search_aliases=[*TRAINING_ALIASES, "calibrate"]),
        )

    @classmethod
    def execute(cls, model, clip, prompts, width, height, effort, name, negative=None) -> io.NodeOutput:
        lines = lines_of(prompts)
        if not lines:
            raise AnnealingError(
                "prompts is empty, and the pictures to train on are made from prompts. Write one prompt per line, or add the "
                "node again: it comes with a list."
            )
        if lines == lines_of(BUNDLED_PROMPTS):
            lines = default_prompts(model)
        usual = usual_size(model)
        label = _model_name(model, getattr(cls.hidden, "prompt", None))
        name = name.strip() or label
        request = Request(tuple(lines), negative, width or usual[0], height or usual[1], EFFORTS[effort])
        prefix, profiles = scales_prefix(name, "name"), inside(profiles_folder(), name, "name")
        began = time.monotonic()
        if (path := _trained_before(model, prefix, request)) is not None:
            network = load_scale(path)
            return _output(
                network,
                picture_of(lambda: map_figure(network, SHOWN_LAMBDAS, None)),
                f"Loaded {path.name}, trained on this model before. To train again, give another name or delete the file",
            )
        show_text("encoding the prompts, loading the model")
        profile = measure_own(profiles, model, clip, request, PictureProgress())
        fitted = fit(
            profile,
            FIT,
            name=prefix.name,
            trained_on=f"{label}, on pictures of its own",
            source=request.described(),
            licence="not stated",
            progress=FitProgress(),
            fingerprint=fingerprint_text(profile.model),
        )
        path = save_numbered(fitted.network, name, "name")
        plot = picture_of(lambda: fit_figure(fitted, profile, FIT.steps))
        took = duration_in_words(time.monotonic() - began)
        return _output(load_scale(path), plot, f"Trained in {took} and saved as {path}")


def _output(network, plot, text: str) -> io.NodeOutput:
    show_text(text)
    return io.NodeOutput(network, plot, ui=ui.PreviewText(text))


def _trained_before(model, prefix: Path, request: Request) -> Path | None:
    """The file that the same request, or one for more pictures, gave for this very model; or None."""
    wanted = {
        Request(request.prompts, request.negative, request.width, request.height, pictures).described()
        for pictures in EFFORTS.values()
        if pictures >= request.pictures
    }
    try:
        files = {path.name: path for path in numbered_files(prefix).values()}
    except OSError:
        return None  # saving reports what is wrong with the folder
    found = own_scale(model, files, wanted.__contains__)
    return None if found is None else files[found]


def _model_name(model, prompt: dict[str, Any] | None) -> str:
    """The model's file name in the workflow, without its ending; else the name of its family."""
    config = model.model.model_config
    family = Path(config.annealing_scale).stem if isinstance(config, ShapesConfig) else type(config).__name__
    found = _file_in_workflow(prompt, getattr(get_executing_context(), "node_id", None))
    return re.sub(r"[^\w\-+(). ]", "_", found or family).strip(" .") or family


def _file_in_workflow(prompt: dict[str, Any] | None, node: str | None) -> str | None:
    """Follows the links of the node's model back to a loader."""
    links, seen = [(prompt or {}).get(node, {}).get("inputs", {}).get("model")], set()
    while links:
        link = links.pop(0)
        if not isinstance(link, list) or not link or str(link[0]) in seen:
            continue
        seen.add(str(link[0]))
        inputs = (prompt or {}).get(str(link[0]), {}).get("inputs", {})
        for key in _MODEL_FILES:
            if isinstance(inputs.get(key), str):
                return PurePosixPath(inputs[key].replace("\\", "/")).stem
        links += inputs.values()
    return None


NODES = [AnnealingTrainScale]
