"""The canonical API, under ``/api/v1``: snake_case, problem details for errors."""

from __future__ import annotations

import asyncio
import datetime as dt
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from litestar import MediaType, Request, Response, get, post
from litestar.params import Parameter

from miniflow import __version__
from miniflow.errors import InvalidRequest, MiniFlowError
from miniflow.intake import decode_submission
from miniflow.model import Accepted, NewJob
from miniflow.queries import Attempt, Job, is_terminal, job_of_new
from miniflow.states import State
from miniflow.traceparent import parse
from miniflow.web.backend import Backend
from miniflow.web.problems import decoded

WAIT_S_MAX = 60.0

AnyRequest = Request[Any, Any, Any]
Wait = Annotated[
    float | None, Parameter(ge=0, le=WAIT_S_MAX, description="seconds to wait for the job to end, at most 60")
]

_encode = msgspec.json.Encoder().encode
_decode_batch = msgspec.json.Decoder(list[msgspec.Raw]).decode
FEW_COMMAS = 500_000
"""In an array with no more than these, however they lie, the items are split in 25 ms."""


def respond(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    return Response(_encode(value), status_code=status, headers=headers or {}, media_type=MediaType.JSON)


# --------------------------------------------------------------------------------------------------------------- submitting


@post("/api/v1/jobs", summary="Submit a job", status_code=201)
async def submit_job(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """Accept one job. A 201 says that it is on the disk: it survives a crash of the process and of the machine.

    The header ``Submit-Outcome`` (and the field ``submit_outcome``) says where the answer is another job, that was there already:
    ``existing`` for one with the rule ``unique``, ``debounced`` for one that took this payload over."""
    submission = decoded(decode_submission, await request.body())
    submission.idempotency_key = idempotency_key(request, submission.idempotency_key)
    submission.traceparent = traceparent(request, submission.traceparent)
    request_id = request.scope.get("miniflow_request_id")
    new = backend.intake.job(submission, request_id=request_id if isinstance(request_id, str) else None)
    (accepted,) = await backend.insert([new])
    headers = {"location": f"/api/v1/jobs/{accepted.id}"}
    if accepted.replayed or accepted.merged:
        headers |= {"idempotency-replayed": "true"} if accepted.replayed else {}
        headers |= {"submit-outcome": accepted.merged} if accepted.merged else {}
        job = backend.queries.job(accepted.id)
        job.submit_outcome = accepted.outcome
        return respond(job, 201, headers)
    if new.waits is not None:  # what it waits for may have ended already
        return respond(backend.queries.job(accepted.id), 201, headers)
    return respond(job_of_new(new, backend.clock.now_ms()), 201, headers)


@post("/api/v1/jobs/batch", summary="Submit many jobs, all or none", status_code=201)
async def submit_batch(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """A JSON array of jobs, or one job a line (NDJSON). The ids come back in the order given. ``existing`` and ``debounced`` are
    the places of jobs that were there already by the rules ``unique`` and ``debounce``: they have the ids of the earlier ones."""
    raw = split_batch(await request.body(), request.headers.get("content-type", ""), backend.settings.max_batch)
    if not raw:
        raise InvalidRequest("", "the batch is empty; give an array of jobs, or one job a line")
    request_id, caller = request.scope.get("miniflow_request_id"), traceparent(request)
    jobs: list[NewJob] = []
    for place, item in enumerate(raw):
        where = f"[{place}]."
        submission = decoded(decode_submission, item, where)
        if submission.traceparent is None:
            submission.traceparent = caller
        known_as = str(request_id) if request_id else None
        jobs.append(backend.intake.job(submission, request_id=known_as, where=where, place=place))
        if place % 500 == 499:  # a long batch must not keep the loop from everybody else
            await asyncio.sleep(0)
    accepted = await backend.insert(jobs)
    return respond({"ids": [one.id for one in accepted], "count": len(accepted), **_replays(accepted)}, 201)


def idempotency_key(request: AnyRequest, in_body: str | None, field: str = "idempotency_key") -> str | None:
    """The key that came in the header or in the body; not two different ones."""
    header: str | None = request.headers.get("idempotency-key")
    if header is None:
        return in_body
    if in_body not in (None, header):
        raise InvalidRequest(field, "differs from the header Idempotency-Key; give one of the two")
    if not 1 <= len(header) <= 255:
        raise InvalidRequest("Idempotency-Key", "is 1 to 255 characters")
    return header


def traceparent(request: AnyRequest, in_body: str | None = None) -> str | None:
    """What was said of the trace: in the body, else in the header, which is passed over where it cannot be read, as W3C Trace
    Context asks."""
    header: str | None = request.headers.get("traceparent")
    if in_body is not None or header is None:
        return in_body
    return header.strip() if parse(header) is not None else None


def _replays(accepted: list[Accepted]) -> dict[str, Any]:
    """How many were there already by their keys, and the places of those that were by a rule of theirs."""
    found: dict[str, Any] = {}
    if replayed := sum(one.replayed for one in accepted):
        found["replayed"] = replayed
    for merged in ("existing", "debounced"):
        if places := [place for place, one in enumerate(accepted) if one.merged == merged]:
            found[merged] = places
    return found


def split_batch(body: bytes, content_type: str, limit: int) -> list[bytes]:
    """The jobs of a batch, each as its own JSON text. InvalidRequest as soon as there are more than ``limit``: to take all
    of it apart first would hold the loop for seconds."""
    if "ndjson" in content_type or "jsonl" in content_type or not body[:65_536].lstrip().startswith(b"["):
        return _split_lines(body, limit)
    if body.count(b",") <= FEW_COMMAS:
        items: list[Any] = decoded(_decode_batch, body)
    else:
        items = _split_long_array(body, limit)
    if len(items) > limit:
        raise _over_limit(limit)
    return [bytes(item) for item in items]


def _split_lines(body: bytes, limit: int) -> list[bytes]:
    """Blank lines are passed over, but not without end."""
    found: list[bytes] = []
    lines = start = 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        line, start, lines = body[start:end].strip(), end + 1, lines + 1
        if line:
            found.append(line)
        if len(found) > limit:
            raise _over_limit(limit)
        if lines - len(found) > max(limit, 1000) * 2:
            raise InvalidRequest("", "the batch has too many blank lines; leave them out")
    return found


def _split_long_array(body: bytes, limit: int) -> list[Any]:
    try:
        return [
            item for item in msgspec.structs.astuple(decoded(_long_array(limit), body)) if item is not msgspec.UNSET
        ]
    except InvalidRequest as exc:
        raise (_over_limit(limit) if "at most length" in exc.reason else exc) from None


@lru_cache(1)
def _long_array(limit: int) -> Any:
    """A decoder of arrays that stops at the first item over ``limit``. msgspec looks at the length of a list when it has made it;
    of a struct that is written as an array it knows it before."""
    fields = [(f"item_{place}", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for place in range(limit)]
    return msgspec.json.Decoder(msgspec.defstruct("Batch", fields, array_like=True, forbid_unknown_fields=True)).decode


def _over_limit(limit: int) -> InvalidRequest:
    return InvalidRequest("", f"the batch has too many jobs, the limit max_batch is {limit:,}; send it in parts")


# ----------------------------------------------------------------------------------------------------------------- looking


@get("/api/v1/jobs/{job_id:str}/result", summary="The result of a job")
async def get_result(job_id: str, backend: Backend, wait: Wait = None) -> Response[bytes]:
    """200 with the result; 202 while there is none yet; 409 with the error if there will be none."""
    job = await find_job(backend, job_id, wait)
    if job.status == State.COMPLETED:
        return respond({"id": job.id, "status": job.status, "result": job.result})
    if not is_terminal(job):
        return respond(
            {"id": job.id, "status": job.status, "detail": f"no result yet, the job is {job.status}"},
            202,
            retry_after(backend, job),
        )
    return respond(
        {
            "id": job.id,
            "status": job.status,
            "error": job.last_error,
            "detail": f"the job is {job.status}: {job.last_error}",
        },
        409,
    )


@get("/api/v1/jobs/{job_id:str}/attempts", summary="The attempts of a job")
async def get_attempts(job_id: str, backend: Backend) -> Response[bytes]:
    """Each execution of the job, oldest first, with its error and traceback."""
    attempts: list[Attempt] = await backend.queries.attempts(job_id)
    return respond({"items": attempts})


async def find_job(backend: Backend, job_id: str, wait_s: float | None = None) -> Job:
    """A job, at once or when it has ended."""
    job = backend.queries.job(job_id)
    if not wait_s or is_terminal(job):
        return job
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def listener(_: str) -> None:
        loop.call_soon_threadsafe(ended.set)

    backend.notices.listen(job_id, listener)
    try:
        job = backend.queries.job(job_id)  # it may have ended before we listened
        if not is_terminal(job) and not backend.notices.over:
            await asyncio.wait_for(ended.wait(), wait_s)
    except TimeoutError:
        pass
    finally:
        backend.notices.forget(job_id, listener)
    return backend.queries.job(job_id)


def retry_after(backend: Backend, job: Job) -> dict[str, str]:
    """When it is worth asking again, in whole seconds."""
    seconds = 1
    if job.status in (State.SCHEDULED, State.RETRYING) and job.scheduled_at is not None:
        due = dt.datetime.fromisoformat(job.scheduled_at)
        seconds = max(1, round(due.timestamp() - backend.clock.now_ms() / 1000) + 1)
    return {"retry-after": str(seconds)}


# ---------------------------------------------------------------------------------------------------------- acting on jobs


@post("/api/v1/jobs/{job_id:str}/cancel", summary="Cancel a job", status_code=200)
async def cancel_job(job_id: str, backend: Backend) -> Response[bytes]:
    """A waiting job is cancelled at once (200). A running one is asked to stop (202), and is cancelled when it has."""
    state = await backend.verb(backend.jobs.cancel(job_id))
    return respond(backend.queries.job(job_id), 200 if state == State.CANCELLED else 202)


@post("/api/v1/jobs/{job_id:str}/retry", summary="Run a job again", status_code=200)
async def retry_job(job_id: str, backend: Backend) -> Response[bytes]:
    """A dead letter goes back to its queue with its attempts counted anew; a job that waits for its next attempt gets it now; one
    that was cancelled because of a job that it depends on waits for that one again (retry that one first)."""
    await backend.verb(backend.jobs.retry(job_id))
    return respond(backend.queries.job(job_id))


# -------------------------------------------------------------------------------------------------------------- the server


@get("/health", summary="Is the process alive?")
async def health() -> Response[bytes]:
    """As long as it answers, it is."""
    return respond({"ok": True, "status": "ok"})


@get("/api/v1/health", summary="Is the service healthy?")
async def api_health(backend: Backend) -> Response[bytes]:
    """200 while its database answers and jobs are accepted; else 503."""
    available = _database_answers(backend)
    status = "healthy" if available and backend.jobs.accepting else "unhealthy"
    body = {"name": "MiniFlow", "status": status, "version": f"v{__version__}", "databaseAvailable": available}
    return respond(body, 200 if status == "healthy" else 503)


@get("/ready", summary="Does the server take jobs?")
async def ready(backend: Backend) -> Response[bytes]:
    """200 while jobs are accepted; 503 while the server stops, or its database does not answer."""
    if backend.jobs.accepting and _database_answers(backend):
        return respond({"ready": True})
    return respond(
        {
            "ready": False,
            "detail": "the server is stopping" if not backend.jobs.accepting else "the database does not answer",
        },
        503,
        {"retry-after": "5"},
    )


def _database_answers(backend: Backend) -> bool:
    try:
        return backend.queries.alive()
    except (MiniFlowError, OSError, Exception):  # whatever it is, it is the answer: no
        return False


ROUTES = [
    submit_job,
    submit_batch,
    get_result,
    get_attempts,
    cancel_job,
    retry_job,
    health,
    api_health,
    ready,
]
