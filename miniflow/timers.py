"""What happens to jobs because time passes: delayed and retrying ones become ready, those that waited too long expire.

Steps of every group of the writer, each a comparison of two numbers when nothing is due. They keep the time of the next event
in memory, so nobody polls the file; a step that finds more than SWEEP_MAX rows leaves the rest to the next group.

Somebody may set the clock. ``run_at`` is wall time and means what it says; a delay, a backoff and a ttl are durations and keep
their length: the rows that wait for one are moved along with the clock.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from miniflow import statements as sql
from miniflow.clock import CLOCK_JUMP_MS, SettledClock
from miniflow.dependency_statements import SHIFT_PENDING
from miniflow.states import State
from miniflow.writer import Transaction, Writer

if TYPE_CHECKING:
    from miniflow.jobs import Jobs

log = logging.getLogger("miniflow.timers")

SWEEP_MAX = 1000  # rows promoted or expired in one group: a sweep must not hold up a submit


class Timers:
    def __init__(self, jobs: Jobs, writer: Writer, clock: SettledClock) -> None:
        self._jobs, self._clock = jobs, clock
        self._next_due_ms = self._next_expiry_ms = math.inf
        self.paused = False  # nothing becomes due, nothing expires: nobody is there who would run it
        writer.every_group(self._watch_clock, due_in_s=lambda: 0 if clock.jump_ms() else math.inf)
        writer.every_group(self._promote, due_in_s=lambda: self._in_s(self._next_due_ms))
        writer.every_group(self._expire, due_in_s=lambda: self._in_s(self._next_expiry_ms))

    def expect(self, run_at: int | None, expires_at: int | None) -> None:
        """A row that is due, or over, at these times has come."""
        if run_at is not None:
            self._next_due_ms = min(self._next_due_ms, run_at)
        if expires_at is not None:
            self._next_expiry_ms = min(self._next_expiry_ms, expires_at)

    def look(self, tx: Transaction) -> None:
        """Read from the file what is next."""
        self._next_due_ms = _or_never(tx.run(sql.NEXT_DUE))
        self._next_expiry_ms = _or_never(tx.run(sql.NEXT_EXPIRY))

    def remember_clock(self, tx: Transaction, boot_id: str) -> None:
        """At start: was the clock set while we were away? Only the same boot of the machine can tell."""
        before = dict(tx.run(sql.META_OF_CLOCK))
        if boot_id and before.get("boot_id") == boot_id and isinstance(before.get("clock_offset_ms"), int):
            jump_ms = tx.offset_ms - before["clock_offset_ms"]
            if abs(jump_ms) > CLOCK_JUMP_MS:
                self._move_along(tx, jump_ms)
        tx.run(sql.META_PUT, "boot_id", boot_id)
        tx.run(sql.META_PUT, "clock_offset_ms", tx.offset_ms)

    # ----------------------------------------------------------------------------------------------------------- the steps

    def _in_s(self, ms: float) -> float:
        return math.inf if self.paused else (ms - self._clock.now_ms()) / 1000

    def _watch_clock(self, tx: Transaction) -> None:
        jump_ms = self._clock.jump_ms()
        if not jump_ms:
            return
        self._move_along(tx, jump_ms)
        tx.on_rollback(lambda: self._clock.settle(-jump_ms))
        self._clock.settle(jump_ms)
        tx.now_ms, tx.offset_ms = (
            self._clock.reading()
        )  # the rest of the group goes by the new time, as the rows do now
        tx.run(sql.META_PUT, "clock_offset_ms", tx.offset_ms)

    def _move_along(self, tx: Transaction, jump_ms: int) -> None:
        self._jobs.give_back(tx, lambda row: row.expires_at is not None)  # what is held has the old times
        tx.run(sql.SHIFT_RELATIVE_WAITS, jump_ms, tx.number)
        tx.run(sql.SHIFT_EXPIRIES, jump_ms, tx.number)
        tx.run(SHIFT_PENDING, jump_ms, tx.number)
        self._jobs.checkpoints.shift(tx, jump_ms)
        self._jobs.workflows.shift(tx, jump_ms)
        self.look(tx)
        log.warning(
            "the clock was set by %+.1f s; delays, backoffs and ttls go on as long as they were meant to",
            jump_ms / 1000,
        )

    def _promote(self, tx: Transaction) -> None:
        if self._next_due_ms > tx.now_ms or self.paused:
            return
        tx.on_rollback(self._look_again)
        rows = tx.run(sql.PROMOTE_DUE, tx.now_ms, self._jobs.turn(tx), SWEEP_MAX, tx.number)
        for _, queue, priority, retried, expires_at in rows:
            tx.count(State.RETRYING if retried else State.SCHEDULED, queue, -1)
            tx.count(State.QUEUED, queue)
            self._jobs.ready(tx, queue, priority)
            self.expect(None, expires_at)
        self._next_due_ms = _or_never(tx.run(sql.NEXT_DUE))

    def _expire(self, tx: Transaction) -> None:
        if self._next_expiry_ms > tx.now_ms or self.paused:
            return
        tx.on_rollback(self._look_again)
        self._jobs.give_back(tx, lambda row: row.expires_at is not None and row.expires_at <= tx.now_ms)
        rows = tx.run(sql.EXPIRE_QUEUED, tx.now_ms, SWEEP_MAX, tx.number)
        for _, queue, _ in rows:
            tx.count(State.QUEUED, queue, -1)
            tx.count(State.EXPIRED, queue)
        self._jobs.ended(tx, [seq for seq, *_ in rows])
        self._jobs.publish(tx, lambda: [job_id for _, _, job_id in rows])
        if len(rows) == SWEEP_MAX:
            self._next_expiry_ms = tx.now_ms
        else:  # one that is over and was not taken has just been begun: its row says so in a moment
            self._next_expiry_ms = max(_or_never(tx.run(sql.NEXT_EXPIRY)), tx.now_ms + 1000)

    def _look_again(self) -> None:
        self._next_due_ms = self._next_expiry_ms = 0


def _or_never(rows: list[Any]) -> float:
    return math.inf if rows[0][0] is None else rows[0][0]
