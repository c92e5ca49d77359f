"""What a run used, and what a scale model would use, as pictures."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..guidance.trace import AnnealingTrace, RunTrace
from ..models.errors import AnnealingError, in_words
from ..models.whole_file import write_whole
from ..plots.figure import picture_of
from ..plots.scale_map import map_figure
from ..plots.scale_plot import trace_figure, trace_table
from .files import inside
from .guider import AnnealingTraceType, parse_lambdas
from .host import PICTURES_CATEGORY, where_known
from .progress import show_text
from .scale import AnnealingScale

_NOT_SAMPLED = (
    "The trace is empty: nothing was sampled with its guider or patched model yet. Connect the latent of the sampler that uses "
    "it to {input}, so that this node runs after it."
)
_NOT_SURE = "Several runs used this guider, and none of them gave these very samples: this is the latest run."
_ALIASES = ["scale chart", "strength chart"]

MOST_MAPS = 16


class AnnealingScalePlot(io.ComfyNode):
    """Scale Plot."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingScalePlot",
            display_name="Scale Plot",
            category=PICTURES_CATEGORY,
            description="Draws the scales that the sampling used, step by step, and the size of the gap: a line for each sample. "
            "It needs matplotlib.",
            inputs=[
                AnnealingTraceType.Input("trace", tooltip="From the Annealing Guider or the Annealing Guidance patch."),
                io.Latent.Input(
                    "samples",
                    tooltip="The latent that was sampled with it. It passes through, so that this node waits for the sampler.",
                ),
                io.String.Input(
                    "csv_prefix",
                    default="",
                    optional=True,
                    tooltip="Also write the numbers, as <prefix>_00001_.csv in the output folder, beside the saved pictures. "
                    "Empty: no file.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="The chart."),
                io.Latent.Output(display_name="samples", tooltip="The samples, unchanged."),
            ],
            **where_known(io.Schema, search_aliases=_ALIASES),
        )

    @classmethod
    def execute(cls, trace: AnnealingTrace, samples, csv_prefix: str = "") -> io.NodeOutput:
        run, remark = _run_of(trace, samples)
        if csv_prefix.strip():
            show_text(f"Numbers written to {_write_table(run, csv_prefix.strip())}")
        return io.NodeOutput(picture_of(lambda: trace_figure(run, remark)), samples)


class AnnealingScaleMap(io.ComfyNode):
    """Scale Map."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingScaleMap",
            display_name="Scale Map",
            category=PICTURES_CATEGORY,
            description="Draws the scale that a scale model gives for every noise level and every size of the gap, one map for "
            "each lambda. With a trace, it also draws the path of a run. It needs matplotlib.",
            inputs=[
                AnnealingScale.Input("scale_model", tooltip="From Load Annealing Scale, Fit Annealing Scale or Fixed Scale."),
                io.Float.Input(
                    "guidance_lambda",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="The lambda to draw the map for.",
                ),
                io.String.Input(
                    "lambdas",
                    default="",
                    optional=True,
                    tooltip="Several lambdas, one map each: 0, 0.4, 0.8. Empty: guidance_lambda alone.",
                ),
                AnnealingTraceType.Input(
                    "trace", optional=True, tooltip="A run to draw on the map: its first four samples. Connect samples too."
                ),
                io.Latent.Input(
                    "samples", optional=True, tooltip="What was sampled with the trace, so that this node waits for it."
                ),
            ],
            outputs=[io.Image.Output(display_name="map", tooltip="The map, or maps.")],
            **where_known(io.Schema, search_aliases=_ALIASES),
        )

    @classmethod
    def execute(cls, scale_model, guidance_lambda: float, lambdas: str = "", trace=None, samples=None) -> io.NodeOutput:
        run = None if trace is None else _run_of(trace, samples)[0]
        several = parse_lambdas(lambdas, "lambdas")
        shown = [guidance_lambda] if several is None else several.tolist()
        if len(shown) > MOST_MAPS:  # a stranger's workflow must not keep the server busy
            raise AnnealingError(f"lambdas holds {len(shown)} numbers, and at most {MOST_MAPS} maps are drawn. Write fewer.")
        if not all(0 <= value <= 1 for value in shown):
            raise AnnealingError(f"guidance_lambda is {guidance_lambda}. Set it to a number from 0 to 1.")
        return io.NodeOutput(picture_of(lambda: map_figure(scale_model, shown, run)))


def _run_of(trace: AnnealingTrace, samples: dict | None) -> tuple[RunTrace, str]:
    """The run that made the samples, and a remark where that is not sure."""
    if not trace.calls:
        raise AnnealingError(_NOT_SAMPLED.format(input="samples"))
    run, is_sure = trace.run_of(None if samples is None else samples["samples"])
    return run, "" if is_sure else _NOT_SURE


def _write_table(trace: RunTrace, prefix: str) -> Path:
    output = folder_paths.get_output_directory()
    inside(output, prefix, "csv_prefix")
    try:
        folder, name, number, *_ = folder_paths.get_save_image_path(prefix, output)
    except Exception as error:  # ComfyUI's own refusal to leave the output folder is a bare Exception
        raise AnnealingError(f"csv_prefix is {prefix!r}, which leads out of the output folder. Use a plain name.") from error
    path = Path(folder, f"{name}_{number:05}_.csv")
    try:
        write_whole(path, trace_table(trace).encode())
    except OSError as error:
        raise AnnealingError(
            f"The numbers could not be written to {path}: {in_words(error)}. Choose another csv_prefix."
        ) from error
    return path


NODES: list[type[io.ComfyNode]] = [AnnealingScalePlot, AnnealingScaleMap]
