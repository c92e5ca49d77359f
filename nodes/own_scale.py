"""Finding a model's own scale among the user's files."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy.model_patcher import ModelPatcher

from ..training.own_scale import own_scale
from .scale import BUNDLED, FOLDER


def scale_trained_on(model: ModelPatcher) -> str | None:
    """The newest scale in models/annealing_guidance/ that was trained on this very model, as the loader lists it; or None.

    LoRAs on top don't matter, another checkpoint does. Cheap, and never raises for a file (see `training.own_scale`).
    """
    names = [name for name in folder_paths.get_filename_list(FOLDER) if not (BUNDLED / name).is_file()]
    paths = {name: folder_paths.get_full_path(FOLDER, name) for name in names}
    return own_scale(model, {name: Path(path) for name, path in paths.items() if path is not None})
