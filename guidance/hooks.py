"""Other packs' hooks in the guided step: each gets its own copy of the scale, and an error names the hook that failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch

from ..models.errors import AnnealingError
from .host_types import Options

Hook = Callable[[Options], Any]
PRE_CFG, CFG, POST_CFG = "sampler_pre_cfg_function", "sampler_cfg_function", "sampler_post_cfg_function"
# What a hook raises that needs a single number, or another shape.
_FAILURES = (TypeError, ValueError, RuntimeError, AttributeError)


def for_hooks(scale: torch.Tensor, latent: torch.Tensor, is_one_for_all: bool) -> torch.Tensor:
    """The scale [B] as hooks get it: without a dimension where one serves all samples, else [B, 1, ...].

    A tensor of one number works wherever a number does.
    """
    scale = scale.to(latent.dtype)
    return scale[0] if is_one_for_all else scale.view(-1, *[1] * (latent.ndim - 1))


def guarded_options(model_options: Options, is_one_for_all: bool) -> Options:
    """Model options for comfy.samplers.cfg_function, with each hook guarded."""
    if CFG not in model_options and not model_options.get(POST_CFG):
        return model_options
    options = {**model_options, POST_CFG: [guarded(h, model_options, is_one_for_all) for h in model_options.get(POST_CFG, [])]}
    if CFG in model_options:
        options[CFG] = guarded(model_options[CFG], model_options, is_one_for_all)
    return options


def guarded(hook: Hook, model_options: Options, is_one_for_all: bool) -> Hook:
    """The hook, called with its own copy of the scale and with the original model options.

    AnnealingError where it cannot use one scale per sample. Errors that have nothing to do with that pass through.
    """

    def called(args: Options) -> Any:
        try:
            return hook({**args, "cond_scale": args["cond_scale"].clone(), "model_options": model_options})
        except _FAILURES as error:
            if is_one_for_all or isinstance(error, (AnnealingError, comfy.model_management.OOM_EXCEPTION)):
                raise
            raise AnnealingError(
                f'The patch {_name_of(hook)} on this model failed: "{error}". Annealing guidance gives it one scale per sample '
                "where CFG gives one number, and some patches need a number. Remove that patch, sample one picture at a time, "
                "or sample its model with CFGGuider."
            ) from error

    return called


def _name_of(hook: Hook) -> str:
    function = getattr(hook, "func", hook)  # of a functools.partial
    return str(getattr(function, "__qualname__", type(function).__name__)).split(".<locals>")[0]
