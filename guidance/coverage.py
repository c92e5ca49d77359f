"""Where a conditioning covers nothing: ComfyUI then returns zeros, which are no prediction."""

from __future__ import annotations

import torch

from .host_types import PreparedConditioning

# Options that can switch a conditioning off: at some steps (a range), at some places (area, mask), or everywhere (strength 0).
_LIMITS = ("timestep_start", "timestep_end", "area", "mask", "strength")


def may_cover_nothing(conds: PreparedConditioning) -> bool:
    """Whether each of these prepared conditionings has an option that can switch it off."""
    return all(any(limit in cond for limit in _LIMITS) for cond in conds)


def covers_nothing(conds: PreparedConditioning, prediction: torch.Tensor) -> torch.Tensor:
    """Where these prepared conditionings give no prediction: [B, 1, ...], bool, found without waiting for the device.

    Zeros alone prove nothing: the best prediction at pure noise is the data's mean, which may be zero. So they count only
    where every conditioning can be switched off, and only where all channels are zero.
    """
    if may_cover_nothing(conds):
        return (prediction == 0).all(dim=1, keepdim=True)
    return torch.zeros_like(prediction[:, :1], dtype=torch.bool)


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] as [B, 1, ...] with the rank of `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))
