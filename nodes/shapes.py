"""The embedded demo model as a node."""

from __future__ import annotations

from comfy_api.latest import io

from ..shapes.loader import VARIANTS, load_shapes
from .host import CATEGORY, where_known


class ShapesLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShapesLoader",
            display_name="Load Shapes (demo model)",
            category=CATEGORY,
            description=(
                "A tiny text-to-image model that comes with Annealing Guidance, to try it without any download. It draws two "
                'coloured shapes at 128 x 128: "a red circle left of a blue square".'
            ),
            inputs=[
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default=VARIANTS[0],
                    tooltip="epsilon: predicts noise on SDXL's schedule. flow: a flow model, as SD3 and Flux are.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The picture model. Use it with an Empty Latent Image of 128 x 128."),
                io.Clip.Output(
                    tooltip="Its text encoder. It knows six colours, four shapes, and left of, right of, above, below."
                ),
                io.Vae.Output(tooltip="Its VAE: 8 pixels make a latent place."),
            ],
            **where_known(io.Schema, search_aliases=["demo model", "tiny model", "example model"]),
        )

    @classmethod
    def execute(cls, variant: str) -> io.NodeOutput:
        return io.NodeOutput(*load_shapes(variant))


NODES: list[type[io.ComfyNode]] = [ShapesLoader]
