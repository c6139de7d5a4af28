"""How far a job is: what is kept of its reports, and the time left that is told from them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniflow import progress
from miniflow.context import JobContext
from miniflow.progress import Report, Said
from miniflow.states import State
from miniflow.writer import CHANGES
from tests.engines import Engines, FakeClock, Gate, row, submit, wait_for_state
from tests.waiting import wait_until


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gate(engines: Engines) -> Gate:
    return engines.gate()


def after(reports: list[tuple[float, float]], total: float = 100.0, report: Report | None = None) -> Said:
    """What stands of a job that began at 0 s and was at (seconds, done)."""
    report = report or Report(0)
    for seconds, done in reports:
        report.say(done, total, None, now_ms=round(seconds * 1000), boot_ms=round(seconds * 1000))
    assert report.latest is not None
    return report.latest


def left_s(said: Said) -> float:
    assert said.left_ms is not None
    return said.left_ms / 1000


def test_the_time_left_is_told_from_the_pace_so_far() -> None:
    assert left_s(after([(10, 25)])) == pytest.approx(30)
    assert left_s(after([(n, n * 2) for n in range(21)])) == pytest.approx(30)


def test_the_time_before_the_first_part_is_begun_counts_for_nothing() -> None:
    """It opened a file for a minute, said that it has 100 parts, and did ten in ten seconds."""
    assert left_s(after([(60, 0), (70, 10)])) == pytest.approx(90)


def test_the_latest_pace_counts_most() -> None:
    """Half was done in a minute; since then a part takes ten times as long."""
    slow = after([(n, n) for n in range(51)] + [(50 + n * 10, 50 + n) for n in range(1, 21)])
    even = (50 + 200) / 70 * 30
    assert even * 1.5 < left_s(slow) < 310


def test_nothing_is_told_before_anything_is_done() -> None:
    assert after([(5, 0)]).left_ms is None
    assert "remaining" not in after([(5, 0)]).shown()


def test_nothing_is_left_once_all_is_done() -> None:
    assert after([(1, 50), (2, 100)]).shown() | {"at": ""} == {
        "done": 100, "total": 100.0, "percent": 100.0, "remaining": 0.0, "at": "",
    }  # fmt: skip


@pytest.mark.parametrize(("done", "total"), [(0, 100.0), (5, 100.0), (50, 500.0)])
def test_another_piece_of_work_has_a_pace_of_its_own(done: float, total: float) -> None:
    report = Report(0)
    after([(n, n * 10) for n in range(10)], report=report)
    begun = after([(20, done)], total, report=report)
    assert begun.left_ms is None
    assert left_s(after([(30, done + 1)], total, report=report)) == pytest.approx((total - done - 1) * 10)


def test_a_machine_that_slept_does_not_make_the_job_slow() -> None:
    report = Report(0)
    after([(n, n) for n in range(51)], report=report)
    report.passed_unseen(3_600_000)
    assert left_s(after([(3651, 51)], report=report)) == pytest.approx(49, rel=0.05)


def test_hundred_percent_is_said_when_all_is_done_and_not_before() -> None:
    assert [after([(1, done)], 100_000.0).percent for done in (0, 1, 50_000, 99_999, 100_000)] == [0, 0, 50, 99.9, 100]


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e9)), min_size=1, max_size=20),
    st.floats(1e-3, 1e9),
)
def test_whatever_is_reported_the_time_left_is_a_time(reports: list[tuple[float, float]], total: float) -> None:
    at = 0.0
    report = Report(0)
    for passed, done in reports:
        at += passed
        shown = after([(at, min(done, total))], total, report).shown()
        assert 0 <= shown["percent"] <= 100
        assert 0 <= shown.get("remaining", 0) <= progress.DELAY_S_MAX


# -------------------------------------------------------------------------------------------------- what is written of them


def stored(engines: Engines, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(row(engines.path, job_id).progress or "{}")
    return found


def test_a_job_that_reports_all_the_time_is_written_now_and_then_and_its_last_word_is_kept(engines: Engines) -> None:
    def busy(ctx: JobContext) -> None:
        for n in range(20_000):
            ctx.progress(n, 30_000, f"part {n}")

    engine = engines(busy)
    before = engine.writer.counter(*CHANGES)
    job_id = submit(engine, "busy")
    wait_for_state(engines.path, job_id, State.COMPLETED, timeout_s=20)

    found = stored(engines, job_id)
    assert (found["done"], found["total"], found["message"]) == (19_999, 30_000, "part 19999")
    assert found["percent"] == 66.7
    assert engine.writer.counter(*CHANGES) - before < 200
    engines.stop(engine)


def test_what_is_reported_within_a_moment_comes_when_it_is_over(engines: Engines, clock: FakeClock, gate: Gate) -> None:
    """Between two reports that are written lies a moment, by the clock; nothing is lost, it comes at its end."""

    def two(ctx: JobContext) -> None:
        ctx.progress(1, 4)
        gate.pass_through()
        ctx.progress(2, 4)

    engine = engines(two, clock=clock)
    job_id = submit(engine, "two")
    gate.wait_for_arrival()
    wait_until(lambda: stored(engines, job_id).get("done"), until=lambda done: done == 1)

    gate.open()
    wait_for_state(engines.path, job_id, State.COMPLETED)
    assert stored(engines, job_id)["done"] == 2
    engines.stop(engine)


def test_a_report_waits_no_longer_than_its_moment(engines: Engines, gate: Gate) -> None:
    def two(ctx: JobContext) -> None:
        ctx.progress(1, 4)
        ctx.progress(2, 4)
        gate.pass_through()

    engine = engines(two)
    job_id = submit(engine, "two")
    wait_until(lambda: stored(engines, job_id).get("done"), until=lambda done: done == 2)
    assert row(engines.path, job_id).state == State.RUNNING


def test_each_attempt_begins_without_progress(engines: Engines, gate: Gate) -> None:
    def twice(ctx: JobContext) -> None:
        if ctx.attempt == 1:
            ctx.progress(7, 10)
            raise ValueError("once more")
        gate.pass_through()

    engine = engines(twice)
    job_id = submit(engine, "twice", retry=[0.0], max_retries=1)
    gate.wait_for_arrival()
    job = wait_for_state(engines.path, job_id, State.RUNNING)
    wait_until(lambda: row(engines.path, job_id), until=lambda job: job.attempt == 2)
    assert row(engines.path, job_id).progress is None
    assert job.id == job_id


def test_what_is_reported_after_the_end_is_passed_over(engines: Engines) -> None:
    kept: list[JobContext] = []

    def done(ctx: JobContext) -> None:
        ctx.progress(1, 2)
        kept.append(ctx)

    engine = engines(done)
    job_id = submit(engine, "done")
    wait_for_state(engines.path, job_id, State.COMPLETED)
    kept[0].progress(2, 2)
    engines.stop(engine)

    assert stored(engines, job_id)["done"] == 1
