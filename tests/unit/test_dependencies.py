"""Jobs that wait for other jobs: they begin when the last of those has ended, or are cancelled with it, in the same commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from miniflow import dependencies
from miniflow.engine import Engine
from miniflow.errors import InvalidRequest, TransitionRefused
from miniflow.model import Waits
from miniflow.operations import Operation
from miniflow.registry import bind_submit, task
from miniflow.states import State
from miniflow.writer import Transaction
from tests.engines import (
    Engines,
    FakeClock,
    Gate,
    cancel,
    new_job,
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


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as engines:
        yield engines


def add(a: int = 0, b: int = 0) -> int:
    return a + b


def fail() -> None:
    raise ValueError("no such file")


class Held:
    """A task that waits at a gate."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def held(self) -> str:
        self.gate.pass_through()
        return "let go"


def after(engine: Engine, *parents: str, task: str = "add", **options: Any) -> str:
    return submit(engine, task, depends_on=list(parents), **options)


def retry(engine: Engine, job_id: str) -> None:
    verb(engine, engine.jobs.retry(job_id))


def delete(engine: Engine, job_id: str) -> None:
    from miniflow import bulk

    verb(engine, bulk.delete_one(job_id))


def test_a_child_is_pending_until_its_last_parent_has_ended(engines: Engines) -> None:
    gates = [engines.gate(), engines.gate()]
    held, other = Held(gates[0]), Held(gates[1])

    def waits_too() -> str:
        return other.held()

    engine = engines([add, held.held, waits_too])
    first, second = submit(engine, "held"), submit(engine, "waits_too")
    child = after(engine, first, second)
    assert row(engines.path, child).state == State.PENDING

    gates[0].open()
    wait_for_state(engines.path, first, State.COMPLETED)
    assert row(engines.path, child).state == State.PENDING
    gates[1].open()
    done = wait_for_state(engines.path, child)
    assert done.state == State.COMPLETED
    assert (done.started_at or 0) >= (row(engines.path, second).completed_at or 0)
    assert not engine.jobs.dependencies.waited_for, "what has ended is forgotten"
    engines.stop(engine)


def test_the_end_of_a_parent_and_the_readiness_of_its_child_are_one_commit(engines: Engines) -> None:
    engine = engines([add], workers=0)
    parent = submit(engine, "add")
    child = after(engine, parent)
    assert cancel(engine, after(engine, child)) == State.CANCELLED

    seen: list[str] = []

    def look(tx: Transaction) -> None:
        engine.jobs.cancel(parent)(tx)
        tx.on_commit(lambda: seen.append(row(engines.path, child).state))

    verb(engine, look)
    assert seen == [State.CANCELLED], "the child is resolved in the transaction of its parent's end"


@pytest.mark.parametrize("kind", ["after", "then"])
def test_a_failure_cancels_what_waits_for_it_and_what_waits_for_that(engines: Engines, kind: str) -> None:
    engine = engines([add, fail], start=False)
    jobs = [new_job(engine, "fail", max_retries=0)]
    jobs += [as_child(new_job(engine, "add"), n, kind) for n in range(3)]
    engine.start()
    parent, *children = (one.id for one in submit_all(engine, jobs))
    wait_for_ends(engines.path)

    reasons = {row(engines.path, child).last_error for child in children}
    assert {row(engines.path, child).state for child in children} == {State.CANCELLED}
    assert {row(engines.path, child).attempt for child in children} == {0}
    if kind == "then":
        assert reasons == {"ValueError: no such file"}, "each has the error of the first"
    else:
        assert reasons == {
            f"not run: job {parent} (fail), which it depends on, is dead_letter: ValueError: no such file"
        }
    engines.stop(engine)


def as_child(job: Any, place: int, kind: str = "after") -> Any:
    """``job`` as the child of the one at ``place`` in the same batch."""
    values = list(job.row)
    values[4] = State.PENDING
    return job._replace(state=State.PENDING, row=values, waits=Waits((place,), kind))


def test_a_child_that_is_to_run_all_the_same_runs_after_a_failure(engines: Engines) -> None:
    engine = engines([add, fail])
    parent = submit(engine, "fail", max_retries=0)
    child = after(engine, parent, on_dependency_failure="run")
    assert wait_for_state(engines.path, child).state == State.COMPLETED
    assert row(engines.path, parent).state == State.DEAD_LETTER


def test_a_parent_that_fails_and_has_retries_left_has_not_ended(engines: Engines) -> None:
    engine = engines([add, fail], clock=FakeClock())
    parent = submit(engine, "fail", max_retries=1, retry=[60])
    child = after(engine, parent)
    wait_for_state(engines.path, parent, State.RETRYING)
    assert row(engines.path, child).state == State.PENDING


def test_parents_that_have_ended_already_are_resolved_at_once(engines: Engines) -> None:
    engine = engines([add, fail])
    good, bad = submit(engine, "add"), submit(engine, "fail", max_retries=0)
    wait_for_ends(engines.path)

    child, lost, anyway = after(engine, good), after(engine, good, bad), after(engine, bad, on_dependency_failure="run")
    assert row(engines.path, lost).state == State.CANCELLED
    assert bad in (row(engines.path, lost).last_error or "")
    assert wait_for_state(engines.path, child).state == State.COMPLETED
    assert wait_for_state(engines.path, anyway).state == State.COMPLETED
    engines.stop(engine)


def test_a_child_with_a_later_time_is_scheduled_when_its_parents_have_ended(engines: Engines) -> None:
    clock = FakeClock()
    engine = engines([add], clock=clock)
    parent = submit(engine, "add", delay=10)
    child = after(engine, parent, delay=60)
    clock.advance(11_000)
    settle(engine)
    wait_for_state(engines.path, parent, State.COMPLETED)
    assert wait_for_state(engines.path, child, State.SCHEDULED).run_at == clock.now_ms() + 49_000
    clock.advance(50_000)
    settle(engine)
    assert wait_for_state(engines.path, child).state == State.COMPLETED


def test_a_delay_of_a_pending_job_moves_with_the_clock(engines: Engines) -> None:
    clock = FakeClock()
    engine = engines([add], clock=clock, workers=0)
    parent = submit(engine, "add")
    child, fixed = after(engine, parent, delay=60, ttl=60), after(engine, parent)
    before = row(engines.path, child)
    clock.set_wall(3_600_000)
    settle(engine)
    moved = row(engines.path, child)
    assert (moved.run_at, moved.expires_at) == ((before.run_at or 0) + 3_600_000, (before.expires_at or 0) + 3_600_000)
    assert row(engines.path, fixed).run_at is None


@pytest.mark.parametrize("how", ["one", "many", "expired"])
def test_whatever_ends_a_parent_its_children_follow(engines: Engines, how: str) -> None:
    from miniflow import bulk
    from miniflow.filters import Filter

    clock = FakeClock()
    engine = engines([add], clock=clock, workers=0)
    parent = submit(engine, "add", ttl=5)
    lost, anyway = after(engine, parent), after(engine, parent, on_dependency_failure="run")
    if how == "one":
        cancel(engine, parent)
    elif how == "many":
        assert verb(engine, bulk.cancel(engine.jobs, [row(engines.path, parent).seq], Filter())) == 1
    else:
        clock.advance(6_000)
        settle(engine)
    state = State.EXPIRED if how == "expired" else State.CANCELLED
    assert row(engines.path, parent).state == state
    assert row(engines.path, lost).last_error is not None
    assert f"is {state}" in (row(engines.path, lost).last_error or "")
    assert row(engines.path, anyway).state == State.QUEUED
    engines.stop(engine)


def test_children_of_jobs_that_died_with_the_process_follow_at_the_next_start(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines([add, Held(gate).held])
    parent = submit(engine, "held")
    gate.wait_for_arrival()
    lost, anyway = after(engine, parent), after(engine, parent, on_dependency_failure="run")
    cancel(engine, parent)  # asked to stop, and the process dies first
    engines.crash(engine)
    gate.open()

    engine = engines([add, Held(gate).held])
    assert row(engines.path, parent).state == State.CANCELLED
    assert row(engines.path, lost).state == State.CANCELLED
    assert wait_for_state(engines.path, anyway).state == State.COMPLETED
    engines.stop(engine)


def test_a_long_cascade_and_a_wide_one_go_on_in_transactions_of_a_bounded_size(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dependencies, "EDGES_MAX", 7)
    engine = engines([add], workers=0)
    chain = submit_all(engine, [new_job(engine, "add"), *(as_child(new_job(engine, "add"), n) for n in range(50))])
    fan = submit_all(engine, [new_job(engine, "add"), *(as_child(new_job(engine, "add"), 0, "all") for _ in range(50))])
    changed = "changed > (SELECT max(changed) - 1 FROM jobs)"
    cancel(engine, chain[0].id)
    cancel(engine, fan[0].id)
    assert len(rows(engines.path, changed)) <= 8
    for _ in range(20):
        settle(engine)
    assert {row(engines.path, one.id).state for one in chain} == {State.CANCELLED}
    assert {row(engines.path, one.id).state for one in fan[1:]} == {State.QUEUED}
    engines.stop(engine)


def test_a_cascade_that_a_crash_cut_off_goes_on_at_the_next_start(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines([add], workers=0)
    chain = submit_all(engine, [new_job(engine, "add"), *(as_child(new_job(engine, "add"), n) for n in range(9))])
    with monkeypatch.context() as patched:
        patched.setattr(dependencies, "EDGES_MAX", 2)
        patched.setattr(dependencies.Dependencies, "due", False)
        cancel(engine, chain[0].id)
        engines.crash(engine)
    assert [row(engines.path, one.id).state for one in chain].count(State.PENDING) == 7
    engine = engines([add], workers=0)
    assert {row(engines.path, one.id).state for one in chain} == {State.CANCELLED}
    engines.stop(engine)


def test_a_child_whose_parent_somebody_deleted_by_hand_is_released_at_the_next_start(engines: Engines) -> None:
    engine = engines([add], workers=0)
    parent = submit(engine, "add")
    child = after(engine, parent)
    verb(engine, lambda tx: (tx.run("DELETE FROM jobs WHERE id = ?1", parent), tx.count(State.QUEUED, "default", -1)))
    engines.crash(engine)
    engine = engines([add])
    assert wait_for_state(engines.path, child).state == State.COMPLETED


# -------------------------------------------------------------------------------------------------------- running again


def test_what_waits_for_a_job_is_told_of_its_end_though_a_replay_came_between_and_was_undone(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dependencies, "EDGES_MAX", 2)  # the others are for the transactions that follow
    gate = engines.gate()

    def fails() -> None:
        gate.pass_through()
        raise ValueError("no")

    engine = engines([fails, add], start=False)
    undone = Operation("verb", lambda tx: replay_and_fail(tx))
    posted: list[Operation] = []

    def replay_and_fail(tx: Transaction) -> None:
        assert engine.jobs.replay(tx, [row(engines.path, parent).seq]) == 1
        raise RuntimeError("on purpose")

    def between(_: Transaction) -> None:
        if engine.jobs.dependencies.due and not posted:
            posted.append(undone)
            engine.writer.post(undone)

    engine.writer.every_group(between)
    engine.start()
    parent = submit(engine, "fails", max_retries=0)
    gate.wait_for_arrival()
    children = [submit(engine, "add", depends_on=[parent]) for _ in range(6)]
    gate.open()
    wait_for_ends(engines.path)

    assert isinstance(undone.error, RuntimeError)
    assert {row(engines.path, child).state for child in children} == {State.CANCELLED}
    engines.stop(engine)


def test_a_cancelled_child_waits_again_when_it_is_retried_after_its_parent(engines: Engines) -> None:
    fickle = {"fails": True}

    def flaky() -> str:
        if fickle["fails"]:
            raise ValueError("no")
        return "yes"

    engine = engines([add, flaky])
    parent = submit(engine, "flaky", max_retries=0)
    child = after(engine, parent)
    grandchild = after(engine, child)
    wait_for_ends(engines.path)
    with pytest.raises(TransitionRefused, match=rf"job {parent}, which is dead_letter; retry that one first"):
        retry(engine, child)

    fickle["fails"] = False
    retry(engine, parent)
    wait_for_state(engines.path, parent, State.COMPLETED)
    assert row(engines.path, child).state == State.CANCELLED, (
        "a parent that is replayed does not bring its children back"
    )
    retry(engine, child)
    assert wait_for_state(engines.path, child, State.COMPLETED).last_error is None
    retry(engine, grandchild)
    assert wait_for_state(engines.path, grandchild).state == State.COMPLETED
    engines.stop(engine)


def test_a_child_that_waits_still_waits_again_for_a_parent_that_is_replayed(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines([add, fail, Held(gate).held])
    bad, slow = submit(engine, "fail", max_retries=0), submit(engine, "held")
    child = after(engine, bad, slow, on_dependency_failure="run")
    wait_for_state(engines.path, bad, State.DEAD_LETTER)
    gate.wait_for_arrival()
    verb(engine, lambda tx: engine.jobs.give_back(tx, lambda _: True))
    engine.jobs.claiming = False
    retry(engine, bad)
    gate.open()
    wait_for_state(engines.path, slow, State.COMPLETED)
    settle(engine)
    assert row(engines.path, child).state == State.PENDING
    engine.jobs.claiming = True
    engine.writer.nudge()
    assert wait_for_state(engines.path, child).state == State.COMPLETED
    engines.stop(engine)


def test_a_child_that_waits_still_waits_for_a_parent_that_was_cancelled_and_waits_again(engines: Engines) -> None:
    gates = [engines.gate(), engines.gate()]
    broken = [True]

    def flaky() -> None:
        if broken[0]:
            raise ValueError("no")
        gates[0].pass_through()

    engine = engines([add, flaky, Held(gates[1]).held])
    first, slow = submit(engine, "flaky", max_retries=0), submit(engine, "held")
    second = after(engine, first)
    child = after(engine, second, slow, on_dependency_failure="run")
    wait_for_state(engines.path, second, State.CANCELLED)
    broken[0] = False
    retry(engine, first)
    retry(engine, second)
    gates[1].open()
    wait_for_state(engines.path, slow, State.COMPLETED)
    settle(engine)
    assert [row(engines.path, one).state for one in (second, child)] == [State.PENDING, State.PENDING]
    check_invariants(engines.path, replayed=True)
    gates[0].open()
    assert wait_for_state(engines.path, child).state == State.COMPLETED
    engines.stop(engine)


def test_what_a_person_cancelled_is_not_revived(engines: Engines) -> None:
    engine = engines([add], workers=0)
    child = after(engine, submit(engine, "add"))
    cancel(engine, child)
    with pytest.raises(TransitionRefused, match="it is cancelled; submit it again"):
        retry(engine, child)


def test_a_child_that_is_cancelled_does_not_come_back_with_its_parents_end(engines: Engines) -> None:
    engine = engines([add], workers=0)
    parent = submit(engine, "add")
    child = after(engine, parent, on_dependency_failure="run")
    cancel(engine, child)
    cancel(engine, parent)
    assert row(engines.path, child).state == State.CANCELLED
    engines.stop(engine)


# ------------------------------------------------------------------------------------------------------------- deleting


def test_a_parent_is_not_deleted_while_a_child_has_not_ended(engines: Engines) -> None:
    from miniflow import bulk
    from miniflow.filters import Filter

    engine = engines([add])
    parent = submit(engine, "add")
    wait_for_ends(engines.path)
    child = after(engine, parent, delay=3600)
    assert row(engines.path, child).state == State.SCHEDULED
    with pytest.raises(TransitionRefused, match=f"job {child} depends on it, and has not ended"):
        delete(engine, parent)
    assert verb(engine, bulk.delete(engine.jobs, [row(engines.path, parent).seq], Filter())) == 0

    cancel(engine, child)
    delete(engine, parent)
    assert [one.id for one in rows(engines.path)] == [child]
    check_invariants(engines.path, deleted=True)


# ---------------------------------------------------------------------------------------------------------- submitting


@pytest.mark.parametrize("depends_on", [["nobody"], [[]], [0]])
def test_a_parent_that_is_not_there_is_refused_by_the_name_of_the_field(
    engines: Engines, depends_on: list[Any]
) -> None:
    engine = engines([add], workers=0)
    parent = submit(engine, "add")
    given = [parent, *depends_on]
    if depends_on == ["nobody"]:
        with pytest.raises(InvalidRequest, match="there is no job nobody") as refused:
            submit(engine, "add", depends_on=given)
        assert refused.value.field == "depends_on[1]"
        assert len(rows(engines.path)) == 1, "nothing of it is stored"
    elif depends_on == [0]:
        with pytest.raises(InvalidRequest, match="the place, from 0, of a job before this one") as refused:
            submit(engine, "add", depends_on=given)
        assert refused.value.field == "depends_on[1]"
    else:
        assert submit(engine, "add", depends_on=[]), "no parents at all is a plain job"


def test_what_happens_without_parents_cannot_be_said(engines: Engines) -> None:
    engine = engines([add], workers=0)
    with pytest.raises(InvalidRequest, match="says nothing without depends_on"):
        submit(engine, "add", on_dependency_failure="run")


def test_a_repeated_submit_names_the_same_child_though_its_parent_is_gone(engines: Engines) -> None:
    engine = engines([add])
    parent = submit(engine, "add")
    child = after(engine, parent, idempotency_key="once")
    wait_for_ends(engines.path)
    delete(engine, parent)
    (again,) = submit_all(engine, [new_job(engine, "add", depends_on=[parent], idempotency_key="once")])
    assert (again.id, again.replayed) == (child, True)


def test_a_job_of_a_batch_waits_for_the_one_that_another_submit_with_its_key_made(engines: Engines) -> None:
    engine = engines([add], workers=0)
    first = submit(engine, "add", idempotency_key="a")
    made = submit_all(engine, [new_job(engine, "add", idempotency_key="a"), as_child(new_job(engine, "add"), 0)])
    with closing(read(engines.path)) as connection:
        ((parent,),) = connection.execute(
            "SELECT p.id FROM edges e JOIN jobs p ON p.seq = e.parent JOIN jobs c ON c.seq = e.child WHERE c.id = ?",
            (made[1].id,),
        )
    assert parent == first == made[0].id


def test_a_task_submits_what_depends_on_a_job(engines: Engines) -> None:
    @task
    def first() -> int:
        return 1

    @task
    def second() -> int:
        return 2

    engine = engines([first, second], workers=0)
    bind_submit(engine.submit)
    parent = first.submit()
    child = second.submit_with({"depends_on": parent, "on_dependency_failure": "run"})
    assert row(engines.path, child).state == State.PENDING


def test_jobs_that_nobody_waits_for_run_no_statement_more(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    plain = Transaction.run

    def run(self: Transaction, sql: str, *parameters: Any) -> list[Any]:
        said.append(sql)
        return plain(self, sql, *parameters)

    monkeypatch.setattr(Transaction, "run", run)
    engine = engines([add])
    said.clear()
    for _ in range(5):
        submit(engine, "add")
    wait_for_ends(engines.path)
    assert said
    assert not [sql for sql in said if "edges" in sql]
