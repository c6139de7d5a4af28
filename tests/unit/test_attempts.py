"""One execution: its end is written once, and it can be asked to stop while its body runs and at no other moment."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from miniflow.attempts import Attempt, Claimed, Running
from miniflow.errors import JobCancelled, JobInterrupted, JobReturned, JobTimeout
from miniflow.executors import thread as thread_executor
from tests.waiting import PATIENCE, wait_until

ROUNDS = 400


def claimed(seq: int = 1, attempt: int = 0) -> Claimed:
    return Claimed(
        seq,
        f"id-{seq}",
        "task",
        "default",
        0,
        1,
        "{}",
        attempt,
        0,
        3,
        None,
        None,
        None,
        None,
        None,
        None,
        lease=7,
        created_at=0,
        ready_at=0,
    )


@pytest.fixture
def attempt() -> Attempt:
    return Attempt(claimed(), "worker-1", 1_000)


class Body(threading.Thread):
    """A thread that runs a body as a worker does, and what became of it."""

    def __init__(self, attempt: Attempt, body: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._attempt, self._body = attempt, body
        self.value: Any = None
        self.raised: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.value = thread_executor.run(self._attempt, self._body)
        except BaseException as exc:  # above all the one that was sent in
            self.raised = exc

    def ended(self) -> Body:
        self.join(10 * PATIENCE)
        assert not self.is_alive()
        return self


def spin(begun: threading.Event) -> Callable[[], None]:
    """Runs Python code until it is stopped."""

    def body() -> None:
        begun.set()
        while True:
            pass

    return body


def take_naps(alarms: list[threading.Event]) -> None:
    """No Event that is used twice: an interrupt that comes inside of one leaves it locked."""
    for alarm in alarms:
        alarm.wait(0.01)


def as_much_as_any_worker_does() -> int:
    """Python code in which an exception that is still on its way would come out."""
    return sum(i % 7 for i in range(200))


# ------------------------------------------------------------------------------------------------------------ its number


def test_attempts_are_counted_from_one() -> None:
    assert Attempt(claimed(attempt=0), "w", 0).number == 1
    assert Attempt(claimed(attempt=4), "w", 0).number == 5


def test_its_repr_says_how_it_stands(attempt: Attempt) -> None:
    assert repr(attempt) == "<Attempt 1 of job id-1 running on worker-1>"
    attempt.interrupt(JobCancelled(), 0)
    assert repr(attempt) == "<Attempt 1 of job id-1 interrupted on worker-1>"
    attempt.finish()
    assert repr(attempt) == "<Attempt 1 of job id-1 finished on worker-1>"


# ------------------------------------------------------------------------------------------------------------- finishing


def test_the_first_to_finish_may_write_and_the_late_one_may_not(attempt: Attempt) -> None:
    assert [attempt.finish(), attempt.finish(), attempt.finish()] == [True, False, False]


def test_of_many_that_finish_at_once_one_wins() -> None:
    for _ in range(50):
        attempt = Attempt(claimed(), "w", 0)
        ready = threading.Barrier(8)
        won: list[bool] = []

        def finish(attempt: Attempt = attempt, ready: threading.Barrier = ready, won: list[bool] = won) -> None:
            ready.wait(10)
            won.append(attempt.finish())

        threads = [threading.Thread(target=finish) for _ in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(10 * PATIENCE)
        assert sorted(won) == [False] * 7 + [True]


def test_a_body_may_end_after_its_attempt_was_given_up(attempt: Attempt) -> None:
    """The watchdog has written the end; what the body returns finds nobody."""
    go_on = threading.Event()
    body = Body(attempt, lambda: go_on.wait(10))
    assert attempt.finish()
    go_on.set()
    body.ended()

    assert (body.value, body.raised) == (True, None)
    assert not attempt.finish()


# ---------------------------------------------------------------------------------------------------------- interrupting


@pytest.mark.parametrize("kind", [JobCancelled, JobTimeout, JobReturned])
def test_an_interrupt_lands_in_the_body(attempt: Attempt, kind: type[JobInterrupted]) -> None:
    begun = threading.Event()
    body = Body(attempt, spin(begun))
    assert begun.wait(5 * PATIENCE)

    assert attempt.interrupt(kind("stop"), 5_000)
    assert isinstance(body.ended().raised, kind)
    assert attempt.abandon_at_boot_ms == 5_000
    assert isinstance(attempt.pending, kind)


def test_except_exception_does_not_swallow_an_interrupt(attempt: Attempt) -> None:
    begun = threading.Event()

    def body() -> None:
        while True:
            try:
                spin(begun)()
            except Exception:  # as careless tasks do
                continue

    running = Body(attempt, body)
    assert begun.wait(5 * PATIENCE)
    attempt.interrupt(JobCancelled(), 0)

    assert isinstance(running.ended().raised, JobCancelled)


def test_a_body_may_clean_up_when_it_is_interrupted(attempt: Attempt) -> None:
    begun, cleaned = threading.Event(), threading.Event()

    def body() -> None:
        try:
            spin(begun)()
        finally:
            as_much_as_any_worker_does()
            cleaned.set()

    running = Body(attempt, body)
    assert begun.wait(5 * PATIENCE)
    attempt.interrupt(JobCancelled(), 0)

    assert isinstance(running.ended().raised, JobCancelled)
    assert cleaned.is_set()


def test_a_body_that_was_interrupted_before_it_began_does_not_begin(attempt: Attempt) -> None:
    ran: list[None] = []
    reason = JobCancelled("early")
    assert attempt.interrupt(reason, 0)
    body = Body(attempt, lambda: ran.append(None)).ended()

    assert body.raised is reason
    assert not ran


def test_what_follows_the_end_of_a_coroutine_is_told_nothing(attempt: Attempt) -> None:
    """A hook that prints after it, say."""
    heard: list[JobInterrupted] = []
    attempt.hear = heard.append
    attempt.enter(None, cancel=lambda: None)
    attempt.raise_in_coroutine()
    assert not heard, "nobody has asked yet"
    attempt.interrupt(JobCancelled("stop"), 5_000)
    attempt.raise_in_coroutine()
    attempt.leave()
    attempt.raise_in_coroutine()
    assert heard == [attempt.pending]


def test_an_attempt_is_asked_to_stop_once(attempt: Attempt) -> None:
    first = JobTimeout("first")

    assert attempt.interrupt(first, 1)
    assert not attempt.interrupt(JobCancelled("second"), 2)
    assert (attempt.pending, attempt.abandon_at_boot_ms) == (first, 1)


def test_an_attempt_that_is_over_is_not_interrupted(attempt: Attempt) -> None:
    assert Body(attempt, lambda: 42).ended().value == 42

    assert not attempt.interrupt(JobCancelled(), 0)
    assert (attempt.pending, attempt.abandon_at_boot_ms) == (None, None)


def test_an_interrupt_never_comes_after_the_body(attempt: Attempt) -> None:
    """It comes out of the run of the body, or not at all: never in what the worker does afterwards."""
    rounds: list[tuple[bool, bool]] = []
    astray: list[BaseException] = []
    attempts = [Attempt(claimed(seq), "w", 0) for seq in range(ROUNDS)]
    at = [threading.Event() for _ in attempts]

    def work() -> None:
        for number, one in enumerate(attempts):
            at[number].set()
            try:
                thread_executor.run(one, as_much_as_any_worker_does)
                hit = False
            except JobInterrupted:
                hit = True
            try:
                as_much_as_any_worker_does()
            except JobInterrupted as exc:
                astray.append(exc)
            rounds.append((hit, one.pending is not None))

    def interrupt() -> None:
        for number, one in enumerate(attempts):
            at[number].wait(10)
            for _ in range(number % 50):  # so that it comes at another moment each time
                pass
            one.interrupt(JobCancelled(), 0)

    worker, other = threading.Thread(target=work, daemon=True), threading.Thread(target=interrupt, daemon=True)
    worker.start()
    other.start()
    worker.join(30)
    other.join(30)

    assert not astray
    assert len(rounds) == ROUNDS
    assert not [hit for hit, asked in rounds if hit and not asked]


def test_an_interrupt_that_comes_in_the_bodys_last_line_is_heard_there_or_not_at_all(attempt: Attempt) -> None:
    """That line is a call into C, which is deaf until it returns."""
    outcome: list[str] = []
    inside, go_on = threading.Lock(), threading.Lock()
    inside.acquire()
    go_on.acquire()

    def work() -> None:
        try:
            attempt.enter(threading.get_ident())
            inside.release()
            go_on.acquire()
            attempt.leave()
        except JobCancelled:
            attempt.leave()
            outcome.append("in the body")
        try:
            as_much_as_any_worker_does()
            outcome.append("quiet")
        except JobCancelled:
            outcome.append("astray")

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    assert inside.acquire(timeout=5 * PATIENCE)
    attempt.interrupt(JobCancelled(), 0)
    go_on.release()
    worker.join(10 * PATIENCE)

    assert outcome in (["in the body", "quiet"], ["quiet"])


TRACED = """
import sys, threading
from miniflow.attempts import Attempt, Claimed, look_no_more
from miniflow.errors import JobCancelled
from miniflow.executors import thread

attempt = Attempt(Claimed(1, "id", *["x"] * 5, 0, *[0] * 11), "w", 0)

def calls():
    return [str(n) for n in range(100)]

def run():
    try:
        thread.run(attempt, body)
    except JobCancelled:
        print("interrupted")

def trace():
    sys.settrace(lambda *_: None)
    calls()
    sys.settrace(None)
    print("traced")
"""
HEARS = """
def body():
    attempt.interrupt(JobCancelled(), 0)
    while True:
        pass

worker = threading.Thread(target=run)
worker.start()
worker.join()
trace()
"""
DEAF = """
deaf = threading.Lock()
deaf.acquire()

def body():
    deaf.acquire()
    while True:
        pass

worker = threading.Thread(target=run)
worker.start()
while not attempt.entered:
    pass
attempt.interrupt(JobCancelled(), 0)
look_no_more()
trace()
deaf.release()
worker.join()
"""


@pytest.mark.parametrize(
    ("rest", "said"), [(HEARS, "interrupted traced"), (DEAF, "traced interrupted")], ids=["hears", "is deaf for long"]
)
def test_python_does_not_go_on_looking_for_what_has_come_or_will_not(rest: str, said: str) -> None:
    """It does so ever after, up to 3.12: 3.11 does not come on from a call that is traced meanwhile, 3.12 is slow."""
    done = subprocess.run(
        [sys.executable, "-c", TRACED + rest], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, said.split()), done.stderr


def test_of_two_that_are_interrupted_at_once_each_hears_of_it() -> None:
    """Python up to 3.12 stops looking when one has come, and looks again when a thread comes out of C code."""
    for _ in range(5):
        attempts = [Attempt(claimed(seq=seq), "w", 0) for seq in (1, 2)]
        begun = threading.Event()
        naps = Body(attempts[0], partial(take_naps, [threading.Event() for _ in range(10_000)]))
        spins = Body(attempts[1], spin(begun))
        assert begun.wait(5 * PATIENCE)
        wait_until(lambda attempts=attempts: attempts[0].entered, 5, "the other to begin")
        for one in attempts:
            one.interrupt(JobCancelled(), 0)
        assert isinstance(spins.ended().raised, JobCancelled)
        assert isinstance(naps.ended().raised, JobCancelled)


def test_leaving_twice_is_leaving_once(attempt: Attempt) -> None:
    attempt.enter(threading.get_ident())
    attempt.leave()
    attempt.leave()

    assert not attempt.interrupt(JobCancelled(), 0)
    as_much_as_any_worker_does()


# ----------------------------------------------------------------------------------------------------------- coroutines


def test_a_coroutine_is_cancelled_and_no_exception_is_sent_to_its_thread(attempt: Attempt) -> None:
    cancelled: list[None] = []
    attempt.enter(None, cancel=lambda: cancelled.append(None))

    assert attempt.interrupt(JobTimeout(), 0)
    assert len(cancelled) == 1
    as_much_as_any_worker_does()


def test_a_coroutine_that_has_ended_is_not_cancelled(attempt: Attempt) -> None:
    cancelled: list[None] = []
    attempt.enter(None, cancel=lambda: cancelled.append(None))
    attempt.leave()

    assert not attempt.interrupt(JobTimeout(), 0)
    assert not cancelled


def test_a_process_has_as_long_to_end_if_it_was_asked_to_before_its_worker_came_to_it(attempt: Attempt) -> None:
    """A job that was handed ahead has begun by itself, and may be asked to stop before the thread that waits for it is there."""
    assert attempt.interrupt(JobCancelled(), 1_000)
    with pytest.raises(JobCancelled):
        attempt.enter(None, cancel=lambda: None, patience_ms=500)

    assert attempt.abandon_at_boot_ms == 1_500


# ------------------------------------------------------------------------------------------------------ those under way


def test_attempts_are_found_by_their_row_while_they_run(attempt: Attempt) -> None:
    running = Running()
    running.add(attempt)
    assert (len(running), running.find(1), running.all()) == (1, attempt, [attempt])

    running.remove(attempt)
    assert (len(running), running.find(1), running.all()) == (0, None, [])


def test_an_attempt_that_was_given_up_does_not_take_its_successor_along(attempt: Attempt) -> None:
    running, successor = Running(), Attempt(claimed(attempt=1), "worker-2", 2_000)
    running.add(attempt)
    running.add(successor)
    running.remove(attempt)

    assert running.find(1) is successor


def test_the_list_of_attempts_is_ones_own() -> None:
    """The watchdog walks it while workers come and go."""
    running = Running()
    for seq in range(3):
        running.add(Attempt(claimed(seq), "w", 0))
    for one in running.all():
        running.remove(one)

    assert len(running) == 0
