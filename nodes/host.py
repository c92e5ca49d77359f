"""The menu, and what differs between the ComfyUI versions that this pack runs on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

# Our own folder in the menu: ComfyUI moved its guiders from sampling/custom_sampling/ to model/sampling/, so following either
# would scatter our nodes in the other versions.
CATEGORY = "sampling/annealing guidance"
SCALE_CATEGORY = f"{CATEGORY}/scale"
SAMPLING_CATEGORY = f"{CATEGORY}/sampling"
PICTURES_CATEGORY = f"{CATEGORY}/pictures"
TRAINING_CATEGORY = f"{CATEGORY}/training"
DEMO_CATEGORY = f"{CATEGORY}/demo"
# "annealing", "guidance", "cfg" and "lambda" belong to the guider and the patch alone, the nodes to begin with.
TRAINING_ALIASES = ["train scale", "fit scale", "profile"]


def where_known(target: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """The arguments that this host's version of `target` knows: io.Schema, or an input class.

    ComfyUI 0.3.75 raises TypeError on `advanced`, `search_aliases` and others, and an error while the nodes are listed removes
    the whole pack.
    """
    known = inspect.signature(target).parameters
    return {name: value for name, value in arguments.items() if name in known}
