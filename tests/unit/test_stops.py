"""What a stop meets in the midst of something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from miniflow.attempts import Attempt
from miniflow.engine import Engine
from miniflow.operations import Operation
from miniflow.states import State
from tests.engines import Engines, Gate, row, submit


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as made:
        yield made


def work() -> None:
    """Ends at once."""


def hold_ends(engine: Engine, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has an end to hand to the writer stands still just before it does."""
    post = engine.writer.post

    def late(*operations: Operation) -> None:
        if operations[0].kind == "end":
            gate.pass_through()
        post(*operations)

    monkeypatch.setattr(engine.writer, "post", late)


def test_a_stop_waits_for_the_end_of_a_job_that_is_on_its_way_to_the_writer(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, begun = engines.gate(), []

    def once() -> None:
        begun.append(1)

    engine = engines(once)
    hold_ends(engine, gate, monkeypatch)
    job_id = submit(engine, "once")
    gate.wait_for_arrival()
    engine.stop_taking()
    assert not engine.wait_for_running(0), "its end is not in the hands of the writer"
    gate.open()
    assert engines.stop(engine) == 0

    job = row(engines.path, job_id)
    assert (job.state, job.attempt, job.crashes) == (State.COMPLETED, 1, 0)
    assert engines(once).recovered == (0, 0, 0)
    assert begun == [1]


def test_a_stop_whose_grace_is_over_waits_for_an_end_that_is_on_its_way(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of the job may stand still between its end and the handing over of it."""
    gate = engines.gate()
    engine = engines(work)
    hold_ends(engine, gate, monkeypatch)
    wait_for_ends = engine.running.wait_for_ends

    def ends_now(attempts: list[Attempt]) -> None:
        gate.open()
        wait_for_ends(attempts)

    monkeypatch.setattr(engine.running, "wait_for_ends", ends_now)
    job_id = submit(engine, "work")
    gate.wait_for_arrival()
    assert engines.stop(engine, 0) == 0
    assert row(engines.path, job_id).state == State.COMPLETED
