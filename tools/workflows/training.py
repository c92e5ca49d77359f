"""The templates that train a scale."""

from __future__ import annotations

from .blocks import (
    GUIDE,
    MODEL,
    READ,
    RESULT,
    annealing,
    decode,
    empty_prompt,
    latent,
    noise,
    null_renoising,
    paper_steps,
    preview,
    prompt,
    sampler,
    sampling,
    usual_steps,
)
from .description import Group, Node, Workflow, node, note


def profiler(name: str, training_steps: int, samples: int, batch_size: int, size: int) -> Node:
    return node(
        "profile",
        "AnnealingProfiler",
        tall=430,
        model=("loader", "MODEL"),
        latents=("dataset", "latents"),
        positive=("dataset", "conditioning"),
        negative=("negative", "CONDITIONING"),
        profile_name=name,
        training_steps=training_steps,
        samples_per_picture=samples,
        seed=0,
        training_scheduler="paper",
        knots=9,
        perturb_captions=True,
        batch_size=batch_size,
        width=size,
        height=size,
        pictures_per_prompt=1,
        sampling_steps=28,
        cfg=0.0,
        sampler_name="euler",
    )


def fit(trained_on: str, licence: str) -> Node:
    return node(
        "fit",
        "AnnealingFit",
        tall=560,
        profile=("profile", "profile"),
        trained_on=trained_on,
        licence=licence,
        gap_divisor="p95",
        loss_balance="auto",
        hidden_width=128,
        depth=3,
        steps=2000,
        learning_rate=0.001,
        seed=0,
    )


def dataset(images: tuple[str, str], texts: tuple[str, str]) -> Node:
    return node("dataset", "MakeTrainingDataset", images=images, vae=("loader", "VAE"), clip=("loader", "CLIP"), texts=texts)


def scale_file(prefix: str) -> Node:
    return node("scale", "AnnealingScaleSave", tall=130, scale_model=("fit", "scale_model"), filename_prefix=prefix)


def fit_plot(folder: str) -> Node:
    return node("plot", "SaveImage", "The learned scale", tall=400, images=("fit", "plot"), filename_prefix=f"{folder}/plot")


def train_shapes() -> Workflow:
    read = note("read", "Train a scale", "train_shapes", 360)
    return Workflow(
        "train_shapes",
        [
            [
                Group("Read me", [[read]], 380, READ),
                Group(
                    "1  Model and pictures",
                    [
                        [
                            node("loader", "ShapesLoader", "The model to train a scale for", variant="flow"),
                            empty_prompt(),
                            node("drawn", "ShapesDataset", count=256, seed=0),
                            dataset(("drawn", "images"), ("drawn", "texts")),
                        ]
                    ],
                    320,
                    MODEL,
                ),
                Group("2  Measure", [[profiler("shapes_flow", 28, 4, 16, 128)]], 340, GUIDE),
                Group(
                    "3  Fit",
                    [[fit("Shapes demo model, flow variant, on 256 pictures of its own renderer", "Apache-2.0")]],
                    340,
                    GUIDE,
                ),
                Group(
                    "4  Save, and see what was learned",
                    [[scale_file("trained_shapes_flow"), fit_plot("train_shapes")]],
                    560,
                    RESULT,
                ),
            ],
            [
                Group(
                    "5  Sample with it",
                    [
                        [prompt(), latent(), noise(1)],
                        [annealing(scale_model=("fit", "scale_model"))],
                        [null_renoising(), paper_steps(28), sampling(), decode()],
                        [
                            node(
                                "picture",
                                "SaveImage",
                                "Sampled with the learned scale",
                                tall=400,
                                images=("decoded", "IMAGE"),
                                filename_prefix="train_shapes/picture",
                            )
                        ],
                    ],
                    340,
                    RESULT,
                ),
            ],
        ],
        ["plot", "picture"],
    )


def train_once(effort: str, **settings) -> Node:
    """With its own list of prompts, if none are given."""
    return node(
        "train",
        "AnnealingTrainScale",
        tall=520,
        model=("loader", "MODEL"),
        clip=("loader", "CLIP"),
        width=0,
        height=0,
        effort=effort,
        name="",
        **settings,
    )


def once_plot(folder: str) -> Node:
    return node("plot", "SaveImage", "The learned scale", tall=400, images=("train", "plot"), filename_prefix=f"{folder}/plot")


def shapes_prompts(count: int = 32) -> str:
    """Pairs of different shapes in different colours, every place alike."""
    colours, shapes = ("red", "green", "blue", "yellow", "purple", "orange"), ("circle", "square", "triangle", "cross")
    places = ("left of", "right of", "above", "below")
    lines = []
    for i in range(count):
        one, other = colours[i % 6], colours[(i + 1 + i // 6 % 5) % 6]
        first, second = shapes[i // 4 % 4], shapes[(i // 4 + 1 + i % 3) % 4]
        lines.append(f"a {one} {first} {places[i % 4]} a {other} {second}")
    return "\n".join(lines)


def train_shapes_once() -> Workflow:
    read = note("read", "Train a scale with one node", "train_shapes_once", 360)
    loader = node("loader", "ShapesLoader", "The model to train a scale for", variant="epsilon")
    return Workflow(
        "train_shapes_once",
        [
            [
                Group("Read me", [[read]], 380, READ),
                Group("1  Train", [[loader, train_once("quick", prompts=shapes_prompts())]], 380, GUIDE),
                Group("2  See what was learned", [[once_plot("train_shapes_once")]], 560, RESULT),
            ],
            [
                Group(
                    "3  Sample with it",
                    [
                        [prompt(), empty_prompt(), latent(), noise(1)],
                        [annealing(scale_model=("train", "scale_model"))],
                        [null_renoising(), paper_steps(20), sampling(), decode()],
                        [
                            node(
                                "picture",
                                "SaveImage",
                                "Sampled with the learned scale",
                                tall=400,
                                images=("decoded", "IMAGE"),
                                filename_prefix="train_shapes_once/picture",
                            )
                        ],
                    ],
                    340,
                    RESULT,
                ),
            ],
        ],
        ["plot", "picture"],
    )


def train_your_model() -> Workflow:
    loader = node("loader", "CheckpointLoaderSimple", "Your model", ckpt_name="your_model.safetensors")
    return _your_model("train_your_model", [loader], {})


def train_your_model_files() -> Workflow:
    loaders = [
        node("loader", "UNETLoader", "Your diffusion model", unet_name="your_model.safetensors", weight_dtype="default"),
        node(
            "encoder",
            "CLIPLoader",
            "Its text encoder",
            clip_name="its_text_encoder.safetensors",
            type="qwen_image",
            device="default",
        ),
        node("vae", "VAELoader", "Its VAE", vae_name="its_vae.safetensors"),
    ]
    links = {("loader", "CLIP"): ("encoder", "CLIP"), ("loader", "VAE"): ("vae", "VAE")}
    return _your_model("train_your_model_files", loaders, links)


def _your_model(name: str, loaders: list[Node], links: dict[tuple[str, str], tuple[str, str]]) -> Workflow:
    """links: what takes the place of the checkpoint's text encoder and VAE."""
    workflow = Workflow(
        name,
        [
            [
                Group("Read me", [[note("read", "Once per model", "train_your_model", 420)]], 400, READ),
                Group("1  Your model", [loaders], 340, MODEL),
                Group("2  Train", [[train_once("normal")]], 380, GUIDE),
                Group("3  See what was learned", [[once_plot(name)]], 560, RESULT),
            ],
            [
                Group(
                    "4  Sample with it",
                    [
                        [prompt("a lighthouse in a storm"), empty_prompt(), latent(1024), noise(1)],
                        [annealing(scale_model=("train", "scale_model"))],
                        [sampler("euler"), usual_steps("simple", 20), sampling(), decode()],
                        [preview("picture", ("decoded", "IMAGE"), "Sampled with the learned scale")],
                    ],
                    340,
                    RESULT,
                ),
            ],
        ],
    )
    for each in (each for row in workflow.rows for group in row for column in group.columns for each in column):
        each.settings = {
            key: links.get(value, value) if isinstance(value, tuple) else value for key, value in each.settings.items()
        }
    return workflow


def train_your_pictures() -> Workflow:
    read = note("read", "To adapt", "train_your_pictures", 380)
    pictures = node(
        "pictures",
        "LoadImageTextDataSetFromFolder",
        "input/training_pictures: 1.png with its caption in 1.txt",
        folder="training_pictures",
    )
    resized = node(
        "resized",
        "ImageScale",
        "The size that your model was trained on",
        image=("pictures", "images"),
        upscale_method="lanczos",
        width=1024,
        height=1024,
        crop="center",
    )
    loader = node("loader", "CheckpointLoaderSimple", "Your model", ckpt_name="your_model.safetensors")
    negative = node("negative", "CLIPTextEncode", "Negative, as you sample with it", tall=100, clip=("loader", "CLIP"), text="")
    return Workflow(
        "train_your_pictures",
        [
            [
                Group("Read me", [[read]], 400, READ),
                Group(
                    "1  Your model, your pictures",
                    [[loader, negative, pictures, resized, dataset(("resized", "IMAGE"), ("pictures", "texts"))]],
                    340,
                    MODEL,
                ),
                Group("2  Measure", [[profiler("your_model", 0, 8, 1, 1024)]], 340, GUIDE),
                Group("3  Fit", [[fit("your model, on your pictures", "")]], 340, GUIDE),
                Group(
                    "4  Save, and see what was learned",
                    [[scale_file("your_model"), fit_plot("train_your_pictures")]],
                    560,
                    RESULT,
                ),
            ]
        ],
    )
