"""The parts of the running system over HTTP: queues, tasks, workers; what there is to see of them, and what can be changed."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
from litestar import Response, get, patch, post

from miniflow import limits
from miniflow.clock import rfc3339
from miniflow.control import PoolSizeChange, QueueChange, TaskChange, change_queue, change_task
from miniflow.errors import InvalidRequest, NotFound
from miniflow.queries import QueueInfo
from miniflow.registry import ON_STALL_DEFAULT, TaskSpec, valid_queue_name
from miniflow.retry import DEFAULT_MAX_RETRIES, RetryPolicy
from miniflow.roster import EventLoop
from miniflow.rule_options import Debounce, Unique
from miniflow.web.api import AnyRequest, respond
from miniflow.web.backend import Backend
from miniflow.web.problems import decoded

_decode_queue = msgspec.json.Decoder(QueueChange).decode
_decode_task = msgspec.json.Decoder(TaskChange).decode
_decode_pool = msgspec.json.Decoder(PoolSizeChange).decode


@get("/api/v1/queues", summary="The queues, and what lies in them")
async def list_queues(backend: Backend) -> Response[bytes]:
    """How many jobs of each queue are in which state, by name. ``oldest_queued_age`` is how many seconds the one that has waited
    longest has been ready (but for those that wait for a slot of a key or a task); null where none waits. ``served`` says whether
    this server's workers take jobs from it: not while it is paused.

    A queue is there from its first job on, and before that if a task or the setting ``queues`` names it, or if it is limited.
    """
    queues = await backend.queries.queues(_named(backend), backend.clock.now_ms())
    return respond({"items": [_with_service(backend, queue) for queue in queues]})


@get("/api/v1/queues/{name:path}", summary="One queue")
async def get_queue(request: AnyRequest, name: Path, backend: Backend) -> Response[bytes]:
    """As in the list of queues."""
    return respond(await _queue(backend, _name(request, "/api/v1/queues/", name), _named(backend)))


@patch("/api/v1/queues/{name:path}", summary="Pause a queue, resume it, limit it")
async def patch_queue(request: AnyRequest, name: Path, backend: Backend) -> Response[bytes]:
    """Of a paused queue no job begins; those that run go on. ``concurrency`` is how many of its jobs run at once, ``rate`` how
    many begin in a period, such as ``10/minute``; null takes a limit away. What is left out stays. It holds at once, and over a
    restart.

    A queue need not have had a job: it can be paused or limited before the first."""
    change = decoded(_decode_queue, await request.body())
    return respond(await _change(backend, _name(request, "/api/v1/queues/", name), change))


@post("/api/v1/queues/{name:path}", summary="Pause or resume a queue by a verb", status_code=200)
async def pause_or_resume(request: AnyRequest, name: Path, backend: Backend) -> Response[bytes]:
    """``POST /api/v1/queues/NAME/pause`` and ``…/resume``: the same as a PATCH of ``paused``. Doing it twice is fine."""
    queue, slash, verb = _name(request, "/api/v1/queues/", name).rpartition("/")
    if not slash or verb not in ("pause", "resume"):
        raise NotFound("verb", f"{verb}; a POST to a queue ends in /pause or /resume")
    return respond(await _change(backend, queue, QueueChange(paused=verb == "pause")))


async def _change(backend: Backend, queue: str, change: QueueChange) -> QueueInfo:
    if not valid_queue_name(queue):
        raise InvalidRequest("name", "is 1 to 100 letters, digits and _ . : / -")
    await backend.verb(change_queue(backend.jobs, queue, change))
    return await _queue(
        backend, queue, _named(backend) | {queue}
    )  # also where nothing is left of it that a list would show


async def _queue(backend: Backend, wanted: str, named: set[str]) -> QueueInfo:
    for queue in await backend.queries.queues(named, backend.clock.now_ms()):
        if queue.name == wanted:
            return _with_service(backend, queue)
    raise NotFound("queue", wanted)


def _named(backend: Backend) -> set[str]:
    limited = backend.jobs.rules.limited("queue")
    return {*backend.settings.queue_order, *(spec.queue for spec in backend.registry), *limited} - {"*"}


def _with_service(backend: Backend, queue: QueueInfo) -> QueueInfo:
    limit = backend.jobs.rules.of("queue", queue.name)
    queue.served = backend.roster.slots.thread > 0 and backend.jobs.claims.serves(queue.name)
    queue.paused_at, queue.concurrency, queue.rate = rfc3339(limit.paused_at), limit.concurrency, limit.rate
    return queue


class TaskInfo(msgspec.Struct, kw_only=True):
    """A task that can be submitted, and what holds for its jobs where a submit does not say. Times are seconds; null: no
    limit, no rule. ``heartbeat`` and ``on_stall``: silent for how long a job is stalled, and what happens then. ``limits`` has
    [warn, kill] for each limit of the task's own, in bytes, seconds or a number of files. ``concurrency`` is how many of its jobs
    run at once, ``rate`` how many begin in a period; by the fields ``concurrency_key`` only ``concurrency_per_key`` run at once,
    ``on_conflict`` says what becomes of others. A ``durable`` one is a workflow function: it is started, and not submitted."""

    name: str
    description: str
    queue: str
    priority: int
    executor: str
    max_retries: int
    timeout: float | None
    ttl: float | None
    heartbeat: float | None
    on_stall: str | None
    retry: dict[str, Any]
    concurrency: int | None
    rate: str | None
    concurrency_key: list[str] | None
    concurrency_per_key: int | None
    on_conflict: str
    unique: Unique | None
    debounce: Debounce | None
    module: str | None
    file: str
    schema: dict[str, Any]
    limits: dict[str, list[float | None]] | None
    durable: bool = False


@get("/api/v1/tasks", summary="The tasks that can be submitted")
async def list_tasks(backend: Backend) -> Response[bytes]:
    """By name, each with the JSON Schema of its payload and its defaults."""
    return respond({"items": [_task(backend, spec) for spec in backend.registry]})


@get("/api/v1/tasks/{name:path}", summary="One task")
async def get_task(request: AnyRequest, name: Path, backend: Backend) -> Response[bytes]:
    """As in the list of tasks."""
    wanted = _name(request, "/api/v1/tasks/", name)
    spec = backend.registry.find(wanted)
    if spec is None:
        raise NotFound("task", wanted)
    return respond(_task(backend, spec))


@patch("/api/v1/tasks/{name:path}", summary="Limit a task")
async def patch_task(request: AnyRequest, name: Path, backend: Backend) -> Response[bytes]:
    """``concurrency`` is how many of its jobs run at once, ``rate`` how many begin in a period, such as ``10/minute``; it goes
    before what its author wrote, and null brings that back. What is left out stays. It holds at once, and over a restart."""
    wanted = _name(request, "/api/v1/tasks/", name)
    change = decoded(_decode_task, await request.body())
    spec = backend.registry.find(wanted)
    if spec is None:
        raise NotFound("task", wanted)
    await backend.verb(change_task(backend.jobs, wanted, change))
    return respond(_task(backend, spec))


def _task(backend: Backend, spec: TaskSpec) -> TaskInfo:
    rules, limit = spec.rules, backend.jobs.rules.task_limit(spec.name)
    timeout_s = backend.settings.timeout if spec.timeout_s is None and not spec.durable else spec.timeout_s
    return TaskInfo(
        name=spec.name,
        description=spec.description,
        queue=spec.queue,
        priority=spec.priority,
        executor=spec.executor,
        max_retries=DEFAULT_MAX_RETRIES if spec.max_retries is None else spec.max_retries,
        timeout=timeout_s or None,
        ttl=spec.ttl_s,
        heartbeat=spec.heartbeat_s or None,
        on_stall=(spec.on_stall or ON_STALL_DEFAULT) if spec.heartbeat_s else None,
        retry=msgspec.structs.asdict(spec.retry or RetryPolicy()),
        concurrency=limit.at_once,
        rate=None if limit.rate is None else limit.rate.text,
        concurrency_key=list(rules.key_fields) or None,
        concurrency_per_key=rules.per_key if rules.key_fields else None,
        on_conflict=rules.on_conflict,
        unique=rules.unique,
        debounce=rules.debounce,
        module=None if spec.program else getattr(inspect.unwrap(spec.function), "__module__", None),
        file=spec.source,
        schema=spec.binding.json_schema(),
        limits=limits.shown(spec.limits),
        durable=spec.durable,
    )


@get("/api/v1/workers", summary="Who works at what")
async def list_workers(backend: Backend) -> Response[bytes]:
    """Each worker thread and each slot for a job in a process, busy or not, and each `async def` job that runs. ``slots`` is how
    many jobs may run at once.

    ``event_loop`` says how many seconds late the loop that answers requests was at the last look (``lag``) and at most in the
    last minute (``lag_max``), and which tasks have held it up, for how many seconds in all (``held_by``): those that compute in
    a thread. ``async_loop`` says the same of the loop that all `async def` jobs share, measured while there are some: there
    ``held_by`` are those that have it for long without an await. A worker that runs such a job says so too, with advice.
    """
    return _workers(backend)


def _workers(backend: Backend) -> Response[bytes]:
    lag = backend.metrics.lag
    use = backend.metrics.use()
    loop = EventLoop(lag=lag.last_s, lag_max=lag.max_s, held_by=use.held_s)
    of_jobs = EventLoop(lag=use.async_loop.lag_s, lag_max=use.async_loop.lag_max_s, held_by=use.async_loop.held_s)
    roster = backend.roster
    return respond({"items": roster.workers(), "slots": roster.slots, "event_loop": loop, "async_loop": of_jobs})


@patch("/api/v1/workers", summary="Change how many jobs run at once")
async def patch_workers(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """``workers`` is how many threads there are to be, ``async_slots`` how many coroutines, ``processes`` how many jobs with
    processes of their own. More are there at once; one that is too many ends when its job has. It holds over a restart, until the
    setting of the same name is changed."""
    await backend.verb(backend.pool.resize(decoded(_decode_pool, await request.body())))
    return _workers(backend)


def _name(request: AnyRequest, before: str, collapsed: Path) -> str:
    """The rest of the path as it was sent. A name may have slashes in it, and "a//b", "a/./b" and "a/" are other names than those
    which Litestar makes of them ("a/b" and "a")."""
    _, found, name = unquote(request.scope["raw_path"].decode("latin-1")).partition(before)
    return name if found else collapsed.as_posix().removeprefix("/")


ROUTES: list[Any] = [
    list_queues,
    get_queue,
    patch_queue,
    pause_or_resume,
    list_tasks,
    get_task,
    patch_task,
    list_workers,
    patch_workers,
]
