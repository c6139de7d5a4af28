"""The canonical API, under ``/api/v1``: snake_case, problem details for errors."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Annotated, Any

import msgspec
from litestar import MediaType, Request, Response, get, post
from litestar.params import Parameter

from miniflow import __version__
from miniflow.errors import InvalidRequest, MiniFlowError, NotFound
from miniflow.intake import decode_submission
from miniflow.model import NewJob
from miniflow.queries import PAGE_MAX, Attempt, Job, LogLine, Page, is_terminal, job_of_new
from miniflow.states import State
from miniflow.web.backend import Backend
from miniflow.web.problems import decoded

WAIT_S_MAX = 60.0

AnyRequest = Request[Any, Any, Any]
Wait = Annotated[
    float | None, Parameter(ge=0, le=WAIT_S_MAX, description="seconds to wait for the job to end, at most 60")
]
Limit = Annotated[int, Parameter(ge=1, le=PAGE_MAX, description="jobs on a page")]

_encode = msgspec.json.Encoder().encode
_decode_batch = msgspec.json.Decoder(list[msgspec.Raw]).decode


def respond(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    return Response(_encode(value), status_code=status, headers=headers or {}, media_type=MediaType.JSON)


# --------------------------------------------------------------------------------------------------------------- submitting


@post("/api/v1/jobs", summary="Submit a job", status_code=201)
async def submit_job(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """Accept one job. A 201 says that it is on the disk: it survives a crash of the process and of the machine."""
    submission = decoded(decode_submission, await request.body())
    submission.idempotency_key = idempotency_key(request, submission.idempotency_key)
    request_id = request.scope.get("miniflow_request_id")
    new = backend.intake.job(submission, request_id=request_id if isinstance(request_id, str) else None)
    ((job_id, replayed),) = await backend.insert([new])
    headers = {"location": f"/api/v1/jobs/{job_id}"}
    if replayed:
        return respond(backend.queries.job(job_id), 201, {**headers, "idempotency-replayed": "true"})
    return respond(job_of_new(new, backend.clock.now_ms()), 201, headers)


@post("/api/v1/jobs/batch", summary="Submit many jobs, all or none", status_code=201)
async def submit_batch(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """A JSON array of jobs, or one job a line (NDJSON). The ids come back in the order given."""
    raw = split_batch(await request.body(), request.headers.get("content-type", ""))
    limit = backend.settings.max_batch
    if not raw:
        raise InvalidRequest("", "the batch is empty; give an array of jobs, or one job a line")
    if len(raw) > limit:
        raise InvalidRequest("", f"the batch has {len(raw):,} jobs, the limit max_batch is {limit:,}; send it in parts")
    request_id = request.scope.get("miniflow_request_id")
    jobs: list[NewJob] = []
    for place, item in enumerate(raw):
        where = f"[{place}]."
        submission = decoded(decode_submission, item, where)
        jobs.append(backend.intake.job(submission, request_id=str(request_id) if request_id else None, where=where))
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


def _replays(accepted: list[Any]) -> dict[str, int]:
    replayed = sum(one.replayed for one in accepted)
    return {"replayed": replayed} if replayed else {}


def split_batch(body: bytes, content_type: str) -> list[bytes]:
    """The jobs of a batch, each as its own JSON text."""
    if "ndjson" in content_type or "jsonl" in content_type or not body.lstrip().startswith(b"["):
        return [line for line in body.splitlines() if line.strip()]
    return [bytes(item) for item in decoded(_decode_batch, body)]


# ----------------------------------------------------------------------------------------------------------------- looking


@get("/api/v1/jobs", summary="List jobs, newest first")
async def list_jobs(
    backend: Backend,
    status: str | None = None,
    queue: str | None = None,
    task: str | None = None,
    limit: Limit = 50,
    cursor: str | None = None,
) -> Response[bytes]:
    """A page of jobs. Long payloads and all results are left out; a job by its id has them."""
    page: Page = await backend.queries.page(status=status, queue=queue, task=task, limit=limit, cursor=cursor)
    return respond(page)


@get("/api/v1/jobs/{job_id:str}", summary="One job")
async def get_job(job_id: str, backend: Backend, wait: Wait = None) -> Response[bytes]:
    """The job as it is now; with ``wait``, as soon as it has ended, at most so many seconds later."""
    return respond(await find_job(backend, job_id, wait))


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


@get("/api/v1/jobs/{job_id:str}/logs", summary="The log of a job")
async def get_logs(
    job_id: str,
    backend: Backend,
    after_id: Annotated[int, Parameter(ge=0)] = 0,
    limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    level: str | None = None,
) -> Response[bytes]:
    """Lines of the job's log, oldest first; ``next_after_id`` goes on from where this page ends."""
    lines: list[LogLine] = await backend.queries.logs(job_id, after_id=after_id, limit=limit, level=level)
    return respond({"items": lines, "next_after_id": lines[-1].id if lines else after_id})


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
        if not is_terminal(job):
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
    """A dead letter goes back to its queue with its attempts counted anew; a job that waits for its next attempt gets it now."""
    await backend.verb(backend.jobs.retry(job_id))
    return respond(backend.queries.job(job_id))


class ReplayFilter(msgspec.Struct, forbid_unknown_fields=True):
    """Which dead letters to replay; without any field, all."""

    queue: str | None = None
    task: str | None = None


_decode_filter = msgspec.json.Decoder(ReplayFilter).decode


@get("/api/v1/dead-letters", summary="List the jobs that failed for good")
async def list_dead_letters(
    backend: Backend, queue: str | None = None, task: str | None = None, limit: Limit = 50, cursor: str | None = None
) -> Response[bytes]:
    page: Page = await backend.queries.page(
        status=State.DEAD_LETTER, queue=queue, task=task, limit=limit, cursor=cursor
    )
    return respond(page)


@post("/api/v1/dead-letters/replay", summary="Replay dead letters", status_code=200)
async def replay_dead_letters(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """All of them, or those of one queue or task. Says how many went back to their queues."""
    wanted = decoded(_decode_filter, await request.body() or b"{}")
    if wanted.queue is not None and wanted.task is not None:
        raise InvalidRequest("task", "cannot be given together with queue; give one of the two")
    replayed = 0
    after: int | None = 0
    while after is not None:
        n, after = await backend.verb(backend.jobs.replay_dead_letters(after, queue=wanted.queue, task=wanted.task))
        replayed += n
    return respond({"replayed": replayed})


@post("/api/v1/dead-letters/{job_id:str}/replay", summary="Replay one dead letter", status_code=200)
async def replay_dead_letter(job_id: str, backend: Backend) -> Response[bytes]:
    job = backend.queries.job(job_id)
    if job.status != State.DEAD_LETTER:
        raise NotFound("dead letter", job_id)
    await backend.verb(backend.jobs.retry(job_id))
    return respond(backend.queries.job(job_id))


# -------------------------------------------------------------------------------------------------------------- the server


@get("/api/v1/tasks", summary="The tasks that can be submitted")
async def list_tasks(backend: Backend) -> Response[bytes]:
    items = [
        {
            "name": spec.name,
            "description": spec.description,
            "queue": spec.queue,
            "executor": spec.executor,
            "schema": spec.binding.json_schema(),
        }
        for spec in sorted(backend.registry, key=lambda spec: spec.name)
    ]
    return respond({"items": items})


@get("/openapi.json", include_in_schema=False)
async def openapi_document(request: AnyRequest) -> Response[bytes]:
    return respond(request.app.openapi_schema.to_schema())


@get("/health", summary="Is the process alive?")
async def health() -> Response[bytes]:
    return respond({"ok": True, "status": "ok"})


@get("/api/v1/health", summary="Is the service healthy?")
async def api_health(backend: Backend) -> Response[bytes]:
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
    list_jobs,
    get_job,
    get_result,
    get_attempts,
    get_logs,
    cancel_job,
    retry_job,
    list_dead_letters,
    replay_dead_letters,
    replay_dead_letter,
    list_tasks,
    openapi_document,
    health,
    api_health,
    ready,
]
