"""What a long node shows while it runs: the bar, a preview, and a line of text under the node."""

from __future__ import annotations

import sys

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context

from ..training.pace import Pace


def show_text(text: str, node: str | None = None) -> None:
    """Show a line under a node. node: its execution id; None: the node that is being executed. Does nothing without a server."""
    context = get_executing_context()
    if (server := _server()) is not None and (node is not None or context is not None):
        server.send_progress_text(text, context.node_id if node is None else node)


def send_event(event: str, data: dict) -> None:
    """Send an event to the interface that started this run. Does nothing without a server."""
    if (server := _server()) is not None:
        server.send_sync(event, data, server.client_id)


def _server():
    """The running server, or None: tests and the command line have none."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


class PictureProgress:
    """A progress callback (done, total) for pictures: moves the bar, shows the pace and the time left, obeys Cancel."""

    def __init__(self) -> None:
        self.bar: comfy.utils.ProgressBar | None = None
        self.pace = Pace()

    def __call__(self, done: int, total: int) -> None:
        self.bar = self.bar or comfy.utils.ProgressBar(total)
        self.bar.update_absolute(done, total)
        show_text(self.pace.words(done, total))
        comfy.model_management.throw_exception_if_processing_interrupted()
