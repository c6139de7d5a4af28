"""Jobs that are the same: a submit that asks for it (``unique``, ``debounce``) is answered with the job that is there.

What jobs are told to be the same by is a digest in their row, and there is an index of it, so the question costs the same however
many jobs have ended. It is asked and answered in the transaction that inserts, of all submits of a group at once: two of them
cannot both be new, not even within a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from miniflow import rule_statements as sql
from miniflow.clock import rfc3339
from miniflow.errors import NotUnique
from miniflow.model import Accepted, NewJob
from miniflow.writer import Transaction, json_text

EXISTING, DEBOUNCED = "existing", "debounced"

PAYLOAD, RUN_AT, EXPIRES_AT = 5, 8, 10
"""Places in the row of a NewJob, see ``statements.INSERT_JOBS``."""


class SameJobs:
    """The questions of one group, answered. ``new_rows`` has the rows of the jobs that are accepted and new."""

    def __init__(self, tx: Transaction, jobs: list[NewJob]) -> None:
        self._tx = tx
        self._found: dict[str, list[tuple[str, int, int]]] = {}  # by the new job's id: (id, seq, created_at)
        self._fresh: dict[str, NewJob] = {}  # by key: accepted in this transaction
        self._merges: dict[int, tuple[int, str, int | None, int | None, int | None]] = {}
        self.new_rows: dict[str, list[Any]] = {}
        self._accept: Callable[[], None] = lambda: None
        questions = [
            (job.id, job.same.key, job.same.states, 0 if job.same.within_ms is None else tx.now_ms - job.same.within_ms)
            for job in jobs
            if job.same is not None
        ]
        for job_id, first_id, seq, created_at in tx.run(sql.SAME_JOBS, json_text(questions)) if questions else ():
            self._found.setdefault(job_id, []).append((first_id, seq, created_at))

    def resolve(self, jobs: list[NewJob]) -> dict[str, Accepted]:
        """What becomes of those of ``jobs`` (one submit, or a batch) for which there is a job already, by their ids. The others
        are new. NotUnique if the submit is to be rejected. Nothing has happened before ``accept``."""
        fresh = dict(self._fresh)
        merges: list[tuple[NewJob, NewJob | int]] = []
        merged: dict[str, Accepted] = {}
        for job in jobs:
            first = self._first(job, fresh)
            if job.same is None or first is None:
                if job.same is not None:
                    fresh[job.same.key] = job
                continue
            first_id, target, created_at = first
            if job.same.reject:
                within_ms = job.same.within_ms
                until = None if within_ms is None else rfc3339(created_at + within_ms)
                raise NotUnique(job.task, first_id, until)
            if job.same.wait_ms is not None:
                merges.append((job, target))
            merged[job.id] = Accepted(first_id, merged=EXISTING if job.same.wait_ms is None else DEBOUNCED)

        def accept() -> None:
            self._fresh = fresh
            self.new_rows.update((job.id, list(job.row)) for job in jobs if job.id not in merged)
            for job, target in merges:
                self._merge(job, target)

        self._accept = accept
        return merged

    def accept(self) -> None:
        """The jobs that were resolved last are accepted."""
        self._accept()

    def _first(self, job: NewJob, fresh: dict[str, NewJob]) -> tuple[str, NewJob | int, int] | None:
        """The newest job that is the same: its id, itself or its row's number, and when it was submitted."""
        if job.same is None:
            return None
        mine = fresh.get(job.same.key)
        if mine is not None and mine.state in job.same.states:
            return mine.id, mine, self._tx.now_ms
        return max(self._found.get(job.id, []), key=lambda found: found[1], default=None)

    def _merge(self, job: NewJob, target: NewJob | int) -> None:
        assert job.same is not None
        if isinstance(target, int):
            self._merges[target] = (target, job.row[PAYLOAD], job.run_at, job.same.max_wait_ms, job.same.ttl_ms)
        else:
            _merge_into(self.new_rows[target.id], job)

    def write_merges(self) -> list[int]:
        """Give the payloads of those that came later to the jobs that are there; when those are due now."""
        if not self._merges:
            return []
        merges = json_text(list(self._merges.values()))
        return [
            run_at for (run_at,) in self._tx.run(sql.DEBOUNCE_IF_SCHEDULED, merges, self._tx.now_ms, self._tx.number)
        ]


def _merge_into(row: list[Any], job: NewJob) -> None:
    """Both came in one transaction: the row is not written yet, and the longest wait, which is no shorter than the wait, is not
    over."""
    same, run_at = job.same, job.run_at
    assert same is not None
    assert run_at is not None
    row[PAYLOAD], row[RUN_AT] = job.row[PAYLOAD], run_at
    row[EXPIRES_AT] = None if same.ttl_ms is None else run_at + same.ttl_ms
