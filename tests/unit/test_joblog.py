"""The lines of a job ride in the groups, all of them, in order and in time; and a job's log has a limit."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Self

import apsw
import pytest

from miniflow import current_job, joblog, registry, statements, task
from miniflow.attempts import Attempt, Claimed
from miniflow.engine import Engine
from miniflow.errors import JobCancelled
from miniflow.joblog import JobLog, JobLogs
from miniflow.states import State
from miniflow.writer import Transaction
from tests.engines import Engines, FakeClock, cancel, new_job, submit, submit_all, verb, wait_for_ends, wait_for_state
from tests.invariants import read
from tests.waiting import PATIENCE, wait_until


class Line(NamedTuple):
    attempt: int
    level: str
    message: str


def lines(path: Path, job_id: str) -> list[Line]:
    sql = "SELECT attempt, level, message FROM logs WHERE job_seq = (SELECT seq FROM jobs WHERE id = ?) ORDER BY id"
    with closing(read(path)) as connection:
        return [Line(*row) for row in connection.execute(sql, (job_id,))]


def messages(path: Path, job_id: str) -> list[str]:
    return [line.message for line in lines(path, job_id)]


def size(found: list[Line]) -> int:
    """As ``max_log_bytes`` counts: what the log takes as text."""
    return sum(len(line.message.encode()) + joblog.STAMP_BYTES for line in found)


def numbers(found: list[Line]) -> list[int]:
    """Of the lines of a flood; without the half line that an interrupted one may end with."""
    return [int(match[1]) for line in found if (match := re.match(r"line (\d+)", line.message))]


@pytest.fixture(autouse=True)
def registry_of_its_own() -> Iterator[None]:
    with registry.collecting(registry.Registry()):
        yield


@pytest.fixture
def flooding() -> Callable[[int], None]:
    def flooding(n: int) -> None:
        for i in range(n):
            print("line", i)

    return flooding


class Pause:
    """The writer stands still inside a group of its own until ``go_on``."""

    def __init__(self, engine: Engine) -> None:
        self._inside, self._go_on = threading.Event(), threading.Event()

        def stand(tx: Transaction) -> None:
            self._inside.set()
            self._go_on.wait(10 * PATIENCE)

        self._thread = threading.Thread(target=verb, args=(engine, stand))
        self._thread.start()
        assert self._inside.wait(5 * PATIENCE)

    def go_on(self) -> None:
        self._go_on.set()
        self._thread.join(5 * PATIENCE)


# ------------------------------------------------------------------------------------------------------ into the file


def test_a_flood_arrives_whole_and_in_order(engines: Engines, flooding: Callable[[int], None]) -> None:
    engine = engines(flooding)
    job_id = submit(engine, "flooding", {"n": 30_000})

    assert wait_for_state(engines.path, job_id, timeout_s=20).state == State.COMPLETED
    assert numbers(lines(engines.path, job_id)) == list(range(30_000))


def test_who_sees_the_end_has_all_lines(engines: Engines, flooding: Callable[[int], None]) -> None:
    """Also where more waits at the end than a group takes otherwise."""
    engine = engines(flooding)
    for n in (1, 3_000, 7_900):
        (job,) = [new_job(engine, "flooding", {"n": n})]
        seen: list[int] = []
        ended = threading.Event()

        def look(job_id: str, seen: list[int] = seen, ended: threading.Event = ended) -> None:
            seen.append(len(lines(engines.path, job_id)))
            ended.set()

        engine.notices.listen(job.id, look)
        submit_all(engine, [job])
        assert ended.wait(20)
        assert seen == [n]


def test_all_lines_of_a_group_are_one_statement_and_a_group_takes_a_share(
    engines: Engines, flooding: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[Transaction, int]] = []
    run = Transaction.run

    def counting(tx: Transaction, sql: str, *parameters: Any) -> list[Any]:
        if sql == statements.INSERT_LOGS:
            written.append((tx, parameters[0].count("line ")))
        return run(tx, sql, *parameters)

    monkeypatch.setattr(Transaction, "run", counting)
    engine = engines(flooding, workers=4)
    submit_all(engine, [new_job(engine, "flooding", {"n": 2}) for _ in range(200)])
    submit_all(engine, [new_job(engine, "flooding", {"n": 10_000}) for _ in range(2)])
    wait_for_ends(engines.path, 20)

    assert len({id(tx) for tx, _ in written}) == len(written)
    assert sum(n for _, n in written) == 20_400
    assert max(n for _, n in written) <= joblog.GROUP_LINES + 4 * joblog.CHUNK_LINES


def test_a_flood_is_held_back_until_the_writer_comes_after_it(engines: Engines) -> None:
    gate = engines.gate()

    def flooding(n: int) -> None:
        for i in range(n):
            if i == 1:  # the rest of it comes when the writer stands still
                gate.pass_through()
            print("line", i)

    engine = engines(flooding)
    job_id = submit(engine, "flooding", {"n": 0})  # its task is proven from here on
    wait_for_state(engines.path, job_id)
    job_id = submit(engine, "flooding", {"n": 60_000})
    gate.wait_for_arrival()
    wait_until(lambda: lines(engines.path, job_id), 5, "the first line")
    pause = Pause(engine)
    (attempt,) = engine.running.all()
    assert attempt.log is not None
    log = attempt.log
    gate.open()
    wait_until(lambda: len(log._full), 5, "the log to be full", until=lambda n: n >= joblog.WAITING_CHUNKS)

    assert not attempt.finished
    assert len(log._full) == joblog.WAITING_CHUNKS

    pause.go_on()
    wait_for_state(engines.path, job_id, timeout_s=20)
    assert numbers(lines(engines.path, job_id)) == list(range(60_000))


class Endless:
    """A body that prints until it is told to stop, and never awaits; at the latest it ends with the test. ``rest_s`` is how long
    it is busy after each line."""

    def __init__(self, rest_s: float) -> None:
        self._rest_s = rest_s
        self.over = threading.Event()
        self._test_over = False  # no Event: an interrupt that comes inside of one leaves it locked

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._test_over = True

    def __call__(self) -> None:
        try:
            i = 0
            while not self._test_over:
                print("line", i)
                i += 1
                if self._rest_s:
                    threading.Event().wait(self._rest_s)
        finally:
            print("the last words")
            self.over.set()

    def as_task(self, kind: str) -> Callable[..., Any]:
        @task
        def thread() -> None:
            self()

        @task
        async def coroutine() -> None:
            self()

        return {"thread": thread, "coroutine": coroutine}[kind]


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
@pytest.mark.parametrize(
    ("rest_s", "limit"),
    [(0, 10_000_000), (0.001, 10_000_000), (0, 20_000)],
    ids=["held back", "the writer keeps up", "over the limit of the log"],
)
def test_a_flood_can_be_cancelled(engines: Engines, kind: str, rest_s: float, limit: int) -> None:
    with Endless(rest_s) as flood:
        engine = engines(flood.as_task(kind), stop_grace=60, max_log_bytes=limit)
        job_id = submit(engine, kind)
        wait_until(lambda: lines(engines.path, job_id), 5, "the first lines")
        cancel(engine, job_id)
        job = wait_for_state(engines.path, job_id)
        assert flood.over.is_set(), "it does not go on in the background"

    assert job.state == State.CANCELLED
    assert "did not stop" not in (job.last_error or "")
    found = lines(engines.path, job_id)
    assert found[-1].message.endswith("the last words"), "what it says when it is told to stop is taken"
    if limit > 20_000:
        assert numbers(found) == list(range(len(numbers(found))))


@pytest.mark.parametrize("rest_s", [0, 0.001])
def test_a_coroutine_that_has_made_a_task_which_floods_is_cancelled_itself(engines: Engines, rest_s: float) -> None:
    """And not only the task, while it goes on waiting."""
    with Endless(rest_s) as flood:

        async def flooding() -> None:
            flood()

        @task
        async def waiting() -> None:
            made = asyncio.create_task(flooding())
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.wait([made])
                assert isinstance(made.exception(), JobCancelled)
                print("tidied up")

        engine = engines(waiting, stop_grace=60)
        job_id = submit(engine, "waiting")
        wait_until(lambda: lines(engines.path, job_id), 5, "the first lines")
        cancel(engine, job_id)
        job = wait_for_state(engines.path, job_id)
        assert flood.over.is_set(), "it does not go on in the background"

    assert job.state == State.CANCELLED
    assert messages(engines.path, job_id)[-2:] == ["the last words", "tidied up"]


def test_a_coroutine_is_told_once_and_may_await_while_it_cleans_up(engines: Engines) -> None:
    """By the loop or by what it prints, whichever comes first."""
    with Endless(0.001) as flood:

        @task
        async def coroutine() -> None:
            try:
                flood()
            finally:
                await asyncio.sleep(0.01)
                print("tidy")

        engine = engines(coroutine, stop_grace=60)
        job_id = submit(engine, "coroutine")
        wait_until(lambda: lines(engines.path, job_id), 5, "the first lines")
        cancel(engine, job_id)
        assert wait_for_state(engines.path, job_id).state == State.CANCELLED

    assert messages(engines.path, job_id)[-2:] == ["the last words", "tidy"]


def test_a_group_that_is_rolled_back_loses_no_line_and_doubles_none(
    engines: Engines, flooding: Callable[[int], None]
) -> None:
    def fail(tx: Transaction) -> None:
        raise ArithmeticError

    engine = engines(flooding)
    job_id = submit(engine, "flooding", {"n": 20_000})
    for _ in range(20):
        with pytest.raises(ArithmeticError):
            verb(engine, fail)
        verb(engine, lambda tx: None)

    wait_for_state(engines.path, job_id, State.COMPLETED, timeout_s=20)
    assert numbers(lines(engines.path, job_id)) == list(range(20_000))


def test_a_full_disk_keeps_lines_waiting(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miniflow.writer.POSTPONED_S", 0.01)
    trouble = threading.Event()
    gate = engines.gate()

    def talking() -> None:
        print("before")
        gate.pass_through()
        for i in range(700):
            print("line", i)

    def step(tx: Transaction) -> None:
        if trouble.is_set():
            raise apsw.FullError("simulated")

    engine = engines(talking, start=False)
    engine.writer.every_group(step)
    engine.start()
    job_id = submit(engine, "talking")
    wait_until(lambda: messages(engines.path, job_id), 5, "the first line")
    trouble.set()
    groups = engine.writer.groups
    gate.open()
    wait_until(lambda: engine.writer.groups, 5, "groups that fail", until=lambda n: n > groups + 3)
    assert messages(engines.path, job_id) == ["before"]
    trouble.clear()

    wait_for_state(engines.path, job_id, State.COMPLETED)
    assert messages(engines.path, job_id) == ["before", *(f"line {i}" for i in range(700))]


def test_a_job_that_the_stop_returns_has_its_lines_in_the_file(engines: Engines) -> None:
    gate = engines.gate()

    def standing() -> None:
        print("whole")
        print("half", end="")
        gate.pass_through()

    engine = engines(standing)
    job_id = submit(engine, "standing")
    gate.wait_for_arrival()
    assert engines.stop(engine, 0) == 1

    assert messages(engines.path, job_id) == ["whole", "half"]


def test_the_log_of_an_abandoned_job_ends_with_why(engines: Engines) -> None:
    gate, clock = engines.gate(), FakeClock()

    @task(timeout=60, max_retries=0)
    def deaf() -> None:
        print("a line")
        for _ in range(100):
            try:
                gate.pass_through()
                break
            except BaseException:  # does not want to stop
                pass
        print("too late")

    engine = engines(deaf, clock=clock)
    job_id = submit(engine, "deaf")
    gate.wait_for_arrival()
    (attempt,) = engine.running.all()
    clock.advance(60_000)
    wait_until(lambda: attempt.pending, 5, "it to be over its time")
    clock.advance(500)  # the grace
    wait_for_state(engines.path, job_id, State.DEAD_LETTER)
    gate.open()
    wait_until(engine.consumer.deaf_threads, 5, "the thread's end", until=lambda n: n == 0)
    engines.stop(engine)

    found = lines(engines.path, job_id)
    assert [line.message for line in found][:1] == ["a line"]
    assert found[-1].level == "WARNING"
    assert "abandoned" in found[-1].message
    assert len(found) == 2


def test_a_notice_comes_after_the_commit_that_has_the_lines(engines: Engines) -> None:
    gate = engines.gate()

    def talking() -> None:
        print("one")
        gate.pass_through()

    engine = engines(talking)
    job = new_job(engine, "talking")
    seen: list[list[str]] = []
    engine.log_notices.listen(job.id, lambda job_id: seen.append(messages(engines.path, job_id)))
    submit_all(engine, [job])

    assert wait_until(lambda: seen, 5, "a notice") == [["one"]]


# -------------------------------------------------------------------------------------------------------------- a line


@pytest.fixture
def log() -> JobLog:
    """A log whose lines nobody takes."""

    class NoWriter:
        hurried = False

        def every_group(self, step: object, before: bool) -> None: ...

        def nudge(self, now: bool) -> None: ...

        def call(self, kind: str, verb: object) -> tuple[int, int]:
            return 0, 0

    class Standing:
        def now_ms(self) -> int:
            return 1

    claimed = Claimed(*[1, "j", "t", "q", 0, 0, "{}", 0, 0, 0, *[None] * (len(Claimed._fields) - 10)])
    logs = JobLogs(NoWriter(), Standing(), None, max_bytes=1_000_000)  # type: ignore[arg-type]
    return logs.open(Attempt(claimed, "w", 0))


def taken(log: JobLog) -> Iterator[str]:
    while chunk := log.take():
        for row in chunk.rows:
            yield row[-1]


def test_a_long_line_is_cut_in_its_middle(log: JobLog) -> None:
    log.add("INFO", "a" * 30_000 + "z" * 30_000)

    (message,) = taken(log)

    assert message.startswith("a" * 8_000)
    assert message.endswith("z" * 8_000)
    assert "44,000 characters left out" in message


def test_text_without_line_breaks_is_broken(log: JobLog) -> None:
    for _ in range(50):
        log.write(0, "x" * 1_000)
    log.close()

    assert [len(message) for message in taken(log)] == [16_000, 16_000, 16_000, 2_000]


class Marked(str):
    """As template engines have."""


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("nul \0 inside", "nul \0 inside"),
        ("half \ud800 a pair", "half \\ud800 a pair"),
        ("naïve – 🙂", "naïve – 🙂"),
        (Marked("marked"), "marked"),
        ("", ""),
    ],
)
def test_strange_texts_are_kept_as_they_can_be(engines: Engines, given: str, kept: str) -> None:
    def strange() -> None:
        current_job().log(given)
        print(given)
        sys.stderr.write(given)

    engine = engines(strange)
    job_id = submit(engine, "strange")

    assert wait_for_state(engines.path, job_id).state == State.COMPLETED
    assert messages(engines.path, job_id) == ([kept, kept, kept] if given else ["", ""])


def test_halves_of_two_threads_do_not_mix(log: JobLog) -> None:
    log.write(0, "mine ")
    thread = threading.Thread(target=lambda: [log.write(0, "its "), log.write(0, "own\n")])
    thread.start()
    thread.join()
    log.write(0, "alone\n")

    assert list(taken(log)) == ["its own", "mine alone"]


def test_nothing_is_taken_after_the_end(log: JobLog) -> None:
    assert log.write(0, "whole\nhalf")
    log.end()

    assert not log.add("INFO", "late")
    assert not log.write(0, "late")
    assert list(taken(log)) == ["whole", "half"]


def test_a_log_that_is_opened_after_the_end_is_closed(log: JobLog) -> None:
    attempt = log._attempt
    attempt.log = None
    attempt.finish()

    assert not log._logs.open(attempt).add("INFO", "late")


# ----------------------------------------------------------------------------------------------------------- the limit

LIMIT = 100_000
GAP = re.compile(r"… ([\d,]+) lines \(([\d,]+) bytes\) left out here: the log is over max_log_bytes = 100,000 …")


def gap_of(found: list[Line]) -> tuple[int, int, int]:
    """Where the gap is, how many lines and how many bytes were left out."""
    ((place, match),) = [(n, match) for n, line in enumerate(found) if (match := GAP.fullmatch(line.message))]
    assert found[place].level == "WARNING"
    return place, int(match[1].replace(",", "")), int(match[2].replace(",", ""))


def test_over_the_limit_head_and_tail_are_kept_and_the_gap_is_said(
    engines: Engines, flooding: Callable[[int], None]
) -> None:
    engine = engines(flooding, max_log_bytes=LIMIT)
    job_id = submit(engine, "flooding", {"n": 10_000})
    wait_for_state(engines.path, job_id)

    found = lines(engines.path, job_id)
    place, left_out, left_bytes = gap_of(found)
    head, tail = found[:place], found[place + 1 :]

    assert numbers(head) == list(range(len(head)))
    assert numbers(tail) == list(range(10_000 - len(tail), 10_000))
    assert len(head) + left_out + len(tail) == 10_000
    assert size(head) + left_bytes + size(tail) == sum(len(f"line {n}") + 32 for n in range(10_000))
    assert LIMIT / 2 <= size(head) < LIMIT / 2 + 100
    assert LIMIT / 2 - 100 < size(tail) <= LIMIT / 2


def test_a_log_within_its_limit_has_no_gap(engines: Engines, flooding: Callable[[int], None]) -> None:
    engine = engines(flooding, max_log_bytes=LIMIT)
    job_id = submit(engine, "flooding", {"n": 2_000})
    wait_for_state(engines.path, job_id)

    found = lines(engines.path, job_id)
    assert LIMIT * 0.8 < size(found) <= LIMIT
    assert numbers(found) == list(range(2_000))


def test_the_tail_is_a_megabyte_at_most(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblog, "TAIL_BYTES_MAX", 10_000)

    def flooding() -> None:
        for i in range(5_000):
            print("line", i)

    engine = engines(flooding, max_log_bytes=LIMIT)
    job_id = submit(engine, "flooding")
    wait_for_state(engines.path, job_id)

    found = lines(engines.path, job_id)
    place, *_ = gap_of(found)
    assert 9_900 < size(found[place + 1 :]) <= 10_000


@pytest.mark.parametrize("limit", [1, 50, 1_000])
def test_a_tiny_limit_is_kept_too(engines: Engines, flooding: Callable[[int], None], limit: int) -> None:
    engine = engines(flooding, max_log_bytes=limit)
    job_id = submit(engine, "flooding", {"n": 3_000})

    assert wait_for_state(engines.path, job_id).state == State.COMPLETED
    found = [line for line in lines(engines.path, job_id) if line.level == "INFO"]
    assert size(found) <= limit + 100


def test_all_attempts_of_a_job_share_its_limit(engines: Engines) -> None:
    """And each keeps at least how it began and how it ended."""

    @task(max_retries=3, retry=[0])
    def failing() -> None:
        job = current_job()
        for i in range(2_500):
            print("line", i, "of attempt", job.attempt)
        raise ValueError

    engine = engines(failing, max_log_bytes=LIMIT)
    job_id = submit(engine, "failing")
    wait_for_state(engines.path, job_id, State.DEAD_LETTER, timeout_s=20)

    found = lines(engines.path, job_id)
    assert LIMIT * 0.99 < size([line for line in found if line.attempt == 1]) < LIMIT * 1.01
    for attempt in (1, 2, 3, 4):
        own = [line for line in found if line.attempt == attempt]
        _, left_out, _ = gap_of(own)
        assert own[0].message == f"line 0 of attempt {attempt}"
        assert own[-1].message == f"line 2499 of attempt {attempt}"
        assert len(own) - 1 + left_out == 2_500
        assert attempt == 1 or size(own) < joblog.FIRST_BYTES + joblog.LAST_BYTES + 500


def test_a_replay_goes_on_with_the_limit_of_the_job(engines: Engines) -> None:
    @task(max_retries=0)
    def failing() -> None:
        for i in range(1_200):
            print("line", i)
        raise ValueError

    engine = engines(failing, max_log_bytes=LIMIT)
    job_id = submit(engine, "failing")
    for _ in range(4):
        wait_for_state(engines.path, job_id, State.DEAD_LETTER)
        verb(engine, engine.jobs.retry(job_id))
    wait_for_state(engines.path, job_id, State.DEAD_LETTER)

    found = lines(engines.path, job_id)
    assert LIMIT < size(found) < LIMIT + 4 * (joblog.FIRST_BYTES + joblog.LAST_BYTES + 500)
    assert [line.message for line in found].count("line 0") == 5


def test_how_much_a_job_has_in_its_log_is_asked_in_steps(
    engines: Engines, flooding: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joblog, "ASK_ROWS", 100)
    engine = engines(flooding)
    job_id = submit(engine, "flooding", {"n": 1_050})
    wait_for_state(engines.path, job_id)
    attempt = Attempt(Claimed(*[1, job_id, *["x"] * (len(Claimed._fields) - 2)])._replace(attempt=1), "w", 0)
    services = engine.supervisor._logs
    log = JobLog(services, attempt)

    assert services.held(log, 1) == size(lines(engines.path, job_id))
    log.taken = 1_000
    assert services.held(log, 1) == size(lines(engines.path, job_id)) - 1_000
    services.max_bytes = 5_000
    log.taken = 0
    assert 5_000 <= services.held(log, 1) < 10_000
