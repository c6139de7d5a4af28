"""Runs ``async def`` tasks: many at once, on one event loop in a thread of its own.

Not the loop that serves HTTP: a coroutine that forgets to await must not stop the API. huey's own ``execute`` is plain
synchronous code; it runs here inside a greenlet, and where it calls the body the greenlet hands the coroutine to the loop and
is resumed with its value. (The technique is that of SQLAlchemy's asyncio extension.) So hooks, signals, retries and locks are
the same for both kinds of task, and no thread waits for a coroutine.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import greenlet

from miniflow.attempts import Attempt, Claimed
from miniflow.errors import JobInterrupted, TaskExit
from miniflow.executors.measured_loop import MeasuredLoop, StepsThatHold, task_of_step
from miniflow.holdups import CpuTime, Thread
from miniflow.looplag import LoopLag
from miniflow.minutes import LoopUse
from miniflow.operations import Operation, ThreadWaiter
from miniflow.readahead import ReadAhead

log = logging.getLogger("miniflow.async")

HELD_UP_S = 0.2
"""For so long a task that a job has made may print while the job, which is to stop, cannot be told by the loop."""


class AsyncLane:
    """Takes jobs from the "async" lane of the read-ahead while it has free slots."""

    def __init__(
        self,
        readahead: ReadAhead,
        begin: Callable[[Claimed], Attempt],
        execute: Callable[[Attempt], None],
        refuse: Callable[[Attempt, BaseException], None],
        slots: int,
    ) -> None:
        self._readahead, self._begin, self._execute, self._refuse = readahead, begin, execute, refuse
        self.slots = slots
        self._tasks: dict[asyncio.Task[None], Attempt] = {}
        self._loop = MeasuredLoop()
        self._steps = StepsThatHold(self._loop)
        self.lag = LoopLag(wanted=lambda: bool(self._tasks))
        self.culprits, self.look = self._steps.culprits, self._steps.look
        self._thread = threading.Thread(target=self._serve, name="miniflow-async", daemon=True)
        self._taking = self._closing = False
        self.cpu: CpuTime | None = None
        readahead.on_async = self._notify

    def __repr__(self) -> str:
        return f"<AsyncLane [{len(self._tasks)} running | {self.slots} slots]>"

    def __len__(self) -> int:
        return len(self._tasks)

    def threads(self) -> list[Thread]:
        """The thread, while it has jobs. Which of several has it cannot be told from outside."""
        attempts = list(self._tasks.values())
        tasks = {attempt.claimed.task for attempt in attempts}
        return [(attempts[0].worker_id, tasks.pop() if len(tasks) == 1 else None, self.cpu)] if attempts else []

    def use(self) -> LoopUse:
        """What the metrics tell of its loop."""
        return LoopUse(self.lag.last_s, max(self.lag.max_s, self.lag.last_s), dict(self.culprits.held_s))

    def start(self) -> None:
        self._taking = True
        self._thread.start()

    def resize(self, slots: int) -> None:
        """So many at once from now on. Those that run go on."""
        self.slots = slots
        self._notify()

    def stop_taking(self) -> None:
        """No further job is begun; those under way go on."""
        self._taking = False

    def close(self, timeout_s: float = 1.0) -> None:
        """End the loop, cancelling what still runs on it."""
        self._taking, self._closing = False, True
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout_s)
        elif not self._loop.is_closed():  # it was never started
            self._loop.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self.cpu = CpuTime()
        self._fill()
        while not self._closing:  # a task may have stopped the loop, which is not its own
            self._loop.run_forever()
        pending = list(self._tasks)
        for task in pending:
            task.cancel()
        if pending:
            self._loop.run_until_complete(asyncio.wait(pending, timeout=0.5))
        self._loop.close()

    def _notify(self) -> None:
        if self._thread.is_alive() and self._taking:
            self._loop.call_soon_threadsafe(self._fill)

    def _fill(self) -> None:
        while self._taking and len(self._tasks) < self.slots:
            attempt = self._readahead.take("async", self._begin)
            if attempt is None:
                return
            own = contextvars.copy_context()
            own.run(task_of_step.set, attempt.claimed.task)
            task = self._loop.create_task(self._run(attempt), context=own)
            self._tasks[task] = attempt
            task.add_done_callback(self._finished)
            if not self.lag.measuring:
                self.lag.start(self._loop)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("running a job failed outside of its body", exc_info=task.exception())
        self._fill()

    async def _run(self, attempt: Attempt) -> None:
        try:
            await in_greenlet(lambda: self._execute(attempt))
        except BaseException as exc:  # outside of the body, a hook say: the job must not stay leased
            self._refuse(attempt, exc)
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):  # they would end the loop, and with it every other job
                log.exception("running job %s failed outside of its body", attempt.claimed.id)
                return
            raise


async def in_greenlet(function: Callable[[], Any]) -> Any:
    """Run synchronous code that may call ``await_here``; its return value."""
    runner = greenlet.greenlet(function)
    runner.gr_context = contextvars.copy_context()
    awaitable = runner.switch()
    while not runner.dead:
        try:
            value = await awaitable
        except BaseException:  # handed on to the code that waits, whatever it is
            awaitable = runner.throw(*sys.exc_info())
        else:
            awaitable = runner.switch(value)
    return awaitable


def await_here(awaitable: Coroutine[Any, Any, Any]) -> Any:
    """Inside ``in_greenlet``: suspend until ``awaitable`` is done; its value, or its exception."""
    parent = greenlet.getcurrent().parent
    assert parent is not None, "await_here is called by code that in_greenlet runs"
    return parent.switch(awaitable)


def pause(seconds: float) -> None:
    """Inside ``in_greenlet``: let the other coroutines run for a while."""
    await_here(asyncio.sleep(seconds))


class CommitWaiter(ThreadWaiter):
    """Inside ``in_greenlet``: lets the other coroutines run until the operation is written."""

    __slots__ = ("_loop", "_written")

    def __init__(self) -> None:
        self._loop, self._written = asyncio.get_running_loop(), asyncio.Event()

    def done(self, _: Operation) -> None:
        try:
            self._loop.call_soon_threadsafe(self._written.set)
        except RuntimeError:  # the loop is closed: nobody waits any more
            pass

    def wait(self) -> None:
        await_here(self._written.wait())


def waiter() -> ThreadWaiter:
    """For the code around a body, in a thread of its own or on the loop that all coroutines share."""
    return ThreadWaiter() if greenlet.getcurrent().parent is None else CommitWaiter()


async def _contained(attempt: Attempt, body: Coroutine[Any, Any, Any], silent_ms: int | None) -> Any:
    """What ``body`` returns. asyncio lets these two through to the loop, which would end it, and with it every other job. It may
    be silent for ``silent_ms`` from its first step on."""
    if silent_ms is not None:
        attempt.heartbeat_ms = silent_ms
        attempt.beat()
    try:
        return await body
    except (SystemExit, KeyboardInterrupt) as exc:
        raise TaskExit(f"the task raised {type(exc).__name__}({exc}); a task ends by returning") from exc


def run(attempt: Attempt, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What the coroutine returns. Raises what it raises, or the JobInterrupted that cancelled it."""
    loop = asyncio.get_running_loop()
    # The coroutine is made and run in this context, the greenlet's: the job's own context was set in it.
    silent_ms, attempt.heartbeat_ms = attempt.heartbeat_ms, None  # another one may keep the loop from it for long
    task = loop.create_task(_contained(attempt, make(), silent_ms), context=contextvars.copy_context())

    async def supervised() -> Any:
        return await task

    thread_id, told = threading.get_ident(), False
    held_up_since: float | None = None

    def tell() -> None:
        nonlocal told
        if not told:
            told = True
            task.cancel()

    def hear(reason: JobInterrupted) -> None:
        """Raise it where the job prints. A task that it has made is no place to tell the job itself: the loop does so as soon as
        it can, and only one that lets the loop do nothing is ended."""
        nonlocal told, held_up_since
        if told or threading.get_ident() != thread_id:
            return
        if asyncio.current_task() is task:
            told = True
            raise reason
        held_up_since = held_up_since or time.monotonic()
        if time.monotonic() - held_up_since > HELD_UP_S:
            held_up_since = None
            raise reason

    try:
        try:
            attempt.hear = hear
            attempt.enter(None, cancel=lambda: loop.call_soon_threadsafe(tell))
        except BaseException:  # asked to stop before it began
            task.cancel()
            raise
        return await_here(supervised())
    except asyncio.CancelledError:
        if attempt.pending is not None:
            raise attempt.pending from None
        raise
    finally:
        attempt.leave()
