"""Results as huey's users read them: of the rows of the jobs table.

huey knows three things of a task: nothing yet, a value, or an error (also that of an attempt which is to be retried). A task that
was revoked, expired or cancelled before it ran leaves nothing behind. One that was not run because the task before it in a
pipeline failed has that task's error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from huey.constants import EmptyData
from huey.utils import SKIPPED, Error

from miniflow import huey_statements as sql
from miniflow import statements as core
from miniflow.huey_serializer import FailedResult, JsonSerializer, StoredResult
from miniflow.outcome import decode_json
from miniflow.states import State
from miniflow.writer import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from miniflow.huey_storage import JobsStorage

COUNTER = "counter:"
FLUSHED = "huey_flushed"
"""In ``meta``: results of changes up to this number are flushed."""


class ResultRow(NamedTuple):
    """A row of ``huey_statements.RESULT_BY_ID``."""

    state: str
    result: str | None
    last_error: str | None
    attempt: int
    result_read: int | None
    options: str | None
    task: str
    changed: int
    crashes: int
    cancel_requested_at: int | None
    seq: int

    @property
    def own(self) -> dict[str, Any]:
        """What the options say for huey."""
        return decode_json(self.options).get("huey") or {} if self.options else {}


class Results:
    def __init__(self, storage: JobsStorage) -> None:
        self._storage = storage
        self._flushed = -1
        self.is_tagged: Callable[[str], bool] = lambda _: False
        """Whether the task of this name is huey's, so that its results were written by huey's serializer."""
        self.is_shown: Callable[[str], bool] = lambda _: True
        """Whether huey keeps results of the task of this name."""
        self.decode: Callable[[str], Any] = decode_json

    def load(self, tx: Transaction) -> None:
        rows = tx.run(core.META_GET, FLUSHED)
        self._flushed = rows[0][0] if rows else -1

    def peek(self, job_id: str) -> Any:
        """EmptyData, or what the serializer makes the result of."""
        row = self._storage.result_row(job_id)
        if row is None or row.changed <= self._flushed or row.result_read == row.attempt:
            return EmptyData
        return self._of(row, job_id)

    def _of(self, row: ResultRow, job_id: str) -> Any:
        if not self.is_shown(row.task):
            return EmptyData
        if row.state == State.COMPLETED:
            return EmptyData if row.result is None else StoredResult(row.result, self.is_tagged(row.task))
        error = self.error_of(row, job_id)
        return EmptyData if error is None else FailedResult(error)

    def all(self) -> dict[str, Any]:
        found = {}
        for job_id, *row in self._storage.read(sql.ALL_RESULTS, self._flushed):
            value = self._of(ResultRow(*row), job_id)
            if value is not EmptyData:
                found[job_id] = value
        return found

    def mark_read(self, job_id: str) -> bool:
        """Nobody who asks huey sees it again; True for the first who says so."""
        return bool(self._storage.write(lambda tx: tx.change(sql.MARK_READ, job_id)))

    def flush(self) -> None:
        def verb(tx: Transaction) -> None:
            number = tx.number
            tx.run(core.META_PUT, FLUSHED, number)
            tx.on_commit(lambda: setattr(self, "_flushed", number))

        self._storage.write(verb)

    # -------------------------------------------------------------------------------------------------------------- errors

    def error_of(self, row: ResultRow, job_id: str) -> dict[str, Any] | None:
        """huey's metadata of an error; None where there is none to show."""
        known = row.own.get("error")
        if known is not None:
            metadata = self.decode(known)
            return {**metadata, "traceback": metadata.get("traceback") or self._traceback(row), "task_id": job_id}
        if row.state == State.DEAD_LETTER or (row.state == State.CANCELLED and row.cancel_requested_at is not None):
            words = row.last_error or row.state
            return {"error": words, "retries": 0, "traceback": self._traceback(row), "task_id": job_id}
        if row.state == State.CANCELLED and row.attempt == 0:
            return self._error_of_parent(job_id)
        return None

    def _traceback(self, row: ResultRow) -> str:
        rows = self._storage.read(sql.TRACEBACK_OF_JOB, row.seq)
        return rows[0][0] or "" if rows else ""

    def _error_of_parent(self, job_id: str) -> dict[str, Any] | None:
        for kind, parent_id, *row in self._storage.read(sql.RESULTS_OF_PARENTS, job_id):
            parent = ResultRow(*row)
            if kind == "then" and parent.state != State.COMPLETED:
                return self.error_of(parent, parent_id)
        return None

    # ---------------------------------------------------------------------------------------------------- pipelines, chords

    def of_parents(self, job_id: str, serializer: JsonSerializer) -> tuple[str, list[Any]]:
        """The kind of the edges, and what the parents have to hand over, in order: values, ``Error`` or ``SKIPPED``."""
        kind, values = "", []
        for edge_kind, parent_id, *row in self._storage.read(sql.RESULTS_OF_PARENTS, job_id):
            kind, parent = edge_kind, ResultRow(*row)
            if parent.state == State.COMPLETED:
                stored = parent.result
                values.append(
                    None
                    if stored is None
                    else serializer.deserialize(StoredResult(stored, self.is_tagged(parent.task)))
                )
            else:
                error = self.error_of(parent, parent_id)
                values.append(SKIPPED if error is None else Error(error))
        return kind, values
