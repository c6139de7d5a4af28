"""How late the event loop is: what runs on it, or holds the interpreter lock, makes every request wait as long.

A timer that asks to be called in TICK_S, and looks how much later it was. Two calls a second cost an idle server nothing that
could be measured; the loop of async jobs is measured only while there are some.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

TICK_S = 0.5
WINDOW_S = 60.0


class LoopLag:
    """``last_s``: the latest measurement; ``max_s``: the largest of the last minute, however often it is asked for."""

    def __init__(self, wanted: Callable[[], bool] = lambda: True) -> None:
        """Once started it measures for as long as it is ``wanted``."""
        self._wanted = wanted
        self._last_s = 0.0
        self._recent: deque[tuple[float, float]] = deque()  # when, and how late
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.also: Callable[[float], None] = lambda _: None  # told each measurement

    def __repr__(self) -> str:
        return f"<LoopLag [last {self.last_s * 1000:.1f} ms | max {self.max_s * 1000:.1f} ms]>"

    @property
    def measuring(self) -> bool:
        return self._timer is not None

    @property
    def last_s(self) -> float:
        """Also of a loop that stands still right now, which another thread may ask for."""
        return max(self._last_s, time.monotonic() - self._due if self.measuring else 0.0)

    @property
    def max_s(self) -> float:
        since_s = time.monotonic() - WINDOW_S
        return max((late_s for at_s, late_s in list(self._recent) if at_s >= since_s), default=0.0)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = time.monotonic() + TICK_S
        self._timer = loop.call_later(TICK_S, self._tick, loop)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._last_s = 0.0

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = time.monotonic()
        self._last_s = late_s = max(now_s - self._due, 0.0)
        self._recent.append((now_s, late_s))
        while self._recent[0][0] < now_s - WINDOW_S:
            self._recent.popleft()
        self.also(late_s)
        if self._wanted():
            self.start(loop)
        else:
            self.stop()
