"""The picture of a fit: the curves are the network's own values, and they can be told apart without colours."""

from __future__ import annotations

import pytest
import torch
from annealing_guidance_pack.models.scale_model import ScaleInfo
from annealing_guidance_pack.plots import fit_plot as plot
from annealing_guidance_pack.training.fit import Check, Fit
from annealing_guidance_pack.training.profile import Entries, Profile, ProfileSettings
from scales import INFO, made_up_network

# A grid of 200 timesteps per step: measured at 800, 600, 400, 200.
STEPS = (800.0, 600.0, 400.0, 200.0)
HISTORY = [Check(100, 3.0, 2.0), Check(200, 1.5, 1.0), Check(300, 1.2, 1.1)]


def profile(steps=STEPS) -> Profile:
    """101 entries at every step, with gap norms 0, 0.1 .. 10 times the step's number: percentiles known exactly."""
    timestep = torch.tensor(steps).repeat_interleave(101)
    gap_norm = torch.cat([torch.arange(101) / 10 * (1 + STEPS.index(step)) for step in steps])
    n = len(timestep)
    entries = Entries(torch.arange(n), timestep, gap_norm, torch.ones(n, 3), torch.ones(n, 9))
    return Profile("epsilon", 1024, ProfileSettings(200), entries)


@pytest.fixture(scope="module")
def network():
    return made_up_network(ScaleInfo(**vars(INFO) | {"training_grid": 200}))


def test_the_curves_are_the_networks_values_at_the_percentiles_of_each_steps_gaps(network):
    scales = plot.scale_bands(network, profile(), 0.4)
    assert scales.shape == (4, 9)
    for step, timestep in enumerate(STEPS):
        norms = torch.arange(1.0, 10.0) * (1 + step)  # the 10th .. 90th percentile
        expected = network(torch.full((9,), timestep), norms, 0.4)
        torch.testing.assert_close(scales[step], expected)


def test_a_step_without_entries_is_left_out_and_the_others_stay_where_they_are(network):
    whole, gappy = (plot.scale_bands(network, profile(steps), 0.4) for steps in (STEPS, (800.0, 400.0)))
    assert gappy[[1, 3]].isnan().all()
    assert torch.equal(gappy[[0, 2]], whole[[0, 2]])


def test_lines_differ_in_lightness_dash_and_marker():
    rgb = torch.tensor([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in plot.COLOURS]) / 255
    lightness = (rgb**2.2 @ torch.tensor([0.2126, 0.7152, 0.0722])) ** (1 / 2.2)
    assert (lightness.diff() > 0.08).all()
    assert len(set(map(str, plot.DASHES))) == len(set(plot.MARKERS)) == len(plot.LAMBDAS) == len(plot.COLOURS)


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_the_figure_shows_every_lambda_and_the_loss_against_the_best_constant(network):
    figure = plot.fit_figure(Fit(network, HISTORY, 1.0, 1.25), profile(), 2000)
    left, right = figure.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["0.0", "0.2", "0.4", "0.6", "0.8"]
    shown = lines(left)["0.4"]
    assert shown.get_xdata().tolist() == [1, 2, 3, 4]
    assert shown.get_ydata().tolist() == plot.scale_bands(network, profile(), 0.4)[:, 4].tolist()
    assert lines(right)["learned scale"].get_ydata() == pytest.approx([60.0, -20.0, -12.0])  # percent of the constant's loss
    low, high = right.get_ylim()
    assert low < -20 and high > 60


def test_a_difference_of_a_thousandth_looks_like_none(network):
    history = [Check(100, 1.0, 1.001), Check(200, 1.0, 1.0)]
    right = plot.fit_figure(Fit(network, history, 1.0, 1.0), profile(), 2000).axes[1]
    low, high = right.get_ylim()
    assert low <= -0.5 and high >= 0.5


def test_the_preview_draws_the_loss_so_far(network):
    axes = plot.loss_figure(HISTORY[:2], 2000).axes[0]
    assert list(lines(axes)["learned scale"].get_ydata()) == [2.0, 1.0]
    assert axes.get_xlim()[1] >= 2000


def test_a_profile_with_one_measured_step_can_still_be_drawn(network):
    plot.fit_figure(Fit(network, HISTORY, 1.0, 1.25), profile((600.0,)), 2000).canvas.draw()
