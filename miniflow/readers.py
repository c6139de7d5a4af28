"""Reading beside the writer: read-only connections, short transactions, and never a cursor left open (it would pin the WAL).

Two ways, by what a read costs. A look at one job by its key takes microseconds, less than handing it to another thread: it is
done right on the event loop, through ``point``. Lists, logs and histories go through aiosqlite, which gives each connection a
thread, so that a slow one blocks nobody. aiosqlite is given a connector that opens an apsw connection: its own would bring the
standard library's SQLite into the process (see ``guard.py``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiosqlite.core import Connection as AioConnection

from miniflow.db import open_reader

POOL = 2
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

    async def open(self) -> None:
        for _ in range(POOL):
            # open_reader gives what aiosqlite asks of a connection; its annotation names sqlite3's class.
            self._pool.put_nowait(await AioConnection(lambda: open_reader(self._path), 64))  # type: ignore[arg-type, return-value]
            self._opened += 1

    async def close(self) -> None:
        """Close what was opened, once nobody uses it any more."""
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
        """Rows of any other read; one hop into a reader's thread and back."""
        async with self._lend() as connection:
            return list(await connection.execute_fetchall(statement, parameters))

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[AioConnection]:
        connection = await self._pool.get()
        try:
            yield connection
        finally:
            self._pool.put_nowait(connection)

    def _over_budget(self) -> bool:
        return time.monotonic() - self._started > POINT_BUDGET_S
