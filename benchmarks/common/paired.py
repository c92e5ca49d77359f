"""Two ways to do the same, timed in turns: on a busy machine their ratio is known far better than either time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

RESAMPLES = 2000
FEWEST_PAIRS = 5


@dataclass
class Pairs:
    """Seconds of n turns of each: by the clock, and of this process's CPU time, which what else is running moves less."""

    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    first_cpu: list[float] = field(default_factory=list)
    second_cpu: list[float] = field(default_factory=list)

    def ratios(self) -> dict[str, float]:
        """The second's time over the first's, median over the pairs with its 95% interval: by the clock and of CPU time."""
        rows = {}
        for name, first, second in (("ratio", self.first, self.second), ("cpu_ratio", self.first_cpu, self.second_cpu)):
            rows |= with_interval(name, [b / a for a, b in zip(first, second, strict=True)])
        return rows

    def added_ms(self) -> dict[str, float]:
        """What the second takes more than the first, in milliseconds, likewise."""
        rows = {}
        for name, first, second in (("added", self.first, self.second), ("added_cpu", self.first_cpu, self.second_cpu)):
            rows |= with_interval(f"{name}_ms", [1e3 * (b - a) for a, b in zip(first, second, strict=True)])
        return rows


def in_turns(first: Callable[[], object], second: Callable[[], object], seconds: float, finish: Callable[[], object]) -> Pairs:
    """Both in turns for so many seconds, each going first in every other pair, once each before it to warm up.

    finish: waits for the device; counts as a part of each.
    """
    pairs, turn = Pairs(), 0
    for job in (first, second):
        job()
        finish()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or turn < FEWEST_PAIRS:
        jobs = [(first, pairs.first, pairs.first_cpu), (second, pairs.second, pairs.second_cpu)]
        for job, clock, cpu in jobs if turn % 2 == 0 else reversed(jobs):
            began, began_cpu = time.perf_counter(), time.process_time()
            job()
            finish()
            cpu.append(time.process_time() - began_cpu)
            clock.append(time.perf_counter() - began)
        turn += 1
    return pairs


def with_interval(name: str, values: list[float]) -> dict[str, float]:
    """The median and its 95% interval (percentile bootstrap): name, name_low, name_high."""
    import numpy

    values = numpy.asarray(values)
    drawn = numpy.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = numpy.percentile(numpy.median(values[drawn], axis=1), [2.5, 97.5])
    return {name: rounded(numpy.median(values)), f"{name}_low": rounded(low), f"{name}_high": rounded(high)}


def rounded(value: float) -> float:
    """To four digits: more would only say that the machine was busy."""
    return float(f"{value:.4g}")
