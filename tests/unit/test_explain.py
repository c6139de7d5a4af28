"""Why a job does not run, in words: for each thing that can keep it, what is said, and that it is so."""

from __future__ import annotations

import asyncio
import re

import msgspec
import pytest

from miniflow import explain, task
from miniflow.clock import rfc3339
from miniflow.control import PoolSizeChange, QueueChange, TaskChange, change_queue, change_task
from miniflow.engine import Engine
from miniflow.errors import NotFound
from miniflow.explain import Explanation
from miniflow.registry import Registry, collecting
from miniflow.states import State
from miniflow.workflow_graph import definition_of
from tests.engines import Engines, FakeClock, Gate, cancel, claim_ahead, row, rows, settle, submit, verb, wait_for_state
from tests.waiting import wait_until
from tests.workflows import ended, start, step_job


def tasks(gate: Gate) -> Registry:
    own = Registry()
    with collecting(own):

        @task
        def noop() -> None: ...

        @task(concurrency=2)
        def hold() -> None:
            gate.pass_through()

        @task(concurrency_key="customer")
        def bill(customer: str) -> None:
            gate.pass_through()

        @task(rate="2/minute")
        def call() -> None: ...

        @task(max_retries=0)
        def bad() -> None:
            raise ValueError("no such customer\nmore of it")

        @task(max_retries=3, retry=[600])
        def again() -> None:
            raise ConnectionError("nobody answered")

        @task
        async def call_out() -> None:
            await asyncio.to_thread(gate.pass_through)

        @task(heartbeat=5, on_stall="warn", timeout=0)
        def silent() -> None:
            gate.pass_through()

    return own


def why(engine: Engine, job_id: str) -> Explanation:
    found: Explanation = verb(engine, explain.explain(engine.jobs, engine.roster, engine.clock, job_id))
    assert found.id == job_id
    assert found.status == row(engine.database.path, job_id).state
    assert found.text
    return found


def codes(engine: Engine, job_id: str) -> list[str]:
    return [reason.code for reason in why(engine, job_id).reasons]


@pytest.fixture
def gate(engines: Engines) -> Gate:
    return engines.gate()


def test_a_job_that_is_not_there(engines: Engines, gate: Gate) -> None:
    with pytest.raises(NotFound):
        why(engines(tasks(gate), workers=0), "nobody")


def test_slots_that_others_hold_are_named(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=4)
    holders = [submit(engine, "hold") for _ in range(2)]
    for _ in holders:
        gate.wait_for_arrival()
    first, second = submit(engine, "hold"), submit(engine, "hold")

    (reason,) = why(engine, first).reasons
    assert (reason.code, reason.jobs) == ("slots_taken", holders)
    assert reason.text == f"2 of 2 slots of task hold are held by {holders[0]}, {holders[1]}; it is the next"
    assert why(engine, second).reasons[0].text.endswith("; 1 job waits for one before it")
    gate.open()
    wait_for_state(engine.database.path, second)


def test_a_slot_of_a_key_is_named_by_the_key(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=4)
    holder = submit(engine, "bill", {"customer": "ada"})
    gate.wait_for_arrival()
    waiting = submit(engine, "bill", {"customer": "ada"})

    (reason,) = why(engine, waiting).reasons
    assert reason.text == f"1 of 1 slot of key 'ada' of task bill is held by {holder}; it is the next"


def test_a_queue_limit_and_a_task_limit_are_both_said(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=4)
    verb(engine, change_queue(engine.jobs, "mail", QueueChange(concurrency=2)))
    for _ in range(2):
        submit(engine, "hold", queue="mail")
        gate.wait_for_arrival()

    texts = [reason.text for reason in why(engine, submit(engine, "hold", queue="mail")).reasons]
    assert [re.sub(" (is|are) held.*", "", text) for text in texts] == [
        "2 of 2 slots of queue mail",
        "2 of 2 slots of task hold",
    ]


def test_a_rate_says_when_it_frees_and_that_is_when_it_begins(engines: Engines, gate: Gate) -> None:
    clock = FakeClock()
    engine = engines(tasks(gate), workers=1, clock=clock)
    for _ in range(2):
        wait_for_state(engine.database.path, submit(engine, "call"))
    waiting = submit(engine, "call")
    settle(engine)

    (reason,) = why(engine, waiting).reasons
    assert reason.code == "rate_used"
    assert reason.text.startswith("the rate 2/minute of task call is used up: 2 began; it frees at ")
    assert reason.at == rfc3339(clock.now_ms() + 60_000)
    clock.advance(59_999)
    settle(engine)
    assert codes(engine, waiting) == ["rate_used"]
    clock.advance(1)
    settle(engine)
    wait_for_state(engine.database.path, waiting)


def test_a_paused_queue(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=1)
    verb(engine, change_queue(engine.jobs, "mail", QueueChange(paused=True)))
    job = submit(engine, "noop", queue="mail")

    assert codes(engine, job) == ["queue_paused"]
    assert "miniflow resume mail" in why(engine, job).text
    assert codes(engine, submit(engine, "noop", queue="mail", delay=60)) == ["not_due", "queue_paused"]


def test_a_queue_that_nobody_serves(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=1, queues="high,default")
    found = why(engine, submit(engine, "noop", queue="mail"))
    assert found.reasons[0].text == "no worker serves queue mail: the setting queues is high, default"
    assert codes(engine, submit(engine, "noop", queue="mail")) == ["queue_not_served"]


def test_no_workers_and_a_place_in_the_queue(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=0)
    assert codes(engine, submit(engine, "noop")) == ["no_workers"]


def test_busy_workers_and_how_many_are_before_it(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=1)
    submit(engine, "hold")
    gate.wait_for_arrival()
    claim_ahead(engine, 2)
    submitted = [submit(engine, "noop") for _ in range(5)]
    wait_until(lambda: len(engine.readahead) > 0)
    held = [engine.readahead.holds(row(engine.database.path, one).seq) for one in submitted]

    assert codes(engine, submitted[0]) == ["claimed"]
    assert "1 of 1 worker is busy" in why(engine, submitted[0]).text
    before = len(submitted) - 1 - held.index(False)
    assert before > 0
    jobs = "job" if before == 1 else "jobs"
    assert (
        f"{before} {jobs} in queue default {'is' if before == 1 else 'are'} before it"
        in why(engine, submitted[-1]).text
    )


def test_a_claimed_job_is_next_only_where_no_other_is_before_it(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=1)
    running = submit(engine, "hold")
    gate.wait_for_arrival()
    first, _, third = [submit(engine, "noop") for _ in range(3)]
    wait_until(lambda: len(engine.readahead), until=(3).__eq__)

    busy = f"1 of 1 worker is busy with {running}; `miniflow scale N`, or the setting workers, lets more run at once"
    (reason,) = why(engine, first).reasons
    assert reason.text == f"it is claimed and next in line for a worker; {busy}"
    assert reason.jobs == [running]
    assert why(engine, third).reasons[0].text == f"it is claimed, and 2 jobs are before it in line for a worker; {busy}"


def test_a_coroutine_waits_for_an_async_slot_whatever_the_workers_do(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=4, async_slots=2)
    running = {submit(engine, "call_out") for _ in range(2)}
    for _ in running:
        gate.wait_for_arrival()
    waiting, behind = submit(engine, "call_out"), submit(engine, "call_out")
    wait_until(lambda: len(engine.readahead), until=(2).__eq__)

    (reason,) = why(engine, waiting).reasons
    assert set(reason.jobs) == running
    assert reason.text == (
        f"it is claimed and next in line for an async slot; 2 of 2 async slots are taken by {', '.join(reason.jobs)}; "
        "`miniflow scale --async-slots N`, or the setting async_slots, lets more run at once"
    )
    assert "1 job is before it in line for an async slot" in why(engine, behind).text


def test_a_job_that_is_not_claimed_is_told_of_the_slots_it_will_need(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=1, async_slots=1)
    _, running = submit(engine, "hold"), submit(engine, "call_out")
    for _ in range(2):
        gate.wait_for_arrival()
    claim_ahead(engine, 2)
    submitted = [submit(engine, "call_out") for _ in range(6)]
    wait_until(lambda: len(engine.readahead) > 0)

    (reason,) = why(engine, submitted[-1]).reasons
    assert (reason.code, reason.jobs) == ("in_line", [running])
    assert f"; 1 of 1 async slot is taken by {running}; " in reason.text


def test_jobs_of_workers_that_are_too_many_have_to_end_first(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=2)
    running = {submit(engine, "hold") for _ in range(2)}
    for _ in running:
        gate.wait_for_arrival()
    waiting = submit(engine, "noop")
    verb(engine, engine.pool.resize(PoolSizeChange(workers=1)))
    wait_until(lambda: engine.readahead.place(row(engine.database.path, waiting).seq) is not None)

    (reason,) = why(engine, waiting).reasons
    assert set(reason.jobs) == running
    assert reason.text == (
        f"it is claimed and next in line for a worker; 2 jobs run ({', '.join(reason.jobs)}), and 1 at a time may when they "
        "have ended: there is 1 worker now; `miniflow scale N`, or the setting workers, lets more run at once"
    )


def test_jobs_that_it_waits_for(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=1)
    parent = submit(engine, "noop", delay=600)
    found = why(engine, submit(engine, "noop", depends_on=[parent], delay=60))

    assert [reason.code for reason in found.reasons] == ["waits_for_jobs", "not_due"]
    assert found.reasons[0].jobs == [parent]
    assert found.reasons[0].text == f"it waits for 1 job to end: {parent} (noop, scheduled)"
    many = [submit(engine, "noop", delay=600) for _ in range(13)]
    found = why(engine, submit(engine, "noop", depends_on=many))
    assert found.reasons[0].jobs == many[:10]
    assert found.reasons[0].text.endswith("and 3 more")


def test_what_is_due_later(engines: Engines, gate: Gate) -> None:
    clock = FakeClock()
    engine = engines(tasks(gate), workers=1, clock=clock)
    job = submit(engine, "noop", delay=90)

    (reason,) = why(engine, job).reasons
    assert reason.at == rfc3339(clock.now_ms() + 90_000)
    assert reason.text == f"it is due at {reason.at}, in 90 s"


def test_an_attempt_that_failed_and_the_next_one(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=1)
    job = submit(engine, "again")
    wait_for_state(engine.database.path, job, State.RETRYING)

    found = why(engine, job)
    assert found.reasons[0].code == "retry_due"
    assert found.text.startswith("Attempt 1 failed (")
    assert "nobody answered" in found.text
    assert found.next == "Then it is attempt 2 of 4"


def test_a_running_job_and_one_that_was_asked_to_stop(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=1, stop_grace=60)
    job = submit(engine, "hold", timeout=60)
    gate.wait_for_arrival()
    wait_for_state(engine.database.path, job, State.RUNNING)

    assert codes(engine, job) == ["running"]
    assert why(engine, job).next.startswith("It is stopped if it has not ended by ")
    cancel(engine, job)
    assert codes(engine, job) == ["running", "cancelling"]


def test_a_running_job_that_is_over_its_timeout(engines: Engines, gate: Gate) -> None:
    clock = FakeClock()
    engine = engines(tasks(gate), workers=1, clock=clock)
    job = submit(engine, "hold", timeout=60)
    gate.wait_for_arrival()
    wait_for_state(engine.database.path, job, State.RUNNING)
    engine.supervisor.stop()  # which would stop it
    clock.advance(61_000)
    assert codes(engine, job) == ["running", "timed_out"]
    assert why(engine, job).next.startswith("The attempt has failed when it has stopped; ")
    assert "is over its timeout since" in why(engine, job).text


def test_a_running_job_that_is_stalled(engines: Engines, gate: Gate) -> None:
    clock = FakeClock()
    engine = engines(tasks(gate), workers=1, clock=clock)
    job = submit(engine, "silent")
    gate.wait_for_arrival()
    engine.supervisor.stop()  # it looks when the test lets time pass
    for _ in range(30):
        clock.advance(200)
        engine.supervisor.tick(clock.boot_ms())
    wait_until(lambda: codes(engine, job), until=["running", "stalled"].__eq__)
    assert why(engine, job).next == "It has no timeout"


def test_what_ended_it_and_what_can_be_done(engines: Engines, gate: Gate) -> None:
    clock = FakeClock()
    engine = engines(tasks(gate), workers=1, clock=clock)

    def of(job: str) -> Explanation:
        wait_for_state(engine.database.path, job)
        return why(engine, job)

    assert [reason.code for reason in of(submit(engine, "noop")).reasons] == ["completed"]
    bad = submit(engine, "bad")
    assert f"`miniflow retry {bad}` runs it again" in of(bad).next
    assert "no such customer" in of(bad).text
    assert "more of it" not in of(bad).text
    cancelled = submit(engine, "noop", delay=60)
    cancel(engine, cancelled)
    assert "because it was asked for" in of(cancelled).text
    child = submit(engine, "noop", depends_on=[bad])
    assert bad in of(child).text
    verb(engine, change_queue(engine.jobs, "mail", QueueChange(paused=True)))
    late = submit(engine, "noop", queue="mail", ttl=5)
    assert "and expires if it has not begun by" in why(engine, late).next
    clock.advance(6_000)
    settle(engine)
    assert [reason.code for reason in of(late).reasons] == ["expired"]


def test_a_step_that_ended_badly_is_run_again_with_its_workflow(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate))
    kept = definition_of(msgspec.json.encode({"steps": [{"task": "bad", "name": "inner"}]}))
    verb(engine, engine.definitions.put("nested", kept))
    flow = start(
        engine,
        [
            {"name": "skipped", "task": "noop", "when": "${input.wanted}"},
            {"name": "first", "workflow": "nested"},
            {"name": "second", "task": "noop"},
        ],
        input={"wanted": False},
    )
    assert ended(engine.database.path, flow)[0] == "failed"
    remedy = f"`miniflow workflow retry {flow}` runs workflow flow on from there"
    (inner,) = rows(engine.database.path, "task = 'bad'")
    failed = why(engine, inner.id)
    assert [reason.code for reason in failed.reasons] == ["failed"]
    assert failed.next == f"It does not run again by itself; {remedy}"
    second = why(engine, step_job(engine.database.path, flow, "second"))
    assert second.next == f"It will not run; {remedy}"
    skipped = why(engine, step_job(engine.database.path, flow, "skipped"))
    assert [reason.code for reason in skipped.reasons] == ["skipped"]
    assert "${input.wanted} does not hold" in skipped.text
    assert skipped.text.endswith("That is as good as done.")


def test_a_limit_that_is_raised_is_no_reason_any_more(engines: Engines, gate: Gate) -> None:
    engine = engines(tasks(gate), workers=4)
    for _ in range(2):
        submit(engine, "hold")
        gate.wait_for_arrival()
    waiting = submit(engine, "hold")
    assert codes(engine, waiting) == ["slots_taken"]
    verb(engine, change_task(engine.jobs, "hold", TaskChange(concurrency=3)))
    gate.wait_for_arrival()
    wait_for_state(engine.database.path, waiting, State.RUNNING)
    assert codes(engine, waiting) == ["running"]
