"""Jobs that ran when the process died, and run one after the other now: each has its turn, whatever becomes of the one before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from miniflow import task
from miniflow.quarantine import ISOLATION_S
from miniflow.registry import Registry, collecting
from miniflow.states import State
from miniflow.writer import Transaction
from tests.engines import Engines, FakeClock, Gate, row, submit, verb, wait_for_ends, wait_for_state
from tests.waiting import wait_until

LONG_MS = round(ISOLATION_S * 1000)


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as made:
        yield made


@pytest.fixture
def gate(engines: Engines) -> Gate:
    return engines.gate()


@pytest.fixture
def tasks(gate: Gate) -> Registry:
    own = Registry()
    with collecting(own):

        @task
        def hold() -> None:
            gate.pass_through()

        @task(concurrency_key="key", on_conflict="cancel_running")
        def newest(key: str) -> None:
            gate.pass_through()

    return own


def crashed(engines: Engines, tasks: Registry, clock: FakeClock, *names: str) -> list[str]:
    """Jobs under which the process has died, in the order in which they are brought forward."""
    engine = engines(tasks, clock=clock, workers=len(names))
    ids = []
    for name in names:
        ids.append(submit(engine, name, {"key": "a"} if name == "newest" else {}))
        wait_for_state(engines.path, ids[-1], State.RUNNING)
    engines.crash(engine)
    return ids


def test_the_next_has_its_turn_where_the_group_that_brought_it_forward_was_rolled_back(
    engines: Engines, tasks: Registry, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miniflow.writer.POSTPONED_S", 0.05)
    clock = FakeClock()
    first, second = crashed(engines, tasks, clock, "hold", "hold")
    engine = engines(tasks, clock=clock, start=False)
    wanted = row(engines.path, second).seq
    full: list[int] = []

    def fill_the_disk_once(_: Transaction) -> None:
        if not full and engine.jobs.quarantine.current == wanted:
            full.append(1)
            raise apsw.FullError("once")

    engine.writer.every_group(fill_the_disk_once)
    engine.start()
    wait_for_state(engines.path, first, State.RUNNING)
    clock.advance(LONG_MS)

    wait_for_state(engines.path, second, State.RUNNING)
    assert full
    gate.open()
    wait_for_ends(engines.path)
    engines.stop(engine)


def test_the_next_has_its_turn_where_a_newer_job_took_the_place_of_the_one_before(
    engines: Engines, tasks: Registry, gate: Gate
) -> None:
    clock = FakeClock()
    first, second, third = crashed(engines, tasks, clock, "hold", "newest", "hold")
    engine = engines(tasks, clock=clock, workers=1)
    wait_for_state(engines.path, first, State.RUNNING)
    clock.advance(LONG_MS)
    held = row(engines.path, second).seq
    wait_until(lambda: engine.readahead.holds(held), 5, "the second to wait for the worker")
    submit(engine, "newest", {"key": "a"})
    wait_for_state(engines.path, second, State.CANCELLED)
    gate.open()

    wait_for_state(engines.path, third, State.COMPLETED)
    wait_for_ends(engines.path)
    engines.stop(engine)


def test_the_next_has_its_turn_where_all_were_to_go_back_to_the_queue_and_that_was_rolled_back(
    engines: Engines, tasks: Registry, gate: Gate
) -> None:
    clock = FakeClock()
    first, second = crashed(engines, tasks, clock, "hold", "hold")
    engine = engines(tasks, clock=clock)
    wait_for_state(engines.path, first, State.RUNNING)

    def undone(tx: Transaction) -> None:
        engine.jobs.give_back_all(tx)
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        verb(engine, undone)
    gate.open()

    wait_for_state(engines.path, second, State.COMPLETED)
    wait_for_ends(engines.path)
    engines.stop(engine)
