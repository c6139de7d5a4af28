"""A schedule in a sentence: "At 02:00 every day, Europe/Berlin time"."""

from __future__ import annotations

import datetime as dt
import functools

from miniflow.clock import rfc3339, to_ms
from miniflow.contract import Definition
from miniflow.timetable import Cron, zone

_UNITS = ((604_800, "week"), (86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def sentence(definition: Definition) -> str:
    """Of a definition that is resolved."""
    d = definition
    if d.cron is not None:
        return _of_cron(d.cron, d.timezone or "UTC")
    if d.every is not None:
        words = f"Every {_span(d.every)}"
        return words if d.anchor is None else f"{words}, counted from {(rfc3339(to_ms(d.anchor)) or '')[:19]}Z"
    assert d.at is not None
    there = d.at.astimezone(zone(d.timezone or "UTC").info)
    return f"Once, at {there:%Y-%m-%d %H:%M:%S}, {d.timezone} time"


@functools.lru_cache(maxsize=4096)
def _of_cron(expression: str, timezone: str) -> str:
    return f"{Cron(expression, timezone).in_words()}, {timezone} time"


def _span(seconds: float) -> str:
    """ "5 minutes", "hour", "90.5 seconds": in the largest unit that it is a whole number of."""
    for size, name in _UNITS:
        if seconds % size == 0:
            n = int(seconds // size)
            return name if n == 1 else f"{n:,} {name}s"
    return f"{seconds:g} seconds"


def local(ms: int, timezone: str) -> str:
    """A moment as clocks in that zone show it, with the offset: ``2026-03-29T03:00:00+02:00``."""
    return dt.datetime.fromtimestamp(ms // 1000, zone(timezone).info).isoformat()
