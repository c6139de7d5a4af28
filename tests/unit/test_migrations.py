"""Bringing a file up to date: whole steps only, a backup first, and no start on a file that this program does not know."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from importlib import resources
from pathlib import Path

import apsw
import pytest

from miniflow import db, migrations, states
from miniflow.errors import StoreError
from miniflow.states import Move, State
from tests.invariants import check_invariants, read

CORE = migrations.scripts()
NEWEST = len(CORE)
COLOUR = "ALTER TABLE jobs ADD COLUMN colour TEXT; UPDATE jobs SET colour = 'grey';"
"""A next step that would do."""
BROKEN = """
CREATE TABLE half (x); INSERT INTO half VALUES (1); UPDATE jobs SET task = 'other'; DELETE FROM transitions;
INSERT INTO nowhere VALUES (1);
"""
"""A next step that fails when it has changed a table, rows, and what the program checks."""

JOB = """
INSERT INTO jobs (id, task, queue, priority, state, turn, max_retries, created_at, updated_at, payload)
VALUES (?, 'task', 'default', 0, 'queued', 1, 3, 1, 1, '{}')
"""
MADE_UP = Move("undo", State.EXPIRED, State.QUEUED)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def base(path: Path) -> Iterator[db.Database]:
    """An open file of today with one job in it."""
    with closing(db.open_writer(path)) as opened:
        opened.connection.execute(JOB, ("before",))
        yield opened


def backup_of(path: Path, version: int = NEWEST) -> Path:
    return path.with_name(f"{path.name}.v{version}.backup")


def columns(connection: apsw.Connection) -> set[str]:
    return {row[1] for row in connection.execute("PRAGMA table_info(jobs)")}


def tables(connection: apsw.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def ids(connection: apsw.Connection) -> list[str]:
    return [job_id for (job_id,) in connection.execute("SELECT id FROM jobs ORDER BY seq")]


def schema(connection: apsw.Connection) -> list[tuple[str, str]]:
    return list(connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name"))


def refusal(connection: apsw.Connection, path: Path, steps: list[str] | None = None) -> str:
    """The line that the step up ends with."""
    with pytest.raises(StoreError) as caught:
        migrations.apply(connection, str(path), steps)
    line = str(caught.value)
    assert line.startswith(str(path))
    assert "\n" not in line
    return line


# ---------------------------------------------------------------------------------------------------- the real scripts


def test_the_scripts_are_numbered_without_a_gap() -> None:
    names = sorted(entry.name for entry in (resources.files("miniflow") / "sql").iterdir())

    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    assert all(re.fullmatch(r"\d{4}_\w+\.sql", name) for name in names)


def test_a_fresh_file_gets_the_newest_schema_and_nothing_to_back_up(path: Path) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        assert migrations.apply(connection, str(path)) == NEWEST
        assert connection.pragma("user_version") == NEWEST

    check_invariants(path)
    assert not list(path.parent.glob("*.backup"))


def test_the_next_start_changes_nothing(path: Path, base: db.Database) -> None:
    before = schema(base.connection)
    changes = base.connection.total_changes()

    assert migrations.apply(base.connection, str(path)) == NEWEST
    assert base.connection.total_changes() == changes
    assert schema(base.connection) == before
    assert ids(base.connection) == ["before"]
    assert not list(path.parent.glob("*.backup"))


def test_the_file_knows_the_moves_of_the_program(base: db.Database) -> None:
    rows = base.connection.execute("SELECT * FROM transitions ORDER BY from_state, to_state").fetchall()

    assert rows == states.transition_rows()


# ----------------------------------------------------------------------------------------------------- one step further


def test_a_step_is_applied_and_counted(path: Path, base: db.Database) -> None:
    assert migrations.apply(base.connection, str(path), [*CORE, COLOUR]) == NEWEST + 1

    assert base.connection.pragma("user_version") == NEWEST + 1
    assert base.connection.execute("SELECT id, colour FROM jobs").fetchall() == [("before", "grey")]
    check_invariants_but_counters(base.connection)


def check_invariants_but_counters(connection: apsw.Connection) -> None:
    """The job of these tests was put in by hand and is counted nowhere."""
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_the_file_as_it_was_lies_beside_it_and_can_be_read(path: Path, base: db.Database) -> None:
    migrations.apply(base.connection, str(path), [*CORE, COLOUR])

    with closing(read(backup_of(path))) as backup:
        assert backup.pragma("user_version") == NEWEST
        assert ids(backup) == ["before"]
        assert "colour" not in columns(backup)
        check_invariants_but_counters(backup)


def test_the_backup_is_the_way_back(path: Path) -> None:
    """A file that was brought up is too new for the old program; the backup in its place is not."""
    with closing(db.open_writer(path)) as base:
        base.connection.execute(JOB, ("before",))
        migrations.apply(base.connection, str(path), [*CORE, COLOUR])
    with pytest.raises(StoreError):
        db.open_writer(path)
    shutil.copy(backup_of(path), path)

    with closing(db.open_writer(path)) as old:
        assert ids(old.connection) == ["before"]


def test_steps_are_applied_in_order_and_backed_up_once(path: Path, base: db.Database) -> None:
    steps = [*CORE, COLOUR, "UPDATE jobs SET colour = colour || ', dark'", "UPDATE jobs SET colour = colour || ' blue'"]

    assert migrations.apply(base.connection, str(path), steps) == NEWEST + 3
    assert base.connection.execute("SELECT colour FROM jobs").fetchall() == [("grey, dark blue",)]
    assert list(path.parent.glob("*.backup")) == [backup_of(path)]


def test_a_start_of_the_program_takes_the_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(db.open_writer(path)) as base:
        base.connection.execute(JOB, ("before",))
    monkeypatch.setattr(migrations, "scripts", lambda: [*CORE, COLOUR])

    for _ in range(2):
        with closing(db.open_writer(path)) as base:
            assert base.connection.execute("SELECT id, colour FROM jobs").fetchall() == [("before", "grey")]
    assert backup_of(path).exists()


def test_a_step_may_change_the_moves(path: Path, base: db.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "MOVES", (*states.MOVES, MADE_UP))
    migrations.apply(base.connection, str(path), [*CORE, "-- only the moves are new\n"])

    pair = (MADE_UP.source, MADE_UP.target)
    sql = "SELECT count(*) FROM transitions WHERE (from_state, to_state) = (?, ?)"
    assert base.connection.execute(sql, pair).fetchall() == [(1,)]


# -------------------------------------------------------------------------------------------------------- a failing step


def test_a_step_that_fails_half_way_leaves_nothing_behind(path: Path, base: db.Database) -> None:
    before = schema(base.connection)
    with pytest.raises(apsw.SQLError, match="nowhere"):
        migrations.apply(base.connection, str(path), [*CORE, BROKEN])

    assert base.connection.pragma("user_version") == NEWEST
    assert schema(base.connection) == before
    assert base.connection.execute("SELECT id, task FROM jobs").fetchall() == [("before", "task")]
    assert not base.connection.in_transaction
    assert migrations.apply(base.connection, str(path)) == NEWEST, "the moves are there, too"


def test_the_steps_before_a_failing_one_stay(path: Path, base: db.Database) -> None:
    with pytest.raises(apsw.SQLError):
        migrations.apply(base.connection, str(path), [*CORE, COLOUR, BROKEN])

    assert base.connection.pragma("user_version") == NEWEST + 1
    assert "colour" in columns(base.connection)
    assert "half" not in tables(base.connection)


def test_a_failing_first_step_leaves_an_empty_file(path: Path) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        with pytest.raises(apsw.SQLError):
            migrations.apply(connection, str(path), [CORE[0] + "INSERT INTO nowhere VALUES (1);"])

        assert (connection.pragma("user_version"), schema(connection)) == (0, [])


def test_a_new_file_is_made_by_all_steps_or_by_none(path: Path) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        with pytest.raises(apsw.SQLError, match="nowhere"):
            migrations.apply(connection, str(path), [*CORE, BROKEN])

        assert (connection.pragma("user_version"), schema(connection)) == (0, [])
        assert migrations.apply(connection, str(path)) == NEWEST


def test_a_start_that_fails_says_so_in_one_line_and_the_old_program_starts(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.open_writer(path).close()
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "scripts", lambda: [*CORE, BROKEN])
        with pytest.raises(StoreError) as caught:
            db.open_writer(path)
    assert re.fullmatch(r"[^\n]*jobs\.db: [^\n]*nowhere[^\n]*", str(caught.value))

    db.open_writer(path).close()


def test_a_backup_of_an_earlier_try_is_replaced(path: Path, base: db.Database) -> None:
    with pytest.raises(apsw.SQLError):
        migrations.apply(base.connection, str(path), [*CORE, BROKEN])
    base.connection.execute(JOB, ("between",))
    migrations.apply(base.connection, str(path), [*CORE, COLOUR])

    with closing(read(backup_of(path))) as backup:
        assert ids(backup) == ["before", "between"]


def test_without_a_backup_there_is_no_step(path: Path, base: db.Database) -> None:
    backup_of(path).mkdir()
    with pytest.raises(apsw.CantOpenError):
        migrations.apply(base.connection, str(path), [*CORE, COLOUR])

    assert base.connection.pragma("user_version") == NEWEST
    assert "colour" not in columns(base.connection)


# ------------------------------------------------------------------------------------------- files that are not ours


def test_a_file_of_a_newer_program_is_refused_and_left_alone(path: Path, base: db.Database) -> None:
    migrations.apply(base.connection, str(path), [*CORE, COLOUR])
    before = schema(base.connection)

    line = refusal(base.connection, path)
    assert f"has schema {NEWEST + 1}, this MiniFlow knows {NEWEST}" in line
    assert "upgrade MiniFlow" in line
    assert (base.connection.pragma("user_version"), schema(base.connection)) == (NEWEST + 1, before)
    assert not backup_of(path, NEWEST + 1).exists()


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM transitions WHERE from_state = 'pending'",
        "UPDATE transitions SET needs_lease = 0 WHERE needs_lease = 1",
        "INSERT INTO transitions VALUES ('completed', 'queued', 0)",
        "DELETE FROM transitions",
    ],
)
def test_moves_that_were_changed_by_hand_are_refused(path: Path, base: db.Database, change: str) -> None:
    base.connection.execute(change)

    assert "table of transitions is not this program's" in refusal(base.connection, path)


def test_new_moves_without_a_step_are_refused(path: Path, base: db.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code and file would disagree about what may happen."""
    monkeypatch.setattr(states, "MOVES", (*states.MOVES, MADE_UP))

    assert "table of transitions" in refusal(base.connection, path)
