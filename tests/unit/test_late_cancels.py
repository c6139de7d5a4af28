"""A cancel that comes when an attempt is on its way to another end: it was said that the job stops, so it is not run again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miniflow.errors import JobTimeout
from miniflow.states import State
from tests.engines import Engines, Gate, cancel, history, row, submit, wait_for_state
from tests.waiting import wait_until
from tests.workflows import act, ended, start

AT_ONCE: dict[str, Any] = {"max_retries": 3, "retry": [0]}


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as made:
        yield made


@pytest.fixture
def gate(engines: Engines) -> Gate:
    return engines.gate()


def tidies_up(gate: Gate, begun: list[int]) -> Any:
    """A task that is over its timeout, and then takes its time to end."""

    def work() -> None:
        begun.append(1)
        try:
            while True:
                pass
        except JobTimeout:
            gate.pass_through()
            raise

    return work


def test_a_cancel_that_comes_while_a_job_ends_over_its_timeout_keeps_it_from_running_again(
    engines: Engines, gate: Gate
) -> None:
    begun: list[int] = []
    engine = engines(tidies_up(gate, begun), stop_grace=60)
    job_id = submit(engine, "work", timeout=0.2, **AT_ONCE)
    gate.wait_for_arrival()
    assert cancel(engine, job_id) == State.RUNNING
    gate.open()

    job = wait_for_state(engines.path, job_id)
    assert job.state == State.CANCELLED
    assert job.attempt == len(begun) == 1
    assert history(engines.path, job_id) == [(1, "timed_out", "JobTimeout")]
    engines.stop(engine)


def test_a_cancel_of_a_workflow_that_comes_then_ends_it(engines: Engines, gate: Gate) -> None:
    begun: list[int] = []
    engine = engines(tidies_up(gate, begun), stop_grace=60)
    flow = start(engine, [{"task": "work", "timeout": 0.2, **AT_ONCE}])
    gate.wait_for_arrival()
    act(engine, "cancel", flow)
    gate.open()

    assert ended(engines.path, flow)[0] == "cancelled"
    assert begun == [1]
    engines.stop(engine)


def test_a_cancel_that_comes_before_a_failure_is_written_keeps_it_from_running_again(
    engines: Engines, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def work() -> None:
        begun.append(1)
        raise ValueError("no")

    engine = engines(work)
    post = engine.jobs.post_end

    def late(*arguments: Any) -> None:
        gate.pass_through()
        post(*arguments)

    monkeypatch.setattr(engine.jobs, "post_end", late)
    job_id = submit(engine, "work", **AT_ONCE)
    gate.wait_for_arrival()
    assert cancel(engine, job_id) == State.RUNNING
    gate.open()

    job = wait_for_state(engines.path, job_id)
    assert job.state == State.CANCELLED
    assert job.attempt == len(begun) == 1
    assert row(engines.path, job_id).last_error == "ValueError: no"
    assert history(engines.path, job_id) == [(1, "failed", "ValueError")]
    engines.stop(engine)


@pytest.mark.parametrize("kind", ["another task", "a callback"])
def test_what_a_coroutine_has_set_going_beside_itself_does_not_take_its_cancel_away(
    engines: Engines, gate: Gate, kind: str
) -> None:
    """It prints after the cancel was asked for, and before the loop comes to tell the coroutine."""

    set_going: list[asyncio.Task[None]] = []

    def says() -> None:
        gate.pass_through()
        print("beside it")

    async def beside() -> None:
        says()

    async def waits() -> None:
        if kind == "a callback":
            asyncio.get_running_loop().call_soon(says)
        else:
            set_going.append(asyncio.create_task(beside()))
        await asyncio.Event().wait()

    engine = engines(waits, stop_grace=60)
    job_id = submit(engine, "waits")
    gate.wait_for_arrival()
    assert cancel(engine, job_id) == State.RUNNING
    gate.open()

    job = wait_for_state(engines.path, job_id)
    assert (job.state, job.last_error) == (State.CANCELLED, "JobCancelled: the job was cancelled")
    wait_until(lambda: len(engine.async_lane), 5, "its slot to be free", until=lambda n: n == 0)
    engines.stop(engine)


def test_a_cancel_is_kept_where_the_process_dies_before_it_is_in_the_file_that_the_job_has_begun(
    engines: Engines, gate: Gate
) -> None:
    begun: list[int] = []

    def work() -> None:
        begun.append(1)

    engine = engines(work)
    engine.huey.pre_execute("waits")(lambda _: gate.pass_through())  # a worker has it, and its body is yet to begin
    job_id = submit(engine, "work")
    gate.wait_for_arrival()
    assert cancel(engine, job_id) == State.RUNNING
    assert row(engines.path, job_id).state == State.QUEUED
    engines.crash(engine)
    engine = engines(work)

    assert wait_for_state(engines.path, job_id).state == State.CANCELLED
    assert not begun
    assert engine.recovered == (0, 0, 1)
    engines.stop(engine)
