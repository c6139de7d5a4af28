"""Many rows are inserted by few statements, in order and without a gap."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from miniflow import db, dependency_statements, statements, workflow_statements
from miniflow.inserting import ROWS_MAX, insert

SQL = """
INSERT INTO seen (moment, a, b)
VALUES (?1, ?, coalesce(?, 7))
"""


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[apsw.Connection]:
    with closing(db.open_writer(tmp_path / "a.db")) as database:
        database.connection.execute("CREATE TABLE seen (number INTEGER PRIMARY KEY, moment, a, b)")
        yield database.connection


@pytest.mark.parametrize("count", [0, 1, 2, 3, 63, ROWS_MAX - 1, ROWS_MAX, ROWS_MAX + 1, 5 * ROWS_MAX + 77])
def test_any_number_of_rows_comes_in_their_order(connection: apsw.Connection, count: int) -> None:
    insert(connection, SQL, [(n, n * 2 if n % 2 else None) for n in range(count)], "now")
    found = connection.execute("SELECT number, moment, a, b FROM seen ORDER BY number").fetchall()
    assert found == [(n + 1, "now", n, n * 2 if n % 2 else 7) for n in range(count)]


def test_statements_are_few_and_few_are_different(connection: apsw.Connection) -> None:
    run: list[str] = []

    class Counting:
        def execute(self, statements: str, bindings: Any) -> Any:
            run.append(statements)
            return connection.execute(statements, bindings)

    for count in range(300):
        run.clear()
        insert(Counting(), SQL, [(n, None) for n in range(count)], "now")
        assert len(run) <= count // ROWS_MAX + count.bit_length()
    run.clear()
    for count in range(300):
        insert(Counting(), SQL, [(n, None) for n in range(count)], "now")
    assert len(set(run)) == ROWS_MAX.bit_length()


@pytest.mark.parametrize(
    "sql",
    [
        statements.INSERT_JOBS,
        statements.INSERT_PLAIN_JOBS,
        workflow_statements.INSERT_WORKFLOWS,
        workflow_statements.ADD_STEPS,
        dependency_statements.ADD_EDGES,
    ],
)
def test_the_longest_text_of_each_statement_is_kept_prepared(sql: str, tmp_path: Path) -> None:
    run: list[str] = []

    class Noting:
        def execute(self, statements: str, bindings: Any) -> Any:
            run.append(statements)

    values = len(re.findall(r"\?(?!\d)", sql))
    shared = len(set(re.findall(r"\?\d", sql)))
    insert(Noting(), sql, [(1,) * values] * ROWS_MAX, *[1] * shared)
    (text,) = run
    with closing(db.open_writer(tmp_path / "b.db")) as database:
        connection = database.connection
        for _ in range(2):
            with contextlib.suppress(apsw.Error):  # what is inserted makes no sense; it is the text that matters
                connection.execute(text, [1] * (shared + values * ROWS_MAX))
        assert connection.cache_stats()["too_big"] == 0


def test_a_row_that_the_table_refuses_leaves_none_of_its_statement(connection: apsw.Connection) -> None:
    connection.execute("CREATE UNIQUE INDEX each_once ON seen (a)")
    with pytest.raises(apsw.ConstraintError):
        insert(connection, SQL, [(1, 1), (2, 2), (1, 3), (4, 4)], "now")
    assert connection.execute("SELECT count(*) FROM seen").fetchall() == [(0,)]
