"""Time, handed in: no other module asks the operating system what time it is.

Two clocks. ``now_ms`` is wall time (milliseconds since the epoch): what people read, and what ``run_at`` means. ``boot_ms``
only ever grows and counts the time a laptop sleeps (``CLOCK_BOOTTIME``): what durations, timeouts and waits are measured
with. ``offset_ms`` is their difference; it changes when somebody sets the clock, and by nothing else.
"""

from __future__ import annotations

import datetime as dt
import functools
import time
from pathlib import Path
from typing import Protocol

CLOCK_JUMP_MS = 2000
"""A change of ``offset_ms`` beyond this is a clock that was set; below it is drift and slewing."""


class Clock(Protocol):
    def now_ms(self) -> int: ...

    def boot_ms(self) -> int: ...

    def offset_ms(self) -> int: ...


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    if hasattr(time, "CLOCK_BOOTTIME"):

        def boot_ms(self) -> int:
            return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    else:  # macOS and Windows: their monotonic clock counts sleep already

        def boot_ms(self) -> int:
            return time.monotonic_ns() // 1_000_000

    def offset_ms(self) -> int:
        return self.now_ms() - self.boot_ms()


class ManualClock:
    """A clock that stands still until it is moved. It begins at the present, and goes forward only."""

    def __init__(self) -> None:
        system = SystemClock()
        self._boot_ms, self._offset_ms = system.boot_ms(), system.offset_ms()

    def __repr__(self) -> str:
        return f"<ManualClock {rfc3339(self.now_ms())}>"

    def now_ms(self) -> int:
        return self._boot_ms + self._offset_ms

    def boot_ms(self) -> int:
        return self._boot_ms

    def offset_ms(self) -> int:
        return self._offset_ms

    @property
    def now(self) -> dt.datetime:
        return from_ms(self.now_ms())

    def advance(self, by: dt.timedelta | float = 0, **units: float) -> None:
        """Let time pass: seconds, a timedelta, or the units of one: ``advance(90)``, ``advance(days=1, hours=2)``."""
        passed = by if isinstance(by, dt.timedelta) else dt.timedelta(seconds=by)
        self._pass(round((passed + dt.timedelta(**units)).total_seconds() * 1000))

    def advance_to(self, when: dt.datetime) -> None:
        """Let time pass until ``when``; one without a zone is taken as UTC."""
        self._pass(to_ms(when) - self.now_ms())

    def _pass(self, ms: int) -> None:
        if ms < 0:
            raise ValueError(f"the clock of a test goes forward only, and this is {-ms / 1000:g} s back")
        self._boot_ms += ms


def boot_id() -> str:
    """What tells one start of the machine from the next; empty where the system has no such thing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def rfc3339(ms: int | None) -> str | None:
    """Milliseconds since the epoch as ``2026-01-31T12:00:00.123Z``; None stays None."""
    if ms is None:
        return None
    return f"{_to_the_second(ms // 1000)}.{ms % 1000:03d}Z"


@functools.lru_cache(maxsize=4096)  # thousands of submits share their second, and strftime costs more than all the rest
def _to_the_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def from_ms(ms: int) -> dt.datetime:
    """The same as a datetime in UTC."""
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC)


def to_ms(when: dt.datetime) -> int:
    """A datetime as milliseconds since the epoch; one without a zone is taken as UTC."""
    return round((when if when.tzinfo else when.replace(tzinfo=dt.UTC)).timestamp() * 1000)
