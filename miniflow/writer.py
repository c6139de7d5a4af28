"""The writer: one thread that owns the only write connection and commits in groups.

Whoever has something to write posts an Operation and, if it must know, waits for it. The thread takes all operations that
wait, runs them in one ``BEGIN IMMEDIATE … COMMIT`` and then wakes their callers: one fsync pays for many, and there is no
SQLITE_BUSY because nobody else writes. While a commit is under way the next group gathers, so groups grow with the load.

Operations of one kind are handed to their handler together, and the handler turns them into one statement. All operations of
a group were posted by callers who wait for the same commit, so kinds may be run in a fixed order. A handler that refuses one
operation sets its ``error``; one that raises has the whole group rolled back and tried again one operation at a time, so that
a bad one fails alone.

What must happen in memory because of a transaction is left with ``Transaction.on_commit`` and runs after it, in this thread.

Errors of the disk (https://wiki.postgresql.org/wiki/Fsync_Errors): after a failed write or sync nobody can say what is on the
disk, so nothing more is acknowledged; the process ends with code 74 and a clear line, and the restart tells. A full disk is
different: the transaction is rolled back cleanly, submits get StoreFull, and what workers have to say is kept and tried again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import apsw
import msgspec

from miniflow import statements, wal
from miniflow.clock import Clock
from miniflow.errors import StoreClosed, StoreError, StoreFull, StoreLocked, TransactionRefused
from miniflow.histogram import Histogram
from miniflow.inserting import insert
from miniflow.notices import Changes
from miniflow.operations import Bell, LoopWaiter, Operation, ThreadWaiter
from miniflow.wal import die

log = logging.getLogger("miniflow.writer")

GROUP_OPERATIONS_MAX = 4096
LINGER_S = 0.005  # how long ends of jobs may wait for company while there is more work at hand, and nobody for them
LINGER_OPERATIONS = 256
IDLE_TICK_S = 1.0  # how often an idle writer looks at the clock while something waits for its time
POSTPONED_S = 1.0  # after a full disk or a foreign lock

CHANGES = ("changes", "")
"""The counter that numbers the transactions which change jobs."""

to_json = msgspec.json.Encoder().encode


def json_text(value: Any) -> str:
    """``value`` as the JSON parameter of a set-based statement."""
    return to_json(value).decode()


class Singly(Exception):
    """Raised by a handler that cannot tell which of its operations is at fault: the group is rolled back and each runs alone."""


class Undone(Exception):
    """Raised by a handler that wants its group rolled back, without anything being wrong."""


class Transaction:
    """One group, while it is being written: the connection, the deltas of the counters, and what to do after the commit."""

    def __init__(self, connection: apsw.Connection, reading: tuple[int, int], last_number: int) -> None:
        self.connection = connection
        self.now_ms, self.offset_ms = reading
        self._last_number = last_number
        self.deltas: dict[tuple[str, str], int] = {}
        self._after: list[Callable[[], None]] = []
        self._undo: list[Callable[[], None]] = []

    def run(self, sql: str, *parameters: Any) -> list[Any]:
        """Execute one statement; its rows."""
        return self.connection.execute(sql, parameters).fetchall()

    def insert(self, sql: str, rows: Sequence[Sequence[Any]], *shared: Any) -> None:
        """As ``inserting.insert``."""
        insert(self.connection, sql, rows, *shared)

    def first_of(self, count: int) -> int:
        """The number of the first of so many rows that the last statement has inserted. They are numbered without a gap: nobody
        else writes, and the tables whose rows are numbered give each the number after the highest."""
        return self.connection.last_insert_rowid() - count + 1

    def change(self, sql: str, *parameters: Any) -> int:
        """Execute one statement that answers no rows; how many it changed."""
        self.connection.execute(sql, parameters)
        return self.connection.changes()

    @property
    def number(self) -> int:
        """This transaction's number among those that change jobs: the next is higher, over restarts too. A row that is changed
        takes it as its ``changed``, so whoever knows the number of his last look finds what changed since."""
        self.deltas[CHANGES] = 1
        return self._last_number + 1

    def count(self, name: str, label: str, n: int = 1) -> None:
        """Add ``n`` to a counter, in this transaction."""
        key = (name, label)
        self.deltas[key] = self.deltas.get(key, 0) + n

    def on_commit(self, call: Callable[[], None]) -> None:
        self._after.append(call)

    def on_rollback(self, call: Callable[[], None]) -> None:
        """Take back what was changed in memory because of this transaction."""
        self._undo.append(call)

    def committed(self) -> None:
        for call in self._after:
            call()

    def rolled_back(self) -> None:
        for call in reversed(self._undo):
            call()


Handler = Callable[[Transaction, list[Operation]], None]
Instead = Callable[[Operation], Operation | None]
Step = Callable[[Transaction], None]


class Writer:
    """See the module's text. ``handle`` and ``every_group`` are called while it is put together, before ``start``."""

    def __init__(self, connection: apsw.Connection, clock: Clock) -> None:
        self._connection, self._clock = connection, clock
        self._handlers: dict[str, Handler] = {}
        self._instead: dict[str, Instead] = {}
        self._before: list[Step] = []
        self._after: list[Step] = []
        self._due_in: list[Callable[[], float]] = []
        self._queue: deque[Operation] = deque()
        self._wake = Bell()
        self._idle = False
        self._lingering = False
        self._awaited = False  # somebody waits for an operation in the queue
        self.hurried = False  # somebody waits for the group that is being written
        self._soon = False  # nobody waits, but a group is due within LINGER_S
        self._closing = False
        self._alone: list[str] = []  # kinds of those in the queue that want a group of their own
        self.lent_to: int | None = None  # the thread of a job that has the connection
        self._over = False  # the thread looks at the queue no more
        self.may_linger: Callable[[], bool] = lambda: False
        self._loops: list[LoopWaiter] = []
        self._thread = threading.Thread(target=self._run, name="miniflow-writer", daemon=True)
        self.counters: dict[str, dict[str, int]] = {}  # name -> label -> n, as of the last commit
        rows: Any = connection.execute(statements.ALL_COUNTERS).fetchall()
        for name, label, n in rows:
            self.counters.setdefault(name, {})[label] = n
        self.changes = Changes()
        self.group_sizes, self.commit_times = Histogram(), Histogram(50e-6)  # operations; seconds
        self.groups = 0
        self.operations = 0

    def __repr__(self) -> str:
        state = "closed" if self._closing else "idle" if self._idle else "busy"
        return f"<Writer {state} [{len(self._queue)} waiting | {self.groups} groups, {self.operations} operations]>"

    # ------------------------------------------------------------------------------------------------ putting together

    def handle(self, kind: str, handler: Handler, *, instead: Instead | None = None) -> None:
        """Operations of ``kind`` go to ``handler``, all of a group at once. Kinds run in the order of these calls. Where one
        cannot be written for a reason that nobody foresaw, ``instead(operation)`` is written in its place (None: nothing is)."""
        self._handlers[kind] = handler
        if instead is not None:
            self._instead[kind] = instead

    def every_group(self, step: Step, *, before: bool = False, due_in_s: Callable[[], float] | None = None) -> None:
        """Run ``step`` in each group, after (or before) its operations. ``due_in_s()`` seconds from now a group is due for it
        even if nothing is posted: 0 is now, infinity never."""
        (self._before if before else self._after).append(step)
        if due_in_s is not None:
            self._due_in.append(due_in_s)

    def start(self) -> None:
        self._thread.start()

    @property
    def started(self) -> bool:
        return self._thread.is_alive()

    def run_now(self, step: Step) -> None:
        """Run ``step`` as a transaction of its own in the calling thread. Before ``start`` only."""
        assert not self._thread.is_alive()
        transaction = Transaction(self._connection, self._clock.reading(), self.counter(*CHANGES))
        with self._connection:
            step(transaction)
            self._add_to_counters(transaction)
        self._committed(transaction)

    def counter(self, name: str, label: str) -> int:
        """One counter as of the last commit."""
        return self.counters.get(name, {}).get(label, 0)

    def total(self, name: str) -> int:
        """The sum of a counter over its labels, as of the last commit."""
        return sum(self.counters.get(name, {}).values())

    # ---------------------------------------------------------------------------------------------------------- posting

    def post(self, *operations: Operation) -> None:
        """Hand operations over without waiting. StoreClosed after ``close``."""
        if self._closing:
            raise StoreClosed("the store is closed")
        if operations[0].waiter is not None:
            self._awaited = True
        self._queue.extend(operations)
        if self._over:  # closed between the first line and here
            self._turn_away()
            if operations[0].waiter is None and operations[0].error is not None:
                raise operations[0].error
        if self._idle or (self._lingering and (self._awaited or len(self._queue) >= LINGER_OPERATIONS)):
            self._wake.ring()

    def post_alone(self, operation: Operation) -> None:
        """As ``post``, for one that is to have a group of its own: it may take its time, or be undone. All are of one kind."""
        self._alone.append(operation.kind)
        self.post(operation)

    def nudge(self, *, now: bool = True) -> None:
        """Something outside the queue of operations wants a group: now, or with the next one, LINGER_S from now at the latest."""
        if now:
            if self._idle or self._lingering:
                self._wake.ring()
        elif not self._soon:
            self._soon = True
            if self._idle:
                self._wake.ring()

    def call(self, kind: str, argument: Any, *, keep: bool = False, waiter: ThreadWaiter | None = None) -> Any:
        """Post an operation and block until it is committed; its value. Raises what it was refused with."""
        if self.lent_here:
            raise TransactionRefused(
                "the writer waits for this job's transaction, which ends with it; do this before it"
            )
        operation = Operation(kind, argument, keep=keep)
        operation.waiter = waiter = waiter or ThreadWaiter()
        self.post(operation)
        waiter.wait()
        return operation.outcome()

    @property
    def lent_here(self) -> bool:
        """Whether the calling thread has the connection: who waited for the writer would wait for himself."""
        return self.lent_to == threading.get_ident()

    def loop_waiter(self, loop: asyncio.AbstractEventLoop) -> LoopWaiter:
        """The waiter for coroutines of ``loop``; one for each loop."""
        waiter = LoopWaiter(loop, self.post)
        self._loops.append(waiter)
        return waiter

    async def call_async(self, waiter: LoopWaiter, kind: str, argument: Any) -> Any:
        """As ``call``, for coroutines. Being cancelled ends the waiting, never the write."""
        operation = Operation(kind, argument)
        await waiter.post(operation)
        return operation.outcome()

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what was posted, checkpoint, and end the thread."""
        self._closing = True
        self._wake.ring()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # ---------------------------------------------------------------------------------------------------------- the loop

    def _run(self) -> None:
        try:
            while self._wait():
                self._group()
            self._over = True
            self._turn_away()
            wal.checkpoint(self._connection)
        except BaseException as exc:  # without its writer the process can promise nothing
            die(f"the writer failed: {type(exc).__name__}: {exc}", exc)

    def _turn_away(self) -> None:
        """Whoever posted when it was too late is told so, and does not wait for ever."""
        while self._queue:
            try:
                operation = self._queue.popleft()
            except IndexError:  # another thread does the same
                break
            operation.error = StoreClosed("the store is closed")
            self._tell([operation])
        for loop in self._loops:
            loop.flush()

    def _wait(self) -> bool:
        """Block until a group is due; False when closing and all is written."""
        while not self._queue and self._next_due_s() > 0:
            if self._closing:
                return False
            self._wake.silence()
            self._idle = True
            # Looked at again after _idle is set: a poster that saw it unset has appended before.
            soon = self._soon
            pause_s = 0 if self._queue or self._closing else min(self._next_due_s(), LINGER_S if soon else IDLE_TICK_S)
            woken = pause_s <= 0 or self._wake.wait(pause_s)
            self._idle = False
            if not woken and soon:
                break
            if not woken and pause_s == IDLE_TICK_S and wal.size(self._connection) > 0:
                wal.checkpoint(self._connection)
        if self._queue and not self._awaited and not self._closing and self.may_linger():
            self._linger()
        return True

    def _linger(self) -> None:
        """Nobody waits for what is in the queue: let it grow. A commit of twenty rows costs nearly that of two hundred."""
        self._wake.silence()
        self._lingering = True
        if not self._awaited and len(self._queue) < LINGER_OPERATIONS:
            self._wake.wait(LINGER_S)
        self._lingering = False

    def _next_due_s(self) -> float:
        return min((due() for due in self._due_in), default=math.inf)

    def _group(self) -> None:
        batch: list[Operation] = []
        # Before the queue is emptied: what comes in between is only waited for less patiently.
        self.hurried, self._awaited, self._soon = self._awaited, False, False
        while self._queue and len(batch) < GROUP_OPERATIONS_MAX:
            if self._alone and self._queue[0].kind == self._alone[0]:
                if not batch:
                    batch.append(self._queue.popleft())
                    self._alone.pop()
                break
            batch.append(self._queue.popleft())
        self._write(batch)
        self.group_sizes.observe(len(batch))
        self.groups += 1
        self.operations += len(batch)
        for loop in self._loops:
            loop.flush()

    def _write(self, batch: list[Operation]) -> None:
        transaction = Transaction(self._connection, self._clock.reading(), self.counter(*CHANGES))
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._fill(transaction, batch)
            began = time.perf_counter()
            self._connection.execute("COMMIT")
            self.commit_times.observe(time.perf_counter() - began)
        except apsw.FullError:
            self._roll_back(transaction)
            self._postpone(
                batch, StoreFull("the disk is full; nothing accepted is lost, free some space and try again")
            )
            return
        except apsw.BusyError:  # the only other writer there can be is a person with a shell
            self._roll_back(transaction)
            self._postpone(
                batch, StoreLocked("another program holds a write lock on the database (a sqlite3 shell?); try again")
            )
            return
        except (apsw.IOError, apsw.CorruptError, apsw.NotADBError) as exc:
            die(f"the database cannot be written any more: {type(exc).__name__}: {exc}", exc)
        except Exception as exc:  # a handler's fault: find the operation that it chokes on
            self._roll_back(transaction)
            if len(batch) > 1:
                level = logging.DEBUG if isinstance(exc, Singly) else logging.WARNING
                log.log(
                    level, "group of %d rolled back (%s: %s): trying one by one", len(batch), type(exc).__name__, exc
                )
                for operation in batch:
                    operation.value = operation.error = None
                    self._write([operation])
                return
            if not batch:  # a step of every group failed by itself: it would fail again for ever
                raise
            if not isinstance(exc, Undone):
                log.exception("operation %s failed", batch[0].kind)
            batch[0].error = exc
            self._tell(batch)
            substitute = self._instead[batch[0].kind](batch[0]) if batch[0].kind in self._instead else None
            if substitute is not None:
                self._write([substitute])
            return
        self._committed(transaction)
        self._tell(batch)

    def _committed(self, transaction: Transaction) -> None:
        for (name, label), n in transaction.deltas.items():
            labels = self.counters.get(name, {})
            if label in labels:
                labels[label] += n
            else:  # readers in other threads walk these: a new label comes in a new dict
                self.counters[name] = {**labels, label: n}
        transaction.committed()
        if CHANGES in transaction.deltas:
            self.changes.publish()

    def _fill(self, transaction: Transaction, batch: list[Operation]) -> None:
        for step in self._before:
            step(transaction)
        if batch:
            by_kind: dict[str, list[Operation]] = {}
            for operation in batch:
                by_kind.setdefault(operation.kind, []).append(operation)
            for kind, handler in self._handlers.items():
                if kind in by_kind:
                    handler(transaction, by_kind[kind])
        for step in self._after:
            step(transaction)
        self._add_to_counters(transaction)

    @staticmethod
    def _add_to_counters(transaction: Transaction) -> None:
        rows = [(name, label, n) for (name, label), n in transaction.deltas.items() if n]
        if rows:
            transaction.run(statements.ADD_TO_COUNTERS, json_text(rows))

    def _roll_back(self, transaction: Transaction) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        transaction.rolled_back()

    def _postpone(self, batch: list[Operation], reason: StoreError) -> None:
        """Nothing can be written now: who can wait is told why, what must reach the file is kept and tried again."""
        kept = [operation for operation in batch if operation.keep]
        refused = [operation for operation in batch if not operation.keep]
        if self._closing:  # nobody will mend it any more: those jobs run again, as after a crash
            kept, refused = [], batch
        log.error("%s: %d operations refused, %d kept for later", reason, len(refused), len(kept))
        for operation in refused:
            operation.error = reason
        self._tell(refused)
        for loop in self._loops:
            loop.flush()
        self._queue.extendleft(reversed(kept))
        self._wake.silence()
        self._wake.wait(POSTPONED_S)

    @staticmethod
    def _tell(batch: Iterable[Operation]) -> None:
        for operation in batch:
            if operation.waiter is not None:
                operation.waiter.done(operation)
