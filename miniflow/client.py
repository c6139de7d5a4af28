"""``Client``: jobs from Python, over HTTP. Its twin for asyncio is in ``async_client.py``; what both say is in ``calls.py``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
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
from miniflow.schedule_client import Schedules
from miniflow.trace_answers import Export, Trace
from miniflow.workflow_client import Workflows

T = TypeVar("T")
Jobs = list[Job]
Ids = list[str]
Attempts = list[Attempt]
Queues = list[QueueInfo]
Tasks = list[TaskInfo]
Workers = list[WorkerInfo]


class Client:
    """A MiniFlow server, as seen from Python.

    ``url`` is its address, else the variable MINIFLOW_URL, else http://127.0.0.1:8000; ``token`` its token, else MINIFLOW_TOKEN.
    ``timeout`` is how many seconds an answer may take. Threads may share a client, and should: it keeps its connections.

    What fails raises a ``ClientError``: ServerUnreachable, Unauthorized, NotFound, Refused, Invalid, Busy (QueueFull is one),
    ServerError. Wherever a job is meant, its id or a Job will do.

    **Submits are repeated, safely**: where the connection broke, no answer came in time, or the server said 429, 502, 503 or 504,
    up to ``repeats`` times, after 0.2, 0.4, 0.8 … seconds (some 6 in all), and as much later as a Retry-After says (one that says
    more than 30 s is the end of it). For this each job gets an idempotency key if it has none, so there will be one job however
    often it was sent. ``repeats=0`` sends once and without a key, which is less work for the server. Other calls ask once.
    """

    def __init__(
        self, url: str | None = None, *, token: str | None = None, timeout: float = 30.0, repeats: int = REPEATS
    ) -> None:
        self._http = httpx.Client(**http_options(url, token, timeout))
        self._timeout_s, self._repeats = timeout, repeats
        self.schedules = Schedules(self._run, self._iterate)
        self.workflows = Workflows(self._run, self._iterate, repeats)

    def __repr__(self) -> str:
        return f"<Client {self.url} [{'closed' if self._http.is_closed else 'open'}]>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The client cannot be used after it."""
        self._http.close()

    @property
    def url(self) -> str:
        """The server's address."""
        return shown(self._http.base_url).rstrip("/")

    # ------------------------------------------------------------------------------------------------------- submitting

    def submit(
        self,
        task: str,
        payload: Any = None,
        *,
        repeats: int | None = None,
        request_id: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Job:
        """Submit a job; when this returns, it is on the server's disk.

        ``payload`` is whatever msgspec can make JSON of, TypeError for the rest. ``options`` are those of SubmitOptions, such as
        ``queue`` or ``delay``. For ``repeats`` see the class; ``request_id`` is kept with the job and shown in its log.
        """
        return self._run(calls.submit(task, payload, options, repeats=self._tries(repeats), request_id=request_id))

    def submit_many(
        self,
        jobs: Iterable[Submission],
        *,
        repeats: int | None = None,
        request_id: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Ids:
        """Submit jobs given as ``{"task": …, "payload": …, "queue": …}`` or ``(task, payload)``; their ids, in that order.

        They go in parts of 1,000 (fewer if the server takes fewer), each accepted as a whole or not at all; after each
        ``progress`` is called with the number accepted so far. An error has in ``submitted`` the ids of the parts before it.
        """
        return self._run(
            calls.submit_many(jobs, repeats=self._tries(repeats), request_id=request_id, progress=progress)
        )

    def run(
        self,
        task: str,
        payload: Any = None,
        *,
        wait: float | None = None,
        repeats: int | None = None,
        request_id: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Any:
        """Submit a job, wait for its end (at most ``wait`` seconds, else for ever), and return its result; see ``result``."""
        return self._run(
            calls.run(task, payload, options, wait_s=wait, repeats=self._tries(repeats), request_id=request_id)
        )

    # --------------------------------------------------------------------------------------------------------- one job

    def get(self, job: JobRef) -> Job:
        """The job as it is now. NotFound if there is none."""
        return self._run(calls.get(job))

    def wait(self, job: JobRef, timeout: float | None = None) -> Job:
        """The job when it has ended, well or not. ResultNotReady (a TimeoutError) after ``timeout`` seconds.

        It outlasts a restart of the server: ServerUnreachable only when the timeout is over and nobody answers, without a timeout
        when nobody has answered for a minute.
        """
        return self._run(calls.wait(job, timeout))

    def wait_all(self, jobs: Iterable[JobRef], timeout: float | None = None) -> Jobs:
        """All of these jobs when the last has ended, in the order given. ``timeout`` is for all together; see ``wait``."""
        return self._run(calls.wait_all(jobs, timeout))

    def result(self, job: JobRef, timeout: float | None = 0) -> Any:
        """What the job returned, waiting for it up to ``timeout`` seconds (None: for ever).

        ResultNotReady if it has not ended; JobFailed (``error`` says why), JobWasCancelled, JobExpired if it ended without one.
        """
        return self._run(calls.result(job, timeout))

    def explain(self, job: JobRef) -> Explanation:
        """Why the job does not run yet, or what ended it, and what happens next: in words, and with the ids that it is about."""
        return self._run(one(Explanation, calls.job_path(job, "/explain")))

    def trace(self, job: JobRef) -> Trace:
        """What took how long: the job and its attempts; of a step, its part of the workflow's trace."""
        return self._run(calls.trace(job))

    def otlp(self, job: JobRef) -> Export:
        """The same as the JSON of OpenTelemetry, for the ``/v1/traces`` of a collector."""
        return self._run(calls.otlp(job))

    def attempts(self, job: JobRef) -> Attempts:
        """Each execution of the job, oldest first, with its error and traceback."""
        return self._run(calls.items(Attempt, calls.job_path(job, "/attempts")))

    def cancel(self, job: JobRef) -> Job:
        """Cancel a job. One that runs is asked to stop: then it is still ``running`` here. Refused if it has ended."""
        return self._run(calls.verb("cancel", job))

    def retry(self, job: JobRef) -> Job:
        """Run a dead letter again, or one that waits for its next attempt now. Refused in other states."""
        return self._run(calls.verb("retry", job))

    def delete(self, job: JobRef) -> None:
        """Delete a job that has ended, with its log and attempts. Refused if it has not."""
        self._run(calls.delete(job))

    def logs(
        self,
        job: JobRef,
        *,
        follow: bool = False,
        level: str | None = None,
        attempt: int | None = None,
        after_id: int = 0,
        tail: int | None = None,
    ) -> Iterator[LogLine]:
        """The lines of the job's log, oldest first: those above ``after_id``, or the last ``tail``; of one level, of one attempt.

        With ``follow`` also those to come, until the job ends. Where the connection breaks or the server restarts, it goes on
        after the last line seen; ServerUnreachable if nobody answers for a minute.
        """
        return self._iterate(calls.logs(job, follow=follow, level=level, attempt=attempt, after_id=after_id, tail=tail))

    def events(
        self, job: JobRef | None = None, *, after: str | None = None, **which: Unpack[Filter]
    ) -> Iterator[Event]:
        """The changes of one job, from how it is now to its end; without ``job`` those of all (``queue``, ``task`` and ``status``
        choose which) from now on, without end. ``after`` is the id of an event: those after it, then.

        Goes on by itself where it was cut, like ``logs``. Changes in quick succession may come as one, the latest.
        """
        return self._iterate(calls.events(job, which, after))

    # --------------------------------------------------------------------------------------------------------- many jobs

    def list(self, *, sort: str | None = None, limit: int | None = None, **which: Unpack[Filter]) -> Iterator[Job]:
        """The jobs that fit, newest first, at most ``limit``. Pages are asked for as the iterator gets there.

        ``sort`` is ``-created_at`` (the default), ``created_at``, ``-updated_at`` or ``updated_at``.
        """
        return self._iterate(calls.all_pages(which, sort=sort, limit=limit))

    def page(
        self, *, sort: str | None = None, limit: int = 50, cursor: str | None = None, **which: Unpack[Filter]
    ) -> Page:
        """One page of ``list``: the first, or that of the ``next_cursor`` of the one before."""
        return self._run(calls.page(which, sort=sort, limit=limit, cursor=cursor))

    def cancel_many(
        self, ids: Iterable[JobRef] | None = None, *, all: bool = False, dry_run: bool = False, **which: Unpack[Filter]
    ) -> BulkResult:
        """Cancel the jobs of these ids, or those that fit, or all. A ``dry_run`` only says how many that would be."""
        return self._run(calls.bulk("cancel", ids, all, dry_run, which))

    def retry_many(
        self, ids: Iterable[JobRef] | None = None, *, all: bool = False, dry_run: bool = False, **which: Unpack[Filter]
    ) -> BulkResult:
        """``retry`` for the jobs of these ids, those that fit, or all."""
        return self._run(calls.bulk("retry", ids, all, dry_run, which))

    def delete_many(
        self, ids: Iterable[JobRef] | None = None, *, all: bool = False, dry_run: bool = False, **which: Unpack[Filter]
    ) -> BulkResult:
        """``delete`` for the jobs of these ids, those that fit, or all."""
        return self._run(calls.bulk("delete", ids, all, dry_run, which))

    def dead_letters(
        self, *, queue: str | None = None, task: str | None = None, limit: int | None = None
    ) -> Iterator[Job]:
        """The jobs that failed for good, newest first."""
        return self._iterate(calls.dead_letters(queue=queue, task=task, limit=limit))

    def replay(self, *, queue: str | None = None, task: str | None = None) -> int:
        """Run all dead letters again, or those of one queue or one task; how many. (``retry`` is for a single one.)"""
        return self._run(calls.replay(queue=queue, task=task))

    # ------------------------------------------------------------------------------------------------------- the server

    def queues(self) -> Queues:
        """The queues, with how many jobs are in each state."""
        return self._run(calls.items(QueueInfo, "/api/v1/queues"))

    def queue(self, name: str) -> QueueInfo:
        """One queue. NotFound if no job was ever in it."""
        return self._run(one(QueueInfo, calls.named("/api/v1/queues", name)))

    def pause(self, queue: str) -> QueueInfo:
        """No job of the queue begins any more; those that run go on. It holds over a restart of the server."""
        return self._run(calls.change(QueueInfo, calls.named("/api/v1/queues", queue), {"paused": True}))

    def resume(self, queue: str) -> QueueInfo:
        """The jobs of a paused queue begin again."""
        return self._run(calls.change(QueueInfo, calls.named("/api/v1/queues", queue), {"paused": False}))

    def limit_queue(
        self, queue: str, *, concurrency: int | Unset | None = UNSET, rate: str | Unset | None = UNSET
    ) -> QueueInfo:
        """How many jobs of the queue run at once, and begin in a period (``10/minute``). None takes a limit away."""
        limits = {"concurrency": concurrency, "rate": rate}
        return self._run(calls.change(QueueInfo, calls.named("/api/v1/queues", queue), limits))

    def limit_task(
        self, task: str, *, concurrency: int | Unset | None = UNSET, rate: str | Unset | None = UNSET
    ) -> TaskInfo:
        """The same for a task. None brings back what its author wrote."""
        limits = {"concurrency": concurrency, "rate": rate}
        return self._run(calls.change(TaskInfo, calls.named("/api/v1/tasks", task), limits))

    def resize(
        self, *, workers: int | None = None, async_slots: int | None = None, processes: int | None = None
    ) -> Workers:
        """How many jobs run at once from now on, in threads, as coroutines and in processes; the workers that there are then."""
        return self._run(calls.resize(workers, async_slots, processes))

    def tasks(self) -> Tasks:
        """The tasks that can be submitted."""
        return self._run(calls.items(TaskInfo, "/api/v1/tasks"))

    def task(self, name: str) -> TaskInfo:
        """One task, with the JSON Schema of its payload."""
        return self._run(one(TaskInfo, calls.named("/api/v1/tasks", name)))

    def workers(self) -> Workers:
        """The workers, and what each is doing."""
        return self._run(calls.items(WorkerInfo, "/api/v1/workers"))

    def stats(self) -> Stats:
        """Jobs by queue and state, and the last 24 hours."""
        return self._run(one(Stats, "/api/v1/stats"))

    def health(self) -> Health:
        """How the server says it is; also when that is ``unhealthy``."""
        return self._run(calls.health())

    def ready(self) -> bool:
        """Whether the server takes jobs. ServerUnreachable if nobody answers."""
        return self._run(calls.ready())

    # -------------------------------------------------------------------------------------------------------- the transport

    def _tries(self, repeats: int | None) -> int:
        return self._repeats if repeats is None else repeats

    def _run(self, flow: Flow[T]) -> T:
        """Carry a call out to its end."""
        wire = _Wire(self._http, self._timeout_s)
        try:
            step = next(flow)
            while True:
                step = resume(flow, wire.do(step))
        except StopIteration as done:
            value: T = done.value
            return value

    def _iterate(self, flow: Items[T]) -> Iterator[T]:
        """Carry a call out as far as its items are asked for."""
        wire = _Wire(self._http, self._timeout_s)
        try:
            step = next(flow)
            while True:
                outcome = None
                if isinstance(step, Give):
                    yield step.item
                else:
                    outcome = wire.do(step)
                step = resume(flow, outcome)
        except StopIteration:
            return
        finally:
            wire.close()


class _Wire:
    """Does what the steps of one call say."""

    def __init__(self, http: httpx.Client, timeout_s: float) -> None:
        self._http, self._timeout_s = http, timeout_s
        self._stream: httpx.Response | None = None
        self._events: Iterator[ServerSentEvent] = iter(())

    def do(self, step: Step) -> Any:
        """What comes of a step, or the httpx.TransportError that kept it from being done."""
        try:
            if isinstance(step, Ask):
                return self._ask(step)
            if isinstance(step, Read):
                return next(self._events, None)
        except httpx.TransportError as exc:
            return exc
        time.sleep(step.seconds)
        return None

    def _ask(self, ask: Ask) -> httpx.Response:
        self.close()
        request = self._http.build_request(**request_options(ask, self._timeout_s))
        answer = self._http.send(request, stream=ask.stream)
        if ask.stream and answer.is_success:
            self._stream, self._events = answer, EventSource(answer).iter_sse()
        else:
            answer.read()
        return answer

    def close(self) -> None:
        """Leave the stream, if there is one."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
