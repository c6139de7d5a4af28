"""The trace of what runs here, looked up in the file when somebody asks, and only then.

It reads beside the writer, so that a job can ask for it wherever it is: on the event loop, and while the writer waits for a
transaction of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec

from miniflow import trace_statements as sql
from miniflow.attempts import Attempt, Claimed
from miniflow.db import open_reader
from miniflow.step_calls import current_step
from miniflow.traceparent import (
    TraceContext,
    own_trace,
    parse,
    span_of_attempt,
    span_of_checkpoint,
    span_of_job,
    span_of_workflow,
)

ANCESTORS_MAX = 100
"""Runs that are part of one another. Beyond it a trace begins anew."""

Read = Callable[..., list[Any]]
"""Rows of a statement and its parameters."""


def trace_of_run(read: Read, number: int) -> TraceContext:
    """The trace of a run, and the span that it hangs below: that of its caller; or, of a run that is part of another, that of
    the step which it is there, in the trace of that."""
    above: str | None = None
    for _ in range(ANCESTORS_MAX):
        ((run_id, header, parent, function_id, idx, job_id),) = read(sql.TRACE_OF_RUN, number)
        found = parse(header)
        if found is not None or parent is None:
            found = found or own_trace(run_id)
            return found if above is None else found._replace(span_id=above)
        above = above or (span_of_job(job_id) if function_id is None else span_of_checkpoint(function_id, idx))
        number = parent
    return own_trace(run_id)


def header_of(options: str | None) -> str | None:
    """The ``traceparent`` among the options of a job."""
    if options is None or '"traceparent":' not in options:
        return None
    found = msgspec.json.decode(options).get("traceparent")
    return found if isinstance(found, str) else None


class Traces:
    """Looks up to which traces jobs belong."""

    def __init__(self, path: str, any_workflow: Callable[[], bool]) -> None:
        """``any_workflow``: whether there is one in the file. Where there is none, a job needs no look."""
        self._path, self._any_workflow = path, any_workflow
        self._lock = threading.Lock()
        self._reader: Any = None

    def __repr__(self) -> str:
        return f"<Traces {'unused' if self._reader is None else 'open'}>"

    def of(self, claimed: Claimed) -> TraceContext:
        """Of a job that runs: that of its workflow, or that which its submit named, or its own."""
        if self._any_workflow():
            rows = self._read(sql.RUN_OF_JOB, claimed.id)
            if rows:
                return trace_of_run(self._read, rows[0][0])
        return parse(header_of(claimed.options)) or own_trace(claimed.id)

    def passed_on(self, attempt: Attempt, run_id: str | None) -> str:
        """The header for what an attempt calls; of a durable function, with the id of its run. That runs again and again, so that
        its attempts are no spans: what calls is the step, or the run as a whole."""
        trace = attempt.trace
        if trace is None:
            trace = attempt.trace = self.of(attempt.claimed)
        if run_id is not None:
            step = current_step()
            return trace.at(span_of_workflow(run_id) if step is None else span_of_checkpoint(run_id, step.number))
        return trace.at(span_of_attempt(attempt.claimed.id, attempt.number, attempt.started_at))

    def _read(self, statement: str, *parameters: Any) -> list[Any]:
        with self._lock:
            if self._reader is None:
                self._reader = open_reader(self._path)
            rows: list[Any] = self._reader.execute(statement, parameters).fetchall()
            return rows

    def close(self) -> None:
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
