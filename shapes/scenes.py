"""The world of the demo: scenes of two coloured shapes, their captions, and the renderer.

Everything is drawn from a `torch.Generator`, so a seed gives the same scenes, captions and pictures everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

COLOURS = {
    "red": (0.86, 0.16, 0.18),
    "orange": (0.97, 0.56, 0.10),
    "yellow": (0.96, 0.85, 0.20),
    "green": (0.16, 0.62, 0.27),
    "blue": (0.16, 0.35, 0.84),
    "purple": (0.56, 0.24, 0.70),
}
SHAPES = ("circle", "square", "triangle", "cross")
# Each axis puts the scene's first object before the second: left of it, or above it.
AXES = (("left of", "right of"), ("above", "below"))
BACKGROUND = (0.91, 0.90, 0.87)
SIZE = 32  # pixels, before the 4x enlargement

N_OBJECTS = len(COLOURS) * len(SHAPES)
N_SCENES = N_OBJECTS * N_OBJECTS * len(AXES)
N_HELD_OUT = 256  # scenes that no training ever sees; worded both ways they are 512 prompts


@dataclass
class Scenes:
    """A batch of B scenes. Object 0 is the left or the upper one.

    colour, shape: [B, 2] indices into COLOURS and SHAPES; axis: [B], 0 horizontal, 1 vertical;
    centre: [B, 2, 2] (x, y) in pixels; radius: [B, 2] in pixels.
    """

    colour: torch.Tensor
    shape: torch.Tensor
    axis: torch.Tensor
    centre: torch.Tensor
    radius: torch.Tensor

    def __len__(self) -> int:
        return len(self.axis)

    def __getitem__(self, index) -> Scenes:
        return Scenes(*(getattr(self, f.name)[index] for f in fields(self)))


def scene_number(colour: torch.Tensor, shape: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """What a scene says, as a number in [0, N_SCENES): colours, shapes and relation, not the exact places."""
    obj = colour * len(SHAPES) + shape
    return (axis * N_OBJECTS + obj[:, 0]) * N_OBJECTS + obj[:, 1]


def scene_split() -> tuple[torch.Tensor, torch.Tensor]:
    """(training scenes, held-out scenes) as scene numbers; always the same."""
    order = torch.randperm(N_SCENES, generator=torch.Generator().manual_seed(20260424))
    return order[N_HELD_OUT:], order[:N_HELD_OUT]


def place(numbers: torch.Tensor, generator: torch.Generator) -> Scenes:
    """Scenes with these numbers [B], at random places and sizes. The two shapes never touch."""
    b = len(numbers)
    obj = torch.stack([numbers // N_OBJECTS % N_OBJECTS, numbers % N_OBJECTS], 1)
    axis = numbers // (N_OBJECTS * N_OBJECTS)

    def uniform(lo: float, hi: float, *shape: int) -> torch.Tensor:
        return lo + (hi - lo) * torch.rand(shape, generator=generator)

    along = torch.stack([uniform(7.0, 9.0, b), uniform(23.0, 25.0, b)], 1)
    across = uniform(11.0, 21.0, b, 2)
    horizontal = (axis == 0)[:, None]
    centre = torch.stack([torch.where(horizontal, along, across), torch.where(horizontal, across, along)], -1)
    return Scenes(obj // len(SHAPES), obj % len(SHAPES), axis, centre, uniform(4.8, 6.2, b, 2))


def caption(scene: Scenes, index: int, swapped: bool = False) -> str:
    """The scene in words. swapped: name the second object first ("B right of A"); the picture is the same."""

    def name(i: int) -> str:
        colour = list(COLOURS)[scene.colour[index, i]]
        return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {SHAPES[scene.shape[index, i]]}"

    first, second = (1, 0) if swapped else (0, 1)
    return f"{name(first)} {AXES[scene.axis[index]][int(swapped)]} {name(second)}"


def held_out_prompts() -> tuple[list[str], torch.Tensor]:
    """The 512 prompts of the held-out scenes, each scene worded both ways, and their scene numbers [512]."""
    _, numbers = scene_split()
    scenes = place(numbers, torch.Generator().manual_seed(0))
    prompts = [caption(scenes, i, swapped) for i in range(len(scenes)) for swapped in (False, True)]
    return prompts, numbers.repeat_interleave(2)


def render(scenes: Scenes) -> torch.Tensor:
    """Pictures [B, 3, 32, 32] in [0, 1]: signed distances to the outlines, anti-aliased over one pixel."""
    grid = torch.arange(SIZE, device=scenes.centre.device) + 0.5
    picture = torch.tensor(BACKGROUND, device=grid.device).view(1, 3, 1, 1).expand(len(scenes), 3, SIZE, SIZE)
    palette = torch.tensor(list(COLOURS.values()), device=grid.device)
    for i in range(2):
        x = grid[None, None, :] - scenes.centre[:, i, 0, None, None]
        y = grid[None, :, None] - scenes.centre[:, i, 1, None, None]
        x, y = torch.broadcast_tensors(x, y)
        distance = _signed_distance(x, y, scenes.radius[:, i, None, None])
        mine = distance.gather(1, scenes.shape[:, i, None, None, None].expand(-1, 1, SIZE, SIZE))
        coverage = (0.5 - mine).clamp(0, 1)
        picture = picture + coverage * (palette[scenes.colour[:, i]][:, :, None, None] - picture)
    return picture


def _signed_distance(x: torch.Tensor, y: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """[B, 4, H, W]: (approximate) distance in pixels to each of SHAPES of radius r, negative inside; y points down."""
    circle = (x * x + y * y).sqrt() - r
    square = torch.maximum(x.abs(), y.abs()) - 0.88 * r
    # Equilateral, standing on its base: three half-planes at the inradius, centred by its bounding box.
    slope = 0.866 * x.abs() - 0.5 * (y - 0.3 * r) - 0.6 * r
    triangle = torch.maximum(slope, y - 0.9 * r)
    arm, width = 1.05 * r, 0.36 * r
    horizontal = torch.maximum(x.abs() - arm, y.abs() - width)
    vertical = torch.maximum(x.abs() - width, y.abs() - arm)
    return torch.stack([circle, square, triangle, torch.minimum(horizontal, vertical)], 1)
