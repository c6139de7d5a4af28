"""What is changed while the server runs: pauses, limits, the number of workers; and that a restart remembers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from miniflow import task
from miniflow.control import PoolSize, PoolSizeChange, QueueChange, TaskChange, change_queue, change_task
from miniflow.engine import Engine
from miniflow.errors import InvalidRequest, NotFound, ShuttingDown
from miniflow.registry import Registry, collecting
from miniflow.states import State
from tests.engines import Engines, Gate, row, rows, submit, verb, wait_for_ends, wait_for_state
from tests.waiting import wait_until


def tasks(gate: Gate) -> Registry:
    own = Registry()
    with collecting(own):

        @task
        def noop() -> None: ...

        @task(concurrency=2)
        def hold() -> None:
            gate.pass_through()

        @task
        async def later() -> None: ...

    return own


def paused(engine: Engine, queue: str, value: bool = True) -> Any:
    return verb(engine, change_queue(engine.jobs, queue, QueueChange(paused=value)))


def begun(engine: Engine) -> int:
    return sum(one.state == State.RUNNING for one in rows(engine.database.path))


# ------------------------------------------------------------------------------------------------------------------ pauses


def test_of_a_paused_queue_no_job_begins_and_those_that_run_go_on(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines(tasks(gate), workers=2)
    running = submit(engine, "hold", queue="mail")
    gate.wait_for_arrival()
    paused(engine, "mail")
    waiting = submit(engine, "noop", queue="mail")
    wait_for_state(engine.database.path, submit(engine, "noop", queue="other"))
    gate.open()

    wait_for_state(engine.database.path, running)
    assert row(engine.database.path, waiting).state == State.QUEUED
    paused(engine, "mail", False)
    wait_for_state(engine.database.path, waiting)


def test_a_pause_takes_back_what_was_claimed_ahead(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines(tasks(gate), workers=1)
    submit(engine, "hold", queue="mail")
    gate.wait_for_arrival()
    ahead = [submit(engine, "noop", queue="mail") for _ in range(3)]
    wait_until(lambda: len(engine.readahead) == 3)
    paused(engine, "mail")

    assert len(engine.readahead) == 0
    gate.open()
    wait_for_state(engine.database.path, submit(engine, "noop", queue="other"))
    assert {row(engine.database.path, one).state for one in ahead} == {State.QUEUED}
    paused(engine, "mail", False)
    wait_for_ends(engine.database.path)


def test_pauses_and_limits_hold_over_a_restart(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines(tasks(gate), workers=2)
    at = paused(engine, "mail").paused_at
    verb(engine, change_queue(engine.jobs, "mail", QueueChange(concurrency=3, rate="10/minute")))
    verb(engine, change_task(engine.jobs, "hold", TaskChange(concurrency=1)))
    engines.stop(engine)

    engine = engines(tasks(gate), workers=2)
    limit = engine.jobs.rules.of("queue", "mail")
    assert (limit.paused_at, limit.concurrency, limit.rate) == (at, 3, "10/minute")
    assert engine.jobs.rules.task_limit("hold").at_once == 1
    waiting = submit(engine, "noop", queue="mail")
    wait_for_state(engine.database.path, submit(engine, "noop", queue="other"))
    assert row(engine.database.path, waiting).state == State.QUEUED


def test_pausing_twice_keeps_the_time_of_the_first(engines: Engines) -> None:
    engine = engines(tasks(engines.gate()), workers=0)
    first = paused(engine, "mail")
    assert paused(engine, "mail") == first
    assert paused(engine, "mail", False).paused_at is None
    assert engine.jobs.rules.limited("queue") == [], "nothing is left of it"


# ------------------------------------------------------------------------------------------------------------------ limits


def test_a_limit_holds_from_the_next_job_on(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines(tasks(gate), workers=4)
    verb(engine, change_task(engine.jobs, "hold", TaskChange(concurrency=3)))
    for _ in range(5):
        submit(engine, "hold")
    for _ in range(3):
        gate.wait_for_arrival()

    wait_until(lambda: begun(engine) == 3)
    verb(engine, change_task(engine.jobs, "hold", TaskChange(concurrency=4)))
    gate.wait_for_arrival()
    wait_until(lambda: begun(engine) == 4)
    assert not gate.here.acquire(blocking=False)
    gate.open()
    wait_for_ends(engine.database.path)


def test_without_a_limit_of_its_own_that_of_the_author_holds_again(engines: Engines) -> None:
    engine = engines(tasks(engines.gate()), workers=0)
    verb(engine, change_task(engine.jobs, "hold", TaskChange(concurrency=5)))
    assert engine.jobs.rules.task_limit("hold").at_once == 5
    verb(engine, change_task(engine.jobs, "hold", TaskChange(concurrency=None)))
    assert engine.jobs.rules.task_limit("hold").at_once == 2


@pytest.mark.parametrize(
    "change", [QueueChange(rate="often"), QueueChange(rate="0/minute"), QueueChange(rate="1/100d")]
)
def test_a_rate_that_is_none_is_refused_by_name(engines: Engines, change: QueueChange) -> None:
    engine = engines(tasks(engines.gate()), workers=0)
    with pytest.raises(InvalidRequest) as refused:
        verb(engine, change_queue(engine.jobs, "mail", change))
    assert refused.value.field == "rate"
    assert engine.jobs.rules.limited("queue") == []


def test_a_task_that_is_not_there_is_not_limited(engines: Engines) -> None:
    engine = engines(tasks(engines.gate()), workers=0)
    with pytest.raises(NotFound):
        verb(engine, change_task(engine.jobs, "nobody", TaskChange(concurrency=5)))


# ----------------------------------------------------------------------------------------------------------------- workers


def resize(engine: Engine, **sizes: int) -> PoolSize:
    size: PoolSize = verb(engine, engine.pool.resize(PoolSizeChange(**sizes)))
    return size


def test_more_workers_take_more_jobs_at_once(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines(tasks(gate), workers=1)
    verb(engine, change_task(engine.jobs, "hold", TaskChange(concurrency=10)))
    for _ in range(3):
        submit(engine, "hold")
    gate.wait_for_arrival()
    assert not gate.here.acquire(blocking=False)
    resize(engine, workers=3)

    gate.wait_for_arrival()
    gate.wait_for_arrival()
    assert len(engine.consumer.busy()) == 3
    assert engine.roster.slots.thread == 3
    gate.open()
    wait_for_ends(engine.database.path)


def test_a_worker_that_is_one_too_many_ends_when_its_job_has(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines(tasks(gate), workers=2)
    jobs = [submit(engine, "hold") for _ in range(2)]
    gate.wait_for_arrival()
    gate.wait_for_arrival()
    threads = {thread for _, thread in engine.consumer.worker_threads}
    resize(engine, workers=1)

    assert len(engine.consumer.worker_threads) == 1
    assert len(engine.consumer.busy()) == 2, "both run still, and are shown"
    assert {worker.executor for worker in engine.roster.workers()} == {"thread"}
    gate.open()
    wait_for_ends(engine.database.path)
    assert {row(engine.database.path, job).state for job in jobs} == {State.COMPLETED}
    wait_until(lambda: sum(thread.is_alive() for thread in threads) == 1)
    assert len(engine.consumer.busy()) == 1
    wait_for_state(engine.database.path, submit(engine, "noop"))


def test_with_no_workers_no_job_begins_until_there_are_some(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines(tasks(gate), workers=1)
    running = submit(engine, "hold")
    gate.wait_for_arrival()
    ahead = [submit(engine, "noop") for _ in range(3)]
    resize(engine, workers=0)
    assert len(engine.readahead) == 0, "what was claimed ahead went back, and is not claimed anew"
    gate.open()
    wait_for_state(engine.database.path, running)
    assert {row(engine.database.path, job).state for job in ahead} == {State.QUEUED}
    jobs = [submit(engine, name) for name in ("noop", "later")]
    wait_until(lambda: not engine.consumer.busy())
    verb(engine, lambda tx: None)
    assert {row(engine.database.path, job).state for job in jobs} == {State.QUEUED}

    resize(engine, workers=1)
    wait_for_ends(engine.database.path)


def test_a_server_that_began_without_workers_can_get_some(engines: Engines) -> None:
    engine = engines(tasks(engines.gate()), workers=0)
    jobs = [submit(engine, name) for name in ("noop", "later")]
    resize(engine, workers=1)
    for job in jobs:
        wait_for_state(engine.database.path, job)


def test_the_number_is_remembered_until_the_setting_is_changed(engines: Engines) -> None:
    def restarted(**settings: Any) -> PoolSize:
        engine = engines(tasks(engines.gate()), **settings)
        size = engine.pool.size
        engines.stop(engine)
        return size

    engine = engines(tasks(engines.gate()), workers=2, async_slots=10, processes=3)
    assert resize(engine, workers=5) == PoolSize(5, 10, 3)
    assert resize(engine, async_slots=7, processes=1) == PoolSize(5, 7, 1)
    engines.stop(engine)

    assert restarted(workers=2, async_slots=10, processes=3) == PoolSize(5, 7, 1)
    assert restarted(workers=3, async_slots=10, processes=3) == PoolSize(3, 10, 3), (
        "who edits the setting means the new one"
    )


def test_a_change_of_nothing_and_of_a_server_that_stops_is_refused(engines: Engines) -> None:
    engine = engines(tasks(engines.gate()), workers=1)
    with pytest.raises(InvalidRequest, match="give workers, async_slots or processes"):
        resize(engine)
    engine.stop_taking()
    with pytest.raises(ShuttingDown):
        resize(engine, workers=3)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (PoolSizeChange, b'{"workers": -1}'),
        (PoolSizeChange, b'{"workers": 100000}'),
        (QueueChange, b'{"concurrency": 0}'),
        (QueueChange, b'{"pause": true}'),
        (TaskChange, b'{"paused": true}'),
    ],
)
def test_a_change_is_checked_before_it_is_made(kind: Callable[..., Any], body: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body, type=kind)
