"""How far running jobs are, and how long they will still take.

A task may report as often as it likes: a report costs it a few attributes. The writer takes what was said last, of each attempt
at most once in WRITE_EVERY_MS, and always before its end: whoever sees the end sees the last report.

The time left is estimated from the reports alone: what was done between them, over the time it took, with the older ones counting
less and less. A task whose parts are of different size is so judged by the latest of them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from miniflow import statements as sql
from miniflow.attempts import Attempt
from miniflow.clock import Clock, rfc3339
from miniflow.retry import DELAY_S_MAX
from miniflow.writer import Transaction, Writer, json_text

WRITE_EVERY_MS = 200
MEMORY_MS_MIN = 10_000
MEMORY_SHARE = 0.5
"""A report counts half as much when so much has passed since it: a share of the run up to now, and MEMORY_MS_MIN at least."""


class Said(NamedTuple):
    """One report: what is done and of how much, a message, when that was, and the time left (None: not to be told)."""

    done: float
    total: float
    message: str | None
    at_ms: int
    left_ms: float | None

    def shown(self) -> dict[str, Any]:
        """As the API has it. ``remaining`` is in seconds, as of ``at``."""
        found: dict[str, Any] = {"done": self.done, "total": self.total, "percent": self.percent}
        if self.message:
            found["message"] = self.message
        if self.left_ms is not None:
            found["remaining"] = round(min(self.left_ms / 1000, DELAY_S_MAX), 1)
        return {**found, "at": rfc3339(self.at_ms)}

    @property
    def percent(self) -> float:
        """Never 100 before all is done, however little is left."""
        share = self.done / self.total if self.total else 1.0
        return 100.0 if share >= 1 else min(round(share * 100, 1), 99.9)


class Report:
    """What an attempt has reported, and how fast it has been. Used by the threads of one job."""

    __slots__ = (
        "_boot_ms",
        "_done",
        "_passed_ms",
        "_started_boot_ms",
        "_total",
        "_worked",
        "latest",
        "written_boot_ms",
    )

    def __init__(self, started_boot_ms: int) -> None:
        """``started_boot_ms`` is when the attempt began, with nothing done."""
        self._started_boot_ms = self._boot_ms = started_boot_ms
        self._done, self._total = 0.0, math.nan
        self._worked = self._passed_ms = 0.0  # sums that older reports have a smaller part in
        self.latest: Said | None = None
        self.written_boot_ms: int | None = None

    def __repr__(self) -> str:
        return f"<Report {self.latest}>"

    def say(self, done: float, total: float, message: str | None, *, now_ms: int, boot_ms: int) -> None:
        another = self.latest is not None and (total != self._total or done < self._done)
        if another or done <= 0:  # how fast it goes is not known yet
            self._worked = self._passed_ms = 0.0
            self._started_boot_ms = boot_ms
        else:
            passed_ms = max(boot_ms - self._boot_ms, 0)
            half_ms = max(MEMORY_MS_MIN, (boot_ms - self._started_boot_ms) * MEMORY_SHARE)
            kept = 0.5 ** (passed_ms / half_ms)
            self._worked = self._worked * kept + done - self._done
            self._passed_ms = self._passed_ms * kept + passed_ms
        self._done, self._total, self._boot_ms = done, total, boot_ms
        self.latest = Said(done, total, message, now_ms, self._left_ms())

    def _left_ms(self) -> float | None:
        if self._done >= self._total:
            return 0.0
        if self._worked <= 0 or self._passed_ms <= 0:
            return None
        return (self._total - self._done) * self._passed_ms / self._worked

    def passed_unseen(self, ms: int) -> None:
        """So much time has passed in which nobody worked: the machine slept."""
        self._boot_ms += ms
        self._started_boot_ms += ms


class ProgressBoard:
    """Takes the reports of running attempts, and is the step of each group that writes them."""

    def __init__(self, writer: Writer, clock: Clock) -> None:
        self._writer, self._clock = writer, clock
        self._waiting: dict[int, Attempt] = {}  # by row: those that have said something since it was written
        writer.every_group(self._write, before=True, due_in_s=self._due_in_s)

    def __repr__(self) -> str:
        return f"<ProgressBoard [{len(self._waiting)} wait]>"

    def say(self, attempt: Attempt, done: float, total: float, message: str | None) -> None:
        """An attempt is so far. What one says that has ended is passed over."""
        attempt.beat()
        boot_ms, now_ms = self._clock.boot_ms(), self._clock.now_ms()
        report = attempt.progress
        if report is None:  # of two threads that are first at once, one is not heard; it will be the next time
            report = attempt.progress = Report(boot_ms - max(now_ms - attempt.started_at, 0))
        report.say(done, total, message, now_ms=now_ms, boot_ms=boot_ms)
        if attempt.finished:
            return
        waits = self._waiting.get(attempt.claimed.seq) is attempt
        self._waiting[attempt.claimed.seq] = attempt
        if not waits:
            # A wake-up makes the writer look when the next group is due; it is no group by itself.
            self._writer.nudge(now=report.written_boot_ms is not None)

    def _due_in_s(self) -> float:
        if not self._waiting:
            return math.inf
        boot_ms = self._clock.boot_ms()
        return min((_due_ms(attempt) - boot_ms for attempt in list(self._waiting.values())), default=math.inf) / 1000

    def _write(self, tx: Transaction) -> None:
        if not self._waiting:
            return
        boot_ms = self._clock.boot_ms()
        due = [one for one in list(self._waiting.values()) if one.finished or _due_ms(one) <= boot_ms]
        rows = []
        for attempt in due:
            claimed, report = attempt.claimed, attempt.progress
            if self._waiting.get(claimed.seq) is attempt:
                del self._waiting[claimed.seq]  # before it is read: what is said from here on puts it back
            if report is not None and report.latest is not None:
                report.written_boot_ms = boot_ms
                rows.append((claimed.seq, claimed.lease, json_text(report.latest.shown())))
        if rows:
            tx.on_rollback(lambda: self._waiting.update({one.claimed.seq: one for one in due}))
            tx.run(sql.SET_PROGRESS_IF_RUNNING, json_text(rows), tx.now_ms, tx.number)


def _due_ms(attempt: Attempt) -> float:
    written = attempt.progress.written_boot_ms if attempt.progress is not None else None
    return -math.inf if written is None else written + WRITE_EVERY_MS
