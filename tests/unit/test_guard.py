"""Nothing but apsw opens a live database in this process, by whatever way it tries."""

# ruff: noqa: SIM115 - that nothing is opened is what is tested
from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from miniflow import db
from miniflow.errors import SecondLibrary
from tests.engines import Engines, new_job, submit_all
from tests.invariants import acknowledged_all_there, check_invariants


def noop() -> None: ...


def close_at_once(thing: object) -> None:
    thing.close()  # type: ignore[attr-defined]


def by_aiosqlite(path: Path) -> None:
    import aiosqlite

    async def connect() -> None:
        async with aiosqlite.connect(path):
            pass

    asyncio.run(connect())


def by_sqlite_huey(path: Path) -> None:
    from huey import SqliteHuey

    SqliteHuey(filename=str(path)).storage.queue_size()


def by_symlink(path: Path) -> None:
    link = path.parent / "innocent.txt"
    link.symlink_to(path)
    close_at_once(open(link, "rb"))


def by_folder_link(path: Path) -> None:
    link = path.parent.parent / f"{path.parent.name}-link"
    link.symlink_to(path.parent)
    close_at_once(open(link / path.name, "rb"))


WAYS: dict[str, Callable[[Path], object]] = {
    "open": lambda path: close_at_once(open(path, "rb")),
    "open bytes": lambda path: close_at_once(open(os.fsencode(path), "rb")),
    "open wal": lambda path: close_at_once(open(f"{path}-wal", "rb")),
    "open shm": lambda path: close_at_once(open(f"{path}-shm", "rb")),
    "os.open": lambda path: os.close(os.open(path, os.O_RDONLY)),
    "os.open str": lambda path: os.close(os.open(str(path), os.O_RDONLY)),
    "pathlib": lambda path: path.read_bytes(),
    "shutil.copy": lambda path: shutil.copy(path, path.parent / "copy.db"),
    "sqlite3": lambda path: close_at_once(sqlite3.connect(str(path))),
    "sqlite3 Path": lambda path: close_at_once(sqlite3.connect(path)),
    "sqlite3 bytes": lambda path: close_at_once(sqlite3.connect(os.fsencode(path))),
    "sqlite3 URI": lambda path: close_at_once(sqlite3.connect(f"file:{path}?mode=ro", uri=True)),
    "sqlite3 file://": lambda path: close_at_once(sqlite3.connect(path.as_uri(), uri=True)),
    "sqlite3 localhost": lambda path: close_at_once(sqlite3.connect(f"file://localhost{path}", uri=True)),
    "sqlite3 escaped": lambda path: close_at_once(sqlite3.connect(f"file:{str(path).replace('j', '%6A')}", uri=True)),
    "sqlite3 fragment": lambda path: close_at_once(sqlite3.connect(f"file:{path}#part", uri=True)),
    "relative": lambda path: close_at_once(open(os.path.relpath(path), "rb")),
    "dotted": lambda path: close_at_once(open(f"{path.parent}/./x/../{path.name}", "rb")),
    "symlink": by_symlink,
    "linked folder": by_folder_link,
    "aiosqlite": by_aiosqlite,
    "SqliteHuey": by_sqlite_huey,
}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # aiosqlite's thread outlives its loop
@pytest.mark.parametrize("way", WAYS)
def test_a_live_database_cannot_be_opened_around_apsw(engines: Engines, way: str) -> None:
    """And the acknowledged rows are there afterwards, in the WAL that nobody removed."""
    engine = engines(noop, workers=0)
    (engines.folder / "x").mkdir()
    ids = [accepted.id for accepted in submit_all(engine, [new_job(engine, "noop") for _ in range(50)])]
    with pytest.raises(SecondLibrary, match=r"MiniFlow's live database"):
        WAYS[way](engines.path)

    ids += [accepted.id for accepted in submit_all(engine, [new_job(engine, "noop") for _ in range(50)])]
    engines.crash(engine)
    check_invariants(engines.path)
    acknowledged_all_there(engines.path, ids)


def test_a_name_with_a_space_is_guarded_in_a_uri_too(tmp_path: Path) -> None:
    path = tmp_path / "my jobs.db"
    with closing(db.open_writer(path)), pytest.raises(SecondLibrary):
        sqlite3.connect(path.as_uri(), uri=True)


def test_looking_at_the_file_is_allowed(engines: Engines) -> None:
    engines(noop)

    assert engines.path.stat().st_size > 0
    assert engines.path.exists()
    with closing(apsw.Connection(str(engines.path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchall() == [(0,)]


def test_other_files_are_nobodys_business(engines: Engines) -> None:
    engines(noop)
    other = engines.folder / "sub"
    other.mkdir()

    (other / engines.path.name).write_text("the same name elsewhere")
    (engines.folder / "jobs.db.txt").write_text("nearly the same name")
    with closing(sqlite3.connect(engines.folder / "other.db")) as connection:
        connection.execute("CREATE TABLE t (x)")
    with closing(sqlite3.connect(":memory:")):
        pass


def test_once_it_is_closed_anybody_may_open_it(engines: Engines) -> None:
    engines.stop(engines(noop))

    assert engines.path.read_bytes().startswith(b"SQLite format 3\0")
    with closing(sqlite3.connect(engines.path)) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchall() == [(0,)]
