"""The demo's weights on disk: `shapes/weights/<part>.safetensors`. They are stored in half precision and used in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS = Path(__file__).parent / "weights"


def load_weights(name: str) -> dict[str, torch.Tensor]:
    """The state dict of one part, floating point in float32."""
    return {k: v.float() if v.is_floating_point() else v for k, v in load_file(WEIGHTS / f"{name}.safetensors").items()}


def load_part(name: str, module: nn.Module) -> nn.Module:
    """The module with its trained weights, frozen and in evaluation mode."""
    module.load_state_dict(load_weights(name))
    return module.eval().requires_grad_(False)


def save_weights(name: str, module: nn.Module) -> None:
    """Write under a temporary name and rename, so that nobody reads a half-written file."""
    WEIGHTS.mkdir(exist_ok=True)
    tensors = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in module.state_dict().items()}
    partial = WEIGHTS / f"{name}.part"
    save_file(tensors, partial, metadata={"model": f"ComfyUI Annealing Guidance, Shapes {name}", "licence": "Apache-2.0"})
    partial.replace(WEIGHTS / f"{name}.safetensors")
