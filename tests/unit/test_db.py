"""Opening the file: whatever makes it unusable is one clear line, and what opens can be trusted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import psutil
import pytest

from miniflow import db, migrations
from miniflow.errors import StoreBusy, StoreError
from tests.waiting import PATIENCE

HOLDER = """
import sys
from miniflow import db, statements
base = db.open_writer(sys.argv[1])
base.connection.execute(statements.META_PUT, ("process", "process 4711, at the door"))
print("open", flush=True)
sys.stdin.read()
"""


def refusal(path: str | Path, kind: type[StoreError] = StoreError) -> str:
    """The line that opening ``path`` ends with."""
    with pytest.raises(kind) as caught:
        db.open_writer(path).close()
    line = str(caught.value)
    assert "\n" not in line
    assert "Traceback" not in line
    return line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def other_process(path: Path) -> Iterator[None]:
    """Another process has the file open."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield
        process.stdin.close()
        process.wait(10 * PATIENCE)


def test_a_new_file_has_the_pragmas_that_it_should(path: Path) -> None:
    with closing(db.open_writer(path)) as base:
        names = {
            "journal_mode": "wal",
            "synchronous": 2,
            "foreign_keys": 1,
            "trusted_schema": 0,
            "cell_size_check": 1,
            "auto_vacuum": 2,
            "page_size": 4096,
            "journal_size_limit": db.WAL_LIMIT_BYTES,
            "wal_autocheckpoint": db.WAL_AUTOCHECKPOINT_PAGES,
            "application_id": db.APPLICATION_ID,
            "user_version": len(migrations.scripts()),
        }
        assert {name: base.connection.pragma(name) for name in names} == names


@pytest.mark.parametrize("step", ["_set_and_assert", "_forget_statistics"])
def test_a_file_whose_making_broke_off_is_made_whole_at_the_next_start(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    real = getattr(db, step)

    def break_off(*arguments: Any) -> None:
        real(*arguments)
        raise OSError("broken off")

    with monkeypatch.context() as patch:
        patch.setattr(db, step, break_off)
        with pytest.raises(OSError, match="broken off"):
            db.open_writer(path)

    with closing(db.open_writer(path)) as base:
        found = [base.connection.pragma(name) for name in ("journal_mode", "auto_vacuum", "application_id")]
        assert found == ["wal", 2, db.APPLICATION_ID]
        assert base.connection.pragma("user_version") == len(migrations.scripts())


def test_durability_can_be_lowered_and_is_asserted(path: Path) -> None:
    with closing(db.open_writer(path, synchronous="NORMAL")) as base:
        assert base.connection.pragma("synchronous") == 1


def test_a_file_can_be_closed_and_opened_again(path: Path) -> None:
    for _ in range(3):
        db.open_writer(path).close()


def test_a_pragma_that_is_not_taken_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        closing(apsw.Connection(str(path))) as connection,
        pytest.raises(StoreError, match="page_size = 12345 was not taken"),
    ):
        db._set_and_assert(connection, {"page_size": 12345}, "jobs.db")


def test_a_second_process_on_the_same_file_is_told_who_has_it(path: Path, other_process: None) -> None:
    line = refusal(path, StoreBusy)

    assert str(path) in line
    assert "process 4711, at the door" in line


def test_a_second_opening_in_the_same_process_is_refused_too(path: Path) -> None:
    with closing(db.open_writer(path)):
        assert "in use" in refusal(path, StoreBusy)


def test_a_link_to_the_file_is_the_same_file(path: Path) -> None:
    link = path.parent / "link.db"
    link.symlink_to(path)
    with closing(db.open_writer(path)):
        refusal(link, StoreBusy)


def test_a_refusal_leaves_the_file_to_others(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    refusal(path)
    path.unlink()

    db.open_writer(path).close()


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    content = b"Dear diary, " * 1000
    path.write_bytes(content)

    assert "is not an SQLite database" in refusal(path)
    assert path.read_bytes() == content


def test_a_short_file_of_text_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("hello")

    assert "is not an SQLite database" in refusal(path)
    assert path.read_text() == "hello"


def test_an_empty_file_becomes_a_database(path: Path) -> None:
    path.touch()
    db.open_writer(path).close()

    with closing(db.open_reader(path)) as reader:
        assert reader.pragma("application_id") == db.APPLICATION_ID


def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    content = path.read_bytes()

    assert "is a database of another program" in refusal(path)
    assert path.read_bytes() == content


def test_a_newer_schema_is_refused(path: Path) -> None:
    with closing(db.open_writer(path)) as base:
        base.connection.pragma("user_version", 99)

    assert "has schema 99" in refusal(path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"does not exist: {tmp_path}/nowhere" in refusal(tmp_path / "nowhere" / "jobs.db")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write to, not even root")
def test_a_folder_that_cannot_be_written_is_refused() -> None:
    line = refusal("/proc/self/jobs.db")

    assert "cannot be" in line
    assert "--db" in line


@pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere; see the test before"
)
def test_a_file_that_cannot_be_written_is_refused(path: Path) -> None:
    db.open_writer(path).close()
    path.chmod(0o444)

    assert "cannot be written" in refusal(path)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs", "NFS"])
def test_a_network_filesystem_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    mounts = [
        SimpleNamespace(mountpoint="/", fstype="ext4"),
        SimpleNamespace(mountpoint=str(path.parent), fstype=kind),
        SimpleNamespace(mountpoint=f"{path.parent}/elsewhere", fstype="ext4"),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all=False: mounts)

    assert f"network filesystem ({kind.lower()})" in refusal(path)


def test_a_local_disk_below_a_network_filesystem_is_fine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [
        SimpleNamespace(mountpoint="/", fstype="nfs"),
        SimpleNamespace(mountpoint=str(path.parent), fstype="ext4"),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all=False: mounts)

    db.open_writer(path).close()


@pytest.mark.parametrize(("version", "ok"), [("3.51.2", False), ("3.8.11", False), ("3.51.3", True), ("4.0.0", True)])
def test_an_old_sqlite_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch, version: str, ok: bool) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
    if ok:
        db.open_writer(path).close()
    else:
        assert f"SQLite {version} is too old" in refusal(path)


def test_a_damaged_file_is_refused(path: Path) -> None:
    with closing(db.open_writer(path)) as base:
        base.connection.execute("INSERT INTO meta VALUES ('x', zeroblob(100000))")
    content = bytearray(path.read_bytes())
    content[100:4096] = b"\xff" * 3996
    path.write_bytes(content)

    assert "is damaged" in refusal(path)


def test_a_file_locked_by_a_shell_is_refused_with_the_cause(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "BUSY_TIMEOUT_MS", 10)
    db.open_writer(path).close()
    with closing(apsw.Connection(str(path))) as shell:
        shell.execute("PRAGMA journal_mode = delete; BEGIN EXCLUSIVE").fetchall()

        assert "locked by another program" in refusal(path)


def test_a_reader_reads_and_nothing_else(path: Path) -> None:
    with closing(db.open_writer(path)), closing(db.open_reader(path)) as reader:
        assert reader.execute("SELECT count(*) FROM jobs").fetchall() == [(0,)]
        with pytest.raises(apsw.ReadOnlyError):
            reader.execute("DELETE FROM jobs")
        with pytest.raises(StoreError):
            reader.commit()
