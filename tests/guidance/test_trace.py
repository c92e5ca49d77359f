"""The trace: on the device during a run, on the host after it, and what it tells."""

import torch
from annealing_guidance_pack.guidance.trace import COVERED, NEITHER, NO_NEGATIVE, NO_POSITIVE, AnnealingTrace, GuidedCall


def call(batch=2, coverage=COVERED, gap=1.0):
    columns = [torch.full((batch,), float(value)) for value in (3.0, 500.0, gap, 0.8, 4.0, coverage)]
    return GuidedCall(*columns)


def test_an_empty_trace_says_that_nothing_ran():
    trace = AnnealingTrace()
    assert trace.run == 0 and trace.calls == [] and trace.warnings() == []


def test_a_later_run_replaces_the_earlier():
    trace = AnnealingTrace()
    for run in (1, 2):
        trace.begin("smooth", 0.4, folded=True)
        trace.record(call())
        assert trace.run == run and len(trace.calls) == 1


def test_calls_of_different_batch_sizes_are_kept_apart():
    trace = AnnealingTrace()
    trace.begin("smooth", 0.4, folded=True)
    for batch in (2, 3):
        trace.record(call(batch))
    assert [c.used.shape[0] for c in trace.calls] == [2, 3]
    assert trace.calls[1].timestep.tolist() == [500.0] * 3


def test_reading_during_a_run_loses_nothing():
    trace = AnnealingTrace()
    trace.begin("smooth", 0.4, folded=True)
    trace.record(call())
    assert len(trace.calls) == 1
    trace.record(call())
    assert len(trace.calls) == 2


def test_what_the_user_should_know_is_said_once_for_many_steps():
    trace = AnnealingTrace()
    trace.begin("smooth", 0.4, folded=True)
    for _ in range(5):
        trace.record(call(coverage=NO_NEGATIVE, gap=float("nan")))
    sentences = trace.warnings()
    assert len(sentences) == 2
    assert "negative conditioning covered nothing" in sentences[0] and "sample 1, 2 of the batch" in sentences[1]


def test_each_missing_side_is_named():
    for coverage, word in ((NO_POSITIVE, "positive conditioning"), (NEITHER, "Neither conditioning")):
        trace = AnnealingTrace()
        trace.begin("smooth", 0.4, folded=True)
        trace.record(call(coverage=coverage))
        assert [word in sentence for sentence in trace.warnings()] == [True]
