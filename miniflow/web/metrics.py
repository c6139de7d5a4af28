"""Figures over HTTP: for Prometheus, for charts, and for a person with curl."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

from litestar import Request, Response, get
from litestar.params import Parameter

from miniflow.clock import to_ms
from miniflow.errors import InvalidRequest
from miniflow.web.api import respond
from miniflow.web.backend import Backend

SPAN_MS = 3_600_000
SPAN_MS_MAX = 7 * 24 * 3_600_000

AnyRequest = Request[Any, Any, Any]
Since = Annotated[
    str | None,
    Parameter(description="the first minute, RFC 3339, at most 7 days before `until`; an hour before it if left out"),
]
Until = Annotated[str | None, Parameter(description="up to here, RFC 3339; now if left out")]


@get("/metrics", summary="Metrics for Prometheus", media_type="text/plain")
async def prometheus(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """In the text format, or in that of OpenMetrics if the Accept header asks for it."""
    page, media_type = await backend.metrics.page(request.headers.get("accept", ""))
    return Response(page, headers={"content-type": media_type})


@get("/api/v1/metrics", summary="The system in a few numbers")
async def summary(backend: Backend) -> Response[bytes]:
    """How many jobs there are, how many workers, and how long the 100 newest of the completed jobs ran on average."""
    return respond(await backend.history.summary(workers_online=len(backend.metrics.use().threads)))


@get("/api/v1/metrics/minutes", summary="Figures by the minute")
async def minutes(backend: Backend, since: Since = None, until: Until = None) -> Response[bytes]:
    """A minute in which nothing happened is left out, and what did not happen in a minute is left out of it. ``queue_depth`` and
    ``workers_busy`` are as of the last look in the minute, and stay so until a later minute says otherwise; in a queue that it
    does not name nothing waits. What happens is in the figures some 5 seconds later."""
    until_ms = backend.clock.now_ms() if until is None else _moment("until", until)
    since_ms = until_ms - SPAN_MS if since is None else _moment("since", since)
    if since_ms > until_ms:
        raise InvalidRequest("since", "is after until")
    if until_ms - since_ms > SPAN_MS_MAX:
        raise InvalidRequest("since", "is more than 7 days before until; ask for 7 days at a time")
    return respond({"items": await backend.history.minutes(since_ms, until_ms)})


@get(["/stats", "/api/v1/stats"], summary="Jobs by queue, and throughput by the hour")
async def stats(backend: Backend) -> Response[bytes]:
    """Each queue with its jobs by state; and the last 24 hours, the present one last, also those in which nothing happened."""
    return respond(await backend.history.stats())


def _moment(field: str, text: str) -> int:
    try:
        return to_ms(dt.datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        reason = f"{text!r} is no time; give RFC 3339, as 2026-01-31T12:00:00Z (with an offset, write its + as %2B)"
        raise InvalidRequest(field, reason) from None


ROUTES = [prometheus, summary, minutes, stats]
