"""The trace of a run, out of what the file keeps anyway: its row, its jobs, their attempts, what a durable function asked for.

The spans are: the run; below it a step each, from the moment that its turn came to its end, with the items of a ``for_each``
below the step that stands for them; below each job its attempts. A step whose turn has not come has no span yet. What a rerun has
taken over is in the trace of the run before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, NamedTuple

from miniflow import trace_statements as sql
from miniflow.errors import NotFound
from miniflow.readers import Readers
from miniflow.states import State
from miniflow.trace_shape import FoundSpan, FoundTrace
from miniflow.traceparent import (
    TraceContext,
    own_trace,
    parse,
    span_of_attempt,
    span_of_checkpoint,
    span_of_job,
    span_of_workflow,
)
from miniflow.tracing import trace_of_run

SPANS_MAX = 25_000
"""Of a trace. What comes after them is left out, and the trace says so."""
_KINDS = {"workflow": "spawn"}
"""Of what a durable function asked for, where its own name would mean something else."""


class JobRow(NamedTuple):
    """Times are milliseconds since the epoch. ``ready_at`` is when its turn came, ``child`` the id of the run it stands for."""

    seq: int
    id: str
    task: str
    queue: str
    state: str
    created_at: int
    completed_at: int | None
    last_error: str | None
    attempt: int
    started_at: int | None
    worker_id: str | None
    ready_at: int | None
    child: str | None
    idx: int | None
    name: str | None
    role: str
    kind: str | None
    items: int | None
    skipped: int | None


class _Attempt(NamedTuple):
    """A row of ``ATTEMPTS_OF_RUN``."""

    seq: int
    number: int
    outcome: str
    worker_id: str | None
    started_at: int | None
    finished_at: int | None
    error_type: str | None
    error: str | None


class TraceQueries:
    def __init__(self, readers: Readers, *, spans_max: int = SPANS_MAX) -> None:
        self._readers, self._spans_max = readers, spans_max

    async def workflow(self, workflow_id: str, now_ms: int) -> FoundTrace:
        """NotFound if there is none."""
        rows = await self._readers.fetch(sql.RUN_TO_TRACE, workflow_id)
        if not rows:
            raise NotFound("workflow", workflow_id)
        number, _, _, _, kind, *_ = rows[0]
        context = trace_of_run(self._readers.point, number)
        root, limit = _root(rows[0], context), self._spans_max + 1
        jobs = [JobRow(*row) for row in await self._readers.fetch(sql.JOBS_TO_TRACE, number, limit)]
        failed = [_Attempt(*row) for row in await self._readers.fetch(sql.ATTEMPTS_OF_RUN, number, limit)]
        asked = await self._readers.fetch(sql.CHECKPOINTS_TO_TRACE, number, limit) if kind == "function" else []

        def put_together() -> FoundTrace:
            if kind == "function":
                below = _of_function(asked, {job.seq: job.id for job in jobs}, failed, workflow_id, root)
            else:
                below = _of_jobs(jobs, failed, root.span_id)
            return self._in_order(context, now_ms, [root, *below])

        return await asyncio.to_thread(put_together)  # thousands of spans would hold the loop

    async def job(self, job_id: str, now_ms: int) -> FoundTrace:
        """NotFound if there is none. That of a durable function is the trace of its run."""
        rows = await self._readers.fetch(sql.JOB_TO_TRACE, job_id)
        if not rows:
            raise NotFound("job", job_id)
        *row, header, workflow_id, workflow_kind, stands_for, number = rows[0]
        job, above = JobRow(*row), None
        if workflow_kind == "function":
            return await self.workflow(workflow_id, now_ms)
        if number is not None:
            context = trace_of_run(self._readers.point, number)
            above = span_of_workflow(workflow_id) if stands_for is None else span_of_job(stands_for)
        else:
            context = parse(header) or own_trace(job_id)
            above = context.span_id
        failed = [
            _Attempt(*one) for one in await self._readers.fetch(sql.ATTEMPTS_TO_TRACE, job.seq, self._spans_max + 1)
        ]
        return self._in_order(context, now_ms, _of_job(job, failed, above, whole=True))

    def _in_order(self, context: TraceContext, now_ms: int, spans: list[FoundSpan]) -> FoundTrace:
        """In the order of their beginnings; what began in the same millisecond stays as it is in ``spans``, which have parents
        before their children. A clock that was set back brings no child before its parent."""
        began: dict[str, int] = {}
        for one in spans:
            began[one.span_id] = max(one.started_ms, began.get(one.parent_id or "", 0))
        spans.sort(key=lambda one: began[one.span_id])
        return FoundTrace(context, now_ms, spans[: self._spans_max], len(spans) > self._spans_max)


def _root(row: tuple[Any, ...], context: TraceContext) -> FoundSpan:
    (
        _number, workflow_id, name, state, kind, created_at, completed_at, error, request_id, rerun_of, definition, version,
        schedule,
    ) = row  # fmt: skip
    about = {
        "workflow_id": workflow_id,
        "workflow_kind": kind,
        "request_id": request_id,
        "rerun_of": rerun_of,
        "definition": definition,
        "version": version,
        "schedule": schedule,
    }
    return FoundSpan(
        span_of_workflow(workflow_id),
        context.span_id,
        name,
        "workflow",
        state,
        created_at,
        completed_at,
        _said(about),
        error,
    )


def _of_function(
    asked: list[tuple[Any, ...]], ids: dict[int, str], failed: list[_Attempt], workflow_id: str, root: FoundSpan
) -> list[FoundSpan]:
    """What it asked for. It runs again and again, so that only those of its executions are spans that did not end well."""
    below = [_checkpoint(row, workflow_id, root) for row in asked if row[8] >= root.started_ms]
    return below + [_attempt(one, ids[one.seq], root.span_id) for one in failed if one.seq in ids]


def _of_jobs(jobs: list[JobRow], failed: Iterable[_Attempt], root: str) -> list[FoundSpan]:
    by_job: dict[int, list[_Attempt]] = {}
    for one in failed:
        by_job.setdefault(one.seq, []).append(one)
    steps = {job.idx: span_of_job(job.id) for job in jobs if job.role == "step"}
    found: list[FoundSpan] = []
    for job in sorted(jobs, key=lambda job: job.role == "item"):  # after the steps that they are of
        above = steps.get(job.idx, root) if job.role == "item" else root
        found += _of_job(job, by_job.get(job.seq, []), above)
    return found


def _of_job(job: JobRow, failed: list[_Attempt], above: str | None, *, whole: bool = False) -> list[FoundSpan]:
    """The span of a job and those of its attempts; none of a step whose turn has not come, unless the job is the ``whole``."""
    if job.state == State.PENDING and job.items is None and not whole:
        return []
    attempts = list(failed)
    if job.state in (State.COMPLETED, State.RUNNING) and job.kind is None and job.started_at is not None:
        last = "completed" if job.state == State.COMPLETED else "running"
        attempts.append(
            _Attempt(job.seq, job.attempt, last, job.worker_id, job.started_at, job.completed_at, None, None)
        )
    started = max(job.created_at, job.ready_at or 0)
    known = [one.started_at for one in attempts if one.started_at is not None]
    started = min([started, *known, *([] if job.completed_at is None else [job.completed_at])])
    name, kind = job.name or job.task, job.role
    about = {
        "job_id": job.id,
        "task": job.task if job.kind is None else None,
        "queue": job.queue,
        "attempts": job.attempt if job.kind is None else None,
        "items": job.items if job.kind == "for_each" else None,
        "workflow_id": job.child,
    }
    state = "skipped" if job.skipped and job.state == State.CANCELLED else job.state
    if state == State.PENDING and job.items is not None:  # those that it stands for run
        state = "running"
    error = None if state in (State.COMPLETED, "skipped") else job.last_error
    span = FoundSpan(
        span_of_job(job.id),
        above,
        f"undo {name}" if kind == "undo" else name,
        kind,
        state,
        started,
        job.completed_at,
        _said(about),
        error,
    )
    return [span, *(_attempt(one, job.id, span.span_id) for one in attempts if one.started_at is not None)]


def _attempt(one: _Attempt, job_id: str, above: str) -> FoundSpan:
    about = {"attempt": one.number, "job_id": job_id, "worker_id": one.worker_id, "error_type": one.error_type}
    return FoundSpan(
        span_of_attempt(job_id, one.number, one.started_at),
        above,
        f"attempt {one.number}",
        "attempt",
        one.outcome,
        one.started_at or one.finished_at or 0,
        one.finished_at,
        _said(about),
        one.error,
        one.error_type,
    )


def _checkpoint(row: tuple[Any, ...], workflow_id: str, root: FoundSpan) -> FoundSpan:
    idx, kind, name, state, attempts, child, error_type, error, started_at, ended_at = row
    about = {"number": idx, "attempts": attempts if kind == "step" else None, "workflow_id": child}
    if ended_at is None and root.ended_ms is not None:  # nothing of a run goes on after its end
        state, ended_at = "cancelled", max(root.ended_ms, started_at)
    return FoundSpan(
        span_of_checkpoint(workflow_id, idx),
        root.span_id,
        name,
        _KINDS.get(kind, kind),
        state,
        started_at,
        ended_at,
        _said(about),
        error,
        error_type,
    )


def _said(about: dict[str, Any]) -> dict[str, Any]:
    """Without what there is nothing to say of."""
    return {name: value for name, value in about.items() if value is not None}
