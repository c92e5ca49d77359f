"""Where a conditioning covers nothing: ComfyUI then returns zeros, which are no prediction."""

from __future__ import annotations

import torch

# What can leave a conditioning without effect at a step: outside its range, an empty mask, no strength.
_LIMITS = ("timestep_start", "timestep_end", "mask", "strength")


def covers_nothing(conds: list[dict], prediction: torch.Tensor) -> torch.Tensor:
    """Which samples have no prediction from these prepared conditionings: [B], bool, found without waiting for the device.

    Zeros alone are no proof: the best prediction at pure noise is the data's mean, which may be zero. So they count only
    where every conditioning has something that could have left it out.
    """
    if all(any(limit in cond for limit in _LIMITS) for cond in conds):
        return (prediction == 0).flatten(1).all(dim=1)
    return torch.zeros(prediction.shape[0], dtype=torch.bool, device=prediction.device)


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] as [B, 1, ...] with the rank of `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))
