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
        room=520,
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
        tall=340,
        room=390,
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
    return node("plot", "SaveImage", "The learned scale", tall=310, images=("fit", "plot"), filename_prefix=f"{folder}/plot")


def train_shapes() -> Workflow:
    return Workflow(
        "11 Train with three nodes - nothing to download",
        [
            [
                Group("Read me", [[note("read", "Train a scale", "train_shapes", 620)]], 280, READ),
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
                    250,
                    MODEL,
                ),
                Group(
                    "2  Measure    3  Fit",
                    [
                        [
                            profiler("shapes_flow", 28, 4, 16, 128),
                            fit("Shapes demo model, flow variant, on 256 pictures of its own renderer", "Apache-2.0"),
                        ]
                    ],
                    280,
                    GUIDE,
                ),
                Group(
                    "4  Save, and see what was learned",
                    [[scale_file("trained_shapes_flow"), fit_plot("train_shapes"), sampled("train_shapes")]],
                    320,
                    RESULT,
                ),
                sample_with(("fit", "scale_model"), [null_renoising(), paper_steps(28)], "5  Sample with it"),
            ]
        ],
        ["plot", "picture"],
    )


def sampled(folder: str) -> Node:
    title = "Sampled with it"
    return node("picture", "SaveImage", title, tall=300, images=("decoded", "IMAGE"), filename_prefix=f"{folder}/picture")


def sample_with(scale: tuple[str, str], steps: list[Node], title: str, before: list[Node] | None = None) -> Group:
    """before: what the sampling needs and is not there yet; else the demo's prompt and size."""
    before = before or [prompt(), latent(), noise(3)]
    return Group(title, [[*before, *steps], [annealing(scale_model=scale), sampling(), decode()]], 240, RESULT)


def train_once(effort: str, **settings) -> Node:
    """With its own list of prompts, if none are given."""
    return node(
        "train",
        "AnnealingTrainScale",
        "Train Annealing Scale",
        tall=560,
        model=("loader", "MODEL"),
        clip=("loader", "CLIP"),
        width=0,
        height=0,
        effort=effort,
        name="",
        **settings,
    )


def once_plot(folder: str) -> Node:
    return node("plot", "SaveImage", "The learned scale", tall=310, images=("train", "plot"), filename_prefix=f"{folder}/plot")


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
    loader = node("loader", "ShapesLoader", "The model to train a scale for", variant="epsilon")
    return Workflow(
        "10 Train with one node - nothing to download",
        [
            [
                Group("Read me", [[note("read", "Train a scale with one node", "train_shapes_once", 480)]], 320, READ),
                Group("1  Train", [[loader, train_once("quick", prompts=shapes_prompts())]], 320, GUIDE),
                Group("2  See what was learned", [[once_plot("train_shapes_once"), sampled("train_shapes_once")]], 370, RESULT),
                sample_with(
                    ("train", "scale_model"),
                    [null_renoising(), paper_steps(20)],
                    "3  Sample with it",
                    [prompt(), empty_prompt(), latent(), noise(1)],
                ),
            ]
        ],
        ["plot", "picture"],
    )


def train_your_model() -> Workflow:
    loader = node("loader", "CheckpointLoaderSimple", "Your model", ckpt_name="your_model.safetensors")
    return _your_model("08 Train once for your model - checkpoint", "train_your_model", [loader], {})


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
    return _your_model("09 Train once for your model - separate files", "train_your_model_files", loaders, links)


def _your_model(name: str, folder: str, loaders: list[Node], links: dict[tuple[str, str], tuple[str, str]]) -> Workflow:
    """links: what takes the place of the checkpoint's text encoder and VAE."""
    before = [prompt("a lighthouse in a storm"), empty_prompt(), latent(1024), noise(1)]
    steps = [sampler("euler"), usual_steps("simple", 20)]
    result = preview("picture", ("decoded", "IMAGE"), "Sampled with it", 320)
    workflow = Workflow(
        name,
        [
            [
                Group("Read me", [[note("read", "Once per model", "train_your_model", 620)]], 290, READ),
                Group("1  Your model", [loaders], 250, MODEL),
                Group("2  Train", [[train_once("normal")]], 280, GUIDE),
                Group("3  See what was learned", [[once_plot(folder), result]], 320, RESULT),
                sample_with(("train", "scale_model"), steps, "4  Sample with it", before),
            ]
        ],
        drawn="fit",
    )
    for each in (each for row in workflow.rows for group in row for column in group.columns for each in column):
        each.settings = {
            key: links.get(value, value) if isinstance(value, tuple) else value for key, value in each.settings.items()
        }
    return workflow


def train_your_pictures() -> Workflow:
    read = note("read", "To adapt", "train_your_pictures", 620)
    pictures = node(
        "pictures",
        "LoadImageTextDataSetFromFolder",
        "Your pictures, with captions",
        folder="training_pictures",
    )
    resized = node(
        "resized",
        "ImageScale",
        "The model's own size",
        image=("pictures", "images"),
        upscale_method="lanczos",
        width=1024,
        height=1024,
        crop="center",
    )
    loader = node("loader", "CheckpointLoaderSimple", "Your model", ckpt_name="your_model.safetensors")
    negative = node("negative", "CLIPTextEncode", "Negative, as you sample", tall=88, clip=("loader", "CLIP"), text="")
    return Workflow(
        "12 Train on your own pictures",
        [
            [
                Group("Read me", [[read]], 340, READ),
                Group(
                    "1  Your model, your pictures",
                    [[loader, negative, pictures, resized, dataset(("resized", "IMAGE"), ("pictures", "texts"))]],
                    320,
                    MODEL,
                ),
                Group("2  Measure", [[profiler("your_model", 0, 8, 1, 1024)]], 290, GUIDE),
                Group("3  Fit", [[fit("your model, on your pictures", "")]], 290, GUIDE),
                Group(
                    "4  Save, and see what was learned",
                    [[scale_file("your_model"), fit_plot("train_your_pictures")]],
                    380,
                    RESULT,
                ),
            ]
        ],
        drawn="fit",
    )
