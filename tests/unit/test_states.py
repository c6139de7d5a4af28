"""The table of moves, and the file that refuses all others: every pair of states is tried in a real one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path

import apsw
import pytest

from miniflow import db, migrations, states
from miniflow.states import MEANING, MOVES, State
from tests.engines import fresh_file

MOVABLE = {(move.source, move.target) for move in MOVES}
NEEDS_LEASE = {(source, target) for source, target, needs in states.transition_rows() if needs}


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[apsw.Connection]:
    (tmp_path / "jobs.db").write_bytes(fresh_file())
    with closing(db.open_writer(tmp_path / "jobs.db")) as base:
        yield base.connection


def put(connection: apsw.Connection, state: State, *, leased: bool) -> None:
    """One row in ``state``, whatever the triggers think of how it came there."""
    connection.execute("DROP TRIGGER IF EXISTS jobs_birth")
    ended, due = state in states.TERMINAL, state in (State.SCHEDULED, State.RETRYING)
    connection.execute("DELETE FROM jobs")
    connection.execute(
        "INSERT INTO jobs (seq, id, task, queue, priority, state, turn, lease, attempt, max_retries, run_at, created_at, "
        "updated_at, completed_at, payload) VALUES (1, 'j', 't', 'q', 0, ?, 1, ?, 1, 0, ?, 1, 1, ?, '{}')",
        (state, 7 if leased else None, 1 if due else None, 1 if ended else None),
    )


def move(connection: apsw.Connection, target: State) -> None:
    """What a hand in a shell would type, with all other columns as the target wants them."""
    ended, due = target in states.TERMINAL, target in (State.SCHEDULED, State.RETRYING)
    connection.execute(
        "UPDATE jobs SET state = ?1, completed_at = ?2, run_at = ?3, lease = CASE ?1 WHEN 'running' THEN coalesce(lease, 8) END",
        (target, 1 if ended else None, 1 if due else None),
    )


@pytest.mark.parametrize(("source", "target"), list(product(State, State)))
def test_a_pair_of_states_is_moved_between_only_if_the_table_says_so(
    connection: apsw.Connection, source: State, target: State
) -> None:
    for leased in [True, False] if source in states.LEASED else [False]:
        if source is State.RUNNING and not leased:
            continue  # no such row
        put(connection, source, leased=leased)
        pair = (source, target)
        if source is target or (pair in MOVABLE and (leased or pair not in NEEDS_LEASE)):
            move(connection, target)
            assert connection.execute("SELECT state FROM jobs").fetchall() == [(target,)]
        else:
            with pytest.raises(apsw.ConstraintError, match="no such move between states"):
                move(connection, target)


@pytest.mark.parametrize("state", list(State))
def test_a_job_is_born_as_pending_scheduled_or_queued(connection: apsw.Connection, state: State) -> None:
    ended, due = state in states.TERMINAL, state in (State.SCHEDULED, State.RETRYING)
    sql = (
        "INSERT INTO jobs (id, task, queue, priority, state, turn, lease, attempt, max_retries, run_at, created_at, updated_at, "
        "completed_at, payload) VALUES ('j', 't', 'q', 0, ?1, 1, ?2, ?3, 0, ?4, 1, 1, ?5, '{}')"
    )
    row = (state, 1 if state is State.RUNNING else None, 0, 1 if due else None, 1 if ended else None)
    if state in states.INITIAL:
        connection.execute(sql, row)
        for lease, attempt in ((5, 0), (None, 1)):
            with pytest.raises(apsw.ConstraintError):
                connection.execute(sql, (state, lease, attempt, *row[3:]))
    else:
        with pytest.raises(apsw.ConstraintError, match="a job begins as pending, scheduled or queued"):
            connection.execute(sql, row)


def test_the_states_in_sql_are_those_of_the_table() -> None:
    sql = migrations.scripts()[0]
    (known,) = re.findall(r"state_known\s+CHECK \(state IN \(([^)]*)\)\)", sql)
    (terminal,) = re.findall(r"ended_iff_terminal CHECK .*state IN \(([^)]*)\)\)", sql)
    (leased,) = re.findall(r"lease_while_alive\s+CHECK .*state IN \(([^)]*)\)\)", sql)
    (born,) = re.findall(r"NEW.state NOT IN \(([^)]*)\)", sql)

    def words(text: str) -> set[str]:
        return set(re.findall(r"'(\w+)'", text))

    assert words(known) == set(State) == set(MEANING)
    assert words(terminal) == states.TERMINAL
    assert words(leased) == states.LEASED
    assert words(born) == states.INITIAL


def test_the_transitions_in_a_new_file_are_those_of_the_table(connection: apsw.Connection) -> None:
    rows = connection.execute("SELECT from_state, to_state, needs_lease FROM transitions ORDER BY 1, 2").fetchall()
    assert rows == states.transition_rows()


def test_every_state_can_be_reached_and_left_if_it_is_not_an_end() -> None:
    assert {target for _, target in MOVABLE} | states.INITIAL == set(State)
    assert {source for source, _ in MOVABLE} == set(State) - states.TERMINAL | {State.DEAD_LETTER, State.CANCELLED}


def test_sources_of_a_verb() -> None:
    assert states.sources("promote") == {State.SCHEDULED, State.RETRYING}
    with pytest.raises(KeyError):
        states.sources("vanish")


def test_the_diagram_has_every_move() -> None:
    lines = states.diagram().splitlines()

    assert lines[0] == "stateDiagram-v2"
    for source, target, verb in ((move.source, move.target, move.verb) for move in MOVES):
        assert any(line.startswith(f"    {source} --> {target}: ") and verb in line for line in lines)
