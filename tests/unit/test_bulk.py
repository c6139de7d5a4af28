"""Bulk verbs on jobs that change between being found and being moved, and the size of the steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import pytest

from miniflow import bulk, filters
from miniflow.bulk import BulkVerb, Outcome
from miniflow.engine import Engine
from miniflow.errors import InvalidRequest
from miniflow.filters import Filter, parse
from miniflow.listing import Found, Listing
from miniflow.readers import Readers
from miniflow.states import State
from miniflow.web import jobs as routes
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
    wait_for_state,
)

BOUND_S = 30


class Fickle:
    """A task that fails until it is told not to."""

    def __init__(self) -> None:
        self.fails = True

    def fickle(self) -> None:
        if self.fails:
            raise ValueError("no")


def act(
    engine: Engine,
    what: BulkVerb,
    which: Filter | list[str],
    between: Callable[[], object] = lambda: None,
    steps: list[int] | None = None,
) -> Outcome:
    """Do ``what``; ``between`` is run when the jobs are found and none is moved. ``steps`` gets how many each step did."""

    async def late(found: AsyncIterator[Found]) -> AsyncIterator[Found]:
        async for part in found:
            await asyncio.to_thread(between)
            yield part

    async def call(step: Callable[..., Any]) -> Any:
        done = await asyncio.to_thread(verb, engine, step)
        if steps is not None:
            steps.append(done[0])
        return done

    async def run() -> Outcome:
        readers = Readers(engine.database.path)
        await readers.open()
        try:
            listing = Listing(readers, engine.writer)
            by_id = isinstance(which, list)
            found = listing.find_ids(which, what.applies) if by_id else listing.find(which, what.applies)  # type: ignore[arg-type]
            return await asyncio.wait_for(bulk.run(what, engine.jobs, call, late(found)), BOUND_S)
        finally:
            await readers.close()

    return asyncio.run(run())


def ended(engine: Engine, task: str, **options: Any) -> str:
    job_id = submit(engine, task, **options)
    wait_for_state(engine.database.path, job_id)
    return job_id


def noop() -> None: ...


def holding(gate: Gate) -> Callable[[], None]:
    def hold() -> None:
        gate.pass_through()

    return hold


REFUSED = Outcome(matched=1, done=0, refused=1)

# --------------------------------------------------------------------------------------------------- what the filter means


def test_what_waits_is_not_interrupted_when_it_has_begun_before_its_step(engines: Engines) -> None:
    gate, clock = engines.gate(), FakeClock()
    engine = engines([holding(gate)], workers=1, clock=clock)
    job_id = submit(engine, "hold", delay=60)

    def begin() -> None:
        clock.advance(60_000)
        settle(engine)
        gate.wait_for_arrival()
        wait_for_state(engines.path, job_id, State.RUNNING)

    assert act(engine, bulk.CANCEL, parse(status="waiting"), begin) == REFUSED

    assert row(engines.path, job_id).cancel_requested_at is None
    gate.open()
    assert wait_for_state(engines.path, job_id).state == "completed"


def test_what_a_worker_has_just_taken_runs_though_the_file_does_not_know(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines([holding(gate), noop], workers=1)
    submit(engine, "hold")
    gate.wait_for_arrival()
    job_id = submit(engine, "noop")
    seq = row(engines.path, job_id).seq
    taken = engine.readahead.discard(seq)
    assert taken is not None

    assert act(engine, bulk.CANCEL, parse(status="waiting", task="noop")) == REFUSED
    assert row(engines.path, job_id).cancel_requested_at is None
    assert act(engine, bulk.CANCEL, parse(task="noop")) == Outcome(matched=1, done=1)
    assert row(engines.path, job_id).cancel_requested_at is not None

    engine.readahead.push([taken])
    gate.open()
    wait_for_state(engines.path, job_id)


@pytest.mark.parametrize("q", [None, "id", "key"])
def test_a_dead_letter_that_was_replayed_and_has_completed_is_not_deleted_with_the_failed(
    engines: Engines, q: str | None
) -> None:
    task = Fickle()
    engine = engines([task.fickle], workers=1)
    job_id = ended(engine, "fickle", idempotency_key="k", max_retries=0)

    def replay() -> None:
        task.fails = False
        verb(engine, engine.jobs.retry(job_id))
        wait_for_state(engines.path, job_id, State.COMPLETED)

    text = {None: None, "id": f"id:{job_id}", "key": "key:k"}[q]
    assert act(engine, bulk.DELETE, parse(status="failed", q=text), replay) == REFUSED
    assert row(engines.path, job_id).state == "completed"
    assert act(engine, bulk.DELETE, parse(status="completed", q=text)).done == 1
    assert rows(engines.path) == []


@pytest.mark.parametrize("how", ["ids", "filter", "all"])
def test_a_new_job_in_the_row_of_one_that_was_deleted_is_left_alone(engines: Engines, how: str) -> None:
    engine = engines([noop], workers=1)
    old = ended(engine, "noop")
    seq = row(engines.path, old).seq
    which: Filter | list[str] = {"ids": [old], "filter": parse(task="noop"), "all": Filter()}[how]
    new: list[str] = []

    def replace() -> None:
        verb(engine, bulk.delete_one(old))
        new.append(ended(engine, "noop"))

    assert act(engine, bulk.DELETE, which, replace) == REFUSED
    assert [(job.seq, job.id) for job in rows(engines.path)] == [(seq, new[0])]


def test_a_filter_that_comes_to_nothing_by_whatever_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "parse", lambda **_: Filter())

    with pytest.raises(InvalidRequest, match='"all": true') as caught:
        routes._parse(routes.BulkFilter(q="x"))
    assert caught.value.field == "filter"


# ------------------------------------------------------------------------------------------------------------------- steps


def test_the_first_step_is_small_and_the_next_at_most_twice_as_large(engines: Engines) -> None:
    engine = engines([noop], workers=0)
    accepted = submit_all(engine, [new_job(engine, "noop") for _ in range(300)])
    steps: list[int] = []

    assert act(engine, bulk.CANCEL, Filter(), steps=steps).done == len(accepted)

    assert steps[0] == 16
    assert all(after <= 2 * before for before, after in pairwise(steps))
    assert cancel(engine, accepted[0].id) is State.CANCELLED
