"""Models and pictures from files, for the command line: what ComfyUI's loader nodes do in a workflow."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image, ImageOps

from ..guidance.host_types import Conditioning
from ..models.errors import AnnealingError, in_words
from ..shapes.loader import load_shapes
from .pictures import Picture, PictureMaker, encode, encoded_picture, identity_of

PICTURE_FILES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
MULTIPLE = 64  # pixels: a multiple of every known model's latent places and patches
ENCODED_AT_ONCE = 256  # captions and latents in memory; after each portion the encoders and the model swap places there


@dataclass(frozen=True)
class Loaded:
    """MODEL, CLIP and VAE; encoders: names and sizes of the files with encoders, which identify them."""

    model: ModelPatcher
    clip: Any
    vae: Any
    encoders: list[tuple[str, int]]

    def encode(self, text: str) -> Conditioning:
        """The CONDITIONING of a prompt."""
        return encode(self.clip, text)


def load(options: argparse.Namespace) -> Loaded:
    """options: the command line's checkpoint, diffusion_model, clip, clip_type, vae, shapes, pictures."""
    if options.shapes:
        return Loaded(*load_shapes(options.shapes), [(f"shapes {options.shapes}", 0)])
    for path in filter(None, [options.checkpoint, options.diffusion_model, options.vae, *options.clip]):
        if not path.is_file():
            raise AnnealingError(f"There is no file {path}. Name the model's files with their full paths.")
    model = clip = vae = None
    if options.checkpoint:
        model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(options.checkpoint), output_vae=True, output_clip=True)
    if options.diffusion_model:
        model = comfy.sd.load_diffusion_model(str(options.diffusion_model))
    if options.clip:
        clip = comfy.sd.load_clip(ckpt_paths=[str(path) for path in options.clip], clip_type=_clip_type(options.clip_type))
    if options.vae:
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(options.vae)))
    needed = {"diffusion model (--diffusion-model)": model, "text encoder (--clip)": clip}
    if options.pictures:
        needed["VAE (--vae)"] = vae
    if missing := [name for name, part in needed.items() if part is None]:
        raise AnnealingError(f"The model's files hold no {' and no '.join(missing)}. Name the file that does.")
    files = [options.checkpoint, *options.clip, options.vae]
    return Loaded(model, clip, vae, [(path.name, path.stat().st_size) for path in files if path])


def _clip_type(name: str) -> comfy.sd.CLIPType:
    try:
        return comfy.sd.CLIPType[name.upper()]
    except KeyError:
        known = ", ".join(kind.name.lower() for kind in comfy.sd.CLIPType)
        raise AnnealingError(f"There is no --clip-type {name!r} in this ComfyUI. Choose one of: {known}.") from None


@dataclass(frozen=True)
class Job:
    """A picture that is not encoded yet. file: None for one that the model makes."""

    identity: int
    caption: str
    file: Path | None


def given_jobs(folder: Path, resolution: int, loaded: Loaded) -> list[Job]:
    """Every picture in the folder and its subfolders that has a caption: a text file of the same name beside it.

    Its identity comes from the file's content, the caption, the resolution and the encoders' files, not from their results. So it
    is known without encoding anything, and the same on every device.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_FILES)
    captioned = [path for path in files if path.with_suffix(".txt").is_file()]
    if not captioned:
        raise AnnealingError(
            f"{folder} holds {len(files)} pictures, none with a caption. Put a text file of the same name beside each: "
            "cat.png, cat.txt."
        )
    if len(captioned) < len(files):
        print(f"{len(files) - len(captioned)} of {len(files)} pictures have no caption beside them and are left out.")
    jobs = []
    for path in captioned:
        caption = path.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").strip()
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        jobs.append(Job(identity_of("file", content, caption, resolution, loaded.encoders), caption, path))
    return jobs


def prompted_jobs(file: Path, maker: PictureMaker, loaded: Loaded) -> list[Job]:
    """`count` pictures for every line of the file. The model makes them itself."""
    try:
        prompts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise AnnealingError(f"{file} cannot be read: {in_words(error)}. Give a text file with one prompt per line.") from None
    if not prompts:
        raise AnnealingError(f"{file} holds no prompts. Write one per line.")
    count = maker.settings.count
    return [Job(maker.identity([prompt, loaded.encoders], repeat), prompt, None) for repeat in range(count) for prompt in prompts]


def pictures_of(jobs: Sequence[Job], loaded: Loaded, resolution: int, maker: PictureMaker | None) -> list[Picture]:
    """The jobs' pictures, with captions and files encoded. Files that are no pictures are reported and left out."""
    pictures = []
    with torch.no_grad():
        captions = {text: loaded.encode(text) for text in dict.fromkeys(job.caption for job in jobs)}
        for job in jobs:
            caption = captions[job.caption]
            if job.file is None:
                assert maker is not None, "prompted_jobs were given one"
                pictures.append(maker.picture(job.identity, caption))
                continue
            try:
                pixels = load_picture(job.file, resolution)
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                print(f"\n{job.file} cannot be read as a picture and is left out: {in_words(error)}.", flush=True)
                continue
            latent = loaded.vae.encode(pixels)[0].cpu()
            pictures.append(encoded_picture(job.identity, latent, caption))
    return pictures


def load_picture(path: Path, resolution: int) -> torch.Tensor:
    """[1, H, W, 3], 0..1: scaled to about resolution^2 pixels in its own aspect ratio, cropped to sides that models accept."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    factor = resolution / (image.width * image.height) ** 0.5
    size = tuple(max(MULTIPLE, round(side * factor / MULTIPLE) * MULTIPLE) for side in image.size)
    image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)[None]
