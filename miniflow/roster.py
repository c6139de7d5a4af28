"""Who works at what right now: each worker thread, and each coroutine that runs.

Made where the workers are, asked by HTTP, which does not know them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from miniflow.attempts import Attempt
from miniflow.clock import Clock, rfc3339
from miniflow.holdups import ADVICE, ASYNC_ADVICE, Culprits, Holdups


class Worker(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One that runs jobs, and the job it runs. ``running_for`` is in seconds. Threads, and slots for processes, are there all the
    time, coroutines while they run. Of a job that has a heartbeat, ``silent_for`` is how long it has been silent, in seconds.
    ``holds_loop_for``: its task computes where requests are answered, and made them wait for up to so many seconds of late; or it
    is an `async def` that does not await, and made all other async jobs wait."""

    id: str
    executor: str
    busy: bool
    job_id: str | None = None
    task: str | None = None
    queue: str | None = None
    attempt: int | None = None
    started_at: str | None = None
    running_for: float | None = None
    silent_for: float | None = None
    stalled: bool = False
    holds_loop_for: float | None = None
    advice: str | None = None


class Slots(msgspec.Struct):
    """How many jobs may run at once."""

    thread: int
    coroutine: int = msgspec.field(name="async")
    process: int = 0


class EventLoop(msgspec.Struct):
    """How late a loop is, in seconds, and which tasks have held it up for how long in all."""

    lag: float
    lag_max: float
    held_by: dict[str, float]


class Roster:
    def __init__(
        self,
        clock: Clock,
        slots: Callable[[], Slots],
        *,
        threads: Callable[[], Iterable[str]],
        processes: Callable[[], Iterable[str]],
        running: Callable[[], list[Attempt]],
        holdups: Holdups,
        async_holdups: Culprits,
    ) -> None:
        """``slots()`` is how many there may be, ``threads()`` are the ids of the threads that take jobs, ``processes()`` of those
        that wait for processes, ``running()`` the attempts under way."""
        self._clock, self._slots = clock, slots
        self._threads, self._processes, self._running = threads, processes, running
        self._holdups, self._async_holdups = holdups, async_holdups

    def __repr__(self) -> str:
        return f"<Roster [{len(self._running())} running | {self.slots}]>"

    @property
    def slots(self) -> Slots:
        return self._slots()

    def workers(self) -> list[Worker]:
        """Threads first, then those with processes."""
        now_ms = self._clock.now_ms()
        there = dict.fromkeys(self._threads(), "thread") | dict.fromkeys(self._processes(), "process")
        coroutines: list[Worker] = []
        busy: dict[str, Worker] = {}
        for attempt in self._running():
            executor = there.get(attempt.worker_id)
            if executor is not None:
                busy[attempt.worker_id] = self._busy(attempt, executor, now_ms)
            else:
                coroutines.append(self._busy(attempt, "async", now_ms))
        staying = (busy.get(name) or Worker(id=name, executor=kind, busy=False) for name, kind in there.items())
        return [*staying, *coroutines]

    def _busy(self, attempt: Attempt, executor: str, now_ms: int) -> Worker:
        claimed = attempt.claimed
        held_s = None if executor == "process" else self._holdups.worst_s(claimed.task)
        if executor == "async":
            held_s = max(self._async_holdups.worst_s(claimed.task) or 0.0, held_s or 0.0) or None
        return Worker(
            id=attempt.worker_id,
            executor=executor,
            busy=True,
            job_id=claimed.id,
            task=claimed.task,
            queue=claimed.queue,
            attempt=attempt.number,
            started_at=rfc3339(attempt.started_at),
            running_for=max(now_ms - attempt.started_at, 0) / 1000,
            silent_for=None if attempt.heartbeat_ms is None else max(attempt.silent_ms, 0) / 1000,
            stalled=attempt.stalled,
            holds_loop_for=held_s,
            advice=None if held_s is None else ASYNC_ADVICE if executor == "async" else ADVICE,
        )
