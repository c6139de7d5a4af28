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
AT_ONCE_MS, READINGS_MAX = 100, 100
"""Two clocks that are read within this were read at once. Where the process stands still between the two, ``offset_ms`` tries it
again. ``reading``, which is asked many times a job, does not: ``SettledClock`` goes by the boot clock then."""


class Clock(Protocol):
    def now_ms(self) -> int: ...

    def boot_ms(self) -> int: ...

    def offset_ms(self) -> int: ...

    def reading(self) -> tuple[int, int]:
        """``now_ms`` and ``offset_ms`` as of one moment: one who sets the clock does not come between them."""
        ...

    def wall_ms(self) -> int:
        """``now_ms``, also where others do not go by it yet: see ``SettledClock``."""
        ...


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
        after_ms = self.boot_ms()
        for _ in range(READINGS_MAX):
            before_ms, now_ms, after_ms = after_ms, self.now_ms(), self.boot_ms()
            if after_ms - before_ms <= AT_ONCE_MS:
                break
        return now_ms - after_ms

    def reading(self) -> tuple[int, int]:
        now_ms = self.now_ms()
        return now_ms, now_ms - self.boot_ms()

    def wall_ms(self) -> int:
        return self.now_ms()


class SettledClock:
    """A clock that somebody may set, as the server sees it: it is set as soon as the rows that wait in the file have moved along.

    Until then, a second at most, it goes on as it did. So what begins to wait before that goes by the old time, and is moved with
    the rest; what begins after it goes by the new one. ``settle`` is for the transaction that moves the rows.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_ms = clock.offset_ms()

    def __repr__(self) -> str:
        jump_ms = self.jump_ms()
        return f"<SettledClock {rfc3339(self.now_ms())}{f', set by {jump_ms} ms' if jump_ms else ''}>"

    def now_ms(self) -> int:
        return self.reading()[0]

    def boot_ms(self) -> int:
        return self._clock.boot_ms()

    def offset_ms(self) -> int:
        return self.reading()[1]

    def reading(self) -> tuple[int, int]:
        now_ms, offset_ms = self._clock.reading()
        jump_ms = offset_ms - self._offset_ms
        return (now_ms - jump_ms, self._offset_ms) if abs(jump_ms) > CLOCK_JUMP_MS else (now_ms, offset_ms)

    def wall_ms(self) -> int:
        """What the clock shows that somebody may have set, whether the file knows of it or not."""
        return self._clock.now_ms()

    def jump_ms(self) -> int:
        """By how much it was set since it was settled; 0: it was not."""
        jump_ms = self._clock.offset_ms() - self._offset_ms
        return jump_ms if abs(jump_ms) > CLOCK_JUMP_MS else 0

    def settle(self, jump_ms: int) -> None:
        """The rows in the file have moved by so much, which may be negative: taken back."""
        self._offset_ms += jump_ms


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

    def reading(self) -> tuple[int, int]:
        offset_ms = self._offset_ms
        return self._boot_ms + offset_ms, offset_ms

    def wall_ms(self) -> int:
        return self.now_ms()

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
