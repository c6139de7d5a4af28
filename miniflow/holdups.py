"""Which task it is that holds up the event loop.

Code that computes in a thread keeps the interpreter lock for as long as it is let (a C extension may keep it to its end), and the
loop that answers requests waits for it. So whenever the loop is late, the processor time of each thread that runs jobs since the
look before tells who computed meanwhile; the delay is put down to their tasks, in proportion. It is an estimate: code that
computes with the lock released is counted as well, though only when the loop is late indeed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import psutil

log = logging.getLogger("miniflow.loop")

LATE_S = 0.02
"""From here on a delay is looked into; an idle machine's loop is a millisecond late."""
COMPUTING_MIN = 0.5
"""Threads that used less than this part of the process's time, all together, are not what the loop waited for."""
SHARE_MIN = 0.05
"""Of a core. Little, because the process may get little: of a busy machine a task that always computes has a tenth."""
LONG_S = 0.25
"""A delay that is told of at once; shorter ones from the third within RECENT_S on."""
OFTEN = 3
RECENT_S = 10.0
TOLD_EVERY_S = 300.0
"""How often the log tells of one task."""

ADVICE = '@task(executor="process") moves it out of the way'
ASYNC_ADVICE = (
    "await what takes long, or hand it to asyncio.to_thread, or make the task a plain def "
    '(with executor="process" if it computes)'
)

Thread = tuple[str, str | None, "CpuTime | None"]
"""Id of the worker, the task that it runs or ran last (None: cannot be told), and its processor time."""


class CpuTime:
    """The processor time of one thread, in seconds. Made in that thread, read in any."""

    def __init__(self) -> None:
        self._thread_id = threading.get_native_id()
        get_clock = getattr(time, "pthread_getcpuclockid", None)
        self._clock: int | None = None if get_clock is None else get_clock(threading.get_ident())

    def read(self) -> float | None:
        """None when the thread has ended."""
        if self._clock is not None:
            try:
                return time.clock_gettime(self._clock)
            except OSError:
                return None
        for thread in psutil.Process().threads():  # macOS and Windows
            if thread.id == self._thread_id:
                return float(thread.user_time + thread.system_time)
        return None


class Holdup(NamedTuple):
    """A task that was found to hold up the loop: when last (monotonic seconds), and how late it was then, in seconds."""

    at_s: float
    late_s: float


class Culprits:
    """Tasks that were found to hold up a loop, and the warnings about them."""

    def __init__(self, words: str, advice: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        """``words`` is the warning: it takes the task, milliseconds and the advice."""
        self._words, self._advice, self._monotonic = words, advice, monotonic
        self._recent: dict[str, deque[Holdup]] = {}
        self._told_s: dict[str, float] = {}
        self.held_s: dict[str, float] = {}  # by task, since the start

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.held_s}>"

    def worst_s(self, task: str) -> float | None:
        """By how much the loop was late at most because of ``task``, in the last RECENT_S; None if it was not."""
        since_s = self._monotonic() - RECENT_S
        found = [one.late_s for one in list(self._recent.get(task, ())) if one.at_s >= since_s]
        return max(found) if found and (len(found) >= OFTEN or max(found) >= LONG_S) else None

    def found(self, task: str, late_s: float, held_s: float, *more: object) -> None:
        """The loop was so late just now; ``held_s`` of it are put down to ``task``. ``more`` goes into the words, before the
        advice."""
        self.held_s[task] = self.held_s.get(task, 0.0) + held_s
        now_s = self._monotonic()
        self._recent.setdefault(task, deque(maxlen=OFTEN * 10)).append(Holdup(now_s, late_s))
        worst_s = self.worst_s(task)
        if worst_s is not None and now_s >= self._told_s.get(task, now_s):
            self._told_s[task] = now_s + TOLD_EVERY_S
            log.warning(self._words, task, worst_s * 1000, *more, self._advice)


class Holdups(Culprits):
    """Asked at each look of the loop at itself; one thread calls ``look``."""

    def __init__(
        self,
        threads: Callable[[], Iterable[Thread]],
        monotonic: Callable[[], float] = time.monotonic,
        process_time: Callable[[], float] = time.process_time,
    ) -> None:
        super().__init__(
            "task %s holds up the event loop: requests waited up to %.0f ms while it computed (%.0f %% of a core); %s",
            ADVICE,
            monotonic,
        )
        self._threads, self._process_time = threads, process_time
        self._used_s = process_time()
        self._read: dict[str, float] = {}
        self._looked_s = monotonic()

    def look(self, late_s: float) -> None:
        """The loop was so late just now."""
        passed_s = self._passed_s()
        shares = self._shares(passed_s)
        computing = sum(shares.values())
        before_s, self._used_s = self._used_s, self._process_time()
        if late_s < LATE_S or computing * passed_s < COMPUTING_MIN * (self._used_s - before_s):
            return
        for task, share in shares.items():
            if task and share >= SHARE_MIN:
                self.found(task, late_s, late_s * share / computing, share * 100)

    def _passed_s(self) -> float:
        """Since the look before."""
        before_s, self._looked_s = self._looked_s, self._monotonic()
        return max(self._looked_s - before_s, 0.001)

    def _shares(self, passed_s: float) -> dict[str, float]:
        """By task, how much of a core its threads have used meanwhile; "" are tasks that cannot be told apart."""
        before, self._read = self._read, {}
        shares: dict[str, float] = {}
        for worker_id, task, cpu in self._threads():
            used_s = cpu.read() if cpu is not None else None
            if used_s is None:
                continue
            self._read[worker_id] = used_s
            share = (used_s - before.get(worker_id, used_s)) / passed_s
            shares[task or ""] = shares.get(task or "", 0.0) + share
        return shares
