"""Jobs as they change: server-sent events of one job or of all, and the same in pages for programs without them.

Each event is a job as it is after a change, without payload and result. Its id says where in the order of changes it was, so that
a stream that was cut off goes on where it was, also with a server that was restarted meanwhile: nothing that changed since is
missed, and of several changes of a job the last one counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, get
from litestar.params import HeaderParameter, Parameter
from litestar.response import Stream

from miniflow import feed, filters
from miniflow.feed import Place, parse_place
from miniflow.filters import Filter
from miniflow.listing import PAGE_MAX
from miniflow.states import State
from miniflow.web.api import respond
from miniflow.web.backend import Backend

RETRY_MS = 1000
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # the last is for nginx, which would gather events
RESET = b'{"detail": "the id to go on from is none of this file; what changed before now is not told"}'

After = Annotated[
    str | None, Parameter(description="the id of the last event that was received; without it a stream begins now")
]
LastEventId = Annotated[str | None, HeaderParameter(name="Last-Event-ID", description="as `after`, and before it")]
Status = Annotated[str | None, Parameter(description="only jobs that are then in this state, or one of these")]
Format = Annotated[Literal["sse", "json"], Parameter(description="`sse`: a stream of events; `json`: one page of them")]
Limit = Annotated[int, Parameter(ge=1, le=PAGE_MAX, description="events on a page, for `format=json`")]

_encode = msgspec.json.Encoder().encode


@get("/api/v1/events", summary="Follow all jobs")
async def follow_all(
    backend: Backend,
    queue: str | None = None,
    task: str | None = None,
    status: Status = None,
    after: After = None,
    format: Format = "sse",
    limit: Limit = 100,
    last_event_id: LastEventId = None,
) -> Response[Any]:
    """``event: job`` with the job for each that changes, for ever. A job that changes several times within a moment appears
    once, as it is then. Where the id to go on from is none that this file can have, ``event: reset`` says so, and the stream
    begins now.

    With ``format=json`` a page: ``items``, each with ``id`` and ``job``, and ``next_after`` for the next one.
    """
    which = filters.parse(status=status, queue=queue, task=task)
    place = _place(last_event_id, after)
    now = backend.feed.now()
    known = place is None or backend.feed.knows(place)
    begin = place if place is not None and known else now
    if format == "json":
        changes, end = await backend.feed.page(begin, which, limit)
        items = [{"id": str(change.place), "job": msgspec.Raw(change.data)} for change in changes]
        return respond({"items": items, "next_after": str(end), **({} if known else {"reset": True})})
    return Stream(_all(backend, which, begin, known), media_type="text/event-stream", headers=HEADERS)


@get("/api/v1/jobs/{job_id:str}/events", summary="Follow one job")
async def follow_job(
    job_id: str, backend: Backend, after: After = None, last_event_id: LastEventId = None
) -> Response[Any]:
    """``event: job`` with the job as it is and after each change; ``event: end`` with its status when it has ended, and then the
    stream ends too. With an id to go on from, the first one comes only if the job has changed since."""
    backend.queries.job(job_id)  # 404 before the stream begins
    place = _place(last_event_id, after)
    return Stream(_one(backend, job_id, place), media_type="text/event-stream", headers=HEADERS)


def _place(header: str | None, parameter: str | None) -> Place | None:
    """Where to go on. A browser that reconnects sends the address it began with, and where it is in the header."""
    if header:
        return parse_place(header, "Last-Event-ID")
    return parse_place(parameter, "after") if parameter else None


async def _all(backend: Backend, which: Filter, place: Place, known: bool) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    yield b"retry: %d\nid: %b\n%b\n" % (
        RETRY_MS, str(place).encode(), b"" if known else b"event: reset\ndata: %b\n" % RESET,
    )  # fmt: skip
    said_at = loop.time()
    async with aclosing(backend.feed.follow(place)) as pages:
        async for changes in pages:
            place = changes[-1].place if changes else place
            wanted = b"".join(_event(change) for change in changes if feed.wants(which, change.job))
            if wanted or loop.time() >= said_at + feed.BEAT_S:
                said_at = loop.time()  # the id alone says what need not be looked through again
                yield wanted or b": nothing new\nid: %b\n\n" % str(place).encode()


async def _one(backend: Backend, job_id: str, place: Place | None) -> AsyncIterator[bytes]:
    yield b"retry: %d\n\n" % RETRY_MS
    async with aclosing(backend.feed.follow_job(job_id, place)) as news:
        async for one in news:
            if one is None:
                yield b": nothing new\n\n"
            elif isinstance(one, State):
                yield b"event: end\ndata: %b\n\n" % _encode({"status": one})
            else:
                yield _event(one)


def _event(change: feed.Change) -> bytes:
    return b"id: %b\nevent: job\ndata: %b\n\n" % (str(change.place).encode(), change.data)


ROUTES: list[Any] = [follow_all, follow_job]
