"""The kit for tests of task code: what it promises to those who write them."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from miniflow import (
    BaseJob,
    JobContext,
    JobFailed,
    RetryAfter,
    WorkflowContext,
    current_job,
    registry,
    schedule,
    task,
    workflow,
)
from miniflow.answers import JobExpired, ResultNotReady
from miniflow.clock import ManualClock
from miniflow.control import QueueChange, change_queue
from miniflow.errors import InvalidRequest, MiniFlowError, SettingsError, UnknownTask
from miniflow.huey_adapter import huey
from miniflow.states import State
from miniflow.testing import Harness
from tests.invariants import check_invariants


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Harness]:
    with Harness(tmp_path) as harness:
        yield harness
    check_invariants(tmp_path / "jobs.db", stopped=True)


def test_a_job_runs_when_the_test_says_so_and_in_its_thread(jobs: Harness) -> None:
    ran = []

    @task
    def note(word: str) -> str:
        ran.append((word, threading.current_thread()))
        return word.upper()

    job_id = note.submit("a")
    assert (jobs.job(job_id).status, ran) == (State.QUEUED, [])

    (done,) = jobs.drain()

    assert ran == [("a", threading.current_thread())]
    assert (done.id, done.status, done.result, done.attempt) == (job_id, State.COMPLETED, "A", 1)
    assert jobs.drain() == []


def test_run_is_a_submit_and_the_result(jobs: Harness) -> None:
    @task
    def add(a: int, b: int = 1) -> int:
        return a + b

    assert jobs.run(add, {"a": 2}) == 3
    assert jobs.run("add", {"a": 2, "b": 3}) == 5
    with pytest.raises(InvalidRequest, match=r"payload\.a"):
        jobs.run("add", {"a": "two"})
    with pytest.raises(UnknownTask, match="ad"):
        jobs.run("ad")
    with pytest.raises(TypeError, match="is no task"):
        jobs.run(len)


def test_run_leaves_what_the_job_submits_to_be_looked_at(jobs: Harness) -> None:
    @task
    def mail(to: str) -> None: ...

    @task
    def order(customer: str) -> None:
        mail.submit_with({"delay": 60, "priority": 5}, customer)

    jobs.run(order, {"customer": "ada"})

    waiting = jobs.assert_enqueued(mail, {"to": "ada"}, delay=60, priority=5)
    assert waiting.status == State.SCHEDULED
    assert [job.task for job in jobs.drain(scheduled=True)] == ["mail"]
    jobs.assert_not_enqueued()


def test_the_limits_of_a_task_that_a_test_defines_hold_for_its_first_job(jobs: Harness) -> None:
    @task(rate="2/10m")
    def call() -> None: ...

    @task(concurrency_key="customer", on_conflict="skip")
    def bill(customer: str) -> None:
        if customer == "ada":
            bill.submit("ada")

    for _ in range(3):
        call.submit()
    assert len(jobs.drain()) == 2
    jobs.submit(bill, {"customer": "ada"})
    jobs.drain()
    assert [job.status for job in jobs.jobs(bill)] == [State.COMPLETED, State.CANCELLED]


def test_the_clock_moves_on_to_when_a_rate_frees_until_nothing_waits_for_it(jobs: Harness) -> None:
    @task(rate="2/10m")
    def call(n: int) -> str:
        return str(jobs.clock.now - began)

    @task
    def late() -> str:
        return str(jobs.clock.now - began)

    began = jobs.clock.now
    for n in range(5):
        jobs.submit(call, {"n": n})
    jobs.submit(late, delay=900)
    assert len(jobs.drain()) == 2
    jobs.clock.advance(1)
    assert jobs.drain() == []

    ran = jobs.drain(scheduled=True)
    assert [(job.task, job.result) for job in ran] == [
        ("call", "0:10:00"),
        ("call", "0:10:00"),
        ("late", "0:15:00"),
        ("call", "0:20:00"),
    ]
    assert jobs.clock.now - began == dt.timedelta(minutes=20)


def test_a_run_that_waits_for_a_rate_moves_the_clock_too(jobs: Harness) -> None:
    @task(rate="1/10m")
    def call(n: int) -> int:
        return n

    assert [jobs.run(call, {"n": n}) for n in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("way", ["a paused queue", "cancelled"])
def test_the_clock_stands_still_where_nothing_would_begin_when_a_rate_frees(jobs: Harness, way: str) -> None:
    @task(rate="1/10m")
    def call() -> None: ...

    _, waiting = jobs.submit(call), jobs.submit(call)
    assert len(jobs.drain()) == 1
    engine, before = jobs._running, jobs.clock.now
    paused = change_queue(engine.jobs, "default", QueueChange(paused=True))
    engine.writer.call("verb", engine.jobs.cancel(waiting.id) if way == "cancelled" else paused)

    assert jobs.drain(scheduled=True) == []
    assert jobs.clock.now == before


def test_a_failed_run_raises_with_the_error_and_the_traceback_of_the_task(jobs: Harness) -> None:
    @task(max_retries=0)
    def divide(by: int) -> float:
        return 1 / by

    with pytest.raises(JobFailed, match="ZeroDivisionError: division by zero") as caught:
        jobs.run(divide, {"by": 0})
    assert "return 1 / by" in caught.value.__notes__[0]


def test_retries_wait_until_the_clock_is_moved(jobs: Harness) -> None:
    @task(max_retries=2, retry=[10, 100])
    def flaky() -> int:
        attempt = current_job().attempt
        if attempt < 3:
            raise OSError("not yet")
        return attempt

    job = jobs.submit(flaky)
    (first,) = jobs.drain()
    assert (first.status, first.attempt, first.last_error) == (State.RETRYING, 1, "OSError: not yet")
    jobs.clock.advance(9.999)
    assert jobs.drain() == []
    jobs.clock.advance(0.001)
    assert [ran.status for ran in jobs.drain()] == [State.RETRYING]
    jobs.assert_enqueued(flaky, delay=100, status="retrying")
    jobs.clock.advance(dt.timedelta(seconds=100))
    assert [ran.result for ran in jobs.drain()] == [3]
    assert jobs.job(job).attempt == 3


def test_run_and_a_drain_of_what_is_scheduled_move_the_clock_themselves(jobs: Harness) -> None:
    asked = []

    @task(max_retries=1)
    def later() -> None:
        asked.append(jobs.clock.now)
        if len(asked) == 1:
            raise RetryAfter(3600)

    began = jobs.clock.now
    jobs.run(later, delay=60)
    assert [(at - began).total_seconds() for at in asked] == [60, 3660]


def test_a_job_expires_with_the_clock(jobs: Harness) -> None:
    @task(ttl=30)
    def urgent() -> None: ...

    late, in_time = jobs.submit(urgent), jobs.submit(urgent, ttl=31)
    jobs.clock.advance(30)
    assert jobs.job(late).status == State.EXPIRED
    assert [ran.id for ran in jobs.drain()] == [in_time.id]


def test_the_clock_of_a_test_goes_forward_only() -> None:
    clock = ManualClock()
    began = clock.now
    clock.advance(1.5, minutes=1)
    clock.advance_to(began + dt.timedelta(days=2))
    assert clock.now - began == dt.timedelta(days=2)
    with pytest.raises(ValueError, match="forward only"):
        clock.advance(-1)
    with pytest.raises(ValueError, match="172800 s back"):
        clock.advance_to(began)


def test_jobs_run_in_the_order_of_the_server(jobs: Harness) -> None:
    ran = []

    @task
    def step(name: str) -> None:
        ran.append(name)
        if name == "first":
            step.submit_with({"priority": 10}, "urgent")

    @task
    async def coroutine(name: str) -> None:
        await asyncio.sleep(0)
        ran.append(name)

    parent = step.submit("first")
    coroutine.submit("second")
    step.submit_with({"depends_on": parent}, "after first")
    step.submit("third")
    jobs.drain()
    assert ran == ["first", "urgent", "second", "third", "after first"]


def test_inline_jobs_run_within_their_submit(tmp_path: Path) -> None:
    with Harness(tmp_path, inline=True) as jobs:
        ran = []

        @task
        def inner(n: int) -> None:
            ran.append(n)

        @task
        def outer() -> None:
            inner.submit(1)
            ran.append(2)
            inner.submit_with({"delay": 5}, 3)

        job_id = outer.submit()
        assert ran == [1, 2]
        assert jobs.job(job_id).status == State.COMPLETED
        jobs.assert_enqueued(inner, {"n": 3}, delay=5)
    check_invariants(tmp_path / "jobs.db", stopped=True)


async def _in_an_async_test(jobs: Harness) -> object:
    return jobs.run("coroutine")


def test_async_tasks_run_in_async_tests_too(jobs: Harness) -> None:
    @task
    async def coroutine() -> str:
        await asyncio.sleep(0)
        return current_job().task

    assert jobs.run(coroutine) == "coroutine"
    assert asyncio.run(_in_an_async_test(jobs)) == "coroutine"


def test_a_task_for_a_process_runs_in_the_thread_of_the_test(jobs: Harness) -> None:
    @task(executor="process")
    def where(n: int, job: JobContext) -> list[object]:
        return [n, job.task, threading.get_ident()]

    assert jobs.run(where, {"n": 1}) == [1, "where", threading.get_ident()]


def test_a_durable_function_runs_through_its_sleeps_and_waits_for_the_events_of_the_test(jobs: Harness) -> None:
    done: list[str] = []

    @workflow
    def trial(ctx: WorkflowContext, days: int) -> str:
        ctx.step(done.append, "begun")
        ctx.sleep(dt.timedelta(days=days))
        return f"asked after {days} days: {ctx.wait_event('answer')}"

    run = jobs.submit(trial, {"days": 30})
    (asleep,) = jobs.drain()
    assert (asleep.status, asleep.scheduled_at) == (State.SCHEDULED, jobs.clock.now + dt.timedelta(days=30))
    jobs.clock.advance(dt.timedelta(days=30))
    jobs.drain()
    jobs.send_event(run, "answer", "yes")
    jobs.drain()
    assert (jobs.job(run).result, done) == ("asked after 30 days: yes", ["begun"])

    other = trial.start({"days": 1})
    jobs.send_event(other, "answer", "early")
    assert jobs.drain(scheduled=True)[-1].result == "asked after 1 days: early"
    with pytest.raises(ResultNotReady):
        jobs.run(trial, {"days": 1})


def test_classes_and_tasks_of_huey_are_tasks_as_well(jobs: Harness) -> None:
    class Mail(BaseJob):
        to: str
        queue = "mail"

        def _perform(self) -> str:
            return self.to

    @huey.task(name="old")
    def old(n: int) -> int:
        return n + 1

    Mail.dispatch(to="ada")
    result = old(1)
    assert jobs.assert_enqueued(Mail, {"to": "ada"}, queue="mail").task == "Mail"
    assert len(jobs.drain()) == 2
    assert jobs.jobs(old)[0].result == result.get() == 2


def test_what_a_job_says_is_in_its_log(jobs: Harness) -> None:
    @task
    def talk() -> None:
        print("printed")
        logging.getLogger("shop").warning("logged")
        current_job().log("said")

    job = jobs.submit(talk)
    assert jobs.logs(job) == []
    jobs.drain()
    assert {(line.level, line.message) for line in jobs.logs(job)} == {
        ("INFO", "printed"),
        ("WARNING", "logged"),
        ("INFO", "said"),
    }


def test_a_failed_assertion_says_what_there_is(jobs: Harness) -> None:
    @task
    def mail(to: str) -> None: ...

    mail.submit("ada")
    jobs.drain()
    mail.submit_with({"delay": 90}, "bob")
    with pytest.raises(AssertionError) as caught:
        jobs.assert_enqueued(mail, {"to": "ada"}, queue="mail")
    assert str(caught.value).splitlines() == [
        "expected a job of mail with the payload {'to': 'ada'} with queue='mail' to wait; there are 0",
        "  mail {'to': 'ada'}: completed (queue default, priority 0)",
        "  mail {'to': 'bob'}: scheduled, due in 90 s (queue default, priority 0)",
    ]
    with pytest.raises(AssertionError, match="expected 2 jobs of mail to wait; there are 1"):
        jobs.assert_enqueued(mail, count=2)
    with pytest.raises(AssertionError, match="expected no job of any task to wait; there are 1"):
        jobs.assert_not_enqueued()
    with pytest.raises(UnknownTask, match="did you mean"):
        jobs.assert_not_enqueued("male")  # a typo must not pass
    with pytest.raises(TypeError, match="color is no field"):
        jobs.assert_enqueued(mail, color="red")


def test_run_tells_of_a_job_that_never_ran(jobs: Harness) -> None:
    @task
    def child() -> None: ...

    @task(max_retries=0)
    def parent() -> None:
        jobs.run(child, depends_on=[current_job().job_id])  # which ends when this does

    with pytest.raises(JobExpired):
        jobs.run(child, ttl=5, depends_on=[jobs.submit(child, delay=60).id])
    jobs.submit(parent)
    (ran,) = jobs.drain()[:1]
    assert "has not ended yet, it is pending" in str(ran.last_error)


def test_tasks_that_go_round_in_a_circle_end_the_drain(jobs: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miniflow.testing.JOBS_MAX", 5)

    @task
    def again() -> None:
        again.submit()

    again.submit()
    with pytest.raises(RuntimeError, match="5 jobs ran and there are more"):
        jobs.drain()


def test_what_ends_a_test_is_not_taken_for_a_failure_of_the_job(jobs: Harness) -> None:
    @task
    def interrupted(by_exit: bool) -> None:
        raise SystemExit if by_exit else KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run(interrupted, {"by_exit": False})
    with pytest.raises(JobFailed, match="SystemExit"):
        jobs.run(interrupted, {"by_exit": True}, max_retries=0)


def test_tasks_that_a_test_defines_end_with_it(tmp_path: Path) -> None:
    for n in range(2):
        with Harness(tmp_path / str(n)) as jobs:

            @task
            def one_of_a_test() -> int:
                return n  # noqa: B023 - it runs in this round

            assert jobs.run(one_of_a_test) == n
    assert "one_of_a_test" not in registry.active()
    with pytest.raises(MiniFlowError, match="no MiniFlow runs"):
        one_of_a_test.submit()


def test_schedules_do_not_fire_in_a_test(jobs: Harness) -> None:
    @schedule("* * * * *")
    @task
    def nightly() -> str:
        return "done"

    jobs.clock.advance(days=1)
    jobs.assert_not_enqueued()
    assert jobs.run(nightly) == "done"


def test_a_setting_that_is_none_or_not_the_tests_is_refused(tmp_path: Path) -> None:
    with Harness(tmp_path, max_result_bytes=5) as jobs:

        @task(max_retries=0)
        def long() -> str:
            return "longer"

        with pytest.raises(JobFailed, match="max_result_bytes"):
            jobs.run(long)
    with pytest.raises(SettingsError, match="workers"):
        Harness(tmp_path, workers=2)
    with pytest.raises(SettingsError, match="max_resut_bytes"):
        Harness(tmp_path, max_resut_bytes=5)
    with pytest.raises(RuntimeError, match="not open"):
        jobs.drain()
