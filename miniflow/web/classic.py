"""The routes of the systems that MiniFlow grew out of, thin: their paths, their keys, their names of states.

``/submit /status /result /logs`` (a mini workflow engine), ``/submit-job /job-status`` (an RQ service) and ``/create-jobs/`` (a
BaseJob service), and the replay of a task server's dead letters. They act on the same jobs as the canonical API; what they
answer beyond their keys is extra.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.params import Parameter

from miniflow.clock import rfc3339
from miniflow.errors import InvalidRequest, NotFound, UnknownTask
from miniflow.intake import EMPTY, Key, Seconds, Submission
from miniflow.queries import Job, LogFilter, is_terminal, parse_levels
from miniflow.registry import NAME_CHARS_MAX
from miniflow.retry import RetryPolicy
from miniflow.states import State
from miniflow.web import logs as joblogs
from miniflow.web.api import find_job, idempotency_key, respond, retry_after, traceparent
from miniflow.web.backend import Backend
from miniflow.web.jobs import replay
from miniflow.web.problems import decoded, log

AnyRequest = Request[Any, Any, Any]

STATUS = {
    State.RUNNING: "started",
    State.COMPLETED: "finished",
    State.DEAD_LETTER: "failed",
    State.CANCELLED: "failed",
    State.EXPIRED: "failed",
}
JOB_STATUS = {
    State.PENDING: "deferred",
    State.SCHEDULED: "scheduled",
    State.QUEUED: "queued",
    State.RUNNING: "started",
    State.RETRYING: "scheduled",
    State.COMPLETED: "finished",
    State.DEAD_LETTER: "failed",
    State.CANCELLED: "canceled",
    State.EXPIRED: "failed",
}
RQ_PREFIX = "JOB-"


class Submit(msgspec.Struct, kw_only=True):
    """What ``/submit`` takes."""

    task: str = "example_task"
    payload: msgspec.Raw
    max_retries: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    queue: str | None = None
    idempotency_key: Key | None = None


class RqRetry(msgspec.Struct):
    max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    interval: Annotated[list[Seconds], msgspec.Meta(min_length=1, max_length=100)] | Seconds = 0


class SubmitJob(msgspec.Struct, kw_only=True):
    """What ``/submit-job`` takes."""

    task: str
    payload: msgspec.Raw = EMPTY
    retry: RqRetry | None = None
    ttl: Seconds | None = None
    result_ttl: Seconds | None = None
    failure_ttl: Seconds | None = None
    queue: str | None = None
    request_id: Key | None = None


def _decode(body: bytes, kind: Any, where: str = "") -> Any:
    return decoded(msgspec.json.Decoder(kind).decode, body, where)


def _request_id(request: AnyRequest) -> str | None:
    value = request.scope.get("miniflow_request_id")
    return value if isinstance(value, str) else None


# ------------------------------------------------------------------------------------------ /submit, /status, /result, /logs


@post("/submit", status_code=200, summary="Submit a job (classic)")
async def submit(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """Without ``task`` it is ``example_task``; without ``max_retries`` there are no retries."""
    wanted: Submit = _decode(await request.body(), Submit)
    _must_be_object(wanted.payload)
    if wanted.task not in backend.registry:
        return respond({"detail": "Unknown task"}, 400)
    submission = Submission(
        task=wanted.task,
        payload=wanted.payload,
        max_retries=wanted.max_retries,
        queue=wanted.queue,
        idempotency_key=idempotency_key(request, wanted.idempotency_key),
        traceparent=traceparent(request),
    )
    (accepted,) = await backend.insert(
        [backend.intake.job(submission, request_id=_request_id(request), job_id=str(uuid.uuid4()))]
    )
    job_id = accepted.id
    log_api.info("Enqueued job_id=%s task=%s", job_id, wanted.task)
    return respond({"job_id": job_id})


@get("/status/{job_id:str}", summary="The status of a job (classic)")
async def status(job_id: str, backend: Backend) -> Response[bytes]:
    """``queued``, ``started``, ``finished`` or ``failed``."""
    job = _find(backend, job_id)
    return respond(
        {
            "job_id": job.id,
            "status": STATUS.get(State(job.status), "queued"),
            "progress": _or_none(job.progress),
            "updated_at": job.updated_at,
        }
    )


@get("/result/{job_id:str}", summary="The result of a job (classic)")
async def result(
    job_id: str, backend: Backend, wait: Annotated[float | None, Parameter(ge=0, le=60)] = None
) -> Response[bytes]:
    """404 as long as there is none, and where there will be none."""
    _find(backend, job_id)
    job = await find_job(backend, job_id, wait)
    if job.status == State.COMPLETED:
        return respond({"job_id": job.id, "result": job.result})
    if is_terminal(job):
        return respond(
            {"detail": f"Result not available: the job is {job.status}", "status": "failed", "error": job.last_error},
            404,
        )
    return respond(
        {"detail": "Result not available yet", "status": STATUS.get(State(job.status), "queued")},
        404,
        retry_after(backend, job),
    )


@get("/logs/{job_id:str}", summary="The log of a job (classic)")
async def logs(
    job_id: str,
    backend: Backend,
    limit: joblogs.Limit = None,
    after_id: joblogs.AfterId = 0,
    level: joblogs.Level = None,
    follow: joblogs.Follow = False,
    last_event_id: joblogs.LastEventId = None,
) -> Response[Any]:
    """A page of lines; with ``follow=1`` an event stream, as that of ``/api/v1/jobs/{job_id}/logs``."""
    _find(backend, job_id)
    which, resumed = LogFilter(parse_levels(level)), joblogs.after(after_id, last_event_id)
    if follow:
        return joblogs.follower(backend, job_id, resumed, which)
    found = await joblogs.page(backend, backend.queries.log(job_id), resumed, limit or joblogs.PAGE_USUAL, which)
    return respond({"job_id": job_id, "logs": found["items"], "next_after_id": found["next_after_id"]})


# ------------------------------------------------------------------------------------------------- /submit-job, /job-status


@post("/submit-job", status_code=200, summary="Submit a job (classic, RQ)")
async def submit_job(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """Without ``retry`` there are no retries. ``request_id`` in the body is an idempotency key."""
    wanted: SubmitJob = _decode(await request.body(), SubmitJob)
    _must_be_object(wanted.payload)
    if wanted.task not in backend.registry:
        return respond({"detail": f"Unknown task: {wanted.task[:NAME_CHARS_MAX]}"}, 400)
    now_ms = backend.clock.now_ms()
    submission = Submission(
        task=wanted.task,
        payload=wanted.payload,
        queue=wanted.queue,
        ttl=wanted.ttl,
        result_ttl=wanted.result_ttl,
        failure_ttl=wanted.failure_ttl,
        max_retries=wanted.retry.max if wanted.retry else 0,
        retry=_intervals(wanted.retry),
        tags=["api", "v1"],
        idempotency_key=idempotency_key(request, wanted.request_id, "request_id"),
        traceparent=traceparent(request),
    )
    job_id = f"{RQ_PREFIX}{uuid.uuid4()}"
    (accepted,) = await backend.insert([backend.intake.job(submission, request_id=_request_id(request), job_id=job_id)])
    job = backend.queries.job(accepted.id)
    submitted_at = job.created_at if accepted.id != job_id else rfc3339(now_ms)
    return respond({"job_id": accepted.id, "status": JOB_STATUS[State(job.status)], "submitted_at": submitted_at})


@get("/job-status/{job_id:str}", summary="The status of a job (classic, RQ and BaseJob)")
async def job_status(job_id: str, backend: Backend) -> Response[bytes]:
    """``status`` is as RQ has it; of a job that was submitted elsewhere ``completed``, not ``finished``."""
    job = _find(backend, job_id)
    state = State(job.status)
    failed = state in (State.DEAD_LETTER, State.CANCELLED, State.EXPIRED)
    shown = JOB_STATUS[state]
    if state is State.COMPLETED and not job.id.startswith(RQ_PREFIX):
        shown = "completed"
    body = {
        "job_id": job.id,
        "id": job.id,
        "status": shown,
        "meta": {
            "job_id": job.id,
            "submitted_at": job.created_at,
            "payload": job.payload,
            "task_name": job.task,
            "tags": _or_none(job.tags) or [],
        },
        "enqueued_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.completed_at,
        "result": _or_none(job.result),
        "exc_info": (backend.queries.traceback(job.id) or job.last_error) if failed else None,
        "error": job.last_error if failed else None,
        "progress": _or_none(job.progress),
        "created_at": job.created_at,
        "updated_at": job.updated_at,
    }
    return respond(body)


# -------------------------------------------------------------------------------------------------------------- /create-jobs/

DEMO: tuple[tuple[str, bytes], ...] = (
    ("TruncateTable", b'{"schema": "public", "table_name": "users"}'),
    ("PopulateRecords", b'{"sql_path": "users.sql"}'),
    ("DataAggregation", b"{}"),
    ("DropTable", b"{}"),
    ("Fibonacci", b'{"n": 10}'),
    ("SlowQuery", b'{"duration": 10}'),
    ("FailedJob", b"{}"),
)


@post("/create-jobs", status_code=200, summary="Create the demo jobs, or one BaseJob (classic)")
async def create_jobs(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """Without a body: the demo set, as far as its tasks are there. With one: ``{"job": NAME, "queue": …, the job's fields…}``."""
    body = await request.body()
    if body.strip():
        wanted: dict[str, msgspec.Raw] = _decode(body, dict[str, msgspec.Raw])
        if "job" not in wanted:
            raise InvalidRequest("job", "is missing; it names the job's class")
        name = _decode(bytes(wanted.pop("job")), str, "job.")
        queue = _decode(bytes(wanted.pop("queue", msgspec.Raw(b"null"))), str | None, "queue.")
        submissions = [Submission(task=name, payload=msgspec.Raw(msgspec.json.encode(wanted)), queue=queue)]
    else:
        submissions = [
            Submission(task=name, payload=msgspec.Raw(payload)) for name, payload in DEMO if name in backend.registry
        ]
        if not submissions:
            raise InvalidRequest(
                "job", "none of the demo jobs is registered; `miniflow init` writes them, or name a job of yours"
            )
    for submission in submissions:
        submission.traceparent = traceparent(request)
    try:
        jobs = [backend.intake.job(submission, request_id=_request_id(request)) for submission in submissions]
    except UnknownTask as exc:
        return respond({"detail": str(exc)}, 400)
    accepted = await backend.insert(jobs)
    created = [{"job_id": one.id, "job": job.task} for one, job in zip(accepted, jobs, strict=True)]
    return respond({"job_id": created[0]["job_id"], "status": "enqueued", "jobs": created})


# ------------------------------------------------------------------------------------------------- /api/v1/jobs/action/retry

Target = Annotated[
    str | None, Parameter(description="taken and not needed: a job goes back to the queue that it came from")
]


@post("/api/v1/jobs/action/retry", status_code=200, summary="Replay dead letters (classic)")
async def replay_all(
    backend: Backend,
    target_queue_name: Target = None,  # noqa: ARG001 - a parameter of the seed's
    max_messages: Annotated[int, Parameter(ge=1, le=1_000_000)] = 1000,
) -> Response[bytes]:
    """The oldest ``max_messages`` of them; 404 if there are none."""
    replayed = await replay(backend, at_most=max_messages)
    if not replayed:
        raise NotFound("dead letter", "none is there to be replayed")
    return respond({"success": replayed, "failed": 0, "status": "Replay successful"})


@post("/api/v1/jobs/action/{job_id:str}/retry", status_code=200, summary="Replay one dead letter (classic)")
async def replay_one(
    job_id: str,
    backend: Backend,
    target_queue_name: Target = None,  # noqa: ARG001 - a parameter of the seed's
) -> Response[bytes]:
    """404 if it is none."""
    if backend.queries.job(job_id).status != State.DEAD_LETTER:
        raise NotFound("dead letter", job_id)
    await backend.verb(backend.jobs.retry(job_id))
    return respond({"success": True, "task_id": job_id, "status": "Replay successful"})


# ------------------------------------------------------------------------------------------------------------------- shared


def _find(backend: Backend, job_id: str) -> Job:
    try:
        return backend.queries.job(job_id)
    except NotFound:
        raise _ClassicNotFound("job", job_id) from None


class _ClassicNotFound(NotFound):
    """With the words of the seeds."""

    def __str__(self) -> str:
        return "Job not found"


def _must_be_object(payload: msgspec.Raw) -> None:
    if not bytes(payload).lstrip().startswith(b"{"):
        raise InvalidRequest("payload", "expected an object")


def _intervals(retry: RqRetry | None) -> RetryPolicy | None:
    if retry is None:
        return None
    waits = retry.interval if isinstance(retry.interval, list) else [retry.interval]
    return RetryPolicy(intervals=waits)


def _or_none(value: Any) -> Any:
    return None if value is msgspec.UNSET else value


log_api = log.getChild("api")
log_api.name = "api"

ROUTES = [submit, status, result, logs, submit_job, job_status, create_jobs, replay_all, replay_one]
