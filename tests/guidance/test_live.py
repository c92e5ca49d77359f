"""The live chart's messages: the trace's numbers, few of them, as JSON, and no waiting while sampling."""

import json
import math

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance import live
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.patch import patch_model
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.guidance.trace import GuidedCall
from closed_form import SmoothScale, closed_form_model, conditioning, sample
from no_waiting import NoWaiting

SHAPE = (2, 4, 8, 8)
MEANS, NOISE = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
SIGMAS = torch.tensor([14.0, 6.0, 2.0, 0.5, 0.0])


class Interface:
    """What arrives at a client. As JSON, which knows no NaN."""

    def __init__(self):
        self.messages, self.texts = [], []
        self.chart = live.LiveChart("5:12", self.receive, self.texts.append)

    def receive(self, event, data):
        assert event == live.EVENT
        self.messages.append(json.loads(json.dumps(data, allow_nan=False)))

    @property
    def calls(self):
        """All calls of the latest run, each at the place that its message gave it."""
        run = self.messages[-1]["run"]
        placed = {}
        for message in self.messages:
            if message["run"] == run:
                placed |= {message["first"] + i: call for i, call in enumerate(message["calls"])}
        return [placed[i] for i in range(len(placed))]


@pytest.fixture
def interface():
    return Interface()


def guider_with(chart, guidance_lambda=0.4):
    guider = AnnealingCFGGuider(closed_form_model(), Guidance(SmoothScale("epsilon"), guidance_lambda), chart)
    guider.set_conds(conditioning(MEANS, 0.5), conditioning(torch.zeros(1, *SHAPE[1:]), 0.9))
    return guider


def run(guider, sampler="euler"):
    return sample(guider, comfy.samplers.sampler_object(sampler), SIGMAS, NOISE)


def same_numbers(calls, trace):
    assert len(calls) == len(trace.calls)
    for sent, kept in zip(calls, trace.calls, strict=True):
        for name in ("gap_norm", "scale", "cfg_scale"):
            torch.testing.assert_close(torch.tensor(sent[name]), getattr(kept, name))
        assert sent["sigma"] == pytest.approx(kept.sigma[0].item())


@pytest.mark.parametrize("sampler", ["euler", "heun", "euler_cfg_pp"])
def test_the_chart_receives_the_traces_numbers_of_every_call(interface, sampler):
    guider = guider_with(interface.chart)
    run(guider, sampler)
    same_numbers(interface.calls, guider.trace)
    head = interface.messages[0]
    assert (head["node"], head["run"], head["steps"], head["lambdas"]) == ("5:12", 1, 4, [pytest.approx(0.4)])
    assert head["folded"] is (sampler != "euler_cfg_pp")


def test_the_patch_feeds_its_chart_too(interface):
    model, trace = patch_model(closed_form_model(), Guidance(SmoothScale("epsilon")), interface.chart)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(MEANS, 0.5), conditioning(torch.zeros(1, *SHAPE[1:]), 0.9))
    run(guider)
    same_numbers(interface.calls, trace)


def test_a_second_run_begins_anew_under_its_own_number(interface):
    guider = guider_with(interface.chart, torch.tensor([0.0, 0.8]))
    for _ in range(2):
        run(guider)
    assert {message["run"] for message in interface.messages} == {1, 2}
    same_numbers(interface.calls, guider.trace)
    assert interface.messages[-1]["lambdas"] == pytest.approx([0.0, 0.8])


def test_pictures_are_the_same_with_and_without_a_chart(interface):
    assert torch.equal(run(guider_with(interface.chart)), run(guider_with(None)))


def test_at_most_ten_messages_a_second_and_none_lost(interface, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    interface.chart.begin(1, 50, True, [0.4])
    for i in range(50):
        clock[0] += 0.03
        interface.chart.record(GuidedCall(*[torch.full((1,), float(i))] * 6))
    while_running = len(interface.messages)
    assert while_running <= 50 * 0.03 / 0.1 + 1
    interface.chart.finish("")
    assert [call["sigma"] for call in interface.calls] == list(range(50))


def test_numbers_that_json_has_none_for_are_null(interface):
    interface.chart.begin(1, 1, True, [0.4])
    values = torch.tensor([1.0, math.nan, math.inf])
    interface.chart.record(GuidedCall(*[values] * 6))
    assert interface.calls[0]["scale"] == [1.0, None, None]
    interface.chart.record(GuidedCall(*[torch.full((2,), math.nan)] * 6))
    interface.chart.finish("")
    assert "not a number" in interface.texts[-1]


def test_a_large_batch_sends_no_more_lines_than_a_chart_can_show(interface):
    interface.chart.begin(1, 1, True, [0.4])
    interface.chart.record(GuidedCall(*[torch.rand(64)] * 6))
    assert len(interface.calls[0]["scale"]) == live.MOST_SAMPLES


def test_the_text_tells_scale_and_cfg_scale_of_the_latest_step(interface):
    guider = guider_with(interface.chart)
    run(guider)
    last, latest = guider.trace.calls[-1], [text for text in interface.texts if text.startswith("step 4: CFG ")]
    assert latest and f"{last.scale.min():.2f}" in latest[-1] and f"{last.cfg_scale.min():.1f}" in latest[-1]


def test_when_the_run_is_over_the_text_tells_what_cfg_it_came_to(interface):
    guider = guider_with(interface.chart)
    run(guider)
    mean = torch.stack([call.cfg_scale for call in guider.trace.calls]).mean()
    assert interface.texts[-1].startswith(f"CFG {mean:.1f} on average.")


def test_recording_a_call_never_waits_for_the_device(interface, monkeypatch):
    """On a device whose values cannot be read, and whose copies never arrive."""

    class Underway:
        def query(self):
            return False

    monkeypatch.setattr(live, "_copy_of", lambda values: live._Copy(values, Underway()))
    interface.chart.begin(1, 4, True, [0.4])
    with NoWaiting():
        for _ in range(4):
            interface.chart.record(GuidedCall(*[torch.empty(2, device="meta")] * 6))
    assert interface.messages == [] and len(interface.chart._copies) == 4


def test_a_device_that_cannot_tell_when_a_copy_arrived_has_no_chart():
    assert live.can_follow(torch.device("cpu"))
    assert not live.can_follow(torch.device("meta"))
