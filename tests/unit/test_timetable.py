"""When schedules are due, over every time zone and ten years, against an oracle that goes about it in another way.

The oracle walks the days of the calendar, makes each wall time that a schedule means, and asks the zone by PEP 495
(``fold``) what became of it: one moment, two, or none. The code under test knows spans of one offset and cronsim.
"""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import random
import zoneinfo
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
from cronsim import CronSim
from hypothesis import given, settings

from miniflow import timetable
from miniflow.errors import InvalidRequest
from miniflow.timetable import Cron, Interval, Once, newest, slots
from tests.effort import examples

UTC = dt.UTC
FIRST, LAST = dt.date(2026, 1, 1), dt.date(2036, 1, 1)
GAPS, OVERLAPS = ("run_after", "skip"), ("first", "second", "both")
POLICIES = list(itertools.product(GAPS, OVERLAPS))


def ms(when: dt.datetime) -> int:
    return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


def utc(text: str) -> int:
    return ms(dt.datetime.fromisoformat(text))


def texts(found: Iterable[int]) -> list[str]:
    return [f"{dt.datetime.fromtimestamp(slot / 1000, UTC):%Y-%m-%d %H:%M}" for slot in found]


# --------------------------------------------------------------------------------------------------------------- the oracle


class Meant(NamedTuple):
    """Wall times: these minutes of these hours, on each day or on some weekdays (Monday is 0)."""

    cron: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    weekdays: tuple[int, ...] = tuple(range(7))


ALL_HOURS = tuple(range(24))
MEANT = [
    Meant("0,30 0-23 * * *", (0, 30), ALL_HOURS),
    Meant("*/15 * * * *", (0, 15, 30, 45), ALL_HOURS),
    Meant("7 * * * *", (7,), ALL_HOURS),
    Meant("30 2 * * *", (30,), (2,)),
    Meant("0 0 * * MON-FRI", (0,), (0,), (0, 1, 2, 3, 4)),
    Meant("59 23 * * *", (59,), (23,)),
]


def oracle(meant: Meant, zone: zoneinfo.ZoneInfo, days: Iterable[dt.date], on_gap: str, on_overlap: str) -> list[int]:
    found: set[int] = set()
    for day in days:
        if day.weekday() in meant.weekdays:
            for hour in meant.hours:
                for minute in meant.minutes:
                    wall = dt.datetime.combine(day, dt.time(hour, minute))
                    found.update(moments(wall, zone, on_gap, on_overlap))
    return sorted(found)


def moments(wall: dt.datetime, zone: zoneinfo.ZoneInfo, on_gap: str, on_overlap: str) -> Iterator[int]:
    first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if first == second:
        yield ms(first)
    elif first.astimezone(zone).replace(tzinfo=None) == wall:  # twice
        yield from ([ms(first)] if on_overlap in ("first", "both") else [])
        yield from ([ms(second)] if on_overlap in ("second", "both") else [])
    elif on_gap == "run_after":  # not at all: ``first`` lies after the change, ``second`` before it
        low, high = second, first
        while high - low > dt.timedelta(seconds=1):
            middle = low + (high - low) // 2
            middle = middle.replace(microsecond=0) if middle.replace(microsecond=0) > low else high
            if middle == high:
                break
            if middle.astimezone(zone).utcoffset() == low.astimezone(zone).utcoffset():
                low = middle
            else:
                high = middle
        yield ms(high)


def days_between(first: dt.date, last: dt.date) -> list[dt.date]:
    return [first + dt.timedelta(days=n) for n in range((last - first).days)]


@functools.cache
def zones_by_their_changes() -> dict[tuple[tuple[dt.date, Any], ...], str]:
    """A zone of each kind: those that are alike for ten years are one. By its key, the days on which its offset changes."""
    found: dict[tuple[tuple[dt.date, Any], ...], str] = {}
    noons = [dt.datetime.combine(day, dt.time(12), UTC) for day in days_between(FIRST, LAST)]
    for name in sorted(zoneinfo.available_timezones()):
        zone = zoneinfo.ZoneInfo(name)
        before, changes = None, []
        for noon in noons:
            offset = noon.astimezone(zone).utcoffset()
            if offset != before:
                changes.append((noon.date(), offset))
                before = offset
        found.setdefault(tuple(changes), name)
    return found


def check(meant: Meant, name: str, first: dt.date, last: dt.date, on_gap: Any, on_overlap: Any) -> None:
    """The slots in the days of UTC from ``first`` to ``last`` are those of the oracle."""
    start, end = ms(dt.datetime.combine(first, dt.time())), ms(dt.datetime.combine(last, dt.time()))
    around = days_between(first - dt.timedelta(days=2), last + dt.timedelta(days=2))
    expected = [
        slot for slot in oracle(meant, zoneinfo.ZoneInfo(name), around, on_gap, on_overlap) if start < slot <= end
    ]
    found = list(slots(Cron(meant.cron, name, on_gap, on_overlap), start, end))
    assert found == expected, f"{meant.cron} {name} {on_gap} {on_overlap}: {sorted(set(found) ^ set(expected))[:6]}"


def test_around_each_change_of_each_zone_slots_are_where_the_oracle_has_them() -> None:
    """A fair sample: each kind of zone, each policy; the complete sweep is below."""
    chance = random.Random(5)
    for changes, name in zones_by_their_changes().items():
        days = [day for day, _ in changes[1:]]
        for day in chance.sample(days, min(len(days), 3)):
            on_gap, on_overlap = chance.choice(POLICIES)
            first, last = day - dt.timedelta(days=1), day + dt.timedelta(days=1)
            check(chance.choice(MEANT), name, first, last, on_gap, on_overlap)


@pytest.mark.fault
@pytest.mark.parametrize("part", range(4))
def test_ten_years_of_every_zone_are_as_the_oracle_has_them(part: int) -> None:
    """Each zone, with the thorough profile; else one in so many."""
    step = examples(12, thorough=4)
    for n, (changes, name) in enumerate(zones_by_their_changes().items()):
        if n % step == part:
            on_gap, on_overlap = POLICIES[n // 4 % len(POLICIES)]
            check(MEANT[3 + n % 3], name, FIRST, LAST, on_gap, on_overlap)
            for place, (on_gap, on_overlap) in enumerate(POLICIES):
                for day, _ in changes[1:]:
                    one = MEANT[(place + day.toordinal()) % 3]
                    check(one, name, day - dt.timedelta(days=1), day + dt.timedelta(days=1), on_gap, on_overlap)


@pytest.mark.parametrize(
    "name", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "UTC"]
)
@pytest.mark.parametrize(
    "cron", ["30 2 * * *", "15 1,2,3 * * *", "*/20 * * * *", "10 * * * *", "0 0 1 * *", "45 1 * * SUN"]
)
def test_what_is_left_open_is_as_debians_cron_has_it(cron: str, name: str) -> None:
    """cronsim's own rules for time zones are Debian's."""
    start = dt.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo(name))
    theirs = [ms(found) for found in itertools.islice(CronSim(cron, start), 500)]
    assert list(itertools.islice(slots(Cron(cron, name), ms(start), 1 << 62), 500)) == theirs


# ------------------------------------------------------------------------------------------------------------- by example


@pytest.mark.parametrize(
    ("on_gap", "on_overlap", "march", "october"),
    [
        (None, None, ["2026-03-29 01:00"], ["2026-10-25 00:30"]),
        ("skip", "second", [], ["2026-10-25 01:30"]),
        ("run_after", "both", ["2026-03-29 01:00"], ["2026-10-25 00:30", "2026-10-25 01:30"]),
    ],
)
def test_half_past_two_in_berlin(on_gap: Any, on_overlap: Any, march: list[str], october: list[str]) -> None:
    cron = Cron("30 2 * * *", "Europe/Berlin", on_gap, on_overlap)
    assert texts(slots(cron, utc("2026-03-28T12:00"), utc("2026-03-29T12:00"))) == march
    assert texts(slots(cron, utc("2026-10-24T12:00"), utc("2026-10-25T12:00"))) == october


def test_several_slots_in_one_gap_are_one_run() -> None:
    cron = Cron("0,20,40 2 * * *", "Europe/Berlin")
    assert texts(slots(cron, utc("2026-03-28T12:00"), utc("2026-03-29T12:00"))) == ["2026-03-29 01:00"]


def test_a_day_that_does_not_exist_is_a_gap_too() -> None:
    """Samoa had no 30 December 2011."""
    cron = Cron("0 8 30 12 *", "Pacific/Apia")
    assert texts(slots(cron, utc("2011-12-01"), utc("2012-01-15"))) == ["2011-12-30 10:00"]
    assert texts(slots(Cron("0 8 30 12 *", "Pacific/Apia", "skip"), utc("2011-12-01"), utc("2012-01-15"))) == []


def test_each_second_ticks_through_both_changes() -> None:
    cron = Cron("* * * * * *", "Europe/Berlin")
    for start in (utc("2026-03-29T00:59:50"), utc("2026-10-25T00:59:50"), utc("2026-10-25T01:59:50")):
        assert list(slots(cron, start, start + 20_000)) == [start + n * 1000 for n in range(1, 21)]


def test_a_slot_says_what_is_unusual_about_it() -> None:
    cron = Cron("30 2 * * *", "Europe/Berlin", on_overlap="both")
    assert cron.note(utc("2026-03-29T01:00")) == "right after the wall times that do not exist (from 02:00 on)"
    assert cron.note(utc("2026-10-25T00:30")) == "the first 02:30 of two on this day"
    assert cron.note(utc("2026-10-25T01:30")) == "the second 02:30 of this day"
    assert cron.note(utc("2026-06-01T00:30")) is None
    assert Interval(1000).note(0) is None
    assert Once(5).note(5) is None


@pytest.mark.parametrize(("alias", "same"), timetable.ALIASES.items())
def test_an_alias_is_its_expression(alias: str, same: str) -> None:
    start = utc("2026-01-01T00:00")
    assert Cron(alias, "UTC").next_after(start) == Cron(same, "UTC").next_after(start)


@pytest.mark.parametrize(
    ("cron", "says"),
    [
        ("0 25 * * *", "bad hour; the fields are (second) minute hour"),
        ("* * *", "it has 3 fields, not five or six"),
        ("@reboot", "'@reboot' is none of @yearly"),
        ("", "it has 0 fields"),
        ("0 0 31 2 *", "bad day-of-month"),
        ("* * * * FRI-MON", "bad day-of-week"),
        ("*/0 * * * *", "bad minute"),
        ("x" * 300, "has 300 characters, 200 are allowed"),
        ("0 0 * * 1/L", "bad day-of-week"),
        ("L L L L L", "cannot be read"),
        ("1//2 * * * *", "cannot be read"),
        ("0 0 L/2-3 * *", "cannot be read"),
    ],
)
def test_what_is_no_cron_is_refused_with_the_field_and_the_order_of_fields(cron: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Cron(cron, "UTC")
    assert refused.value.field == "cron"
    assert says in refused.value.reason


@given(st.text(alphabet="0123456789*/,-#LWMONFRI@ ", max_size=40))
@settings(max_examples=300, deadline=None)
def test_whatever_is_typed_is_a_cron_or_refused(text: str) -> None:
    try:
        cron = Cron(text, "Europe/Berlin")
    except InvalidRequest:
        return
    assert cron.next_after(0) is None or cron.next_after(0) > 0  # type: ignore[operator]


@pytest.mark.parametrize("name", ["Europe/Berln", "", "../etc/passwd", "a\0b", "x" * 500])
def test_what_is_no_time_zone_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        timetable.zone(name)
    assert refused.value.field == "timezone"
    if name == "Europe/Berln":
        assert "did you mean Europe/Berlin" in refused.value.reason


# --------------------------------------------------------------------------------------------------- intervals, many slots


@given(st.integers(1000, 10**9), st.integers(0, 2 * 10**12), st.integers(0, 4 * 10**12))
def test_an_interval_keeps_its_phase(every_ms: int, anchor: int, after: int) -> None:
    slot = Interval(every_ms, anchor).next_after(after)
    assert slot is not None
    assert slot > after
    assert (slot - anchor) % every_ms == 0
    assert slot - after <= every_ms or slot == anchor


def test_a_one_shot_is_due_once() -> None:
    assert Once(500).next_after(499) == 500
    assert Once(500).next_after(500) is None


@given(st.integers(1, 40), st.integers(0, 10**7), st.integers(1, 30))
@settings(deadline=None)
def test_the_newest_slots_are_the_last_of_all(minutes: int, span_s: int, n: int) -> None:
    table = Cron(f"*/{minutes} * * * *", "UTC")
    after = utc("2026-01-01T00:00")
    until = after + span_s * 100
    everything = list(slots(table, after, until))
    assert newest(table, after, until, n) == everything[-n:]
    assert timetable.count(table, after, until, 25) == min(len(everything), 25)


def test_the_newest_of_very_many_is_found_without_walking_them_all() -> None:
    start = utc("2026-01-01T00:00")
    year_ms = 366 * 86_400_000
    assert newest(Cron("* * * * * *", "UTC"), start, start + year_ms, 2) == [start + year_ms - 1000, start + year_ms]
    assert newest(Cron("@yearly", "UTC"), start, start + 3 * year_ms, 1) == [utc("2029-01-01T00:00")]
