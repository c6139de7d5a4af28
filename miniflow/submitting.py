"""How jobs come into the file: all that a group submits is a few statements.

An idempotency key is looked up and taken in the same transaction, so two submits with one key cannot both be new, not even
within a batch. Limits are checked before a row is written; a refused submit leaves nothing behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from miniflow import statements as sql
from miniflow.errors import IdempotencyConflict, MiniFlowError, NotUnique, QueueFull, ShuttingDown, TooManyQueues
from miniflow.model import Accepted, NewJob
from miniflow.operations import Operation
from miniflow.states import WAITING
from miniflow.tally import Tally
from miniflow.uniqueness import SameJobs
from miniflow.writer import Transaction, Writer, json_text

if TYPE_CHECKING:
    from miniflow.jobs import Jobs


CONCURRENCY_KEY = 18
"""Its place in a row that has one."""
NULLS = [None] * sql.JOB_COLUMNS


class Submitting:
    def __init__(self, jobs: Jobs, writer: Writer, *, max_queue: int, max_queues: int) -> None:
        self._jobs, self._writer, self._max_queue, self._max_queues = jobs, writer, max_queue, max_queues
        writer.handle("insert", self.insert)

    def insert(self, tx: Transaction, ops: list[Operation]) -> None:
        """Each operation has a list of NewJob and gets a list of Accepted: all of it, or none."""
        if not self._jobs.accepting:
            for op in ops:
                op.error = ShuttingDown()
            return
        in_use = self._keys_in_use(tx, ops)
        with_rules = [job for op in ops for job in op.argument if job.ruled]
        same = SameJobs(tx, with_rules) if with_rules else None
        waiting = self.waiting()
        new: list[NewJob] = []
        dependent: list[tuple[NewJob, list[Accepted]]] = []
        for op in ops:
            jobs: list[NewJob] = op.argument
            fresh, op.value, op.error = _resolve_keys(jobs, in_use)
            if op.error is None and same is not None:
                fresh, op.value, op.error = _resolve_same(fresh, op.value, same)
            if op.error is None:
                op.error = self.refusal(tx, fresh, waiting + len(new))
            waits = [job for job in fresh if job.waits is not None] if op.error is None else []
            if waits:
                op.error = self._jobs.dependencies.check(tx, waits, op.value)
            if op.error is not None:
                continue
            if same is not None:
                same.accept()
            for job in fresh:
                if job.key is not None:
                    in_use[job.key] = (job.id, job.fingerprint)
            new += fresh
            dependent += [(job, op.value) for job in waits]
        for run_at in same.write_merges() if same is not None else ():
            self._jobs.timers.expect(run_at, None)
        if new:
            self.add(tx, new, same)
        if dependent:
            self._jobs.dependencies.insert(tx, dependent)

    def add(self, tx: Transaction, jobs: list[NewJob], same: SameJobs | None = None) -> int:
        """Insert jobs that nothing speaks against: their limits and keys have been looked at, and ``same`` has asked for others
        like them, if that was to be asked. The seq of the first; the others follow."""
        self.expect(tx, Tally(jobs))
        return self.write(tx, jobs, same)

    def expect(self, tx: Transaction, tally: Tally, times: int = 1) -> None:
        """Such jobs are coming, so many times: count them, and look at them when they are ready, due, or over."""
        for name, label, n in tally.counts:
            tx.count(name, label, n * times)
        for run_at, expires_at in tally.times:
            self._jobs.timers.expect(run_at, expires_at)
        for queue, priority in tally.ready:
            self._jobs.ready(tx, queue, priority)

    def write(self, tx: Transaction, jobs: list[NewJob], same: SameJobs | None = None) -> int:
        """As ``add``, of those that are expected already."""
        ruled = any(job.ruled for job in jobs)
        rows = [job.row if same is None else same.new_rows[job.id] for job in jobs]
        insert, width = sql.INSERT_PLAIN_JOBS, sql.PLAIN_JOB_COLUMNS
        if any(len(row) > width for row in rows):
            insert, width = sql.INSERT_JOBS, sql.JOB_COLUMNS
        whole = [row + NULLS[: width - len(row)] for row in rows]
        tx.insert(insert, whole, self._jobs.turn(tx), tx.now_ms, tx.number)
        first = tx.first_of(len(rows))
        if ruled and any(len(row) > CONCURRENCY_KEY and row[CONCURRENCY_KEY] is not None for row in rows):
            self._jobs.rules.a_key_came(tx)
        return first

    def _keys_in_use(self, tx: Transaction, ops: list[Operation]) -> dict[str, tuple[str, str | None]]:
        keys = [job.key for op in ops for job in op.argument if job.key is not None]
        return {key: (job_id, mark) for key, job_id, mark in tx.run(sql.KEYS_IN_USE, json_text(keys))} if keys else {}

    def waiting(self) -> int:
        """How many jobs waited before this group."""
        return sum(self._writer.total(state) for state in WAITING)

    def refusal(self, tx: Transaction, jobs: list[NewJob], waiting: int) -> MiniFlowError | None:
        """Why these jobs cannot be taken where so many wait; their queues are made if they can."""
        if waiting + len(jobs) > self._max_queue:
            return QueueFull(waiting, self._max_queue)
        known = self._writer.counters.get("queue", {})
        new = {job.queue for job in jobs if job.queue not in known and ("queue", job.queue) not in tx.deltas}
        if new and len(known) + sum(name == "queue" for name, _ in tx.deltas) + len(new) > self._max_queues:
            return TooManyQueues(min(new), self._max_queues)
        for queue in new:
            tx.count("queue", queue)
        return None


def _resolve_same(
    fresh: list[NewJob], accepted: list[Accepted], same: SameJobs
) -> tuple[list[NewJob], list[Accepted], MiniFlowError | None]:
    """As ``_resolve_keys``, by the jobs' own rules: those for which there is a job already are not new."""
    try:
        merged = same.resolve(fresh)
    except NotUnique as exc:
        return [], [], exc
    if not merged:
        return fresh, accepted, None
    answers = [merged[one.id]._replace(replayed=one.replayed) if one.id in merged else one for one in accepted]
    return [job for job in fresh if job.id not in merged], answers, None


def _resolve_keys(
    jobs: list[NewJob], in_use: dict[str, tuple[str, str | None]]
) -> tuple[list[NewJob], list[Accepted], MiniFlowError | None]:
    """Which of ``jobs`` are new; what each becomes; the conflict, if a key was used with another body."""
    fresh: list[NewJob] = []
    accepted: list[Accepted] = []
    here: dict[str, tuple[str, str | None]] = {}
    for job in jobs:
        first = None if job.key is None else in_use.get(job.key) or here.get(job.key)
        if first is None:
            fresh.append(job)
            if job.key is not None:
                here[job.key] = (job.id, job.fingerprint)
        elif first[1] != job.fingerprint:
            return [], [], IdempotencyConflict(job.key or "", first[0])
        accepted.append(Accepted(first[0] if first else job.id, first is not None))
    return fresh, accepted, None
