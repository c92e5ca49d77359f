"""Two ways to do the same, timed in turns: on a busy machine their ratio is known far better than either time."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy

RESAMPLES, FEWEST_PAIRS = 2000, 5


def in_turns(jobs: tuple[Callable, Callable], seconds: float) -> numpy.ndarray:
    """Seconds [pairs, job, by the clock or of this process's CPU time] of both in turns, each going first in every other pair.

    Once each before it, to warm up.
    """
    for job in jobs:
        job()
    pairs: list[list] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(pairs) < FEWEST_PAIRS:
        pair: list = [None, None]
        for i in (0, 1) if len(pairs) % 2 else (1, 0):
            began, began_cpu = time.perf_counter(), time.process_time()
            jobs[i]()
            pair[i] = time.perf_counter() - began, time.process_time() - began_cpu
        pairs.append(pair)
    return numpy.array(pairs)


def with_interval(name: str, values) -> dict[str, float]:
    """The median and its 95% interval (percentile bootstrap): name, name_low, name_high."""
    drawn = numpy.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = numpy.percentile(numpy.median(numpy.asarray(values)[drawn], axis=1), [2.5, 97.5])
    return {name: rounded(numpy.median(values)), f"{name}_low": rounded(low), f"{name}_high": rounded(high)}


def rounded(value: float) -> float:
    """To four digits: more would only say that the machine was busy."""
    return float(f"{value:.4g}")
