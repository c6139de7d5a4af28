"""``AsyncClient``: jobs from Python with ``await``. It has the methods of ``Client``, and what both say is in ``calls.py``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx
from httpx_sse import EventSource, ServerSentEvent

from miniflow import calls
from miniflow.answers import (
    UNSET,
    Attempt,
    BulkResult,
    Event,
    Explanation,
    Health,
    Job,
    LogLine,
    Page,
    QueueInfo,
    Stats,
    TaskInfo,
    Unset,
    WorkerInfo,
    shown,
)
from miniflow.calls import Filter, JobRef, Submission, SubmitOptions
from miniflow.exchange import (
    REPEATS,
    Ask,
    Flow,
    Give,
    Items,
    Read,
    Step,
    http_options,
    one,
    request_options,
    resume,
)
from miniflow.schedule_client import AsyncSchedules
from miniflow.trace_answers import Export, Trace
from miniflow.workflow_client import AsyncWorkflows

T = TypeVar("T")
Jobs = list[Job]
Ids = list[str]
Attempts = list[Attempt]
Queues = list[QueueInfo]
Tasks = list[TaskInfo]
Workers = list[WorkerInfo]


class AsyncClient:
    """A MiniFlow server, as seen from asyncio: ``Client`` with ``await``, ``async with`` and ``async for``.

    Tasks may share one, on one event loop. Cancelling a call leaves it at once; a submit under way may have been accepted then.
    An ``async for`` that is left early keeps its connection until its iterator is collected; ``contextlib.aclosing`` gives it
    back there and then.
    """

    def __init__(
        self, url: str | None = None, *, token: str | None = None, timeout: float = 30.0, repeats: int = REPEATS
    ) -> None:
        self._http = httpx.AsyncClient(**http_options(url, token, timeout))
        self._timeout_s, self._repeats = timeout, repeats
        self.schedules = AsyncSchedules(self._run, self._iterate)
        self.workflows = AsyncWorkflows(self._run, self._iterate, repeats)

    def __repr__(self) -> str:
        return f"<AsyncClient {self.url} [{'closed' if self._http.is_closed else 'open'}]>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. The client cannot be used after it."""
        await self._http.aclose()

    @property
    def url(self) -> str:
        """The server's address."""
        return shown(self._http.base_url).rstrip("/")

    # ------------------------------------------------------------------------------------------------------- submitting

    async def submit(
        self,
        task: str,
        payload: Any = None,
        *,
        repeats: int | None = None,
        request_id: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Job:
        """See ``Client.submit``."""
        return await self._run(
            calls.submit(task, payload, options, repeats=self._tries(repeats), request_id=request_id)
        )

    async def submit_many(
        self,
        jobs: Iterable[Submission],
        *,
        repeats: int | None = None,
        request_id: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Ids:
        """See ``Client.submit_many``."""
        return await self._run(
            calls.submit_many(jobs, repeats=self._tries(repeats), request_id=request_id, progress=progress)
        )

    async def run(
        self,
        task: str,
        payload: Any = None,
        *,
        wait: float | None = None,
        repeats: int | None = None,
        request_id: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Any:
        """See ``Client.run``."""
        return await self._run(
            calls.run(task, payload, options, wait_s=wait, repeats=self._tries(repeats), request_id=request_id)
        )

    # --------------------------------------------------------------------------------------------------------- one job

    async def get(self, job: JobRef) -> Job:
        """See ``Client.get``."""
        return await self._run(calls.get(job))

    async def wait(self, job: JobRef, timeout: float | None = None) -> Job:
        """See ``Client.wait``."""
        return await self._run(calls.wait(job, timeout))

    async def wait_all(self, jobs: Iterable[JobRef], timeout: float | None = None) -> Jobs:
        """See ``Client.wait_all``."""
        return await self._run(calls.wait_all(jobs, timeout))

    async def result(self, job: JobRef, timeout: float | None = 0) -> Any:
        """See ``Client.result``."""
        return await self._run(calls.result(job, timeout))

    async def explain(self, job: JobRef) -> Explanation:
        """See ``Client.explain``."""
        return await self._run(one(Explanation, calls.job_path(job, "/explain")))

    async def trace(self, job: JobRef) -> Trace:
        """See ``Client.trace``."""
        return await self._run(calls.trace(job))

    async def otlp(self, job: JobRef) -> Export:
        """See ``Client.otlp``."""
        return await self._run(calls.otlp(job))

    async def attempts(self, job: JobRef) -> Attempts:
        """See ``Client.attempts``."""
        return await self._run(calls.items(Attempt, calls.job_path(job, "/attempts")))

    async def cancel(self, job: JobRef) -> Job:
        """See ``Client.cancel``."""
        return await self._run(calls.verb("cancel", job))

    async def retry(self, job: JobRef) -> Job:
        """See ``Client.retry``."""
        return await self._run(calls.verb("retry", job))

    async def delete(self, job: JobRef) -> None:
        """See ``Client.delete``."""
        await self._run(calls.delete(job))

    def logs(
        self,
        job: JobRef,
        *,
        follow: bool = False,
        level: str | None = None,
        attempt: int | None = None,
        after_id: int = 0,
        tail: int | None = None,
    ) -> AsyncGenerator[LogLine, None]:
        """See ``Client.logs``."""
        return self._iterate(calls.logs(job, follow=follow, level=level, attempt=attempt, after_id=after_id, tail=tail))

    def events(
        self, job: JobRef | None = None, *, after: str | None = None, **which: Unpack[Filter]
    ) -> AsyncGenerator[Event, None]:
        """See ``Client.events``."""
        return self._iterate(calls.events(job, which, after))

    # --------------------------------------------------------------------------------------------------------- many jobs

    def list(
        self, *, sort: str | None = None, limit: int | None = None, **which: Unpack[Filter]
    ) -> AsyncGenerator[Job, None]:
        """See ``Client.list``."""
        return self._iterate(calls.all_pages(which, sort=sort, limit=limit))

    async def page(
        self, *, sort: str | None = None, limit: int = 50, cursor: str | None = None, **which: Unpack[Filter]
    ) -> Page:
        """See ``Client.page``."""
        return await self._run(calls.page(which, sort=sort, limit=limit, cursor=cursor))

    async def cancel_many(
        self, ids: Iterable[JobRef] | None = None, *, all: bool = False, dry_run: bool = False, **which: Unpack[Filter]
    ) -> BulkResult:
        """See ``Client.cancel_many``."""
        return await self._run(calls.bulk("cancel", ids, all, dry_run, which))

    async def retry_many(
        self, ids: Iterable[JobRef] | None = None, *, all: bool = False, dry_run: bool = False, **which: Unpack[Filter]
    ) -> BulkResult:
        """See ``Client.retry_many``."""
        return await self._run(calls.bulk("retry", ids, all, dry_run, which))

    async def delete_many(
        self, ids: Iterable[JobRef] | None = None, *, all: bool = False, dry_run: bool = False, **which: Unpack[Filter]
    ) -> BulkResult:
        """See ``Client.delete_many``."""
        return await self._run(calls.bulk("delete", ids, all, dry_run, which))

    def dead_letters(
        self, *, queue: str | None = None, task: str | None = None, limit: int | None = None
    ) -> AsyncGenerator[Job, None]:
        """See ``Client.dead_letters``."""
        return self._iterate(calls.dead_letters(queue=queue, task=task, limit=limit))

    async def replay(self, *, queue: str | None = None, task: str | None = None) -> int:
        """See ``Client.replay``."""
        return await self._run(calls.replay(queue=queue, task=task))

    # ------------------------------------------------------------------------------------------------------- the server

    async def queues(self) -> Queues:
        """See ``Client.queues``."""
        return await self._run(calls.items(QueueInfo, "/api/v1/queues"))

    async def queue(self, name: str) -> QueueInfo:
        """See ``Client.queue``."""
        return await self._run(one(QueueInfo, calls.named("/api/v1/queues", name)))

    async def pause(self, queue: str) -> QueueInfo:
        """See ``Client.pause``."""
        return await self._run(calls.change(QueueInfo, calls.named("/api/v1/queues", queue), {"paused": True}))

    async def resume(self, queue: str) -> QueueInfo:
        """See ``Client.resume``."""
        return await self._run(calls.change(QueueInfo, calls.named("/api/v1/queues", queue), {"paused": False}))

    async def limit_queue(
        self, queue: str, *, concurrency: int | Unset | None = UNSET, rate: str | Unset | None = UNSET
    ) -> QueueInfo:
        """See ``Client.limit_queue``."""
        limits = {"concurrency": concurrency, "rate": rate}
        return await self._run(calls.change(QueueInfo, calls.named("/api/v1/queues", queue), limits))

    async def limit_task(
        self, task: str, *, concurrency: int | Unset | None = UNSET, rate: str | Unset | None = UNSET
    ) -> TaskInfo:
        """See ``Client.limit_task``."""
        limits = {"concurrency": concurrency, "rate": rate}
        return await self._run(calls.change(TaskInfo, calls.named("/api/v1/tasks", task), limits))

    async def resize(
        self, *, workers: int | None = None, async_slots: int | None = None, processes: int | None = None
    ) -> Workers:
        """See ``Client.resize``."""
        return await self._run(calls.resize(workers, async_slots, processes))

    async def tasks(self) -> Tasks:
        """See ``Client.tasks``."""
        return await self._run(calls.items(TaskInfo, "/api/v1/tasks"))

    async def task(self, name: str) -> TaskInfo:
        """See ``Client.task``."""
        return await self._run(one(TaskInfo, calls.named("/api/v1/tasks", name)))

    async def workers(self) -> Workers:
        """See ``Client.workers``."""
        return await self._run(calls.items(WorkerInfo, "/api/v1/workers"))

    async def stats(self) -> Stats:
        """See ``Client.stats``."""
        return await self._run(one(Stats, "/api/v1/stats"))

    async def health(self) -> Health:
        """See ``Client.health``."""
        return await self._run(calls.health())

    async def ready(self) -> bool:
        """See ``Client.ready``."""
        return await self._run(calls.ready())

    # -------------------------------------------------------------------------------------------------------- the transport

    def _tries(self, repeats: int | None) -> int:
        return self._repeats if repeats is None else repeats

    async def _run(self, flow: Flow[T]) -> T:
        """Carry a call out to its end."""
        wire = _Wire(self._http, self._timeout_s)
        try:
            step = next(flow)
            while True:
                step = resume(flow, await wire.do(step))
        except StopIteration as done:
            value: T = done.value
            return value

    async def _iterate(self, flow: Items[T]) -> AsyncGenerator[T, None]:
        """Carry a call out as far as its items are asked for."""
        wire = _Wire(self._http, self._timeout_s)
        try:
            step = next(flow)
            while True:
                outcome = None
                if isinstance(step, Give):
                    yield step.item
                else:
                    outcome = await wire.do(step)
                step = resume(flow, outcome)
        except StopIteration:
            return
        finally:
            await wire.close()


class _Wire:
    """Does what the steps of one call say."""

    def __init__(self, http: httpx.AsyncClient, timeout_s: float) -> None:
        self._http, self._timeout_s = http, timeout_s
        self._stream: httpx.Response | None = None
        self._events: AsyncGenerator[ServerSentEvent, None] | None = None

    async def do(self, step: Step) -> Any:
        """What comes of a step, or the httpx.TransportError that kept it from being done."""
        try:
            if isinstance(step, Ask):
                return await self._ask(step)
            if isinstance(step, Read):
                return await anext(self._events, None) if self._events is not None else None
        except httpx.TransportError as exc:
            return exc
        await asyncio.sleep(step.seconds)
        return None

    async def _ask(self, ask: Ask) -> httpx.Response:
        await self.close()
        request = self._http.build_request(**request_options(ask, self._timeout_s))
        answer = await self._http.send(request, stream=ask.stream)
        if ask.stream and answer.is_success:
            self._stream, self._events = answer, EventSource(answer).aiter_sse()
        else:
            await answer.aread()
        return answer

    async def close(self) -> None:
        """Leave the stream, if there is one."""
        if self._events is not None:
            await self._events.aclose()
            self._events = None
        if self._stream is not None:
            await self._stream.aclose()
            self._stream = None
