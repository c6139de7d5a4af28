"""What can be asked about jobs, and the shape of the answers. Reads only."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from miniflow import statements as sql
from miniflow.clock import rfc3339
from miniflow.context import LEVELS
from miniflow.errors import InvalidRequest, NotFound
from miniflow.model import NewJob
from miniflow.readers import Readers
from miniflow.states import TERMINAL, WAITING, State
from miniflow.writer import Writer, json_text


class Job(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A job as the API shows it. Times are RFC 3339 in UTC. What does not apply is left out.

    ``change`` is the number of its last change, among all in the file: the higher, the later. The answer to a submit is written
    before it has one.
    """

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
    workflow_id: str | None = None
    step: str | None = None
    step_index: int
    tags: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    meta: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    description: str | None = None
    timeout: float | None = None
    heartbeat: float | None = None
    on_stall: str | None = None
    stalled_at: str | None = None
    created_at: str
    updated_at: str
    scheduled_at: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    expires_at: str | None = None
    cancel_requested_at: str | None = None
    depends_on: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    schedule: str | None = None
    scheduled_for: str | None = None
    change: int | None = None
    submit_outcome: str | None = None


class OfSchedule(msgspec.Struct):
    """What a job's options say of the schedule that made it: its name, and the slot in milliseconds."""

    schedule: str | None = None
    scheduled_for: int | None = None


_of_schedule = msgspec.json.Decoder(OfSchedule).decode
_OF_NONE = OfSchedule()


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
    """A line of a job's log. ``id`` grows with each line; ``ts`` is RFC 3339 in UTC."""

    id: int
    level: str
    message: str
    ts: str
    attempt: int


class JobLog(NamedTuple):
    """The log of a job: its row's number, its state, and the id of the last line as of then (0: there is none)."""

    seq: int
    state: State
    last_id: int


class LogFilter(NamedTuple):
    """Which lines of a log are wanted; None is all."""

    levels: frozenset[str] | None = None
    attempt: int | None = None

    @property
    def levels_json(self) -> str | None:
        return None if self.levels is None else msgspec.json.encode(sorted(self.levels)).decode()

    def wants(self, line: LogLine) -> bool:
        return (self.levels is None or line.level in self.levels) and self.attempt in (None, line.attempt)


class QueueInfo(msgspec.Struct, kw_only=True):
    """How many jobs of a queue are in each state. ``oldest_queued_age`` is how many seconds the one that has waited longest has
    been ready; ``served``, whether workers of this server take jobs from it: not if it is paused. ``concurrency`` is how many of
    its jobs run at once, ``rate`` how many begin in a period; null: no limit."""

    name: str
    pending: int = 0
    scheduled: int = 0
    queued: int = 0
    running: int = 0
    retrying: int = 0
    completed: int = 0
    dead_letter: int = 0
    cancelled: int = 0
    expired: int = 0
    oldest_queued_age: float | None = None
    served: bool = True
    paused_at: str | None = None
    concurrency: int | None = None
    rate: str | None = None


class Queries:
    def __init__(self, readers: Readers, writer: Writer) -> None:
        self._readers, self._writer = readers, writer

    def job(self, job_id: str) -> Job:
        """NotFound if there is none."""
        rows = self._readers.point(sql.JOB_BY_ID, job_id)
        if not rows:
            raise NotFound("job", job_id)
        *row, parents = rows[0]
        job = job_of_row(tuple(row))
        if parents != "[]":
            job.depends_on = msgspec.Raw(parents.encode())
        return job

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

    def log(self, job_id: str) -> JobLog:
        """What there is to know of a log before its lines. NotFound if there is no such job."""
        rows = self._readers.point(sql.LOG_OF_JOB, job_id)
        if not rows:
            raise NotFound("job", job_id)
        seq, state, last_id = rows[0]
        return JobLog(seq, State(state), last_id or 0)

    async def log_lines(self, seq: int, after_id: int, limit: int, which: LogFilter) -> list[LogLine]:
        """The next lines after ``after_id``, oldest first."""
        rows = await self._readers.fetch(sql.LOG_LINES, seq, after_id, limit, which.levels_json, which.attempt)
        return [
            LogLine(id=n, level=lvl, message=message, ts=rfc3339(ts) or "", attempt=attempt)
            for n, lvl, message, ts, attempt in rows
        ]

    async def log_tail(self, seq: int, after_id: int, lines: int, which: LogFilter) -> int | None:
        """The ``after_id`` with which the last so many lines are the next ones; None if there are none."""
        ((first,),) = await self._readers.fetch(sql.LOG_TAIL, seq, after_id, lines, which.levels_json, which.attempt)
        return None if first is None else first - 1

    async def queues(self, named: set[str], now_ms: int) -> list[QueueInfo]:
        """All queues that had a job, and those that are ``named``."""
        counters = self._writer.counters
        names = sorted(named.union(counters.get("queue", {}), *(counters.get(state, {}) for state in State)))
        queued = json_text(list(counters.get(State.QUEUED, {})))
        ready_at = dict(await self._readers.fetch(sql.OLDEST_READY, queued))
        found = []
        for name in names:
            info = QueueInfo(name=name)
            for state in State:
                setattr(info, state, counters.get(state, {}).get(name, 0))
            if info.queued and name in ready_at:
                info.oldest_queued_age = max(now_ms - ready_at[name], 0) / 1000
            found.append(info)
        return found

    def alive(self) -> bool:
        """Whether the file answers."""
        return bool(self._readers.point("SELECT 1"))

    def waiting(self) -> int:
        return sum(self._writer.total(state) for state in WAITING)


def job_of_row(row: tuple[Any, ...], *, listed: bool = False) -> Job:
    """The shape of a row of ``statements.JOB`` plus payload and result. In a list there is no result, not even that of None."""
    (
        _seq, changed, job_id, task, queue, priority, state, attempt, crashes, max_retries, timeout_ms, run_at, expires_at,
        created_at, updated_at, started_at, completed_at, cancel_at, key, request_id, worker_id, description, options, tags,
        meta, progress, last_error, stalled_at, step, payload, result,
    ) = row  # fmt: skip
    fired = _of_schedule(options) if options is not None else _OF_NONE
    workflow_id, step_name, step_index = (None, None, 0) if step is None else msgspec.json.decode(step)
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
        workflow_id=workflow_id,
        step=step_name,
        step_index=step_index,
        tags=_raw(tags),
        meta=_raw(meta),
        description=description,
        timeout=None if timeout_ms is None else timeout_ms / 1000,
        **_heartbeat(options),
        stalled_at=rfc3339(stalled_at) if state == State.RUNNING else None,
        created_at=rfc3339(created_at) or "",
        updated_at=rfc3339(updated_at) or "",
        scheduled_at=rfc3339(run_at),
        started_at=rfc3339(started_at),
        completed_at=rfc3339(completed_at),
        expires_at=rfc3339(expires_at),
        cancel_requested_at=rfc3339(cancel_at),
        schedule=fired.schedule,
        scheduled_for=rfc3339(fired.scheduled_for),
        change=changed,
    )


def job_of_new(new: NewJob, now_ms: int) -> Job:
    """The shape of a job that was just accepted, without reading it back."""
    row = (new.row + [None] * (18 - len(new.row)))[:18]
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
        options,
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
        **_heartbeat(options),
        created_at=now,
        updated_at=now,
        scheduled_at=rfc3339(run_at),
        expires_at=rfc3339(expires_at),
    )


def _heartbeat(options: str | None) -> dict[str, Any]:
    """The promise of a job to give signs of life, if it made one."""
    if options is None or '"heartbeat_ms"' not in options:
        return {}
    found = msgspec.json.decode(options)
    return {"heartbeat": found["heartbeat_ms"] / 1000, "on_stall": found["on_stall"]}


def is_terminal(job: Job) -> bool:
    return State(job.status) in TERMINAL


def parse_levels(level: str | None) -> frozenset[str] | None:
    """Levels of a filter: names separated by commas, in any case."""
    if not level:
        return None
    names = frozenset(name.strip().upper() for name in level.split(","))
    for name in names:
        if name not in LEVELS:
            raise InvalidRequest("level", f"{name!r} is none of {', '.join(LEVELS)}")
    return names


def _raw(text: str | None) -> msgspec.Raw | msgspec.UnsetType:
    return msgspec.UNSET if text is None else msgspec.Raw(text.encode())
