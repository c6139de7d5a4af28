"""The loop that all async jobs share: how late it is, and whose job it is that does not await."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from miniflow import looplag
from miniflow.engine import Engine
from miniflow.holdups import ASYNC_ADVICE
from miniflow.states import State
from tests.engines import Engines, Gate, submit, wait_for_state
from tests.waiting import wait_until


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


def looked(engine: Engine) -> dict[str, float]:
    """What a look from another thread finds, which is what the loop of HTTP does twice a second."""
    engine.look(0.0)
    return engine.worker_use().async_loop.held_s


@pytest.mark.parametrize("task", ["block", "block_below"])
def test_a_job_that_does_not_await_is_named_while_it_goes_on(
    engine: Engine, tasks: Blocking, caplog: pytest.LogCaptureFixture, task: str
) -> None:
    other = submit(engine, "well_behaved")
    assert tasks.awaiting.wait(30)
    job = submit(engine, task)
    with caplog.at_level(logging.WARNING):
        assert wait_until(lambda: looked(engine), 10).keys() == {task}
    (worker,) = [worker for worker in engine.roster.workers() if worker.job_id == job]
    assert worker.holds_loop_for is not None
    assert worker.holds_loop_for >= 0.25
    assert worker.advice == ASYNC_ADVICE
    (said,) = [record.getMessage() for record in caplog.records if record.name == "miniflow.loop"]
    assert said.startswith(f"task {task} holds up the loop that all async jobs share")
    assert said.endswith(ASYNC_ADVICE)
    assert [worker.advice for worker in engine.roster.workers() if worker.job_id == other] == [None]

    tasks.gate.open()
    assert wait_for_state(engine.database.path, job).state == State.COMPLETED
    assert looked(engine).keys() == {task}


def test_what_is_put_down_to_a_job_is_the_time_that_it_had_the_loop(engine: Engine, tasks: Blocking) -> None:
    job = submit(engine, "block")
    first = wait_until(lambda: looked(engine), 10)["block"]
    wait_until(lambda: looked(engine)["block"], 10, "more of it", until=lambda held_s: held_s > first)
    worst_s = engine.async_lane.culprits.worst_s("block")
    assert looked(engine)["block"] >= (worst_s or 0.0), "no look counts twice what the one before has counted"
    tasks.gate.open()
    wait_for_state(engine.database.path, job)
    worst_s = engine.async_lane.culprits.worst_s("block")
    assert looked(engine)["block"] == pytest.approx(worst_s)


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
    engines: Engines, tasks: Blocking, monkeypatch: pytest.MonkeyPatch
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
