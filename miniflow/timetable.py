"""When a schedule is due: arithmetic alone, without a clock and without a file.

A *slot* is a moment that a schedule means, in milliseconds since the epoch. A timetable answers one question, ``next_after``:
the first slot after a moment. What matches a cron expression is cronsim's business, and it is asked about wall time without a
zone; what the wall does in a time zone is decided here, because there a schedule has a choice. A zone is a row of spans with
one offset each. Where the clocks go forward, the wall times of the *gap* do not exist: its slots are one run right after it, or
none. Where they go back, those of the *overlap* exist twice: the first counts, the second, or both.

What is left open follows Debian's cron: a schedule at a time of day runs once on each day (after the gap, first of the
overlap); one that ticks (``*`` or ``*/15`` for the minute or the hour) goes on ticking through both.
"""

from __future__ import annotations

import copy
import datetime as dt
import difflib
import functools
import zoneinfo
from bisect import bisect_right
from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

from cronsim import CronSim, CronSimError

from miniflow.errors import InvalidRequest

OnGap = Literal["run_after", "skip"]
OnOverlap = Literal["first", "second", "both"]

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
CRON_CHARS_MAX = 200
FIELD_NAMES = "(second) minute hour day-of-month month day-of-week"
YEARS_SEEN = 3  # transitions are looked for so many years ahead at a time
PROBE_S = 12 * 3600  # no zone changes its offset and changes it back within half a day
EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - the wall has no zone
EPOCH_UTC = EPOCH.replace(tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)
NEWEST_FIRST_WINDOW_MS = 60_000


class Timetable(Protocol):
    def next_after(self, ms: int) -> int | None:
        """The first slot later than ``ms``; None if there is none any more (or none in fifty years)."""
        ...

    def note(self, slot: int) -> str | None:
        """What is unusual about this slot, in words."""
        ...


# ---------------------------------------------------------------------------------------------------------------- time zones


class Transition(NamedTuple):
    """At the second ``at`` (since the epoch) the offset from UTC changes. Where both are the same, nobody has looked further."""

    at: int
    before: int
    after: int


class Zone:
    """A time zone as spans of one offset."""

    def __init__(self, name: str) -> None:
        self.name, self.info = name, zoneinfo.ZoneInfo(name)
        self.fixed = self.info.utcoffset(None) is not None

    def __repr__(self) -> str:
        return f"<Zone {self.name}>"

    def offset(self, at: int) -> int:
        """Seconds east of UTC at the second ``at``."""
        found = (EPOCH_UTC + at * SECOND).astimezone(self.info).utcoffset()
        assert found is not None
        return round(found.total_seconds())

    def next_transition(self, after: int) -> Transition | None:
        if self.fixed:
            return None
        year = _year(after)
        for ahead in range(YEARS_SEEN):
            found = _transitions(self, year + ahead)
            place = bisect_right(found, after, key=lambda one: one.at)
            if place < len(found):
                return found[place]
        end = _new_year(year + YEARS_SEEN)
        return Transition(end, self.offset(end), self.offset(end))

    def last_transition(self, until: int) -> Transition | None:
        """The last one at ``until`` or before it, if it is recent enough to matter."""
        if self.fixed:
            return None
        year = _year(until)
        found = [*_transitions(self, year - 1), *_transitions(self, year)]
        place = bisect_right(found, until, key=lambda one: one.at)
        return found[place - 1] if place else None


@functools.lru_cache(maxsize=1024)
def zone(name: str) -> Zone:
    """InvalidRequest for a name that is none."""
    try:
        return Zone(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError, UnicodeError):
        close = difflib.get_close_matches(name[:100], zoneinfo.available_timezones(), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else "; names look like Europe/Berlin or UTC"
        raise InvalidRequest("timezone", f"{name[:100]!r} is no time zone{hint}") from None


@functools.lru_cache(maxsize=8192)
def _transitions(where: Zone, year: int) -> list[Transition]:
    found = []
    start, end = _new_year(year), _new_year(year + 1)
    before, offset = start, where.offset(start)
    while before < end:
        at = min(before + PROBE_S, end)
        there = where.offset(at)
        if there != offset:
            low, high = before, at
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if where.offset(middle) == offset else (low, middle)
            found.append(Transition(high, offset, there))
        before, offset = at, there
    return found


def _year(at: int) -> int:
    return (EPOCH_UTC + at * SECOND).year


def _new_year(year: int) -> int:
    return int((dt.datetime(year, 1, 1, tzinfo=dt.UTC) - EPOCH_UTC) / SECOND)


# --------------------------------------------------------------------------------------------------------------------- cron


class Cron:
    """A cron expression of five or six fields (the first is then the second), or ``@daily`` and its like, in a time zone."""

    def __init__(
        self, expression: str, timezone: str, on_gap: OnGap | None = None, on_overlap: OnOverlap | None = None
    ) -> None:
        """InvalidRequest for what cannot be read. None for a policy is that of Debian's cron, see the module's text."""
        self.expression, self.zone = expression, zone(timezone)
        self._sim = _parsed(expression)
        self._latest: tuple[int | None, int | None] = None, None
        self.ticks = any(field.startswith("*") for field in self._sim.parts[1:3])  # also "*/15"
        self.on_gap: OnGap = on_gap or ("skip" if self.ticks else "run_after")
        self.on_overlap: OnOverlap = on_overlap or ("both" if self.ticks else "first")

    def __repr__(self) -> str:
        return f"<Cron {self.expression} {self.zone.name} [gap {self.on_gap}, overlap {self.on_overlap}]>"

    def next_after(self, ms: int) -> int | None:
        asked, answer = self._latest  # many schedules of one time share this object, and fire together
        if asked != ms:
            answer = self._next_after(ms)
            self._latest = ms, answer
        return answer

    def _next_after(self, ms: int) -> int | None:
        start = ms // 1000
        offset, span_end = self.zone.offset(start), self.zone.next_transition(start)
        span_start = self.zone.last_transition(start)
        position = start + offset  # on the wall; the slot is later
        while True:
            wall = self._next_on_wall(position)
            if wall is None:
                return None
            if span_end is None or wall < span_end.at + offset:
                skip_to = self._passed_over(wall, span_start, span_end)
                if skip_to is None:
                    return (wall - offset) * 1000
                position = skip_to - 1
                continue
            if self.on_gap == "run_after" and wall < span_end.at + span_end.after:
                return span_end.at * 1000
            offset = span_end.after
            position = span_end.at + offset - 1
            span_start, span_end = span_end, self.zone.next_transition(span_end.at)

    def _passed_over(self, wall: int, start: Transition | None, end: Transition | None) -> int | None:
        """None for a wall time that counts. Of those that exist twice one may not: then, from which wall time on to look."""
        if start is not None and wall < start.at + start.before and start.after < start.before:
            return start.at + start.before if self.on_overlap == "first" else None
        if end is not None and wall >= end.at + end.after and end.after < end.before:
            return end.at + end.before if self.on_overlap == "second" else None
        return None

    def _next_on_wall(self, position: int) -> int | None:
        sim = copy.copy(self._sim)
        try:
            sim.dt = EPOCH + position * SECOND
            return int((next(sim) - EPOCH) / SECOND)
        except (StopIteration, OverflowError):
            return None

    def in_words(self) -> str:
        """ "At 02:00 every day"."""
        words: str = self._sim.explain()
        return words

    def matches(self, wall: int) -> bool:
        return self._next_on_wall(wall - 1) == wall

    def note(self, slot: int) -> str | None:
        at = slot // 1000
        offset = self.zone.offset(at)
        start, end = self.zone.last_transition(at), self.zone.next_transition(at)
        if start is not None and start.at == at and start.after > start.before and not self.matches(at + offset):
            return f"right after the wall times that do not exist (from {clock_of(at + start.before)} on)"
        wall = clock_of(at + offset)
        if start is not None and start.after < start.before and at + offset < start.at + start.before:
            return f"the second {wall} of this day"
        if end is not None and end.after < end.before and at + offset >= end.at + end.after:
            return f"the first {wall} of two on this day"
        return None


def clock_of(wall: int) -> str:
    return f"{EPOCH + wall * SECOND:%H:%M}"


@functools.lru_cache(maxsize=4096)
def _parsed(expression: str) -> CronSim:
    text = expression.strip()
    if text.startswith("@"):
        known = ALIASES.get(text.lower())
        if known is None:
            raise InvalidRequest("cron", f"{text[:40]!r} is none of {', '.join(ALIASES)}")
        text = known
    if len(text) > CRON_CHARS_MAX:
        raise InvalidRequest("cron", f"has {len(text)} characters, {CRON_CHARS_MAX} are allowed")
    try:
        # Without a zone cronsim knows nothing of gaps and overlaps: those are decided here.
        return CronSim(text, EPOCH)
    except CronSimError as exc:
        raise InvalidRequest("cron", f"{text!r} cannot be read: {_reason(str(exc), text)}") from None
    except (ValueError, AssertionError, TypeError, RecursionError):  # what its parser did not foresee
        raise InvalidRequest("cron", f"{text!r} cannot be read; the fields are {FIELD_NAMES}") from None


def _reason(said: str, text: str) -> str:
    if said.startswith("Wrong number"):
        return f"it has {len(text.split())} fields, not five or six: {FIELD_NAMES}"
    return f"{said[:1].lower()}{said[1:]}; the fields are {FIELD_NAMES}"


# --------------------------------------------------------------------------------------------------- intervals and one-shots


class Interval:
    """Every so many milliseconds, counted from ``anchor``: a restart does not move the phase."""

    def __init__(self, every_ms: int, anchor_ms: int = 0) -> None:
        self.every_ms, self.anchor_ms = every_ms, anchor_ms

    def __repr__(self) -> str:
        return f"<Interval {self.every_ms} ms from {self.anchor_ms}>"

    def next_after(self, ms: int) -> int | None:
        slot = self.anchor_ms + ((ms - self.anchor_ms) // self.every_ms + 1) * self.every_ms
        return max(slot, self.anchor_ms)

    def note(self, _slot: int) -> str | None:
        return None


class Once:
    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms

    def __repr__(self) -> str:
        return f"<Once {self.at_ms}>"

    def next_after(self, ms: int) -> int | None:
        return self.at_ms if self.at_ms > ms else None

    def note(self, _slot: int) -> str | None:
        return None


# ---------------------------------------------------------------------------------------------------------------- many slots


def slots(table: Timetable, after: int, until: int) -> Iterator[int]:
    """The slots later than ``after`` up to ``until``, oldest first."""
    slot = table.next_after(after)
    while slot is not None and slot <= until:
        yield slot
        slot = table.next_after(slot)


def newest(table: Timetable, after: int, until: int, n: int) -> list[int]:
    """The last ``n`` of those, oldest first, however many there are."""
    width = NEWEST_FIRST_WINDOW_MS
    while True:
        start = max(after, until - width)
        found = list(slots(table, start, until))
        if len(found) >= n or start == after:
            return found[-n:]
        width *= 4


def count(table: Timetable, after: int, until: int, at_most: int) -> int:
    """How many they are; ``at_most`` for as many or more."""
    n = 0
    for _ in slots(table, after, until):
        n += 1
        if n == at_most:
            break
    return n
