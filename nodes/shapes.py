"""The bundled demo as nodes: its model, and pictures to train a scale on."""

from __future__ import annotations

from comfy_api.latest import io

from ..shapes.loader import VARIANTS, captioned_pictures, load_shapes
from .host import DEMO_CATEGORY, where_known


class ShapesLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShapesLoader",
            display_name="Load Shapes (demo model)",
            category=DEMO_CATEGORY,
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
                io.Vae.Output(tooltip="Its VAE: 8 x 8 pixels make one latent place."),
            ],
            **where_known(io.Schema, search_aliases=["demo model", "tiny model", "example model"]),
        )

    @classmethod
    def execute(cls, variant: str) -> io.NodeOutput:
        return io.NodeOutput(*load_shapes(variant))


class ShapesDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShapesDataset",
            display_name="Shapes Pictures (demo data)",
            category=DEMO_CATEGORY,
            description="Draws captioned pictures for the demo model, in place of the folder of captioned pictures that you "
            "would use for a real model. Connect both lists to Make Training Dataset.",
            inputs=[
                io.Int.Input("count", default=256, min=1, max=4096, tooltip="Number of pictures. A scale needs at least 8."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,  # else the interface changes it after every run
                    tooltip="The same seed draws the same pictures. None of them shows a scene that the demo model is tested on.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", is_output_list=True, tooltip="List of pictures of 128 x 128, to encode with the VAE."
                ),
                io.String.Output(display_name="texts", is_output_list=True, tooltip="List of their captions."),
            ],
            **where_known(io.Schema, search_aliases=["demo dataset", "example dataset", "training pictures"]),
        )

    @classmethod
    def execute(cls, count: int, seed: int) -> io.NodeOutput:
        pictures, captions = captioned_pictures(count, seed)
        return io.NodeOutput(list(pictures.split(1)), captions)


NODES: list[type[io.ComfyNode]] = [ShapesLoader, ShapesDataset]
