"""An event loop that knows how long each step takes: what runs between two awaits has the loop for itself.

The loop of async jobs is one for all of them, so a job that blocks – ``time.sleep``, a client that knows no await, long sums – is
in the way of all others. Each step is run in the context of its task, and a job's tasks have their job in it, also those that it
made itself: so it is known whose step it was, and not estimated.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from miniflow.holdups import ASYNC_ADVICE, LATE_S, LONG_S, Culprits

if sys.platform == "win32":
    EventLoop = asyncio.ProactorEventLoop
else:
    EventLoop = asyncio.SelectorEventLoop

task_of_step: contextvars.ContextVar[str] = contextvars.ContextVar("miniflow_task_of_step", default="")
"""The name of the task whose job runs in this context."""


Step = tuple[float, contextvars.Context]
"""When it began, in monotonic seconds, and whose it is. A plain tuple: one is made for each step."""


class MeasuredLoop(EventLoop):
    """``step`` is what runs now; ``ended`` is told of each that took LATE_S or longer."""

    def __init__(self) -> None:
        super().__init__()
        self.step: Step | None = None
        self.ended: Callable[[Step, float], None] = lambda _, __: None

    def call_soon(  # type: ignore[override]  # as the base has it, but for the types of the arguments
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """All steps of tasks come through here."""
        if context is None:
            context = contextvars.copy_context()
        return super().call_soon(self._measured, callback, args, context, context=context)

    def _measured(self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context) -> None:
        began_s = monotonic()
        step = self.step = (began_s, context)
        try:
            callback(*args)
        finally:
            self.step = None
            now_s = monotonic()
            if now_s - began_s >= LATE_S:
                self.ended(step, now_s)


class StepsThatHold:
    """Puts long steps down to their tasks: when they end, and those that go on whenever somebody looks."""

    def __init__(self, loop: MeasuredLoop) -> None:
        self._loop = loop
        self.culprits = Culprits(
            "task %s holds up the loop that all async jobs share: it had it for %.0f ms without an await; %s",
            ASYNC_ADVICE,
        )
        self._lock = threading.Lock()  # a step may end while another thread looks at it
        self._seen: Step | None = None
        self._seen_s = 0.0  # of that step, put down already
        loop.ended = self._put_down

    def __repr__(self) -> str:
        return f"<StepsThatHold {self.culprits.held_s}>"

    def look(self) -> None:
        """At the step that goes on. It may never end; so another thread looks, now and then."""
        step, now_s = self._loop.step, monotonic()
        if step is not None and now_s - step[0] >= LONG_S:
            self._put_down(step, now_s)

    def _put_down(self, step: Step, now_s: float) -> None:
        task = step[1].get(task_of_step)
        if not task:
            return
        with self._lock:
            late_s = now_s - step[0]
            before_s = self._seen_s if self._seen is step else 0.0
            self._seen, self._seen_s = step, max(late_s, before_s)
            self.culprits.found(task, late_s, max(late_s - before_s, 0.0))
