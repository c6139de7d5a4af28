"""Which runs of each schedule have not ended: the jobs, or workflows, and those that wait for them.

Known in memory and exact, since this process is the only writer; read from the file at the start and after a rollback. Every end
of a job is published anyway: while a schedule has an open job the ends are looked through, and the next group writes what they
mean – failures in a row, a schedule that pauses itself, the next run that waited.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable

from miniflow import schedule_statements as sql
from miniflow.contract import from_text
from miniflow.errors import NotFound, TransitionRefused
from miniflow.jobs import Jobs
from miniflow.states import TERMINAL, State
from miniflow.writer import Transaction, json_text

log = logging.getLogger("miniflow.schedules")

CLOSED_MAX = 1000  # ends in one group
FAILED = (State.DEAD_LETTER, State.EXPIRED, "failed")
ENDED = {*TERMINAL, "failed"}
"""The states in which a job, or a workflow, has ended."""
DELETED = "deleted"


class OpenRuns:
    def __init__(self, jobs: Jobs, start_waiting: Callable[[Transaction, int], None]) -> None:
        self._jobs, self._start_waiting = jobs, start_waiting
        self._owner: dict[str, int] = {}  # job -> schedule
        self._running: dict[int, dict[str, None]] = {}  # schedule -> its jobs, oldest first
        self._waiting: dict[int, int] = {}  # schedule -> how many
        self._ended: dict[str, None] = {}  # jobs to look at
        self._to_start: set[int] = set()
        self._stale = False

    def __repr__(self) -> str:
        return f"<OpenRuns [{len(self._owner)} jobs, {sum(self._waiting.values())} waiting]>"

    # ------------------------------------------------------------------------------------------------------- what is open

    def busy(self, schedule: int) -> bool:
        return bool(self._running.get(schedule)) or self._waiting.get(schedule, 0) > 0

    def running(self, schedule: int) -> bool:
        return bool(self._running.get(schedule))

    def waiting(self, schedule: int) -> int:
        return self._waiting.get(schedule, 0)

    def first(self, schedule: int) -> str:
        """The oldest job that has not ended; empty if none has been made."""
        return next(iter(self._running.get(schedule, {})), "")

    def add(self, schedule: int, job_id: str) -> None:
        self._owner[job_id] = schedule
        self._running.setdefault(schedule, {})[job_id] = None
        self._jobs.heard = self._hear

    def remove(self, job_id: str) -> None:
        schedule = self._owner.pop(job_id, None)
        if schedule is not None:
            jobs = self._running[schedule]
            jobs.pop(job_id, None)
            if not jobs:
                del self._running[schedule]
        if not self._owner:
            self._jobs.heard = None

    def add_waiting(self, schedule: int, n: int = 1) -> None:
        left = self._waiting.pop(schedule, 0) + n
        if left > 0:
            self._waiting[schedule] = left

    def cancel_all(self, tx: Transaction, schedule: int) -> None:
        """What runs is asked to stop, and what waits is dropped: something newer comes."""
        for job_id in list(self._running.get(schedule, {})):
            try:
                self._cancel(tx, job_id)
            except (NotFound, TransitionRefused):  # it has ended, and that is about to be heard
                self._ended[job_id] = None
        if self._waiting.pop(schedule, 0):
            tx.run(sql.DROP_ALL_WAITING, schedule, "a newer run took its place")

    def _cancel(self, tx: Transaction, run_id: str) -> None:
        """A job, or a workflow."""
        try:
            self._jobs.cancel(run_id)(tx)
        except NotFound:
            self._jobs.workflows.cancel(run_id)(tx)

    def drop(self, schedule: int) -> None:
        """The schedule is gone; its jobs go on."""
        for job_id in list(self._running.get(schedule, {})):
            self.remove(job_id)
        self._waiting.pop(schedule, None)

    def wake(self, schedule: int) -> None:
        """What waits may begin again: the schedule was resumed."""
        self._to_start.add(schedule)

    # ------------------------------------------------------------------------------------------------------------- the file

    def load(self, tx: Transaction) -> None:
        """Read what is open, and look at each of the jobs: it may have ended while nobody listened."""
        self._owner.clear()
        self._running.clear()
        self._waiting.clear()
        self._stale = False
        for schedule, job_id in tx.run(sql.OPEN_FIRES):
            if job_id is None:
                self.add_waiting(schedule)
                self._to_start.add(schedule)
            else:
                self.add(schedule, job_id)
        self._ended = dict.fromkeys(self._owner)

    def forget(self) -> None:
        """The transaction was rolled back: what is here may not be so."""
        self._stale = True

    def _hear(self, job_ids: list[str]) -> None:
        """Some jobs have ended, in a transaction that is committed."""
        self._ended.update(dict.fromkeys(job_id for job_id in job_ids if job_id in self._owner))

    def due_in_s(self) -> float:
        return 0 if (self._ended or self._to_start or self._stale) and self._jobs.accepting else math.inf

    def close(self, tx: Transaction) -> None:
        """The step: write what ends mean."""
        if not (self._ended or self._to_start or self._stale) or not self._jobs.accepting:
            return
        tx.on_rollback(self.forget)
        if self._stale:
            self.load(tx)
        looked_at = list(self._ended)[:CLOSED_MAX]
        for job_id in looked_at:
            del self._ended[job_id]
        states = dict(tx.run(sql.STATES_OF_RUNS, json_text(looked_at))) if looked_at else {}
        ends: list[tuple[str, str]] = []
        outcomes: dict[int, list[bool | None]] = {}
        for job_id in looked_at:
            state = states.get(job_id, DELETED)
            if job_id in self._owner and (state == DELETED or state in ENDED):
                ends.append((job_id, state))
                well = True if state == State.COMPLETED else False if state in FAILED else None
                outcomes.setdefault(self._owner[job_id], []).append(well)
                self._to_start.add(self._owner[job_id])
                self.remove(job_id)
        if ends:
            tx.run(sql.CLOSE_FIRES, json_text(ends))
            self.count_failures(tx, _in_a_row(outcomes))
        for schedule in sorted(self._to_start):
            self._start_waiting(tx, schedule)
        self._to_start.clear()

    def count_failures(self, tx: Transaction, counts: Iterable[tuple[int, int, int]]) -> None:
        """(schedule, 1: a run ended well, how many have failed since). One that has failed too often in a row pauses itself."""
        for schedule, failures, text in tx.run(sql.COUNT_FAILURES, json_text(list(counts))):
            limit = from_text(text).pause_after_failures
            if limit and failures >= limit:
                reason = (
                    f"{failures} {'run' if failures == 1 else 'runs'} in a row failed (pause_after_failures is {limit})"
                )
                if tx.change(sql.PAUSE_IF_NOT, schedule, tx.now_ms, reason):
                    log.warning("a schedule paused itself: %s", reason)


def _in_a_row(outcomes: dict[int, list[bool | None]]) -> list[tuple[int, int, int]]:
    """What ends in this order did to each schedule. One that was cancelled says nothing."""
    found = []
    for schedule, ended in outcomes.items():
        said = [well for well in ended if well is not None]
        well_at = max((n for n, well in enumerate(said) if well), default=-1)
        if said:
            found.append((schedule, int(well_at >= 0), len(said) - well_at - 1))
    return found
