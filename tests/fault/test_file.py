"""A database file that cannot be served: one clear line, exit code 2, and the file as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api import TASKS, end_of, still_answers, submit
from tests.invariants import check_invariants
from tests.servers import Server, miniflow

pytestmark = pytest.mark.fault


def refused(folder: Path, db: Path) -> str:
    """Serve ``db``: it must end at once with code 2; the one line it says."""
    (folder / "tasks").mkdir(exist_ok=True)
    ended = miniflow("serve", "--port=0", f"--db={db}", f"--log-dir={folder / 'other-logs'}", cwd=folder, timeout_s=30)
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("miniflow: ")
    assert str(db) in line or str(db.parent) in line
    return line


def test_a_second_server_on_the_file_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    with Server(tmp_path, {"sample.py": TASKS}) as server, server.client() as client:
        for _ in range(3):
            line = refused(tmp_path, server.db)
            assert "in use by another MiniFlow" in line
            assert f"process {server.pid}" in line
            assert server.url in line

        still_answers(client)
        assert server.terminate() == 0
    check_invariants(server.db, stopped=True)


def test_a_file_whose_server_was_killed_can_be_served_at_once(tmp_path: Path) -> None:
    with Server(tmp_path, {"sample.py": TASKS}) as server:
        with server.client() as client:
            job = submit(client, "add", {"a": 1})
        server.restart()
        with server.client() as client:
            assert end_of(client, job["id"])["result"] == 3


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    db = tmp_path / "notes.txt"
    db.write_text("dear diary, " * 1000)

    line = refused(tmp_path, db)

    assert "not an SQLite database" in line
    assert db.read_text() == "dear diary, " * 1000


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    db = tmp_path / "other.db"
    make = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('CREATE TABLE precious (x)'); c.commit()"
    subprocess.run([sys.executable, "-c", make, str(db)], check=True, timeout=30)
    before = db.read_bytes()

    line = refused(tmp_path, db)

    assert "another program" in line
    assert db.read_bytes() == before


def served_once(folder: Path) -> Path:
    with Server(folder, {"sample.py": TASKS}) as server, server.client() as client:
        for n in range(50):
            submit(client, "add", {"a": n}, description="x" * 500)
        assert server.terminate() == 0
    return server.db


@pytest.mark.parametrize("where", ["header", "schema", "cut_short", "empty_header"])
def test_a_damaged_file_is_refused_with_the_remedy(tmp_path: Path, where: str) -> None:
    db = served_once(tmp_path)
    data = bytearray(db.read_bytes())
    if where == "header":
        data[0:16] = b"Not SQLite at all"[:16]
    elif where == "schema":
        data[100:1100] = bytes(range(250)) * 4
    elif where == "cut_short":
        del data[3 * 4096 :]
    else:
        data[16:100] = bytes(84)
    db.write_bytes(data)
    before = bytes(data)

    line = refused(tmp_path, db)

    assert any(word in line for word in ("damaged", "not an SQLite database", "another program")), line
    assert db.read_bytes() == before


def test_a_file_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    db = served_once(tmp_path)
    db.chmod(0o444)
    if os.access(db, os.W_OK):
        pytest.skip("this user may write anything")

    assert "cannot be written" in refused(tmp_path, db)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").mkdir()

    assert "is a folder" in refused(tmp_path, tmp_path / "a.db")


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path, tmp_path / "nowhere" / "a.db")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    db = served_once(tmp_path)
    make = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA user_version = 999'); c.commit()"
    subprocess.run([sys.executable, "-c", make, str(db)], check=True, timeout=30)

    assert "newer" in refused(tmp_path, db)


def test_the_database_of_a_dead_server_may_be_opened_by_anything(tmp_path: Path) -> None:
    db = served_once(tmp_path)
    count = (
        "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM jobs').fetchone()[0])"
    )

    ended = subprocess.run(
        [sys.executable, "-c", count, str(db)], capture_output=True, text=True, check=True, timeout=30
    )

    assert ended.stdout == "50\n"
    check_invariants(db, stopped=True)
