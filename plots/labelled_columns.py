"""Many pictures as one, with a label over each column."""

from __future__ import annotations

import textwrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .figure import INK, PAPER


def labelled_columns(columns: list[torch.Tensor], labels: list[str]) -> torch.Tensor:
    """One IMAGE [1, H, W, 3] of columns of pictures, each [N, h, w, 3] with values 0..1: row i holds picture i of each."""
    count, height, width = columns[0].shape[:3]
    gap = max(width // 32, 4)
    size = max(width // 12, 12)
    letters = max(int(width / (0.6 * size)), 4)
    texts = [textwrap.fill(label, letters) for label in labels]
    head = int(1.4 * size * max(text.count("\n") + 1 for text in texts)) + 2 * gap
    sheet = Image.new("RGB", (gap + (width + gap) * len(columns), head + (height + gap) * count), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size)
    for column, (pictures, text) in enumerate(zip(columns, texts, strict=True)):
        x = gap + column * (width + gap)
        draw.multiline_text((x + width / 2, head / 2), text, INK, font, anchor="mm", align="center")
        for row, picture in enumerate(pictures):
            pixels = (picture[..., :3].clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()
            sheet.paste(Image.fromarray(pixels), (x, head + row * (height + gap)))
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32)[None] / 255.0)
