"""Many pictures as one, with labels: the demo's picture and the templates' thumbnails."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

GAP = 6
ROW_LABEL, ROW_LETTERS = 150, 20  # pixels, and what fits into them
COLUMN_LABEL = 44
FONT_SIZE = 13
LETTER = 8  # a letter's width, on average


def labelled_grid(
    rows: Sequence[str], columns: Sequence[str], pictures: Sequence[Sequence[Image.Image]], width: int = 128, height: int = 128
) -> Image.Image:
    """pictures[row][column], of any size, each fitted into width x height; the columns' labels above, the rows' to the left."""
    font = ImageFont.load_default(FONT_SIZE)
    left = ROW_LABEL if any(rows) else GAP
    sheet = Image.new("RGB", (left + (width + GAP) * len(columns), COLUMN_LABEL + (height + GAP) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(columns):
        x = left + column * (width + GAP)
        text = textwrap.fill(label, width // LETTER, break_long_words=False)
        draw.multiline_text((x + width / 2, COLUMN_LABEL / 2), text, "black", font, anchor="mm", align="center")
        for row, in_row in enumerate(pictures):
            shown = ImageOps.pad(in_row[column].convert("RGB"), (width, height), color="white")
            sheet.paste(shown, (x, COLUMN_LABEL + row * (height + GAP)))
    for row, label in enumerate(rows):
        y = COLUMN_LABEL + row * (height + GAP) + height / 2
        draw.multiline_text((GAP, y), textwrap.fill(label, ROW_LETTERS), "black", font, anchor="lm")
    return sheet
