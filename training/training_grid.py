"""The training grid of a scale, from the user's choices: a number of steps and a scheduler."""

from __future__ import annotations

import comfy.samplers

from ..guidance import coordinates, paper_schedule
from ..guidance.host_types import ModelSampling
from ..models.errors import AnnealingError
from ..models.schedule import TIMESTEPS, share_of_nsr
from .profile import TrainingGrid

PAPER = "paper"
SCHEDULERS = (PAPER, *comfy.samplers.SCHEDULER_NAMES)
# A learned scale is about 1 on any grid, so the grid sets the strength. At scale 1 the paper's 50 steps mean CFG 12 on average,
# and 28 steps of a flow model mean CFG 28/6 = 4.7, with any shift.
USUAL_STEPS = {"ve": 50, "flow": 28}


def training_grid(model_sampling: ModelSampling, steps: int = 0, scheduler: str = PAPER) -> TrainingGrid:
    """The grid for ProfileSettings. steps: 0 for the usual number of the model's kind.

    scheduler: "paper", the Paper Schedule node's levels (for epsilon models stored as a number of timesteps per step), or one of
    ComfyUI's. AnnealingError for a scheduler that this ComfyUI lacks, and for a model without a noise path.
    """
    if scheduler not in SCHEDULERS:
        raise AnnealingError(f"There is no scheduler {scheduler!r} in this ComfyUI. Choose one of: {', '.join(SCHEDULERS)}.")
    path = coordinates.path_of(model_sampling)
    steps = steps or USUAL_STEPS[path]
    if scheduler == PAPER and path == "ve":
        return TIMESTEPS // min(max(steps, 1), TIMESTEPS)
    sigmas = (
        paper_schedule.sigmas(model_sampling, steps)
        if scheduler == PAPER
        else comfy.samplers.calculate_sigmas(model_sampling, scheduler, steps)
    )
    nsr = coordinates.nsr_of_sigma(model_sampling, sigmas.cpu())
    levels = nsr if path == "ve" else share_of_nsr(nsr)
    return tuple(levels.unique().flip(0).tolist())  # some schedulers give a level twice
