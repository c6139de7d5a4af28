"""Reading beside the writer: at once by key, through the pool for the rest, and never a write."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from miniflow import db, list_statements, readers
from miniflow.errors import ReadTooSlow, SearchTooExpensive, StoreClosed
from miniflow.readers import POOL, SEARCHES, Readers
from tests.waiting import PATIENCE, wait_until

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
"""A read that nobody waits for the end of."""
LONG = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300000) SELECT count(*) FROM n"
SEARCH = ENDLESS + r" WHERE i LIKE ? ESCAPE '\'"

PUT = "INSERT INTO meta VALUES (?, ?)"
GET = "SELECT value FROM meta WHERE key = ?"
WRITES = (
    "DELETE FROM meta",
    "INSERT INTO meta VALUES ('by', 'a reader')",
    "UPDATE meta SET value = 0",
    "CREATE TABLE mine (x)",
    "DROP TABLE meta",
    "PRAGMA user_version = 77",
)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[db.Database]:
    with closing(db.open_writer(tmp_path / "jobs.db")) as opened:
        opened.connection.execute(PUT, ("key", "value"))
        yield opened


@asynccontextmanager
async def opened(base: db.Database) -> AsyncIterator[Readers]:
    made = Readers(base.path)
    await made.open()
    try:
        yield made
    finally:
        await made.close()


def reading(base: db.Database, body: Callable[[Readers], Awaitable[None]]) -> None:
    """Run ``body`` with open readers, on a loop of its own. A read that is not cut short would hold it up for ever."""

    async def run() -> None:
        async with opened(base) as made, asyncio.timeout(10 * PATIENCE):
            await body(made)

    asyncio.run(run())


@pytest.fixture
def no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not interrupted for another reason goes on for longer than any test."""
    monkeypatch.setattr(readers, "READ_BUDGET_S", 3600)
    monkeypatch.setattr(readers, "SEARCH_BUDGET_S", 3600)


@pytest.fixture
def short_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "POINT_BUDGET_S", 0.02)


# ------------------------------------------------------------------------------------------------------------- by key


def test_a_point_read_answers_at_once(base: db.Database) -> None:
    async def body(made: Readers) -> None:
        assert made.point(GET, "key") == [("value",)]
        assert made.point(GET, "another") == []

    reading(base, body)


def test_a_point_read_sees_each_commit(base: db.Database) -> None:
    async def body(made: Readers) -> None:
        for number in range(20):
            base.connection.execute("UPDATE meta SET value = ? WHERE key = 'key'", (number,))
            assert made.point(GET, "key") == [(number,)]

    reading(base, body)


def test_nobody_sees_what_is_not_committed(base: db.Database) -> None:
    async def body(made: Readers) -> None:
        with base.connection:
            base.connection.execute(PUT, ("new", 1))
            assert made.point(GET, "new") == []
            assert await made.fetch(GET, "new") == []
        assert made.point(GET, "new") == await made.fetch(GET, "new") == [(1,)]

    reading(base, body)


def test_a_slow_point_read_is_interrupted_and_the_next_one_answers(base: db.Database, short_budget: None) -> None:
    async def body(made: Readers) -> None:
        for _ in range(3):
            with pytest.raises(apsw.InterruptError):
                made.point(ENDLESS)
            assert made.point(GET, "key") == [("value",)]

    reading(base, body)


def test_an_error_leaves_the_connection_to_the_next(base: db.Database) -> None:
    async def body(made: Readers) -> None:
        with pytest.raises(apsw.SQLError):
            made.point("SELECT nonsense")
        with pytest.raises(apsw.SQLError):
            await made.fetch("SELECT nonsense")
        assert made.point(GET, "key") == await made.fetch(GET, "key") == [("value",)]

    reading(base, body)


# -------------------------------------------------------------------------------------------------------- from the pool


def test_the_pool_answers_with_all_rows(base: db.Database) -> None:
    base.connection.executemany(PUT, ((f"row {n:04}", n) for n in range(1_000)))

    async def body(made: Readers) -> None:
        assert await made.fetch("SELECT value FROM meta WHERE key > ? ORDER BY key", "row") == [
            (n,) for n in range(1_000)
        ]

    reading(base, body)


def test_a_slow_read_of_the_pool_is_not_interrupted_and_blocks_nobody(base: db.Database, short_budget: None) -> None:
    async def body(made: Readers) -> None:
        slow = asyncio.create_task(made.fetch(LONG))
        await asyncio.sleep(0)
        assert made.point(GET, "key") == [("value",)]
        assert await made.fetch(GET, "key") == [("value",)]
        assert await slow == [(300_000,)]

    reading(base, body)


def test_more_readers_than_connections_take_turns(base: db.Database) -> None:
    async def body(made: Readers) -> None:
        answers = await asyncio.gather(*(made.fetch("SELECT ?", n) for n in range(50 * POOL)))
        assert answers == [[(n,)] for n in range(50 * POOL)]

    reading(base, body)


def test_a_caller_that_gives_up_gives_its_connection_back(base: db.Database) -> None:
    async def body(made: Readers) -> None:
        for _ in range(2 * POOL):
            asking = asyncio.create_task(made.fetch(LONG))
            await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        assert await asyncio.gather(*(made.fetch(GET, "key") for _ in range(2 * POOL))) == [[("value",)]] * 2 * POOL

    reading(base, body)


@pytest.mark.usefixtures("no_budget")
def test_a_caller_that_gives_up_leaves_nothing_running(base: db.Database) -> None:
    async def body(made: Readers) -> None:
        asking = [asyncio.create_task(made.fetch(ENDLESS)) for _ in range(POOL)]
        await asyncio.sleep(0.02)
        for one in asking:
            one.cancel()
        assert {type(one) for one in await asyncio.gather(*asking, return_exceptions=True)} == {asyncio.CancelledError}
        assert await asyncio.gather(*(made.fetch(GET, "key") for _ in range(2 * POOL))) == [[("value",)]] * 2 * POOL

    reading(base, body)


@pytest.mark.parametrize(
    ("statement", "refused"), [(SEARCH, SearchTooExpensive), (ENDLESS, ReadTooSlow)], ids=["search", "other"]
)
def test_a_read_over_its_budget_is_given_up_and_the_next_one_answers(
    base: db.Database, monkeypatch: pytest.MonkeyPatch, statement: str, refused: type[Exception]
) -> None:
    monkeypatch.setattr(readers, "SEARCH_BUDGET_S" if statement == SEARCH else "READ_BUDGET_S", 0.05)

    async def body(made: Readers) -> None:
        for _ in range(POOL + 1):
            with pytest.raises(refused, match=r"longer than 0\.05 s"):
                await made.fetch(statement, *["%7%"] * (statement == SEARCH))
            assert await made.fetch(GET, "key") == [("value",)]

    reading(base, body)


@pytest.mark.usefixtures("no_budget")
def test_searches_leave_a_connection_to_the_others(base: db.Database) -> None:
    async def body(made: Readers) -> None:
        searches = [asyncio.create_task(made.fetch(SEARCH, "%7%")) for _ in range(POOL + 2)]
        await asyncio.sleep(0.02)
        assert await made.fetch(GET, "key") == [("value",)]
        for one in searches:
            one.cancel()
        await asyncio.wait(searches)
        assert await made.fetch("SELECT 'a' LIKE ? ", "A") == [(1,)], (
            "one that waits for its turn to search gives it up"
        )

    reading(base, body)
    assert SEARCHES < POOL


def test_what_looks_through_texts_is_known_as_a_search() -> None:
    wheres = list_statements.NARROWED_BY
    assert (
        {name for name in wheres if "LIKE" in wheres[name]}
        == {name for name in wheres if readers.SEARCHING in wheres[name]}
        >= {"text", "text_beyond_ascii", "error"}
    )


@pytest.mark.usefixtures("no_budget")
def test_closing_ends_what_is_read_and_what_waits_for_its_turn(base: db.Database) -> None:
    async def body() -> None:
        async with opened(base) as made:
            asking = [asyncio.create_task(made.fetch(ENDLESS)) for _ in range(2 * POOL)]
            asking += [asyncio.create_task(made.fetch(SEARCH, "%7%")) for _ in range(2 * POOL)]
            await asyncio.sleep(0.02)
            asking[0].cancel()
        ends = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), PATIENCE)
        assert [type(one) for one in ends] == [asyncio.CancelledError] + [StoreClosed] * (4 * POOL - 1)
        with pytest.raises(StoreClosed):
            await asyncio.wait_for(made.fetch(GET, "key"), PATIENCE)

    asyncio.run(body())


def test_the_pools_threads_are_there_from_the_start_and_end_with_it(base: db.Database) -> None:
    before = set(threading.enumerate())

    async def body(made: Readers) -> None:
        pool = set(threading.enumerate()) - before
        await made.fetch(GET, "key")
        assert set(threading.enumerate()) - before == pool
        assert len(pool) == POOL

    reading(base, body)
    wait_until(lambda: set(threading.enumerate()) - before, 5, "the pool's threads to end", until=lambda left: not left)


# ------------------------------------------------------------------------------------------------------- never a write


@pytest.mark.parametrize("statement", WRITES)
def test_a_write_is_refused_whichever_way_it_comes(base: db.Database, statement: str) -> None:
    async def body(made: Readers) -> None:
        with pytest.raises(apsw.ReadOnlyError):
            made.point(statement)
        with pytest.raises(apsw.ReadOnlyError):
            await made.fetch(statement)

    reading(base, body)
    assert base.connection.execute("SELECT * FROM meta WHERE key IN ('key', 'by')").fetchall() == [("key", "value")]


def test_no_read_is_left_open(base: db.Database, short_budget: None) -> None:
    """One that is would keep the write-ahead log from being emptied, and it would grow without end."""

    async def body(made: Readers) -> None:
        made.point(GET, "key")
        await made.fetch(GET, "key")
        with pytest.raises(apsw.InterruptError):
            made.point(ENDLESS)
        with pytest.raises(apsw.SQLError):
            await made.fetch("SELECT abs(-9223372036854775807 - 1) FROM meta")
        base.connection.execute(PUT, ("more", 1))
        _, log, done = checkpoint(base.connection)
        assert (log, done) == (0, 0), "all of it is in the file, and the log is empty"

    reading(base, body)


def checkpoint(connection: apsw.Connection) -> Any:
    return connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0]
