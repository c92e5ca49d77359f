"""The picture of a trace: which scales a run used, step by step; and its numbers as a table."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import torch

from ..guidance.trace import RunTrace
from .figure import dress, new_figure
from .fit_plot import COLOURS, DASHES, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, PANEL = 1024, 300  # pixels; PANEL: height of each of the panels
MOST_NAMED = 10  # a legend of more samples would hide the lines


def trace_figure(trace: RunTrace, remark: str = "") -> Figure:
    """CFG scale, the network's scale and gap norm over the run's model calls: a line per sample. remark: a line of text above."""
    calls = trace.calls
    panels = [
        ("CFG scale applied", [call.cfg_scale for call in calls]),
        ("scale (the network's)", [call.scale for call in calls]),
        ("gap norm", [call.gap_norm for call in calls]),
    ]
    figure = new_figure(WIDTH, PANEL * len(panels))
    names, sigmas = sample_names(trace), [call.sigma[0].item() for call in calls]
    for row, (axes, (title, values)) in enumerate(zip(figure.subplots(len(panels), 1), panels, strict=True)):
        _draw(axes, torch.stack(values), sigmas, names)
        if row == 0 and 1 < len(names) <= MOST_NAMED:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3)
        dress(axes, title, "model call, noise first (sigma below)" if row == len(panels) - 1 else "", "")
    title = f"{trace.scale_name}, {_lambda_in_words(trace)}"
    figure.suptitle(f"{title}\n{remark}" if remark else title, x=0.01, ha="left", fontsize=15)
    return figure


def trace_table(trace: RunTrace) -> str:
    """The same numbers as CSV: a line per call and sample."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["call", "sample", "lambda", "sigma", "timestep", "gap_norm", "scale", "cfg_scale"])
    for number, call in enumerate(trace.calls, 1):
        lambdas = torch.as_tensor(trace.guidance_lambda, dtype=torch.float32).expand_as(call.scale)
        columns = (lambdas, call.sigma, call.timestep, call.gap_norm, call.scale, call.cfg_scale)
        for sample, row in enumerate(zip(*(column.tolist() for column in columns), strict=True), 1):
            table.writerow([number, sample, *(f"{value:.6g}" for value in row)])
    return text.getvalue()


def sample_names(trace: RunTrace) -> list[str]:
    """The legend's name for each sample of the batch, with its lambda where they differ."""
    count = len(trace.calls[0].scale)
    lambdas = torch.as_tensor(trace.guidance_lambda, dtype=torch.float32).reshape(-1)
    if lambdas.numel() == 1:
        return [f"sample {i + 1}" for i in range(count)]
    return [f"{i + 1}: lambda {value:g}" for i, value in enumerate(lambdas.tolist())]


def _lambda_in_words(trace: RunTrace) -> str:
    lambdas = torch.as_tensor(trace.guidance_lambda, dtype=torch.float32).reshape(-1)
    return f"lambda {lambdas[0]:.3g}" if lambdas.numel() == 1 else "a lambda for each sample"


def _draw(axes: Axes, values: torch.Tensor, sigmas: list[float], names: list[str]) -> None:
    """values: [calls, samples]. After five samples the colours repeat, with other dashes."""
    x = torch.arange(1, len(values) + 1).numpy()
    for i, name in enumerate(names):
        axes.plot(
            x, values[:, i].numpy(), color=COLOURS[i % len(COLOURS)], linestyle=DASHES[(i + i // len(COLOURS)) % len(DASHES)],
            linewidth=2.2, marker=MARKERS[i % len(MARKERS)], markersize=6, markevery=max(len(x) // 8, 1), label=name,
        )  # fmt: skip
    ticks = torch.linspace(0, len(x) - 1, min(6, len(x))).round().long().unique().tolist()
    axes.set_xticks([i + 1 for i in ticks], [f"{i + 1}\n{sigmas[i]:.3g}" for i in ticks])
