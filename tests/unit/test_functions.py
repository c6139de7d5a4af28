"""Durable functions: what is recorded is not done again, what waits has no worker, and a changed function stops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from miniflow import current_job
from miniflow.errors import (
    EventTimeout,
    InvalidRequest,
    LateEvent,
    NonRetryable,
    StepFailed,
    TransitionRefused,
)
from miniflow.readers import Readers
from miniflow.states import State
from miniflow.step_calls import current_step
from miniflow.workflow_context import WorkflowContext
from miniflow.workflow_functions import workflow
from miniflow.workflow_queries import WorkflowQueries
from tests.engines import Engines, FakeClock, Gate, cancel, history, settle, submit, verb, wait_for_state
from tests.functions import asleep, begin, functions, job_of, output, recorded, send
from tests.invariants import check_invariants, read
from tests.waiting import PATIENCE, wait_until
from tests.workflows import act, ended

DAY_MS = 86_400_000


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as engines:
        yield engines


class Calls:
    """Counts what is really called."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def call(self, value: Any = None) -> Any:
        self.made.append(value)
        return value


class Fickle:
    """Fails until it is mended."""

    def __init__(self) -> None:
        self.mended = False
        self.runs = 0

    def fickle(self) -> str:
        self.runs += 1
        if not self.mended:
            raise ValueError("broken")
        return "whole"


# --------------------------------------------------------------------------------------------------------------- steps


def test_a_step_is_recorded_before_the_function_goes_on_and_its_output_is_what_json_makes_of_it(
    engines: Engines,
) -> None:
    calls = Calls()

    def order(ctx: WorkflowContext, payload: dict[str, Any]) -> Any:
        first = ctx.step(calls.call, (1, payload["n"]), name="first")
        return ctx.step(calls.call, {"was": first}, name="second")

    engine = engines(functions(order))
    run = begin(engine, "order", {"n": 2})

    assert output(engines.path, run) == {"was": [1, 2]}
    assert recorded(engines.path, run) == [
        ("step", "first", "completed", [1, 2]),
        ("step", "second", "completed", {"was": [1, 2]}),
    ]
    assert calls.made == [(1, 2), {"was": [1, 2]}]
    engines.stop(engine)


def test_after_a_crash_finished_steps_give_what_they_recorded_and_are_not_called_again(engines: Engines) -> None:
    calls, gate = Calls(), engines.gate()

    def order(ctx: WorkflowContext) -> Any:
        values = [ctx.step(calls.call, n, name=f"s{n}") for n in range(3)]
        values.append(ctx.uuid().hex)
        gate.pass_through()
        return [*values, ctx.uuid().hex]

    engine = engines(functions(order))
    run = begin(engine, "order")
    gate.wait_for_arrival()
    before = recorded(engines.path, run)
    engines.crash(engine)
    check_invariants(engines.path)

    gate.open()
    engine = engines(functions(order))
    found = output(engines.path, run)
    assert calls.made == [0, 1, 2]
    assert found[:3] == [0, 1, 2]
    assert recorded(engines.path, run)[:4] == before
    assert found[3] == before[3][3].replace("-", "")
    assert job_of(engines.path, run).crashes == 1
    engines.stop(engine)


def test_a_step_that_crashed_runs_again_under_the_same_key(engines: Engines) -> None:
    gate = engines.gate()
    keys: list[tuple[str, int]] = []

    def charge() -> None:
        step = current_step()
        assert step is not None
        keys.append((step.key, step.attempt))
        gate.pass_through()

    def order(ctx: WorkflowContext) -> None:
        ctx.step(len, "abc")
        ctx.step(charge)

    engine = engines(functions(order))
    run = begin(engine, "order")
    gate.wait_for_arrival()
    wait_until(lambda: len(recorded(engines.path, run)) == 2, 5, "the mark of the step")
    engines.crash(engine)
    gate.open()
    engine = engines(functions(order))
    output(engines.path, run)
    assert keys == [(f"{run}-1", 1), (f"{run}-1", 2)]
    engines.stop(engine)


def test_a_failing_step_is_tried_again_after_a_while_without_a_worker_and_then_its_failure_is_raised(
    engines: Engines,
) -> None:
    clock, fickle = FakeClock(), Fickle()
    caught: list[StepFailed] = []

    def order(ctx: WorkflowContext) -> str:
        try:
            ctx.step(fickle.fickle, max_retries=1, retry=[3600])
        except StepFailed as failure:
            caught.append(failure)
        return ctx.step(str.upper, "done")

    engine = engines(functions(order), clock=clock)
    run = begin(engine, "order")
    job = asleep(engines.path, run)
    assert (job.state, job.attempt, fickle.runs) == (State.SCHEDULED, 0, 1)
    assert job.run_at - clock.now_ms() == 3_600_000
    check_invariants(engines.path)

    clock.advance(3_600_000)
    settle(engine)
    assert output(engines.path, run) == "DONE"
    assert fickle.runs == 2
    assert (caught[0].step, caught[0].error) == ("fickle", "ValueError: broken")
    assert str(caught[0]) == "step fickle failed: ValueError: broken"
    engines.stop(engine)


def test_a_failure_that_is_final_is_not_tried_again_and_ends_the_run_where_nothing_catches_it(engines: Engines) -> None:
    def refuse() -> None:
        raise NonRetryable("no such card")

    def order(ctx: WorkflowContext) -> None:
        ctx.step(refuse)

    engine = engines(functions(order))
    run = begin(engine, "order")
    words = "StepFailed: step refuse failed: NonRetryable: no such card"
    assert ended(engines.path, run) == ("failed", 0, words)
    assert job_of(engines.path, run).state == State.DEAD_LETTER
    engines.stop(engine)


def test_a_step_whose_exception_cannot_say_what_it_is_fails_by_its_name(engines: Engines) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("broken")

    def refuse() -> None:
        raise Mute

    def order(ctx: WorkflowContext) -> None:
        ctx.step(refuse, max_retries=0)

    engine = engines(functions(order))
    run = begin(engine, "order")
    words = "StepFailed: step refuse failed: Mute: (no words: RuntimeError)"
    assert ended(engines.path, run) == ("failed", 0, words)
    engines.stop(engine)


def test_a_retry_goes_on_from_the_step_that_failed(engines: Engines) -> None:
    calls, fickle = Calls(), Fickle()

    def order(ctx: WorkflowContext) -> Any:
        ctx.step(calls.call, "first")
        try:
            return ctx.step(fickle.fickle, max_retries=0)
        except StepFailed:
            ctx.step(calls.call, "undo", name="undo")
            raise

    engine = engines(functions(order))
    run = begin(engine, "order")
    assert ended(engines.path, run)[0] == "failed"
    assert [name for _, name, *_ in recorded(engines.path, run)] == ["call", "fickle", "undo"]

    fickle.mended = True
    assert act(engine, "retry", run) == "running"
    assert output(engines.path, run) == "whole"
    assert calls.made == ["first", "undo"]
    assert [name for _, name, *_ in recorded(engines.path, run)] == ["call", "fickle"]
    engines.stop(engine)


def test_retries_of_the_function_itself_forget_the_failure_too(engines: Engines) -> None:
    calls, fickle = Calls(), Fickle()

    def order(ctx: WorkflowContext) -> Any:
        ctx.step(calls.call, "first")
        fickle.mended = fickle.runs == 1
        return ctx.step(fickle.fickle, max_retries=0)

    engine = engines(functions(order, max_retries=2, retry=[0]))
    run = begin(engine, "order")
    assert output(engines.path, run) == "whole"
    assert (calls.made, fickle.runs) == (["first"], 2)
    assert [number for number, *_ in history(engines.path, job_of(engines.path, run).id)] == [1]
    engines.stop(engine)


def test_what_is_no_json_is_the_failure_of_its_step(engines: Engines) -> None:
    def order(ctx: WorkflowContext) -> None:
        ctx.step(object)

    engine = engines(functions(order))
    state, _, error = ended(engines.path, begin(engine, "order"))
    assert state == "failed"
    assert "the output is not JSON" in str(error)
    engines.stop(engine)


def test_a_run_records_so_much_and_no_more(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miniflow.replay.RECORD_BYTES_MAX", 1_000)
    monkeypatch.setattr("miniflow.checkpoints.RECORD_BYTES_MAX", 1_000)

    def long_steps(ctx: WorkflowContext) -> None:
        for n in range(3):
            ctx.step(str.ljust, "", 400, name=f"s{n}")

    def long_events(ctx: WorkflowContext) -> None:
        for name in ("a", "b", "c"):
            ctx.wait_event(name)

    engine = engines(functions(long_steps, long_events))
    run = begin(engine, "long_steps")
    assert "step s2 failed: BadResult: a run records 64 MiB at most" in str(ended(engines.path, run)[2])
    run = begin(engine, "long_events")
    for name in ("a", "b", "c"):
        asleep(engines.path, run)
        send(engine, run, name, "x" * 400)
    assert "TooManySteps: a run records 64 MiB at most" in str(ended(engines.path, run)[2])
    engines.stop(engine)


def test_a_step_may_be_a_coroutine(engines: Engines) -> None:
    async def fetch(n: int) -> int:
        return n + 1

    def order(ctx: WorkflowContext) -> int:
        return ctx.step(fetch, 1)  # type: ignore[return-value]

    engine = engines(functions(order))
    assert output(engines.path, begin(engine, "order")) == 2
    engines.stop(engine)


def test_a_step_cannot_ask_for_steps(engines: Engines) -> None:
    def order(ctx: WorkflowContext) -> None:
        def inner() -> None:
            ctx.step(len, "abc")

        ctx.step(inner, max_retries=0)

    engine = engines(functions(order))
    assert "a step cannot ask for steps" in str(ended(engines.path, begin(engine, "order"))[2])
    engines.stop(engine)


# ------------------------------------------------------------------------------------------------------------- sleeping


def test_a_sleep_holds_no_worker_counts_no_attempt_and_lasts_over_a_restart(engines: Engines) -> None:
    clock, calls = FakeClock(), Calls()

    def order(ctx: WorkflowContext) -> str:
        ctx.step(calls.call, 1)
        ctx.sleep(DAY_MS / 1000)
        ctx.step(calls.call, 2, name="after")
        return "slept"

    engine = engines(functions(order), clock=clock)
    run = begin(engine, "order")
    job = asleep(engines.path, run)
    assert (job.state, job.attempt, job.lease) == (State.SCHEDULED, 0, None)
    assert job.run_at == clock.now_ms() + DAY_MS
    wait_until(lambda: len(engine.running), 5, "nothing to run", until=lambda n: n == 0)
    engines.stop(engine)

    engine = engines(functions(order), clock=clock)
    clock.advance(DAY_MS - 1)
    settle(engine)
    assert job_of(engines.path, run).state == State.SCHEDULED
    clock.advance(1)
    settle(engine)
    assert output(engines.path, run) == "slept"
    assert calls.made == [1, 2]
    assert job_of(engines.path, run).attempt == 1
    wait_until(lambda: recorded(engines.path, run)[1][2] == "completed", 5, "the sleep to be over")
    engines.stop(engine)


def test_a_sleep_keeps_its_length_when_the_clock_is_set(engines: Engines) -> None:
    clock = FakeClock()

    def order(ctx: WorkflowContext) -> str:
        ctx.sleep(3600)
        return "slept"

    engine = engines(functions(order), clock=clock)
    run = begin(engine, "order")
    asleep(engines.path, run)
    clock.set_wall(10 * DAY_MS)
    settle(engine)
    assert job_of(engines.path, run).state == State.SCHEDULED
    clock.set_wall(-20 * DAY_MS)
    settle(engine)
    clock.advance(3_600_000)
    settle(engine)
    assert output(engines.path, run) == "slept"
    engines.stop(engine)


@pytest.mark.parametrize("days", [10, -10])
def test_a_sleep_that_begins_just_after_the_clock_was_set_keeps_its_length_too(engines: Engines, days: int) -> None:
    clock, gate = FakeClock(), engines.gate()

    def order(ctx: WorkflowContext) -> str:
        gate.pass_through()
        ctx.sleep(3600)
        return "slept"

    engine = engines(functions(order), clock=clock)
    run = begin(engine, "order")
    gate.wait_for_arrival()
    clock.set_wall(days * DAY_MS)
    gate.open()
    asleep(engines.path, run)
    clock.advance(3_599_999)
    settle(engine)
    settle(engine)
    assert job_of(engines.path, run).state == State.SCHEDULED
    clock.advance(1)
    settle(engine)
    assert output(engines.path, run) == "slept"
    engines.stop(engine)


def test_code_that_catches_everything_does_not_keep_a_function_awake(engines: Engines) -> None:
    clock = FakeClock()
    reached: list[str] = []

    def order(ctx: WorkflowContext) -> str:
        try:
            ctx.sleep(3600)
        except BaseException:  # what a careless author writes
            reached.append("swallowed")
        return ctx.step(str.upper, "end")

    engine = engines(functions(order), clock=clock)
    run = begin(engine, "order")
    asleep(engines.path, run)
    assert [name for _, name, *_ in recorded(engines.path, run)] == ["sleep"]
    clock.advance(3_600_000)
    settle(engine)
    assert output(engines.path, run) == "END"
    engines.stop(engine)


def test_code_that_makes_another_error_of_everything_neither_fails_a_sleep_nor_hides_a_change(engines: Engines) -> None:
    clock, names = FakeClock(), ["first"]

    def order(ctx: WorkflowContext) -> None:
        try:
            ctx.step(len, "abc", name=names[0])
            ctx.sleep(3600)
        except BaseException as error:  # what a careless author writes
            raise ValueError("something went wrong") from error

    engine = engines(functions(order, max_retries=3), clock=clock)
    run = begin(engine, "order")
    assert asleep(engines.path, run).state == State.SCHEDULED
    names[0] = "second"
    clock.advance(3_600_000)
    settle(engine)
    assert str(ended(engines.path, run)[2]).startswith("WorkflowChanged: step 0 was recorded as the step 'first'")
    engines.stop(engine)


# --------------------------------------------------------------------------------------------------------------- events


def paid(ctx: WorkflowContext) -> Any:
    return ctx.wait_event("paid")


def test_an_event_wakes_the_run_that_waits_for_it_and_the_first_of_a_name_stays(engines: Engines) -> None:
    engine = engines(functions(paid))
    run = begin(engine, "paid")
    job = asleep(engines.path, run)
    assert (job.state, job.attempt) == (State.PENDING, 0)
    check_invariants(engines.path)

    assert send(engine, run, "other") is False
    assert send(engine, run, "paid", {"cents": 100}, key="k") is False
    assert output(engines.path, run) == {"cents": 100}
    assert send(engine, run, "paid", {"cents": 100}, key="k") is True
    with pytest.raises(LateEvent, match="has an event 'paid' already"):
        send(engine, run, "paid", {"cents": 999})
    with pytest.raises(TransitionRefused):
        send(engine, run, "new")
    engines.stop(engine)


def test_an_event_that_comes_early_is_kept(engines: Engines) -> None:
    gate = engines.gate()

    def late(ctx: WorkflowContext) -> Any:
        ctx.step(gate.pass_through, max_retries=0)
        return ctx.wait_event("paid")

    engine = engines(functions(late))
    run = begin(engine, "late")
    gate.wait_for_arrival()
    send(engine, run, "paid", "early")
    gate.open()
    assert output(engines.path, run) == "early"
    engines.stop(engine)


def test_a_run_that_waits_for_an_event_waits_over_a_restart(engines: Engines) -> None:
    engine = engines(functions(paid))
    run = begin(engine, "paid")
    asleep(engines.path, run)
    engines.stop(engine)
    engine = engines(functions(paid))
    settle(engine)
    assert job_of(engines.path, run).state == State.PENDING
    send(engine, run, "paid", 1)
    assert output(engines.path, run) == 1
    engines.stop(engine)


def test_an_event_that_does_not_come_in_time_is_a_timeout_that_is_recorded(engines: Engines) -> None:
    clock = FakeClock()

    def order(ctx: WorkflowContext) -> str:
        try:
            ctx.wait_event("paid", timeout=60)
        except EventTimeout:
            return ctx.step(str.upper, "late")
        return "paid"

    engine = engines(functions(order), clock=clock)
    run = begin(engine, "order")
    assert asleep(engines.path, run).state == State.SCHEDULED
    clock.advance(60_000)
    settle(engine)
    assert output(engines.path, run) == "LATE"
    assert recorded(engines.path, run)[0][2] == "failed"
    engines.stop(engine)


def test_an_event_in_time_wakes_a_run_before_its_timeout(engines: Engines) -> None:
    def order(ctx: WorkflowContext) -> Any:
        return ctx.wait_event("paid", timeout=3600)

    engine = engines(functions(order))
    run = begin(engine, "order")
    asleep(engines.path, run)
    send(engine, run, "paid", None)
    assert output(engines.path, run) is None
    engines.stop(engine)


# -------------------------------------------------------------------------------------------------------- a changed function


def test_a_changed_function_stops_with_what_was_recorded_and_what_it_asks_for_now(engines: Engines) -> None:
    clock = FakeClock()

    def order(ctx: WorkflowContext) -> None:
        ctx.step(len, "abc", name="charge")
        ctx.sleep(60)

    def changed(ctx: WorkflowContext) -> None:
        try:
            ctx.step(len, "abc", name="refund")
        except Exception:  # what a careless author writes
            ctx.step(len, "abc", name="never")

    engine = engines(functions(order), clock=clock)
    run = begin(engine, "order")
    asleep(engines.path, run)
    engines.stop(engine)
    engine = engines(functions(changed, name="order", max_retries=5), clock=clock)
    clock.advance(60_000)
    settle(engine)
    assert ended(engines.path, run) == (
        "failed",
        0,
        (
            "WorkflowChanged: step 0 was recorded as the step 'charge', and the function now asks for the step 'refund'; give "
            "the changed function a new name, or rerun this run with it"
        ),
    )
    assert len(recorded(engines.path, run)) == 2
    engines.stop(engine)


@pytest.mark.parametrize("argument", ["abcd", None], ids=["other arguments", "left out"])
def test_other_arguments_or_a_step_left_out_are_a_change_too(engines: Engines, argument: str | None) -> None:
    given: list[Any] = ["abc"]
    clock = FakeClock()

    def order(ctx: WorkflowContext) -> None:
        if given[0] is not None:
            ctx.step(len, given[0])
            ctx.sleep(60)

    engine = engines(functions(order), clock=clock)
    run = begin(engine, "order")
    asleep(engines.path, run)
    given[0] = argument
    clock.advance(60_000)
    settle(engine)
    state, _, error = ended(engines.path, run)
    assert state == "failed"
    wanted = "'len', was recorded with other arguments" if argument else "the function ends before it"
    assert wanted in str(error)
    engines.stop(engine)


def test_a_run_whose_function_is_gone_fails_with_its_name_and_goes_on_where_it_was_when_it_is_back(
    engines: Engines,
) -> None:
    calls = Calls()

    def order(ctx: WorkflowContext) -> Any:
        ctx.step(calls.call, "first")
        return ctx.wait_event("paid")

    def another(ctx: WorkflowContext) -> None: ...

    engine = engines(functions(order))
    run = begin(engine, "order")
    asleep(engines.path, run)
    engines.stop(engine)

    engine = engines(functions(another))
    send(engine, run, "paid", 1)
    state, _, error = ended(engines.path, run)
    assert (state, "order" in str(error)) == ("failed", True), error
    engines.stop(engine)

    engine = engines(functions(order))
    act(engine, "retry", run)
    assert output(engines.path, run) == 1
    assert calls.made == ["first"]
    engines.stop(engine)


def test_what_a_run_waited_for_whose_function_is_gone_is_not_said_to_be_cancelled(engines: Engines) -> None:
    def order(ctx: WorkflowContext) -> Any:
        return ctx.wait_event("paid", timeout=60)

    def another(ctx: WorkflowContext) -> None: ...

    clock = FakeClock()
    engine = engines(functions(order), clock=clock)
    gone, cancelled = begin(engine, "order"), begin(engine, "order")
    for run in (gone, cancelled):
        asleep(engines.path, run)
    act(engine, "cancel", cancelled)
    engines.stop(engine)

    engine = engines(functions(another), clock=clock)
    clock.advance(61_000)
    settle(engine)
    assert ended(engines.path, gone)[0] == "failed"
    readers = Readers(engine.database.path)
    queries = WorkflowQueries(readers, engine.writer)
    shown = [[one.status for one in queries.workflow(run).steps or ()] for run in (gone, cancelled)]
    asyncio.run(readers.close())
    assert shown == [["waiting"], ["cancelled"]]
    engines.stop(engine)


# -------------------------------------------------------------------------------------------------------------- control


def test_a_sleeping_run_is_cancelled_at_once_and_a_retry_lets_it_sleep_on(engines: Engines) -> None:
    engine = engines(functions(paid))
    run = begin(engine, "paid")
    asleep(engines.path, run)
    assert act(engine, "cancel", run) == "cancelled"
    assert ended(engines.path, run)[0] == "cancelled"
    act(engine, "retry", run)
    asleep(engines.path, run)
    send(engine, run, "paid", 7)
    assert output(engines.path, run) == 7
    engines.stop(engine)


def test_code_that_catches_everything_begins_no_step_after_its_run_was_cancelled(engines: Engines) -> None:
    gate, calls, over = engines.gate(), Calls(), threading.Event()

    def order(ctx: WorkflowContext) -> None:
        try:
            ctx.step(gate.pass_through, max_retries=0)
        except BaseException:  # what a careless author writes
            calls.call("swallowed")
        try:
            ctx.step(calls.call, "after")
        finally:
            over.set()

    engine = engines(functions(order))
    run = begin(engine, "order")
    gate.wait_for_arrival()
    act(engine, "cancel", run)
    assert ended(engines.path, run)[0] == "cancelled"
    gate.open()
    assert over.wait(5 * PATIENCE)
    assert calls.made == ["swallowed"]
    engines.stop(engine)


def asked_to_stop(path: Path, run: str) -> bool:
    with closing(read(path)) as connection:
        ((at,),) = connection.execute("SELECT cancel_requested_at FROM workflows WHERE id = ?", (run,))
    return at is not None


def test_the_job_of_a_run_may_be_cancelled_and_retried_like_any_other(engines: Engines) -> None:
    calls, fickle = Calls(), Fickle()

    def order(ctx: WorkflowContext) -> Any:
        ctx.step(calls.call, "first")
        ctx.step(fickle.fickle, max_retries=0)
        return ctx.wait_event("paid")

    engine = engines(functions(order))
    run = begin(engine, "order")
    assert ended(engines.path, run)[0] == "failed"
    job = job_of(engines.path, run).id
    fickle.mended = True
    verb(engine, engine.jobs.retry(job))
    asleep(engines.path, run)
    assert cancel(engine, job) == State.CANCELLED
    assert ended(engines.path, run) == ("cancelled", 0, None)
    assert asked_to_stop(engines.path, run)
    act(engine, "retry", run)
    assert not asked_to_stop(engines.path, run)
    asleep(engines.path, run)
    send(engine, run, "paid", 1)
    assert output(engines.path, run) == 1
    assert (calls.made, fickle.runs) == (["first"], 2)
    engines.stop(engine)


def test_a_run_whose_job_is_cancelled_while_it_runs_is_cancelled_with_what_it_has_spawned(engines: Engines) -> None:
    begun = engines.gate()

    def waits(ctx: WorkflowContext) -> Any:
        return ctx.wait_event("never")

    def order(ctx: WorkflowContext) -> Any:
        ctx.spawn("waits")
        begun.look_out(lambda: current_job().check_cancelled())

    engine = engines(functions(order, waits), workers=2)
    run = begin(engine, "order")
    begun.wait_for_arrival()
    assert cancel(engine, job_of(engines.path, run).id) == State.RUNNING
    assert ended(engines.path, run) == ("cancelled", 0, None)
    assert asked_to_stop(engines.path, run)
    with closing(read(engines.path)) as connection:
        ((child,),) = connection.execute("SELECT id FROM workflows WHERE id <> ?", (run,))
    assert ended(engines.path, child)[0] == "cancelled"
    engines.stop(engine)


def test_a_paused_run_begins_no_further_step_and_goes_on_where_it_was(engines: Engines) -> None:
    gate, calls = engines.gate(), Calls()

    def order(ctx: WorkflowContext) -> Any:
        ctx.step(gate.pass_through, max_retries=0)
        return ctx.step(calls.call, "after")

    engine = engines(functions(order))
    run = begin(engine, "order")
    gate.wait_for_arrival()
    act(engine, "pause", run)
    gate.open()
    job = asleep(engines.path, run)
    assert (job.state, calls.made) == (State.PENDING, [])
    engines.stop(engine)

    engine = engines(functions(order))
    settle(engine)
    assert job_of(engines.path, run).state == State.PENDING
    act(engine, "resume", run)
    assert output(engines.path, run) == "after"
    engines.stop(engine)


def test_an_event_for_a_paused_run_waits_with_it(engines: Engines) -> None:
    engine = engines(functions(paid))
    run = begin(engine, "paid")
    asleep(engines.path, run)
    act(engine, "pause", run)
    send(engine, run, "paid", 7)
    assert job_of(engines.path, run).state == State.PENDING
    act(engine, "resume", run)
    assert output(engines.path, run) == 7
    engines.stop(engine)


def test_a_timeout_of_the_whole_counts_the_sleep(engines: Engines) -> None:
    clock = FakeClock()
    engine = engines(functions(paid, timeout=60), clock=clock)
    run = begin(engine, "paid")
    asleep(engines.path, run)
    clock.advance(60_000)
    settle(engine)
    assert ended(engines.path, run) == ("failed", 0, "it took longer than its timeout of 60 s")
    engines.stop(engine)


def test_a_run_that_is_killed_three_times_is_given_up_unless_it_got_on_between(engines: Engines) -> None:
    gates: list[Gate] = []

    def order(ctx: WorkflowContext) -> int:
        for n, gate in enumerate(gates):
            ctx.step(gate.pass_through, name=f"s{n}", max_retries=0)
        return len(gates)

    gates += [engines.gate() for _ in range(4)]
    engine = engines(functions(order))
    run = begin(engine, "order")
    for gate in gates:  # each crash comes after a step that has ended since the last one
        gate.wait_for_arrival()
        wait_for_state(engines.path, job_of(engines.path, run).id, State.RUNNING)
        engines.crash(engine)
        gate.open()
        engine = engines(functions(order))
    assert output(engines.path, run) == 4
    assert job_of(engines.path, run).crashes == 4
    engines.stop(engine)


def test_a_step_that_kills_the_process_each_time_is_given_up_though_its_beginning_is_recorded(engines: Engines) -> None:
    gate = engines.gate()

    def order(ctx: WorkflowContext) -> None:
        ctx.step(len, "abc")
        ctx.step(gate.pass_through, max_retries=0)

    engine = engines(functions(order))
    run = begin(engine, "order")
    for attempt in (1, 2, 3):
        gate.wait_for_arrival()
        sql = "SELECT max(attempts) FROM checkpoints WHERE state = 'running'"
        with closing(read(engines.path)) as connection:
            wait_until(lambda: connection.execute(sql).fetchone(), 5, "the mark of the step", until=(attempt,).__eq__)  # noqa: B023
        engines.crash(engine)
        engine = engines(functions(order))
    state, _, error = ended(engines.path, run)
    assert (state, error) == ("failed", "the process ended while this job ran, for the third time")
    assert gate.here.acquire(blocking=False) is False
    engines.stop(engine)


def test_delete_forgets_the_checkpoints_and_events_too(engines: Engines) -> None:
    engine = engines(functions(paid))
    run = begin(engine, "paid")
    send(engine, run, "paid", 1)
    ended(engines.path, run)
    act(engine, "delete", run)
    with closing(read(engines.path)) as connection:
        left = [*connection.execute("SELECT count(*) FROM checkpoints UNION ALL SELECT count(*) FROM workflow_events")]
    assert left == [(0,), (0,)]
    check_invariants(engines.path, deleted=True)


# ----------------------------------------------------------------------------------------------------------- declaring


def test_what_cannot_be_a_workflow_is_said_where_it_is_declared() -> None:
    async def later(ctx: WorkflowContext) -> None: ...

    def nothing() -> None: ...

    with pytest.raises(TypeError, match="is a plain function, and no async def"):
        workflow(later)
    with pytest.raises(TypeError, match="takes its context first"):
        workflow(nothing)


def test_a_workflow_is_started_and_not_submitted(engines: Engines) -> None:
    def order(ctx: WorkflowContext, n: int) -> int:
        return n

    engine = engines(functions(order))
    with pytest.raises(InvalidRequest, match="'order' is a workflow; start it with POST /api/v1/workflows"):
        submit(engine, "order", {"n": 1})
    with pytest.raises(InvalidRequest, match=r"input\.n: expected int, got str"):
        begin(engine, "order", {"n": "x"})
    with pytest.raises(InvalidRequest, match="no workflow is registered as 'ordre'; did you mean order"):
        begin(engine, "ordre")
    assert begin(engine, "order", {"n": 1}, idempotency_key="k") == begin(
        engine, "order", {"n": 1}, idempotency_key="k"
    )
    engines.stop(engine)
