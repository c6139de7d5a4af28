"""A trace in the JSON encoding of the OpenTelemetry protocol (OTLP 1): what a collector takes as the body of a POST to
``/v1/traces``. Ids are hex digits, times and whole numbers of 64 bits are texts, enumerations are numbers."""

from __future__ import annotations

from typing import Any

from miniflow import __version__
from miniflow.trace_shape import FoundSpan, FoundTrace

INTERNAL, CONSUMER = 1, 5
"""Kinds of spans: an attempt consumes what lay in the queue."""
UNSET, OK, ERROR = 0, 1, 2
"""Codes of a status."""
_CODES = {"completed": OK, **dict.fromkeys(("failed", "dead_letter", "timed_out", "crashed", "expired"), ERROR)}
SERVICE = "miniflow"


def export(found: FoundTrace) -> dict[str, Any]:
    """The body of an export request. A span that goes on has no end, and the protocol wants one: it ends at the time of the look
    at it, and has the attribute ``miniflow.unended``."""
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes({"service.name": SERVICE, "service.version": __version__})},
                "scopeSpans": [
                    {
                        "scope": {"name": SERVICE, "version": __version__},
                        "spans": [_span(found, one) for one in found.spans],
                    }
                ],
            }
        ]
    }


def _span(found: FoundTrace, one: FoundSpan) -> dict[str, Any]:
    ended_ms = max(found.at_ms if one.ended_ms is None else one.ended_ms, one.started_ms)
    named = {f"miniflow.{name}": value for name, value in one.attributes.items()}
    named |= {"miniflow.kind": one.kind, "miniflow.status": one.status}
    if one.ended_ms is None:
        named["miniflow.unended"] = True
    span: dict[str, Any] = {
        "traceId": found.context.trace_id,
        "spanId": one.span_id,
        "name": one.name,
        "kind": CONSUMER if one.kind == "attempt" else INTERNAL,
        "startTimeUnixNano": _nanoseconds(one.started_ms),
        "endTimeUnixNano": _nanoseconds(ended_ms),
        "attributes": _attributes(named),
        "flags": found.context.flags & 0xFF,
    }
    if one.parent_id is not None:
        span["parentSpanId"] = one.parent_id
    code = _CODES.get(one.status, UNSET)
    span["status"] = {"code": code, "message": one.error} if code == ERROR and one.error else {"code": code}
    if one.error_type is not None:
        raised = {"exception.type": one.error_type, "exception.message": one.error or ""}
        span["events"] = [
            {"timeUnixNano": _nanoseconds(ended_ms), "name": "exception", "attributes": _attributes(raised)}
        ]
    return span


def _nanoseconds(ms: int) -> str:
    return str(ms * 1_000_000)


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: bool | int | str) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}
