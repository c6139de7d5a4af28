"""A job's own writes in MiniFlow's file, committed with its end: all of it is there, or nothing.

``with ctx.transaction() as db`` lends the writer's connection to the thread of the job. What it writes is committed in the same
transaction as the job's ``completed``, so its effect is exactly once: a job that fails, is cancelled, or dies with the process
leaves no trace of it and runs again.

While it is lent nobody else writes. So it has a limit, after which the statement that runs is interrupted and all is undone. And
it is for the job's own tables: an authorizer refuses what would change MiniFlow's, the connection, or the transaction.
See https://sqlite.org/c3ref/set_authorizer.html.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import apsw

from miniflow import migrations
from miniflow.errors import TransactionRefused
from miniflow.operations import Operation, ThreadWaiter
from miniflow.writer import Transaction, Undone, Writer

KIND = "transaction"
LOOK_S = 0.05
"""A thread that waits for the writer looks so often whether its job is interrupted."""
INTERRUPT_EVERY_S = 0.005

READS = {apsw.SQLITE_SELECT, apsw.SQLITE_READ, apsw.SQLITE_FUNCTION, apsw.SQLITE_RECURSIVE}
CHANGES = {apsw.SQLITE_INSERT: "write to", apsw.SQLITE_UPDATE: "write to", apsw.SQLITE_DELETE: "delete from"}
SCHEMA = {
    apsw.SQLITE_CREATE_TABLE: 0, apsw.SQLITE_DROP_TABLE: 0, apsw.SQLITE_CREATE_VIEW: 0, apsw.SQLITE_DROP_VIEW: 0,
    apsw.SQLITE_CREATE_INDEX: 1, apsw.SQLITE_DROP_INDEX: 1, apsw.SQLITE_CREATE_TRIGGER: 1, apsw.SQLITE_DROP_TRIGGER: 1,
    apsw.SQLITE_ALTER_TABLE: 1, apsw.SQLITE_CREATE_VTABLE: 0, apsw.SQLITE_DROP_VTABLE: 0, apsw.SQLITE_REINDEX: 0,
}  # fmt: skip
"""Statements that change the schema, and which of the authorizer's two words is the table that they are about."""
PRAGMAS = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list"}
PRAGMAS_ASKED = {"data_version", "page_size"}
"""Those that would set something with a value. SQLite's virtual tables, for full-text search say, ask for them."""
ANYTHING_ELSE = "a job's transaction reads, and writes to its own tables; anything else is not for it"

T = TypeVar("T")


class Rows(list[tuple[Any, ...]]):
    """All rows of a statement. They can be asked for as of a cursor, too."""

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self

    def fetchone(self) -> tuple[Any, ...] | None:
        return self[0] if self else None


class Connection:
    """What ``with ctx.transaction() as db`` gives: the job's tables, until the end of the block."""

    def __init__(self, loan: Lent) -> None:
        self._loan = loan

    def __repr__(self) -> str:
        return f"<Connection [{self._loan.state}]>"

    def execute(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> Rows:
        """Run SQL; its rows. Raises apsw's errors for what is wrong with it, TransactionRefused for what is not allowed, and
        where the block is over or took too long."""
        values = _values(parameters)
        return self._loan.run(
            lambda connection: _run(connection, lambda cursor: cursor.execute(sql, values, can_cache=False))
        )

    def executemany(self, sql: str, rows: Iterable[Sequence[Any] | dict[str, Any]]) -> None:
        """Run SQL once for each row of parameters. All rows are made first: what makes them may use this, too."""
        values = [_values(row) for row in rows]
        self._loan.run(
            lambda connection: _run(connection, lambda cursor: cursor.executemany(sql, values, can_cache=False))
        )

    @property
    def changes(self) -> int:
        """How many rows the last statement has changed."""
        return self._loan.run(lambda connection: connection.changes())

    @property
    def last_insert_rowid(self) -> int:
        return self._loan.run(lambda connection: connection.last_insert_rowid())


class Lent:
    """One loan of the writer's connection, to the thread of one attempt. As a context manager it is the user's block; after
    that the job's end is written in the same transaction (``commit``), or none of it is (``undo``)."""

    def __init__(self, writer: Writer, limit_s: float) -> None:
        self._writer, self._limit_s = writer, limit_s
        self._lock = threading.RLock()  # entered itself, never by way of the condition: see operations.Bell
        self._changed = threading.Condition(self._lock)
        self._using = threading.Lock()
        self._connection: apsw.Connection | None = None
        self._operation: Operation | None = None
        self._waiter: ThreadWaiter | None = None
        self._apply: Callable[[Transaction], None] | None = None
        self.thread_id = threading.get_ident()
        self.state = "new"  # asked for, open, left (the block is over), committing, undone
        self.given_up = False  # by the job: nothing of it is to be there, and the job goes on
        self.denied = ""  # why the authorizer has just refused a statement

    def __repr__(self) -> str:
        return f"<Lent {self.state}>"

    @property
    def asked_for(self) -> bool:
        """Whether there is something to be committed, or undone: a block was entered, and the job has not given it up."""
        return self.state != "new" and not self.given_up

    # ------------------------------------------------------------------------------------------------- the job's thread

    def __enter__(self) -> Connection:
        if self.state == "left":  # another block of the same job: it goes on
            self._become("open")
            return Connection(self)
        if self.state != "new":
            raise TransactionRefused(f"this transaction is {self.state}; a job has one at a time")
        self._operation, self._waiter = Operation(KIND, self), ThreadWaiter()
        self._operation.waiter = self._waiter
        self.state = "asked for"
        try:
            self._writer.post_alone(self._operation)
        except BaseException:  # closed, or interrupted here: it may not have been posted, so nobody waits for it
            self.given_up = True
            self._become("undone")
            raise
        try:
            with self._lock:
                while self.state == "asked for" and self._operation.error is None:
                    self._changed.wait(LOOK_S)
        except BaseException:  # interrupted while it waited its turn
            self.undo()
            raise
        if self.state != "open":  # a lock, say; a job that catches it may ask again
            self.undo()
            raise self._failed()
        return Connection(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.undo()
        else:
            self._become("left")

    def run(self, use: Callable[[apsw.Connection], T]) -> T:
        """Use the connection, while the block is open and in its thread."""
        with self._using:
            state = self.state
            if state != "open" or self._connection is None:
                if state == "undone" and not self.given_up:
                    raise self._failed()
                raise TransactionRefused("the block of this transaction is over; use db inside of it")
            if threading.get_ident() != self.thread_id:
                raise TransactionRefused("a transaction is for the thread that opened it")
            self.denied = ""
            try:
                found = use(self._connection)
            except apsw.AuthError as exc:
                raise TransactionRefused(self.denied or str(exc)) from exc
            except apsw.InterruptError as exc:
                raise self._late() from exc
            finally:
                if not self._connection.in_transaction:  # a full disk, say: SQLite has undone all of it by itself
                    self.state = "undone"
            return found

    def commit(self, apply: Callable[[Transaction], None]) -> None:
        """Write the job's end by ``apply``, and commit all; returns when it is in the file. TransactionRefused, or the error of
        the disk or of the commit itself (a deferred foreign key), if it was undone instead."""
        if self.state == "open":
            self.undo()
            raise TransactionRefused("the job ended inside of the block of its transaction; nothing of it was written")
        with self._lock:
            if self.state == "left":
                self._apply, self.state = apply, "committing"
                self._changed.notify_all()
        assert self._waiter is not None
        self._waiter.wait()
        assert self._operation is not None
        if self._operation.error is not None:
            raise self._failed()

    def undo(self) -> None:
        """Nothing of it is to be there. Returns when that is so. Safe to call twice, and after a commit that has failed."""
        if self.state in ("new", "committing") or self.given_up:
            return
        self.given_up = True
        self._become("undone")
        assert self._waiter is not None
        self._waiter.wait()

    def _become(self, state: str) -> None:
        with self._lock:
            if self.state != "undone":
                self.state = state
            self._changed.notify_all()

    def _failed(self) -> BaseException:
        """Why there is nothing of it."""
        error = None if self._operation is None else self._operation.error
        if error is None:
            return self._late()
        return TransactionRefused(str(error)) if isinstance(error, Undone) else error

    def _late(self) -> TransactionRefused:
        return TransactionRefused(
            f"the transaction was open for longer than transaction_limit = {self._limit_s:g} s; nothing of it was written"
        )

    def take_away(self) -> None:
        """From any thread: the job is to use it no more. A commit that is under way goes on."""
        with self._lock:
            self._limit_s = 0
            self._changed.notify_all()

    # ----------------------------------------------------------------------------------------------- the writer's thread

    def lend(self, connection: apsw.Connection) -> Callable[[Transaction], None]:
        """Let the job use ``connection`` until it says what to write with it. Undone if nothing is to be."""
        began = time.monotonic()
        with self._lock:
            if self.state != "undone":
                self._connection, self.state = connection, "open"
                self._changed.notify_all()
            while self.state in ("open", "left"):
                left_s = began + self._limit_s - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            over = self.state in ("open", "left")
            if over:
                self.state = "undone"
        while not self._using.acquire(timeout=INTERRUPT_EVERY_S if over else -1):
            connection.interrupt()  # again: between two rows of an executemany it is not heard
        self._connection = None  # the statement under way has ended, and no other follows
        self._using.release()
        if over:
            raise Undone(str(self._late()))
        if self._apply is None or not connection.in_transaction:
            raise Undone("it was undone before its end")
        return self._apply


class Transactions:
    """Lends the writer's connection, one job at a time."""

    def __init__(self, writer: Writer, limit_s: float) -> None:
        """``limit_s``: how long one job may hold it."""
        self._writer, self._limit_s = writer, limit_s
        self._own: frozenset[str] = frozenset()
        self._lent: Lent | None = None
        self._closed = False
        writer.handle(KIND, self._lend)

    def __repr__(self) -> str:
        return f"<Transactions [{self._lent}]>"

    def open(self) -> Lent:
        """A transaction for the calling thread."""
        return Lent(self._writer, self._limit_s)

    def close(self) -> None:
        """Wait for no job any more: what one holds is undone."""
        self._closed = True
        if (lent := self._lent) is not None:
            lent.take_away()

    def _lend(self, tx: Transaction, operations: list[Operation]) -> None:
        (operation,) = operations
        connection = tx.connection
        if not self._own:
            self._own = own_tables()
            connection.authorizer = self._authorize  # only asked where a statement is prepared
        lent = self._lent = operation.argument
        if self._closed:
            lent.take_away()
        version, numbers = connection.pragma("schema_version"), self._numbers(connection)
        self._writer.lent_to = lent.thread_id
        try:
            apply = lent.lend(connection)
        finally:
            self._writer.lent_to = self._lent = None
        if connection.pragma("schema_version") != version:
            self._look_at_schema(connection)
        if (
            self._numbers(connection) != numbers
        ):  # of sqlite_sequence, which a DROP of a job's own table changes as well
            raise Undone("sqlite_sequence says how MiniFlow's own rows are numbered: a job does not change that")
        apply(tx)

    def _authorize(self, action: int, first: str | None, second: str | None, db: str | None, _by: str | None) -> int:
        lent = self._lent
        if lent is None or threading.get_ident() != lent.thread_id:
            return apsw.SQLITE_OK
        temporary = action in SCHEMA and "temp" in (db, first if action == apsw.SQLITE_ALTER_TABLE else None)
        refusal = ANYTHING_ELSE if temporary else self._refusal(action, first or "", second or "")
        lent.denied = refusal or lent.denied
        return apsw.SQLITE_OK if refusal is None else apsw.SQLITE_DENY

    def _refusal(self, action: int, first: str, second: str) -> str | None:
        """Why a statement may not be run; None if it may."""
        if action in READS:
            return None
        if action in CHANGES:
            return self._of_ours(first, CHANGES[action])
        if action in SCHEMA:
            return self._of_ours(second if SCHEMA[action] else first, "change")
        if action == apsw.SQLITE_PRAGMA:
            asked = first.lower() in PRAGMAS or (first.lower() in PRAGMAS_ASKED and not second)
            return None if asked else f"PRAGMA {first} is not for a job's transaction"
        if action in (apsw.SQLITE_TRANSACTION, apsw.SQLITE_SAVEPOINT):
            return "the transaction is committed with the end of the job; no BEGIN, COMMIT, ROLLBACK or SAVEPOINT of its own"
        return ANYTHING_ELSE

    def _of_ours(self, table: str, verb: str) -> str | None:
        if table.lower() not in self._own:
            return None
        return f"{table} is MiniFlow's own: a job may read it, and not {verb} it; give your tables names of their own"

    def _numbers(self, connection: apsw.Connection) -> list[tuple[Any, ...]]:
        """The numbers that MiniFlow's tables have given last."""
        return [row for row in connection.execute("SELECT name, seq FROM sqlite_sequence") if row[0] in self._own]

    def _look_at_schema(self, connection: apsw.Connection) -> None:
        """A foreign key to a table of MiniFlow's would decide what MiniFlow may delete."""
        keys: Any = connection.execute(
            "SELECT t.name, f.'table' FROM sqlite_schema t, pragma_foreign_key_list(t.name) f WHERE t.type = 'table'"
        )
        for table, parent in list(keys):
            if parent.lower() in self._own and table.lower() not in self._own:
                raise Undone(
                    f"{table} has a foreign key to {parent}, which is MiniFlow's own; keep the job's id instead"
                )


def _values(parameters: Sequence[Any] | dict[str, Any]) -> tuple[Any, ...] | dict[str, Any]:
    """A copy of the builtin kind: no code of the job's runs while a statement does, which the writer may have to wait for."""
    return dict(parameters) if isinstance(parameters, dict) else tuple(parameters)


def _run(connection: apsw.Connection, execute: Callable[[apsw.Cursor], Iterable[Any]]) -> Rows:
    cursor = connection.cursor()
    try:
        return Rows(execute(cursor))
    finally:  # a statement that were still under way would forbid the rollback
        cursor.close(True)


def own_tables() -> frozenset[str]:
    """The names of MiniFlow's tables and views, in lower case."""
    text = "\n".join(migrations.scripts())
    names = re.findall(r"^CREATE (?:TABLE|VIEW|VIRTUAL TABLE) (\w+)", text, re.MULTILINE)
    return frozenset(name.lower() for name in names)
