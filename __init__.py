"""ComfyUI's entry point for Annealing Guidance. It lists the nodes and names the web folder, nothing else.

Nothing is imported until ComfyUI asks for the nodes, so that `models/` can be used and tested without ComfyUI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """Return the extension that lists this pack's nodes (called once by ComfyUI's loader)."""
    from .nodes import AnnealingGuidance

    return AnnealingGuidance()
