"""What a long node shows while it runs: the bar, a preview, and a line of text under the node."""

from __future__ import annotations

import sys
import time

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context


def show_text(text: str, node: str | None = None) -> None:
    """A line under a node, by its execution id; of the node that is being executed if None. Nothing outside a server."""
    context = get_executing_context()
    if (server := _server()) is not None and (node is not None or context is not None):
        server.send_progress_text(text, context.node_id if node is None else node)


def send_event(event: str, data: dict) -> None:
    """An event for the interface that asked for this run. Nothing outside a server."""
    if (server := _server()) is not None:
        server.send_sync(event, data, server.client_id)


def _server():
    """The running server, if this process has one; tests and the command line have none."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


class Pace:
    """A progress callback (done, total) for pictures: moves the bar, tells the pace and the time left, obeys Cancel.

    The pace counts from the first picture that this run finished, so that neither loading the model nor what an earlier run
    measured goes into it.
    """

    def __init__(self) -> None:
        self.bar: comfy.utils.ProgressBar | None = None
        self.before = 0
        self.began: tuple[int, float] | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.bar is None:
            self.bar, self.before = comfy.utils.ProgressBar(total), done
        elif self.began is None and done > self.before:
            self.began = done, now
        self.bar.update_absolute(done, total)
        text = f"{done} of {total} pictures"
        if self.began and done > self.began[0]:
            pace = (done - self.began[0]) / max(now - self.began[1], 1e-6)
            text += f", {_pace_in_words(pace)}, {duration_in_words((total - done) / pace)} left"
        show_text(text)
        comfy.model_management.throw_exception_if_processing_interrupted()


def _pace_in_words(pace: float) -> str:
    return f"{pace:.1f} pictures/s" if pace >= 1 else f"{1 / pace:.1f} s/picture"


def duration_in_words(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
