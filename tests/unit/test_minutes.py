"""Figures by the minute: all that is counted is in one of them, once."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from miniflow import db, migrations, minutes
from miniflow.engine import Engine
from miniflow.minutes import COUNTED, KEPT_MINUTES, MINUTE_MS
from miniflow.states import State
from miniflow.writer import Transaction
from tests.engines import Engines, FakeClock, cancel, settle, submit, verb, wait_for_state
from tests.invariants import read
from tests.waiting import wait_until

Figures = dict[tuple[str, str], int]

LOOK_MS = minutes.LOOK_EVERY_MS


def noop() -> None: ...


def bad() -> None:
    raise ValueError("no")


@pytest.fixture
def clock() -> FakeClock:
    """At the beginning of a minute."""
    made = FakeClock()
    made.set_wall(MINUTE_MS - made.now_ms() % MINUTE_MS)
    return made


def table(path: Path) -> dict[int, Figures]:
    with closing(read(path)) as connection:
        found: dict[int, Figures] = {}
        for minute, name, label, n in connection.execute("SELECT minute, name, label, n FROM minutes ORDER BY 1"):
            found.setdefault(minute, {})[name, label] = n
        return found


def sums(path: Path) -> Figures:
    """What the minutes say was counted."""
    added: Counter[tuple[str, str]] = Counter()
    for figures in table(path).values():
        added.update({key: n for key, n in figures.items() if key[0] in COUNTED})
    return dict(added)


def counters(path: Path) -> Figures:
    with closing(read(path)) as connection:
        return {(name, label): n for name, label, n in connection.execute("SELECT * FROM counters") if name in COUNTED}


def run_some(engine: Engine, path: Path, good: int = 2) -> None:
    """``good`` jobs that end well, and one that fails twice, the second time for good."""
    ids = [submit(engine, "noop") for _ in range(good)] + [submit(engine, "bad", max_retries=1, retry=[0])]
    for job_id in ids:
        wait_for_state(path, job_id)
    rest(engine)


def rest(engine: Engine) -> None:
    """A worker has its job for a moment longer than the file says that it runs."""
    wait_until(lambda: engine.minutes._use().busy, 5, "the workers to be at rest", until=minutes.IDLE.__eq__)


def look_after(engine: Engine, clock: FakeClock, ms: int) -> None:
    """Time passes, and somebody looks: this thread, or the one that does so anyway."""
    clock.advance(ms)
    engine.minutes.look()


def test_what_happens_in_a_minute_is_counted_there(engines: Engines, clock: FakeClock) -> None:
    engine = engines([noop, bad], clock=clock)
    engine.minutes.look()  # nobody does again before the time has passed
    for good in (2, 3):
        minute = clock.now_ms() // MINUTE_MS
        run_some(engine, engines.path, good)
        look_after(engine, clock, MINUTE_MS - 1_000)  # it is still in it
        found = wait_until(lambda minute=minute: table(engines.path).get(minute), 5, "the minute to be written")
        expected = {
            ("enqueued", "noop"): good,
            ("enqueued", "bad"): 1,
            ("finished", "noop"): good,
            ("failed", "bad"): 1,
            ("attempts_failed", "bad"): 2,
            ("runs", "noop"): good,
            ("runs", "bad"): 2,
            ("workers_busy", "thread"): 0,
            ("workers_busy", "async"): 0,
            ("workers_busy", "process"): 0,
        }
        assert {key: n for key, n in (found or {}).items() if not key[0].endswith("_ms")} == expected
        look_after(engine, clock, 1_000)  # at the beginning of the next one, before anything happens in it


def test_two_looks_in_one_minute_add_up(engines: Engines, clock: FakeClock) -> None:
    engine = engines(noop, clock=clock, workers=0)
    minute = clock.now_ms() // MINUTE_MS
    for n in (1, 2, 3):
        submit(engine, "noop")
        look_after(engine, clock, LOOK_MS)
        wait_until(lambda: table(engines.path).get(minute, {}).get(("enqueued", "noop"), 0), 5, until=n.__eq__)

    assert list(table(engines.path)) == [minute]


def test_run_and_wait_times_are_summed(engines: Engines, clock: FakeClock) -> None:
    gate = engines.gate()

    def held() -> None:
        gate.pass_through()

    engine = engines(held, clock=clock, workers=1)
    first, second = submit(engine, "held"), submit(engine, "held")
    gate.wait_for_arrival()
    clock.advance(700)
    gate.open()
    wait_for_state(engines.path, first)
    wait_for_state(engines.path, second)
    engines.stop(engine)

    (figures,) = table(engines.path).values()
    assert figures["runs", "held"] == 2
    assert figures["run_ms", "held"] == 700
    assert figures["wait_ms", "held"] == 700


def test_the_last_figures_are_written_at_the_stop(engines: Engines, clock: FakeClock) -> None:
    engine = engines([noop, bad], clock=clock)
    engine.minutes.look()  # the next one would be seconds later
    run_some(engine, engines.path)
    engines.stop(engine)

    assert sums(engines.path) == counters(engines.path) == {
        ("enqueued", "noop"): 2,
        ("enqueued", "bad"): 1,
        ("finished", "noop"): 2,
        ("failed", "bad"): 1,
        ("attempts_failed", "bad"): 2,
    }  # fmt: skip


def test_what_a_dead_process_had_not_written_is_found_in_the_minute_of_its_last_change(
    engines: Engines, clock: FakeClock
) -> None:
    engine = engines([noop, bad], clock=clock)
    minute = clock.now_ms() // MINUTE_MS
    run_some(engine, engines.path)
    look_after(engine, clock, LOOK_MS)
    wait_until(lambda: table(engines.path), 5, "the first half to be written")
    run_some(engine, engines.path)
    engines.crash(engine)
    assert sums(engines.path) != counters(engines.path)
    clock.advance(3 * MINUTE_MS)

    engine = engines([noop, bad], clock=clock)
    assert sums(engines.path) == counters(engines.path)
    assert list(table(engines.path)) == [minute]
    run_some(engine, engines.path)
    engines.stop(engine)

    assert sums(engines.path) == counters(engines.path)
    assert list(table(engines.path)) == [minute, minute + 3]


def test_a_write_that_was_rolled_back_is_made_up_for(engines: Engines, clock: FakeClock) -> None:
    engine = engines([noop, bad], clock=clock)
    run_some(engine, engines.path)

    def write_and_fail(tx: Transaction) -> None:
        engine.minutes.write_last(tx)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        verb(engine, write_and_fail)
    engines.stop(engine)

    assert sums(engines.path) == counters(engines.path)
    (figures,) = table(engines.path).values()
    assert figures["runs", "noop"] == 2


def operations(engine: Engine) -> int:
    """All so far, and one to settle. The writer counts a moment after it has answered."""
    settle(engine)
    wait_until(lambda: engine.writer._idle, 5, "the writer to have nothing to do")
    return engine.writer.operations


def test_an_idle_server_writes_nothing(engines: Engines, clock: FakeClock) -> None:
    engine = engines(noop, clock=clock)
    engine.minutes.look()  # nobody does again before the time has passed
    wait_for_state(engines.path, submit(engine, "noop"))
    rest(engine)
    look_after(engine, clock, LOOK_MS)
    wait_until(lambda: table(engines.path), 5, "the job to be written")
    before = operations(engine)
    for _ in range(3):
        look_after(engine, clock, MINUTE_MS)

    assert operations(engine) == before + 1  # the settling
    engines.stop(engine)
    rows = table(engines.path)
    engines.stop(engines(noop, clock=clock))
    assert table(engines.path) == rows


def test_how_many_wait_and_work_is_as_of_the_last_look(engines: Engines, clock: FakeClock) -> None:
    gate = engines.gate()

    def held() -> None:
        gate.pass_through()

    engine = engines(held, clock=clock, workers=1)
    engine.minutes.look()  # nobody does again before the time has passed
    running, waiting = submit(engine, "held"), submit(engine, "held", queue="mail")
    gate.wait_for_arrival()
    wait_for_state(engines.path, running, State.RUNNING)
    clock.advance(LOOK_MS)  # and the engine looks by itself
    (figures,) = wait_until(lambda: list(table(engines.path).values()), 5)
    assert (figures["queue_depth", "mail"], figures["workers_busy", "thread"]) == (1, 1)

    cancel(engine, waiting)
    gate.open()
    wait_for_state(engines.path, running)
    engines.stop(engine)
    (figures,) = table(engines.path).values()
    assert (figures["queue_depth", "mail"], figures["workers_busy", "thread"]) == (0, 0)


def test_what_was_counted_before_there_were_minutes_belongs_to_none(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as old:
        first = migrations.scripts()[:1]
        old.setattr(migrations, "scripts", lambda: first)
        with closing(db.open_writer(engines.path)) as base:
            base.connection.execute("INSERT INTO counters VALUES ('attempts_failed', 'bad', 1000000)")
    engine = engines(bad)
    wait_for_state(engines.path, submit(engine, "bad", max_retries=0))
    engines.stop(engine)

    assert sums(engines.path) == {("enqueued", "bad"): 1, ("failed", "bad"): 1, ("attempts_failed", "bad"): 1}


def test_old_minutes_go_in_steps(engines: Engines, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "PRUNED_MAX", 10)
    now = clock.now_ms() // MINUTE_MS
    kept, old = now - KEPT_MINUTES, range(now - KEPT_MINUTES - 25, now - KEPT_MINUTES)
    with closing(db.open_writer(engines.path)) as base:
        base.connection.executemany(
            "INSERT INTO minutes VALUES (?, 'finished', 'noop', 1)", [(minute,) for minute in (*old, kept)]
        )
    engine = engines(noop, clock=clock, workers=0)
    for left in (15, 5, 0, 0):
        submit(engine, "noop")
        look_after(engine, clock, LOOK_MS)
        wait_until(
            lambda: sum(minute in old for minute in table(engines.path)), 5, "old minutes to go", until=left.__eq__
        )

    assert list(table(engines.path)) == [kept, now]


def test_writing_while_jobs_run_counts_nothing_twice(engines: Engines) -> None:
    engine = engines([noop, bad])
    over = threading.Event()

    def write_all_the_time() -> None:
        while not over.is_set():
            verb(engine, engine.minutes.write_last)

    writing = threading.Thread(target=write_all_the_time)
    writing.start()
    for _ in range(20):
        run_some(engine, engines.path)
    over.set()
    writing.join()
    engines.stop(engine)

    assert sums(engines.path) == counters(engines.path)
    assert sums(engines.path)["finished", "noop"] == 40
