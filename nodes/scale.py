"""Nodes that give a scale model: a learned one from a file, or a fixed rule."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..models import catalogue
from ..models.errors import AnnealingError
from ..models.fixed_scale import RULES, FixedScale
from ..models.scale_file import load_scale
from ..models.scale_model import ScaleModel
from ..training.own_scale import own_scale
from .host import SCALE_CATEGORY, where_known

FOLDER = "annealing_guidance"  # ComfyUI's name for the models folder, also in extra_model_paths.yaml
EXTENSIONS = {".safetensors", ".pt"}
BUNDLED = Path(__file__).resolve().parent.parent / "models" / "weights"

logger = logging.getLogger("annealing_guidance")

AnnealingScale = io.Custom("ANNEALING_SCALE")


def register_folder() -> None:
    """Register models/annealing_guidance/ with ComfyUI, in addition to the folders of extra_model_paths.yaml."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, EXTENSIONS)


register_folder()


def scale_names() -> list[str]:
    """What the loader offers: the catalogue, the bundled scales, the files in models/annealing_guidance/."""
    bundled = sorted(path.name for path in BUNDLED.glob("*.safetensors"))
    # A fetched file is listed by its catalogue name only, and a bundled name means the bundled file.
    taken = {entry.file_name for entry in catalogue.CATALOGUE} | set(bundled)
    files = [name for name in folder_paths.get_filename_list(FOLDER) if name not in taken]
    return [entry.name for entry in catalogue.CATALOGUE] + bundled + files


def load_scale_by_name(name: str, node_id: str | None = None) -> ScaleModel:
    """The scale model behind a name of scale_names(); a catalogue entry that is not here yet is fetched first.

    node_id: the node that shows the fetch's progress; None: the one that is being executed.
    Raises AnnealingError where the name is unknown, the file cannot be used or the fetch fails.
    """
    if entry := _catalogue_entry(name):
        return load_scale(catalogue.obtain(entry, folder_paths.get_folder_paths(FOLDER), _progress(entry, node_id)))
    return load_scale(_path_of(name))


def scale_trained_on(model: ModelPatcher) -> str | None:
    """The newest scale in models/annealing_guidance/ that was trained on this very model, as the loader lists it; or None.

    LoRAs on top don't matter, another checkpoint does. Cheap, and never raises for a file (see `training.own_scale`).
    """
    names = [name for name in folder_paths.get_filename_list(FOLDER) if not (BUNDLED / name).is_file()]
    paths = {name: folder_paths.get_full_path(FOLDER, name) for name in names}
    return own_scale(model, {name: Path(path) for name, path in paths.items() if path is not None})


def _catalogue_entry(name: str) -> catalogue.CatalogueEntry | None:
    return next((entry for entry in catalogue.CATALOGUE if entry.name == name), None)


def _path_of(name: str) -> Path:
    """The file of a listed name, bundled or the user's. Other names are refused, so none leads out of its folder."""
    if name not in scale_names():
        raise _unknown(name)
    users = folder_paths.get_full_path(FOLDER, name)
    if (bundled := BUNDLED / name).is_file():
        if users:
            logger.warning("%s has the name of a bundled scale, which is used instead. Give it another name to use it.", users)
        return bundled
    if users is None:
        raise _unknown(name)  # deleted since it was listed
    return Path(users)


def _progress(entry: catalogue.CatalogueEntry, node_id: str | None) -> catalogue.Progress:
    bar = comfy.utils.ProgressBar(entry.size, node_id=node_id)
    return lambda done, total: bar.update_absolute(done, total)


def _unknown(name: object) -> AnnealingError:
    folder = folder_paths.get_folder_paths(FOLDER)[0]
    return AnnealingError(
        f"There is no annealing scale named {str(name)[:120]!r}. Put the file into {folder}, or choose one of: "
        f"{'; '.join(scale_names())}."
    )


class AnnealingScaleLoader(io.ComfyNode):
    """Load Annealing Scale."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingScaleLoader",
            display_name="Load Annealing Scale",
            category=SCALE_CATEGORY,
            description="Loads a learned guidance scale for the Annealing Guider or for Annealing Guidance (KSampler).",
            inputs=[
                io.Combo.Input(
                    "scale_name",
                    options=scale_names(),
                    tooltip="The learned scale: one that comes with this pack, a .safetensors or .pt file in "
                    "models/annealing_guidance/, or an entry that says what it downloads. Such an entry is downloaded once, "
                    "when it first runs; it is checked and kept in models/annealing_guidance/.",
                ),
            ],
            outputs=[
                AnnealingScale.Output(
                    display_name="scale_model",
                    tooltip="The scale model, which gives the guidance scale at every step. Connect it to the Annealing Guider "
                    "or to Annealing Guidance (KSampler).",
                )
            ],
            **where_known(io.Schema, search_aliases=["load scale", "scale file"]),
        )

    @classmethod
    def validate_inputs(cls, scale_name: str | None = None) -> bool | str:
        """True, or why the name cannot be loaded. None: it comes from another node, and execute will check it."""
        return scale_name is None or scale_name in scale_names() or str(_unknown(scale_name))

    @classmethod
    def fingerprint_inputs(cls, scale_name: str) -> Any:
        """Changes with the file, so that a changed file is read again."""
        if entry := _catalogue_entry(scale_name):
            return entry.sha256  # the content is fixed, so fetching it must not look like a change
        try:
            stat = _path_of(scale_name).stat()
        except (AnnealingError, OSError):
            return None  # missing: execute says so
        return (stat.st_mtime_ns, stat.st_size)

    @classmethod
    def execute(cls, scale_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_scale_by_name(scale_name))


class AnnealingFixedScale(io.ComfyNode):
    """Fixed Scale (baseline)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingFixedScale",
            display_name="Fixed Scale (baseline)",
            category=SCALE_CATEGORY,
            description="A guidance scale that follows a fixed rule, to compare the learned scale with. Like the learned scale "
            "it is a CFG++ scale: usual values are 0.6 to 1.2, not 7. guidance_lambda has no effect on it.",
            inputs=[
                io.Combo.Input(
                    "rule",
                    options=list(RULES),
                    default="constant",
                    tooltip="constant: scale at every step (plain CFG++). linear, cosine: from scale at full noise to scale_end "
                    "without noise. interval: scale between start_percent and end_percent, scale_end outside.",
                ),
                io.Float.Input(
                    "scale",
                    default=0.8,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="The CFG++ scale (constant; inside the interval), or the one at full noise (linear, cosine). "
                    "0.8 on SDXL is about CFG 10 at 50 steps.",
                ),
                io.Float.Input(
                    "scale_end",
                    default=0.1,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="The CFG++ scale without noise (linear, cosine) or outside the interval. 0.1 is about CFG 1, the "
                    "prompt without extra guidance; 0 ignores the prompt. constant does not use it.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where the interval starts, by noise level: 0 is full noise, 1 the finished picture. Only used by "
                    "interval.",
                    **where_known(io.Float.Input, advanced=True),
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where the interval ends, by noise level: 0 is full noise, 1 the finished picture. Only used by "
                    "interval.",
                    **where_known(io.Float.Input, advanced=True),
                ),
            ],
            outputs=[
                AnnealingScale.Output(
                    display_name="scale_model",
                    tooltip="The rule as a scale model. Connect it where a learned scale would go.",
                )
            ],
            **where_known(io.Schema, search_aliases=["constant scale", "limited interval", "scale schedule"]),
        )

    @classmethod
    def execute(cls, rule: str, scale: float, scale_end: float, start_percent: float, end_percent: float) -> io.NodeOutput:
        return io.NodeOutput(FixedScale(rule, scale, scale_end, start_percent, end_percent))


NODES = [AnnealingScaleLoader, AnnealingFixedScale]
