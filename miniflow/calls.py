"""What a client can ask, said once for ``Client`` and ``AsyncClient``: path and parameters of each call, how its answer is read,
which calls take more than one request. They are generators of steps, see ``exchange.py``.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypedDict, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from httpx_sse import ServerSentEvent

from miniflow import answers
from miniflow.answers import UNSET, Busy, ClientError, Invalid, Job, ServerUnreachable
from miniflow.exchange import Ask, Away, Flow, Give, Items, Pause, carry_out, one, repeated, send, stream
from miniflow.ids import uuid7
from miniflow.retry import RetryPolicy
from miniflow.rule_options import Debounce, Unique, in_seconds
from miniflow.trace_answers import Export, Trace

T = TypeVar("T")

BATCH = 1_000  # jobs in one request of submit_many
PAGE = 500  # jobs in one request of list
LINES = 1_000  # log lines in one request of logs
LONG_POLL_S = 25.0  # below the half minute after which some proxies cut a silent connection
BULK_S = 600.0  # a bulk verb may touch every job in the file

# ------------------------------------------------------------------------------------------------------ what callers give


class SubmitOptions(TypedDict, total=False):
    """How a job is to be run. Durations are seconds or timedeltas; None is the same as left out.

    ``delay`` or ``run_at`` (with a time zone) is when; ``ttl`` how long it may wait to be begun; ``timeout`` how long an attempt
    may take; ``heartbeat`` how long it may be silent, and ``on_stall`` what happens then. ``retry`` is a RetryPolicy, a mapping
    with its fields, or a list of waits. ``depends_on`` are the jobs (Job or id)
    that it waits for, in ``submit_many`` also the places of others in the list, which come before it; ``on_dependency_failure``
    says what becomes of it if one of those does not end well. ``unique`` (True, or how jobs are told to be the same) makes it the
    only one such job, ``debounce`` (seconds, or more of it) begins it when no other has come for so long; the answer is the job
    that is there, its ``submit_outcome`` says so. Jobs of a task with the same ``concurrency_key`` run one at a time.
    ``traceparent`` is that of W3C Trace Context: the trace that the job is to be in, and the caller's span.
    """

    queue: str | None
    priority: int | Literal["low", "medium", "high"] | None
    delay: float | dt.timedelta | None
    run_at: dt.datetime | str | None
    ttl: float | dt.timedelta | None
    timeout: float | dt.timedelta | None
    max_retries: int | None
    retry: RetryPolicy | Mapping[str, Any] | Sequence[float] | None
    idempotency_key: str | None
    tags: Sequence[str] | None
    meta: Mapping[str, Any] | None
    description: str | None
    result_ttl: float | dt.timedelta | None
    failure_ttl: float | dt.timedelta | None
    depends_on: str | Job | Sequence[str | Job | int] | None
    on_dependency_failure: Literal["cancel", "run"] | None
    traceparent: str | None
    heartbeat: float | dt.timedelta | None
    on_stall: Literal["warn", "retry", "fail"] | None
    unique: Unique | bool | Mapping[str, Any] | None
    debounce: Debounce | float | dt.timedelta | Mapping[str, Any] | None
    concurrency_key: str | None


class Filter(TypedDict, total=False):
    """Which jobs. ``status`` is one state, several, or another system's name for one; ``q`` searches, with ``key:value`` terms
    and plain words; None is the same as left out."""

    status: str | Sequence[str] | None
    queue: str | None
    task: str | None
    tag: str | None
    q: str | None
    created_after: dt.datetime | str | None
    created_before: dt.datetime | str | None


Submission: TypeAlias = Mapping[str, Any] | tuple[str, Any]
"""One of many jobs: ``{"task": …, "payload": …}`` with any of SubmitOptions, or ``(task, payload)``."""
JobRef: TypeAlias = str | Job
"""A job's id, or a Job that was given before."""

# -------------------------------------------------------------------------------------------------------------- submitting


def submit(
    task: str, payload: Any, options: Mapping[str, Any], *, repeats: int, request_id: str | None = None
) -> Flow[Job]:
    body = msgspec.json.encode(submission({**options, "task": task, "payload": payload}, with_key=repeats > 0))
    answer = yield from repeated(
        Ask(method="POST", path="/api/v1/jobs", body=body, headers=_request_id(request_id)), repeats
    )
    return answers.decoded(answer, Job)


def submission(fields: Mapping[str, Any], *, with_key: bool) -> dict[str, Any]:
    """The fields of a job as the server takes them; with a key of its own, if it has none."""
    given = {name: _plain(value) for name, value in fields.items() if value is not None}
    given |= {name: in_seconds(given[name]) for name in ("unique", "debounce") if name in given}
    if "depends_on" in given:
        given["depends_on"] = _parents(given["depends_on"])
    if with_key:
        given.setdefault("idempotency_key", uuid7())
    return given


def _parents(jobs: Any) -> list[Any]:
    """One or several jobs that another depends on, each as its id, or as its place in the list."""
    several = [jobs] if isinstance(jobs, (str, Job)) else jobs
    return [id_of(one) if isinstance(one, Job) else one for one in several]


def _in_part(job: dict[str, Any], ids: list[str]) -> bytes:
    """A job of a list whose first ones were accepted as ``ids``; what depends on one of those names it by its id from now on."""
    if "depends_on" in job:
        parents = [
            (ids[one] if one < len(ids) else one - len(ids)) if isinstance(one, int) else one
            for one in job["depends_on"]
        ]
        job = {**job, "depends_on": parents}
    return msgspec.json.encode(job)


def submit_many(
    jobs: Iterable[Submission], *, repeats: int, request_id: str | None, progress: Callable[[int], object] | None
) -> Flow[list[str]]:
    """In parts: each is accepted as a whole or not at all. One that is too much for the server is halved."""
    source, ids, size = iter(jobs), list[str](), BATCH
    waiting: list[dict[str, Any]] = []
    while True:
        waiting += [
            submission(_fields(job), with_key=repeats > 0) for job in islice(source, max(size - len(waiting), 0))
        ]
        if not waiting:
            return ids
        part = [_in_part(job, ids) for job in waiting[:size]]
        body = b"[" + b",".join(part) + b"]"
        try:
            answer = yield from repeated(
                Ask(method="POST", path="/api/v1/jobs/batch", body=body, headers=_request_id(request_id)), repeats
            )
            ids += answers.decoded(answer, _Accepted).ids
        except Invalid as exc:
            if exc.field is None and len(part) > 1:  # not a job in it is wrong, but the request: too many, or too large
                size = len(part) // 2
                continue
            raise _of_all(exc, ids) from None
        except ClientError as exc:
            raise _of_all(exc, ids) from None
        del waiting[: len(part)]
        if progress is not None:
            progress(len(ids))


class _Accepted(msgspec.Struct):
    ids: list[str]


def _fields(job: Submission) -> Mapping[str, Any]:
    if isinstance(job, tuple):
        task, payload = job
        return {"task": task, "payload": payload}
    return job


def _of_all(error: ClientError, ids: list[str]) -> ClientError:
    """An error of one part, as one of the whole: the number of the job in it counts from the first of all."""
    error.submitted = ids
    place, bracket, rest = (error.field or "").removeprefix("[").partition("]")
    if bracket and place.isdigit() and error.field is not None:
        moved = f"[{len(ids) + int(place)}]{rest}"
        error.detail = error.detail.replace(error.field, moved, 1)
        error.field = moved
    return error


def _request_id(given: str | None) -> dict[str, str]:
    return {} if given is None else {"x-request-id": given}


def _plain(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, dt.timedelta) else value


# ----------------------------------------------------------------------------------------------------------------- looking


def trace(job: JobRef) -> Flow[Trace]:
    return one(Trace, job_path(job, "/trace"))


def otlp(job: JobRef) -> Flow[Export]:
    return one(Export, job_path(job, "/trace"), params={"format": "otlp"})


def get(job: JobRef, wait_s: float = 0) -> Flow[Job]:
    params = {"wait": round(wait_s, 3)} if wait_s > 0 else {}
    return one(Job, job_path(job), params=params, slow_s=wait_s)


def wait(job: JobRef, timeout_s: float | None) -> Flow[Job]:
    """The job when it has ended. ResultNotReady when the time is over; ServerUnreachable if there was no server then."""
    return until_ended(lambda wait_s: get(job, wait_s), timeout_s, answers.ResultNotReady)


class _Ending(Protocol):
    @property
    def ended(self) -> bool: ...


E = TypeVar("E", bound=_Ending)


def until_ended(
    ask: Callable[[float], Flow[E]], timeout_s: float | None, not_yet: Callable[[E], ClientError]
) -> Flow[E]:
    """What ``ask`` finds, asked with the seconds that the server may wait, when it has ended. ``not_yet`` makes the error of one
    that has not when the time is over; ServerUnreachable if there was no server then."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    away = Away()
    while True:
        left_s = None if deadline is None else deadline - time.monotonic()
        try:
            found = yield from ask(LONG_POLL_S if left_s is None else max(min(LONG_POLL_S, left_s), 0))
        except (ServerUnreachable, Busy) as exc:
            yield away.pause(exc, left_s)
            continue
        away.answered()
        if found.ended:
            return found
        if deadline is not None and time.monotonic() >= deadline:
            raise not_yet(found)
        yield Pause(0.05)  # nothing, after a long poll; a server that stops sends those who wait away at once


def wait_all(jobs: Iterable[JobRef], timeout_s: float | None) -> Flow[list[Job]]:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    ended: list[Job] = []
    for job in jobs:
        left_s = None if deadline is None else max(deadline - time.monotonic(), 0)
        ended.append((yield from wait(job, left_s)))
    return ended


def result(job: JobRef, timeout_s: float | None) -> Flow[Any]:
    return answers.result_of((yield from wait(job, timeout_s)))


def run(
    task: str, payload: Any, options: Mapping[str, Any], *, wait_s: float | None, repeats: int, request_id: str | None
) -> Flow[Any]:
    job = yield from submit(task, payload, options, repeats=repeats, request_id=request_id)
    return (yield from result(job, wait_s))


def page(
    filters: Mapping[str, Any], *, sort: str | None, limit: int, cursor: str | None, path: str = "/api/v1/jobs"
) -> Flow[answers.Page]:
    params = {**chosen(filters), "sort": sort, "limit": limit, "cursor": cursor}
    return one(answers.Page, path, params=params)


def all_pages(
    filters: Mapping[str, Any], *, sort: str | None = None, limit: int | None, path: str = "/api/v1/jobs"
) -> Items[Job]:
    """The jobs of all pages, each page asked for when it is needed."""
    cursor: str | None = None
    left = limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        found = yield from page(filters, sort=sort, limit=size, cursor=cursor, path=path)
        for job in found.items:
            yield Give(job)
        cursor = found.next_cursor
        if cursor is None:
            return
        left = None if left is None else left - len(found.items)


def dead_letters(*, queue: str | None, task: str | None, limit: int | None) -> Items[Job]:
    return all_pages({"queue": queue, "task": task}, limit=limit, path="/api/v1/dead-letters")


def chosen(filters: Mapping[str, Any]) -> dict[str, str]:
    """A Filter as the server takes it, in a query and in a body."""
    return {name: _text(value) for name, value in filters.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, dt.datetime):
        return value.isoformat()
    return value if isinstance(value, str) else ",".join(value)


# --------------------------------------------------------------------------------------------------------- logs and events


def logs(
    job: JobRef, *, follow: bool, level: str | None, attempt: int | None, after_id: int, tail: int | None
) -> Items[answers.LogLine]:
    path = job_path(job, "/logs")
    params = {"level": level, "attempt": attempt}
    start: dict[str, int | None] = {"after_id": after_id or None, "tail": tail}
    if follow:
        yield from stream(path, {**params, "follow": 1}, start, _line)
        return
    while True:
        found = yield from one(_Lines, path, params={**params, **start, "limit": LINES})
        for line in found.items:
            yield Give(line)
        if len(found.items) < LINES:
            return
        start = {"after_id": found.items[-1].id}


class _Lines(msgspec.Struct):
    items: list[answers.LogLine]


def events(job: JobRef | None, filters: Mapping[str, Any], after: str | None) -> Items[answers.Event]:
    path = "/api/v1/events" if job is None else job_path(job, "/events")
    return stream(path, chosen(filters), {"after": after}, _event)


def _line(event: ServerSentEvent, answer: httpx.Response) -> answers.LogLine:
    return answers.decoded_text(event.data, answers.LogLine, answer)


def _event(event: ServerSentEvent, answer: httpx.Response) -> answers.Event:
    return answers.Event(id=event.id, job=answers.decoded_text(event.data, Job, answer))


# ------------------------------------------------------------------------------------------------------------------- acting


def verb(name: str, job: JobRef) -> Flow[Job]:
    return one(Job, job_path(job, f"/{name}"), "POST")


def change(kind: type[T], path: str, fields: Mapping[str, Any]) -> Flow[T]:
    """A PATCH with those of ``fields`` that say something."""
    body = msgspec.json.encode({name: value for name, value in fields.items() if value is not UNSET})
    return one(kind, path, "PATCH", body=body)


def resize(workers: int | None, async_slots: int | None, processes: int | None) -> Flow[list[answers.WorkerInfo]]:
    sizes = {"workers": workers, "async_slots": async_slots, "processes": processes}
    body = msgspec.json.encode({name: n for name, n in sizes.items() if n is not None})
    found = yield from one(_All[answers.WorkerInfo], "/api/v1/workers", "PATCH", body=body)
    return found.items


def delete(job: JobRef) -> Flow[None]:
    yield from send(Ask(method="DELETE", path=job_path(job)))


def bulk(
    name: str, ids: Iterable[JobRef] | None, everything: bool, dry_run: bool, filters: Mapping[str, Any]
) -> Flow[answers.BulkResult]:
    wanted: dict[str, Any] = {"dry_run": dry_run}
    if ids is not None:
        wanted["ids"] = [id_of(job) for job in ids]
    if everything:
        wanted["all"] = True
    if which := chosen(filters):
        wanted["filter"] = which
    body = msgspec.json.encode(wanted)
    return one(answers.BulkResult, f"/api/v1/jobs/bulk/{name}", "POST", body=body, slow_s=BULK_S)


class _Replayed(msgspec.Struct):
    replayed: int


def replay(*, queue: str | None, task: str | None) -> Flow[int]:
    body = msgspec.json.encode(chosen({"queue": queue, "task": task}))
    found = yield from one(_Replayed, "/api/v1/dead-letters/replay", "POST", body=body, slow_s=BULK_S)
    return found.replayed


# -------------------------------------------------------------------------------------------------------------- the server


class _All(msgspec.Struct, Generic[T]):
    items: list[T]


def items(kind: type[T], path: str) -> Flow[list[T]]:
    """All items of a list that has no pages."""
    found: _All[T] = yield from one(_All[kind], path)  # type: ignore[valid-type]
    return found.items


def health() -> Flow[answers.Health]:
    """Of a server that says it is unhealthy as well: that is its answer."""
    answer: httpx.Response = yield from carry_out(Ask(path="/api/v1/health"))
    if answer.is_success or (answer.status_code == 503 and b'"databaseAvailable"' in answer.content):
        return answers.decoded(answer, answers.Health)
    raise answers.error_of(answer)


def ready() -> Flow[bool]:
    try:
        yield from send(Ask(path="/ready"))
    except Busy:
        return False
    return True


# ------------------------------------------------------------------------------------------------------------------- paths


def id_of(job: JobRef) -> str:
    return job if isinstance(job, str) else job.id


def job_path(job: JobRef, rest: str = "") -> str:
    return named("/api/v1/jobs", id_of(job), rest)


def named(path: str, name: str, rest: str = "") -> str:
    """The path of one thing in a list. An empty name would be the path of the list itself."""
    if not name:
        raise Invalid("an empty text names nothing; give the id of a job, or the name of a queue or task", field="id")
    return f"{path}/{quote(name, safe='')}{rest}"
