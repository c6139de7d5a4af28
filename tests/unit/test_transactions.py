"""A job's own writes are committed with its end, or not at all; and the writer is never lost to a job."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from miniflow import current_job
from miniflow.engine import Engine
from miniflow.errors import TransactionRefused
from miniflow.states import State
from miniflow.transactions import own_tables
from miniflow.workflow_context import WorkflowContext
from tests.engines import Engines, cancel, row, submit, verb, wait_for_state
from tests.functions import begin, functions, output
from tests.invariants import read
from tests.waiting import PATIENCE, wait_until
from tests.workflows import ended as ended_workflow

MINE = "CREATE TABLE IF NOT EXISTS balances (name TEXT PRIMARY KEY, cents INTEGER NOT NULL CHECK (cents >= 0))"


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as engines:
        yield engines


def add(name: str, cents: int, fail: bool = False) -> int:
    with current_job().transaction() as db:
        db.execute(MINE)
        db.execute(
            "INSERT INTO balances VALUES (?, ?) ON CONFLICT DO UPDATE SET cents = cents + excluded.cents", (name, cents)
        )
        total = db.execute("SELECT cents FROM balances WHERE name = ?", (name,)).fetchone()
    if fail:
        raise ValueError("after the block")
    assert total is not None
    return int(total[0])


def balances(path: Path) -> dict[str, int]:
    with closing(read(path)) as connection:
        there = list(connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'balances'"))
        return dict(connection.execute("SELECT name, cents FROM balances")) if there else {}


def ended(engine: Engine, engines: Engines, task: str, payload: Any = None, **options: Any) -> Any:
    return wait_for_state(engines.path, submit(engine, task, payload, **options), timeout_s=10)


def refused(engines: Engines, body: Callable[[Any], Any]) -> str:
    """What a job whose block is ``body`` fails with."""

    def attempted() -> None:
        with current_job().transaction() as db:
            db.execute(MINE)
            body(db)

    engine = engines([attempted])
    job = ended(engine, engines, "attempted", max_retries=0)
    engines.stop(engine)
    assert job.state == State.DEAD_LETTER
    assert balances(engines.path) == {}
    return str(job.last_error)


def test_what_a_job_writes_is_there_with_its_end(engines: Engines) -> None:
    engine = engines([add])
    assert ended(engine, engines, "add", {"name": "a", "cents": 5}).result == "5"
    assert ended(engine, engines, "add", {"name": "a", "cents": 3}).result == "8"
    assert balances(engines.path) == {"a": 8}


def test_both_are_one_commit(engines: Engines) -> None:
    engine = engines([add])
    seen: list[tuple[Any, ...]] = []

    def look(tx: Any) -> None:  # at the end of each group: what a crash after this commit would leave
        if tx.run("SELECT 1 FROM sqlite_schema WHERE name = 'balances'"):
            seen.append((tx.run("SELECT cents FROM balances")[0][0], *tx.run("SELECT state FROM jobs")[0]))

    engine.writer.every_group(look)
    ended(engine, engines, "add", {"name": "a", "cents": 5})
    assert set(seen) == {(5, State.COMPLETED)}


def test_of_a_job_that_fails_after_its_block_nothing_is_there_and_its_retry_does_it_once(engines: Engines) -> None:
    engine = engines([add])
    job = ended(engine, engines, "add", {"name": "a", "cents": 5, "fail": True}, max_retries=1, retry=[0])
    assert (job.state, job.attempt) == (State.DEAD_LETTER, 2)
    assert balances(engines.path) == {}
    ended(engine, engines, "add", {"name": "a", "cents": 5})
    assert balances(engines.path) == {"a": 5}


def test_an_error_in_the_block_undoes_it_and_a_job_that_catches_it_goes_on_without(engines: Engines) -> None:
    def careful() -> str:
        try:
            with current_job().transaction() as db:
                db.execute(MINE)
                db.execute("INSERT INTO balances VALUES ('a', 1)")
                db.execute("INSERT INTO balances VALUES ('b', -1)")
        except apsw.ConstraintError:
            with current_job().transaction() as db:
                db.execute(MINE)
                db.executemany("INSERT INTO balances VALUES (?, ?)", [("c", 1), ("d", 2)])
                assert (db.changes, db.last_insert_rowid) == (1, 2)
            return "second"
        return "first"

    engine = engines([careful])
    assert ended(engine, engines, "careful").result == '"second"'
    assert balances(engines.path) == {"c": 1, "d": 2}


def test_blocks_of_one_job_are_one_transaction(engines: Engines) -> None:
    def twice(fail: bool) -> None:
        for name in ("a", "b"):
            with current_job().transaction() as db:
                db.execute(MINE)
                db.execute("INSERT INTO balances VALUES (?, 1)", (name,))
        if fail:
            raise ValueError

    engine = engines([twice])
    ended(engine, engines, "twice", {"fail": True}, max_retries=0)
    assert balances(engines.path) == {}
    ended(engine, engines, "twice", {"fail": False})
    assert balances(engines.path) == {"a": 1, "b": 1}


@pytest.mark.parametrize("where", ["in the block", "after it"])
def test_one_that_takes_too_long_is_undone_and_others_write_again(engines: Engines, where: str) -> None:
    gate = engines.gate()

    def slow() -> None:
        try:
            with current_job().transaction() as db:
                db.execute(MINE)
                db.execute("INSERT INTO balances VALUES ('slow', 1)")
                if where == "in the block":
                    gate.pass_through()
                    db.execute("INSERT INTO balances VALUES ('late', 1)")
            gate.pass_through()
        finally:
            gate.here.release()  # it may be over its limit before it gets to the gate

    engine = engines([slow, add], transaction_limit=0.2)
    job = submit(engine, "slow", max_retries=0)
    gate.wait_for_arrival()
    assert ended(engine, engines, "add", {"name": "a", "cents": 1}).result == "1"
    gate.open()
    failed = wait_for_state(engines.path, job)
    assert failed.last_error is not None
    assert "transaction_limit = 0.2 s; nothing of it was written" in failed.last_error
    assert balances(engines.path) == {"a": 1}


def test_a_statement_that_takes_too_long_is_interrupted(engines: Engines) -> None:
    def endless() -> None:
        with current_job().transaction() as db:
            db.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")

    engine = engines([endless], transaction_limit=0.1)
    failed = ended(engine, engines, "endless", max_retries=0)
    assert "transaction_limit" in str(failed.last_error)


def test_a_job_that_is_cancelled_in_its_block_leaves_nothing(engines: Engines) -> None:
    arrived = threading.Event()

    def waits() -> None:
        with current_job().transaction() as db:
            db.execute(MINE)
            db.execute("INSERT INTO balances VALUES ('a', 1)")
            arrived.set()
            while True:
                current_job().check_cancelled()

    engine = engines([waits], transaction_limit=5)
    job = submit(engine, "waits")
    assert arrived.wait(5 * PATIENCE)
    attempt = engine.running.all()[0]
    threading.Timer(0.05, lambda: cancel(engine, job)).start()
    wait_until(lambda: attempt.finished, 10, "the attempt to end")
    assert wait_for_state(engines.path, job).state == State.CANCELLED
    assert balances(engines.path) == {}


def test_others_wait_and_are_served_when_it_ends(engines: Engines) -> None:
    gate = engines.gate()

    def held() -> None:
        with current_job().transaction() as db:
            db.execute(MINE)
            gate.pass_through()

    engine = engines([held, add], transaction_limit=10)
    submit(engine, "held")
    gate.wait_for_arrival()
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(submit(engine, "add", {"name": "a", "cents": 1})))
    thread.start()
    thread.join(0.1)
    assert done == []
    gate.open()
    thread.join(5 * PATIENCE)
    assert wait_for_state(engines.path, done[0]).state == State.COMPLETED


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("UPDATE jobs SET state = 'completed'", "jobs is MiniFlow's own: a job may read it, and not write to it"),
        ("DELETE FROM workflows", "workflows is MiniFlow's own"),
        ("DROP TABLE counters", "counters is MiniFlow's own"),
        ("ALTER TABLE jobs ADD COLUMN mine", "jobs is MiniFlow's own"),
        ("CREATE INDEX mine ON jobs (task)", "jobs is MiniFlow's own"),
        ("CREATE TRIGGER mine AFTER INSERT ON jobs BEGIN SELECT 1; END", "jobs is MiniFlow's own"),
        ("COMMIT", "no BEGIN, COMMIT, ROLLBACK or SAVEPOINT"),
        ("SAVEPOINT mine", "no BEGIN, COMMIT, ROLLBACK or SAVEPOINT"),
        ("PRAGMA synchronous = OFF", "PRAGMA synchronous is not for a job's transaction"),
        ("ATTACH 'other.db' AS other", "anything else is not for it"),
        ("CREATE TEMP TABLE mine (a)", "anything else is not for it"),
        ("UPDATE sqlite_master SET sql = ''", "may not be modified"),
        ("CREATE TABLE mine (job INTEGER REFERENCES jobs (seq))", "mine has a foreign key to jobs"),
        ("SELECT * FROM balances; SELECT 1; COMMIT", "no BEGIN, COMMIT, ROLLBACK or SAVEPOINT"),
        ("INSERT INTO nowhere VALUES (1)", "no such table: nowhere"),
        ("INSERT INTO sqlite_sequence VALUES ('logs', 9223372036854775807)", "sqlite_sequence says how MiniFlow's own"),
        ("ANALYZE balances", "anything else is not for it"),
        ("PRAGMA page_size = 512", "PRAGMA page_size is not for a job's transaction"),
        (
            "CREATE VIRTUAL TABLE words USING fts5 (a); CREATE VIRTUAL TABLE temp.v USING fts5vocab (main, words, row)",
            "anything else is not for it",
        ),
    ],
)
def test_what_is_not_allowed_is_refused_and_undoes_all(engines: Engines, sql: str, words: str) -> None:
    assert words in refused(engines, lambda db: db.execute(sql))


def test_the_virtual_tables_of_sqlite_and_rows_that_it_numbers_are_for_a_jobs_own_tables_too(engines: Engines) -> None:
    def body() -> Any:
        with current_job().transaction() as db:
            db.execute(
                "CREATE TABLE numbered (id INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO numbered DEFAULT VALUES"
            )
            db.execute("ALTER TABLE numbered RENAME TO renamed; DROP TABLE renamed")
            db.execute("CREATE VIRTUAL TABLE words USING fts5 (text)")
            db.execute("INSERT INTO words VALUES ('one'), ('two')")
            return db.execute("SELECT text FROM words WHERE words MATCH 'two'")

    engine = engines([body])
    assert ended(engine, engines, "body", max_retries=0).result == '[["two"]]'


def test_rows_may_be_made_by_means_of_the_transaction_that_they_are_for(engines: Engines) -> None:
    def body() -> None:
        with current_job().transaction() as db:
            db.execute(MINE)
            db.executemany(
                "INSERT INTO balances VALUES (?, ?)", ((name, db.execute("SELECT 7").fetchone()[0]) for name in "ab")
            )

    engine = engines([body])
    assert ended(engine, engines, "body", max_retries=0).state == State.COMPLETED
    assert balances(engines.path) == {"a": 7, "b": 7}


def test_rows_that_are_slow_in_the_making_do_not_keep_the_writer(engines: Engines) -> None:
    gate = engines.gate()

    def body() -> None:
        def rows() -> Iterator[tuple[str, int]]:
            gate.pass_through()
            yield ("slow", 1)

        try:
            with current_job().transaction() as db:
                db.execute(MINE)
                db.executemany("INSERT INTO balances VALUES (?, ?)", rows())
        finally:
            gate.here.release()  # it may be over its limit before it gets to the gate

    engine = engines([body, add], transaction_limit=0.1)
    slow = submit(engine, "body", max_retries=0)
    gate.wait_for_arrival()
    ended(engine, engines, "add", {"name": "a", "cents": 1})
    gate.open()
    assert wait_for_state(engines.path, slow).state == State.DEAD_LETTER
    assert balances(engines.path) == {"a": 1}


def test_one_whose_commit_is_refused_fails_the_job(engines: Engines) -> None:
    def body(db: Any) -> None:
        db.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
        db.execute("CREATE TABLE children (parent REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)")
        db.execute("INSERT INTO children VALUES (1)")

    assert "FOREIGN KEY constraint failed" in refused(engines, body)


def test_one_that_was_made_and_not_entered_is_none(engines: Engines) -> None:
    def body() -> str:
        current_job().transaction()
        return "done"

    engine = engines([body])
    assert ended(engine, engines, "body", max_retries=0).result == '"done"'


def test_a_job_that_does_not_leave_its_block_fails_at_once(engines: Engines) -> None:
    left: list[Any] = []

    def body() -> None:
        left.append(current_job().transaction())
        left[0].__enter__().execute(MINE)

    engine = engines([body], transaction_limit=60)
    failed = ended(engine, engines, "body", max_retries=0)
    assert "ended inside of the block" in str(failed.last_error)


@pytest.mark.parametrize("lines", [3_000, 9_000])
def test_what_is_printed_in_it_does_not_wait_for_the_writer(engines: Engines, lines: int) -> None:
    """Neither the end of a job with a long log nor, in a retry, the look at what the log has already."""

    def body() -> None:
        with current_job().transaction() as db:
            db.execute(MINE)
            for n in range(lines):
                print("a line of some length", n)
        if current_job().attempt == 1:
            raise ValueError

    limit_s = 10 * PATIENCE
    engine = engines([body], transaction_limit=limit_s)
    began = time.monotonic()
    job = ended(engine, engines, "body", max_retries=1, retry=[0])
    assert (job.state, job.attempt) == (State.COMPLETED, 2)
    assert time.monotonic() - began < limit_s / 2


def test_rows_that_raise_while_they_are_made_undo_all(engines: Engines) -> None:
    def rows() -> Iterator[tuple[str, int]]:
        yield ("a", 1)
        raise ValueError("no more")

    words = refused(engines, lambda db: db.executemany("INSERT INTO balances VALUES (?, ?)", rows()))
    assert words == "ValueError: no more"


def test_a_trigger_of_ones_own_does_not_reach_miniflows_tables(engines: Engines) -> None:
    def body(db: Any) -> None:
        db.execute("CREATE TRIGGER mine AFTER INSERT ON balances BEGIN DELETE FROM jobs; END")
        db.execute("INSERT INTO balances VALUES ('a', 1)")

    assert "jobs is MiniFlow's own" in refused(engines, body)


def test_a_statement_of_miniflows_own_is_refused_though_it_has_just_run(engines: Engines) -> None:
    """The writer keeps its statements prepared; a job's are prepared, and looked at, each time."""
    from miniflow import statements

    assert "MiniFlow's own" in refused(engines, lambda db: db.execute(statements.ADD_TO_COUNTERS, ("[]",)))


def test_a_job_reads_miniflows_tables(engines: Engines) -> None:
    def look() -> Any:
        with current_job().transaction() as db:
            return db.execute("SELECT state FROM jobs WHERE id = ?", (current_job().job_id,)).fetchall()

    engine = engines([look])
    assert ended(engine, engines, "look").result == '[["running"]]'


def test_what_would_wait_for_the_writer_is_refused_in_the_block(engines: Engines) -> None:
    def attempted() -> None:
        with current_job().transaction():
            engine.submit(engine.registry.get("attempted"), "{}", {})

    engine = engines([attempted])
    failed = ended(engine, engines, "attempted", max_retries=0)
    assert "do this before it" in str(failed.last_error)


def test_db_is_of_use_in_its_block_and_its_thread_only(engines: Engines) -> None:
    def body(db: Any) -> None:
        caught: list[str] = []

        def elsewhere() -> None:
            try:
                db.execute("SELECT 1")
            except TransactionRefused as exc:
                caught.append(str(exc))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        raise ValueError(caught[0])

    assert "is for the thread that opened it" in refused(engines, body)

    def after() -> None:
        with current_job().transaction() as db:
            pass
        db.execute("SELECT 1")

    engine = engines([after])
    assert "use db inside of it" in str(ended(engine, engines, "after", max_retries=0).last_error)


def test_a_coroutine_has_none(engines: Engines) -> None:
    async def coroutine() -> None:
        with current_job().transaction():
            pass

    engine = engines([coroutine])
    failed = ended(engine, engines, "coroutine", max_retries=0)
    assert "only a job that runs in a thread of the server" in str(failed.last_error)


def test_outside_of_a_job_there_is_none() -> None:
    with pytest.raises(TransactionRefused, match="only a job"):
        current_job().transaction()


def test_a_stop_waits_for_one_that_holds_it_no_longer_than_its_limit(engines: Engines) -> None:
    gate = engines.gate()

    def held() -> None:
        with current_job().transaction() as db:
            db.execute(MINE)
            db.execute("INSERT INTO balances VALUES ('a', 1)")
            gate.pass_through()

    engine = engines([held], transaction_limit=PATIENCE)
    job = submit(engine, "held")
    gate.wait_for_arrival()
    assert engines.stop(engine, 0.1) == 1
    gate.open()
    assert balances(engines.path) == {}
    assert row(engines.path, job).state == State.QUEUED


def test_a_step_of_a_function_commits_what_it_writes_with_its_completion(engines: Engines) -> None:
    calls: list[str] = []

    def pay(name: str, fail: bool) -> int:
        calls.append(name)
        return add(name, 5, fail and len(calls) == 1)

    def order(ctx: WorkflowContext, payload: dict[str, Any]) -> Any:
        first = ctx.step(pay, "a", True, retry=[0])
        both = ctx.gather(ctx.defer(pay, "b", False), ctx.defer(pay, "c", False))
        return [first, *both]

    engine = engines(functions(order))
    seen: list[tuple[Any, ...]] = []

    def look(tx: Any) -> None:  # at the end of each group: what a crash after this commit would leave
        if tx.run("SELECT 1 FROM sqlite_schema WHERE name = 'balances'"):
            seen.append((
                tx.run("SELECT count(*) FROM balances")[0][0],
                tx.run("SELECT count(*) FROM checkpoints WHERE state = 'completed'")[0][0],
            ))  # fmt: skip

    engine.writer.every_group(look)
    assert output(engines.path, begin(engine, "order", {})) == [5, 5, 5]
    assert set(seen) == {(1, 1), (2, 2), (3, 3)}
    assert calls[:2] == ["a", "a"]
    assert balances(engines.path) == {"a": 5, "b": 5, "c": 5}


def test_a_function_has_transactions_in_its_steps_only(engines: Engines) -> None:
    def order(ctx: WorkflowContext, payload: dict[str, Any]) -> Any:
        with ctx.transaction():
            pass

    engine = engines(functions(order))
    run = begin(engine, "order", {})
    state, _, error = ended_workflow(engines.path, run)
    assert state == "failed"
    assert "its transactions belong into steps" in str(error)


def test_the_names_that_are_taken_are_those_of_the_schema(engines: Engines) -> None:
    engine = engines([add])
    found = verb(engine, lambda tx: tx.run("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')"))
    assert {name for (name,) in found if not name.startswith("sqlite_")} == own_tables()
