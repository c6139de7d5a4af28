"""What the server answers, as Python objects: the results of ``Client`` and ``AsyncClient``, and the errors they raise.

A client is not always of its server's version. Fields that it does not know are skipped, fields that are missing have a default,
and states are plain text.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from miniflow.errors import MiniFlowError
from miniflow.states import TERMINAL, State

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_DETAIL_CHARS_MAX = 300  # of an answer that is no problem document: a proxy's page, say


class Unset(enum.Enum):
    """Says nothing about a limit, where None would take it away."""

    UNSET = "unset"


UNSET = Unset.UNSET


# ------------------------------------------------------------------------------------------------------------ the results


class Answer(msgspec.Struct, kw_only=True, repr_omit_defaults=True):
    """Base of what a client returns. Times are datetimes in UTC, durations seconds; what does not apply is None."""


class Job(Answer):
    """A job as it was when the server answered. In a list long payloads and all results are left out."""

    id: str
    status: str
    task: str = ""
    queue: str = ""
    priority: int = 0
    payload: Any = None
    result: Any = None
    progress: Any = None
    attempt: int = 0
    max_retries: int = 0
    crashes: int = 0
    last_error: str | None = None
    worker_id: str | None = None
    idempotency_key: str | None = None
    request_id: str | None = None
    workflow_id: str | None = None
    step: str | None = None
    step_index: int = 0
    tags: tuple[str, ...] = ()
    meta: dict[str, Any] = {}
    description: str | None = None
    timeout: float | None = None
    heartbeat: float | None = None
    on_stall: str | None = None
    stalled_at: dt.datetime | None = None
    created_at: dt.datetime | None = None
    updated_at: dt.datetime | None = None
    scheduled_at: dt.datetime | None = None
    started_at: dt.datetime | None = None
    completed_at: dt.datetime | None = None
    expires_at: dt.datetime | None = None
    cancel_requested_at: dt.datetime | None = None
    depends_on: tuple[str, ...] = ()
    schedule: str | None = None
    scheduled_for: dt.datetime | None = None
    change: int | None = None
    """Grows with every change in the file."""
    submit_outcome: str | None = None
    """Of a submit that made no new job: ``replayed``, ``existing`` or ``debounced``."""

    @property
    def ended(self) -> bool:
        """Whether nothing will happen to it any more by itself."""
        return self.status in TERMINAL


class Reason(Answer):
    """One thing that keeps a job waiting, or that became of it. ``code`` is a stable word, ``text`` a sentence; ``jobs`` are ids
    of those that it waits for, ``at`` is when it is over, where that can be told."""

    code: str
    text: str = ""
    jobs: tuple[str, ...] = ()
    at: dt.datetime | None = None


class Explanation(Answer):
    """Why a job does not run yet, or what ended it, and what happens ``next``. ``text`` is all of it in words."""

    id: str
    status: str
    reasons: list[Reason] = []
    next: str = ""
    text: str = ""


class Page(Answer):
    """A page of jobs. ``next_cursor`` is None on the last one; ``total`` is None where only counting rows could tell."""

    items: list[Job] = []
    next_cursor: str | None = None
    total: int | None = None


class Attempt(Answer):
    """One execution of a job."""

    attempt: int
    outcome: str = ""
    worker_id: str | None = None
    started_at: dt.datetime | None = None
    finished_at: dt.datetime | None = None
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None


class LogLine(Answer):
    """A line of a job's log. ``id`` grows within the log."""

    id: int
    message: str
    level: str = "INFO"
    ts: dt.datetime | None = None
    attempt: int = 0


class Event(Answer):
    """A job has changed. ``job`` is its latest state, without payload and result; ``id`` is for ``events(after=…)``."""

    id: str
    job: Job


class BulkResult(Answer):
    """What became of the jobs that a bulk verb was meant for. ``refused`` are those in a state that it does not apply to."""

    matched: int
    done: int = 0
    refused: int = 0
    dry_run: bool = False


class QueueInfo(Answer):
    """How many jobs of a queue are in each state. ``oldest_queued_age`` is in seconds; ``served``: by workers of this server, not
    while it is paused. ``concurrency`` is how many of its jobs run at once, ``rate`` how many begin in a period."""

    name: str
    pending: int = 0
    scheduled: int = 0
    queued: int = 0
    running: int = 0
    retrying: int = 0
    completed: int = 0
    dead_letter: int = 0
    cancelled: int = 0
    expired: int = 0
    oldest_queued_age: float | None = None
    served: bool = True
    paused_at: dt.datetime | None = None
    concurrency: int | None = None
    rate: str | None = None


class TaskInfo(Answer):
    """A task that can be submitted. ``schema`` is the JSON Schema of its payload; ``timeout`` and ``ttl`` are seconds;
    ``concurrency`` is how many of its jobs run at once, ``rate`` how many begin in a period."""

    name: str
    description: str | None = None
    queue: str = ""
    priority: int = 0
    executor: str = ""
    schema: dict[str, Any] = {}
    max_retries: int | None = None
    timeout: float | None = None
    ttl: float | None = None
    heartbeat: float | None = None
    on_stall: str | None = None
    retry: Any = None
    limits: dict[str, list[float | None]] | None = None
    concurrency: int | None = None
    rate: str | None = None
    concurrency_key: tuple[str, ...] | None = None
    concurrency_per_key: int | None = None
    on_conflict: str = ""
    unique: Any = None
    debounce: Any = None
    durable: bool = False
    module: str | None = None
    file: str | None = None


class WorkerInfo(Answer):
    """A worker, and the job that it runs if it is busy. ``running_for`` is in seconds; ``holds_loop_for`` is for how long
    requests had to wait of late because its task computes, and ``advice`` what to do about it."""

    id: str
    executor: str = ""
    busy: bool = False
    job_id: str | None = None
    task: str | None = None
    queue: str | None = None
    attempt: int | None = None
    started_at: dt.datetime | None = None
    running_for: float | None = None
    silent_for: float | None = None
    stalled: bool = False
    holds_loop_for: float | None = None
    advice: str | None = None


class Hour(Answer):
    """What was done in the hour that begins at ``hour``."""

    hour: dt.datetime
    enqueued: int = 0
    finished: int = 0
    failed: int = 0


class Stats(Answer):
    """Jobs by queue and state, and the last 24 hours."""

    queues: dict[str, dict[str, int]] = {}
    throughput_per_hour: list[Hour] = []


class Health(Answer, rename={"database_available": "databaseAvailable"}):
    """How the server is. ``status`` is ``healthy`` or ``unhealthy``."""

    status: str
    name: str = ""
    version: str = ""
    database_available: bool = False


# ------------------------------------------------------------------------------------------------------------- the errors


class ClientError(MiniFlowError):
    """Base of what a client raises when a call did not do what it was asked for.

    ``detail`` says why, in a sentence. The others are None where they do not apply: ``status`` of HTTP, ``code`` (a stable word
    for programs), ``field`` (the part of the request that is wrong), ``request_id`` (what the server's log has it under).
    ``submitted`` has the ids that ``submit_many`` had been given for the jobs before the one that failed.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        code: str | None = None,
        field: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail, self.status, self.code, self.field, self.request_id = detail, status, code, field, request_id
        self.submitted: list[str] = []

    def __str__(self) -> str:
        return self.detail


class ServerUnreachable(ClientError):
    """Nobody answered: no server there, or the connection was cut, or it took too long. Whether the call was done is unknown."""


class Unauthorized(ClientError):
    """The token is missing or wrong (401), or the server will not be used from here (403)."""


class NotFound(ClientError):
    """There is no such job, queue or task (404)."""


class Refused(ClientError):
    """It cannot be done in the state the job is in, or the idempotency key belongs to another submit (409)."""


class Invalid(ClientError):
    """The request is wrong, or over a limit (400, 413, 422). ``field`` is its path, such as ``payload.name`` or ``[3].task``."""


class Busy(ClientError):
    """The server, or a proxy before it, cannot take the request now. ``retry_after`` says in how many seconds, if it does."""

    retry_after: float | None = None


class QueueFull(Busy):
    """As many jobs wait as the server allows (429)."""


class ServerError(ClientError):
    """Something went wrong inside the server (5xx); ``request_id`` finds it in its log. 507 is a full disk."""

    def __str__(self) -> str:
        return f"{self.detail} (request id {self.request_id})" if self.request_id else self.detail


class ResultNotReady(ClientError, TimeoutError):
    """The job has not ended in the time given. ``job`` is as it was then."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.id} has not ended yet, it is {job.status}")
        self.job = job
        self.args = (job,)  # what pickle makes it again of


class NoResult(ClientError):
    """The job has ended, and not well. Raised as one of the three classes below."""

    def __init__(self, job: Job) -> None:
        super().__init__(
            f"job {job.id} ({job.task}) is {job.status}{': ' if job.last_error else ''}{job.last_error or ''}"
        )
        self.job, self.error = job, job.last_error
        self.args = (job,)


class JobFailed(NoResult):
    """It failed for good and is a dead letter. ``error`` is that of its last attempt."""


class JobWasCancelled(NoResult):
    """Somebody cancelled it. Not ``miniflow.JobCancelled``, which is raised inside a running task when it is cancelled itself."""


class JobExpired(NoResult):
    """It waited longer than its ttl, and never ran."""


ENDINGS: Mapping[str, type[NoResult]] = {State.CANCELLED: JobWasCancelled, State.EXPIRED: JobExpired}


def result_of(job: Job) -> Any:
    """What the job returned. JobFailed, JobWasCancelled or JobExpired if it did not end well; ResultNotReady if it goes on."""
    if job.status == State.COMPLETED:
        return job.result
    if not job.ended:
        raise ResultNotReady(job)
    raise ENDINGS.get(job.status, JobFailed)(job)


# ------------------------------------------------------------------------------------------------------- from the wire


class Problem(msgspec.Struct):
    """Problem details (RFC 9457), or the classic ``{"detail"}``."""

    detail: str
    code: str | None = None
    field: str | None = None
    request_id: str | None = None


BY_STATUS: Mapping[int, type[ClientError]] = {
    HTTPStatus.BAD_REQUEST: Invalid,
    HTTPStatus.UNAUTHORIZED: Unauthorized,
    HTTPStatus.FORBIDDEN: Unauthorized,
    HTTPStatus.CONFLICT: Refused,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: Invalid,
    HTTPStatus.UNPROCESSABLE_ENTITY: Invalid,
    HTTPStatus.BAD_GATEWAY: Busy,
    HTTPStatus.SERVICE_UNAVAILABLE: Busy,
    HTTPStatus.GATEWAY_TIMEOUT: Busy,
}


def error_of(answer: httpx.Response) -> ClientError:
    """The error that an answer with another status than 2xx stands for."""
    status = answer.status_code
    try:
        problem = msgspec.json.decode(answer.content, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = Problem(_in_short(answer))
    kind = BY_STATUS.get(status, ServerError if status >= 500 else ClientError)
    if status == HTTPStatus.NOT_FOUND and problem.code == "not_found":
        kind = NotFound  # not so for a route that is not there: an older server, or no MiniFlow at all
    elif status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = QueueFull if problem.code == "queue_full" else Busy
    error = kind(
        problem.detail,
        status=status,
        code=problem.code,
        field=problem.field,
        request_id=problem.request_id or answer.headers.get("x-request-id"),
    )
    if isinstance(error, Busy):
        error.retry_after = _seconds(answer.headers.get("retry-after"))
    return error


def decoded(answer: httpx.Response, kind: type[T]) -> T:
    """The body of a 2xx answer. ClientError if it is something else: another program answers at that address."""
    return decoded_text(answer.content, kind, answer)


def decoded_text(text: bytes | str, kind: type[T], answer: httpx.Response) -> T:
    """The same, of a part of the answer."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ClientError(
            f"{_asked(answer)} was not answered as a MiniFlow does ({exc}); is the url right?",
            status=answer.status_code,
        ) from None


def shown(url: httpx.URL) -> str:
    """An address without the name and password that may be in it."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}{url.raw_path.decode('ascii')}"


def _asked(answer: httpx.Response) -> str:
    return f"{answer.request.method} {shown(answer.request.url)}"


def _in_short(answer: httpx.Response) -> str:
    where = f"{_asked(answer)}: {answer.status_code} {answer.reason_phrase}"
    if answer.has_redirect_location:
        return f"{where}, moved to {answer.headers['location']}; give that place as the url"
    text = " ".join(answer.text.split())[:_DETAIL_CHARS_MAX]
    return f"{where}: {text}" if text and not text.startswith("<") else where


def _seconds(text: str | None) -> float | None:
    try:
        return max(float(text), 0.0) if text else None
    except ValueError:  # a date, which our server does not send
        return None
