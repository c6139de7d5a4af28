"""Histograms that cost next to nothing to feed: the bounds of the buckets double, so a value's bucket is its length in bits.

No lock and no object of a metrics library: each is fed by one thread and read by others, which may find a value counted whose
size is not yet in the sum. They begin empty with the process, as Prometheus expects of a histogram.
"""

from __future__ import annotations

import math

from miniflow.model import Ending
from miniflow.states import State

_LENGTHS = 65  # of any number of 64 bits


class Histogram:
    """Bucket k holds the values over ``unit`` × 2^(k-1), up to and including ``unit`` × 2^k; the first one all below."""

    __slots__ = ("counts", "sum", "unit")

    def __init__(self, unit: float = 1) -> None:
        self.unit = unit
        self.counts = [0] * _LENGTHS
        self.sum: float = 0

    def __repr__(self) -> str:
        return f"<Histogram [{self.count} values | sum {self.sum:g}]>"

    def observe(self, value: float) -> None:
        n = math.ceil(value / self.unit)
        self.counts[(n - 1).bit_length() if n > 1 else 0] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self, bounds: int) -> list[tuple[float, int]]:
        """The first ``bounds`` buckets as (upper bound, how many values up to it), and the last as (infinity, all)."""
        counts, below = list(self.counts), 0
        buckets = []
        for k in range(bounds):
            below += counts[k]
            buckets.append((self.unit * 2**k, below))
        return [*buckets, (math.inf, below + sum(counts[bounds:]))]

    def add(self, other: Histogram) -> None:
        """Count the values of ``other`` here too; of the same unit."""
        self.counts = [a + b for a, b in zip(self.counts, list(other.counts), strict=True)]
        self.sum += other.sum


class TaskTimes:
    """Of one task, in milliseconds: how long its jobs waited for a worker, ran, and took from their submit to their end."""

    __slots__ = ("run", "total", "wait")

    def __init__(self) -> None:
        self.wait, self.run, self.total = Histogram(), Histogram(), Histogram()


class JobTimes:
    """The times of all tasks since the start. Fed by the writer's thread, once for each attempt that is over."""

    def __init__(self) -> None:
        self.by_task: dict[str, TaskTimes] = {}

    def __repr__(self) -> str:
        return f"<JobTimes [{len(self.by_task)} tasks]>"

    def ended(self, endings: list[Ending], now_ms: int) -> None:
        """These are in the file as of ``now_ms``. A run includes the commit of its end; only a job's last attempt has a total."""
        by_task, retrying = self.by_task, State.RETRYING
        for ending in endings:
            attempt = ending.attempt
            if not attempt.charged:  # it was over before it began
                continue
            claimed, started = attempt.claimed, attempt.started_at
            times = by_task.get(claimed.task)
            if times is None:
                times = by_task[claimed.task] = TaskTimes()
            # What `observe` does, for whole numbers of the unit: a call for each would cost more than the rest.
            if (n := started - claimed.ready_at) > 0:
                times.wait.counts[(n - 1).bit_length()] += 1
                times.wait.sum += n
            else:  # within a millisecond, or the clock was set back
                times.wait.counts[0] += 1
            if (n := now_ms - started) > 0:
                times.run.counts[(n - 1).bit_length()] += 1
                times.run.sum += n
            else:
                times.run.counts[0] += 1
            if ending.state is retrying:
                continue
            if (n := now_ms - claimed.created_at) > 0:
                times.total.counts[(n - 1).bit_length()] += 1
                times.total.sum += n
            else:
                times.total.counts[0] += 1
