"""What the operations on traces answer, for the OpenAPI document; see ``described``."""

from __future__ import annotations

from typing import Any

import msgspec

from miniflow import trace_shape
from miniflow.trace_shape import Span
from miniflow.web.describing import either
from miniflow.web.document import Answer, Operation
from miniflow.web.examples import AT, ID

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
ROOT, JOB, ATTEMPT = "b7ad6b7169203331", "5fb397be34d26b51", "93564f51e1abe1c2"
LATER = "2026-01-31T12:00:00.250Z"
_ENDED: dict[str, Any] = {"status": "completed", "started_at": AT, "ended_at": LATER, "duration": 0.25}
OF_JOB: list[dict[str, Any]] = [
    {"span_id": JOB, "parent_id": ROOT, "name": "greet", "kind": "step", **_ENDED,
     "attributes": {"job_id": ID, "task": "greet", "queue": "default", "attempts": 1}},
    {"span_id": ATTEMPT, "parent_id": JOB, "name": "attempt 1", "kind": "attempt", **_ENDED,
     "attributes": {"attempt": 1, "job_id": ID, "worker_id": "thread-1"}},
]  # fmt: skip
OF_WORKFLOW = [
    {"span_id": ROOT, "parent_id": "00f067aa0ba902b7", "name": "hello", "kind": "workflow", **_ENDED,
     "attributes": {"workflow_id": ID, "workflow_kind": "steps"}},
    *OF_JOB,
]  # fmt: skip

FIELDS: dict[str, str | dict[str, Any]] = {
    "Trace.trace_id": "That of the caller's `traceparent`, else the id of the run without its hyphens",
    "Trace.at": {"description": "When it was looked at", "format": "date-time"},
    "Trace.truncated": "There are more spans than these",
    "Span.parent_id": "The span that it is part of; of the first one the caller's, if it named one",
    "Span.kind": {
        "enum": [
            "workflow",
            "job",
            "step",
            "item",
            "undo",
            "on_failure",
            "attempt",
            "sleep",
            "event",
            "spawn",
        ]
    },
    "Span.status": "That of the workflow, the job or the attempt",
    "Span.ended_at": {"description": "Left out while it goes on", "format": "date-time"},
    "Span.duration": "Seconds; left out while it goes on",
    "Span.attributes": {"type": "object"},
}


class Export(msgspec.Struct, rename="camel"):
    """With `format=otlp`, the body of an export of the OpenTelemetry protocol."""

    resource_spans: list[dict[str, Any]]


Trace = either("Trace", trace_shape.Trace, Export)

OMITTING = (Trace, Span)


def _trace(description: str, spans: list[dict[str, Any]]) -> Operation:
    shown = {"trace_id": TRACE_ID, "at": LATER, "spans": spans}
    return Operation("traces", {200: Answer(f"{description}; with `format=otlp` the body of an export", Trace, shown)})


OPERATIONS: dict[str, Operation] = {
    "GET /api/v1/workflows/{workflow_id}/trace": _trace("the spans of the workflow", OF_WORKFLOW),
    "GET /api/v1/jobs/{job_id}/trace": _trace("the spans of the job", OF_JOB),
}
