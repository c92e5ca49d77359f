"""The nodes that the templates are made of, with their usual connections."""

from __future__ import annotations

from .description import Node, node

READ, MODEL, GUIDE, RESULT = "#88A", "#3f789e", "#b06634", "#8A8"  # colours of groups by what they are for

PROMPT = "a red circle left of a green cross"
# Chosen with seed 1 and 10 steps of the flow model: no guidance errs there, and strong CFG doubles shapes.
TELLING_PROMPT = "a red cross above a yellow circle"
SDXL = {
    "name": "sd_xl_base_1.0.safetensors",
    "url": "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
    "directory": "checkpoints",
}
PICTURE = 300  # height of a preview that shows a square picture
CHART = 410  # height of a guider with its live chart
CHART_ROOM = 530  # in Nodes 2.0, after a run


def shapes(variant: str = "epsilon") -> Node:
    return node("loader", "ShapesLoader", variant=variant)


def sdxl() -> Node:
    return node("loader", "CheckpointLoaderSimple", "SDXL base 1.0", models=[SDXL], ckpt_name=SDXL["name"])


def prompt(text: str = PROMPT, key: str = "prompt", title: str = "Prompt", tall: int = 110) -> Node:
    return node(key, "CLIPTextEncode", title, tall=tall, clip=("loader", "CLIP"), text=text)


def empty_prompt() -> Node:
    return node("negative", "CLIPTextEncode", "Negative (empty)", tall=88, clip=("loader", "CLIP"), text="")


def zeroed_prompt() -> Node:
    return node("negative", "ConditioningZeroOut", "Negative: zeros", conditioning=("prompt", "CONDITIONING"))


def latent(size: int = 128, batch: int = 1) -> Node:
    return node("latent", "EmptyLatentImage", f"Size: {size} x {size}", width=size, height=size, batch_size=batch)


def noise(seed: int, key: str = "noise", title: str = "Noise (the seed)") -> Node:
    return node(key, "RandomNoise", title, noise_seed=seed)


def paper_steps(steps: int = 50, key: str = "sigmas", title: str | None = None, denoise: float = 1.0) -> Node:
    return node(key, "AnnealingPaperSigmas", title, model=("loader", "MODEL"), steps=steps, denoise=denoise)


def usual_steps(scheduler: str = "karras", steps: int = 25) -> Node:
    title = f"{steps} steps, {scheduler}"
    return node("sigmas", "BasicScheduler", title, model=("loader", "MODEL"), scheduler=scheduler, steps=steps, denoise=1.0)


def sampler(name: str, key: str = "sampler", title: str | None = None) -> Node:
    return node(key, "KSamplerSelect", title, sampler_name=name)


def null_renoising(key: str = "sampler") -> Node:
    return node(key, "AnnealingSampler", "Annealing Sampler", eta=0.0, renoise_mix=1.0)


def annealing(key: str = "guider", positive: str = "prompt", title: str | None = None, tall: int = CHART, **settings) -> Node:
    return node(
        key,
        "AnnealingGuider",
        title,
        tall=tall,
        room=CHART_ROOM,
        model=("loader", "MODEL"),
        positive=(positive, "CONDITIONING"),
        negative=("negative", "CONDITIONING"),
        **{
            "guidance_lambda": 0.4,
            "renoise": "auto",
            "match_training_steps": True,
            "lambda_per_sample": "",
            "cfg": 0.0,
            "projection": "auto",
            **settings,
        },
    )


def cfg(key: str, scale: float, title: str) -> Node:
    return node(
        key,
        "CFGGuider",
        title,
        model=("loader", "MODEL"),
        positive=("prompt", "CONDITIONING"),
        negative=("negative", "CONDITIONING"),
        cfg=scale,
    )


def sampling(
    key: str = "sampling",
    guider: str = "guider",
    sampler: str = "sampler",
    sigmas: str = "sigmas",
    start=("latent", "LATENT"),
    noise="noise",
) -> Node:
    return node(
        key,
        "SamplerCustomAdvanced",
        noise=(noise, "NOISE"),
        guider=(guider, "GUIDER"),
        sampler=(sampler, "SAMPLER"),
        sigmas=(sigmas, "SIGMAS"),
        latent_image=start,
    )


def decode(key: str = "decoded", samples: tuple[str, str] = ("sampling", "output")) -> Node:
    return node(key, "VAEDecode", samples=samples, vae=("loader", "VAE"))


def preview(key: str, images: tuple[str, str], title: str, tall: int = PICTURE) -> Node:
    return node(key, "PreviewImage", title, tall=tall, images=images)


def plot(trace: str = "guider", samples: tuple[str, str] = ("sampling", "output")) -> Node:
    return node("plot", "AnnealingScalePlot", trace=(trace, "trace"), samples=samples, csv_prefix="")


def plot_preview(title: str = "The strength, step by step", tall: int = 380) -> Node:
    return preview("plot_picture", ("plot", "plot"), title, tall)
