"""What passes between those who have something to say about a job and those who write it down."""

from __future__ import annotations

from typing import Any, NamedTuple

from miniflow.attempts import Attempt
from miniflow.states import State


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


class Accepted(NamedTuple):
    """What became of a NewJob: its id, or that of the job that was submitted with its idempotency key before."""

    id: str
    replayed: bool


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
