"""Many rows inserted by one statement, its values bound.

Each statement that SQLite runs costs a thread the GIL, which others want; a value that is bound costs a fifth of one that SQLite
takes out of a JSON text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Protocol

ROWS_MAX = 128
"""In one statement. Powers of two up to here make any number of rows, so that there are few statements to be kept prepared;
those with a text of over 16,384 bytes apsw does not keep."""


class Connection(Protocol):
    """What is needed of apsw's."""

    def execute(self, statements: str, bindings: Any) -> Any: ...


def insert(connection: Connection, sql: str, rows: Sequence[Sequence[Any]], *shared: Any) -> None:
    """Insert ``rows``. ``sql`` ends with the VALUES of one of them: first those that all have (``?1`` and so on, ``shared``),
    then a ``?`` for each of its own."""
    at = 0
    while at < len(rows):
        count = min(1 << ((len(rows) - at).bit_length() - 1), ROWS_MAX)
        connection.execute(_with_rows(sql, count), [*shared, *chain.from_iterable(rows[at : at + count])])
        at += count


@lru_cache(maxsize=128)
def _with_rows(sql: str, count: int) -> str:
    """``sql`` with the values of so many rows."""
    head, _, values = sql.rstrip().rpartition("VALUES")
    return f"{head}VALUES {', '.join([values] * count)}"
