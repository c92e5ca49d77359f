"""Checks each node's inputs where ComfyUI does not: values that come through a link, a list or the API.

ComfyUI checks only typed values. A linked value arrives unchecked, even a text in place of a model.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from comfy_api.latest import io

from ..guidance.trace import AnnealingTrace
from ..models.errors import AnnealingError
from ..models.scale_model import ScaleModel
from ..training.profile import Profile

WITHOUT_END = 2**31  # larger limits are technical, and messages do not name them


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, with an execute that accepts only what its schema allows. An AnnealingError names the input and its rule.

    An optional input that is None counts as unconnected. Inputs that the node's own validate_inputs checks are left to it.
    """
    execute = node.execute.__func__
    takes = inspect.signature(execute)
    own = set(inspect.signature(node.validate_inputs).parameters)

    @functools.wraps(execute)
    def execute_checked(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
        given = dict(zip(list(takes.parameters)[1:], args, strict=False)) | kwargs
        schema = cls.define_schema()
        for entry in schema.inputs:
            if entry.id not in given or entry.id in own:
                continue
            value = given.pop(entry.id)
            several = value if schema.is_input_list and value is not None else [value]
            if entry.optional and all(each is None for each in several):
                continue
            if not several:
                raise AnnealingError(f"{entry.id} is an empty list: what is connected gave nothing. Connect another node.")
            allowed = [_allowed(entry, each) for each in several]
            given[entry.id] = allowed if schema.is_input_list else allowed[0]
        return execute(cls, **given)

    node.execute = classmethod(execute_checked)
    return node


def _allowed(entry: io.Input, value: Any) -> Any:
    """The value as the input's own type; else an AnnealingError with the input's rule."""
    check, rule = _CHECKS[str(entry.io_type)]
    found = check(entry, value)
    if found is None:
        raise AnnealingError(f"{entry.id} is {_shown(value)}. {rule(entry) if callable(rule) else rule}")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value[:80]}"'
    if value is None:
        return "nothing: what is connected gave no value"
    if isinstance(value, bool | int | float):
        return str(value)
    return f"something else (of type {type(value).__name__})"


def _number(entry: io.Input, value: Any) -> float | None:
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number and _within(entry, value) else None


def _whole_number(entry: io.Input, value: Any) -> int | None:
    is_whole = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and value == int(value)
    return int(value) if is_whole and _within(entry, value) else None


def _within(entry: io.Input, value: Real) -> bool:
    low, high = getattr(entry, "min", None), getattr(entry, "max", None)
    return (low is None or value >= low) and (high is None or value <= high)


def _range(entry: io.Input) -> str:
    low, high = getattr(entry, "min", None), getattr(entry, "max", None)
    number = "a whole number" if isinstance(entry, io.Int.Input) else "a number"
    if low is not None:
        number += f" from {low:g} up" if high is None or high > WITHOUT_END else f" from {low:g} to {high:.10g}"
    return f"Set it to {number}."


def _truth(entry: io.Input, value: Any) -> bool | None:
    # Some nodes give 0 and 1 for a boolean. bool() of a text would be true, even of "false".
    return bool(value) if isinstance(value, bool) or (isinstance(value, Integral) and value in (0, 1)) else None


def _choice(entry: io.Input, value: Any) -> str | None:
    return value if isinstance(value, str) and value in entry.options else None


def _kind(is_one: Callable[[Any], bool]) -> Callable[[io.Input, Any], Any]:
    return lambda _entry, value: value if is_one(value) else None


def _has(method: str) -> Callable[[io.Input, Any], Any]:
    """By the method that is needed, not by class: other packs have their own models and samplers."""
    return _kind(lambda value: callable(getattr(value, method, None)) and not isinstance(value, str | bytes))


def _is_conditioning(value: Any) -> bool:
    pairs = value if isinstance(value, list | tuple) else [None]
    return all(isinstance(pair, list | tuple) and len(pair) >= 2 and isinstance(pair[1], dict) for pair in pairs)


# For each type: how to recognise a value, and what to say if it is something else.
_CHECKS: dict[str, tuple[Callable[[io.Input, Any], Any], str | Callable[[io.Input], str]]] = {
    "FLOAT": (_number, _range),
    "INT": (_whole_number, _range),
    "BOOLEAN": (_truth, "Set it to true or false."),
    "STRING": (_kind(lambda value: isinstance(value, str)), "Connect a text, or type one."),
    "COMBO": (_choice, lambda entry: f"Choose one of: {', '.join(entry.options)}."),
    "ANNEALING_SCALE": (
        _kind(lambda value: isinstance(value, ScaleModel)),
        "Connect a scale: Load Annealing Scale, Fit Annealing Scale or Fixed Scale.",
    ),
    "ANNEALING_TRACE": (
        _kind(lambda value: isinstance(value, AnnealingTrace)),
        "Connect the trace of the Annealing Guider, of Annealing Guidance (KSampler) or of Lambda Sweep.",
    ),
    "ANNEALING_PROFILE": (
        _kind(lambda value: isinstance(value, Profile)),
        "Connect a profile: Profile Guidance or Load Annealing Profile.",
    ),
    "MODEL": (_has("get_model_object"), "Connect a MODEL, as a checkpoint loader gives."),
    "CLIP": (_has("tokenize"), "Connect a CLIP, as a checkpoint loader gives."),
    "VAE": (_has("decode"), "Connect a VAE, as a checkpoint loader gives."),
    "NOISE": (_has("generate_noise"), "Connect a NOISE: RandomNoise."),
    "SAMPLER": (_has("sample"), "Connect a SAMPLER: KSamplerSelect or Annealing Sampler."),
    "SIGMAS": (
        _kind(lambda value: isinstance(value, torch.Tensor) and value.ndim == 1),
        "Connect SIGMAS, a row of noise levels: BasicScheduler or Paper Schedule.",
    ),
    "CONDITIONING": (_kind(_is_conditioning), "Connect a CONDITIONING: CLIP Text Encode."),
    "LATENT": (
        _kind(lambda value: isinstance(value, dict) and "samples" in value),
        "Connect a LATENT, as an empty latent node or a sampler gives.",
    ),
    "IMAGE": (_kind(lambda value: isinstance(value, torch.Tensor) and value.ndim == 4), "Connect an IMAGE."),
}
