"""Histograms with doubling bounds, and the times of jobs that are counted in them."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from miniflow.attempts import Attempt, Claimed
from miniflow.histogram import Histogram, JobTimes
from miniflow.model import Ending
from miniflow.states import State

NOW = 1_800_000_000_000


def ending(
    state: State = State.COMPLETED, *, wait: int = 0, run: int = 0, before: int = 0, task: str = "add"
) -> Ending:
    """Of an attempt that ends NOW: it ran ``run`` ms, waited ``wait`` ms, and its job was submitted ``before`` ms earlier."""
    started = NOW - run
    ready = started - wait
    values: dict[str, Any] = dict.fromkeys(Claimed._fields)
    claimed = Claimed(
        **{**values, "seq": 1, "task": task, "attempt": 0, "created_at": ready - before, "ready_at": ready}
    )
    return Ending(Attempt(claimed, "worker-1", started), state)


@given(st.lists(st.integers(0, 1 << 40), max_size=20), st.integers(1, 45))
def test_a_value_is_in_the_bucket_of_the_least_bound_that_is_not_below_it(values: list[int], bounds: int) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)

    buckets = histogram.cumulative(bounds)
    assert [bound for bound, _ in buckets] == [*(2**k for k in range(bounds)), math.inf]
    assert buckets == [(bound, sum(value <= bound for value in values)) for bound, _ in buckets]
    assert (histogram.count, histogram.sum) == (len(values), sum(values))


@given(st.lists(st.floats(0, 1e6), max_size=20))
def test_a_unit_scales_the_bounds(values: list[float]) -> None:
    histogram = Histogram(0.25)
    for value in values:
        histogram.observe(value)

    assert histogram.cumulative(10) == [
        (bound, sum(value <= bound for value in values)) for bound in [*(0.25 * 2**k for k in range(10)), math.inf]
    ]


def test_histograms_are_added_up() -> None:
    a, b = Histogram(), Histogram()
    a.observe(3)
    b.observe(3)
    b.observe(100)
    a.add(b)

    assert (a.count, a.sum) == (3, 106)
    assert dict(a.cumulative(8)) == {1: 0, 2: 0, 4: 2, 8: 2, 16: 2, 32: 2, 64: 2, 128: 3, math.inf: 3}


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=20))
def test_the_times_of_jobs_are_counted_as_any_others(waits: list[int]) -> None:
    times, expected = JobTimes(), Histogram()
    times.ended([ending(wait=wait) for wait in waits], NOW)
    for wait in waits:
        expected.observe(wait)

    counted = times.by_task["add"].wait
    assert (counted.cumulative(40), counted.sum) == (expected.cumulative(40), expected.sum)


def test_a_job_waits_runs_and_takes_both_and_what_was_before() -> None:
    times = JobTimes()
    times.ended([ending(wait=20, run=300, before=4000), ending(run=7, task="other")], NOW)

    add, other = times.by_task["add"], times.by_task["other"]
    assert (add.wait.sum, add.run.sum, add.total.sum) == (20, 300, 4320)
    assert (other.wait.sum, other.run.sum, other.total.sum) == (0, 7, 7)


def test_an_attempt_that_is_retried_has_no_total_yet() -> None:
    times = JobTimes()
    times.ended([ending(State.RETRYING, run=5), ending(State.DEAD_LETTER, run=5, before=100)], NOW)

    add = times.by_task["add"]
    assert (add.run.count, add.total.count, add.total.sum) == (2, 1, 105)


def test_an_attempt_that_was_over_before_it_began_has_no_times() -> None:
    times, expired = JobTimes(), ending(State.EXPIRED, wait=99)
    expired.attempt.charged = False
    times.ended([expired], NOW)

    assert not times.by_task


def test_a_clock_that_was_set_back_makes_no_time_less_than_none() -> None:
    times = JobTimes()
    times.ended([ending(wait=-5_000, run=-3_600_000, before=-1)], NOW)

    add = times.by_task["add"]
    assert [(h.cumulative(1)[0], h.sum) for h in (add.wait, add.run, add.total)] == [((1, 1), 0)] * 3
