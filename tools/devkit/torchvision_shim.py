"""Lets torchvision's Python part load where its compiled operators do not (a CPU-only torch beside the stock wheel)."""

from __future__ import annotations

import importlib.metadata
import importlib.util

# Keeps the library alive: torch forgets the definitions with the object.
_libraries: list[object] = []


def define_missing_operators() -> None:
    """Define the two operators that torchvision registers fake kernels for on import, where the real ones failed to load.

    ComfyUI uses neither; without the definitions `import torchvision` raises. Other builds of torch than the CPU-only one have
    the operators, and are not even imported: ComfyUI has to configure them first.
    """
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("torchvision")):
        return
    if not importlib.metadata.version("torch").endswith("+cpu"):
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
