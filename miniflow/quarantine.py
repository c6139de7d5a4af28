"""After a process has died: the jobs that ran then begin one at a time, so that the one which killed it is found alone.

All that ran together at a crash is charged with it, the poison and its neighbours alike. Were they begun together again, they
would be charged together again, and buried together at the third crash. So the rows that have a crash on them are put aside
at the start – queued, under a lease that no claim looks at – and brought forward one by one: the next when the last has ended,
or has run for ISOLATION_S without harm. Jobs without a crash run beside them as ever.
"""

from __future__ import annotations

import math

from miniflow import statements as sql
from miniflow.attempts import Claimed, decode_claimed
from miniflow.clock import Clock
from miniflow.readahead import ReadAhead
from miniflow.writer import Transaction, Writer, json_text

ISOLATION_S = 10.0
PUT_OFF_S = 0.5
"""After that it is looked again whether one that could not begin can."""
ASIDE = 0
"""The lease of a row that is put aside; real ones count from 1."""


class Quarantine:
    def __init__(self, writer: Writer, readahead: ReadAhead, clock: Clock) -> None:
        self._writer, self._readahead, self._clock = writer, readahead, clock
        self._waiting: list[int] = []  # the next one last
        self.current: int | None = None
        self._over_at_boot_ms = math.inf  # counted from the begin of the current one
        self._not_before_boot_ms = 0  # the next one could not begin, for a reason of its own
        self.open = False  # nothing is brought forward before, and after, jobs are claimed at all

    def __repr__(self) -> str:
        return f"<Quarantine [{len(self._waiting)} waiting | current {self.current}]>"

    def put(self, tx: Transaction, seqs: list[int]) -> None:
        """Set these queued rows aside, to be brought forward in this order."""
        self._waiting = seqs[::-1]
        if seqs:
            tx.change(sql.PUT_ASIDE_IF_FREE, ASIDE, json_text(seqs))

    def due_in_s(self) -> float:
        if not self.open or not self._waiting:
            return math.inf
        due = self._not_before_boot_ms if self.current is None else self._over_at_boot_ms
        return max((due - self._clock.boot_ms()) / 1000, 0)

    def bring_forward(self, tx: Transaction, lease: int) -> list[Claimed]:
        """The next row, claimed under ``lease``; none while the last one is being watched."""
        if self.due_in_s() > 0:
            return []
        seq = self._waiting.pop()
        before = self.current, self._over_at_boot_ms
        self.current, self._over_at_boot_ms = None, math.inf

        def undo() -> None:
            self._waiting.append(seq)
            self.current, self._over_at_boot_ms = before

        tx.on_rollback(undo)
        if not tx.change(sql.CLAIM_IF_ASIDE, lease, seq, ASIDE):
            return []
        self.current = seq
        return decode_claimed(tx.run(sql.CLAIMED_BY_LEASE, lease)[0][0])

    def put_off(self, tx: Transaction, seq: int) -> None:
        """The current one may not begin now (its queue is paused, its slots are taken): it goes back, behind the others."""
        before = self._not_before_boot_ms
        tx.change(sql.PUT_BACK_ASIDE_IF_QUEUED, ASIDE, seq)
        self._waiting.insert(0, seq)
        self.current, self._not_before_boot_ms = None, self._clock.boot_ms() + round(PUT_OFF_S * 1000)

        def undo() -> None:
            self._waiting.remove(seq)
            self.current, self._not_before_boot_ms = seq, before

        tx.on_rollback(undo)

    def began(self, seq: int) -> None:
        """The body of the current one runs from now on."""
        if seq == self.current:
            self._over_at_boot_ms = self._clock.boot_ms() + round(ISOLATION_S * 1000)

    def ended(self, *seqs: int) -> None:
        """The rows have ended, or are no longer to run."""
        for seq in seqs:
            if seq == self.current:
                self.current = None
                self._writer.nudge()
            elif seq in self._waiting:
                self._waiting.remove(seq)

    def holds(self, seq: int) -> bool:
        """Whether the row is put aside right now."""
        return seq in self._waiting

    def release_all(self, tx: Transaction) -> None:
        """At stop: what was not brought forward goes back to the queue."""
        before = self.open, self.current, self._waiting

        def undo() -> None:
            self.open, self.current, self._waiting = before

        tx.on_rollback(undo)
        self.open, self.current, self._waiting = False, None, []
        if before[2]:
            tx.run(sql.UNCLAIM_IF_QUEUED, json_text(before[2]))
