"""What the server answers about traces, as the client gives it."""

from __future__ import annotations

import datetime as dt
from typing import Any, TypeAlias

import msgspec

from miniflow.answers import Answer


class Span(Answer):
    """What took time in a run: the whole, a step, an attempt. ``duration`` is seconds; one without ``ended_at`` goes on."""

    span_id: str
    name: str
    kind: str
    status: str
    started_at: dt.datetime
    parent_id: str | None = None
    ended_at: dt.datetime | None = None
    duration: float | None = None
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    error: str | None = None


class Trace(Answer):
    """The spans of a run in the order in which they began, each after its parent; the first one is the run. ``at`` is when it was
    looked at; ``truncated``: there are more of them."""

    trace_id: str
    at: dt.datetime
    spans: list[Span] = msgspec.field(default_factory=list)
    truncated: bool = False


Export: TypeAlias = dict[str, Any]
"""A trace as the body of an export request of OpenTelemetry, as JSON."""
