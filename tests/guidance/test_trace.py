"""The trace: on the device during a run, on the host after it, what it tells, and which run made which latent."""

import torch
from annealing_guidance_pack.guidance import trace as traces
from annealing_guidance_pack.guidance.trace import COVERED, NEITHER, NO_NEGATIVE, NO_POSITIVE, AnnealingTrace, GuidedCall


def call(batch=2, coverage=COVERED, gap=1.0, cfg=4.0):
    columns = [torch.full((batch,), float(value)) for value in (3.0, 500.0, gap, 0.8, cfg, coverage)]
    return GuidedCall(*columns)


def begun(trace=None):
    return (trace or AnnealingTrace()).begin("smooth", 0.4, folded=True)


def test_an_empty_trace_says_that_nothing_ran():
    trace = AnnealingTrace()
    assert trace.run_id == 0 and trace.calls == [] and trace.latest.warnings() == [] and trace.latest.mean_cfg() is None


def test_the_latest_run_is_the_traces_own():
    trace = AnnealingTrace()
    for run_id in (1, 2):
        begun(trace).record(call())
        assert trace.run_id == run_id and len(trace.calls) == 1


def test_calls_of_different_batch_sizes_are_kept_apart():
    run = begun()
    for batch in (2, 3):
        run.record(call(batch))
    assert [c.cfg_scale.shape[0] for c in run.calls] == [2, 3]
    assert run.calls[1].timestep.tolist() == [500.0] * 3


def test_reading_during_a_run_loses_nothing():
    run = begun()
    run.record(call())
    assert len(run.calls) == 1
    run.record(call())
    assert len(run.calls) == 2


def test_what_the_user_should_know_is_said_once_for_many_steps():
    run = begun()
    for _ in range(5):
        run.record(call(coverage=NO_NEGATIVE, gap=float("nan")))
    sentences = run.warnings()
    assert len(sentences) == 2
    assert "negative conditioning covered nothing" in sentences[0] and "sample 1, 2 of the batch" in sentences[1]


def test_each_missing_side_is_named():
    for coverage, word in ((NO_POSITIVE, "positive conditioning"), (NEITHER, "Neither conditioning")):
        run = begun()
        run.record(call(coverage=coverage))
        assert [word in sentence for sentence in run.warnings()] == [True]


def test_calls_without_coverage_are_covered():
    run = begun()
    run.record(call()._replace(coverage=None))
    assert run.warnings() == [] and run.calls[0].coverage.tolist() == [COVERED] * 2


def test_the_mean_cfg_is_over_calls_and_samples_and_leaves_broken_ones_out():
    run = begun()
    for cfg in (3.0, 5.0, float("nan")):
        run.record(call(cfg=cfg))
    assert run.mean_cfg() == 4.0


def latent(seed):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_the_run_that_made_a_latent_is_found_among_many():
    trace = AnnealingTrace()
    for seed in range(3):
        begun(trace).finish(latent(seed))
    for seed in range(3):
        run, sure = trace.run_of(latent(seed))
        assert run.run_id == seed + 1 and sure


def test_a_latent_that_no_run_made_has_the_latest_and_that_is_not_sure():
    trace = AnnealingTrace()
    for seed in range(2):
        begun(trace).finish(latent(seed))
    for other in (latent(7), latent(0)[:1], torch.zeros(1)):
        run, sure = trace.run_of(other)
        assert run.run_id == 2 and not sure


def test_where_there_was_one_run_any_latent_is_its_own():
    trace = AnnealingTrace()
    begun(trace).finish(latent(0))
    assert trace.run_of(latent(1)) == (trace.latest, True) and trace.run_of(None)[1]


def test_of_many_runs_the_oldest_are_forgotten():
    trace = AnnealingTrace()
    for seed in range(traces.MOST_RUNS + 1):
        begun(trace).finish(latent(seed))
    assert not trace.run_of(latent(0))[1] and trace.run_of(latent(1))[1]
