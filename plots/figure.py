"""What all figures share: size, font, colours, and the conversion of a matplotlib figure to an IMAGE.

matplotlib is imported only when a figure is made. Figures are made without pyplot and set every colour and size themselves, so
that they neither see nor change the settings of other users of matplotlib in the same process.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 1024, 512  # pixels
DPI = 100
FONT, FONT_SIZE = "DejaVu Sans", 14  # comes with matplotlib; in points, readable at half the size
PAPER, INK, FAINT = "white", "#202020", "#d8d8d8"

NO_MATPLOTLIB = (
    "No plot: the Python package matplotlib is not installed ({reason}). Everything else of this node works without it. To see "
    'plots, run "python -m pip install matplotlib" with the Python that runs ComfyUI, and restart ComfyUI.'
)

logger = logging.getLogger("annealing_guidance")


def picture_of(draw: Callable[[], Figure]) -> torch.Tensor:
    """The figure that `draw` makes as an IMAGE [1, H, W, 3], or a picture that says why there is none."""
    try:
        return _image(_pixels(draw()))
    except ImportError as error:
        message = NO_MATPLOTLIB.format(reason=error)
        logger.warning(message)
        return _written(message)


def preview_of(draw: Callable[[], Figure]) -> tuple[str, Image.Image, int] | None:
    """The figure as a preview for ComfyUI's progress bar; None without matplotlib."""
    try:
        pixels = _pixels(draw())
    except ImportError:
        return None
    picture = Image.fromarray(pixels)
    return ("PNG", picture, max(picture.size))


def new_figure(width: int = WIDTH, height: int = HEIGHT) -> Figure:
    """An empty figure of that many pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor=PAPER, edgecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Titles, a light grid and plain axes. Call it last: it also styles the ticks and the legend."""
    font = {"fontfamily": FONT, "color": INK}
    axes.set_facecolor(PAPER)
    axes.set_title(title, fontsize=FONT_SIZE, loc="left", **font)
    axes.set_xlabel(xlabel, fontsize=FONT_SIZE - 1, **font)
    axes.set_ylabel(ylabel, fontsize=FONT_SIZE - 1, **font)
    axes.tick_params(colors=INK, labelsize=FONT_SIZE - 2, labelfontfamily=FONT, direction="out", length=4, width=1)
    axes.grid(True, color=FAINT, linewidth=1, linestyle="-")
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color=INK, linewidth=1)
    if legend := axes.get_legend():
        legend.get_frame().set(facecolor=PAPER, edgecolor=FAINT, alpha=0.9)
        for text in (*legend.get_texts(), legend.get_title()):
            text.set(color=INK, fontsize=FONT_SIZE - 2, fontfamily=FONT)


def _pixels(figure: Figure) -> np.ndarray:
    """[H, W, 3], uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[:, :, :3].copy()


def _image(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels[None].astype(np.float32) / 255.0)


def _written(message: str) -> torch.Tensor:
    picture = Image.new("RGB", (WIDTH // 2, HEIGHT // 2), PAPER)
    text = textwrap.fill(message, 56)
    ImageDraw.Draw(picture).multiline_text((16, 16), text, INK, ImageFont.load_default(16), spacing=6)
    return _image(np.asarray(picture))
