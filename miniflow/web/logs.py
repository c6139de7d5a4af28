"""The log of a job over HTTP: a page of it, all of it as text, or followed as it grows.

A follower is woken after the commit that added lines, and then reads them from the file, a page at a time, like everybody
else: what it has is said by the id of its last line, so one that was cut off goes on where it was. It ends when the job has,
and has been read to its end. (The job's state is looked at before its lines: those are in the file no later than the end.)
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from litestar import MediaType, Response, get
from litestar.params import HeaderParameter, Parameter
from litestar.response import Stream

from miniflow.errors import InvalidRequest, NotFound
from miniflow.queries import JobLog, LogFilter, LogLine, parse_levels
from miniflow.states import TERMINAL, State
from miniflow.web.api import AnyRequest, respond
from miniflow.web.backend import Backend

PAGE_MAX = 1000
PAGE_USUAL = 100
TAIL_MAX = 100_000
ID_MAX = 1 << 62
HEARTBEAT_S = 15.0
RETRY_MS = 1000

AfterId = Annotated[int, Parameter(ge=0, le=ID_MAX, description="only lines after the one with this id")]
Limit = Annotated[
    int | None, Parameter(ge=1, le=PAGE_MAX, description="lines at most; 100 where JSON is asked for, else all of them")
]
Tail = Annotated[int | None, Parameter(ge=0, le=TAIL_MAX, description="only the last so many of the lines")]
Level = Annotated[str | None, Parameter(description="only lines of these levels, separated by commas")]
OfAttempt = Annotated[int | None, Parameter(ge=1, le=1_000_000, description="only lines of this attempt")]
Follow = Annotated[bool, Parameter(description="go on with the lines to come, until the job has ended")]
Format = Annotated[Literal["json", "text"] | None, Parameter(description="`json`, or `text` (as `Accept: text/plain`)")]
LastEventId = Annotated[
    str | None, HeaderParameter(name="Last-Event-ID", description="the id of the last line received, as `after_id`")
]

_encode = msgspec.json.Encoder().encode


@get("/api/v1/jobs/{job_id:str}/logs", summary="The log of a job")
async def get_logs(
    request: AnyRequest,
    job_id: str,
    backend: Backend,
    after_id: AfterId = 0,
    limit: Limit = None,
    tail: Tail = None,
    level: Level = None,
    attempt: OfAttempt = None,
    follow: Follow = False,
    format: Format = None,
    last_event_id: LastEventId = None,
) -> Response[Any]:
    """Lines of the job's log, oldest first; ``next_after_id`` goes on from where this page ends.

    With ``follow=1`` an event stream: ``event: line`` with the line's id for each line, in the end ``event: end`` with the
    job's status. Cut off, it goes on by ``Last-Event-ID`` (or ``after_id``) without a gap. With ``format=text`` the log as
    text; that too can be followed.
    """
    log, which = backend.queries.log(job_id), LogFilter(parse_levels(level), attempt)
    resumed = after(after_id, last_event_id)
    as_text = format == "text" or (format is None and prefers_text(request))
    if tail is not None and not last_event_id:
        resumed = await start_of_tail(backend, log, resumed, tail, which)
    if follow:
        return (text_follower if as_text else follower)(backend, job_id, resumed, which)
    if as_text:
        return whole_text(backend, job_id, log, resumed, which, limit)
    return respond(await page(backend, log, resumed, limit or min(tail or PAGE_USUAL, PAGE_MAX), which))


@get(["/api/v1/logs/{job_id:str}", "/api/v1/{job_id:str}/logs"], summary="The log of a job as a text file")
async def get_log_file(
    job_id: str,
    backend: Backend,
    after_id: AfterId = 0,
    limit: Limit = None,
    tail: Tail = None,
    level: Level = None,
    attempt: OfAttempt = None,
    follow: Follow = False,
    format: Format = None,
    last_event_id: LastEventId = None,
) -> Response[Any]:
    """All of the log, one line of text for each of its lines: time, level, message. ``follow`` and ``format=json`` as above."""
    log, which = backend.queries.log(job_id), LogFilter(parse_levels(level), attempt)
    resumed = after(after_id, last_event_id)
    if tail is not None and not last_event_id:
        resumed = await start_of_tail(backend, log, resumed, tail, which)
    if follow:
        return (follower if format == "json" else text_follower)(backend, job_id, resumed, which)
    if format == "json":
        return respond(await page(backend, log, resumed, limit or min(tail or PAGE_USUAL, PAGE_MAX), which))
    return whole_text(backend, job_id, log, resumed, which, limit)


# -------------------------------------------------------------------------------------------------------------- what is asked


def after(after_id: int, last_event_id: str | None) -> int:
    """Where to go on. A browser that reconnects sends the address it began with, and where it is in the header."""
    if not last_event_id:
        return after_id
    if not re.fullmatch(r"[0-9]{1,18}", last_event_id):
        raise InvalidRequest("Last-Event-ID", "is the id of a line")
    return max(after_id, int(last_event_id))


def prefers_text(request: AnyRequest) -> bool:
    return request.accept.best_match(["application/json", "text/event-stream", "text/plain"]) == "text/plain"


async def start_of_tail(backend: Backend, log: JobLog, after_id: int, lines: int, which: LogFilter) -> int:
    """The ``after_id`` that leaves the last so many lines."""
    start = await backend.queries.log_tail(log.seq, after_id, lines, which) if lines else None
    return max(after_id, log.last_id if start is None else start)


async def page(backend: Backend, log: JobLog, after_id: int, limit: int, which: LogFilter) -> dict[str, Any]:
    lines = await backend.queries.log_lines(log.seq, after_id, limit, which)
    return {"items": lines, "next_after_id": lines[-1].id if lines else after_id}


# ------------------------------------------------------------------------------------------------------------------- text


def text_of(line: LogLine) -> str:
    return f"{line.ts} {line.level:<5} {line.message}\n"


def whole_text(
    backend: Backend, job_id: str, log: JobLog, after_id: int, which: LogFilter, limit: int | None
) -> Stream:
    """The log as it is now, read as it is sent. It is whatever a job printed: no browser is to take it for a page."""

    async def chunks() -> AsyncIterator[bytes]:
        at, left = after_id, limit or ID_MAX
        while left > 0:
            size = min(left, PAGE_MAX)
            lines = await backend.queries.log_lines(log.seq, at, size, which)
            here = [line for line in lines if line.id <= log.last_id]
            if here:
                yield "".join(map(text_of, here)).encode()
            if len(here) < size:  # that was all, or what comes now was not there when it was asked for
                return
            at, left = here[-1].id, left - size

    name = re.sub(r"[^A-Za-z0-9._-]", "_", job_id)
    headers = {"content-disposition": f'inline; filename="{name}.log"', "x-content-type-options": "nosniff"}
    return Stream(chunks(), media_type=MediaType.TEXT, headers=headers)


def text_follower(backend: Backend, job_id: str, after_id: int, which: LogFilter) -> Stream:
    """The log as text, ending when the job has."""

    async def chunks() -> AsyncIterator[bytes]:
        async with aclosing(news(backend, job_id, after_id, which)) as pages:
            async for lines in pages:
                if isinstance(lines, list):
                    yield "".join(map(text_of, lines)).encode()

    # Without the last header some browsers hold back the first kilobyte to guess what it is.
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}
    return Stream(chunks(), media_type=MediaType.TEXT, headers=headers)


# -------------------------------------------------------------------------------------------------------------- following


def follower(backend: Backend, job_id: str, after_id: int, which: LogFilter) -> Stream:
    """The log as server-sent events."""

    async def events() -> AsyncIterator[bytes]:
        yield b"retry: %d\n\n" % RETRY_MS
        async with aclosing(news(backend, job_id, after_id, which)) as pages:
            async for found in pages:
                if found is None:
                    yield b": nothing new\n\n"
                elif isinstance(found, State):
                    yield b"event: end\ndata: %b\n\n" % _encode({"status": found})
                else:
                    yield b"".join(b"id: %d\nevent: line\ndata: %b\n\n" % (line.id, _encode(line)) for line in found)

    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # the last is for nginx, which would gather them
    return Stream(events(), media_type="text/event-stream", headers=headers)


async def news(
    backend: Backend, job_id: str, after_id: int, which: LogFilter
) -> AsyncGenerator[list[LogLine] | State | None, None]:
    """Lines as they come, a page at a time; None where there was nothing to say for HEARTBEAT_S; the state that the job has ended
    in. Ends there, or without it where the server stops or the job is deleted."""
    loop, wake = asyncio.get_running_loop(), asyncio.Event()
    both = (backend.log_notices, backend.notices)

    def listener(_: str) -> None:
        loop.call_soon_threadsafe(wake.set)

    try:
        while True:
            wake.clear()
            for notices in both:  # a notice comes once
                notices.forget(job_id, listener)
                notices.listen(job_id, listener)
            log = backend.queries.log(job_id)
            # Not filtered by the statement: where few lines are wanted it would walk all the others anew each time.
            lines = await backend.queries.log_lines(log.seq, after_id, PAGE_MAX, LogFilter())
            if lines:
                after_id = lines[-1].id
                wanted = [line for line in lines if which.wants(line)]
                if wanted:
                    yield wanted
            elif log.state in TERMINAL:
                yield log.state
                return
            elif backend.notices.over:
                return
            elif not await _set_within(wake, HEARTBEAT_S):
                yield None
    except NotFound:
        return
    finally:
        for notices in both:
            notices.forget(job_id, listener)


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


ROUTES = [get_logs, get_log_file]
