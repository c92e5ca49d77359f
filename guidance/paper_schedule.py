"""The paper's noise levels: DDIM's evenly spaced timesteps, in the model's own sigmas."""

from __future__ import annotations

import torch

from ..models import schedule
from . import coordinates
from .host_types import ModelSampling


def sigmas(model_sampling: ModelSampling, steps: int) -> torch.Tensor:
    """Descending sigmas of a whole run and a final 0: [steps + 1], float32, on the CPU.

    Epsilon models: leading spacing with offset 0 (980, 960, ..., 0 for 50 steps of 1000 timesteps). A model with more noise than
    the paper's schedule begins with its own largest sigma (zero terminal SNR: 4518, where timestep 980 has 53).
    Flow models: times 1, 1 - 1/steps, ..., 1/steps through the model's shift; a flow run begins with pure noise.
    There are at most as many steps as the model's table has entries.
    """
    table: torch.Tensor = model_sampling.sigmas.float().cpu()
    steps = min(steps, len(table))
    index = torch.arange(steps)
    if coordinates.path_of(model_sampling) == "ve":
        index = index * (len(table) // steps)
        if coordinates.nsr_of_sigma(model_sampling, table[-1]) > 1.01 * schedule.ve_sigmas()[-1]:
            index[-1] = len(table) - 1
    else:  # the table's entry i is time (i + 1) / length
        index = (index + 1) * len(table) // steps - 1
    return torch.cat([table[index.flip(0)], torch.zeros(1)])
