"""Pictures of a trace and of a scale model, and the trace's numbers as a table."""

from __future__ import annotations

import csv
import io

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models.fixed_scale import FixedScale
from annealing_guidance_pack.plots import scale_map, scale_plot
from closed_form import SmoothScale, closed_form_model, conditioning, sample
from scales import made_up_network

MEANS, NOISE = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
SIGMAS = torch.tensor([14.0, 6.0, 2.0, 0.5, 0.0])
LAMBDAS = torch.tensor([0.0, 0.4, 0.8])


def trace_of(sampler="euler", guidance_lambda=LAMBDAS):
    guider = AnnealingCFGGuider(closed_form_model(), Guidance(SmoothScale("epsilon"), guidance_lambda))
    guider.set_conds(conditioning(MEANS, 0.5), conditioning(torch.zeros_like(MEANS[:1]), 0.9))
    sample(guider, comfy.samplers.sampler_object(sampler), SIGMAS, NOISE)
    return guider.trace.latest


def lines(axes):
    return [torch.tensor(line.get_ydata()) for line in axes.get_lines()]


def test_the_panels_hold_the_traces_numbers_a_line_per_sample():
    made = trace_of()
    cfg, scale, norm = scale_plot.trace_figure(made).axes
    for axes, name in ((cfg, "cfg_scale"), (scale, "scale"), (norm, "gap_norm")):
        kept = torch.stack([getattr(call, name) for call in made.calls])
        assert all(torch.equal(line, kept[:, i]) for i, line in enumerate(lines(axes))) and len(lines(axes)) == 3


def test_the_panels_are_the_same_whatever_the_sampler_renoises_with():
    titles = [[axes.get_title() for axes in scale_plot.trace_figure(trace_of(name)).axes] for name in ("euler", "euler_cfg_pp")]
    assert titles[0] == titles[1] and len(titles[0]) == 3


def test_a_remark_stands_above_the_panels():
    assert "several runs" in scale_plot.trace_figure(trace_of(), "several runs").get_suptitle()


def test_the_legend_names_the_lambdas_where_they_differ():
    legend = scale_plot.trace_figure(trace_of()).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["1: lambda 0", "2: lambda 0.4", "3: lambda 0.8"]
    one = scale_plot.trace_figure(trace_of(guidance_lambda=0.4))
    assert [text.get_text() for text in one.axes[0].get_legend().get_texts()] == ["sample 1", "sample 2", "sample 3"]


def test_samples_of_one_colour_differ_in_their_dashes():
    axes = scale_plot.trace_figure(trace_of()).axes[0]
    axes.clear()
    scale_plot._draw(axes, torch.rand(4, 12), [1.0] * 4, [str(i) for i in range(12)])
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in axes.get_lines()}
    assert len(looks) == 12


def test_the_table_has_a_line_per_call_and_sample_with_the_traces_numbers():
    made = trace_of("heun")
    rows = list(csv.DictReader(io.StringIO(scale_plot.trace_table(made))))
    assert len(rows) == 3 * len(made.calls)
    row, call = rows[3 * 2 + 1], made.calls[2]
    assert (row["call"], row["sample"], float(row["lambda"])) == ("3", "2", pytest.approx(0.4))
    for column, name in (("scale", "scale"), ("cfg_scale", "cfg_scale"), ("gap_norm", "gap_norm"), ("sigma", "sigma")):
        assert float(row[column]) == pytest.approx(getattr(call, name)[1].item(), rel=1e-5)


def test_the_map_holds_the_models_own_scales():
    network = made_up_network()
    grid = scale_map.scale_grid(network, 0.4, 10.0)
    timestep, norm = torch.linspace(1000, 0, scale_map.RESOLUTION)[17], torch.linspace(0, 10, scale_map.RESOLUTION)[90]
    with torch.no_grad():
        assert grid[90, 17].item() == pytest.approx(network(timestep[None], norm[None], 0.4).item(), abs=1e-5)


@pytest.mark.parametrize("model", [made_up_network(), FixedScale("linear", 1.0, 0.2), FixedScale("constant", 0.8)])
def test_every_scale_model_can_be_mapped_for_several_lambdas(model):
    figure = scale_map.map_figure(model, [0.0, 0.2, 0.4, 0.8], None)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible() and axes.images]
    assert titles == ["lambda 0", "lambda 0.2", "lambda 0.4", "lambda 0.8"]


def test_a_traces_path_runs_over_the_map_of_its_own_lambda():
    made = trace_of()
    figure = scale_map.map_figure(made_up_network(), [0.0, 0.8], made)
    for axes, sample_number in zip(figure.axes[:2], (0, 2), strict=True):
        norms = torch.stack([call.gap_norm for call in made.calls])[:, sample_number]
        drawn = lines(axes)
        assert torch.allclose(drawn[0].float(), norms) and len(drawn) == 3  # outline, line, and its beginning
        assert axes.get_ylim()[1] >= norms.max()
