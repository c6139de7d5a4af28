"""What can be asked about jobs, and the shape of the answers. Reads only."""

from __future__ import annotations

from typing import Any

import msgspec

from miniflow import statements as sql
from miniflow.clock import rfc3339
from miniflow.context import LEVELS
from miniflow.errors import InvalidRequest, NotFound
from miniflow.model import NewJob
from miniflow.readers import Readers
from miniflow.states import TERMINAL, WAITING, State
from miniflow.writer import Writer

SCAN_MAX = 20_000  # rows that a list without a fitting index looks at before it says how far it came
PAGE_MAX = 500
BEYOND = 1 << 62

SEED_NAMES: dict[str, tuple[State, ...]] = {
    "waiting": (State.PENDING, State.SCHEDULED, State.QUEUED, State.RETRYING),
    "deferred": (State.PENDING,),
    "in_progress": (State.RUNNING,),
    "started": (State.RUNNING,),
    "finished": (State.COMPLETED,),
    "failed": (State.DEAD_LETTER,),
    "canceled": (State.CANCELLED,),
}
"""Names that the states go by elsewhere, taken in filters."""


_STATES = frozenset(state.value for state in State)


class Job(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A job as the API shows it. Times are RFC 3339 in UTC. What does not apply is left out."""

    id: str
    task: str
    type: str
    queue: str
    priority: int
    status: str
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    progress: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    attempt: int
    max_retries: int
    crashes: int = 0
    last_error: str | None = None
    worker_id: str | None = None
    idempotency_key: str
    request_id: str
    step_index: int
    tags: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    meta: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    description: str | None = None
    timeout: float | None = None
    created_at: str
    updated_at: str
    scheduled_at: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    expires_at: str | None = None
    cancel_requested_at: str | None = None


class Attempt(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One execution of a job, as its history shows it."""

    attempt: int
    outcome: str
    worker_id: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None


class LogLine(msgspec.Struct, kw_only=True):
    id: int
    level: str
    message: str
    ts: str
    attempt: int


class Page(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A page of jobs, newest first. ``total`` is left out where only counting rows could tell; ``next_cursor`` where this is the
    last page."""

    items: list[Job]
    next_cursor: str | None = None
    total: int | None = None


class Queries:
    def __init__(self, readers: Readers, writer: Writer) -> None:
        self._readers, self._writer = readers, writer

    def job(self, job_id: str) -> Job:
        """NotFound if there is none."""
        rows = self._readers.point(sql.JOB_BY_ID, job_id)
        if not rows:
            raise NotFound("job", job_id)
        return job_of_row(rows[0])

    async def page(
        self, *, status: str | None, queue: str | None, task: str | None, limit: int, cursor: str | None
    ) -> Page:
        """The jobs that fit, newest first. InvalidRequest for a status or cursor that is none."""
        states = parse_status(status)
        before = parse_cursor(cursor)
        scanned_to = None
        if queue is None and task is None:
            if states is None:
                rows = await self._readers.fetch(sql.LIST_JOBS, before, limit + 1)
            elif len(states) == 1:
                rows = await self._readers.fetch(sql.LIST_JOBS_BY_STATE, before, limit + 1, states[0])
            else:
                rows = await self._readers.fetch(
                    sql.LIST_JOBS_BY_STATES, before, limit + 1, msgspec.json.encode(states).decode()
                )
        else:
            if states is not None and len(states) > 1:
                raise InvalidRequest("status", "takes one state where queue or task is given")
            state = states[0] if states else None
            filters = (before, limit + 1, queue, task, SCAN_MAX)
            if state is None:
                rows = await self._readers.fetch(sql.SCAN_JOBS, *filters)
                scanned_to = await self._readers.fetch(sql.SCANNED_TO, before, SCAN_MAX)
            else:
                rows = await self._readers.fetch(sql.SCAN_JOBS_BY_STATE, *filters, state)
                scanned_to = await self._readers.fetch(sql.SCANNED_TO_BY_STATE, before, SCAN_MAX, state)
        next_cursor = _cursor(rows[limit - 1][0]) if len(rows) > limit else None
        if next_cursor is None and scanned_to and scanned_to[0][0] is not None and scanned_to[0][0] > 1:
            next_cursor = _cursor(scanned_to[0][0])
        return Page(
            items=[job_of_row(row, listed=True) for row in rows[:limit]],
            next_cursor=next_cursor,
            total=self._total(states, queue, task),
        )

    def _total(self, states: list[State] | None, queue: str | None, task: str | None) -> int | None:
        if task is not None:
            return None
        counters = self._writer.counters
        wanted = list(State) if states is None else states
        return sum(
            n for state in wanted for label, n in counters.get(state, {}).items() if queue is None or label == queue
        )

    async def attempts(self, job_id: str) -> list[Attempt]:
        rows = await self._readers.fetch(sql.ATTEMPTS_OF_JOB, job_id)
        if not rows and not self._readers.point(sql.STATE_AND_RESULT_BY_ID, job_id):
            raise NotFound("job", job_id)
        return [
            Attempt(
                attempt=n,
                outcome=outcome,
                worker_id=worker,
                started_at=rfc3339(begun),
                finished_at=rfc3339(ended),
                error_type=kind,
                error=error,
                traceback=trace,
            )
            for n, outcome, worker, begun, ended, kind, error, trace in rows
        ]  # fmt: skip

    def traceback(self, job_id: str) -> str | None:
        """Of the last attempt that failed."""
        rows = self._readers.point(sql.LAST_TRACEBACK, job_id)
        return rows[0][0] if rows else None

    async def logs(self, job_id: str, *, after_id: int, limit: int, level: str | None) -> list[LogLine]:
        if not self._readers.point(sql.STATE_AND_RESULT_BY_ID, job_id):
            raise NotFound("job", job_id)
        if level is not None and level.upper() not in LEVELS:
            raise InvalidRequest("level", f"{level!r} is none of {', '.join(LEVELS)}")
        if level is None:
            rows = await self._readers.fetch(sql.LOGS_OF_JOB, job_id, after_id, limit)
        else:
            rows = await self._readers.fetch(sql.LOGS_OF_JOB_BY_LEVEL, job_id, after_id, limit, level.upper())
        return [
            LogLine(id=n, level=lvl, message=message, ts=rfc3339(ts) or "", attempt=attempt)
            for n, lvl, message, ts, attempt in rows
        ]

    def alive(self) -> bool:
        """Whether the file answers."""
        return bool(self._readers.point("SELECT 1"))

    def waiting(self) -> int:
        return sum(self._writer.total(state) for state in WAITING)


def job_of_row(row: tuple[Any, ...], *, listed: bool = False) -> Job:
    """The shape of a row of ``statements.JOB`` plus payload and result. In a list there is no result, not even that of None."""
    (
        _seq, job_id, task, queue, priority, state, attempt, crashes, max_retries, timeout_ms, run_at, expires_at,
        created_at, updated_at, started_at, completed_at, cancel_at, key, request_id, worker_id, description, _options, tags,
        meta, progress, last_error, payload, result,
    ) = row  # fmt: skip
    return Job(
        id=job_id,
        task=task,
        type=task,
        queue=queue,
        priority=priority,
        status=state,
        payload=_raw(payload),
        result=_raw("null" if result is None and state == State.COMPLETED and not listed else result),
        progress=_raw(progress),
        attempt=attempt,
        max_retries=max_retries,
        crashes=crashes,
        last_error=last_error if state != State.COMPLETED else None,
        worker_id=worker_id,
        idempotency_key=key or job_id,
        request_id=request_id or job_id,
        step_index=0,
        tags=_raw(tags),
        meta=_raw(meta),
        description=description,
        timeout=None if timeout_ms is None else timeout_ms / 1000,
        created_at=rfc3339(created_at) or "",
        updated_at=rfc3339(updated_at) or "",
        scheduled_at=rfc3339(run_at),
        started_at=rfc3339(started_at),
        completed_at=rfc3339(completed_at),
        expires_at=rfc3339(expires_at),
        cancel_requested_at=rfc3339(cancel_at),
    )


def job_of_new(new: NewJob, now_ms: int) -> Job:
    """The shape of a job that was just accepted, without reading it back."""
    row = new.row + [None] * (18 - len(new.row))
    (
        _,
        task,
        queue,
        priority,
        state,
        payload,
        max_retries,
        timeout_ms,
        run_at,
        _,
        expires_at,
        request_id,
        _,
        tags,
        meta,
        description,
        key,
        _,
    ) = row
    now = rfc3339(now_ms) or ""
    return Job(
        id=new.id,
        task=task,
        type=task,
        queue=queue,
        priority=priority,
        status=state,
        payload=msgspec.Raw(payload.encode()),
        attempt=0,
        max_retries=max_retries,
        idempotency_key=key or new.id,
        request_id=request_id or new.id,
        step_index=0,
        tags=_raw(tags),
        meta=_raw(meta),
        description=description,
        timeout=None if timeout_ms is None else timeout_ms / 1000,
        created_at=now,
        updated_at=now,
        scheduled_at=rfc3339(run_at),
        expires_at=rfc3339(expires_at),
    )


def is_terminal(job: Job) -> bool:
    return State(job.status) in TERMINAL


def parse_status(status: str | None) -> list[State] | None:
    """States of a filter: names separated by commas, ours or those of other systems."""
    if not status:
        return None
    found: list[State] = []
    for name in (part.strip() for part in status.split(",")):
        if name in _STATES:
            found.append(State(name))
        elif name in SEED_NAMES:
            found += SEED_NAMES[name]
        else:
            raise InvalidRequest(
                "status", f"{name!r} is no state; there are {', '.join(State)}, and {', '.join(SEED_NAMES)}"
            )
    return list(dict.fromkeys(found))


def _cursor(seq: int) -> str:
    return f"s{seq}"


def parse_cursor(cursor: str | None) -> int:
    if not cursor:
        return BEYOND
    if cursor[0] != "s" or not cursor[1:].isascii() or not cursor[1:].isdigit() or len(cursor) > 19:
        raise InvalidRequest("cursor", "is none that a page has given")
    return int(cursor[1:])


def _raw(text: str | None) -> msgspec.Raw | msgspec.UnsetType:
    return msgspec.UNSET if text is None else msgspec.Raw(text.encode())
