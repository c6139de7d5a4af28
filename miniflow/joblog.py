"""The log of a running attempt: from the line that is printed to the rows of the next group.

Lines gather in memory, each attempt's for itself, and ride in the writer's next group: one statement for the lines of all jobs. A
group takes a share and no more, so that a job that floods its log does not keep others' submits waiting; a job with too much
waiting is held back where it prints. What an attempt still has waiting when its end is posted goes into the file with the end or
before it: whoever sees the end has all lines.

The log of a job has a limit, for all its attempts together. The first half of it is written as it comes. From there on only the
newest lines are kept, in memory, and are written when the attempt ends, after a line that says how much was left out between.

Anything here may be interrupted: a timeout raises its exception between two bytecodes of the thread that prints. So nothing
depends on two counts agreeing, and what has been taken off one list is put on the next before anything is called.

And wherever something is allocated, the garbage collector may run a finalizer that prints, in the very thread that holds a lock
here. It must neither wait for itself nor change lists that are being changed: what it says goes past the log.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from miniflow import statements as sql
from miniflow.attempts import Attempt
from miniflow.clock import Clock
from miniflow.errors import StoreError, TransactionRefused
from miniflow.notices import Notices
from miniflow.outcome import middle_out
from miniflow.writer import Transaction, Writer, json_text

app_log = logging.getLogger("miniflow.joblog")

LINE_CHARS_MAX = 16_000
STAMP_BYTES = 32  # what time and level take before a line, in the log as text: an empty line is not nothing
CHUNK_LINES, CHUNK_BYTES = 250, 64_000
GROUP_LINES, GROUP_BYTES = 2_000, 512_000  # of all logs together, in one group; the ends of attempts may bring more
HURRIED_LINES, HURRIED_BYTES = 300, 76_800  # where somebody waits for the group
WAITING_CHUNKS = 32  # of one attempt, before it is held back: 8,000 lines or 2 MB
HELD_BACK_S = 0.005
SETTLED_CHUNKS, SETTLE_ROUNDS = 4, 200  # rounds of HELD_BACK_S
TAIL_BYTES_MAX = 1_000_000
ASK_ROWS = 2_000
FIRST_BYTES, LAST_BYTES = 4_000, 8_000  # of each attempt, whatever others have used up: how it began, and how it ended

STREAM_LEVELS = ("INFO", "WARNING")
"""Of lines printed to standard output and to standard error. What comes on standard error is mostly progress bars, deprecations
and the chatter of tools: worth a look, and no failure."""

ROWS_FAULT = frozenset({1, 18, 19, 20})
"""SQLITE_ERROR, TOOBIG, CONSTRAINT, MISMATCH: SQLite has taken the statement back and the transaction goes on. All others are the
disk's or a lock's, and the writer's to deal with."""

Row = tuple[int, int, str, int, str]
"""As ``statements.INSERT_LOGS`` takes it: job's seq, attempt, level, time, message."""


class Chunk(NamedTuple):
    rows: list[Row]
    size: int


class JobLogs:
    """The logs of all running attempts, and the step of each group that writes what they have."""

    def __init__(self, writer: Writer, clock: Clock, notices: Notices, *, max_bytes: int) -> None:
        """``notices`` hears the id of each job whose log has grown, after the commit. ``max_bytes`` limits the log of a job."""
        self._writer, self._notices = writer, notices
        self.now_ms = clock.now_ms
        self.max_bytes = max_bytes
        self._lock = threading.RLock()
        self._dirty: deque[JobLog] = deque()
        writer.every_group(self._write, before=True)

    def open(self, attempt: Attempt) -> JobLog:
        """The log of ``attempt``, made when it first has something to say. That of one that has ended takes nothing more."""
        made = JobLog(self, attempt)
        made.closed = attempt.finished  # one that ends from here on is seen by ``add``
        with self._lock:  # nothing in here allocates, so no finalizer comes between the look and the change
            log = attempt.log
            if log is None:
                log = attempt.log = made
        return log

    def note(self, attempt: Attempt, level: str, message: str) -> None:
        """A line of MiniFlow's own, of an attempt that goes on. It waits for nothing, and is no sign of life."""
        self.open(attempt).say(level, message)

    def last_word(self, attempt: Attempt, level: str, message: str) -> None:
        """A line of MiniFlow's own, of an attempt that has ended and whose end is not posted yet."""
        self.open(attempt).say_last(level, message)

    def announce(self, log: JobLog) -> None:
        """``log`` has something to write. Twice does no harm."""
        self._dirty.append(log)
        self._writer.nudge(now=False)

    def waits_here(self) -> bool:
        """Whether the writer takes nothing because it waits for the calling thread: until the limit of its transaction."""
        return self._writer.lent_here

    def held(self, log: JobLog, seq: int) -> int:
        """Bytes that the earlier attempts of a job have in its log. Asked in steps: nobody waits long for the writer."""

        def begin(tx: Transaction) -> tuple[int, int]:
            ((last_id,),) = tx.run(sql.LAST_LOG_ID, seq)
            return last_id or 0, log.taken

        def step(tx: Transaction) -> tuple[int | None, int]:
            row: tuple[int | None, int] = tx.run(sql.LOG_BYTES, seq, after, last, ASK_ROWS, STAMP_BYTES)[0]
            return row

        last, own = self._writer.call("verb", begin)  # in the same group as what was taken, and after it
        after = total = 0
        while after < last and total - own < self.max_bytes:
            upto, size = self._writer.call("verb", step)
            if upto is None:
                break
            after, total = upto, total + size
        return max(int(total - own), 0)

    def _write(self, tx: Transaction) -> None:
        if not self._dirty:
            return
        taken: list[tuple[JobLog, Chunk]] = []
        left: list[JobLog] = []
        most, largest = (HURRIED_LINES, HURRIED_BYTES) if self._writer.hurried else (GROUP_LINES, GROUP_BYTES)
        lines = size = 0
        turn = [self._dirty.popleft() for _ in range(len(self._dirty))]
        while turn:  # each gives a chunk, then each another one
            again = []
            for log in turn:
                if not log.ended and (lines >= most or size >= largest):
                    left.append(log)
                    continue
                chunk = log.take()
                if chunk is None:
                    continue
                taken.append((log, chunk))
                lines, size = lines + len(chunk.rows), size + chunk.size
                if log.dirty:
                    again.append(log)
            turn = again
        for log in left:
            self.announce(log)
        if not taken:
            return

        def give_back() -> None:
            for log, chunk in reversed(taken):
                log.give_back(chunk)

        tx.on_rollback(give_back)
        self._insert(tx, [chunk for _, chunk in taken])
        tx.on_commit(lambda: self._publish(taken))

    def _insert(self, tx: Transaction, chunks: list[Chunk]) -> None:
        """One statement for all. Where it fails for what is in a row, the chunk with that row is left out: if it were not, this
        step would fail in every group from here on, and take all other operations with it."""
        try:
            tx.run(sql.INSERT_LOGS, json_text([row for chunk in chunks for row in chunk.rows]))
        except Exception as exc:  # which kinds are the row's own fault, is looked at next
            if not _is_rows_fault(exc):
                raise
            if len(chunks) > 1:
                for chunk in chunks:
                    self._insert(tx, [chunk])
                return
            seq, number, *_ = chunks[0].rows[0]
            app_log.exception(
                "%d lines of attempt %d of the job with seq %d cannot be written to its log and are left out",
                len(chunks[0].rows), number, seq,
            )  # fmt: skip

    def _publish(self, taken: list[tuple[JobLog, Chunk]]) -> None:
        if self._notices.wanted:
            self._notices.publish({log.job_id for log, _ in taken})


class JobLog:
    """The log of one attempt. Any thread may add to it; only the writer's takes from it."""

    __slots__ = (
        "_ask_at", "_attempt", "_full", "_head_max", "_inside", "_left_bytes", "_left_lines", "_lock", "_logs", "_number",
        "_partial", "_rows", "_rows_size", "_seq", "_size", "_tail", "_tail_max", "_tail_size", "closed", "dirty", "ended",
        "mark", "marked", "said", "taken",
    )  # fmt: skip

    def __init__(self, logs: JobLogs, attempt: Attempt) -> None:
        self._logs, self._attempt = logs, attempt
        self._seq, self._number = attempt.claimed.seq, attempt.number
        self._lock = threading.RLock()  # nobody takes it twice
        # True for a finalizer that has come while its own thread holds the lock. An RLock knows, a mark of ours would be late.
        self._inside: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]
        self._partial: tuple[dict[int, str], dict[int, str]] = ({}, {})  # half lines, by stream and thread
        self._full: deque[Chunk] = deque()
        self._rows: list[Row] = []
        self._rows_size = 0
        self._size = 0  # of what went into the head
        limit = logs.max_bytes
        self._head_max, self._tail_max = limit // 2, min(limit // 2, TAIL_BYTES_MAX)
        claimed = attempt.claimed
        never_ran = claimed.attempt == 0 and claimed.ready_at == claimed.created_at  # a replay counts its attempts anew
        self._ask_at = sys.maxsize if never_ran else min(FIRST_BYTES, limit // 8)
        self._tail: deque[tuple[Row, int]] = deque()
        self._tail_size = self._left_lines = self._left_bytes = 0
        self.taken = 0  # bytes that the writer has taken
        self.said = 0  # bytes that came from the attempt, kept or not
        self.mark = sys.maxsize  # of ``said``: once there, ``marked`` is called
        self.marked: Callable[[], None] = lambda: None
        self.dirty = False  # the writer knows that something waits here
        self.closed = False  # takes nothing more
        self.ended = False  # the end is posted: all that waits must go with it

    def __repr__(self) -> str:
        state = "ended" if self.ended else "closed" if self.closed else "open"
        return f"<JobLog of {self._attempt} {state} [{len(self._full)} chunks wait]>"

    @property
    def job_id(self) -> str:
        return self._attempt.claimed.id

    # ------------------------------------------------------------------------------------------------------------- adding

    def add(self, level: str, message: str) -> bool:
        """One line; False if it is not taken: the attempt is over, or a finalizer says it in the midst of another line. Blocks
        while too much waits, and raises what the job is interrupted with."""
        if self._inside():
            return False
        self._attempt.heard = True
        self._attempt.raise_in_coroutine()
        row, size = self._row(level, message)
        if self._size >= self._ask_at:
            self._ask()
        while True:
            with self._lock:
                if self.closed or self._attempt.finished:
                    return False
                if self._size >= self._head_max:
                    self._keep(row, size)
                    break
                if len(self._full) < WAITING_CHUNKS or self._logs.waits_here():
                    self._append(row, size)
                    break
            self._attempt.raise_in_coroutine()
            time.sleep(HELD_BACK_S)
        self.said += size
        if self.said >= self.mark:
            self._reached()
        return True

    @property
    def full(self) -> bool:
        """Whether only the newest lines are kept from here on."""
        return self._size >= self._head_max

    def leave_out(self, lines: int, size: int) -> None:
        """So many lines, of ``size`` bytes, came and are not given to a log that is full: they are counted as left out."""
        self._attempt.heard = True
        size += lines * STAMP_BYTES
        with self._lock:
            self._left_lines += lines
            self._left_bytes += size
        self.said += size
        if self.said >= self.mark:
            self._reached()

    def _reached(self) -> None:
        self.mark = sys.maxsize
        self.marked()

    def write(self, stream: int, text: str) -> bool:
        """A piece of what is printed; each line break ends a line. False if it is not taken, see ``add``."""
        if self.closed or self._attempt.finished or self._inside():
            return False
        if not text:
            return True
        self._attempt.heard = True
        partial, thread = self._partial[stream], threading.get_ident()
        before = partial.get(thread)
        if before is not None:
            text = before + text
        if "\n" not in text and len(text) < LINE_CHARS_MAX:
            partial[thread] = text if "\r" not in text else _overwritten(text)
            return True
        if before is not None:
            partial.pop(thread, None)
        level = STREAM_LEVELS[stream]
        if text.endswith("\n") and text.count("\n") == 1:  # what print writes
            lines, rest = [text[:-1]], ""
        else:
            *lines, rest = text.split("\n")
            if len(rest) >= LINE_CHARS_MAX:  # no line break is in sight: one is made
                lines.append(rest)
                rest = ""
        took = False
        for line in lines:
            took = self.add(level, line if "\r" not in line else _overwritten(line).rstrip("\r")) or took
        if rest and took:
            partial[thread] = rest
        return took

    def say(self, level: str, message: str) -> None:
        """A line of MiniFlow's own, whatever waits; nothing if the log is closed."""
        row, size = self._row(level, message)
        with self._lock:
            if not self.closed:
                self._append(row, size)

    def say_last(self, level: str, message: str) -> None:
        """A line after all others, of a log that is closed or is so now."""
        self.close()
        row, size = self._row(level, message)
        with self._lock:
            self._append(row, size)

    def _row(self, level: str, message: str) -> tuple[Row, int]:
        if type(message) is not str:  # a subclass is none to the encoder, and may say of itself what it likes
            message = str.__str__(message)
        if len(message) > LINE_CHARS_MAX or not message.isascii():
            message = middle_out(message, LINE_CHARS_MAX)
            size = len(message.encode())
        else:
            size = len(message)
        return (self._seq, self._number, level, self._logs.now_ms(), message), size + STAMP_BYTES

    def _append(self, row: Row, size: int) -> None:
        self._size += size
        self._rows_size += size
        self._rows.append(row)
        if len(self._rows) >= CHUNK_LINES or self._rows_size >= CHUNK_BYTES:
            chunk = Chunk(self._rows, self._rows_size)
            self._rows, self._rows_size = [], 0
            self._full.append(chunk)
        if not self.dirty:
            self._logs.announce(self)
            self.dirty = True

    def _keep(self, row: Row, size: int) -> None:
        """Beyond the head only the newest lines are kept."""
        tail = self._tail
        tail.append((row, size))
        self._tail_size += size
        while self._tail_size > self._tail_max and tail:
            _, old = tail.popleft()
            self._tail_size -= old
            self._left_lines += 1
            self._left_bytes += old

    def _ask(self) -> None:
        """Earlier attempts may have used the limit up. Asked once, and only by those that have something to say."""
        self._ask_at = sys.maxsize
        try:
            before = self._logs.held(self, self._seq)
        except (StoreError, TransactionRefused):  # a full disk, or the server stops, or waits for this job: later
            self._ask_at = self._size + FIRST_BYTES
            return
        with self._lock:
            limit = self._logs.max_bytes
            self._head_max = max(self._head_max - before, 0)
            least = min(LAST_BYTES, limit // 8)
            self._tail_max = max(min(self._tail_max, limit - before - self._head_max), least)

    # ------------------------------------------------------------------------------------------------------------- the end

    def close(self) -> None:
        """The body has ended: half lines are whole ones now, what was kept of the newest lines waits to be written, and nothing
        more is taken."""
        with self._lock:
            if self.closed:
                return
            for stream, partial in enumerate(self._partial):
                while partial:
                    _, text = partial.popitem()
                    row, size = self._row(STREAM_LEVELS[stream], _overwritten(str.__str__(text)).rstrip("\r"))
                    if self._size >= self._head_max:
                        self._keep(row, size)
                    else:
                        self._append(row, size)
            if self._left_lines:
                self._append(*self._row("WARNING", self._gap()))
            for row, size in self._tail:
                self._append(row, size)
            self._tail.clear()
            self.closed = True

    def end(self) -> None:
        """The end of the attempt is about to be posted."""
        self.close()
        self.ended = True
        if self._full or self._rows:
            self._logs.announce(self)

    def settle(self, pause: Callable[[float], object]) -> None:
        """Wait until the writer has taken most of what waits, for a second at most: the end brings all the rest at once."""
        for _ in range(SETTLE_ROUNDS):
            if len(self._full) <= SETTLED_CHUNKS or self._attempt.finished:
                return
            pause(HELD_BACK_S)

    def _gap(self) -> str:
        return (
            f"… {self._left_lines:,} lines ({self._left_bytes:,} bytes) left out here: "
            f"the log is over max_log_bytes = {self._logs.max_bytes:,} …"
        )

    # --------------------------------------------------------------------------------------------------- the writer's thread

    def take(self) -> Chunk | None:
        """The oldest lines that wait, to be written; None if none does."""
        with self._lock:
            if self._full:
                chunk = self._full.popleft()
            elif self._rows:
                chunk = Chunk(self._rows, self._rows_size)
                self._rows, self._rows_size = [], 0
            else:
                self.dirty = False
                return None
            self.dirty = bool(self._full or self._rows)
        self.taken += chunk.size
        return chunk

    def give_back(self, chunk: Chunk) -> None:
        """It was not written after all."""
        self.taken -= chunk.size
        with self._lock:
            self._full.appendleft(chunk)
            if not self.dirty:
                self._logs.announce(self)
                self.dirty = True


def _is_rows_fault(exc: Exception) -> bool:
    """Whether a row cannot be written for what it is, now or ever."""
    return isinstance(exc, (TypeError, ValueError)) or getattr(exc, "result", None) in ROWS_FAULT


def _overwritten(line: str) -> str:
    """What a terminal shows of a line in the end: what comes after a carriage return is written over what stood there."""
    kept = line.rstrip("\r")
    return kept[kept.rfind("\r") + 1 :] + ("\r" if len(kept) < len(line) else "")
