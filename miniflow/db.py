"""The one place that opens the database file.

Every connection is an ``apsw.Connection``: apsw carries its own SQLite, and a second copy of SQLite on the same file in the
same process destroys it (see ``guard.py``). ``open_writer`` takes the file for this process – a lock file beside it keeps a
second MiniFlow out – checks that it can be trusted, brings its schema up to date and asserts the pragmas, because SQLite
ignores some of them in silence. ``open_reader`` gives read-only connections.

Whatever makes the file unusable ends as a StoreError: one line that names the file and the remedy.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NamedTuple

import apsw
import filelock
import psutil

from miniflow import guard, migrations, statements
from miniflow.errors import StoreBusy, StoreError

SQLITE_OLDEST = (3, 51, 3)
"""Before it, a WAL could be reset under a reader's feet (https://sqlite.org/wal.html#walresetbug)."""

APPLICATION_ID = 0x4D464C57  # "MFLW": how `file` and MiniFlow tell its files from others
BUSY_TIMEOUT_MS = 5000  # only other processes can contend: a sqlite3 shell, a backup tool
CACHE_KIB = 16_000
WAL_AUTOCHECKPOINT_PAGES = 1000
STATEMENTS_KEPT = 256  # prepared: the writer has about 200, those of ``inserting`` in several sizes
WAL_LIMIT_BYTES = 64 * 1024 * 1024
NETWORK_FILESYSTEMS = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb",
        "smb2",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ncpfs",
        "ceph",
        "glusterfs",
        "lustre",
        "fuse.sshfs",
        "fuse.s3fs",
    }
)


class Database(NamedTuple):
    """An open file: the only write connection, and what to close with it."""

    path: str
    connection: apsw.Connection
    lock: filelock.BaseFileLock

    def close(self) -> None:
        """Give the file back. The connection is closed first: until then the locks are ours."""
        self.connection.close()
        guard.release(self.path)
        self.lock.release()


def open_writer(path: str | Path, *, synchronous: str = "FULL") -> Database:
    """Take the database at ``path`` for this process, creating or migrating it as needed.

    Raises StoreBusy if another process has it, StoreError for everything else that is wrong with the file or its place.
    """
    _check_library()
    real = os.path.realpath(path)
    _check_place(real)
    lock = _take(real)
    try:
        connection = _connect(real, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
    except StoreError:
        lock.release()
        raise
    try:
        guard.protect(real)
        _recognise(connection, real)
        _prepare(connection, real)
        migrations.apply(connection, real)
        _set_and_assert(
            connection, {"synchronous": {"OFF": 0, "NORMAL": 1, "FULL": 2, "EXTRA": 3}[synchronous.upper()]}, real
        )
        _forget_statistics(connection)
    except BaseException as exc:  # whatever it was, the file must not stay taken
        connection.close()
        guard.release(real)
        lock.release()
        if isinstance(exc, apsw.Error):
            raise StoreError(f"{path}: {_in_words(exc)}") from exc
        raise
    return Database(real, connection, lock)


def open_reader(path: str | Path) -> Connection:
    """A read-only connection, for one thread at a time. It speaks enough of sqlite3's dialect for aiosqlite."""
    connection = Connection(os.path.realpath(path), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.pragma("query_only", 1)
    connection.pragma("trusted_schema", 0)
    connection.pragma("temp_store", 2)
    connection.pragma("cache_size", -CACHE_KIB)
    return connection


class Cursor(apsw.Cursor):
    """What aiosqlite asks of a cursor beyond what apsw's has."""

    arraysize = 64

    @property
    def rowcount(self) -> int:
        return self.connection.changes()

    @property
    def lastrowid(self) -> int:
        return self.connection.last_insert_rowid()


class Connection(apsw.Connection):
    """What aiosqlite asks of a connection beyond what apsw's has. Used read-only here, so there is nothing to commit."""

    row_factory = None
    text_factory = str
    isolation_level = None

    def __init__(self, path: str, flags: int) -> None:
        super().__init__(path, flags=flags)
        self.cursor_factory = Cursor

    def commit(self) -> None:
        raise StoreError("this connection only reads; writes go through the writer")

    def rollback(self) -> None:
        if self.in_transaction:
            self.execute("ROLLBACK")

    def close(self, force: bool = True) -> None:
        super().close(force)


# ------------------------------------------------------------------------------------------------------------- the checks


def _check_library() -> None:
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < SQLITE_OLDEST:
        wanted = ".".join(map(str, SQLITE_OLDEST))
        raise StoreError(
            f"SQLite {apsw.sqlite_lib_version()} is too old: {wanted} or newer is needed (it mends the WAL-reset bug); "
            "pip install -U apsw"
        )
    if any("NO_SYNC" in option for option in apsw.compile_options):
        raise StoreError(
            "this build of SQLite never syncs (NO_SYNC): an acknowledged job could be lost; pip install -U apsw"
        )


def _check_place(real: str) -> None:
    folder = os.path.dirname(real)
    if not os.path.isdir(folder):
        raise StoreError(f"the folder of the database does not exist: {folder}; make it, or choose another with --db")
    if os.path.isdir(real):
        raise StoreError(f"{real} is a folder; --db takes the path of a file")
    if not os.access(folder, os.W_OK) or (os.path.exists(real) and not os.access(real, os.W_OK)):
        raise StoreError(
            f"{real} cannot be written by this user; mend its permissions or choose another place with --db"
        )
    kind = filesystem_type(folder)
    if kind in NETWORK_FILESYSTEMS:
        raise StoreError(
            f"{real} lies on a network filesystem ({kind}): SQLite's write-ahead log needs memory shared by all who use it. "
            "Choose a local disk with --db"
        )


def filesystem_type(folder: str) -> str:
    """The type of the filesystem that ``folder`` lies on ("ext4", "nfs4", …); empty if the system does not tell."""
    try:
        partitions = psutil.disk_partitions(all=True)
    except OSError:
        return ""
    holding = (
        [p for p in partitions if os.path.commonpath([p.mountpoint, folder]) == p.mountpoint] if os.name != "nt" else []
    )
    return max(holding, key=lambda p: len(p.mountpoint)).fstype.lower() if holding else ""


def _take(real: str) -> filelock.BaseFileLock:
    lock = filelock.FileLock(real + ".lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise StoreBusy(
            f"{real} is in use by another MiniFlow{_holder(real)}; stop that one, or choose another file with --db"
        ) from None
    except OSError as exc:
        raise StoreError(
            f"{real}.lock cannot be made: {exc.strerror or exc}; choose a writable place with --db"
        ) from exc
    return lock


def _holder(real: str) -> str:
    """ " (process 123, http://…)", as the other process wrote it into the file; empty if it cannot be read."""
    try:
        reader = open_reader(real)
        try:
            rows = reader.execute(statements.META_GET, ("process",)).fetchall()
        finally:
            reader.close()
    except apsw.Error:
        return ""
    return f" ({rows[0][0]})" if rows else ""


def _connect(real: str, flags: int) -> apsw.Connection:
    try:
        connection = apsw.Connection(real, flags=flags, statementcachesize=STATEMENTS_KEPT)
    except apsw.CantOpenError as exc:
        raise StoreError(
            f"{real} cannot be opened: {os.strerror(errno.EACCES)} or no such place; choose another with --db"
        ) from exc
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    return connection


def _recognise(connection: apsw.Connection, real: str) -> None:
    try:
        application_id = connection.pragma("application_id")
        empty = not connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()[0][0]
    except apsw.NotADBError as exc:
        raise StoreError(f"{real} is not an SQLite database; choose another file with --db") from exc
    if not empty and application_id != APPLICATION_ID:
        raise StoreError(f"{real} is a database of another program; choose another file with --db")


def _prepare(connection: apsw.Connection, real: str) -> None:
    """Pragmas that must come before the first table, and those that belong to the connection."""
    fresh = not connection.pragma("application_id")
    if fresh:
        # EXTRA also syncs the folder when the rollback journal of the creation goes: else a power cut could bring it back.
        connection.pragma("synchronous", "EXTRA")
        connection.pragma("page_size", 4096)
        connection.pragma("auto_vacuum", "INCREMENTAL")
    _set_and_assert(
        connection,
        {
            "journal_mode": "wal",
            "foreign_keys": 1,
            "trusted_schema": 0,
            "cell_size_check": 1,
            "recursive_triggers": 0,
            "temp_store": 2,
            "cache_size": -CACHE_KIB,
            "journal_size_limit": WAL_LIMIT_BYTES,
            "fullfsync": 1,
            "checkpoint_fullfsync": 1,
            "busy_timeout": BUSY_TIMEOUT_MS,
            "wal_autocheckpoint": WAL_AUTOCHECKPOINT_PAGES,
        },
        real,
    )
    if fresh:  # only now: in the write-ahead log it takes one sync, in a rollback journal four
        connection.pragma("application_id", APPLICATION_ID)


def _set_and_assert(connection: apsw.Connection, wanted: dict[str, int | str], real: str) -> None:
    for name, value in wanted.items():
        connection.pragma(name, value)
        got = connection.pragma(name)
        if got != value:
            raise StoreError(
                f"{real}: PRAGMA {name} = {value} was not taken (it is {got}); the file cannot be used safely here"
            )


def _forget_statistics(connection: apsw.Connection) -> None:
    """A queue's statistics are out of date at once: measured, after an ANALYZE with no job leased the planner walked all leases
    for each end of a job, and the drain fell to a tenth. Somebody may have run one in a shell."""
    for (table,) in connection.execute(
        "SELECT name FROM sqlite_schema WHERE name IN ('sqlite_stat1', 'sqlite_stat4')"
    ).fetchall():
        connection.execute(f"DROP TABLE {table}")  # the two names above, nothing from outside


def _in_words(exc: apsw.Error) -> str:
    match exc:
        case apsw.NotADBError():
            return "is not an SQLite database"
        case apsw.BusyError():
            return "is locked by another program; close it there (a sqlite3 shell in a transaction?)"
        case apsw.CorruptError():
            return f"is damaged ({exc}); restore a backup, or save what can be read with `sqlite3 FILE .recover`"
        case apsw.FullError():
            return "the disk is full"
        case apsw.ReadOnlyError():
            return "cannot be written (read-only)"
        case _:
            return f"{type(exc).__name__}: {exc}"
