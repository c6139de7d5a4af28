"""Rules kept by the claim: what begins, what waits, what is cancelled, in which order. The model of it is test_rules_model."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from typing import Any

import pytest

from miniflow import task
from miniflow.control import QueueChange, TaskChange, change_queue, change_task
from miniflow.engine import Engine
from miniflow.errors import JobCancelled
from miniflow.explain import explain
from miniflow.registry import Registry, collecting
from miniflow.states import State
from tests.engines import (
    Engines,
    FakeClock,
    Gate,
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
from tests.waiting import wait_until


class Journal:
    """Which jobs began, in order; those named ``slow`` wait at a gate of their key."""

    def __init__(self, engines: Engines) -> None:
        self.began: list[int] = []
        self.gates = {name: engines.gate() for name in ("a", "b")}

    def registry(self, **rules: Any) -> Registry:
        own = Registry()
        with collecting(own):

            @task(**rules)
            def quick(n: int = 0, key: str = "") -> None:
                self.began.append(n)

            @task(**rules)
            def slow(n: int = 0, key: str = "a") -> None:
                self.began.append(n)
                self.gates[key].pass_through()

            @task
            def plain(n: int = 0) -> None:
                self.began.append(n)

        return own

    def arrive(self, key: str = "a") -> None:
        self.gates[key].wait_for_arrival()


@pytest.fixture
def journal(engines: Engines) -> Journal:
    return Journal(engines)


def states(engine: Engine, jobs: list[str]) -> list[str]:
    return [row(engine.database.path, job).state for job in jobs]


# ------------------------------------------------------------------------------------------------------------- concurrency


def test_of_one_key_one_runs_at_a_time_and_other_keys_do_not_wait_for_it(engines: Engines, journal: Journal) -> None:
    engine = engines(journal.registry(concurrency_key="key"), workers=4)
    held = submit(engine, "slow", {"n": 1, "key": "a"})
    journal.arrive()
    waiting = [submit(engine, "slow", {"n": n, "key": "a"}) for n in (2, 3)]
    other = submit(engine, "slow", {"n": 4, "key": "b"})
    journal.arrive("b")

    assert journal.began == [1, 4]
    assert states(engine, [held, *waiting, other]) == ["running", "queued", "queued", "running"]
    for gate in journal.gates.values():
        gate.open()
    wait_for_ends(engine.database.path)
    assert journal.began == [1, 4, 2, 3], "first come, first served"


def test_a_hundred_thousand_blocked_jobs_stand_in_nobodys_way(engines: Engines, journal: Journal) -> None:
    """In small: those of one key are looked at once, and are not in the index that a claim reads after that."""
    engine = engines(journal.registry(concurrency_key="key"), workers=2)
    submit(engine, "slow", {"key": "a"})
    journal.arrive()
    submit_all(engine, [new_job(engine, "slow", {"key": "a"}) for _ in range(3_000)])
    wait_for_state(engine.database.path, submit(engine, "plain", {"n": 7}))

    wait_until(lambda: _ready(engine) == 0)
    wait_for_state(engine.database.path, submit(engine, "quick", {"n": 8, "key": "c"}))
    assert journal.began == [0, 7, 8]
    verb(engine, change_queue(engine.jobs, "default", QueueChange(paused=True)))


def _ready(engine: Engine) -> int:
    settle(engine)
    count = "SELECT count(*) FROM jobs WHERE state = 'queued' AND lease IS NULL AND blocked IS NULL"
    found: int = verb(engine, lambda tx: tx.run(count)[0][0])
    return found


def test_a_key_of_the_submit_goes_before_that_of_the_task(engines: Engines, journal: Journal) -> None:
    engine = engines(journal.registry(), workers=4)
    submit(engine, "slow", {"key": "a"}, concurrency_key="mine")
    journal.arrive()
    second = submit(engine, "slow", {"key": "b"}, concurrency_key="mine")
    wait_for_state(engine.database.path, submit(engine, "quick", concurrency_key="mine"))

    assert states(engine, [second]) == ["queued"], "keys are of a task"


def test_a_retry_keeps_no_slot_while_it_waits(engines: Engines) -> None:
    own, tries = Registry(), list[int]()
    with collecting(own):

        @task(concurrency_key="key", max_retries=1, retry=[600])
        def shaky(key: str) -> None:
            tries.append(1)
            if len(tries) == 1:
                raise ConnectionError("once")

    engine = engines(own, workers=1)
    first = submit(engine, "shaky", {"key": "a"})
    wait_for_state(engine.database.path, first, State.RETRYING)
    wait_for_state(engine.database.path, submit(engine, "shaky", {"key": "a"}))


def test_slots_come_back_after_a_crash(engines: Engines, journal: Journal) -> None:
    engine = engines(journal.registry(concurrency=1), workers=2)
    jobs = [submit(engine, "slow", {"n": n}) for n in (1, 2)]
    journal.arrive()
    wait_for_state(engine.database.path, jobs[0], State.RUNNING)
    engines.crash(engine)

    journal.gates["a"].open()
    engine = engines(journal.registry(concurrency=1), workers=2)
    wait_for_ends(engine.database.path)
    assert states(engine, jobs) == ["completed", "completed"]


def test_a_queue_limit_leaves_the_order_of_the_queue_as_it_is(engines: Engines, journal: Journal) -> None:
    engine = engines(journal.registry(), workers=4)
    verb(engine, change_queue(engine.jobs, "default", QueueChange(concurrency=1)))
    submit(engine, "slow", {"n": 0})
    journal.arrive()
    for n, priority in ((1, 0), (2, 5), (3, 0), (4, 5)):
        submit(engine, "plain", {"n": n}, priority=priority)
    journal.gates["a"].open()
    wait_for_ends(engine.database.path)
    assert journal.began == [0, 2, 4, 1, 3]


# --------------------------------------------------------------------------------------------------------------- conflicts


def conflict(engines: Engines, journal: Journal, policy: str) -> tuple[Engine, list[str]]:
    engine = engines(journal.registry(concurrency_key="key", on_conflict=policy), workers=4)
    jobs = [submit(engine, "slow", {"n": 1, "key": "a"})]
    journal.arrive()
    wait_for_state(engine.database.path, jobs[0], State.RUNNING)
    jobs += [submit(engine, "slow", {"n": n, "key": "a"}) for n in (2, 3)]
    settle(engine)
    return engine, jobs


def test_skip_cancels_what_comes_while_the_slots_are_taken_and_says_so(engines: Engines, journal: Journal) -> None:
    engine, jobs = conflict(engines, journal, "skip")
    for job in jobs[1:]:
        wait_for_state(engine.database.path, job)
    assert states(engine, jobs) == ["running", "cancelled", "cancelled"]
    error = row(engine.database.path, jobs[1]).last_error or ""
    assert error == "skipped: the slots of key 'a' of task slow were taken when its turn came"


def test_keep_newest_cancels_those_that_waited_before_it(engines: Engines, journal: Journal) -> None:
    engine, jobs = conflict(engines, journal, "keep_newest")
    wait_for_state(engine.database.path, jobs[1])
    assert states(engine, jobs) == ["running", "cancelled", "queued"]
    assert (row(engine.database.path, jobs[1]).last_error or "").startswith("superseded: a newer job waits for key 'a'")
    journal.gates["a"].open()
    wait_for_ends(engine.database.path)
    assert journal.began == [1, 3]


def test_cancel_running_asks_the_one_that_has_the_slot_to_stop(engines: Engines) -> None:
    own, gate, began = Registry(), engines.gate(), list[int]()
    with collecting(own):

        @task(concurrency_key="key", on_conflict="cancel_running")
        async def report(n: int, key: str) -> int:
            began.append(n)
            if n == 1:
                gate.here.release()
                await asyncio.sleep(60)
            return n

    engine = engines(own, workers=1)
    first = submit(engine, "report", {"n": 1, "key": "a"})
    gate.wait_for_arrival()  # its row says that it runs a moment before its body does
    second = submit(engine, "report", {"n": 2, "key": "a"})
    wait_for_ends(engine.database.path)

    assert states(engine, [first, second]) == ["cancelled", "completed"]
    assert began == [1, 2]
    said = f"replaced: newer job {second} wanted its slot of key 'a' of task report"
    assert row(engine.database.path, first).last_error == said
    told = verb(engine, explain(engine.jobs, engine.roster, engine.clock, first))
    assert told.reasons[0].text.endswith(f": {said}")
    assert "asked for" not in told.reasons[0].text


def test_cancel_running_lets_the_newest_have_the_slot_of_one_that_takes_its_time_to_stop(engines: Engines) -> None:
    own, gate, began = Registry(), engines.gate(), list[int]()
    with collecting(own):

        @task(concurrency_key="key", on_conflict="cancel_running")
        def deaf(n: int, key: str) -> int:
            began.append(n)
            while n == 1:
                with suppress(JobCancelled):
                    gate.pass_through()
                    break
            return n

    engine = engines(own, workers=2, stop_grace=60)
    first = submit(engine, "deaf", {"n": 1, "key": "a"})
    gate.wait_for_arrival()
    others = [submit(engine, "deaf", {"n": n, "key": "a"}) for n in range(2, 6)]
    for one in others[:-1]:
        wait_for_state(engine.database.path, one, State.CANCELLED)
    told = [verb(engine, explain(engine.jobs, engine.roster, engine.clock, one)).text for one in (first, others[-1])]
    assert f"(replaced: newer job {others[0]} wanted its slot of key 'a' of task deaf) and has not ended yet" in told[0]
    assert f"is held by {first}, which was asked to stop; it is the next" in told[1]
    gate.open()
    wait_for_ends(engine.database.path)

    assert states(engine, [first, *others])[1:] == ["cancelled"] * 3 + ["completed"]
    assert began == [1, 5]
    for one, newer in itertools.pairwise(others):
        said = f"cancelled before it began: newer job {newer} wanted its slot of key 'a' of task deaf"
        assert row(engine.database.path, one).last_error == said


def test_a_job_that_waits_for_a_skipped_one_is_told(engines: Engines, journal: Journal) -> None:
    engine, _ = conflict(engines, journal, "skip")
    parent = submit(engine, "slow", {"n": 4, "key": "a"}, delay=0.05)
    child = submit(engine, "plain", depends_on=[parent])
    wait_for_state(engine.database.path, child)
    assert states(engine, [parent, child]) == ["cancelled", "cancelled"]
    assert "skipped" in (row(engine.database.path, child).last_error or "")


# ------------------------------------------------------------------------------------------------------------------- rates


def test_no_more_begin_in_any_period_than_the_rate_says(engines: Engines, journal: Journal) -> None:
    clock = FakeClock()
    engine = engines(journal.registry(rate="2/10s"), workers=4, clock=clock)
    for n in range(5):
        submit(engine, "quick", {"n": n})
    completed = "state = 'completed'"  # by then it is counted that they began, which it may not be when they do
    wait_until(lambda: len(rows(engine.database.path, completed)), until=(2).__eq__)
    clock.advance(9_999)
    settle(engine)
    wait_for_state(engine.database.path, submit(engine, "plain", {"n": 99}))
    assert (set(journal.began[:2]), journal.began[2:]) == ({0, 1}, [99])  # two workers may note theirs in either order
    clock.advance(1)
    settle(engine)
    wait_until(lambda: len(journal.began) == 5)
    assert set(journal.began[3:]) == {2, 3}


def test_a_rate_is_remembered_over_a_restart(engines: Engines, journal: Journal) -> None:
    clock = FakeClock()
    engine = engines(journal.registry(rate="2/100s"), workers=4, clock=clock)
    for n in range(2):
        wait_for_state(engine.database.path, submit(engine, "quick", {"n": n}))
    engines.stop(engine)

    engine = engines(journal.registry(rate="2/100s"), workers=4, clock=clock)
    third = submit(engine, "quick", {"n": 2})
    wait_for_state(engine.database.path, submit(engine, "plain"))
    assert states(engine, [third]) == ["queued"]
    clock.advance(102_001)  # what began is remembered by the fiftieth of the period
    settle(engine)
    wait_for_state(engine.database.path, third)


# ------------------------------------------------------------------------------------------------------------------ ageing


def flood(engines: Engines, journal: Journal, **settings: Any) -> tuple[Engine, FakeClock]:
    """A low job has waited for two minutes while urgent ones come all the time."""
    clock = FakeClock()
    engine = engines(journal.registry(), workers=1, clock=clock, **settings)
    engine.readahead.target = engine.readahead.target_max = 2
    submit(engine, "slow", {"n": 0}, priority=9)
    journal.arrive()
    submit(engine, "plain", {"n": 1}, priority=-1)
    clock.advance(120_000)
    for n in range(2, 12):
        submit(engine, "plain", {"n": n}, priority=0)
    journal.gates["a"].open()
    return engine, clock


def test_a_job_that_has_waited_long_goes_before_those_of_a_higher_priority(engines: Engines, journal: Journal) -> None:
    engine, _ = flood(engines, journal, priority_ageing=60)
    wait_for_ends(engine.database.path)
    assert journal.began.index(1) <= 3, "two steps gained in two minutes: as soon as it is claimed anew"
    assert [n for n in journal.began if n != 1] == [0, *range(2, 12)]


def test_without_ageing_it_waits_for_all_of_them(engines: Engines, journal: Journal) -> None:
    engine, _ = flood(engines, journal, priority_ageing=0)
    wait_for_ends(engine.database.path)
    assert journal.began[-1] == 1


# ------------------------------------------------------------------------------------------------------------- the plain way


def test_where_there_are_no_rules_a_claim_asks_for_nothing(engines: Engines, journal: Journal) -> None:
    engine = engines(journal.registry(), workers=1)
    wait_for_state(engine.database.path, submit(engine, "plain"))
    assert engine.jobs.rules.quiet
    assert not engine.jobs.rules.gates.holds

    verb(engine, change_task(engine.jobs, "plain", TaskChange(concurrency=1)))
    assert not engine.jobs.rules.quiet
    verb(engine, change_task(engine.jobs, "plain", TaskChange(concurrency=None)))
    assert engine.jobs.rules.quiet


def test_a_pause_alone_is_no_rule_of_the_claim(engines: Engines, journal: Journal) -> None:
    engine = engines(journal.registry(), workers=1)
    verb(engine, change_queue(engine.jobs, "mail", QueueChange(paused=True)))
    assert engine.jobs.rules.quiet


def test_rows_that_a_rule_blocked_are_let_through_when_the_rule_is_gone(engines: Engines, journal: Journal) -> None:
    gate: Gate = journal.gates["a"]
    engine = engines(journal.registry(concurrency=1), workers=2)
    submit(engine, "slow", {"n": 1})
    journal.arrive()
    waiting = submit(engine, "slow", {"n": 2})
    wait_until(lambda: _ready(engine) == 0)
    gate.open()
    engines.stop(engine, 0)

    engine = engines(journal.registry(), workers=2)
    wait_for_ends(engine.database.path)
    assert states(engine, [waiting]) == ["completed"]
    assert not rows(engine.database.path, "state <> 'completed'")
