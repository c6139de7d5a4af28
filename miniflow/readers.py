"""Reading beside the writer: read-only connections, short transactions, and never a cursor left open (it would pin the WAL).

Two ways, by what a read costs. A look at one job by its key takes microseconds, less than handing it to another thread: it is
done right on the event loop, through ``point``. Lists, logs and histories go through aiosqlite, which gives each connection a
thread, so that a slow one does not block the loop. aiosqlite is given a connector that opens an apsw connection: its own would
bring the standard library's SQLite into the process (see ``guard.py``).

A read has a budget of time, and is interrupted when that is used up. Searches through texts, which may look at any number of
megabytes, never have all of the pool: the pages and followers that know by an index where to read find a connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import apsw
from aiosqlite.core import Connection as AioConnection

from miniflow.db import open_reader
from miniflow.errors import ReadTooSlow, SearchTooExpensive, StoreClosed

POOL = 3
SEARCHES = 2  # at most so many of them search at a time
SEARCHING = " LIKE ? "  # in a statement: it looks through texts
SEARCH_BUDGET_S = 2.0
READ_BUDGET_S = 10.0
AGAIN_S = 0.02  # an interrupt that comes before its statement has begun is lost
POINT_BUDGET_S = 0.25
"""A point read that takes longer is no point read: it is interrupted rather than stopping the loop."""
PROGRESS_STEPS = 20_000  # virtual machine instructions between two looks at the budget


class Readers:
    """Opened and closed on the event loop."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._point = open_reader(path)
        self._started = 0.0
        self._point.set_progress_handler(self._over_budget, PROGRESS_STEPS)
        self._opened = 0
        self._pool: asyncio.Queue[AioConnection] = asyncio.Queue()
        self._lent: set[AioConnection] = set()
        self._freeing: set[asyncio.Task[None]] = set()
        self._searches = asyncio.Semaphore(SEARCHES)
        self._closing = False

    async def open(self) -> None:
        for _ in range(POOL):
            # open_reader gives what aiosqlite asks of a connection; its annotation names sqlite3's class.
            self._pool.put_nowait(await AioConnection(lambda: open_reader(self._path), 64))  # type: ignore[arg-type, return-value]
            self._opened += 1

    async def close(self) -> None:
        """Interrupt what is read, and close what was opened."""
        self._closing = True
        await asyncio.gather(*(_freed(connection) for connection in self._lent))
        while self._opened:
            connection = await self._pool.get()
            self._opened -= 1
            await connection.close()
        self._point.close()

    def point(self, statement: str, *parameters: Any) -> list[Any]:
        """Rows of a read by key, at once."""
        self._started = time.monotonic()
        return self._point.execute(statement, parameters).fetchall()

    async def fetch(self, statement: str, *parameters: Any) -> list[Any]:
        """Rows of any other read; one hop into a reader's thread and back. SearchTooExpensive or ReadTooSlow if it is over its
        budget, StoreClosed if the readers are closed meanwhile."""
        is_search = SEARCHING in statement
        budget_s = SEARCH_BUDGET_S if is_search else READ_BUDGET_S
        async with self._searches if is_search else nullcontext(), self._lend() as connection:
            timer = asyncio.get_running_loop().call_later(budget_s, _interrupt, connection)
            try:
                return list(await connection.execute_fetchall(statement, parameters))
            except apsw.InterruptError:
                self._check_open()
                raise SearchTooExpensive(budget_s) if is_search else ReadTooSlow(budget_s) from None
            finally:
                timer.cancel()

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[AioConnection]:
        self._check_open()
        connection = await self._pool.get()
        self._lent.add(connection)
        try:
            self._check_open()  # it may have waited for long
            yield connection
        except asyncio.CancelledError:  # the caller leaves at once, and its statement goes on
            freeing = asyncio.create_task(_freed(connection))
            self._freeing.add(freeing)
            freeing.add_done_callback(lambda _: self._give_back(connection))
            freeing.add_done_callback(self._freeing.discard)
            raise
        except BaseException:  # whatever it was, the thread is through with it
            self._give_back(connection)
            raise
        else:
            self._give_back(connection)

    def _give_back(self, connection: AioConnection) -> None:
        self._lent.discard(connection)
        self._pool.put_nowait(connection)

    def _check_open(self) -> None:
        if self._closing:
            raise StoreClosed("the server is shutting down")

    def _over_budget(self) -> bool:
        return time.monotonic() - self._started > POINT_BUDGET_S


def _interrupt(connection: AioConnection) -> None:
    """End the statement that it executes, if any; from whichever thread."""
    connection._conn.interrupt()  # aiosqlite's own ``interrupt`` is a coroutine, which a timer cannot call


async def _freed(connection: AioConnection) -> None:
    """Interrupt what its thread does, until that has come to the end of what it was given."""
    turn = asyncio.ensure_future(connection.execute_fetchall("SELECT 1"))
    while not turn.done():
        _interrupt(connection)
        await asyncio.wait((turn,), timeout=AGAIN_S)
    turn.exception()  # an interrupt may have met this one too
