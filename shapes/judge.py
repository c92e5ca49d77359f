"""The judge: reads colours, shapes and relation back from a picture."""

from __future__ import annotations

import torch
from torch import nn

from .scenes import AXES, COLOURS, SHAPES, Scenes, render, scene_number

N_FEATURES = 128


class Judge(nn.Module):
    """Pictures [B, 3, 32, 32] in [0, 1] to what they show.

    `features` [B, 128] serve distances between sets of pictures; `forward` gives the logits colour [B, 2, 6],
    shape [B, 2, 4], axis [B, 2] and the places and radii in pixels [B, 2, 3] (x, y, radius).
    """

    def __init__(self) -> None:
        super().__init__()

        def stage(i: int, o: int) -> list[nn.Module]:
            return [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.BatchNorm2d(o), nn.SiLU()]

        self.trunk = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), *stage(16, 32), *stage(32, 64), *stage(64, 64),
            nn.Flatten(), nn.Linear(64 * 16, N_FEATURES), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(N_FEATURES, 2 * (len(COLOURS) + len(SHAPES) + 3) + len(AXES))

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.trunk(pictures * 2 - 1)

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.head(self.features(pictures))
        per_object = out[:, len(AXES) :].unflatten(1, (2, -1))
        colour, shape, place = per_object.split([len(COLOURS), len(SHAPES), 3], 2)
        return {"colour": colour, "shape": shape, "axis": out[:, : len(AXES)], "place": 16 + 8 * place}

    @torch.inference_mode()
    def read(self, pictures: torch.Tensor) -> Scenes:
        """The most likely scene in each picture."""
        out = self(pictures)
        place = out["place"]
        return Scenes(out["colour"].argmax(2), out["shape"].argmax(2), out["axis"].argmax(1), place[..., :2], place[..., 2])

    def right(self, pictures: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """[B] bool: does the picture show exactly the scene with this number (colours, shapes and relation)?"""
        seen = self.read(pictures)
        return scene_number(seen.colour, seen.shape, seen.axis) == numbers

    @torch.inference_mode()
    def drawing_error(self, pictures: torch.Tensor) -> torch.Tensor:
        """[B] root mean square difference, in [0, 1], between a picture and a new drawing of the scene read from it.

        It grows with blurred edges and with wrong or over-saturated colours, and does not depend on the prompt.
        """
        return (render(self.read(pictures)) - pictures).square().mean((1, 2, 3)).sqrt()
