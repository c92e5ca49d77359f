"""One labelled picture out of many: rows are prompts, columns are ways of guidance."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

TILE = 128  # pixels
GAP = 6
ROW_LABEL = 150
COLUMN_LABEL = 44
FONT_SIZE = 13


def labelled_grid(rows: Sequence[str], columns: Sequence[str], pictures: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """pictures[row][column], of any size, shown as square tiles of TILE pixels with the labels to the left and above."""
    step = TILE + GAP
    sheet = Image.new("RGB", (ROW_LABEL + step * len(columns), COLUMN_LABEL + step * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for column, label in enumerate(columns):
        centre = ROW_LABEL + column * step + TILE / 2
        draw.multiline_text((centre, COLUMN_LABEL / 2), textwrap.fill(label, 16), "black", font, anchor="mm", align="center")
    for row, label in enumerate(rows):
        centre = COLUMN_LABEL + row * step + TILE / 2
        draw.multiline_text((GAP, centre), textwrap.fill(label, 20), "black", font, anchor="lm")
        for column, picture in enumerate(pictures[row]):
            tile = picture.convert("RGB").resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (ROW_LABEL + column * step, COLUMN_LABEL + row * step))
    return sheet
