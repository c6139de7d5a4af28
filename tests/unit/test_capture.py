"""What a job prints and says through ``logging`` is in its own log, and in nobody else's."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog

from miniflow import capture, current_job, registry, task
from miniflow.states import State
from tests.engines import Engines, submit, wait_for_state
from tests.invariants import read
from tests.waiting import PATIENCE

LOG = logging.getLogger("tests.of.capture")


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    LOG.setLevel(logging.DEBUG)
    with registry.collecting(registry.Registry()):
        yield
    LOG.setLevel(logging.NOTSET)


def lines(path: Path, job_id: str) -> list[tuple[str, str]]:
    """(level, message) of each line of a job's log."""
    sql = "SELECT level, message FROM logs WHERE job_seq = (SELECT seq FROM jobs WHERE id = ?) ORDER BY id"
    with closing(read(path)) as connection:
        return list(connection.execute(sql, (job_id,)))


def messages(path: Path, job_id: str) -> list[str]:
    return [message for _, message in lines(path, job_id)]


def run(engines: Engines, function: Any) -> list[tuple[str, str]]:
    """Run a task to its good end; the lines of its log."""
    engine = engines(function)
    spec = getattr(function, "spec", None)
    job_id = submit(engine, spec.name if spec else function.__name__)
    found = wait_for_state(engines.path, job_id)
    assert found.state == State.COMPLETED, found.last_error
    return lines(engines.path, job_id)


# --------------------------------------------------------------------------------------------------------------- printing


def test_what_is_printed_is_in_the_jobs_log_and_nowhere_else(
    engines: Engines, capsys: pytest.CaptureFixture[str]
) -> None:
    def printing() -> None:
        print("one", 2, sep=", ")
        sys.stdout.write("three\n")
        print("a\nb")
        print()
        print("a warning", file=sys.stderr)
        sys.stdout.writelines(["x", "y\n"])

    assert run(engines, printing) == [
        ("INFO", "one, 2"),
        ("INFO", "three"),
        ("INFO", "a"),
        ("INFO", "b"),
        ("INFO", ""),
        ("WARNING", "a warning"),
        ("INFO", "xy"),
    ]
    assert capsys.readouterr() == ("", "")


def test_what_is_printed_outside_of_a_job_goes_where_it_always_went(
    engines: Engines, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = engines()
    print("out")
    print("err", file=sys.stderr)
    engines.stop(engine)

    assert capsys.readouterr() == ("out\n", "err\n")
    assert not isinstance(sys.stdout, capture.Stream)


def test_half_a_line_waits_for_its_other_half_or_the_end(engines: Engines) -> None:
    def halves() -> None:
        print("begun", end=" ", flush=True)
        print("on standard error", file=sys.stderr)
        print("and ended")
        print("the rest", end="")

    assert run(engines, halves) == [("WARNING", "on standard error"), ("INFO", "begun and ended"), ("INFO", "the rest")]


def test_of_a_line_that_is_drawn_anew_the_last_drawing_is_kept(engines: Engines) -> None:
    def bar() -> None:
        for percent in range(0, 101, 10):
            sys.stderr.write(f"\r{percent} %")
        sys.stderr.write("\nwindows\r")
        sys.stderr.write("\nslowly: 1\r")
        sys.stderr.write("slowly: 2\r")

    assert [message for _, message in run(engines, bar)] == ["100 %", "windows", "slowly: 2"]


def test_a_stream_inside_a_job_is_no_terminal_and_otherwise_itself(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            return 77

    terminal = Terminal(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", terminal)
    found: dict[str, object] = {}

    def look() -> None:
        found.update(tty=sys.stdout.isatty(), encoding=sys.stdout.encoding, fd=sys.stdout.fileno())
        sys.stdout.buffer.write(b"bytes go past the log")
        with pytest.raises(TypeError, match="must be str, not bytes"):
            sys.stdout.write(b"bytes")  # type: ignore[arg-type]

    engine = engines(look)
    assert sys.stdout.isatty()
    wait_for_state(engines.path, submit(engine, "look"))
    engines.stop(engine)

    assert found == {"tty": False, "encoding": "utf-8", "fd": 77}
    assert terminal.buffer.getvalue() == b"bytes go past the log"  # type: ignore[attr-defined]
    assert sys.stdout is terminal


def test_two_jobs_that_print_halves_of_lines_at_once_do_not_mix(engines: Engines) -> None:
    together = threading.Barrier(2, timeout=10)

    def noisy(name: str) -> None:
        for n in range(200):
            together.wait()
            print(f"{name} {n}", end=" ")
            together.wait()
            print(f"still {name}")
            if n % 10 == 0:
                LOG.info("%s logs %d", name, n)

    engine = engines(noisy)
    ids = {name: submit(engine, "noisy", {"name": name}) for name in ("a", "b")}
    for name, job_id in ids.items():
        assert wait_for_state(engines.path, job_id, timeout_s=20).state == State.COMPLETED
        expected = []
        for n in range(200):
            expected += [f"{name} {n} still {name}"] + [f"{name} logs {n}"] * (n % 10 == 0)
        assert messages(engines.path, job_id) == expected


def test_coroutines_at_once_do_not_mix(engines: Engines) -> None:
    async def noisy(name: str) -> None:
        for n in range(50):
            print(f"{name} {n}", end=" ")
            await asyncio.sleep(0)
            print(name)
            await asyncio.to_thread(print, f"{name} in a thread")

    engine = engines(noisy)
    ids = {name: submit(engine, "noisy", {"name": name}) for name in ("a", "b", "c")}
    for name, job_id in ids.items():
        assert wait_for_state(engines.path, job_id).state == State.COMPLETED
        expected = [line for n in range(50) for line in (f"{name} {n} {name}", f"{name} in a thread")]
        assert messages(engines.path, job_id) == expected


# ---------------------------------------------------------------------------------------------------------------- logging


def test_records_are_in_the_jobs_log_with_level_and_traceback_and_go_on_besides(
    engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    def logging_much() -> None:
        LOG.debug("in %s", "detail")
        LOG.info("two\nlines")
        LOG.log(25, "between the levels")
        LOG.critical("the end")
        try:
            raise ValueError("expected")
        except ValueError:
            LOG.exception("it failed")

    found = run(engines, logging_much)

    assert found[:4] == [
        ("DEBUG", "in detail"),
        ("INFO", "two\nlines"),
        ("INFO", "between the levels"),
        ("CRITICAL", "the end"),
    ]
    level, text = found[4]
    assert level == "ERROR"
    assert text.startswith("it failed\nTraceback")
    assert text.endswith("ValueError: expected")
    assert [record.getMessage() for record in caplog.records][:2] == ["in detail", "two\nlines"]


def test_records_from_outside_of_a_job_are_in_no_log(engines: Engines) -> None:
    def quiet() -> None: ...

    engine = engines(quiet)
    job_id = submit(engine, "quiet")
    LOG.error("outside")
    wait_for_state(engines.path, job_id)

    assert lines(engines.path, job_id) == []


def test_the_programs_own_records_are_no_jobs(engines: Engines) -> None:
    def within() -> None:
        for name in ("miniflow", "miniflow.writer", "huey", "huey.consumer"):
            logging.getLogger(name).error("of the program")
        logging.getLogger("miniflow.task").error("of the task")
        logging.getLogger("miniflow_tasks.mine").error("of mine")

    assert [message for _, message in run(engines, within)] == ["of the task", "of mine"]


def test_arguments_that_do_not_fit_do_not_fail_the_job(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own handler raises for them

    def clumsy() -> None:
        LOG.error("%d apples", "no")

    found = run(engines, clumsy)

    assert found[0] == ("WARNING", "--- Logging error ---")
    assert "Message: '%d apples'" in [message for _, message in found]


def test_a_job_that_is_held_back_in_a_record_does_not_hold_back_others() -> None:
    assert capture.Handler().lock is None


def test_structlogs_own_printing_is_in_the_jobs_log(engines: Engines) -> None:
    log = structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[structlog.processors.add_log_level, structlog.processors.KeyValueRenderer(key_order=["event"])],
    )

    def speaking() -> None:
        log.warning("paid", amount=3)

    assert run(engines, speaking) == [("INFO", "event='paid' amount=3 level='warning'")]


def test_structlogs_bridge_to_logging_is_in_the_jobs_log(engines: Engines) -> None:
    log = structlog.wrap_logger(
        LOG,
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
    )

    def speaking() -> None:
        log.warning("paid", amount=3, by="Ann")
        try:
            raise ValueError("expected")
        except ValueError:
            log.exception("refused")

    paid, (level, refused) = run(engines, speaking)

    assert paid == ("WARNING", "paid amount=3 by='Ann'")
    assert level == "ERROR"
    assert refused.startswith("refused\nTraceback")
    assert refused.endswith("ValueError: expected")


# ---------------------------------------------------------------------------------------------------------------- threads


def test_a_thread_that_a_job_starts_belongs_to_it(engines: Engines) -> None:
    ids: list[str] = []

    class Own(threading.Thread):
        def run(self) -> None:
            print("a class of its own")

    def starting() -> None:
        def inner() -> None:
            ids.append(current_job().job_id)
            thread = threading.Thread(target=print, args=("a thread of a thread",))
            thread.start()
            thread.join()

        for thread in (threading.Thread(target=inner), Own(), threading.Timer(0, LOG.info, ["a timer"])):
            thread.start()
            thread.join()

    found = run(engines, starting)

    assert [message for _, message in found] == ["a thread of a thread", "a class of its own", "a timer"]
    assert all(ids)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_traceback_of_a_jobs_thread_is_in_its_log(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # and not pytest's

    def starting() -> None:
        def failing() -> None:
            raise ValueError("in a thread")

        thread = threading.Thread(target=failing)
        thread.start()
        thread.join()

    found = run(engines, starting)

    assert ("WARNING", "ValueError: in a thread") in found


def test_a_thread_started_outside_of_a_job_belongs_to_none(capsys: pytest.CaptureFixture[str]) -> None:
    capture.install()
    try:
        thread = threading.Thread(target=print, args=("free",))
        thread.start()
        thread.join()
    finally:
        capture.remove()

    assert capsys.readouterr().out == "free\n"


def test_a_pool_that_jobs_share_counts_its_work_to_the_one_that_gave_it(
    engines: Engines, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also while the job runs that happened to make the pool's thread."""
    pool = ThreadPoolExecutor(1)
    first, second = engines.gate(), engines.gate()

    def sharing(name: str) -> None:
        list(pool.map(print, [f"{name} 1", f"{name} 2"]))
        if name == "first":
            first.pass_through()
        pool.submit(LOG.info, f"{name} logs").result()

    def looping() -> None:
        async def body() -> None:
            await asyncio.get_running_loop().run_in_executor(pool, print, "from a loop")

        asyncio.run(body())
        second.open()

    engine = engines([sharing, looping])
    one = submit(engine, "sharing", {"name": "first"})
    first.wait_for_arrival()
    two = submit(engine, "sharing", {"name": "second"})
    wait_for_state(engines.path, two)
    three = submit(engine, "looping")
    wait_for_state(engines.path, three)
    pool.submit(print, "from nobody").result()
    first.open()
    wait_for_state(engines.path, one)
    pool.shutdown()

    assert messages(engines.path, one) == ["first 1", "first 2", "first logs"]
    assert messages(engines.path, two) == ["second 1", "second 2", "second logs"]
    assert messages(engines.path, three) == ["from a loop"]
    assert capsys.readouterr().out == "from nobody\n"


def test_what_comes_after_the_end_is_not_in_the_log(
    engines: Engines, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    gate = engines.gate()
    threads: list[threading.Thread] = []

    def start(target: Callable[[], object]) -> None:
        thread = threading.Thread(target=target)
        thread.start()
        threads.append(thread)

    @task
    def leaving() -> None:
        def outliving() -> None:
            gate.pass_through()
            print("printed late")
            LOG.info("logged late")
            job.log("told late")

        job = current_job()
        print("in time")
        start(outliving)

    @task
    def silent() -> None:
        start(lambda: (gate.pass_through(), print("its first word")))

    engine = engines([leaving, silent])
    ids = [submit(engine, "leaving"), submit(engine, "silent")]
    for job_id in ids:
        wait_for_state(engines.path, job_id)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        gate.open()
        for thread in threads:
            thread.join(5 * PATIENCE)
    engines.stop(engine)

    assert [messages(engines.path, job_id) for job_id in ids] == [["in time"], []]
    assert sorted(capsys.readouterr().out.splitlines()) == ["its first word", "printed late"]
    said = [record.getMessage() for record in caplog.records]
    assert "logged late" in said
    assert f"job {ids[0]}, after its end: told late" in said


# ------------------------------------------------------------------------------------------------------- putting in place


def test_what_is_put_in_place_twice_goes_with_the_second_removal() -> None:
    before = (sys.stdout, sys.stderr, threading.Thread.start, ThreadPoolExecutor.submit)
    capture.install()
    capture.install()
    stream = sys.stdout
    capture.remove()

    assert sys.stdout is stream
    assert isinstance(stream, capture.Stream)
    assert not isinstance(stream.real, capture.Stream)

    capture.remove()

    assert (sys.stdout, sys.stderr, threading.Thread.start, ThreadPoolExecutor.submit) == before
    assert not any(isinstance(handler, capture.Handler) for handler in logging.getLogger().handlers)


@pytest.mark.parametrize(
    ("number", "name"),
    [(5, "DEBUG"), (10, "DEBUG"), (20, "INFO"), (25, "INFO"), (30, "WARNING"), (40, "ERROR"), (99, "CRITICAL")],
)
def test_a_level_of_ones_own_counts_to_the_one_below(number: int, name: str) -> None:
    assert capture.level_of(number) == name


# ------------------------------------------------------------------------------------------------ the program's own words


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_what_workers_do_is_told_at_debug_only(engines: Engines, caplog: pytest.LogCaptureFixture, level: int) -> None:
    @task(max_retries=0)
    def failing() -> None:
        raise ValueError

    def good() -> None: ...

    with caplog.at_level(level, "miniflow.worker"):
        engine = engines([failing, good])
        ids = [submit(engine, name) for name in ("failing", "good")]
        for job_id in ids:
            wait_for_state(engines.path, job_id)

    said = sorted(record.getMessage() for record in caplog.records if record.name == "miniflow.worker")
    expected = [f"Job {ids[0]}: dead_letter", f"Job {ids[1]}: completed", *(f"Working on {job_id}" for job_id in ids)]
    assert said == (sorted(expected) if level == logging.DEBUG else [])
