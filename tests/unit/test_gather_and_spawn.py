"""Durable functions that do several things at once: steps side by side, other runs, and runs that begin in the middle."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from miniflow.engine import Engine
from miniflow.errors import InvalidRequest, NonRetryable, StepFailed, WorkflowFailed
from miniflow.function_intake import FunctionIntake, function_submission
from miniflow.function_queries import place_of_step
from miniflow.readers import Readers
from miniflow.states import State
from miniflow.step_calls import current_step
from miniflow.workflow_catalog import Kept
from miniflow.workflow_context import Spawned, WorkflowContext
from miniflow.workflow_functions import input_text
from miniflow.workflow_graph import definition_of
from tests.engines import Engines, FakeClock, settle, verb
from tests.functions import asleep, begin, functions, job_of, output, recorded, send
from tests.invariants import check_invariants, read
from tests.waiting import wait_until
from tests.workflows import act, ended, state


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as engines:
        yield engines


class Calls:
    """Counts what is really called; what is named in ``broken`` fails."""

    def __init__(self, *broken: Any) -> None:
        self.made: list[Any] = []
        self.broken = set(broken)

    def call(self, value: Any = None) -> Any:
        self.made.append(value)
        if value in self.broken:
            raise NonRetryable(f"{value} is broken")
        return value


def children(path: Path, run: str) -> list[tuple[str, str]]:
    """(id, state) of the runs that it has spawned, in order."""
    sql = (
        "SELECT w.id, w.state FROM checkpoints c JOIN workflows p ON p.number = c.workflow "
        "JOIN workflows w ON w.number = c.child WHERE p.id = ? ORDER BY c.idx"
    )
    with closing(read(path)) as connection:
        return list(connection.execute(sql, (run,)))


def spawned(path: Path, run: str, n: int = 1) -> list[str]:
    """The ids of the runs that it has spawned, once there are so many."""
    found = wait_until(lambda: children(path, run), 5, f"{n} spawned runs", until=lambda some: len(some) == n)
    return [one for one, _ in found]


# -------------------------------------------------------------------------------------------------------------- gather


def test_gathered_steps_run_at_once_and_their_outputs_come_in_order(engines: Engines) -> None:
    meeting = threading.Barrier(3, timeout=30)  # nobody gets by alone

    def meet(n: int) -> int:
        meeting.wait()
        return n * n

    def order(ctx: WorkflowContext) -> Any:
        return ctx.gather(*[ctx.defer(meet, n, max_retries=0) for n in range(3)], lambda: "plain")

    engine = engines(functions(order))
    run = begin(engine, "order")
    assert output(engines.path, run) == [0, 1, 4, "plain"]
    assert [(name, how) for _, name, how, _ in recorded(engines.path, run)] == [
        *[("meet", "completed")] * 3,
        ("<lambda>", "completed"),
    ]
    engines.stop(engine)


def test_no_more_gathered_steps_run_at_once_than_the_limit_says(engines: Engines) -> None:
    lock, now, most = threading.Lock(), [0], [0]
    pair = threading.Barrier(2, timeout=30)

    def count() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        pair.wait()  # two at once, again and again
        with lock:
            now[0] -= 1
        pair.wait()

    def order(ctx: WorkflowContext) -> int:
        return len(ctx.gather(*[count] * 6, limit=2))

    engine = engines(functions(order))
    assert output(engines.path, begin(engine, "order")) == 6
    assert most == [2]
    engines.stop(engine)


def test_after_a_crash_only_the_gathered_steps_that_had_not_ended_run_again_under_their_keys(engines: Engines) -> None:
    gate = engines.gate()
    calls: list[tuple[int, str]] = []

    def part(n: int) -> int:
        step = current_step()
        assert step is not None
        calls.append((n, step.key))
        if n == 1:
            gate.pass_through()
        return n

    def order(ctx: WorkflowContext) -> Any:
        return ctx.gather(*[ctx.defer(part, n) for n in range(3)])

    engine = engines(functions(order))
    run = begin(engine, "order")
    gate.wait_for_arrival()
    wait_until(lambda: [how for *_, how, _ in recorded(engines.path, run)].count("completed") == 2, 5, "two of three")
    engines.crash(engine)
    check_invariants(engines.path)
    gate.open()
    engine = engines(functions(order))
    assert output(engines.path, run) == [0, 1, 2]
    assert sorted(calls) == [(0, f"{run}-0"), (1, f"{run}-1"), (1, f"{run}-1"), (2, f"{run}-2")]
    engines.stop(engine)


def test_the_first_failure_in_order_is_raised_when_all_have_ended_and_a_retry_runs_only_what_failed(
    engines: Engines,
) -> None:
    calls, caught = Calls("b", "d"), []

    def order(ctx: WorkflowContext) -> Any:
        try:
            return ctx.gather(*[ctx.defer(calls.call, one, name=one) for one in "abcd"])
        except StepFailed as failure:
            caught.append(failure.step)
            ctx.step(calls.call, "undo", name="undo")
            raise

    engine = engines(functions(order))
    run = begin(engine, "order")
    assert ended(engines.path, run)[2] == "StepFailed: step b failed: NonRetryable: b is broken"
    assert caught == ["b"]
    assert sorted(calls.made) == ["a", "b", "c", "d", "undo"]

    calls.made.clear()
    calls.broken.clear()
    act(engine, "retry", run)
    assert output(engines.path, run) == ["a", "b", "c", "d"]
    assert sorted(calls.made) == ["b", "d"]
    assert [name for _, name, *_ in recorded(engines.path, run)] == ["a", "b", "c", "d"]
    engines.stop(engine)


def test_gathered_steps_that_are_to_be_tried_again_wait_without_a_worker_when_the_others_have_ended(
    engines: Engines,
) -> None:
    clock, tried = FakeClock(), []

    def fickle(n: int) -> int:
        tried.append(n)
        if n and tried.count(n) == 1:
            raise ValueError("not yet")
        return n

    def order(ctx: WorkflowContext) -> Any:
        return ctx.gather(*[ctx.defer(fickle, n, retry=[60 * n]) for n in range(3)])

    engine = engines(functions(order), clock=clock)
    run = begin(engine, "order")
    job = asleep(engines.path, run)
    assert (job.state, job.run_at - clock.now_ms()) == (State.SCHEDULED, 60_000)
    wait_until(lambda: len(engine.running), 5, "nothing to run", until=lambda n: n == 0)
    for _ in range(2):
        clock.advance(60_000)
        settle(engine)
    assert output(engines.path, run) == [0, 1, 2]
    assert sorted(tried) == [0, 1, 1, 2, 2]
    engines.stop(engine)


def test_nothing_gathered_is_nothing_recorded_and_what_was_gathered_before_must_be_gathered_again(
    engines: Engines,
) -> None:
    clock, names = FakeClock(), [["a", "b"]]

    def order(ctx: WorkflowContext) -> Any:
        found = ctx.gather()
        found += ctx.gather(*[ctx.defer(str.upper, one, name=one) for one in names[0]])
        ctx.sleep(60)
        return found

    engine = engines(functions(order), clock=clock)
    first, second = begin(engine, "order"), begin(engine, "order")
    for run in (first, second):
        asleep(engines.path, run)
    assert [kind for kind, *_ in recorded(engines.path, first)] == ["step", "step", "sleep"]
    names[0] = ["b", "a"]
    clock.advance(60_000)
    settle(engine)
    assert "step 0 was recorded as the step 'a', and the function now asks for the step 'b'" in str(
        ended(engines.path, first)[2]
    )
    engines.stop(engine)


# --------------------------------------------------------------------------------------------------------------- spawn


def child(ctx: WorkflowContext, n: int) -> int:
    return n * ctx.step(int, "10")


def test_a_spawned_run_is_begun_once_and_waited_for_without_a_worker(engines: Engines) -> None:
    gate, calls = engines.gate(), Calls()

    def held(ctx: WorkflowContext, n: int) -> int:
        ctx.step(gate.pass_through, max_retries=0)
        return n * 10

    def parent(ctx: WorkflowContext) -> Any:
        run = ctx.spawn("held", {"n": 4})
        ctx.step(calls.call, run.id)
        return [run.id, run.result()]

    engine = engines(functions(parent, held))
    run = begin(engine, "parent")
    gate.wait_for_arrival()
    job = asleep(engines.path, run)
    assert (job.state, job.attempt) == (State.PENDING, 0)
    check_invariants(engines.path)
    engines.crash(engine)

    gate.open()
    engine = engines(functions(parent, held))
    (one,) = spawned(engines.path, run)
    assert output(engines.path, run) == [one, 40]
    assert calls.made == [one]
    engines.stop(engine)


def test_spawned_runs_are_gathered_with_steps(engines: Engines) -> None:
    def parent(ctx: WorkflowContext) -> Any:
        runs = [ctx.spawn("child", {"n": n}) for n in range(3)]
        return ctx.gather(*runs, ctx.defer(str.upper, "own"))

    engine = engines(functions(parent, child))
    run = begin(engine, "parent")
    assert output(engines.path, run) == [0, 10, 20, "OWN"]
    assert [how for _, how in children(engines.path, run)] == ["completed"] * 3
    engines.stop(engine)


def test_a_spawned_run_that_fails_raises_what_it_failed_with_and_can_be_caught(engines: Engines) -> None:
    def broken(ctx: WorkflowContext) -> None:
        raise ValueError("no luck")

    def parent(ctx: WorkflowContext) -> str:
        run: Spawned = ctx.spawn("broken")
        try:
            run.result()
        except WorkflowFailed as failure:
            return f"{failure.step}: {failure.error}"
        return "?"

    engine = engines(functions(parent, broken))
    assert output(engines.path, begin(engine, "parent")) == "broken: ValueError: no luck"
    engines.stop(engine)


def test_a_retry_retries_the_spawned_run_that_failed_and_nothing_that_was_done_meanwhile(engines: Engines) -> None:
    calls = Calls("child")

    def fickle(ctx: WorkflowContext) -> Any:
        ctx.step(calls.call, "before", name="before")
        return ctx.step(calls.call, "child")

    def parent(ctx: WorkflowContext) -> Any:
        run = ctx.spawn("fickle")
        ctx.step(calls.call, "meanwhile")
        try:
            return run.result()
        except WorkflowFailed:
            ctx.step(calls.call, "undo")
            raise

    engine = engines(functions(parent, fickle))
    run = begin(engine, "parent")
    assert ended(engines.path, run)[0] == "failed"
    before = children(engines.path, run)
    calls.made.clear()
    calls.broken.clear()
    act(engine, "retry", run)
    assert output(engines.path, run) == "child"
    assert calls.made == ["child"]
    assert children(engines.path, run) == [(before[0][0], "completed")]
    engines.stop(engine)


def test_a_retry_takes_what_the_spawned_run_returned_that_somebody_retried_before(engines: Engines) -> None:
    calls = Calls("child")

    def fickle(ctx: WorkflowContext) -> Any:
        return ctx.step(calls.call, "child")

    def parent(ctx: WorkflowContext) -> Any:
        return ctx.spawn("fickle").result()

    engine = engines(functions(parent, fickle))
    run = begin(engine, "parent")
    assert ended(engines.path, run)[0] == "failed"
    calls.broken.clear()
    ((one, _),) = children(engines.path, run)
    act(engine, "retry", one)
    assert output(engines.path, one) == "child"
    assert state(engines.path, run)[0] == "failed"

    act(engine, "retry", run)
    assert output(engines.path, run) == "child"
    assert calls.made == ["child", "child"]
    engines.stop(engine)


def test_retries_of_the_function_itself_retry_the_spawned_run_too(engines: Engines) -> None:
    calls = Calls("child")

    def fickle(ctx: WorkflowContext) -> Any:
        return ctx.step(calls.call, "child")

    def parent(ctx: WorkflowContext) -> Any:
        run = ctx.spawn("fickle")
        if calls.made:
            calls.broken.clear()
        return run.result()

    specs = functions(parent, max_retries=1, retry=[0])
    for spec in functions(fickle):
        specs.add(spec)
    engine = engines(specs)
    run = begin(engine, "parent")
    assert output(engines.path, run) == "child"
    assert calls.made == ["child", "child"]
    assert len(children(engines.path, run)) == 1
    engines.stop(engine)


def test_a_step_that_waits_for_its_next_attempt_in_a_thread_of_its_own_is_not_run_again_after_a_cancel(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    gate = engines.gate()
    monkeypatch.setattr("miniflow.replay.pause", lambda _ms: gate.pass_through())

    def fickle() -> None:
        made.append(1)
        raise ValueError("not yet")

    def order(ctx: WorkflowContext) -> Any:
        return ctx.gather(ctx.defer(fickle, retry=[0.5], max_retries=3))

    engine = engines(functions(order))
    run = begin(engine, "order")
    gate.wait_for_arrival()
    act(engine, "cancel", run)
    assert ended(engines.path, run)[0] == "cancelled"
    gate.open()

    names = wait_until(
        lambda: [one.name for one in threading.enumerate() if one.name.startswith("miniflow-gather")],
        what="its thread to end",
        until=lambda found: not found,
    )
    assert (names, made) == ([], [1])
    engines.stop(engine)


def test_a_cancel_takes_spawned_runs_along_at_any_depth_and_a_retry_brings_them_back(engines: Engines) -> None:
    def leaf(ctx: WorkflowContext) -> Any:
        return ctx.wait_event("go")

    def middle(ctx: WorkflowContext) -> Any:
        return ctx.spawn("leaf").result()

    def top(ctx: WorkflowContext) -> Any:
        return ctx.spawn("middle").result()

    engine = engines(functions(top, middle, leaf))
    run = begin(engine, "top")
    (second,) = spawned(engines.path, run)
    (third,) = spawned(engines.path, second)
    for one in (run, second, third):
        asleep(engines.path, one)
    assert act(engine, "cancel", run) == "cancelled"
    assert [state(engines.path, one)[0] for one in (second, third)] == ["cancelled", "cancelled"]
    check_invariants(engines.path)

    act(engine, "retry", run)
    for one in (run, second, third):
        asleep(engines.path, one)
    assert [state(engines.path, one)[0] for one in (run, second, third)] == ["running"] * 3
    send(engine, third, "go", "leaf's")
    assert output(engines.path, run) == "leaf's"
    engines.stop(engine)


@pytest.mark.parametrize("since", ["nothing", "completed", "goes on"])
def test_a_retry_of_what_was_cancelled_takes_a_spawned_run_as_it_is_by_then(engines: Engines, since: str) -> None:
    def leaf(ctx: WorkflowContext) -> Any:
        return ctx.wait_event("go")

    def top(ctx: WorkflowContext) -> Any:
        run = ctx.spawn("leaf")
        ctx.step(int, 1)
        return run.result()

    engine = engines(functions(top, leaf))
    run = begin(engine, "top")
    (inner,) = spawned(engines.path, run)
    for one in (run, inner):
        asleep(engines.path, one)
    act(engine, "cancel", run)
    if since != "nothing":
        act(engine, "retry", inner)
        asleep(engines.path, inner)
    if since == "completed":
        send(engine, inner, "go", "leaf's")
        assert output(engines.path, inner) == "leaf's"
    act(engine, "retry", run)
    if since != "completed":
        asleep(engines.path, run)
        asleep(engines.path, inner)
        send(engine, inner, "go", "leaf's")
    assert output(engines.path, run) == "leaf's"
    assert len(children(engines.path, run)) == 1
    engines.stop(engine)


@pytest.mark.parametrize("waits", [True, False], ids=["while it waits", "before it waits"])
def test_a_retry_of_what_was_cancelled_before_it_saw_a_failure_retries_what_failed(
    engines: Engines, waits: bool
) -> None:
    def leaf(ctx: WorkflowContext) -> Any:
        return ctx.wait_event("go")

    def top(ctx: WorkflowContext) -> Any:
        run = ctx.spawn("leaf")
        ctx.step(int, 1)
        if not waits:
            ctx.wait_event("first")
        return run.result()

    engine = engines(functions(top, leaf))
    run = begin(engine, "top")
    (inner,) = spawned(engines.path, run)
    for one in (run, inner):
        asleep(engines.path, one)
    act(engine, "pause", run)
    act(engine, "cancel", inner)
    assert state(engines.path, run)[0] == "running"
    act(engine, "cancel", run)
    act(engine, "retry", run)
    for one in (run, inner):
        asleep(engines.path, one)
    send(engine, inner, "go", "leaf's")
    if not waits:
        send(engine, run, "first")
    assert output(engines.path, run) == "leaf's"
    engines.stop(engine)


def test_a_spawned_run_that_nobody_waits_for_goes_on_when_its_parent_has_ended_well(engines: Engines) -> None:
    def leaf(ctx: WorkflowContext) -> Any:
        return ctx.wait_event("go")

    def parent(ctx: WorkflowContext) -> str:
        return ctx.spawn("leaf").id

    engine = engines(functions(parent, leaf))
    one = output(engines.path, begin(engine, "parent"))
    asleep(engines.path, one)
    send(engine, one, "go", 1)
    assert output(engines.path, one) == 1
    engines.stop(engine)


def test_what_a_spawn_is_given_is_held_against_the_function(engines: Engines) -> None:
    def parent(ctx: WorkflowContext, name: str) -> Any:
        return ctx.spawn(name, {"n": "x"}).result()

    engine = engines(functions(parent, child))
    assert "input.n: expected int, got str" in str(ended(engines.path, begin(engine, "parent", {"name": "child"}))[2])
    missing = str(ended(engines.path, begin(engine, "parent", {"name": "chile"}))[2])
    assert "no workflow is registered as 'chile'; did you mean child" in missing
    assert "workflow 'chile' cannot be spawned: " in missing
    steps = [{"task": "child", "payload": {}}]
    definition = definition_of(msgspec.json.encode({"inputs": {"day": {}}, "steps": steps}))
    engine.definitions.catalog.put(Kept("nightly", 1, definition))
    missing = str(ended(engines.path, begin(engine, "parent", {"name": "nightly"}))[2])
    assert "workflow 'nightly' cannot be spawned: input.n: is no input of it; there are day" in missing
    engines.stop(engine)


def test_a_spawn_is_not_refused_for_what_waits_already_but_runs_do_not_spawn_runs_without_end(engines: Engines) -> None:
    def leaf(ctx: WorkflowContext) -> str:
        return "leaf"

    def parent(ctx: WorkflowContext) -> list[str]:
        return ctx.gather(*[ctx.spawn("leaf") for _ in range(3)])

    def endless(ctx: WorkflowContext) -> Any:
        return ctx.spawn("endless").result()

    engine = engines(functions(parent, leaf, endless), max_queue=2)
    assert output(engines.path, begin(engine, "parent")) == ["leaf"] * 3
    run = begin(engine, "endless")
    assert "TooManySteps: runs spawn runs 50 deep at most" in str(ended(engines.path, run)[2])
    engines.stop(engine)


# --------------------------------------------------------------------------------------------------------------- rerun


def rerun(engine: Engine, run: str, step: str | None, input: Any = None) -> str:
    """As the API does it."""
    with closing(read(engine.database.path)) as connection:
        ((number, name),) = connection.execute("SELECT number, name FROM workflows WHERE id = ?", (run,))
    readers = Readers(engine.database.path)
    try:
        grp = 0 if step is None else place_of_step(readers, number, step)
    finally:
        asyncio.run(readers.close())
    new = FunctionIntake(engine.intake).run(function_submission(name, input_text(input or {}), {}), rerun_of=run)
    verb(engine, engine.jobs.checkpoints.rerun(new, number, grp))
    return new.id


def test_a_rerun_takes_over_what_was_recorded_before_the_step_and_leaves_the_old_run_as_it_is(engines: Engines) -> None:
    calls = Calls()

    def order(ctx: WorkflowContext, n: int) -> Any:
        first = ctx.step(calls.call, f"first {n}", name="first")
        both = ctx.gather(*[ctx.defer(calls.call, f"{one} {n}", name=one) for one in ("left", "right")])
        return [first, *both, ctx.uuid().hex, ctx.step(calls.call, f"last {n}", name="last")]

    engine = engines(functions(order))
    run = begin(engine, "order", {"n": 1})
    before = output(engines.path, run)
    old = recorded(engines.path, run)

    calls.made.clear()
    again = rerun(engine, run, "last", {"n": 2})
    assert output(engines.path, again) == [*before[:4], "last 2"]
    assert calls.made == ["last 2"]

    calls.made.clear()
    again = rerun(engine, run, "right", {"n": 3})  # gathered with "left": both run
    assert output(engines.path, again)[:3] == ["first 1", "left 3", "right 3"]
    assert sorted(calls.made) == ["last 3", "left 3", "right 3"]

    calls.made.clear()
    assert output(engines.path, rerun(engine, run, None, {"n": 4}))[0] == "first 4"
    assert recorded(engines.path, run) == old
    engines.stop(engine)


def test_a_rerun_begins_only_where_a_step_was_recorded_and_nothing_before_it_is_open(engines: Engines) -> None:
    def leaf(ctx: WorkflowContext) -> Any:
        return ctx.wait_event("go")

    def parent(ctx: WorkflowContext) -> Any:
        ctx.spawn("leaf")
        return ctx.step(str.upper, "done", name="last")

    engine = engines(functions(parent, leaf))
    run = begin(engine, "parent")
    assert output(engines.path, run) == "DONE"
    with pytest.raises(InvalidRequest, match="the run has recorded no step 'lost'"):
        rerun(engine, run, "lost")
    with pytest.raises(InvalidRequest, match="something before the step 'last' is not over yet"):
        rerun(engine, run, "last")
    assert output(engines.path, rerun(engine, run, "0")) == "DONE"
    engines.stop(engine)


def test_a_rerun_takes_over_what_a_spawned_run_returned(engines: Engines) -> None:
    def parent(ctx: WorkflowContext) -> Any:
        value = ctx.spawn("child", {"n": 3}).result()
        return ctx.step(str, value, name="last")

    engine = engines(functions(parent, child))
    run = begin(engine, "parent")
    assert output(engines.path, run) == "30"
    again = rerun(engine, run, "last")
    assert output(engines.path, again) == "30"
    assert children(engines.path, again) == []
    assert job_of(engines.path, again).state == State.COMPLETED
    engines.stop(engine)
