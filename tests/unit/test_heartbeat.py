"""A job that has promised signs of life, and gives none."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import closing

import apsw
import pytest

from miniflow import current_job, task
from miniflow.attempts import Attempt
from miniflow.context import JobContext
from miniflow.engine import Engine
from miniflow.errors import InvalidRequest
from miniflow.states import State
from miniflow.writer import Transaction
from tests.engines import Engines, FakeClock, Gate, history, new_job, row, submit, submit_all, wait_for_state
from tests.invariants import check_invariants, read
from tests.waiting import PATIENCE, wait_until

LOOK_MS = 200


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gate(engines: Engines) -> Gate:
    return engines.gate()


class Silence:
    """An engine whose supervisor looks only when the test lets time pass."""

    def __init__(self, engines: Engines, clock: FakeClock, *specs: Callable[..., object], **settings: float) -> None:
        self.engines, self.clock = engines, clock
        self.engine: Engine = engines(specs, clock=clock, **settings)
        self.engine.supervisor.stop()

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 1000 / LOOK_MS)):
            self.clock.advance(LOOK_MS)
            self.engine.supervisor.tick(self.clock.boot_ms())

    def attempt(self) -> Attempt:
        return wait_until(lambda: self.engine.running.all(), what="a running attempt")[0]

    def log(self, job_id: str) -> list[tuple[str, str]]:
        with closing(read(self.engines.path)) as connection:
            sql = "SELECT level, message FROM job_log WHERE job_id = ? ORDER BY id"
            return list(connection.execute(sql, (job_id,)))

    def stalled_at(self, job_id: str) -> int | None:
        with closing(read(self.engines.path)) as connection:
            found: int | None = connection.execute("SELECT stalled_at FROM jobs WHERE id = ?", (job_id,)).fetchall()[0][
                0
            ]
            return found


@pytest.fixture
def patient(gate: Gate) -> Callable[..., str]:
    """A task that says nothing until the gate opens; interrupted it says so."""

    def patient(ctx: JobContext) -> str:
        if ctx.attempt > 1:
            return "at last"
        gate.look_out()
        return "in the end"

    return patient


def test_a_silent_job_is_interrupted_and_tried_again(
    engines: Engines, clock: FakeClock, gate: Gate, patient: Callable[..., str]
) -> None:
    silence = Silence(engines, clock, patient)
    job_id = submit(silence.engine, "patient", heartbeat=30, retry=[0.0])
    gate.wait_for_arrival()
    silence.pass_time(29.8)
    assert not silence.attempt().stalled

    silence.pass_time(0.4)
    job = wait_for_state(engines.path, job_id, State.COMPLETED)
    assert (job.result, job.attempt) == ('"at last"', 2)
    assert history(engines.path, job_id) == [(1, "timed_out", "JobStalled")]
    words = "stalled: silent for 30.0 s, its heartbeat is 30 s"
    assert job.last_error == words
    assert silence.log(job_id) == [("WARNING", f"{words}; it is interrupted, and runs again if it has retries left")]
    engines.stop(silence.engine)


def test_time_before_the_job_began_is_no_silence_of_it(
    engines: Engines, clock: FakeClock, gate: Gate, patient: Callable[..., str]
) -> None:
    silence = Silence(engines, clock, patient)
    clock.advance(400)  # since the last look
    job_id = submit(silence.engine, "patient", heartbeat=1, on_stall="warn")
    gate.wait_for_arrival()
    silence.pass_time(0.8)
    assert not silence.attempt().stalled
    silence.pass_time(0.4)
    assert silence.attempt().stalled
    gate.open()
    assert wait_for_state(engines.path, job_id, State.COMPLETED).result == '"in the end"'
    engines.stop(silence.engine)


def test_a_silent_job_whose_task_says_so_has_failed_whatever_retries_are_left(
    engines: Engines, clock: FakeClock, gate: Gate, patient: Callable[..., str]
) -> None:
    strict = task(name="strict", heartbeat=30, on_stall="fail", max_retries=5)(patient)
    silence = Silence(engines, clock, strict)
    job_id = submit(silence.engine, "strict")
    gate.wait_for_arrival()
    silence.pass_time(31)

    job = wait_for_state(engines.path, job_id, State.DEAD_LETTER)
    assert history(engines.path, job_id) == [(1, "timed_out", "JobStalled")]
    assert job.attempt == 1
    wait_until(lambda: silence.engine.writer.counter("stalled", "strict") == 1)  # a moment after the file
    engines.stop(silence.engine)
    check_invariants(engines.path, stopped=True)


def test_a_silent_job_may_be_warned_about_and_go_on(
    engines: Engines, clock: FakeClock, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    spoken = threading.Event()

    def slow(ctx: JobContext) -> str:
        gate.pass_through()
        ctx.heartbeat()
        spoken.wait(20)
        return "done"

    silence = Silence(engines, clock, slow)
    with caplog.at_level(logging.INFO, "miniflow.heartbeat"):
        job_id = submit(silence.engine, "slow", heartbeat=2, on_stall="warn")
        gate.wait_for_arrival()
        began_ms = clock.now_ms()
        silence.pass_time(8)
        stalled_at = wait_until(lambda: silence.stalled_at(job_id), what="the row to say that it is stalled")
        assert began_ms + 2000 <= stalled_at <= began_ms + 2000 + LOOK_MS
        assert row(engines.path, job_id).state == State.RUNNING

        gate.open()
        wait_until(lambda: silence.attempt().heard)
        silence.pass_time(1)
        wait_until(lambda: silence.stalled_at(job_id) is None, what="the row to say that it is not")

    spoken.set()
    assert wait_for_state(engines.path, job_id).state == State.COMPLETED
    words = "stalled: silent for 2.0 s, its heartbeat is 2 s"
    assert silence.log(job_id) == [("WARNING", f"{words}; it goes on"), ("INFO", "heard again after 8.0 s")]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    engines.stop(silence.engine)


SIGNS: dict[str, Callable[[JobContext], object]] = {
    "progress": lambda ctx: ctx.progress(1, 2),
    "log": lambda ctx: ctx.log("still here"),
    "print": lambda _: print("still here"),
    "half a line": lambda _: print(".", end=""),
    "logging": lambda _: logging.getLogger("theirs").warning("still here"),
    "heartbeat": lambda ctx: ctx.heartbeat(),
    "from afar": lambda _: current_job().heartbeat(),
}


@pytest.mark.parametrize("sign", SIGNS)
def test_whatever_a_job_says_is_a_sign_of_life(engines: Engines, clock: FakeClock, sign: str) -> None:
    turns, said = threading.Semaphore(0), threading.Semaphore(0)

    def talker(ctx: JobContext) -> int:
        for _ in range(4):
            assert turns.acquire(timeout=20 * PATIENCE)
            SIGNS[sign](ctx)
            said.release()
        return 4

    silence = Silence(engines, clock, talker)
    job_id = submit(silence.engine, "talker", heartbeat=2, max_retries=0)
    for _ in range(4):
        silence.attempt()
        silence.pass_time(1.6)
        turns.release()
        assert said.acquire(timeout=5 * PATIENCE)
    job = wait_for_state(engines.path, job_id)
    assert (job.state, job.result) == (State.COMPLETED, "4")
    engines.stop(silence.engine)


@pytest.mark.parametrize("asleep_ms", [2_500, 3_600_000])
def test_a_machine_that_slept_makes_no_job_stalled(
    engines: Engines, clock: FakeClock, gate: Gate, patient: Callable[..., str], asleep_ms: int
) -> None:
    silence = Silence(engines, clock, patient)
    job_id = submit(silence.engine, "patient", heartbeat=2, timeout=0)
    gate.wait_for_arrival()
    silence.pass_time(1)
    clock.advance(asleep_ms)
    silence.engine.supervisor.tick(clock.boot_ms())
    assert not silence.attempt().stalled

    gate.open()
    assert wait_for_state(engines.path, job_id, State.COMPLETED).attempt == 1
    engines.stop(silence.engine)


def test_a_job_that_is_deaf_too_is_given_up(engines: Engines, clock: FakeClock, gate: Gate) -> None:
    def deaf() -> None:
        gate.pass_through()

    silence = Silence(engines, clock, deaf, stop_grace=1.0)
    job_id = submit(silence.engine, "deaf", heartbeat=5, on_stall="fail", max_retries=3)
    gate.wait_for_arrival()
    silence.pass_time(7)

    job = wait_for_state(engines.path, job_id, State.DEAD_LETTER)
    assert history(engines.path, job_id) == [(1, "timed_out", "JobStalled")]
    assert job.last_error is not None
    assert job.last_error.startswith("stalled: silent for 5.0 s, its heartbeat is 5 s; it did not stop within 1 s")
    gate.open()
    engines.stop(silence.engine)


def test_a_coroutine_that_is_silent_is_cancelled(engines: Engines, clock: FakeClock, gate: Gate) -> None:
    async def waiting() -> None:
        gate.here.release()
        await asyncio.sleep(60)

    silence = Silence(engines, clock, waiting)
    job_id = submit(silence.engine, "waiting", heartbeat=3, max_retries=0)
    gate.wait_for_arrival()
    silence.pass_time(3.2)

    wait_for_state(engines.path, job_id, State.DEAD_LETTER)
    assert history(engines.path, job_id) == [(1, "timed_out", "JobStalled")]
    engines.stop(silence.engine)


def test_a_job_without_a_heartbeat_may_be_silent(
    engines: Engines, clock: FakeClock, gate: Gate, patient: Callable[..., str]
) -> None:
    quiet = task(name="quiet", heartbeat=2)(patient)
    silence = Silence(engines, clock, patient, quiet)
    one, other = submit(silence.engine, "patient", timeout=0), submit(silence.engine, "quiet", heartbeat=0, timeout=0)
    gate.wait_for_arrival()
    gate.wait_for_arrival()
    silence.pass_time(60)
    gate.open()
    assert wait_for_state(engines.path, one, State.COMPLETED).attempt == 1
    assert wait_for_state(engines.path, other, State.COMPLETED).attempt == 1
    engines.stop(silence.engine)


def test_the_workers_say_how_long_their_jobs_have_been_silent(
    engines: Engines, clock: FakeClock, gate: Gate, patient: Callable[..., str]
) -> None:
    silence = Silence(engines, clock, patient)
    submit(silence.engine, "patient", heartbeat=2, on_stall="warn")
    gate.wait_for_arrival()
    silence.pass_time(3)
    busy = [worker for worker in silence.engine.roster.workers() if worker.busy]
    assert [(worker.silent_for, worker.stalled) for worker in busy] == [(3.0, True)]
    gate.open()


# ---------------------------------------------------------------------------------------------------- what can be asked for


def test_a_submit_goes_before_the_task(engines: Engines) -> None:
    def plain() -> None: ...

    own = task(name="own", heartbeat=60, on_stall="warn")(plain)
    engine = engines([plain, own])

    def options(name: str, **given: object) -> object:
        row = new_job(engine, name, **given).row
        return row[12] if len(row) > 12 else None

    assert options("plain") is None
    assert options("plain", heartbeat=2.5) == '{"heartbeat_ms":2500,"on_stall":"retry"}'
    assert options("own") == '{"heartbeat_ms":60000,"on_stall":"warn"}'
    assert options("own", on_stall="fail") == '{"heartbeat_ms":60000,"on_stall":"fail"}'
    assert options("own", heartbeat=5) == '{"heartbeat_ms":5000,"on_stall":"warn"}'
    assert options("own", heartbeat=0) is None


@pytest.mark.parametrize(
    ("given", "field", "reason"),
    [
        ({"heartbeat": 0.2}, "heartbeat", "1 second or more"),
        ({"on_stall": "retry"}, "on_stall", "needs a heartbeat"),
        ({"heartbeat": 0, "on_stall": "retry"}, "on_stall", "needs a heartbeat"),
    ],
)
def test_a_promise_that_makes_no_sense_is_refused(
    engines: Engines, given: dict[str, object], field: str, reason: str
) -> None:
    def plain() -> None: ...

    engine = engines(plain)
    with pytest.raises(InvalidRequest, match=reason) as refused:
        new_job(engine, "plain", **given)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"heartbeat": 0.5}, "1 second or more"),
        ({"heartbeat": -1}, "heartbeat is a number of seconds"),
        ({"on_stall": "fail"}, "needs a heartbeat"),
        ({"heartbeat": 5, "on_stall": "explode"}, "none of warn, retry, fail"),
    ],
)
def test_a_task_whose_promise_makes_no_sense_is_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        task(name="odd", **options)(lambda: None)  # type: ignore[call-overload]


def test_a_job_that_is_heard_again_while_the_disk_is_full_is_not_said_to_be_silent(
    engines: Engines, clock: FakeClock, gate: Gate, patient: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word that it was silent is kept for later, and another has come by then."""
    monkeypatch.setattr("miniflow.writer.POSTPONED_S", 0.05)
    silence = Silence(engines, clock, patient)
    job_id = submit(silence.engine, "patient", heartbeat=1, on_stall="warn")
    gate.wait_for_arrival()
    wait_for_state(engines.path, job_id, State.RUNNING)
    attempt = silence.attempt()
    full, heard = threading.Event(), threading.Event()
    count = Transaction.count

    def fill_the_disk_once(tx: Transaction, name: str, label: str, n: int = 1) -> None:
        if name == "stalled" and not full.is_set():
            full.set()
            assert heard.wait(30)
            raise apsw.FullError("once")
        count(tx, name, label, n)

    monkeypatch.setattr(Transaction, "count", fill_the_disk_once)
    silence.pass_time(1.2)
    wait_until(full.is_set, 5, "the writer to write that it is silent")
    attempt.beat()
    silence.pass_time(0.2)
    heard.set()
    submit(silence.engine, "patient", delay=60)  # in the file after what was kept

    assert not attempt.stalled
    assert silence.stalled_at(job_id) is None
    gate.open()
    engines.stop(silence.engine)


def test_a_coroutine_that_waits_for_its_loop_to_begin_is_not_silent(
    engines: Engines, clock: FakeClock, gate: Gate
) -> None:
    async def holds_the_loop() -> None:
        gate.pass_through()

    async def quick() -> str:
        return "done"

    silence = Silence(engines, clock, holds_the_loop, quick)
    engine = silence.engine
    jobs = [new_job(engine, "holds_the_loop"), new_job(engine, "quick", heartbeat=1, on_stall="fail")]
    _, waits = [accepted.id for accepted in submit_all(engine, jobs)]  # begun together, one after the other in the loop
    gate.wait_for_arrival()
    wait_until(lambda: len(engine.running), what="both to be taken", until=lambda n: n == 2)
    silence.pass_time(5)
    gate.open()

    assert wait_for_state(engines.path, waits).state == State.COMPLETED
    assert not silence.log(waits)
    engines.stop(engine)
