"""The running job, as its own code sees it.

A task asks ``current()`` for its context, or takes a parameter annotated ``JobContext``. The context holds no database and no
worker: what it can do is handed to it as callables, so that the same class serves a thread, the event loop, a child process and
a test. Outside a job ``current()`` gives a detached context that logs to ``logging`` and is never cancelled; that is why a task
can be called as the plain function it is.
"""

from __future__ import annotations

import contextvars
import datetime as dt
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from miniflow.errors import InvalidRequest, JobInterrupted, TransactionRefused

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LEVELS = {name: name for name in LEVELS}
"""A level may be given as a subclass of str, an enum's member say: what is written is the plain text."""

WriteLog = Callable[[str, str], None]
"""Takes the level and the message."""
WriteProgress = Callable[[float, float | None, str | None], None]
"""Takes what is done, the total (None: done is a fraction of 1) and a message."""


def _log_detached(level: str, message: str) -> None:
    logging.getLogger("miniflow.task").log(getattr(logging, level), "%s", message)


def _progress_detached(_done: float, _total: float | None, _message: str | None) -> None:
    pass


def _beat_detached() -> None:
    pass


def _no_transaction() -> Any:
    raise TransactionRefused(
        "only a job that runs in a thread of the server has a transaction: a def task with executor thread"
    )


def _never() -> JobInterrupted | None:
    return None


def _in_no_trace() -> str | None:
    return None


class JobContext:
    """One attempt of one job: who it is, and what it can say and ask."""

    __slots__ = (
        "_beat", "_boot_ms", "_pending_interrupt", "_traceparent", "_write_log", "_write_progress", "attempt", "deadline_ms",
        "job_id", "_transaction", "max_retries", "meta", "payload", "queue", "request_id", "schedule", "scheduled_for", "tags",
        "task",
    )  # fmt: skip

    def __init__(
        self,
        *,
        job_id: str = "",
        task: str = "",
        queue: str = "default",
        attempt: int = 1,
        max_retries: int = 0,
        payload: str = "{}",
        request_id: str | None = None,
        meta: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        write_log: WriteLog = _log_detached,
        write_progress: WriteProgress = _progress_detached,
        beat: Callable[[], None] = _beat_detached,
        pending_interrupt: Callable[[], JobInterrupted | None] = _never,
        schedule: str | None = None,
        scheduled_for: dt.datetime | None = None,
        deadline_ms: int | None = None,
        boot_ms: Callable[[], int] | None = None,
        transaction: Callable[[], Any] = _no_transaction,
        traceparent: Callable[[], str | None] = _in_no_trace,
    ) -> None:
        """``payload`` is the raw JSON text; ``deadline_ms`` is on the clock ``boot_ms``, and means nothing without it."""
        self.job_id = job_id
        self.task = task
        self.queue = queue
        self.attempt = attempt
        self.max_retries = max_retries
        self.payload = payload
        self.request_id = request_id
        self.meta = {} if meta is None else meta
        self.tags = tags
        self.schedule = schedule  # the name of the schedule that made the job; None: no schedule did
        self.scheduled_for = scheduled_for  # the time in UTC that it means, which may be long ago
        self.deadline_ms = deadline_ms
        self._write_log = write_log
        self._write_progress = write_progress
        self._beat = beat
        self._pending_interrupt = pending_interrupt
        self._boot_ms = boot_ms
        self._transaction = transaction
        self._traceparent = traceparent

    def __repr__(self) -> str:
        if not self.job_id:
            return "<JobContext detached>"
        return f"<JobContext {self.task} {self.job_id} [attempt {self.attempt} of {self.max_retries + 1}]>"

    def log(self, message: str, level: str = "INFO") -> None:
        """One line of the job's log."""
        known = _LEVELS.get(level)
        if known is None:
            wanted = str(level).upper()
            known = _LEVELS.get(wanted)
            if known is None:
                raise InvalidRequest("level", f"{wanted!r} is none of {', '.join(LEVELS)}")
        self._write_log(known, str(message))

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """How far the job is: ``progress(30, 100)``, or a fraction, ``progress(0.3)``. What is out of range is clamped."""
        done = _number("done", done)
        if total is not None:
            total = _number("total", total)
            if total < 0 or math.isinf(total):
                raise InvalidRequest("total", f"expected a number of 0 or more, got {total}")
            if total == 0:  # an empty list to work through: nothing of nothing is all of it, and nobody divides by 0
                done, total = 1.0, None
        self._write_progress(min(max(done, 0.0), 1.0 if total is None else total), total, message)

    def heartbeat(self) -> None:
        """Say that the job is alive, and nothing else: for work that neither logs nor reports progress for longer than the
        job's ``heartbeat``. What a job logs, prints or reports says so too. It is cheap."""
        self._beat()

    def transaction(self) -> Any:
        """Write to tables of your own in MiniFlow's file, and have it committed with the end of this job: all, or nothing.

        ``with ctx.transaction() as db: db.execute("INSERT …", (…,))``. Return soon after the block: nobody else writes until
        then, and after ``transaction_limit`` seconds all of it is undone and the job fails. TransactionRefused for a job that
        does not run in a thread of the server, and for statements that are not allowed.
        """
        return self._transaction()

    @property
    def traceparent(self) -> str | None:
        """The header of W3C Trace Context to hand to other systems: the trace that this run belongs to, and this attempt (of a
        durable function, this step) as the span that called. Found when it is asked for. None outside a job."""
        return self._traceparent()

    @property
    def cancelled(self) -> bool:
        """Whether the job has been told to stop: cancelled, over its timeout, or the server is going down."""
        return self._pending_interrupt() is not None

    def check_cancelled(self) -> None:
        """Stop here if the job has been told to. Long loops call this; it is cheap."""
        pending = self._pending_interrupt()
        if pending is not None:
            raise pending

    @property
    def time_remaining_s(self) -> float | None:
        """Seconds until the timeout, 0 when it is over; None where there is no timeout."""
        if self.deadline_ms is None or self._boot_ms is None:
            return None
        return max(self.deadline_ms - self._boot_ms(), 0) / 1000


def _number(name: str, value: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(name, f"expected a number, got {value!r}") from error
    if math.isnan(number):
        raise InvalidRequest(name, "is not a number (NaN)")
    return number


class Log(Protocol):
    """The log of a running attempt, for what its code prints and says through ``logging``. Both answer False once it is over."""

    def add(self, level: str, message: str) -> bool:
        """One line."""
        ...

    def write(self, stream: int, text: str) -> bool:
        """A piece of what is printed, to standard output (0) or standard error (1)."""
        ...


OpenLog = Callable[[], Log]
Place = tuple[Callable[[], JobContext], OpenLog | None]
"""Where code runs: what makes its context, and what opens the log that its output belongs to."""

OUTSIDE: Place = (JobContext, None)
_current: contextvars.ContextVar[Place] = contextvars.ContextVar("miniflow_job", default=OUTSIDE)
request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("miniflow_request_id", default=None)
"""Of the HTTP request that is being answered here, for the program's own log."""

place = _current.get
"""Where this code runs. A function of C: it is asked for every piece that is printed."""
stay = _current.set
"""Make a place the current one for the rest of this thread, which a job has started."""


def current() -> JobContext:
    """The context of the job that runs here; a detached one where none does."""
    return place()[0]()


class use:
    """Make a context the current one within a ``with`` block. Given as a callable it is made when it is asked for: most jobs
    never ask. A class, because a generator would cost a no-op job a microsecond."""

    __slots__ = ("_place", "_token")

    def __init__(self, context: JobContext | Callable[[], JobContext], open_log: OpenLog | None = None) -> None:
        self._place = ((lambda: context) if isinstance(context, JobContext) else context, open_log)

    def __enter__(self) -> None:
        self._token = _current.set(self._place)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)
