"""What passes between those who have something to say about a job and those who write it down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from miniflow.attempts import Attempt
from miniflow.rule_options import SameJob
from miniflow.states import State


class Waits(NamedTuple):
    """What a new job waits for. ``jobs`` are ids, or places in the list that it is submitted with; ``kind`` is that of its edges;
    ``field`` is what a job that is not there is named by."""

    jobs: tuple[str | int, ...]
    kind: str = "after"
    field: str = "depends_on"

    def ids(self, accepted: list[Accepted]) -> list[str]:
        """The ids, once it is known what the list was answered."""
        return [accepted[one].id if isinstance(one, int) else one for one in self.jobs]


class NewJob(NamedTuple):
    """A job to be inserted. ``row`` is as ``statements.INSERT_JOBS`` takes it."""

    id: str
    task: str
    queue: str
    priority: int
    state: State
    run_at: int | None
    expires_at: int | None
    row: list[Any]
    key: str | None = None
    fingerprint: str | None = None
    waits: Waits | None = None
    same: SameJob | None = None  # what it asks of the jobs that are there: ``unique``, ``debounce``
    ruled: bool = False  # it has a key of a rule


class Accepted(NamedTuple):
    """What became of a NewJob: its id, or that of the job that was submitted with its idempotency key before (``replayed``), or
    of the one that is the same (``merged``: "existing" of unique ones, "debounced" of those that take its payload)."""

    id: str
    replayed: bool = False
    merged: str | None = None

    @property
    def outcome(self) -> str:
        return "replayed" if self.replayed else self.merged or "created"


class Ending(NamedTuple):
    """How an attempt ended. ``outcome`` and what follows it go into the history of attempts; None for a good end."""

    attempt: Attempt
    state: State
    result: str | None = None
    run_at: int | None = None
    max_retries: int | None = None
    outcome: str | None = None
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None
    after: Callable[[Any], None] | None = None
    """Called with the transaction that writes the end, after it is written."""
    offset_ms: int = 0
    """That of the clock by which ``run_at`` was counted, if that is a wait and no time of its own."""

    def run_at_by(self, offset_ms: int) -> int | None:
        """``run_at`` by a clock that may have been set since."""
        return self.run_at + offset_ms - self.offset_ms if self.run_at is not None and self.offset_ms else self.run_at

    def end_row(self, offset_ms: int) -> tuple[Any, ...]:
        """As ``statements.END_IF_LEASED`` takes it."""
        attempt, claimed = self.attempt, self.attempt.claimed
        begun = 1 if attempt.marked or not attempt.charged else 0
        return (
            claimed.seq, claimed.lease, self.state, begun, attempt.started_at, attempt.worker_id,
            self.result, self.run_at_by(offset_ms), self.error, self.max_retries,
        )  # fmt: skip

    def attempt_row(self) -> tuple[Any, ...]:
        """As ``statements.INSERT_ATTEMPTS`` takes it."""
        attempt = self.attempt
        return (
            attempt.claimed.seq, attempt.number, self.outcome, attempt.worker_id, attempt.started_at,
            self.error_type, self.error, self.traceback,
        )  # fmt: skip
