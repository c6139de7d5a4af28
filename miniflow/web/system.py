"""The parts of the running system over HTTP: queues, tasks, workers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
from litestar import Response, get

from miniflow import limits
from miniflow.errors import NotFound
from miniflow.queries import QueueInfo
from miniflow.registry import ON_STALL_DEFAULT, TaskSpec
from miniflow.retry import DEFAULT_MAX_RETRIES, RetryPolicy
from miniflow.roster import EventLoop
from miniflow.web.api import AnyRequest, respond
from miniflow.web.backend import Backend


@get("/api/v1/queues", summary="The queues, and what lies in them")
async def list_queues(backend: Backend) -> Response[bytes]:
    """How many jobs of each queue are in which state, by name. ``oldest_queued_age`` is how many seconds the one that has waited
    longest has been ready; null where none waits. ``served`` says whether this server's workers take jobs from it.

    A queue is there from its first job on, and before that if a task or the setting ``queues`` names it.
    """
    queues = await backend.queries.queues(_named(backend), backend.clock.now_ms())
    return respond({"items": [_with_service(backend, queue) for queue in queues]})


@get("/api/v1/queues/{name:path}", summary="One queue")
async def get_queue(request: AnyRequest, name: Path, backend: Backend) -> Response[bytes]:
    """As in the list of queues."""
    wanted = _name(request, "/api/v1/queues/", name)
    for queue in await backend.queries.queues(_named(backend), backend.clock.now_ms()):
        if queue.name == wanted:
            return respond(_with_service(backend, queue))
    raise NotFound("queue", wanted)


def _named(backend: Backend) -> set[str]:
    return {*backend.settings.queue_order, *(spec.queue for spec in backend.registry)} - {"*"}


def _with_service(backend: Backend, queue: QueueInfo) -> QueueInfo:
    order = backend.settings.queue_order
    queue.served = backend.settings.workers > 0 and (queue.name in order or "*" in order)
    return queue


class TaskInfo(msgspec.Struct, kw_only=True):
    """A task that can be submitted, and what holds for its jobs where a submit does not say. Times are seconds; null: no
    limit. ``heartbeat`` and ``on_stall``: silent for how long a job is stalled, and what happens then. ``limits`` has
    [warn, kill] for each limit of the task's own, in bytes, seconds or a number of files."""

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
    module: str | None
    file: str
    schema: dict[str, Any]
    limits: dict[str, list[float | None]] | None


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


def _task(backend: Backend, spec: TaskSpec) -> TaskInfo:
    timeout_s = backend.settings.timeout if spec.timeout_s is None else spec.timeout_s
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
        module=None if spec.program else getattr(inspect.unwrap(spec.function), "__module__", None),
        file=spec.source,
        schema=spec.binding.json_schema(),
        limits=limits.shown(spec.limits),
    )


@get("/api/v1/workers", summary="Who works at what")
async def list_workers(backend: Backend) -> Response[bytes]:
    """Each worker thread and each slot for a job in a process, busy or not, and each `async def` job that runs. ``slots`` is how
    many jobs may run at once.

    ``event_loop`` says how many seconds late the loop that answers requests was at the last look (``lag``) and at most in the
    last minute (``lag_max``), and which tasks have held it up, for how many seconds in all (``held_by``): those that compute in
    a thread. A worker that runs such a job says so too, with advice.
    """
    lag = backend.metrics.lag
    loop = EventLoop(lag=lag.last_s, lag_max=lag.max_s, held_by=backend.metrics.use().held_s)
    return respond({"items": backend.roster.workers(), "slots": backend.roster.slots, "event_loop": loop})


def _name(request: AnyRequest, before: str, collapsed: Path) -> str:
    """The rest of the path as it was sent. A name may have slashes in it, and "a//b", "a/./b" and "a/" are other names than those
    which Litestar makes of them ("a/b" and "a")."""
    _, found, name = unquote(request.scope["raw_path"].decode("latin-1")).partition(before)
    return name if found else collapsed.as_posix().removeprefix("/")


ROUTES: list[Any] = [list_queues, get_queue, list_tasks, get_task, list_workers]
