"""Unique and debounced jobs: a submit is answered with the job that is there."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from miniflow import rule_statements, task
from miniflow.clock import rfc3339
from miniflow.engine import Engine
from miniflow.errors import InvalidRequest, NotUnique
from miniflow.model import Accepted
from miniflow.registry import Registry, collecting
from miniflow.rule_options import Debounce, Unique
from miniflow.writer import Operation, ThreadWaiter, Transaction
from tests.engines import Engines, FakeClock, cancel, new_job, rows, settle, submit, submit_all, verb, wait_for_state
from tests.invariants import read


def tasks() -> Registry:
    own = Registry()
    with collecting(own):

        @task
        def plain(a: int = 0, b: int = 0) -> None: ...

        @task(unique=["a"])
        def once(a: int, b: int = 0) -> None: ...

        @task(debounce={"wait": 5, "max_wait": 12, "fields": ["a"]})
        def index(a: int, b: int = 0) -> None: ...

        @task
        def whole(payload: dict[str, Any]) -> None: ...

        @task
        def open_ended(a: int = 0, **more: Any) -> None: ...

    return own


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def engine(engines: Engines, clock: FakeClock) -> Engine:
    """Nobody works: what is submitted waits."""
    return engines(tasks(), workers=0, clock=clock)


def accept(engine: Engine, task: str, payload: Any = None, **options: Any) -> Accepted:
    return submit_all(engine, [new_job(engine, task, payload, **options)])[0]


def payloads(engine: Engine) -> list[str]:
    """Of all jobs. By a connection of its own: the engine's is its writer's, which may be at work."""
    with closing(read(engine.database.path)) as connection:
        return [payload for (payload,) in connection.execute("SELECT payload FROM jobs ORDER BY seq")]


# ------------------------------------------------------------------------------------------------------------------ unique


def test_a_unique_submit_is_answered_with_the_job_that_is_there(engine: Engine) -> None:
    first = accept(engine, "plain", {"a": 1}, unique=True)
    second = accept(engine, "plain", {"a": 1}, unique=True)

    assert first.outcome == "created"
    assert second == Accepted(first.id, merged="existing")
    assert len(rows(engine.database.path)) == 1


def test_another_payload_or_task_is_another_job(engine: Engine) -> None:
    ids = {
        accept(engine, "plain", {"a": 1}, unique=True).id,
        accept(engine, "plain", {"a": 2}, unique=True).id,
        accept(engine, "once", {"a": 1}, unique=True).id,
        accept(engine, "plain", {"a": 1}).id,
    }
    assert len(ids) == 4


def test_the_order_of_the_fields_in_the_json_makes_no_difference(engine: Engine) -> None:
    assert (
        accept(engine, "plain", {"a": 1, "b": 2}, unique=True).id
        == accept(engine, "plain", {"b": 2, "a": 1}, unique=True).id
    )


def test_chosen_fields_decide_and_the_others_do_not(engine: Engine) -> None:
    first = accept(engine, "once", {"a": 1, "b": 1})

    assert accept(engine, "once", {"a": 1, "b": 2}).id == first.id
    assert accept(engine, "once", {"a": 2, "b": 1}).id != first.id
    assert accept(engine, "once", {"a": 1, "b": 2}, unique=False).id != first.id, "the submit has the last word"


def test_a_job_that_has_ended_is_in_nobodys_way(engines: Engines) -> None:
    engine = engines(tasks())
    first = submit(engine, "plain", {"a": 1}, unique=True)
    wait_for_state(engine.database.path, first)

    second = submit(engine, "plain", {"a": 1}, unique=True)
    assert second != first
    wait_for_state(engine.database.path, second)
    over_all = Unique(states=["completed", "queued", "running"])
    assert submit(engine, "plain", {"a": 1}, unique=over_all) == second, "the newest of the states asked for"


def test_a_window_of_time_is_counted_from_the_submit(engine: Engine, clock: FakeClock) -> None:
    asked = Unique(within=60)
    first = accept(engine, "plain", {"a": 1}, unique=asked)
    clock.advance(59_000)
    assert accept(engine, "plain", {"a": 1}, unique=asked).id == first.id
    clock.advance(2_000)
    assert accept(engine, "plain", {"a": 1}, unique=asked).id != first.id


def test_a_submit_may_ask_to_be_rejected_and_is_told_by_which_job(engine: Engine) -> None:
    first = accept(engine, "plain", {"a": 1}, unique=True)
    with pytest.raises(NotUnique, match=first.id) as refused:
        accept(engine, "plain", {"a": 1}, unique=Unique(on_conflict="reject"))
    assert refused.value.job_id == first.id
    assert "wait for it" in str(refused.value)
    assert len(rows(engine.database.path)) == 1


def test_who_is_rejected_for_a_window_of_time_is_told_when_it_is_over(engine: Engine, clock: FakeClock) -> None:
    asked = Unique(within=60, states=["queued", "completed"], on_conflict="reject")
    until = rfc3339(clock.now_ms() + 60_000)
    accept(engine, "plain", {"a": 1}, unique=asked)
    clock.advance(30_000)
    with pytest.raises(NotUnique) as refused:
        accept(engine, "plain", {"a": 1}, unique=asked)
    assert f"until {until} at the latest" in str(refused.value)
    assert "wait for it" not in str(refused.value), "it may have ended, and nothing comes of that"


def test_a_batch_cannot_have_two_of_the_same_either(engine: Engine) -> None:
    batch = [new_job(engine, "plain", {"a": a}, unique=True) for a in (1, 2, 1, 2, 1)]
    accepted = submit_all(engine, batch)

    assert [one.outcome for one in accepted] == ["created", "created", "existing", "existing", "existing"]
    assert [one.id for one in accepted] == [batch[0].id, batch[1].id, batch[0].id, batch[1].id, batch[0].id]
    assert len(rows(engine.database.path)) == 2


def test_a_batch_with_one_that_is_rejected_is_rejected_whole(engine: Engine) -> None:
    accept(engine, "plain", {"a": 1}, unique=True)
    with pytest.raises(NotUnique):
        submit_all(
            engine,
            [
                new_job(engine, "plain", {"a": 2}, unique=True),
                new_job(engine, "plain", {"a": 1}, unique=Unique(on_conflict="reject")),
            ],
        )
    assert len(rows(engine.database.path)) == 1
    assert accept(engine, "plain", {"a": 2}, unique=True).outcome == "created", "what was refused left nothing behind"


def test_submits_of_one_group_cannot_both_be_new(engine: Engine) -> None:
    """The writer takes what waits together: two operations of one group, in one transaction."""
    jobs = [new_job(engine, "plain", {"a": 1}, unique=True) for _ in range(2)]
    operations = [Operation("insert", [job]) for job in jobs]
    waiters = [ThreadWaiter() for _ in jobs]

    def post(tx: Transaction) -> None:
        for operation, waiter in zip(operations, waiters, strict=True):
            operation.waiter = waiter
            engine.writer.post(operation)

    verb(engine, post)
    for waiter in waiters:
        waiter.wait()
    first, second = (operation.value[0] for operation in operations)
    assert (first.outcome, second.outcome) == ("created", "existing")
    assert first.id == second.id
    assert len(rows(engine.database.path)) == 1


def test_a_unique_job_can_wait_for_others(engine: Engine) -> None:
    parent = submit(engine, "plain")
    first = submit(engine, "plain", {"a": 1}, unique=True, depends_on=[parent])
    assert submit(engine, "plain", {"a": 1}, unique=True) == first
    cancel(engine, parent)
    assert submit(engine, "plain", {"a": 1}, unique=True) != first, "it was cancelled with what it waited for"


def test_the_question_is_asked_of_an_index(engine: Engine) -> None:
    plan = [
        detail
        for *_, detail in verb(engine, lambda tx: tx.run(f"EXPLAIN QUERY PLAN {rule_statements.SAME_JOBS}", "[]"))
    ]
    assert any("jobs_unique (unique_key=? AND state=?)" in line for line in plan), plan


# ---------------------------------------------------------------------------------------------------------------- debounce


def test_a_debounced_job_begins_when_no_other_has_come_for_so_long_with_the_last_payload(
    engine: Engine, clock: FakeClock
) -> None:
    first = accept(engine, "plain", {"a": 1}, debounce=5)
    clock.advance(4_000)
    second = accept(engine, "plain", {"a": 2}, debounce=5)
    clock.advance(4_000)
    settle(engine)

    (row,) = rows(engine.database.path)
    assert second == Accepted(first.id, merged="debounced")
    assert row.state == "scheduled"
    assert row.run_at == clock.now_ms() + 1_000
    clock.advance(1_000)
    settle(engine)
    (row,) = rows(engine.database.path)
    assert row.state == "queued"
    assert payloads(engine) == ['{"a":2}']


def test_it_begins_after_its_longest_wait_however_many_come(engine: Engine, clock: FakeClock) -> None:
    ids = set()
    for _ in range(4):  # at 0, 4, 8 and 12 s; the longest wait is 12
        ids.add(submit(engine, "index", {"a": 1}))
        clock.advance(4_000)
        settle(engine)
    states = [row.state for row in rows(engine.database.path)]

    assert states == ["queued", "scheduled"], "the one that came when the first was due begins a new one"
    assert len(ids) == 2


def test_what_is_debounced_is_told_apart_by_fields(engine: Engine) -> None:
    assert submit(engine, "index", {"a": 1}) != submit(engine, "index", {"a": 2})
    assert submit(engine, "index", {"a": 1, "b": 1}) == submit(engine, "index", {"a": 1, "b": 2})


def test_a_batch_is_debounced_to_one_job_with_its_last_payload(engine: Engine, clock: FakeClock) -> None:
    accepted = submit_all(
        engine, [new_job(engine, "plain", {"a": a}, debounce=Debounce(wait=5, max_wait=7)) for a in range(3)]
    )

    (row,) = rows(engine.database.path)
    assert [one.outcome for one in accepted] == ["created", "debounced", "debounced"]
    assert payloads(engine) == ['{"a":2}']
    assert row.run_at == clock.now_ms() + 5_000


def test_a_cancelled_one_is_not_revived_by_the_next_submit(engine: Engine) -> None:
    first = submit(engine, "plain", {"a": 1}, debounce=5)
    cancel(engine, first)
    assert submit(engine, "plain", {"a": 1}, debounce=5) != first


def test_a_ttl_counts_from_when_it_is_due_at_last(engine: Engine, clock: FakeClock) -> None:
    submit(engine, "plain", debounce=5, ttl=60)
    clock.advance(3_000)
    submit(engine, "plain", debounce=5, ttl=60)
    (row,) = rows(engine.database.path)
    assert row.expires_at == clock.now_ms() + 65_000


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"unique": True, "debounce": 5}, "debounce"),
        ({"debounce": 5, "delay": 5}, "debounce"),
        ({"debounce": 5, "depends_on": ["x"]}, "debounce"),
        ({"debounce": Debounce(wait=5, max_wait=2)}, "debounce.max_wait"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(engine: Engine, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        new_job(engine, "plain", **options)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"unique": Unique(fields=["zz"])}, "unique.fields[0]"),
        ({"unique": Unique(fields=["a", "zz.id"])}, "unique.fields[1]"),
        ({"debounce": Debounce(wait=5, fields=["b", "zz"])}, "debounce.fields[1]"),
    ],
)
def test_a_field_that_the_task_does_not_take_is_refused_by_its_place(
    engine: Engine, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        new_job(engine, "plain", {"a": 1}, **options)
    assert (refused.value.field, refused.value.reason) == (field, "the task takes no 'zz'; it takes a, b")


def test_fields_below_those_that_a_task_takes_are_its_own_business(engine: Engine) -> None:
    first = submit(engine, "plain", {"a": 1}, unique=Unique(fields=["a.id"]))
    assert submit(engine, "plain", {"a": 1}, unique=Unique(fields=["a.id"])) == first


@pytest.mark.parametrize("task", ["whole", "open_ended"])
def test_a_task_that_takes_any_field_has_unique_ones_by_any(engine: Engine, task: str) -> None:
    by_zz = Unique(fields=["zz"])
    assert submit(engine, task, {"zz": 1}, unique=by_zz) == submit(engine, task, {"zz": 1}, unique=by_zz)
    assert submit(engine, task, {"zz": 1}, unique=by_zz) != submit(engine, task, {"zz": 2}, unique=by_zz)


def test_a_merge_that_is_rolled_back_has_not_happened(engine: Engine) -> None:
    first = submit(engine, "plain", {"a": 1}, debounce=5)

    def fail(tx: Transaction) -> None:
        raise RuntimeError("refused")

    engine.writer._after.append(fail)  # a group is rolled back after the insert
    with pytest.raises(RuntimeError):
        submit(engine, "plain", {"a": 2}, debounce=5)
    engine.writer._after.remove(fail)

    assert payloads(engine) == ['{"a":1}']
    assert submit(engine, "plain", {"a": 3}, debounce=5) == first
    verb(engine, lambda tx: None)
