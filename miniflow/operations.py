"""A wish to write something, and the ways of waiting until it is in the file."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any, Protocol

from miniflow.errors import StoreClosed

log = logging.getLogger("miniflow.writer")


class Operation:
    """One wish: a kind, its argument, and afterwards its value or its error."""

    __slots__ = ("argument", "error", "future", "keep", "kind", "value", "waiter")

    def __init__(self, kind: str, argument: Any, *, keep: bool = False) -> None:
        self.kind, self.argument = kind, argument
        self.keep = keep  # True: must reach the file; kept over a full disk instead of failing
        self.value: Any = None
        self.error: BaseException | None = None
        self.waiter: Waiter | None = None
        self.future: asyncio.Future[None] | None = None  # LoopWaiter's

    def outcome(self) -> Any:
        """Its value, once it is written. Raises what it was refused with."""
        if self.error is not None:
            raise self.error
        return self.value


class Waiter(Protocol):
    """Who is told when an operation is committed or has failed."""

    def done(self, operation: Operation, /) -> None: ...


class Poster(Protocol):
    """``Writer.post``."""

    def __call__(self, *operations: Operation) -> None: ...


class ThreadWaiter:
    """Blocks the thread that posted the operation. A bare lock: cheaper than an Event, and used once."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def done(self, _: Operation) -> None:
        self._lock.release()

    def wait(self) -> None:
        self._lock.acquire()


class Bell:
    """Wakes the one thread that waits for it: as an Event, which that thread clears by having waited.

    A bare lock, held while nobody has rung. It is rung by threads of jobs, in which an exception may be raised between any two
    bytecodes: one inside of an Event, whose methods are Python, would leave its lock taken, and who waits would wait for ever.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def __repr__(self) -> str:
        return f"<Bell {'at rest' if self._lock.locked() else 'rung'}>"

    def ring(self) -> None:
        """From any thread, as often as one likes."""
        try:
            self._lock.release()
        except RuntimeError:  # it has been rung already
            pass

    def silence(self) -> None:
        """What was rung before counts for nothing."""
        self._lock.acquire(blocking=False)

    def wait(self, timeout_s: float) -> bool:
        """Whether it was rung, before or within ``timeout_s`` seconds. It is at rest then."""
        return self._lock.acquire(timeout=timeout_s)


class LoopWaiter:
    """Takes operations from coroutines of one event loop, and wakes them when they are committed.

    Both ways in bulk: what one turn of the loop posts goes to the writer together at its end, and all that a commit has for
    the loop comes back in a single call. A writer that is woken in the middle of a turn only fights it for the GIL.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, post: Poster) -> None:
        self._loop, self._hand = loop, post
        self._posted: list[Operation] = []
        self._done: list[Operation] = []

    def post(self, operation: Operation) -> asyncio.Future[None]:
        """Hand an operation to the writer at the end of this turn. The future is done when it is committed or refused."""
        operation.waiter = self
        operation.future = future = self._loop.create_future()
        if not self._posted:
            self._loop.call_soon(self._hand_over)
        self._posted.append(operation)
        return future

    def _hand_over(self) -> None:
        batch, self._posted = self._posted, []
        try:
            self._hand(*batch)
        except StoreClosed as exc:
            for operation in batch:
                operation.error = exc
            self._wake(batch)

    def done(self, operation: Operation) -> None:
        self._done.append(operation)

    def flush(self) -> None:
        if self._done:
            batch, self._done = self._done, []
            try:
                self._loop.call_soon_threadsafe(self._wake, batch)
            except RuntimeError:  # the loop is closed: nobody waits any more
                log.debug("%d callers left before their commit", len(batch))

    @staticmethod
    def _wake(batch: list[Operation]) -> None:
        for operation in batch:
            future = operation.future
            if future is not None and not future.done():  # a client that hung up has cancelled its own future
                future.set_result(None)
