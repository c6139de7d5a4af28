"""SQLite's own plan of each statement: what is on the way of a job reads no more rows than it needs, however many lie there."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from miniflow import (
    compensation_statements,
    db,
    definition_statements,
    dependency_statements,
    expansion_statements,
    function_statements,
    list_statements,
    rule_statements,
    statements,
    subworkflow_statements,
    trace_statements,
    workflow_statements,
)

STATEMENTS = {
    name: value
    for module in (
        statements,
        dependency_statements,
        rule_statements,
        workflow_statements,
        compensation_statements,
        expansion_statements,
        definition_statements,
        function_statements,
        subworkflow_statements,
        trace_statements,
    )
    for name, value in vars(module).items()
    if name.isupper() and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)\b", str(value))
}

MAY_SCAN: dict[str, str] = {
    "JOBS_BY_TASK_AND_STATE": "a benchmark counts all jobs of its own file, once, when the server has stopped",
    "WAITS_OF_FIRST_ATTEMPTS": "the same",
}
"""Statements that walk all of jobs, each with the reason that it may."""

ROWS = 20_000


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[apsw.Connection]:
    """A file with rows of every kind: most have ended, as in life."""
    path: Path = tmp_path_factory.mktemp("plans") / "jobs.db"
    with closing(db.open_writer(path)) as base:
        fill(base.connection)
        yield base.connection


def fill(connection: apsw.Connection) -> None:
    chance = random.Random(1)
    triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    states = (
        ["completed"] * 70
        + ["dead_letter", "cancelled", "expired"] * 3
        + ["queued"] * 15
        + ["scheduled", "retrying", "running"] * 2
    )
    with connection:
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.executemany(
            "INSERT INTO jobs (id, task, queue, priority, state, turn, lease, attempt, max_retries, run_at, expires_at, "
            "created_at, updated_at, completed_at, idempotency_key, payload) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, 1, 3, ?, ?, 1, 1, ?, ?, '{}')",
            (
                (
                    f"id-{i}", f"task{i % 7}", f"queue{i % 3}", chance.randint(-1, 1), state, i,
                    i if state == "running" else None,
                    i if state in ("scheduled", "retrying") else None,
                    i if i % 10 == 0 else None,
                    1 if state in ("completed", "dead_letter", "cancelled", "expired") else None,
                    f"key-{i}" if i % 5 == 0 else None,
                )
                for i in range(1, ROWS + 1)
                for state in [chance.choice(states)]
            ),
        )  # fmt: skip
        connection.execute(
            "INSERT INTO attempts (job_seq, attempt, outcome, finished_at) SELECT seq, 1, 'failed', 1 FROM jobs WHERE seq % 9 = 0"
        )
        connection.execute(
            "INSERT INTO logs (job_seq, attempt, level, ts, message) SELECT seq, 1, 'INFO', 1, 'x' FROM jobs WHERE seq % 9 = 0"
        )
        connection.execute(
            "INSERT INTO edges (child, idx, parent, kind, done) SELECT seq, 0, seq - 1, 'after', 1 FROM jobs WHERE seq > 1"
        )
        for _, sql in triggers:
            connection.execute(sql)


def scans(connection: apsw.Connection, sql: str) -> list[str]:
    """The lines of the plan that walk a whole table of jobs, attempts or logs, or an index of one without a bound."""
    plan = plan_of(connection, sql)
    tables = "jobs|attempts|logs|edges|steps|workflows|checkpoints|workflow_events"
    names = "|".join([tables, *re.findall(rf"\b(?:{tables}) (?:AS )?([a-z])\b", sql)])
    return [line for line in plan if re.match(rf"SCAN ({names})\b", line) and not is_partial(line)]


def plan_of(connection: apsw.Connection, sql: str) -> list[str]:
    parameters = [None] * (len(set(re.findall(r"\?\d+", sql))) + len(re.findall(r"\?(?!\d)", sql)))
    return [detail for *_, detail in connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]


def is_partial(line: str) -> bool:
    """A scan of an index that holds only the few rows that a statement is about."""
    return bool(re.search(r"INDEX (jobs_(ready|due|expiring|leased|blocked|keyed)|edges_open)\b", line))


@pytest.mark.parametrize("analyzed", [False, True], ids=["no statistics", "after ANALYZE"])
@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_walks_all_jobs(connection: apsw.Connection, name: str, analyzed: bool) -> None:
    if analyzed:
        connection.execute("ANALYZE")
    else:
        db._forget_statistics(connection)
    found = scans(connection, STATEMENTS[name])

    if name in MAY_SCAN:
        assert found, f"{name} does not scan any more: take it off the list"
    else:
        assert not found, f"{name}: {found}"


def test_a_claim_reads_in_the_order_of_the_index_and_sorts_nothing(connection: apsw.Connection) -> None:
    db._forget_statistics(connection)
    sql = statements.CLAIM_QUEUED_OF_ONE_QUEUE
    plan = [detail for *_, detail in connection.execute(f"EXPLAIN QUERY PLAN {sql}", (1, "q", 1))]

    assert any("jobs_ready" in line for line in plan)
    assert not any("TEMP B-TREE" in line for line in plan), plan


NARROWED = [(), *((name,) for name in list_statements.NARROWED_BY), tuple(list_statements.NARROWED_BY)]
"""By nothing, by each thing alone, by everything."""


@pytest.mark.parametrize("analyzed", [False, True], ids=["no statistics", "after ANALYZE"])
@pytest.mark.parametrize("direction", ["ASC", "DESC"])
@pytest.mark.parametrize(
    ("shape", "index"),
    [
        (list_statements.list_by_seq, "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        (list_statements.list_by_change, "INDEX jobs_changed ("),
    ],
)
def test_a_list_walks_its_index_in_order_whatever_it_is_narrowed_by(
    connection: apsw.Connection, shape: Callable[..., str], index: str, direction: str, analyzed: bool
) -> None:
    connection.execute("ANALYZE") if analyzed else db._forget_statistics(connection)
    for narrowed_by in NARROWED:
        plan = plan_of(connection, shape(narrowed_by, direction))
        assert plan[0].startswith("SEARCH j USING "), plan
        assert index in plan[0], plan
        assert not any("TEMP B-TREE" in line for line in plan), plan


@pytest.mark.parametrize("direction", ["ASC", "DESC"])
def test_a_list_of_states_stops_at_its_limit_in_each_of_them(connection: apsw.Connection, direction: str) -> None:
    for narrowed_by in NARROWED:
        plan = plan_of(connection, list_statements.list_by_state(narrowed_by, direction))
        assert any("SEARCH j USING " in line and "INDEX jobs_by_state (state=? AND" in line for line in plan), plan
        assert not scans(connection, list_statements.list_by_state(narrowed_by, direction))


@pytest.mark.parametrize(
    ("shape", "index"),
    [
        (list_statements.find_by_seq, "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        (list_statements.find_by_state, "INDEX jobs_by_state (state=? AND seq>? AND seq<?)"),
    ],
)
def test_a_bulk_verb_reads_its_part_of_the_rows_and_no_other(
    connection: apsw.Connection, shape: Callable[..., str], index: str
) -> None:
    for narrowed_by in NARROWED:
        plan = plan_of(connection, shape(narrowed_by))
        assert any(line.startswith("SEARCH j USING ") and index in line for line in plan), plan
        assert not scans(connection, shape(narrowed_by))


def test_rows_that_were_found_are_looked_at_again_by_their_seqs(connection: apsw.Connection) -> None:
    for narrowed_by in NARROWED:
        plan = plan_of(connection, list_statements.still(narrowed_by))
        assert "SEARCH j USING INTEGER PRIMARY KEY (rowid=?)" in plan, plan
        assert not scans(connection, list_statements.still(narrowed_by))


def test_what_changed_since_is_read_in_the_order_of_the_index_from_where_one_was(connection: apsw.Connection) -> None:
    assert plan_of(connection, statements.CHANGED_AFTER)[0] == "SEARCH jobs USING INDEX jobs_changed (changed>?)"
