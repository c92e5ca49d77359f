"""Trains the Shapes demo model from its seed, on pictures that the renderer draws.

    python tools/dev.py train text autoencoder judge flow epsilon

Every part writes `shapes/weights/<part>.safetensors` when it is done. Until then it keeps its state in `--state`, so that the
same command resumes an interrupted training. `--device cuda` trains on a GPU.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..models.schedule import TIMESTEPS, ve_sigmas
from . import text
from .autoencoder import AutoEncoder
from .files import load_part, load_weights, save_weights
from .judge import Judge
from .network import ShapesTransformer
from .scenes import N_OBJECTS, N_SCENES, SHAPES, Scenes, caption, place, render, scene_number, scene_split

SEED = 20251122
STEPS = {"text": 1500, "autoencoder": 2000, "judge": 2500, "flow": 8000, "epsilon": 1500}
PEAK_LR = {"text": 1e-3, "autoencoder": 2e-3, "judge": 2e-3, "flow": 1.5e-3, "epsilon": 7e-4}
BATCH = {"text": 256, "autoencoder": 48, "judge": 96, "flow": 64, "epsilon": 64}
WRONG_CAPTIONS = 0.3  # share of captions with one wrong object: web captions have errors too, and guidance corrects for them
NO_CAPTION = 0.1  # share of captions left out, for the unconditional prediction


class Part:
    """One trained part: its modules, and the loss of a fresh batch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.train_scenes, self.held_out = scene_split()

    def scenes(self, n: int, generator: torch.Generator) -> Scenes:
        return place(self.train_scenes[torch.randint(len(self.train_scenes), (n,), generator=generator)], generator)

    def pictures(self, scenes: Scenes) -> torch.Tensor:
        return render(scenes).to(self.device)

    def result(self, module: nn.Module) -> nn.Module:
        """The part of the trained module that is kept."""
        return module


class TextPart(Part):
    """Learns, at every word, which object it belongs to and where that object is."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.encoder = text.TextEncoder().to(device)
        self.reader = nn.Linear(text.WIDTH, N_OBJECTS + 4).to(device)
        self.module = nn.ModuleDict({"encoder": self.encoder, "reader": self.reader})
        scenes = place(self.train_scenes, torch.Generator().manual_seed(0))
        spoken = [(i, swapped) for i in range(len(scenes)) for swapped in (False, True)]
        self.tokens = text.pad([text.tokenize(caption(scenes, i, swapped)) for i, swapped in spoken])
        index, swap = torch.tensor(spoken).T
        obj = (scenes.colour * len(SHAPES) + scenes.shape)[index]
        self.objects = torch.where(swap[:, None].bool(), obj.flip(1), obj)  # in the order they are named
        self.sides = scenes.axis[index, None] * 2 + torch.stack([swap, 1 - swap], 1)

    def loss(self, n: int, generator: torch.Generator) -> torch.Tensor:
        pick = torch.randint(len(self.tokens), (n,), generator=generator)
        out = self.reader(self.encoder(self.tokens[pick].to(self.device))[:, :5])
        owner = torch.tensor([0, 0, 0, 1, 1])  # colour shape relation colour shape
        objects, sides = self.objects[pick][:, owner].to(self.device), self.sides[pick][:, owner].to(self.device)
        return F.cross_entropy(out[..., :N_OBJECTS].mT, objects) + F.cross_entropy(out[..., N_OBJECTS:].mT, sides)

    def result(self, module: nn.Module) -> nn.Module:
        return module["encoder"]


class AutoEncoderPart(Part):
    """Learns to restore pictures from their latents, with noise on them too, which makes the edges clean."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.module = AutoEncoder().to(device)

    def loss(self, n: int, generator: torch.Generator) -> torch.Tensor:
        pictures = self.pictures(self.scenes(n, generator))
        latents = self.module.encode(pictures)
        noise = torch.randn(latents.shape, generator=generator) * 0.6 * torch.rand(n, 1, 1, 1, generator=generator)
        return F.l1_loss(self.module.decode(latents + noise.to(self.device)), pictures)


class JudgePart(Part):
    """Learns to read every scene, held-out ones too, from pictures with noise and shifted colours."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.module = Judge().to(device)

    def loss(self, n: int, generator: torch.Generator) -> torch.Tensor:
        scenes = place(torch.randint(N_SCENES, (n,), generator=generator), generator)
        pictures = self.pictures(scenes)
        shift = 0.05 * torch.randn(n, 3, 1, 1, generator=generator)
        noise = torch.randn(pictures.shape, generator=generator) * 0.1 * torch.rand(n, 1, 1, 1, generator=generator)
        out = self.module((pictures + (shift + noise).to(self.device)).clamp(0, 1))
        truth = {"colour": scenes.colour, "shape": scenes.shape, "axis": scenes.axis}
        reading = sum(F.cross_entropy(out[k].flatten(0, -2), v.flatten().to(self.device)) for k, v in truth.items())
        places = torch.cat([scenes.centre, scenes.radius[..., None]], 2).to(self.device)
        return reading + 0.1 * F.l1_loss(out["place"], places)


class PicturePart(Part):
    """The picture model: v = noise - x0 on latents, the text encoder and the autoencoder frozen."""

    def __init__(self, device: torch.device, variant: str) -> None:
        super().__init__(device)
        self.variant = variant
        self.module = ShapesTransformer().to(device)
        if variant == "epsilon":  # starts from the flow model: the same denoiser, other noise levels
            self.module.load_state_dict(load_weights("flow"))
        self.vae = load_part("autoencoder", AutoEncoder()).to(device)
        self.captions = caption_embeddings(load_part("text", text.TextEncoder())).to(device)

    def loss(self, n: int, generator: torch.Generator) -> torch.Tensor:
        scenes = self.scenes(n, generator)
        x0 = self.vae.encode(self.pictures(scenes))
        condition = self.captions[self.caption_numbers(scenes, generator), torch.randint(2, (n,), generator=generator)]
        condition = condition * (torch.rand(n, 1, 1, generator=generator) >= NO_CAPTION).to(self.device)
        s = self.noise_levels(n, generator).to(self.device)
        noise = torch.randn(x0.shape, generator=generator).to(self.device)
        z = torch.lerp(x0, noise, s[:, None, None, None])
        return F.mse_loss(self.module(z, s, condition), noise - x0)

    def caption_numbers(self, scenes: Scenes, generator: torch.Generator) -> torch.Tensor:
        """The scenes' numbers, some with one object replaced by a random one; never a held-out scene."""
        true = scene_number(scenes.colour, scenes.shape, scenes.axis)
        n = len(true)
        other = torch.randint(N_OBJECTS, (n,), generator=generator)
        weight = torch.tensor([N_OBJECTS, 1])[torch.randint(2, (n,), generator=generator)]
        wrong = true + (other - true // weight % N_OBJECTS) * weight
        use = (torch.rand(n, generator=generator) < WRONG_CAPTIONS) & ~torch.isin(wrong, self.held_out)
        return torch.where(use, wrong, true)

    def noise_levels(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """s in (0, 1). Flow: logit-normal (Esser et al., 2024); epsilon: SDXL's schedule, its timesteps uniform."""
        if self.variant == "flow":
            return torch.sigmoid(0.3 + torch.randn(n, generator=generator))
        sigma = ve_sigmas()[torch.randint(TIMESTEPS, (n,), generator=generator)].float()
        return sigma / (1 + sigma)


def caption_embeddings(encoder: text.TextEncoder) -> torch.Tensor:
    """[N_SCENES, 2, N_TOKENS, WIDTH]: every scene worded both ways."""
    scenes = place(torch.arange(N_SCENES), torch.Generator().manual_seed(0))
    tokens = [text.tokenize(caption(scenes, i, swapped)) for i in range(N_SCENES) for swapped in (False, True)]
    return torch.cat([encoder(chunk) for chunk in text.pad(tokens).split(256)]).unflatten(0, (N_SCENES, 2))


PARTS: dict[str, Callable[[torch.device], Part]] = {
    "text": TextPart,
    "autoencoder": AutoEncoderPart,
    "judge": JudgePart,
    "flow": lambda device: PicturePart(device, "flow"),
    "epsilon": lambda device: PicturePart(device, "epsilon"),
}


def learning_rate(name: str, step: int, steps: int) -> float:
    """Warm-up, a plateau, and a linear decrease over the last third."""
    return PEAK_LR[name] * min((step + 1) / min(300, steps / 10), 1.0, 3 * (steps - step) / steps)


def train(name: str, steps: int, device: torch.device, state_folder: Path) -> None:
    """Train one part, from its last saved state if there is one, and write its weights."""
    torch.manual_seed(SEED)
    part = PARTS[name](device)
    average = copy.deepcopy(part.module)
    optimizer = torch.optim.AdamW(part.module.parameters(), lr=0.0, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    state_folder.mkdir(parents=True, exist_ok=True)
    state_file, step = state_folder / f"{name}.pt", 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        step = state["step"]
        part.module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        print(f"{name}: going on at step {step}", flush=True)

    def save_state() -> None:
        state = {"step": step, "module": part.module.state_dict(), "average": average.state_dict()}
        torch.save(state | {"optimizer": optimizer.state_dict()}, state_file.with_suffix(".part"))
        state_file.with_suffix(".part").replace(state_file)

    running, first, began, saved = math.nan, step, time.monotonic(), time.monotonic()
    try:
        while step < steps:
            # Seeded by the step, so that an interrupted training sees the same batches.
            generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
            loss = part.loss(BATCH[name], generator)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(part.module.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(name, step, steps)
            optimizer.step()
            follow(average, part.module, min(0.9985, (1 + step) / (10 + step)))
            step += 1
            if step % 100 == 0 or step == steps:
                running = loss.item() if math.isnan(running) else 0.9 * running + 0.1 * loss.item()
                pace = (time.monotonic() - began) / (step - first)
                print(f"{name}: step {step}/{steps}  loss {running:.4f}  {pace:.3f} s a step", flush=True)
            if time.monotonic() - saved > 120:
                save_state()
                saved = time.monotonic()
    finally:
        save_state()
    save_weights(name, part.result(average))


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move the running average of the weights a little towards the latest ones."""
    averaged = average.state_dict()
    for key, latest in module.state_dict().items():
        averaged[key].lerp_(latest, 1 - decay) if latest.is_floating_point() else averaged[key].copy_(latest)


def main(arguments: list[str]) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="dev.py train", description=__doc__, formatter_class=layout)
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--state", type=Path, default=Path("runs/shapes"), help="where unfinished training is kept")
    parser.add_argument("--steps", type=int, help="instead of each part's own number")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    for name in args.parts:
        train(name, args.steps or STEPS[name], torch.device(args.device), args.state)
