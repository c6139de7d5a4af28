"""A trace as it is found in the file, and as it is shown."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from miniflow.clock import rfc3339
from miniflow.traceparent import TraceContext


class FoundSpan(NamedTuple):
    """Times are milliseconds since the epoch; ``ended_ms`` is None while it goes on."""

    span_id: str
    parent_id: str | None
    name: str
    kind: str
    status: str
    started_ms: int
    ended_ms: int | None
    attributes: dict[str, Any]
    error: str | None = None
    error_type: str | None = None


class FoundTrace(NamedTuple):
    """The spans of a run, each after its parent. ``at_ms`` is when it was looked at; ``truncated``: there are more of them."""

    context: TraceContext
    at_ms: int
    spans: list[FoundSpan]
    truncated: bool = False


class Span(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What took time in a run: the whole, a step, an attempt. ``duration`` is seconds; one without ``ended_at`` goes on."""

    span_id: str
    parent_id: str | None = None
    name: str
    kind: str
    status: str
    started_at: str
    ended_at: str | None = None
    duration: float | None = None
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    error: str | None = None


class Trace(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The spans of a run in the order in which they began, each after its parent. The first one is the run; its ``parent_id`` is
    the caller's span, if the caller named one. ``at`` is when it was looked at."""

    trace_id: str
    at: str
    truncated: bool = False
    spans: list[Span]


def shown(found: FoundTrace) -> Trace:
    """As the API answers it."""
    return Trace(
        trace_id=found.context.trace_id,
        at=rfc3339(found.at_ms) or "",
        truncated=found.truncated,
        spans=[
            Span(
                span_id=one.span_id,
                parent_id=one.parent_id,
                name=one.name,
                kind=one.kind,
                status=one.status,
                started_at=rfc3339(one.started_ms) or "",
                ended_at=rfc3339(one.ended_ms),
                duration=None if one.ended_ms is None else max(one.ended_ms - one.started_ms, 0) / 1000,
                attributes=one.attributes,
                error=one.error,
            )
            for one in found.spans
        ],
    )
