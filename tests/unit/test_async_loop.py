"""The loop that all async jobs share: how late it is, and whose job it is that does not await."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
from huey.signals import SIGNAL_COMPLETE

from miniflow import looplag
from miniflow.engine import Engine
from miniflow.executors import measured_loop
from miniflow.holdups import ASYNC_ADVICE, LONG_S
from miniflow.huey_adapter import JobsHuey
from miniflow.states import State
from tests.engines import Engines, Gate, submit, wait_for_state
from tests.waiting import PATIENCE, wait_until


class Blocking:
    """Tasks with the loop for themselves until they are let on, and one that awaits as it should."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.awaiting = gate, threading.Event()

    async def block(self) -> None:
        self.gate.pass_through()

    async def block_below(self) -> None:
        async def below() -> None:
            self.gate.pass_through()

        await asyncio.gather(below())

    async def well_behaved(self) -> None:
        self.awaiting.set()
        await asyncio.to_thread(self.gate.pass_through)


@pytest.fixture
def tasks(engines: Engines) -> Blocking:
    return Blocking(engines.gate())


@pytest.fixture
def engine(engines: Engines, tasks: Blocking) -> Engine:
    return engines([tasks.block, tasks.block_below, tasks.well_behaved])


class Hand:
    """The clock by which steps are measured: it is moved by hand, so that none takes long but the one that the test has."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    made = Hand()
    monkeypatch.setattr(measured_loop, "monotonic", made)
    return made


def looked(engine: Engine) -> dict[str, float]:
    """What a look from another thread finds, which is what the loop of HTTP does twice a second."""
    engine.look(0.0)
    return engine.worker_use().async_loop.held_s


@pytest.mark.parametrize("task", ["block", "block_below"])
def test_a_job_that_does_not_await_is_named_while_it_goes_on(
    hand: Hand, engine: Engine, tasks: Blocking, caplog: pytest.LogCaptureFixture, task: str
) -> None:
    other = submit(engine, "well_behaved")
    tasks.gate.wait_for_arrival()
    job = submit(engine, task)
    tasks.gate.wait_for_arrival()
    assert looked(engine) == {}
    hand.now_s += LONG_S
    with caplog.at_level(logging.WARNING):
        assert looked(engine) == {task: LONG_S}
    (worker,) = [worker for worker in engine.roster.workers() if worker.job_id == job]
    assert worker.holds_loop_for == LONG_S
    assert worker.advice == ASYNC_ADVICE
    (said,) = [record.getMessage() for record in caplog.records if record.name == "miniflow.loop"]
    assert said.startswith(f"task {task} holds up the loop that all async jobs share")
    assert said.endswith(ASYNC_ADVICE)
    assert [worker.advice for worker in engine.roster.workers() if worker.job_id == other] == [None]

    tasks.gate.open()
    assert wait_for_state(engine.database.path, job).state == State.COMPLETED
    assert looked(engine) == {task: LONG_S}


def test_what_is_put_down_to_a_job_is_the_time_that_it_had_the_loop(
    hand: Hand, engine: Engine, tasks: Blocking
) -> None:
    job = submit(engine, "block")
    tasks.gate.wait_for_arrival()
    culprits = engine.async_lane.culprits
    for held_s in (0.5, 1.25):
        hand.now_s = 1_000.0 + held_s
        for _ in range(2):  # no look counts twice what the one before has counted
            assert looked(engine) == {"block": held_s}
        assert culprits.worst_s("block") == held_s
    hand.now_s += 0.25
    tasks.gate.open()
    wait_for_state(engine.database.path, job)
    assert (looked(engine), culprits.worst_s("block")) == ({"block": 1.5}, 1.5)


@pytest.mark.parametrize("what", ["mark_begun", "post_end"])
def test_the_loop_goes_on_while_it_is_written_that_a_job_has_begun_or_that_it_has_ended(
    hand: Hand, engines: Engines, tasks: Blocking, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The first jobs of a task wait for the one, and who listens for the other. It may take as long as the disk takes: no job has
    the loop meanwhile."""
    huey = JobsHuey()
    heard = threading.Event()
    huey.signal(SIGNAL_COMPLETE)(lambda *_: heard.set())
    engine = engines([tasks.well_behaved], huey=huey, start=False)
    saying, writing, go_on = threading.Event(), threading.Event(), threading.Event()
    said = getattr(engine.jobs, what)

    def say(*args: Any, **options: Any) -> None:
        saying.set()
        said(*args, **options)

    def hold(_: object) -> None:
        if saying.is_set() and not writing.is_set():
            writing.set()
            go_on.wait(30 * PATIENCE)

    monkeypatch.setattr(engine.jobs, what, say)
    engine.writer.every_group(hold)
    engine.start()
    job = submit(engine, "well_behaved")
    if what == "post_end":
        tasks.gate.open()
    assert writing.wait(5 * PATIENCE)
    had_a_turn = threading.Event()
    engine.async_lane._loop.call_soon_threadsafe(had_a_turn.set)
    try:
        assert had_a_turn.wait(5 * PATIENCE)
        assert tasks.awaiting.is_set() == (what == "post_end"), "the body waits for its begin"
        assert not heard.is_set(), "and who listens for its end"
    finally:
        go_on.set()
    tasks.gate.open()
    assert wait_for_state(engine.database.path, job).state == State.COMPLETED
    assert heard.wait(5 * PATIENCE)
    assert looked(engine) == {}


def test_its_lag_shows_while_it_stands_still(
    engines: Engines, tasks: Blocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looplag, "TICK_S", 0.01)
    engine = engines([tasks.block])
    job = submit(engine, "block")
    use = wait_until(lambda: engine.worker_use().async_loop, 10, "the lag", until=lambda use: use.lag_s > 0.05)
    assert use.lag_max_s >= use.lag_s
    tasks.gate.open()
    wait_for_state(engine.database.path, job)
    wait_until(lambda: engine.worker_use().async_loop.lag_s, 10, "the end of it", until=(0.0).__eq__)
    assert engine.worker_use().async_loop.lag_max_s > 0.05


def test_it_is_measured_only_while_async_jobs_run(
    hand: Hand, engines: Engines, tasks: Blocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looplag, "TICK_S", 0.01)
    engine = engines([tasks.well_behaved])
    lag = engine.async_lane.lag
    assert not lag.measuring
    job = submit(engine, "well_behaved")
    tasks.gate.wait_for_arrival()
    assert lag.measuring
    tasks.gate.open()
    wait_for_state(engine.database.path, job)
    wait_until(lambda: not lag.measuring)
    assert looked(engine) == {}
