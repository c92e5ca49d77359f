"""The live chart's values: what a run uses, sent to the interface while it samples, without waiting for the device."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .trace import GuidedCall

EVENT = "annealing_guidance.scale"
SECONDS_BETWEEN_MESSAGES = 0.1
MOST_SAMPLES = 16  # more lines than a chart can show


class _Copy(NamedTuple):
    """Values [4, B] on their way to the host. done: None for values that were on the CPU already."""

    values: torch.Tensor
    done: torch.Event | None


class LiveChart:
    """Sends the calls of a run to the chart of the node that made the guider: at most 10 messages a second, a step late or more.

    A message holds node, run (1 for the first), steps (of the schedule), folded, lambdas (one per sample, or one for all), first
    (the index of its first call), and calls: sigma, and per sample gap_norm, scale and cfg_scale. NaN and infinity become None,
    as JSON lacks them. A line of text under the node says the same to clients that don't draw the chart.

    node: the node's execution id. send: takes an event's name and its data. say: shows a text under the node.
    """

    def __init__(self, node: str, send: Callable[[str, dict[str, Any]], None], say: Callable[[str], None]):
        self.node, self._send, self._say = node, send, say
        self._head: dict[str, Any] = {}
        self._sent, self._last_time = 0, -math.inf
        self._copies: deque[_Copy] = deque()

    def begin(self, run_id: int, steps: int, folded: bool, lambdas: list[float]) -> None:
        """A new run: forget what is left of the one before."""
        self._head = {"node": self.node, "run": run_id, "steps": steps, "folded": folded, "lambdas": lambdas[:MOST_SAMPLES]}
        self._sent, self._last_time = 0, -math.inf
        self._copies = deque()

    def record(self, call: GuidedCall) -> None:
        """Start copying a call's values, and send those that have arrived, unless a message was sent just now."""
        self._copies.append(_copy_of(torch.stack([call.sigma, call.gap_norm, call.scale, call.cfg_scale])[:, :MOST_SAMPLES]))
        if time.monotonic() - self._last_time >= SECONDS_BETWEEN_MESSAGES:
            self._send_calls(self._arrived())

    def finish(self, summary: str) -> None:
        """Send the rest, and show the summary. This waits for the device, as the run is over."""
        for copy in self._copies:
            if copy.done is not None:
                copy.done.synchronize()
        self._send_calls(self._arrived())
        if summary:
            self._say(summary)

    def _arrived(self) -> list[torch.Tensor]:
        """The values whose copies have finished, oldest first, up to the first copy that has not."""
        values = []
        while self._copies and (self._copies[0].done is None or self._copies[0].done.query()):
            values.append(self._copies.popleft().values)
        return values

    def _send_calls(self, arrived: list[torch.Tensor]) -> None:
        if not arrived:
            return
        calls = [_as_json(values) for values in arrived]
        self._send(EVENT, {**self._head, "first": self._sent, "calls": calls})
        self._sent += len(calls)
        self._say(f"step {self._sent}: {_in_words(calls[-1])}")
        self._last_time = time.monotonic()


def can_follow(device: torch.device) -> bool:
    """Whether a device reports when a copy has finished. One that doesn't (DirectML) has no live chart."""
    if device.type == "cpu":
        return True
    try:
        torch.Event(device).record()
        return True
    except (AttributeError, RuntimeError):
        return False


def _copy_of(values: torch.Tensor) -> _Copy:
    if values.device.type == "cpu":
        return _Copy(values, None)
    host, done = values.to("cpu", non_blocking=True), torch.Event(values.device)
    done.record()
    return _Copy(host, done)


def _as_json(values: torch.Tensor) -> dict[str, Any]:
    sigma, gap_norm, scale, cfg_scale = ([x if math.isfinite(x) else None for x in row] for row in values.tolist())
    return {"sigma": sigma[0], "gap_norm": gap_norm, "scale": scale, "cfg_scale": cfg_scale}


def _in_words(call: dict[str, Any]) -> str:
    """ "CFG 8.2, scale 1.04", with the range over the batch where the samples differ."""
    return f"CFG {_range(call['cfg_scale'], '.1f')}, scale {_range(call['scale'], '.2f')}"


def _range(values: list[float | None], digits: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "not a number"
    low, high = (format(value, digits) for value in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"
