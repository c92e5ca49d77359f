"""Draws the pictures of the help pages with the nodes that they show: `tools/dev.py pictures` calls this in the host's Python."""

from __future__ import annotations

import importlib
from pathlib import Path

from devkit.in_process import import_both

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "web" / "docs" / "images"
PROMPT = "a red circle left of a blue square"
SEED = 3
PICTURES = 256  # for the fit


def main() -> None:
    import torch

    pack = import_both(ROOT, "pictures")
    modules = ("nodes.plots", "nodes.sweep", "nodes.training", "nodes.fitting", "nodes.shapes", "nodes.scale")
    plots, sweep, training, fitting, shapes, scale = (importlib.import_module(f"{pack}.{name}") for name in modules)

    with torch.inference_mode():
        model, clip, vae = shapes.ShapesLoader.execute("epsilon").args
        keep("AnnealingSweep", swept(sweep.AnnealingSweep, model, clip, vae, count=2)[0])
        _, latent, trace = swept(sweep.AnnealingSweep, model, clip, vae, count=1)
        keep("AnnealingScalePlot", plots.AnnealingScalePlot.execute(trace, latent).args[0])
        network = scale.load_scale_by_name("shapes_epsilon.safetensors")
        keep("AnnealingScaleMap", plots.AnnealingScaleMap.execute(network, 0.4, "0, 0.4, 0.8", trace, latent).args[0])
    draw_fit(shapes, training.AnnealingProfiler, fitting.AnnealingFit)


def swept(node, model, clip, vae, count: int) -> list:
    """Lambda Sweep's outputs for a batch of `count`: [grid, samples, trace]."""
    import comfy.samplers
    import torch
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 20)
    latent = {"samples": torch.zeros(count, 4, 16, 16)}
    sampler = comfy.samplers.sampler_object("dpmpp_2m")
    noise, positive, negative = Noise_RandomNoise(SEED), encoded(clip, PROMPT), encoded(clip, "")
    return node.execute(noise, model, positive, negative, sampler, sigmas, latent, vae, "0, 0.4, 0.8", "1, 5").args


def draw_fit(shapes, profiler, fit) -> None:
    model, clip, vae = shapes.ShapesLoader.execute("flow").args
    pictures, captions = shapes.ShapesDataset.execute(PICTURES, 0).args
    inputs = defaults(profiler, model=model, negative=encoded(clip, ""), batch_size=8, samples_per_picture=4)
    inputs["latents"] = [{"samples": vae.encode(picture)} for picture in pictures]
    inputs["positive"] = [encoded(clip, caption) for caption in captions]
    profile = profiler.execute(**inputs).args[0]
    settings = {name: values[0] for name, values in defaults(fit, profile=profile).items()}
    keep("AnnealingFit", fit.execute(**settings).args[2])


def encoded(clip, prompt: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def defaults(node, **given) -> dict[str, list]:
    """A node's inputs as lists of one: what is given, and for the rest the defaults."""
    schema = {entry.id: getattr(entry, "default", None) for entry in node.define_schema().inputs}
    return {name: [value] for name, value in {**schema, **given}.items()}


def keep(name: str, image) -> None:
    """Write an IMAGE as a small PNG, in 256 colours."""
    from PIL import Image

    picture = Image.fromarray((image[0].float().numpy() * 255).round().astype("uint8"))
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.png"
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
