"""Recognising what a profile was measured on, without reading a whole model: SHA-256 of values, and samples of weights.

A model's fingerprint takes a few milliseconds, on whatever device the weights are. Its parts, and what each part distinguishes:

  its class, and the names and shapes of its weights       another architecture
  8 values of each of 32 weights, without LoRAs            another checkpoint, a merge, an 8-bit copy
  LoRAs and other weight patches: keys, strengths, values  another LoRA, another strength
  its sampling: prediction and table of noise levels       another ModelSampling node, another shift

The values are compared with a tolerance: float32, bfloat16 and float16 copies of a checkpoint are alike. An 8-bit or smaller copy
counts as another model, as its predictions differ. The fingerprint does not see what changes the prediction without changing a
weight (attention and block patches, FreeU, wrappers, control nets), fine-tuning that moves all weights by less than 0.5%, and
LoRAs attached to a conditioning (hooks).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

TENSORS, VALUES = 32, 8  # looked at per model, per weight
TOLERANCE = 0.005  # relative; bfloat16 rounds by at most 0.002
PATCH_VALUES = 16

Samples = list[list[float]]  # a few values of each of several tensors


def digest(value: Any, values_per_tensor: int | None = None) -> bytes:
    """SHA-256 of nested lists, dicts, numbers, strings and tensors.

    Tensors count with their shape and their float32 values, all or `values_per_tensor` evenly spaced ones. Other objects count
    with their class and their `weights`.
    """
    hashed = hashlib.sha256()
    _feed(hashed, value, values_per_tensor)
    return hashed.digest()


def _feed(hashed: hashlib._Hash, value: Any, values_per_tensor: int | None) -> None:
    if isinstance(value, torch.Tensor):
        values = _plain(value).flatten()
        if values_per_tensor is not None:
            values = values[_spread(len(values), values_per_tensor)]
        hashed.update(str(tuple(value.shape)).encode())
        hashed.update(values.to(device="cpu", dtype=torch.float32).contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        _feed(hashed, sorted(((str(key), item) for key, item in value.items()), key=lambda pair: pair[0]), values_per_tensor)
    elif isinstance(value, (list, tuple)):
        hashed.update(f"[{len(value)}".encode())
        for item in value:
            _feed(hashed, item, values_per_tensor)
    elif value is None or isinstance(value, (bool, int, float, str, bytes)):
        hashed.update(f"{type(value).__name__}:{value!r};".encode())
    else:
        hashed.update(type(value).__qualname__.encode())
        _feed(hashed, getattr(value, "weights", None), values_per_tensor)  # ComfyUI's LoRA adapters


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that can be indexed. A quantised one is dequantised if it can be, else its packed numbers are used."""
    tensor = tensor.detach()
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        try:
            tensor = tensor.dequantize()
        except (RuntimeError, NotImplementedError, AttributeError):
            tensor = tensor.as_subclass(torch.Tensor)
    return tensor


def _spread(length: int, count: int) -> torch.Tensor:
    """At most `count` evenly spaced indices below length, which do not all fall on one column of rows of 2^n values."""
    return torch.linspace(0, length - 1, min(count, length), dtype=torch.float64).long()


def samples_of(tensors: list[torch.Tensor], count: int = VALUES) -> Samples:
    """`count` evenly spaced values of each tensor, rounded to five digits."""
    samples = []
    for tensor in tensors:
        values = _plain(tensor).flatten()
        picked = values[_spread(len(values), count).to(values.device)].to(device="cpu", dtype=torch.float64)
        samples.append([float(f"{value:.5g}") for value in picked.tolist()])
    return samples


def alike(one: Samples, other: Samples, tolerance: float = TOLERANCE) -> bool:
    """Whether every tensor's samples are within the relative tolerance (Euclidean)."""
    if [len(values) for values in one] != [len(values) for values in other]:
        return False
    for mine, theirs in zip(one, other, strict=True):
        a, b = torch.tensor(mine, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64)
        if not float((a - b).norm()) <= tolerance * float(b.norm()):  # NaN is never alike
            return False
    return True


@dataclass(frozen=True)
class Fingerprint:
    """A model as a profile's files remember it.

    architecture: class and a hash of the weights' names and shapes. weights, levels: samples of the weights and of the table
    of noise levels. patches: hash of the weight patches, "" without any. sampling: the prediction's class names. merged: hash of
    those patches that are another model's weights (the Model Merge nodes), "" without any.
    """

    architecture: str
    weights: Samples
    patches: str
    sampling: str
    levels: Samples
    merged: str = ""

    def differences(self, other: Fingerprint) -> list[str]:
        """What differs, as parts of a sentence; empty where the two may be the same model."""
        if self.architecture != other.architecture:
            return [f"another model ({other.architecture.split()[0]}, this one is {self.architecture.split()[0]})"]
        found = []
        if not alike(self.weights, other.weights):
            found.append("other weights (another checkpoint, a merge, or an 8-bit copy of the same)")
        if self.patches != other.patches:
            found.append("other LoRAs or weight patches, or other strengths of them")
        if self.sampling != other.sampling or not alike(self.levels, other.levels):
            found.append("another way of sampling (prediction, shift or zsnr of a ModelSampling node)")
        return found


def fingerprint(model: ModelPatcher) -> Fingerprint:
    """Of a ComfyUI MODEL, loaded or not."""
    architecture, samples = base_of(model)
    model_sampling = model.get_model_object("model_sampling")
    levels = [
        torch.as_tensor(getattr(model_sampling, name)) for name in ("sigmas", "sigma_data") if hasattr(model_sampling, name)
    ]
    return Fingerprint(
        architecture=architecture,
        weights=samples,
        patches=digest(dict(model.patches), PATCH_VALUES).hex()[:32] if model.patches else "",
        sampling=" + ".join(base.__name__ for base in type(model_sampling).__mro__ if base.__module__ == "comfy.model_sampling"),
        levels=samples_of(levels, 32),
        merged=merged_of(model),
    )


def base_of(model: ModelPatcher) -> tuple[str, Samples]:
    """(architecture, weights) of the model's Fingerprint: what LoRAs and nodes do not change."""
    inner = model.model
    weights = {name: weight for name, weight in inner.diffusion_model.named_parameters() if weight.numel() > 0}
    shapes = {name: list(weight.shape) for name, weight in weights.items()}
    named = hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()[:16]
    # Only matrices, if there are any: norms and biases are much alike in all models, and merges often leave them out.
    matrices = [name for name in sorted(weights) if weights[name].ndim > 1] or sorted(weights)
    chosen = [matrices[i] for i in _spread(len(matrices), TENSORS).tolist()]
    samples = samples_of([_unpatched(model, f"diffusion_model.{name}", weights[name]) for name in chosen])
    return f"{type(inner).__name__} {named}", samples


def merged_of(model: ModelPatcher) -> str:
    """`merged` of the model's Fingerprint."""
    # ComfyUI keeps another model's weight as a list, and a LoRA's as an adapter or a tuple.
    merges = {
        key: several
        for key, patches in model.patches.items()
        if (several := [patch for patch in patches if isinstance(patch[1], list)])
    }
    return digest(merges, PATCH_VALUES).hex()[:32] if merges else ""


def _unpatched(model: ModelPatcher, key: str, weight: torch.Tensor) -> torch.Tensor:
    """The checkpoint's weight, even while a LoRA is merged into the loaded one."""
    if key in model.backup:
        return model.backup[key].weight
    if key in model.hook_backup:
        return model.hook_backup[key][0]
    return weight
