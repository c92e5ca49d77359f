"""The pack's nodes: one module per topic, each with a list `NODES`."""

from comfy_api.latest import ComfyExtension, io

from . import fitting, guider, plots, sampling, scale, shapes, sweep, train_once, training
from .checked import checked

# One line per topic, in the order of the menu.
NODES: list[type[io.ComfyNode]] = [
    *guider.NODES,
    *scale.NODES,
    *sampling.NODES,
    *sweep.NODES,
    *plots.NODES,
    *train_once.NODES,
    *training.NODES,
    *fitting.NODES,
    *shapes.NODES,
]
for _node in NODES:
    checked(_node)


class AnnealingGuidance(ComfyExtension):
    """What ComfyUI's loader asks for the list of nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
