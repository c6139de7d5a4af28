"""What a running engine promises, from a submit to its end, on a real file."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import apsw
import pytest
from huey import signals as S
from huey.exceptions import CancelExecution, RetryTask, TaskException

from miniflow import NonRetryable, RetryAfter, RetryPolicy, current_job, registry, task
from miniflow.context import JobContext
from miniflow.engine import Engine
from miniflow.errors import (
    IdempotencyConflict,
    JobCancelled,
    NotFound,
    QueueFull,
    ShuttingDown,
    StoreLocked,
    TooManyQueues,
    TransitionRefused,
)
from miniflow.huey_adapter import JobsHuey
from miniflow.model import Ending
from miniflow.operations import Operation
from miniflow.registry import Registry
from miniflow.states import State
from tests.engines import (
    Engines,
    FakeClock,
    Gate,
    SetInAGroup,
    cancel,
    claim_ahead,
    history,
    new_job,
    registry_of,
    row,
    rows,
    settle,
    submit,
    submit_all,
    verb,
    wait_for_ends,
    wait_for_state,
)
from tests.invariants import check_invariants, read
from tests.waiting import PATIENCE, wait_until


def noop() -> None: ...


def add(a: int, b: int = 2) -> int:
    return a + b


def bad(text: str = "no") -> None:
    raise ValueError(text)


class Journal:
    """A task that writes down what it was called with, in the order of the calls."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def note(self, name: str) -> None:
        self.seen.append(name)


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def gate(engines: Engines) -> Gate:
    return engines.gate()


def held(engine: Engine, gate: Gate) -> Callable[[], None]:
    """Keep the only worker busy; the call lets it go."""
    submit(engine, "hold", queue="hold")
    gate.wait_for_arrival()
    return gate.open


def holding(gate: Gate) -> Callable[[], None]:
    def hold() -> None:
        gate.pass_through()

    return hold


# ------------------------------------------------------------------------------------------------------- a plain job


def test_a_job_runs_and_its_result_is_in_the_row(engines: Engines) -> None:
    engine = engines(add)
    job_id = submit(engine, "add", {"a": 40})

    job = wait_for_state(engines.path, job_id, State.COMPLETED)
    assert (job.result, job.attempt, job.crashes, job.lease, job.last_error) == ("42", 1, 0, None, None)
    assert job.worker_id is not None
    assert job.worker_id.startswith(engine.prefix)
    assert history(engines.path, job_id) == []


def test_a_stop_leaves_a_whole_file(engines: Engines) -> None:
    engine = engines([add, bad, noop])
    submit_all(engine, [new_job(engine, "noop") for _ in range(200)])
    submit(engine, "bad", max_retries=0)
    wait_for_ends(engines.path)
    engines.stop(engine)

    check_invariants(engines.path, stopped=True)


def test_ten_thousand_jobs_each_run_once(engines: Engines) -> None:
    counts: dict[int, int] = {}

    def count(i: int) -> None:
        counts[i] = counts.get(i, 0) + 1

    engine = engines(count, workers=4)
    for start in range(0, 10_000, 1000):
        submit_all(engine, [new_job(engine, "count", {"i": i}) for i in range(start, start + 1000)])
    wait_until(lambda: engine.writer.total(State.COMPLETED), 20, "10,000 jobs", until=lambda n: n == 10_000)

    assert counts == dict.fromkeys(range(10_000), 1)
    engines.stop(engine)
    check_invariants(engines.path, stopped=True)


def test_a_job_knows_itself(engines: Engines) -> None:
    def who(ctx: JobContext) -> list[Any]:
        ctx.log("hello")
        ctx.progress(3, 10, "busy")
        same = current_job()
        return [ctx.job_id, ctx.attempt, ctx.queue, ctx.tags, ctx.meta, same.job_id == ctx.job_id]

    engine = engines(who)
    job_id = submit(engine, "who", queue="mail", tags=["x"], meta={"k": 1})

    job = wait_for_state(engines.path, job_id, State.COMPLETED)
    assert json.loads(job.result or "") == [job_id, 1, "mail", ["x"], {"k": 1}, True]
    told = json.loads(job.progress or "")
    assert (told["done"], told["total"], told["percent"], told["message"]) == (3.0, 10.0, 30.0, "busy")
    with closing(read(engines.path)) as connection:
        assert list(connection.execute("SELECT level, message FROM job_log")) == [("INFO", "hello")]


def test_submit_from_python_goes_to_the_engine(engines: Engines) -> None:
    double = task(name="double")(lambda n: n * 2)
    engines([double])

    job_id = double.submit_with({"priority": 3}, 21)
    job = wait_for_state(engines.path, job_id, State.COMPLETED)
    assert (job.result, job.priority) == ("42", 3)


# -------------------------------------------------------------------------------------------------------------- order


def test_jobs_of_a_queue_run_first_in_first_out(engines: Engines, journal: Journal, gate: Gate) -> None:
    engine = engines([journal.note, holding(gate)], workers=1)
    let_go = held(engine, gate)
    names = [f"{i:03}" for i in range(50)]
    for name in names[:25]:
        submit(engine, "note", {"name": name})
    submit_all(engine, [new_job(engine, "note", {"name": name}) for name in names[25:]])
    let_go()
    wait_for_ends(engines.path)

    assert journal.seen == names


def test_priority_goes_before_age(engines: Engines, journal: Journal, gate: Gate) -> None:
    engine = engines([journal.note, holding(gate)], workers=1)
    let_go = held(engine, gate)
    for name, priority in [("a", 0), ("b", 5), ("c", -5), ("d", "high"), ("e", 5)]:
        submit(engine, "note", {"name": name}, priority=priority)
    let_go()
    wait_for_ends(engines.path)

    assert journal.seen == ["d", "b", "e", "a", "c"]


def test_queues_are_served_in_their_order_whatever_the_priority(engines: Engines, journal: Journal, gate: Gate) -> None:
    engine = engines([journal.note, holding(gate)], workers=1, queues="hold,high,*,low")
    let_go = held(engine, gate)
    for queue, priority in [("low", 9), ("zebra", 0), ("default", 1), ("high", 0), ("low", 0), ("high", 1)]:
        submit(engine, "note", {"name": f"{queue} {priority}"}, queue=queue, priority=priority)
    let_go()
    wait_for_ends(engines.path)

    assert journal.seen == ["high 1", "high 0", "default 1", "zebra 0", "low 9", "low 0"]


def test_a_queue_that_is_not_named_is_not_served(engines: Engines) -> None:
    engine = engines(noop, queues="high,low")
    served, not_served = submit(engine, "noop", queue="low"), submit(engine, "noop", queue="default")
    wait_for_state(engines.path, served, State.COMPLETED)
    settle(engine)

    assert row(engines.path, not_served).state == State.QUEUED


def test_a_later_arrival_of_higher_priority_overtakes_what_waits_in_the_read_ahead(
    engines: Engines, journal: Journal, gate: Gate
) -> None:
    engine = engines([journal.note, holding(gate)], workers=1)
    let_go = held(engine, gate)
    claim_ahead(engine)
    submit_all(engine, [new_job(engine, "note", {"name": "early"}) for _ in range(100)])
    assert len(engine.readahead) == 100, "they are claimed ahead"
    submit(engine, "note", {"name": "urgent"}, priority=1)
    let_go()
    wait_for_ends(engines.path)

    assert journal.seen == ["urgent"] + ["early"] * 100


def test_what_is_claimed_ahead_still_shows_as_queued(engines: Engines, gate: Gate) -> None:
    engine = engines([noop, holding(gate)], workers=1)
    held(engine, gate)
    job_id = submit(engine, "noop")

    job = row(engines.path, job_id)
    assert (job.state, job.attempt, job.lease is None) == (State.QUEUED, 0, False)


def test_a_retry_goes_to_the_end_of_its_queue(engines: Engines, gate: Gate) -> None:
    seen: list[str] = []

    def note(name: str, fail: bool = False) -> None:
        seen.append(name)
        if fail and seen.count(name) == 1:
            raise ValueError

    clock = FakeClock()
    engine = engines([note, holding(gate)], workers=1, clock=clock)
    first = submit(engine, "note", {"name": "first", "fail": True}, retry=[0.0])
    wait_until(lambda: row(engines.path, first).state, 5, "the second attempt", until=lambda s: s == State.COMPLETED)
    assert seen == ["first", "first"]
    seen.clear()

    clocked = submit(engine, "note", {"name": "clocked", "fail": True}, retry=[60])
    wait_for_state(engines.path, clocked, State.RETRYING)
    let_go = held(engine, gate)
    submit(engine, "note", {"name": "later"})
    clock.advance(60_000)
    wait_for_state(engines.path, clocked, State.QUEUED)
    let_go()
    wait_for_ends(engines.path)
    assert seen == ["clocked", "later", "clocked"]


# ------------------------------------------------------------------------------------------------------ time and ttl


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_a_delayed_job_waits_for_its_time(engines: Engines, clock: FakeClock) -> None:
    engine = engines(noop, clock=clock)
    job_id = submit(engine, "noop", delay=60)
    clock.advance(59_999)
    settle(engine)
    before = row(engines.path, job_id)
    clock.advance(1)
    settle(engine)

    assert (before.state, before.run_at) == (State.SCHEDULED, before.created_at + 60_000)
    wait_for_state(engines.path, job_id, State.COMPLETED)


def test_run_at_is_wall_time_and_the_past_is_now(engines: Engines, clock: FakeClock) -> None:
    engine = engines(noop, clock=clock)
    at = dt.datetime.fromtimestamp(clock.now_ms() / 1000 + 30, dt.UTC)
    later, now = submit(engine, "noop", run_at=at), submit(engine, "noop", run_at=at - dt.timedelta(hours=1))
    wait_for_state(engines.path, now, State.COMPLETED)
    assert row(engines.path, later).state == State.SCHEDULED
    clock.advance(30_000)
    settle(engine)

    wait_for_state(engines.path, later, State.COMPLETED)


def test_a_job_that_is_not_begun_within_its_ttl_expires(engines: Engines, clock: FakeClock, gate: Gate) -> None:
    engine = engines([noop, holding(gate)], clock=clock, workers=1)
    let_go = held(engine, gate)
    job_id, lasting = submit(engine, "noop", ttl=10), submit(engine, "noop", ttl=11)
    clock.advance(10_000)
    settle(engine)

    job = row(engines.path, job_id)
    assert (job.state, job.attempt, job.last_error) == (State.EXPIRED, 0, "not begun within its ttl")
    let_go()
    wait_for_state(engines.path, lasting, State.COMPLETED)


def test_a_ttl_does_not_end_a_job_that_has_begun(engines: Engines, clock: FakeClock, gate: Gate) -> None:
    engine = engines(holding(gate), clock=clock)
    job_id = submit(engine, "hold", ttl=10)
    gate.wait_for_arrival()
    clock.advance(20_000)
    settle(engine)
    gate.open()

    wait_for_state(engines.path, job_id, State.COMPLETED)


def test_a_delayed_jobs_ttl_counts_from_its_time_and_outlives_other_ttls(engines: Engines, clock: FakeClock) -> None:
    engine = engines(noop, clock=clock, workers=0)
    delayed, other = submit(engine, "noop", delay=10, ttl=5), submit(engine, "noop", ttl=1)
    clock.advance(1_000)
    settle(engine)
    assert row(engines.path, other).state == State.EXPIRED
    clock.advance(9_000)
    settle(engine)
    assert row(engines.path, delayed).state == State.QUEUED
    clock.advance(5_000)
    settle(engine)

    assert row(engines.path, delayed).state == State.EXPIRED


def test_a_delayed_jobs_ttl_is_remembered_over_a_restart(engines: Engines, clock: FakeClock) -> None:
    engine = engines(noop, clock=clock, workers=0)
    delayed = submit(engine, "noop", delay=10, ttl=5)
    engines.stop(engine)
    engine = engines(noop, clock=clock, workers=0)
    clock.advance(10_000)
    settle(engine)
    clock.advance(5_000)
    settle(engine)

    assert row(engines.path, delayed).state == State.EXPIRED


@pytest.mark.parametrize("jump_ms", [3_600_000, -3_600_000])
def test_setting_the_clock_moves_waits_that_are_relative_and_no_others(
    engines: Engines, clock: FakeClock, jump_ms: int
) -> None:
    engine = engines([noop, bad], clock=clock)
    at = dt.datetime.fromtimestamp(clock.now_ms() / 1000 + 86_400, dt.UTC)
    absolute, relative = submit(engine, "noop", run_at=at), submit(engine, "noop", delay=600)
    retried = submit(engine, "bad", max_retries=1, retry=[600])
    wait_for_state(engines.path, retried, State.RETRYING)
    before = {job.id: job.run_at or 0 for job in rows(engines.path)}
    clock.set_wall(jump_ms)
    settle(engine)

    after = {job.id: (job.state, job.run_at) for job in rows(engines.path)}
    assert after == {
        absolute: (State.SCHEDULED, before[absolute]),
        relative: (State.SCHEDULED, before[relative] + jump_ms),
        retried: (State.RETRYING, before[retried] + jump_ms),
    }
    clock.advance(600_000)
    settle(engine)
    wait_for_state(engines.path, relative, State.COMPLETED)
    wait_for_state(engines.path, retried, State.DEAD_LETTER)


def test_setting_the_clock_expires_no_ttl(engines: Engines, clock: FakeClock) -> None:
    """A ttl is a length of time, as a delay is: it goes on as long as it was meant to."""
    engine = engines(noop, clock=clock, workers=0)
    job_id = submit(engine, "noop", ttl=60)
    clock.set_wall(3_600_000)
    settle(engine)
    assert row(engines.path, job_id).state == State.QUEUED
    clock.advance(60_000)
    settle(engine)

    assert row(engines.path, job_id).state == State.EXPIRED


def test_a_clock_that_is_set_while_a_group_is_written_makes_nothing_due(engines: Engines) -> None:
    clock = SetInAGroup()
    engine = engines(noop, clock=clock)
    clock.set_wall(86_400_000)
    settle(engine)
    delayed, brief = submit(engine, "noop", delay=600), submit(engine, "noop", delay=1200, ttl=60)
    before = row(engines.path, delayed).run_at or 0
    clock.set_next = -86_400_000
    settle(engine)
    settle(engine)

    assert row(engines.path, delayed).run_at == before - 86_400_000
    assert {row(engines.path, job).state for job in (delayed, brief)} == {State.SCHEDULED}


@pytest.mark.parametrize("jump_ms", [86_400_000, -86_400_000])
def test_a_wait_that_begins_before_anybody_has_noticed_that_the_clock_was_set_keeps_its_length(
    engines: Engines, clock: FakeClock, jump_ms: int
) -> None:
    """Nobody looks at the clock of an idle server for a second; a request, or the end of a job, may come first."""
    gate = engines.gate()

    def late() -> None:
        gate.pass_through()
        raise ValueError("not now")

    engine = engines([noop, late], clock=clock)
    failing = submit(engine, "late", max_retries=1, retry=[600])
    gate.wait_for_arrival()
    clock.set_wall(jump_ms)
    delayed, brief = submit(engine, "noop", delay=600), submit(engine, "noop", ttl=600)
    gate.open()
    wait_for_state(engines.path, failing, State.RETRYING)
    settle(engine)

    at = clock.now_ms() + 600_000
    assert [(row(engines.path, job).state, row(engines.path, job).run_at) for job in (delayed, failing)] == [
        (State.SCHEDULED, at),
        (State.RETRYING, at),
    ]
    assert (wait_for_state(engines.path, brief, State.COMPLETED).expires_at) == at
    engines.stop(engine)


@pytest.mark.parametrize("jump_ms", [86_400_000, -86_400_000])
def test_a_moment_is_held_against_the_clock_as_it_was_set(engines: Engines, clock: FakeClock, jump_ms: int) -> None:
    engine = engines(noop, clock=clock, workers=0)
    clock.set_wall(jump_ms)
    past, future = (dt.datetime.fromtimestamp(clock.now_ms() / 1000 + s, dt.UTC) for s in (-60, 60))
    queued, scheduled = submit(engine, "noop", run_at=past), submit(engine, "noop", run_at=future)
    for _ in range(2):
        assert [row(engines.path, job).state for job in (queued, scheduled)] == [State.QUEUED, State.SCHEDULED]
        settle(engine)
    clock.advance(60_000)
    settle(engine)
    assert row(engines.path, scheduled).state == State.QUEUED
    engines.stop(engine)


def test_a_clock_that_was_set_is_taken_into_account_once(engines: Engines, clock: FakeClock) -> None:
    engine = engines(noop, clock=clock)
    job_id = submit(engine, "noop", delay=86_400)
    before = row(engines.path, job_id).run_at or 0
    clock.set_wall(3_600_000)
    settle(engine)
    engines.stop(engine)
    engines(noop, clock=clock)

    assert row(engines.path, job_id).run_at == before + 3_600_000


def test_a_clock_that_was_set_while_nobody_ran_moves_relative_waits(engines: Engines, clock: FakeClock) -> None:
    engine = engines(noop, clock=clock)
    job_id = submit(engine, "noop", delay=86_400)
    before = row(engines.path, job_id).run_at or 0
    engines.stop(engine)
    clock.set_wall(-3_600_000)
    engines(noop, clock=clock)

    assert row(engines.path, job_id).run_at == before - 3_600_000


# ------------------------------------------------------------------------------------------------- failing and retries


@pytest.mark.parametrize(("max_retries", "attempts"), [(2, 3), (0, 1)])
def test_a_failing_job_gets_its_retries_and_then_is_a_dead_letter(
    engines: Engines, max_retries: int, attempts: int
) -> None:
    engine = engines(bad)
    job_id = submit(engine, "bad", {"text": "not today"}, max_retries=max_retries, retry=[0.0])

    job = wait_for_state(engines.path, job_id)
    assert (job.state, job.attempt, job.max_retries) == (State.DEAD_LETTER, attempts, max_retries)
    assert job.last_error == "ValueError: not today"
    assert history(engines.path, job_id) == [(n, "failed", "ValueError") for n in range(1, attempts + 1)]
    with closing(read(engines.path)) as connection:
        traces = [trace for (trace,) in connection.execute("SELECT traceback FROM attempts")]
    assert all("in bad" in trace and "huey_" not in trace and "huey/" not in trace for trace in traces), traces


def test_a_retry_waits_in_the_table_as_long_as_the_policy_says(engines: Engines, clock: FakeClock) -> None:
    engine = engines(bad, clock=clock)
    policy = RetryPolicy(base=10, factor=3, max_delay=60, jitter=0)
    job_id = submit(engine, "bad", max_retries=4, retry=policy)
    waits = []
    for _ in range(4):
        job = wait_for_state(engines.path, job_id, State.RETRYING)
        waits.append((job.run_at or 0) - clock.now_ms())
        clock.advance(waits[-1])
        settle(engine)
        wait_until(
            lambda n=job.attempt: row(engines.path, job_id).attempt,
            5,
            "another attempt",
            until=lambda a, n=job.attempt: a > n,
        )

    assert waits == [10_000, 30_000, 60_000, 60_000]
    wait_for_state(engines.path, job_id, State.DEAD_LETTER)


def test_a_task_may_ask_for_its_own_delay(engines: Engines, clock: FakeClock) -> None:
    def later() -> None:
        raise RetryAfter(123)

    engine = engines(later, clock=clock)
    job_id = submit(engine, "later", max_retries=1)
    job = wait_for_state(engines.path, job_id, State.RETRYING)
    assert job.run_at == clock.now_ms() + 123_000
    clock.advance(123_000)
    settle(engine)

    assert wait_for_state(engines.path, job_id, State.DEAD_LETTER).attempt == 2


def test_what_cannot_be_mended_by_trying_again_is_not_tried_again(engines: Engines) -> None:
    def hopeless() -> None:
        raise NonRetryable("never")

    @task(no_retry_on=(KeyError,))
    def missing(kind: str) -> None:
        raise KeyError(kind) if kind == "key" else LookupError(kind)

    engine = engines([hopeless, missing])
    ids = [
        submit(engine, "hopeless"),
        submit(engine, "missing", {"kind": "key"}),
        submit(engine, "missing", {"kind": "other"}),
    ]

    assert [wait_for_state(engines.path, i, State.DEAD_LETTER, State.RETRYING).state for i in ids] == [
        State.DEAD_LETTER,
        State.DEAD_LETTER,
        State.RETRYING,
    ]


def test_hueys_retry_task_gives_a_retry_on_top(engines: Engines) -> None:
    calls: list[int] = []

    def again() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise RetryTask(delay=0.05)
        return "done"

    engine = engines(again)
    job_id = submit(engine, "again", max_retries=0)

    job = wait_for_state(engines.path, job_id)
    assert (job.state, job.result, job.attempt) == (State.COMPLETED, '"done"', 3)


@pytest.mark.parametrize(("retry", "state"), [(False, State.CANCELLED), (None, State.RETRYING), (True, State.RETRYING)])
def test_hueys_cancel_execution_cancels_or_retries_as_it_says(
    engines: Engines, retry: bool | None, state: State
) -> None:
    def stop() -> None:
        raise CancelExecution(retry=retry)

    engine = engines(stop)
    job_id = submit(engine, "stop", max_retries=1, retry=[60])

    assert wait_for_state(engines.path, job_id, State.RETRYING, State.CANCELLED, State.DEAD_LETTER).state == state


@pytest.mark.parametrize("kind", ["exit", "interrupt", "recursion", "generator_exit"])
def test_a_task_that_tries_to_end_the_process_ends_itself(engines: Engines, kind: str) -> None:
    def wild() -> None:
        if kind == "exit":
            sys.exit(3)
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "generator_exit":
            raise GeneratorExit
        wild()

    engine = engines([wild, noop], workers=1)
    job_id = submit(engine, "wild", max_retries=0)

    job = wait_for_state(engines.path, job_id)
    assert job.state == State.DEAD_LETTER
    words = {
        "exit": "SystemExit(3)",
        "interrupt": "KeyboardInterrupt",
        "recursion": "RecursionError",
        "generator_exit": "GeneratorExit",
    }
    assert words[kind] in (job.last_error or "")
    assert wait_for_state(engines.path, submit(engine, "noop")).state == State.COMPLETED


@pytest.mark.parametrize("kind", ["exit", "interrupt", "recursion"])
def test_an_async_task_that_tries_to_end_the_process_ends_itself(engines: Engines, kind: str) -> None:
    async def wild() -> None:
        await asyncio.sleep(0)
        if kind == "exit":
            sys.exit(3)
        if kind == "interrupt":
            raise KeyboardInterrupt
        await wild()

    async def fine() -> None: ...

    engine = engines([wild, fine])
    job_id = submit(engine, "wild", max_retries=0)

    assert wait_for_state(engines.path, job_id).state == State.DEAD_LETTER
    assert wait_for_state(engines.path, submit(engine, "fine")).state == State.COMPLETED


def unserialisable() -> object:
    return object()


def cyclic() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


def huge() -> str:
    return "x" * 12_000_000


def lone_surrogate() -> str:
    return "\ud800"


@pytest.mark.parametrize("function", [unserialisable, cyclic, huge, lone_surrogate])
def test_a_result_that_cannot_be_stored_is_a_dead_letter_at_once(engines: Engines, function: Callable[[], Any]) -> None:
    engine = engines(function)
    job_id = submit(engine, function.__name__, max_retries=5)

    job = wait_for_state(engines.path, job_id)
    assert (job.state, job.attempt, job.result) == (State.DEAD_LETTER, 1, None)
    assert history(engines.path, job_id) == [(1, "failed", "BadResult")]
    assert ("max_result_bytes" if function is huge else "not JSON") in (job.last_error or "")


def test_a_failure_whose_text_is_odd_still_ends(engines: Engines) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def odd(kind: str) -> None:
        raise (
            Odd
            if kind == "raises"
            else ValueError({"surrogate": "\ud800", "nul": "a\0b", "long": "x" * 1_000_000}[kind])
        )

    engine = engines(odd)
    ids = [submit(engine, "odd", {"kind": kind}, max_retries=0) for kind in ("raises", "surrogate", "nul", "long")]

    assert [wait_for_state(engines.path, i).state for i in ids] == [State.DEAD_LETTER] * 4
    assert len(row(engines.path, ids[3]).last_error or "") < 5_000
    assert (
        wait_for_state(engines.path, submit(engine, "odd", {"kind": "nul"}, max_retries=0)).state == State.DEAD_LETTER
    )


def test_a_task_that_is_gone_is_a_dead_letter_that_names_it(engines: Engines) -> None:
    engine = engines([noop, add], workers=0)
    job_id = submit(engine, "add", {"a": 1})
    engines.stop(engine)
    engines(noop)

    job = wait_for_state(engines.path, job_id)
    assert job.state == State.DEAD_LETTER
    assert "'add'" in (job.last_error or "")


def test_a_payload_that_no_longer_fits_is_a_dead_letter_that_names_the_field(engines: Engines) -> None:
    engine = engines(add, workers=0)
    job_id = submit(engine, "add", {"a": 1})
    engines.stop(engine)

    def other(a: str) -> None: ...

    other.__name__ = "add"
    engines(other)

    job = wait_for_state(engines.path, job_id)
    assert job.state == State.DEAD_LETTER
    assert "payload.a" in (job.last_error or "")


def test_a_replayed_dead_letter_runs_anew(engines: Engines) -> None:
    mended = threading.Event()

    def shaky() -> str:
        if not mended.is_set():
            raise ValueError
        return "fine"

    engine = engines(shaky)
    ids = [submit(engine, "shaky", max_retries=1, retry=[0.0]) for _ in range(3)]
    for job_id in ids:
        wait_for_state(engines.path, job_id, State.DEAD_LETTER)
    mended.set()
    assert verb(engine, engine.jobs.retry(ids[0])) == State.QUEUED
    job = wait_for_state(engines.path, ids[0], State.COMPLETED)
    assert (job.attempt, job.result) == (1, '"fine"')
    assert [number for number, _, _ in history(engines.path, ids[0])] == [1, 2]

    seqs = [job.seq for job in rows(engines.path)]
    assert verb(engine, lambda tx: engine.jobs.replay(tx, seqs)) == 2
    wait_for_ends(engines.path)
    assert {job.state for job in rows(engines.path)} == {State.COMPLETED}


def test_a_replay_that_fails_in_the_same_millisecond_is_recorded_too(engines: Engines, clock: FakeClock) -> None:
    """A clock that stands still, or was set back, must not leave a job without its end."""
    engine = engines(bad, clock=clock)
    job_id = submit(engine, "bad", max_retries=0)
    wait_for_state(engines.path, job_id, State.DEAD_LETTER)
    verb(engine, engine.jobs.retry(job_id))
    wait_until(lambda: len(history(engines.path, job_id)), 5, "the end of the replay", until=(2).__eq__)

    assert row(engines.path, job_id).state == State.DEAD_LETTER


def test_retry_now_runs_a_job_that_waits_for_its_next_attempt(engines: Engines) -> None:
    engine = engines(bad)
    job_id = submit(engine, "bad", max_retries=1, retry=[3600])
    wait_for_state(engines.path, job_id, State.RETRYING)
    verb(engine, engine.jobs.retry(job_id))

    assert wait_for_state(engines.path, job_id, State.DEAD_LETTER).attempt == 2


def test_only_a_dead_letter_or_a_waiting_retry_can_be_retried(engines: Engines) -> None:
    engine = engines(noop)
    job_id = submit(engine, "noop")
    wait_for_state(engines.path, job_id, State.COMPLETED)

    with pytest.raises(TransitionRefused, match="cannot retry, it is completed; submit it again"):
        verb(engine, engine.jobs.retry(job_id))
    with pytest.raises(NotFound):
        verb(engine, engine.jobs.retry("nobody"))


# ---------------------------------------------------------------------------------------------------------- async tasks


def test_coroutines_run_at_once_up_to_the_slots(engines: Engines) -> None:
    most, full = [0, 0], asyncio.Event()

    async def nap() -> None:
        most[0] += 1
        most[1] = max(most)
        if most[1] == 100:
            full.set()
        await full.wait()
        await asyncio.sleep(0)
        most[0] -= 1

    engine = engines(nap, async_slots=100)
    submit_all(engine, [new_job(engine, "nap") for _ in range(150)])
    wait_for_ends(engines.path)

    assert most == [0, 100]
    assert {job.state for job in rows(engines.path)} == {State.COMPLETED}


def test_coroutines_that_wait_for_a_slot_hold_up_no_thread(engines: Engines) -> None:
    async def nap() -> None:
        await asyncio.sleep(30)

    engine = engines([nap, noop], async_slots=1)
    submit_all(engine, [new_job(engine, "nap", priority=5) for _ in range(2_000)])
    job_id = submit(engine, "noop")

    wait_for_state(engines.path, job_id, State.COMPLETED)
    engines.stop(engine, 0)


def test_an_async_job_fails_and_retries_as_any_other(engines: Engines) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    engine = engines(fails)
    job_id = submit(engine, "fails", max_retries=1, retry=[0.0])

    assert wait_for_state(engines.path, job_id, State.DEAD_LETTER).attempt == 2
    assert history(engines.path, job_id) == [(1, "failed", "ValueError"), (2, "failed", "ValueError")]


def test_a_coroutine_is_stopped_at_its_timeout(engines: Engines) -> None:
    async def sleeper() -> None:
        await asyncio.sleep(60)

    engine = engines(sleeper, stop_grace=60)
    job_id = submit(engine, "sleeper", timeout=0.2, max_retries=0)

    job = wait_for_state(engines.path, job_id)
    assert (job.state, job.last_error) == (State.DEAD_LETTER, "timed out after 0.2 s")
    assert history(engines.path, job_id) == [(1, "timed_out", "JobTimeout")]


def test_a_running_coroutine_can_be_cancelled(engines: Engines, gate: Gate) -> None:
    async def sleeper() -> None:
        gate.here.release()
        await asyncio.sleep(60)

    engine = engines(sleeper)
    job_id = submit(engine, "sleeper")
    gate.wait_for_arrival()
    assert cancel(engine, job_id) == State.RUNNING

    assert wait_for_state(engines.path, job_id).state == State.CANCELLED
    wait_until(lambda: len(engine.async_lane), 5, "its slot to be free", until=lambda n: n == 0)


@pytest.mark.parametrize("error", [SystemExit("out of the blue"), asyncio.CancelledError("out of the blue")])
def test_a_coroutine_whose_job_fails_outside_of_its_body_is_not_forgotten_and_the_others_go_on(
    engines: Engines, error: BaseException
) -> None:
    async def work() -> str:
        return "done"

    engine = engines(work)
    hook = engine.huey.pre_execute("once")

    def once(_: Any) -> None:
        engine.huey.unregister_pre_execute("once")
        raise error

    hook(once)
    lost = submit(engine, "work")

    assert wait_for_state(engines.path, lost).state == State.DEAD_LETTER
    after = submit(engine, "work")
    assert wait_for_state(engines.path, after).state == State.COMPLETED
    wait_until(lambda: len(engine.async_lane), 5, "their slots to be free", until=lambda n: n == 0)
    engines.stop(engine)


def test_a_coroutine_that_blocks_the_loop_does_not_hold_up_a_stop(engines: Engines) -> None:
    gate = engines.gate()

    async def blocks() -> None:
        gate.pass_through()

    engine = engines(blocks)
    job_id = submit(engine, "blocks")
    gate.wait_for_arrival()
    stopped = threading.Event()

    def stop() -> None:
        engine.stop(0.2)
        stopped.set()

    engines._running.remove(engine)
    threading.Thread(target=stop, daemon=True).start()
    in_time = stopped.wait(5 * PATIENCE)
    gate.open()
    stopped.wait(5 * PATIENCE)
    assert in_time, "the stop waits for a coroutine that is deaf to it"
    assert row(engines.path, job_id).state == State.QUEUED


# --------------------------------------------------------------------------------------------------- timeout and cancel


def test_a_thread_that_spins_past_its_timeout_is_stopped(engines: Engines) -> None:
    def spin() -> None:
        while True:
            pass

    engine = engines([spin, noop], workers=1, stop_grace=60)
    job_id = submit(engine, "spin", timeout=0.2, max_retries=0)

    job = wait_for_state(engines.path, job_id, timeout_s=8)
    assert (job.state, job.last_error) == (State.DEAD_LETTER, "timed out after 0.2 s")
    assert history(engines.path, job_id) == [(1, "timed_out", "JobTimeout")]
    assert wait_for_state(engines.path, submit(engine, "noop")).state == State.COMPLETED
    assert engine.consumer.abandoned_total == 0


def test_a_timeout_is_retried_as_a_failure_is(engines: Engines) -> None:
    def spin() -> None:
        while True:
            pass

    engine = engines(spin, stop_grace=60)
    job_id = submit(engine, "spin", timeout=0.2, max_retries=1, retry=[0.0])

    assert wait_for_state(engines.path, job_id, timeout_s=12).attempt == 2
    assert [outcome for _, outcome, _ in history(engines.path, job_id)] == ["timed_out", "timed_out"]


def over_its_time(engine: Engine, clock: FakeClock, *, grace_s: float) -> None:
    """Let the time of the only job that runs be over, which is 0.2 s, and then the grace: it is asked to stop, and given up."""
    (attempt,) = engine.running.all()
    clock.advance(200)
    wait_until(lambda: attempt.pending, what="it to be asked to stop")
    clock.advance(round(grace_s * 1000))


def test_a_deaf_thread_is_abandoned_replaced_and_its_late_result_refused(engines: Engines, clock: FakeClock) -> None:
    gate = engines.gate()

    def deaf() -> str:
        gate.pass_through()
        return "too late"

    engine = engines([deaf, noop], workers=1, stop_grace=0.3, clock=clock)
    job_id = submit(engine, "deaf", timeout=0.2, max_retries=0)
    gate.wait_for_arrival()
    over_its_time(engine, clock, grace_s=0.3)
    job = wait_for_state(engines.path, job_id, timeout_s=8)
    assert job.state == State.DEAD_LETTER
    assert "abandoned" in (job.last_error or "")
    assert wait_for_state(engines.path, submit(engine, "noop")).state == State.COMPLETED, (
        "another thread took its place"
    )
    assert (engine.consumer.abandoned_total, engine.consumer.deaf_threads()) == (1, 1)

    gate.open()
    wait_until(engine.consumer.deaf_threads, 5, "the deaf thread to end", until=lambda n: n == 0)
    settle(engine)
    assert row(engines.path, job_id) == job
    assert len(engine.consumer.worker_threads) == 1


def test_a_deaf_job_that_is_retried_is_fenced_off_from_its_second_attempt(engines: Engines, clock: FakeClock) -> None:
    gate, attempts = engines.gate(), []

    def deaf() -> str:
        attempts.append(current_job().attempt)
        if len(attempts) == 1:
            gate.pass_through()
            return "first"
        return "second"

    engine = engines(deaf, workers=1, stop_grace=0.2, clock=clock)
    job_id = submit(engine, "deaf", timeout=0.2, max_retries=1, retry=[0.0])
    gate.wait_for_arrival()
    over_its_time(engine, clock, grace_s=0.2)
    job = wait_for_state(engines.path, job_id, State.COMPLETED, timeout_s=8)
    gate.open()
    wait_until(engine.consumer.deaf_threads, 5, "the deaf thread to end", until=lambda n: n == 0)
    settle(engine)

    assert (job.result, job.attempt) == ('"second"', 2)
    assert row(engines.path, job_id) == job


def test_a_waiting_job_is_cancelled_at_once(engines: Engines) -> None:
    engine = engines(noop, workers=0)
    queued, scheduled = submit(engine, "noop"), submit(engine, "noop", delay=60)

    assert [cancel(engine, i) for i in (queued, scheduled)] == [State.CANCELLED, State.CANCELLED]
    assert cancel(engine, queued) == State.CANCELLED, "twice is fine"
    assert [job.state for job in rows(engines.path)] == [State.CANCELLED, State.CANCELLED]


def test_a_job_that_was_claimed_ahead_is_cancelled_at_once_and_never_runs(
    engines: Engines, journal: Journal, gate: Gate
) -> None:
    engine = engines([journal.note, holding(gate)], workers=1)
    let_go = held(engine, gate)
    ids = [submit(engine, "note", {"name": name}) for name in "abc"]
    assert row(engines.path, ids[1]).lease is not None
    assert cancel(engine, ids[1]) == State.CANCELLED
    let_go()
    wait_for_ends(engines.path)

    assert journal.seen == ["a", "c"]
    assert (row(engines.path, ids[1]).attempt, history(engines.path, ids[1])) == (0, [])


def test_a_cancel_that_comes_where_python_cannot_raise_it_is_not_lost(engines: Engines) -> None:
    """Python reports what is raised in a ``__del__``, and goes on."""
    inside = threading.Event()

    class Slow:
        def __del__(self) -> None:
            inside.set()
            while True:
                pass

    def unlucky() -> None:
        Slow()
        while True:
            pass

    engine = engines([unlucky], stop_grace=60)
    job = submit(engine, "unlucky")
    assert inside.wait(5 * PATIENCE)
    cancel(engine, job)
    assert wait_for_state(engines.path, job).state == State.CANCELLED


def test_a_running_thread_can_be_cancelled(engines: Engines, gate: Gate) -> None:
    def spin() -> None:
        gate.here.release()
        while True:
            pass

    engine = engines(spin)
    job_id = submit(engine, "spin", max_retries=5)
    gate.wait_for_arrival()
    assert cancel(engine, job_id) == State.RUNNING

    job = wait_for_state(engines.path, job_id)
    assert (job.state, job.attempt) == (State.CANCELLED, 1)
    assert [outcome for _, outcome, _ in history(engines.path, job_id)] == ["cancelled"]


def test_a_running_job_hears_of_its_cancel_when_it_asks(engines: Engines, gate: Gate) -> None:
    def polite(ctx: JobContext) -> None:
        gate.here.release()
        while True:
            ctx.check_cancelled()
            time.sleep(0.001)

    engine = engines(polite)
    job_id = submit(engine, "polite")
    gate.wait_for_arrival()
    cancel(engine, job_id)

    assert wait_for_state(engines.path, job_id).state == State.CANCELLED


@pytest.mark.parametrize("jump_ms", [-7_200_000, 7_200_000])
def test_a_backoff_keeps_its_length_where_the_clock_is_set_before_the_failure_is_written(
    engines: Engines, gate: Gate, monkeypatch: pytest.MonkeyPatch, jump_ms: int
) -> None:
    def fails() -> None:
        raise ValueError("no")

    clock = FakeClock()
    engine = engines(fails, clock=clock)
    post = engine.jobs.post_end

    def late(*arguments: Any) -> None:
        gate.pass_through()
        post(*arguments)

    monkeypatch.setattr(engine.jobs, "post_end", late)
    job_id = submit(engine, "fails", max_retries=1, retry=[3600])
    gate.wait_for_arrival()
    clock.set_wall(jump_ms)
    settle(engine)
    gate.open()

    assert wait_for_state(engines.path, job_id, State.RETRYING).run_at == clock.now_ms() + 3_600_000
    engines.stop(engine)


def test_a_cancelled_job_that_fails_over_it_is_cancelled_and_not_retried(engines: Engines, gate: Gate) -> None:
    def stubborn() -> None:
        try:
            gate.here.release()
            while True:
                pass
        except JobCancelled:
            raise ValueError("while tidying up") from None

    engine = engines(stubborn)
    job_id = submit(engine, "stubborn", max_retries=3, retry=[3600])
    gate.wait_for_arrival()
    assert cancel(engine, job_id) == State.RUNNING

    job = wait_for_state(engines.path, job_id, State.CANCELLED, State.RETRYING, State.DEAD_LETTER)
    assert job.state == State.CANCELLED


def test_a_cancelled_job_whose_process_dies_is_not_run_again(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines([holding(gate)], stop_grace=30)
    job_id = submit(engine, "hold")
    gate.wait_for_arrival()
    wait_for_state(engines.path, job_id, State.RUNNING)
    assert cancel(engine, job_id) == State.RUNNING
    engines.crash(engine)
    gate.open()
    engines(holding(gate))

    assert wait_for_state(engines.path, job_id).state == State.CANCELLED


def test_an_ended_job_cannot_be_cancelled(engines: Engines) -> None:
    engine = engines(noop)
    job_id = submit(engine, "noop")
    wait_for_state(engines.path, job_id)

    with pytest.raises(TransitionRefused, match="cannot cancel, it is completed"):
        cancel(engine, job_id)
    with pytest.raises(NotFound):
        cancel(engine, "nobody")


def test_a_deaf_job_that_is_cancelled_is_abandoned(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines([holding(gate), noop], workers=1, stop_grace=0.2)
    job_id = submit(engine, "hold")
    gate.wait_for_arrival()
    cancel(engine, job_id)

    assert wait_for_state(engines.path, job_id, timeout_s=8).state == State.CANCELLED
    assert wait_for_state(engines.path, submit(engine, "noop")).state == State.COMPLETED


def test_an_attempt_that_was_given_up_does_not_take_the_mark_of_the_next_one(engines: Engines) -> None:
    """Its thread comes back from a hook in the moment in which the next attempt begins, and its own is not to be."""
    hook, writer, body = engines.gate(), engines.gate(), engines.gate()
    calls: list[int] = []

    def work() -> None:
        body.pass_through()

    clock = FakeClock()
    engine = engines(work, clock=clock)

    def before(_: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            hook.pass_through()
        else:
            engine.writer.post(Operation("verb", lambda _: writer.pass_through()))
            writer.wait_for_arrival()

    engine.huey.pre_execute("before")(before)
    job_id = submit(engine, "work", timeout=60, max_retries=1, retry=[0])
    hook.wait_for_arrival()
    (first,) = engine.running.all()
    clock.advance(60_000)
    wait_until(lambda: first.pending, what="it to be over its time")
    clock.advance(1_000)
    seq = first.claimed.seq
    marked = wait_until(lambda: engine.jobs._marks.get(seq), what="the next one to begin")
    hook.open()
    wait_until(
        lambda: engine.jobs._marks[seq] is not marked or not engine.consumer.deaf_threads(), what="the first to go on"
    )
    writer.open()
    body.wait_for_arrival()

    job = row(engines.path, job_id)
    assert (job.state, job.attempt) == (State.RUNNING, 2)
    body.open()
    wait_for_ends(engines.path)
    engines.stop(engine)


# ------------------------------------------------------------------------------------------------------ stop and crash


def test_a_stop_lets_a_running_job_end(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines(holding(gate), workers=1)
    running = submit(engine, "hold")
    gate.wait_for_arrival()
    waiting = submit(engine, "hold")
    engine.stop_taking()
    gate.open()

    assert engines.stop(engine) == 0
    assert row(engines.path, running).state == State.COMPLETED
    job = row(engines.path, waiting)
    assert (job.state, job.attempt, job.lease) == (State.QUEUED, 0, None)


def test_a_job_that_outlasts_the_grace_goes_back_without_an_attempt_counted(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines(holding(gate), workers=1)
    job_id = submit(engine, "hold")
    gate.wait_for_arrival()
    wait_for_state(engines.path, job_id, State.RUNNING)

    assert engines.stop(engine, 0.05) == 1
    job = row(engines.path, job_id)
    assert (job.state, job.attempt, job.crashes, job.lease) == (State.QUEUED, 0, 0, None)
    assert history(engines.path, job_id) == []
    gate.open()
    engine = engines(holding(gate))
    assert wait_for_state(engines.path, job_id).attempt == 1
    engines.stop(engine)
    check_invariants(engines.path, stopped=True)


def test_a_coroutine_that_outlasts_the_grace_goes_back_too(engines: Engines, gate: Gate) -> None:
    async def sleeper() -> None:
        gate.here.release()
        await asyncio.sleep(60)

    engine = engines(sleeper)
    job_id = submit(engine, "sleeper")
    gate.wait_for_arrival()
    wait_for_state(engines.path, job_id, State.RUNNING)

    assert engines.stop(engine, 0.05) == 1
    assert (row(engines.path, job_id).state, row(engines.path, job_id).attempt) == (State.QUEUED, 0)


def test_a_job_returned_before_its_begin_mark_was_written_has_no_attempt_counted(engines: Engines) -> None:
    """The mark and the return may meet in one group."""
    engine = engines(noop, workers=0)
    job_id = submit(engine, "noop")
    engine.jobs.claiming = True
    settle(engine)
    attempt = engine.readahead.take("thread", lambda claimed: engine.begin(claimed, "w"))
    assert attempt is not None
    in_one_group(engine, lambda: engine.jobs.mark_begun(attempt), engine.jobs.return_running([attempt]))
    engine.running.remove(attempt)
    engine.jobs.claiming = False

    job = row(engines.path, job_id)
    assert (job.state, job.attempt) == (State.QUEUED, 0)
    engines.stop(engine)
    check_invariants(engines.path, stopped=True)


def in_one_group(engine: Engine, before: Callable[[], object], function: Callable[..., Any]) -> None:
    """While the writer is held up in a group, call ``before`` and post ``function``: both meet in the next group."""
    from miniflow.writer import Operation, ThreadWaiter

    inside, go_on = threading.Event(), threading.Event()

    def hold(tx: object) -> None:
        inside.set()
        go_on.wait(5)

    blocker = threading.Thread(target=lambda: verb(engine, hold))
    blocker.start()
    inside.wait(5 * PATIENCE)
    before()
    operation, waiter = Operation("verb", function), ThreadWaiter()
    operation.waiter = waiter
    engine.writer.post(operation)
    go_on.set()
    waiter.wait()
    blocker.join()
    assert operation.error is None


def test_a_stopping_engine_takes_no_new_work(engines: Engines) -> None:
    engine = engines(noop)
    engine.stop_taking()

    with pytest.raises(ShuttingDown):
        submit(engine, "noop")


def crash_with_jobs(engines: Engines, *, begun: int, ahead: int) -> list[str]:
    """A file whose process has died: jobs that were running (their ids are the answer), and jobs that were only claimed."""
    gate = engines.gate()
    engine = engines([holding(gate), noop], workers=begun)
    running = [submit(engine, "hold") for _ in range(begun)]
    for _ in running:
        gate.wait_for_arrival()
    for job_id in running:
        wait_for_state(engines.path, job_id, State.RUNNING)
    claim_ahead(engine)
    waiting = [job.id for job in submit_all(engine, [new_job(engine, "noop") for _ in range(ahead)])]
    assert all(row(engines.path, job_id).lease is not None for job_id in waiting[:20])
    engines.crash(engine)
    gate.open()
    return running


def test_what_a_dead_process_left_is_released_and_only_begun_jobs_count_a_crash(engines: Engines) -> None:
    running = crash_with_jobs(engines, begun=2, ahead=50)
    check_invariants(engines.path)
    gate = Gate()
    gate.open()
    engine = engines([holding(gate), noop], workers=2)
    assert engine.recovered == (50, 2, 0)
    wait_for_ends(engines.path)

    assert {(job.state, job.attempt, job.crashes) for job in rows(engines.path, "task = 'hold'")} == {
        (State.COMPLETED, 2, 1)
    }
    assert {(job.state, job.attempt, job.crashes) for job in rows(engines.path, "task = 'noop'")} == {
        (State.COMPLETED, 1, 0)
    }
    assert history(engines.path, running[0]) == [(1, "crashed", "ProcessDied")]
    engines.stop(engine)
    check_invariants(engines.path, stopped=True)


def test_the_third_crash_under_a_job_makes_it_a_dead_letter(engines: Engines) -> None:
    killer = engines.gate()
    innocent = 30
    engine = engines([holding(killer), noop], workers=2)
    job_id = submit(engine, "hold")
    killer.wait_for_arrival()
    wait_for_state(engines.path, job_id, State.RUNNING)
    engines.crash(engine)
    for crashes in (1, 2):
        engine = engines([holding(killer), noop], workers=2)
        assert engine.recovered == (0, 1, 0)
        submit_all(engine, [new_job(engine, "noop") for _ in range(innocent)])
        killer.wait_for_arrival()
        wait_for_state(engines.path, job_id, State.RUNNING)
        assert row(engines.path, job_id).crashes == crashes
        n = crashes * innocent
        wait_until(
            partial(engine.writer.total, State.COMPLETED), 5, "the innocent to end", until=lambda ended, n=n: ended == n
        )
        engines.crash(engine)
    killer.open()
    engine = engines([holding(killer), noop], workers=2)

    job = row(engines.path, job_id)
    assert (job.state, job.crashes, job.attempt) == (State.DEAD_LETTER, 3, 3)
    assert job.last_error == "the process ended while this job ran, for the third time"
    wait_for_ends(engines.path)
    engines.stop(engine)
    check_invariants(engines.path, stopped=True)


def test_a_crash_uses_up_no_retry(engines: Engines) -> None:
    gate = engines.gate()
    calls: list[int] = []

    def fails_later() -> None:
        calls.append(current_job().attempt)
        if len(calls) == 1:
            gate.pass_through()
        raise ValueError

    engine = engines(fails_later)
    job_id = submit(engine, "fails_later", max_retries=1, retry=[0.0])
    gate.wait_for_arrival()
    wait_for_state(engines.path, job_id, State.RUNNING)
    engines.crash(engine)
    gate.open()
    engine = engines(fails_later)

    assert wait_for_state(engines.path, job_id, State.DEAD_LETTER).attempt == 3
    assert [outcome for _, outcome, _ in history(engines.path, job_id)] == ["crashed", "failed", "failed"]


def test_after_a_crash_coroutines_do_not_wait_for_threads(engines: Engines) -> None:
    """The caution after an unclean stop must not starve one kind of task by the other."""
    gate = engines.gate()
    seen = threading.Event()

    async def quick() -> None:
        seen.set()

    engine = engines([holding(gate), quick], workers=0)
    submit_all(engine, [new_job(engine, "hold") for _ in range(4)] + [new_job(engine, "quick") for _ in range(4)])
    engine.jobs.claiming = True
    settle(engine)
    assert len(engine.readahead) == 8
    engines.crash(engine)
    engines([holding(gate), quick], workers=2)
    gate.wait_for_arrival()
    gate.wait_for_arrival()

    assert seen.wait(3 * PATIENCE), "both threads are busy, a hundred slots are free, and no coroutine is begun"


def test_after_a_stop_in_order_nothing_is_recovered(engines: Engines) -> None:
    engine = engines(noop)
    submit(engine, "noop", delay=60)
    engines.stop(engine)

    assert engines(noop).recovered == (0, 0, 0)


# ------------------------------------------------------------------------------------------------ keys and the limits


def test_a_hundred_submits_with_one_key_make_one_job(engines: Engines, journal: Journal) -> None:
    engine = engines(journal.note)
    ids: list[str] = []
    start = threading.Barrier(100)

    def client() -> None:
        start.wait(10)
        ids.append(submit(engine, "note", {"name": "once"}, idempotency_key="k"))

    clients = [threading.Thread(target=client) for _ in range(100)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(10 * PATIENCE)
    wait_for_ends(engines.path)

    assert (len(ids), len(set(ids)), len(rows(engines.path)), journal.seen) == (100, 1, 1, ["once"])


def test_a_key_with_another_body_is_a_conflict(engines: Engines) -> None:
    engine = engines(add, workers=0)
    job_id = submit(engine, "add", {"a": 1, "b": 3}, idempotency_key="k")
    assert submit(engine, "add", {"b": 3, "a": 1}, idempotency_key="k") == job_id, (
        "the order of the fields is no difference"
    )

    for other in ({"payload": {"a": 2}}, {"payload": {"a": 1, "b": 3}, "priority": 1}):
        with pytest.raises(IdempotencyConflict) as caught:
            submit(engine, "add", idempotency_key="k", **other)
        assert (caught.value.key, caught.value.job_id) == ("k", job_id)


def test_a_key_counts_inside_a_batch_as_well(engines: Engines) -> None:
    engine = engines(add, workers=0)
    one, two = (
        new_job(engine, "add", {"a": 1}, idempotency_key="k"),
        new_job(engine, "add", {"a": 1}, idempotency_key="k"),
    )
    accepted = submit_all(engine, [one, new_job(engine, "add", {"a": 5}), two])
    assert [(a.id == one.id, a.replayed) for a in accepted] == [(True, False), (False, False), (True, True)]

    with pytest.raises(IdempotencyConflict):
        submit_all(engine, [new_job(engine, "add", {"a": 9}), new_job(engine, "add", {"a": 2}, idempotency_key="k")])
    assert len(rows(engines.path)) == 2, "a batch is taken whole or not at all"


def test_a_full_queue_takes_no_more_and_says_when_to_come_again(engines: Engines) -> None:
    engine = engines(noop, workers=0, max_queue=3)
    submit_all(engine, [new_job(engine, "noop"), new_job(engine, "noop", delay=60)])
    with pytest.raises(QueueFull) as caught:
        submit_all(engine, [new_job(engine, "noop"), new_job(engine, "noop")])
    assert (caught.value.waiting, caught.value.limit, caught.value.retry_after_s > 0) == (2, 3, True)
    job_id = submit(engine, "noop", idempotency_key="k")
    assert submit(engine, "noop", idempotency_key="k") == job_id, "one that is there already is no more work"

    cancel(engine, job_id)
    submit(engine, "noop")


def test_queues_are_made_on_use_up_to_a_limit(engines: Engines) -> None:
    engine = engines(noop, workers=0, max_queues=2)
    submit(engine, "noop", queue="one")
    submit(engine, "noop", queue="two")
    with pytest.raises(TooManyQueues, match="'three'"):
        submit(engine, "noop", queue="three")

    submit(engine, "noop", queue="one")


def test_a_refused_batch_makes_no_queue(engines: Engines) -> None:
    engine = engines(noop, workers=0, max_queues=2)
    with pytest.raises(TooManyQueues):
        submit_all(engine, [new_job(engine, "noop", queue=queue) for queue in ("one", "two", "three")])

    submit(engine, "noop", queue="four")
    submit(engine, "noop", queue="five")


# ----------------------------------------------------------------------------------------------------------- plain huey


@pytest.fixture
def huey() -> JobsHuey:
    return JobsHuey()


def test_a_plain_huey_task_runs_typed_and_by_its_short_name(engines: Engines, huey: JobsHuey) -> None:
    own = Registry()
    with registry.collecting(own):

        @huey.task()
        def when(day: dt.date, times: int = 1) -> str:
            return f"{day.year} x {times}"

    engine = engines(own, huey=huey)
    result = when(dt.date(2026, 1, 31))

    assert result.get(blocking=True, timeout=5 * PATIENCE) == "2026 x 1"
    assert row(engines.path, result.id).task == "when"
    over_http = submit(engine, "when", {"day": "2027-01-31", "times": 3})
    assert wait_for_state(engines.path, over_http).result == '"2027 x 3"'


def test_a_huey_task_with_context_gets_its_task(engines: Engines, huey: JobsHuey) -> None:
    own = Registry()
    with registry.collecting(own):

        @huey.task(context=True)
        def who(n: int, task: Any = None) -> list[Any]:
            return [n, task.id]

    engines(own, huey=huey)
    result = who(7)

    assert result.get(blocking=True, timeout=5 * PATIENCE) == [7, result.id]


def test_a_huey_tasks_retries_and_error(engines: Engines, huey: JobsHuey) -> None:
    own = Registry()
    with registry.collecting(own):

        @huey.task(retries=2)
        def fails() -> None:
            raise ValueError("no")

    engines(own, huey=huey)
    result = fails()
    job = wait_for_state(engines.path, result.id)

    assert (job.state, job.attempt) == (State.DEAD_LETTER, 3)
    with pytest.raises(TaskException, match=r"ValueError\('no'\)"):
        result.get()


def test_hueys_schedule_and_delay(engines: Engines, huey: JobsHuey, clock: FakeClock) -> None:
    own = Registry()
    with registry.collecting(own):

        @huey.task()
        def one() -> int:
            return 1

    engine = engines(own, huey=huey, clock=clock)
    result = one.schedule(delay=60)
    job = row(engines.path, result.id)
    assert job.state == State.SCHEDULED
    assert [task.id for task in huey.scheduled()] == [result.id]
    clock.advance((job.run_at or 0) - clock.now_ms())
    settle(engine)

    assert wait_for_state(engines.path, result.id).state == State.COMPLETED


def test_a_group_of_huey_tasks_is_one_batch(engines: Engines, huey: JobsHuey) -> None:
    from huey.api import group

    own = Registry()
    with registry.collecting(own):

        @huey.task()
        def double(n: int) -> int:
            return n * 2

    engines(own, huey=huey)
    results = huey.enqueue(group([double.s(n) for n in range(5)]))

    assert results.get(blocking=True, timeout=5 * PATIENCE) == [0, 2, 4, 6, 8]


def test_hooks_and_signals_are_called_around_every_job(engines: Engines, huey: JobsHuey) -> None:
    heard: list[Any] = []
    engine_registry = registry_of([add, bad])

    @huey.pre_execute()
    def before(task: Any) -> None:
        heard.append(("before", task.name))

    @huey.post_execute()
    def after(task: Any, value: Any, exc: Any) -> None:
        heard.append(("after", value, type(exc).__name__))

    @huey.signal(S.SIGNAL_COMPLETE)
    def complete(signal: str, task: Any) -> None:
        heard.append((signal, huey.result(task.id)))

    @huey.signal(S.SIGNAL_ERROR)
    def error(signal: str, task: Any, exc: Any) -> None:
        heard.append((signal, str(exc)))

    engine = engines(engine_registry, huey=huey, workers=1)
    wait_for_state(engines.path, submit(engine, "add", {"a": 1}))
    wait_until(lambda: len(heard), 5, "the listener", until=lambda n: n == 3)
    assert heard == [("before", "add"), ("after", 3, "NoneType"), ("complete", 3)]
    heard.clear()

    wait_for_state(engines.path, submit(engine, "bad", max_retries=0))
    assert heard[:3] == [("before", "bad"), ("error", "no"), ("after", None, "ValueError")]


def test_a_hook_that_raises_does_no_harm(engines: Engines, huey: JobsHuey) -> None:
    @huey.pre_execute()
    def before(task: Any) -> None:
        raise ValueError("hook")

    @huey.signal()
    def listener(signal: str, task: Any, *rest: Any) -> None:
        raise ValueError("listener")

    engine = engines([add, bad], huey=huey, workers=1)

    assert wait_for_state(engines.path, submit(engine, "add", {"a": 1})).state == State.COMPLETED
    assert wait_for_state(engines.path, submit(engine, "bad", max_retries=0)).state == State.DEAD_LETTER


def test_a_hook_may_cancel_a_job_before_it_runs(engines: Engines, huey: JobsHuey) -> None:
    @huey.pre_execute()
    def veto(task: Any) -> None:
        raise CancelExecution("not today")

    engine = engines(add, huey=huey)
    job = wait_for_state(engines.path, submit(engine, "add", {"a": 1}))

    assert (job.state, job.attempt) == (State.CANCELLED, 0)


def test_huey_locks_let_one_in_and_retry_the_other(engines: Engines, huey: JobsHuey, gate: Gate) -> None:
    own = Registry()
    with registry.collecting(own):

        @huey.task(retries=1, retry_delay=3600)
        @huey.lock_task("only-one")
        def alone() -> None:
            gate.pass_through()

    engine = engines(own, huey=huey)
    first = alone()
    gate.wait_for_arrival()
    second = alone()
    wait_for_state(engines.path, second.id, State.RETRYING)
    gate.open()
    wait_for_state(engines.path, first.id, State.COMPLETED)
    verb(engine, engine.jobs.retry(second.id))

    assert wait_for_state(engines.path, second.id, State.COMPLETED).attempt == 2


def test_huey_rate_limits_put_a_job_off(engines: Engines, huey: JobsHuey) -> None:
    own = Registry()
    with registry.collecting(own):

        @huey.task(retries=1)
        @huey.rate_limit("slowly", 1, 3600)
        def limited() -> int:
            return 1

    engines(own, huey=huey, workers=1)  # two workers at once can both get in: huey looks first and counts then
    first, second = limited(), limited()
    states = {wait_for_state(engines.path, r.id, State.COMPLETED, State.RETRYING).state for r in (first, second)}

    assert states == {State.COMPLETED, State.RETRYING}


def test_a_revoked_job_does_not_run_and_a_restored_one_does(engines: Engines, huey: JobsHuey, gate: Gate) -> None:
    own = registry_of(holding(gate))
    with registry.collecting(own):

        @huey.task()
        def one() -> int:
            return 1

    engine = engines(own, huey=huey, workers=1)
    let_go = held(engine, gate)
    revoked, restored = one(), one()
    revoked.revoke()
    restored.revoke()
    assert restored.is_revoked()
    restored.restore()
    let_go()
    wait_for_ends(engines.path)

    job = row(engines.path, revoked.id)
    assert (job.state, job.attempt) == (State.CANCELLED, 0)
    assert row(engines.path, restored.id).state == State.COMPLETED


def test_waiting_for_a_result_ends_at_its_timeout(engines: Engines, huey: JobsHuey) -> None:
    from huey.exceptions import ResultTimeout

    engine = engines(noop, huey=huey, workers=0)
    job_id = submit(engine, "noop")

    with pytest.raises(ResultTimeout):
        huey.result(job_id, blocking=True, timeout=0.05)
    assert len(engine.notices._waiting) == 0


# -------------------------------------------------------------------------------------------------- the writer's trouble


def failing_step(engine: Engine) -> Callable[[BaseException | None], None]:
    """Lets the next groups fail at their end with what the call is given; None: no more. Before ``start``."""
    now: list[BaseException] = []

    def step(tx: object) -> None:
        if now:
            raise now[0]

    def fail(exc: BaseException | None) -> None:
        now[:] = [] if exc is None else [exc]

    engine.writer.every_group(step)
    return fail


@pytest.fixture
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miniflow.writer.POSTPONED_S", 0.01)


def test_a_claim_that_failed_on_a_full_disk_is_made_again(engines: Engines, short_pause: None) -> None:
    import apsw

    engine = engines(noop, start=False)
    fail = failing_step(engine)
    engine.start()
    engine.jobs.claiming = False
    job_id = submit(engine, "noop")
    fail(apsw.FullError("simulated"))
    engine.jobs.claiming = True
    engine.writer.nudge()
    groups = engine.writer.groups
    wait_until(lambda: engine.writer.groups, 5, "a group that fails", until=lambda n: n > groups)
    fail(None)

    wait_for_state(engines.path, job_id, State.COMPLETED, timeout_s=3)


def test_a_promotion_that_failed_on_a_full_disk_is_made_again(
    engines: Engines, clock: FakeClock, short_pause: None
) -> None:
    import apsw

    engine = engines(noop, clock=clock, start=False)
    fail = failing_step(engine)
    engine.start()
    job_id, brief = submit(engine, "noop", delay=10), submit(engine, "noop", delay=3600, ttl=1)
    groups = engine.writer.groups
    fail(apsw.FullError("simulated"))
    clock.advance(10_000)
    engine.writer.nudge()
    wait_until(lambda: engine.writer.groups, 5, "a group that fails", until=lambda n: n > groups)
    fail(None)

    wait_for_state(engines.path, job_id, State.COMPLETED, timeout_s=3)
    assert row(engines.path, brief).state == State.SCHEDULED


def test_an_expiry_that_failed_on_a_full_disk_is_made_again(
    engines: Engines, clock: FakeClock, short_pause: None
) -> None:
    import apsw

    engine = engines(noop, clock=clock, workers=0, start=False)
    fail = failing_step(engine)
    engine.start()
    job_id = submit(engine, "noop", ttl=10)
    groups = engine.writer.groups
    fail(apsw.FullError("simulated"))
    clock.advance(10_000)
    engine.writer.nudge()
    wait_until(lambda: engine.writer.groups, 5, "a group that fails", until=lambda n: n > groups)
    fail(None)

    wait_for_state(engines.path, job_id, State.EXPIRED, timeout_s=3)


def test_an_attempt_that_ends_while_the_group_with_its_begin_mark_fails_is_counted_once(
    engines: Engines, short_pause: None
) -> None:
    import apsw

    engine = engines(noop, workers=0, start=False)
    inside, go_on, trouble = threading.Event(), threading.Event(), threading.Event()

    def step(tx: object) -> None:
        if trouble.is_set():
            trouble.clear()
            inside.set()
            go_on.wait(5)
            raise apsw.FullError("simulated")

    engine.writer.every_group(step)
    engine.start()
    job_id = submit(engine, "noop")
    engine.jobs.claiming = True
    settle(engine)
    attempt = engine.readahead.take("thread", lambda claimed: engine.begin(claimed, "w"))
    assert attempt is not None
    trouble.set()
    engine.jobs.mark_begun(attempt)
    engine.writer.nudge()
    assert inside.wait(5 * PATIENCE)
    from miniflow.model import Ending

    assert attempt.finish()
    engine.jobs.post_end(Ending(attempt, State.COMPLETED))
    go_on.set()

    assert wait_for_state(engines.path, job_id, State.COMPLETED).attempt == 1
    engines.stop(engine)
    check_invariants(engines.path, stopped=True)


def test_an_engine_stops_on_a_full_disk(engines: Engines, short_pause: None) -> None:
    import apsw

    engine = engines(noop, start=False)
    fail = failing_step(engine)
    engine.start()
    fail(apsw.FullError("simulated"))
    engines._running.remove(engine)
    try:
        engine.stop(0.1)
    finally:
        fail(None)

    engine = engines(noop)
    assert wait_for_state(engines.path, submit(engine, "noop")).state == State.COMPLETED


def test_an_end_that_cannot_be_written_becomes_a_dead_letter_that_says_so(engines: Engines) -> None:
    """A job is never left with a lease that nobody holds, whatever went wrong with its end."""
    engine = engines(noop, workers=0)
    job_id = submit(engine, "noop")
    engine.jobs.claiming = True
    settle(engine)
    attempt = engine.readahead.take("thread", lambda claimed: engine.begin(claimed, "w"))
    assert attempt is not None
    attempt.finish()
    engine.jobs.post_end(Ending(attempt, State.COMPLETED, result=object()))  # type: ignore[arg-type]

    job = wait_for_state(engines.path, job_id, State.DEAD_LETTER)
    assert job.last_error.startswith("the end of the attempt could not be written")
    engines.stop(engine)
    check_invariants(engines.path, stopped=True)


def test_a_foreign_write_lock_refuses_submits_and_loses_no_end(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sqlite3 shell in a transaction: whoever can wait is told, what a worker has to say is kept until the lock is gone."""
    gate = engines.gate()
    engine = engines([holding(gate), noop], workers=1)
    verb(engine, lambda tx: tx.connection.set_busy_timeout(20))
    monkeypatch.setattr("miniflow.writer.POSTPONED_S", 0.05)
    job_id = submit(engine, "hold")
    gate.wait_for_arrival()
    wait_for_state(engines.path, job_id, State.RUNNING)
    with closing(apsw.Connection(str(engines.path))) as shell:
        shell.set_busy_timeout(5_000 * PATIENCE)  # the writer may be in a group of its own
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreLocked, match="another program holds a write lock"):
            submit(engine, "noop")
        gate.open()
        wait_until(lambda: len(engine.running), 5, "the body to end", until=lambda running: running == 0)
        shell.execute("ROLLBACK")

    wait_for_state(engines.path, job_id, State.COMPLETED)
    engines.stop(engine)
    check_invariants(engines.path, stopped=True)


def test_after_a_crash_what_ran_then_begins_one_at_a_time(engines: Engines) -> None:
    """Begun together again, the innocent would be charged and buried together with the job that kills the process."""
    gates = engines.gate()
    engine = engines([holding(gates), noop], workers=4)
    ids = [submit(engine, "hold") for _ in range(4)]
    for job_id in ids:
        wait_for_state(engines.path, job_id, State.RUNNING)
    engines.crash(engine)

    engine = engines([holding(gates), noop], workers=4)
    other = submit(engine, "noop")
    wait_for_state(engines.path, other, State.COMPLETED)
    wait_for_state(engines.path, ids[0], State.RUNNING)
    states = [row(engines.path, job_id).state for job_id in ids]
    assert states == [State.RUNNING, State.QUEUED, State.QUEUED, State.QUEUED]
    assert cancel(engine, ids[3]) == State.CANCELLED
    gates.open()

    for job_id in ids[:3]:
        assert wait_for_state(engines.path, job_id, State.COMPLETED).crashes == 1
    engines.stop(engine)
    check_invariants(engines.path, stopped=True)


def test_a_job_that_runs_long_without_harm_holds_nobody_up(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miniflow.quarantine.ISOLATION_S", 0.05)
    gate = engines.gate()
    engine = engines([holding(gate)], workers=2)
    ids = [submit(engine, "hold") for _ in range(2)]
    for job_id in ids:
        wait_for_state(engines.path, job_id, State.RUNNING)
    engines.crash(engine)

    engines([holding(gate)], workers=2)
    for job_id in ids:
        wait_for_state(engines.path, job_id, State.RUNNING)
    gate.open()
    wait_for_ends(engines.path)


def test_what_waits_in_quarantine_goes_back_to_the_queue_at_a_stop(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines([holding(gate)], workers=2)
    ids = [submit(engine, "hold") for _ in range(2)]
    for job_id in ids:
        wait_for_state(engines.path, job_id, State.RUNNING)
    engines.crash(engine)
    engine = engines([holding(gate)], workers=2)
    wait_for_state(engines.path, ids[0], State.RUNNING)

    assert engines.stop(engine, grace_s=0) == 1
    assert [(row(engines.path, job_id).state, row(engines.path, job_id).lease) for job_id in ids] == [
        (State.QUEUED, None),
        (State.QUEUED, None),
    ]
    gate.open()
    check_invariants(engines.path, stopped=True)


def test_a_worker_that_dies_is_replaced_and_its_job_is_not_forgotten(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines(noop, workers=1)
    run_attempt = engine.huey.run_attempt

    def die_once(attempt: Any) -> None:
        monkeypatch.setattr(engine.huey, "run_attempt", run_attempt)
        raise KeyboardInterrupt("out of the blue")

    monkeypatch.setattr(engine.huey, "run_attempt", die_once)
    ((_, thread),) = engine.consumer.worker_threads
    lost = submit(engine, "noop")
    thread.join(5 * PATIENCE)
    after = submit(engine, "noop")
    engine.supervisor.tick(engine.clock.boot_ms() + 60_000)  # time for its look at the workers' health

    assert wait_for_state(engines.path, lost, State.DEAD_LETTER).last_error == "out of the blue"
    wait_for_state(engines.path, after, State.COMPLETED)
