"""An attempt: one execution of a claimed job, from the moment that a worker takes it to its end.

The lease fences it: whatever an attempt has to say is written only while its lease is on the row. ``Attempt.finish`` may be
called by the worker that ran it or by the watchdog that gave it up; the first one wins, the other is told no.

``interrupt`` raises an exception inside the task's thread (or cancels its coroutine). A thread can be asked and not killed:
the exception comes when the thread next executes Python code, so a thread inside a long C call is deaf to it.

Where that code is a ``__del__`` or a callback of the garbage collector, Python reports the exception and goes on as if it had not
been: it is lost. ``hear_of_lost`` hears of that, and ``remind`` raises it again.

Up to Python 3.12 a flag of the whole interpreter says that some thread has an exception on its way. While it is set all threads
look for theirs as often as they can, and what resets it is that one of them finds one. So what is taken back is not just removed,
see ``look_no_more``: the flag would stay, with the program at half its speed (3.12), or stuck for good where a debugger traces it
(3.11).
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from miniflow.errors import JobInterrupted, JobReturned

if TYPE_CHECKING:
    from miniflow.joblog import JobLog
    from miniflow.loans import Loan
    from miniflow.progress import Report
    from miniflow.traceparent import TraceContext


ENDS_WITHIN_S = 5.0
ENDS_LOOK_S = 0.005


class Claimed(NamedTuple):
    """A row that this process has a lease on. The fields are those of ``statements.CLAIMED_BY_LEASE``."""

    seq: int
    id: str
    task: str
    queue: str
    priority: int
    turn: int
    payload: str
    attempt: int  # executions begun before
    crashes: int
    max_retries: int
    timeout_ms: int | None
    expires_at: int | None
    options: str | None
    request_id: str | None
    tags: str | None
    meta: str | None
    lease: int
    created_at: int
    ready_at: int  # when it became queued: what comes after is waiting for a worker


def own_executor(options: str | None) -> str | None:
    """The executor that a job was given, by its options; None for that of its task."""
    if options is None or '"executor":' not in options:
        return None
    found = msgspec.json.decode(options).get("executor")
    return found if isinstance(found, str) else None


decode_claimed: Callable[[str], list[Claimed]] = msgspec.json.Decoder(list[Claimed]).decode


class Attempt:
    """One execution. ``number`` counts from 1; times are wall milliseconds, deadlines milliseconds of the boot clock."""

    __slots__ = (
        "_cancel",
        "_lock",
        "_over",
        "_patience_ms",
        "_pending",
        "_thread_id",
        "abandon_at_boot_ms",
        "charged",
        "claimed",
        "deadline_boot_ms",
        "finished",
        "handed",
        "hear",
        "heard",
        "heartbeat_ms",
        "loan",
        "log",
        "lost",
        "marked",
        "number",
        "on_stall",
        "progress",
        "silent_ms",
        "stalled",
        "started_at",
        "trace",
        "worker_id",
    )

    def __init__(self, claimed: Claimed, worker_id: str, started_at: int) -> None:
        self.claimed, self.worker_id, self.started_at = claimed, worker_id, started_at
        self.number = claimed.attempt + 1
        self.marked = False  # the row says `running`; set by the writer's thread, after the commit
        self.charged = True  # False: ended before its body began (expired, revoked), so it counts for nothing
        self.deadline_boot_ms: int | None = None
        self.abandon_at_boot_ms: int | None = None  # deaf beyond this: given up
        self.finished = False
        self.trace: TraceContext | None = None  # once somebody has asked
        self.log: JobLog | None = None  # once it has something to say
        self.loan: Loan | None = None  # of the worker that runs it, if that hands jobs ahead
        self.handed = False  # it was: its process has begun it by itself
        self.progress: Report | None = None  # once it has said how far it is
        self.heartbeat_ms: int | None = (
            None  # silent for longer than this it is stalled; None: it may be as silent as it likes
        )
        self.on_stall = ""  # what happens then
        self.heard = False  # said something since the last look
        self.silent_ms = 0  # as of the last look
        self.stalled = False
        self.lost = False  # what was raised into its thread has come where Python cannot raise
        self.hear: Callable[[JobInterrupted], None] | None = None  # of a coroutine, to be told where it prints
        self._lock = threading.Lock()
        self._over = False  # the body has ended: nothing may be raised into its thread any more
        self._pending: JobInterrupted | None = None
        self._patience_ms = 0
        self._thread_id: int | None = None
        self._cancel: Callable[[], object] | None = None

    def __repr__(self) -> str:
        state = "finished" if self.finished else "interrupted" if self._pending else "running"
        return f"<Attempt {self.number} of job {self.claimed.id} {state} on {self.worker_id}>"

    @property
    def killable(self) -> bool:
        """Whether it runs in a process, which can be ended whether it listens or not."""
        return self._patience_ms > 0

    @property
    def pending(self) -> JobInterrupted | None:
        """What the body was interrupted with; it may not have noticed yet."""
        return self._pending

    def beat(self) -> None:
        """The job has given a sign of life."""
        self.heard = True

    @property
    def entered(self) -> bool:
        """Whether the body has begun."""
        return self._thread_id is not None or self._cancel is not None

    # ------------------------------------------------------------------------------------------------ the body's thread

    def enter(self, thread_id: int | None, cancel: Callable[[], object] | None = None, *, patience_ms: int = 0) -> None:
        """The body begins, in a thread that can be interrupted, or as something that ``cancel`` stops: a coroutine, or a
        process, which is sure to end and gets ``patience_ms`` longer for it before it is given up."""
        with self._lock:
            self._thread_id, self._cancel, self._patience_ms = thread_id, cancel, patience_ms
            if thread_id is not None:
                _in_threads[thread_id] = self
            if self._pending is not None:  # asked to stop between the claim and here
                if self.abandon_at_boot_ms is not None:  # what was handed ahead runs already, and is ended all the same
                    self.abandon_at_boot_ms += patience_ms
                raise self._pending

    def leave(self) -> None:
        """The body has ended, one way or another: said by its own thread, which may do so twice. An exception that is still on
        its way is taken back."""
        with self._lock:
            if self._over:
                return
            self._over = True
            self.hear = None
            if self._thread_id is not None:
                _in_threads.pop(self._thread_id, None)
            if self._pending is not None and self._thread_id is not None:
                look_no_more()

    def raise_in_coroutine(self) -> None:
        """For what a coroutine calls. Its loop can tell it of a cancel only where it awaits; one that computes and prints, and
        does not await, is told here, once."""
        if self._pending is not None and (hear := self.hear) is not None:
            hear(self._pending)

    # ------------------------------------------------------------------------------------------------------ other threads

    def interrupt(self, reason: JobInterrupted, abandon_at_boot_ms: int) -> bool:
        """Ask the body to stop, once; False if it has ended or was asked before."""
        with self._lock:
            if self._over or self._pending is not None:
                return False
            self._pending, self.abandon_at_boot_ms = reason, abandon_at_boot_ms + self._patience_ms
            if self._cancel is not None:
                self._cancel()
            elif self._thread_id is not None:
                _raise_in_thread(self._thread_id, type(reason))
            return True

    def remind(self) -> None:
        """Raise again what was lost on its way."""
        with self._lock:
            if self.lost and not self._over and self._pending is not None and self._thread_id is not None:
                self.lost = False
                _raise_in_thread(self._thread_id, type(self._pending))

    def finish(self) -> bool:
        """Claim the right to write this attempt's end; True for the first caller only."""
        with self._lock:
            first, self.finished = not self.finished, True
            return first


_in_threads: dict[int, Attempt] = {}
"""The attempts whose bodies run in threads, by the thread."""


class _TakenBack(BaseException):
    """Comes instead of what was taken back."""


def _raise_in_thread(thread_id: int, kind: type[BaseException]) -> None:
    """Have ``kind`` raised in a thread at its next bytecode, instead of what is on its way. See PyThreadState_SetAsyncExc."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(kind))


def look_no_more() -> None:
    """What is on its way to this thread does not come. What is on its way to others is looked for when they come out of the
    C code that they are in, and not before."""
    try:
        _raise_in_thread(threading.get_ident(), _TakenBack)
        for _ in range(100):  # it comes before the first of these, if it is not lost
            pass
    except _TakenBack:
        pass


def hear_of_lost() -> None:
    """From now on an attempt knows when its interruption came where Python could not raise it. Not raised again here: that would
    come in the midst of this hook, and be lost as well."""
    before = sys.unraisablehook
    if getattr(before, "hears_of_lost", False):
        return

    def hook(unraisable: Any) -> None:
        attempt = _in_threads.get(threading.get_ident())
        if attempt is not None and issubclass(unraisable.exc_type, JobInterrupted):
            attempt.lost = True
        elif not issubclass(unraisable.exc_type, _TakenBack):
            before(unraisable)

    hook.hears_of_lost = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


class Running:
    """The attempts under way. Threads add and remove their own: each of these is one step of the interpreter."""

    def __init__(self) -> None:
        self._attempts: dict[Attempt, None] = {}

    def __len__(self) -> int:
        return len(self._attempts)

    def add(self, attempt: Attempt) -> None:
        self._attempts[attempt] = None

    def remove(self, attempt: Attempt) -> None:
        self._attempts.pop(attempt, None)

    def find(self, seq: int) -> Attempt | None:
        """That of the row, the newest: the next may have begun before the one that has ended is removed."""
        return next((attempt for attempt in reversed(self.all()) if attempt.claimed.seq == seq), None)

    def all(self) -> list[Attempt]:
        return list(self._attempts)

    def dismiss(self, late: list[Attempt], boot_ms: int) -> None:
        """The server stops: the ``late`` ones are to end, and of the others that is to be with the writer."""
        for attempt in late:
            attempt.interrupt(JobReturned("the server stops"), boot_ms)
        self.wait_for_ends(late)

    def wait_for_ends(self, late: Iterable[Attempt], timeout_s: float = ENDS_WITHIN_S) -> None:
        """Wait until none but the ``late`` ones is left: the others have ended, and somebody is about to say so."""
        deadline = time.monotonic() + timeout_s
        while set(self.all()) - set(late) and time.monotonic() < deadline:
            time.sleep(ENDS_LOOK_S)
