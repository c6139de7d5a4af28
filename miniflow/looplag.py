"""How late the event loop is: what runs on it, or holds the interpreter lock, makes every request wait as long.

A timer that asks to be called in TICK_S, and looks how much later it was. Two calls a second cost an idle server nothing that
could be measured.
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

    def __init__(self) -> None:
        self.last_s = 0.0
        self._recent: deque[float] = deque(maxlen=round(WINDOW_S / TICK_S))
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.also: Callable[[float], None] = lambda _: None  # told each measurement

    def __repr__(self) -> str:
        return f"<LoopLag [last {self.last_s * 1000:.1f} ms | max {self.max_s * 1000:.1f} ms]>"

    @property
    def max_s(self) -> float:
        return max(list(self._recent), default=0.0)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = time.monotonic() + TICK_S
        self._timer = loop.call_later(TICK_S, self._tick, loop)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self.last_s = max(time.monotonic() - self._due, 0.0)
        self._recent.append(self.last_s)
        self.also(self.last_s)
        self.start(loop)
