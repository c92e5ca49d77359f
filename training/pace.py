"""How fast a measuring goes: the pictures done, their pace and the time left, in words."""

from __future__ import annotations

import time


class Pace:
    """The words for (done, total), as progress callbacks are given them.

    The pace counts from the first picture that this run finished. So neither loading the model nor what an earlier run measured
    goes into it.
    """

    def __init__(self) -> None:
        self._before: int | None = None
        self._began: tuple[int, float] | None = None

    def words(self, done: int, total: int) -> str:
        """ "12 of 40 pictures, 1.5 pictures/s, 19 s left", the pace once it is known. Call it in the order of the progress."""
        now = time.monotonic()
        if self._before is None:
            self._before = done
        elif self._began is None and done > self._before:
            self._began = done, now
        text = f"{done} of {total} pictures"
        if self._began and done > self._began[0]:
            pace = (done - self._began[0]) / max(now - self._began[1], 1e-6)
            text += f", {_pace_in_words(pace)}, {duration_in_words((total - done) / pace)} left"
        return text


def _pace_in_words(pace: float) -> str:
    return f"{pace:.1f} pictures/s" if pace >= 1 else f"{1 / pace:.1f} s/picture"


def duration_in_words(seconds: float) -> str:
    """ "2 h 1 min", "2 min 5 s" or "5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
