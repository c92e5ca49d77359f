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
    prompt,
    sampling,
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


def train_your_model() -> Workflow:
    read = note("read", "To adapt", "train_your_model", 380)
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
        "train_your_model",
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
                    "4  Save, and see what was learned", [[scale_file("your_model"), fit_plot("train_your_model")]], 560, RESULT
                ),
            ]
        ],
    )
