"""Numbered SQL files bring a database up to date; the number of the last one applied is the file's ``user_version``.

Each is applied whole or not at all, in order, at start; a new file is made by all of them in one transaction. A file that holds
jobs is backed up beside itself first. There is no way back: a newer file is refused by an older program, and the backup is the
way back.

The rows of ``transitions`` are written when the file is made and by migrations that change the states; at every start they
are compared with ``states.py``, and a difference stops the program: code and file would disagree about what may happen.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib import resources

import apsw
import msgspec

from miniflow import statements, states
from miniflow.errors import StoreError


def scripts() -> list[str]:
    """The SQL of each migration, in order; the first has the number 1."""
    folder = resources.files("miniflow") / "sql"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(folder / name).read_text(encoding="utf-8") for name in names]


def apply(connection: apsw.Connection, path: str, steps: list[str] | None = None) -> int:
    """Bring the open database up to the newest schema; returns its number.

    Raises StoreError for a file from a newer program, or one whose transitions are not those of this program.
    """
    steps = scripts() if steps is None else steps
    version = connection.pragma("user_version")
    if version > len(steps):
        raise StoreError(
            f"{path} has schema {version}, this MiniFlow knows {len(steps)}: it was written by a newer one; "
            "upgrade MiniFlow, or use another file"
        )
    if 0 < version < len(steps):
        backup(connection, f"{path}.v{version}.backup")
    with nullcontext() if version else connection:  # a new file: one sync, not one for each
        for number in range(version + 1, len(steps) + 1):
            with connection:
                connection.execute(steps[number - 1])
                _write_transitions(connection)
                connection.pragma("user_version", number)
    found = [tuple(row) for row in connection.execute(statements.TRANSITIONS).fetchall()]
    if found != states.transition_rows():
        raise StoreError(
            f"{path}: its table of transitions is not this program's; it was changed by hand or by another version"
        )
    return len(steps)


def backup(connection: apsw.Connection, target: str) -> None:
    """Copy the database to ``target`` through SQLite's backup API. For start-up only: nobody writes meanwhile."""
    copy = apsw.Connection(target)
    try:
        with copy.backup("main", connection, "main") as job:
            job.step(-1)
    finally:
        copy.close()


def _write_transitions(connection: apsw.Connection) -> None:
    connection.execute("DELETE FROM transitions")
    rows = msgspec.json.encode(states.transition_rows()).decode()
    connection.execute(
        "INSERT INTO transitions SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?)", (rows,)
    )
