"""Two clocks and their difference; and times as people read them."""

from __future__ import annotations

import datetime as dt
import time
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from miniflow import clock
from miniflow.clock import CLOCK_JUMP_MS, Clock, SettledClock, SystemClock, boot_id, rfc3339, to_ms
from tests.engines import FakeClock

YEAR_10000_MS = 253_402_300_800_000


def test_wall_time_is_the_machines() -> None:
    before = time.time_ns() // 1_000_000
    now = SystemClock().now_ms()

    assert before <= now <= time.time_ns() // 1_000_000


def test_the_boot_clock_never_goes_back() -> None:
    system = SystemClock()
    readings = [system.boot_ms() for _ in range(10_000)]

    assert all(earlier <= later for earlier, later in pairwise(readings))


def test_setting_the_wall_clock_does_not_move_the_boot_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    system, real = SystemClock(), time.time_ns
    began, before, offset = time.monotonic_ns(), system.boot_ms(), system.offset_ms()
    monkeypatch.setattr(time, "time_ns", lambda: real() - 86_400 * 10**9)

    assert 0 <= system.boot_ms() - before <= (time.monotonic_ns() - began) // 1_000_000 + 1
    assert system.offset_ms() - offset == pytest.approx(-86_400_000, abs=CLOCK_JUMP_MS)


def test_while_nobody_sets_the_clock_the_offset_stays() -> None:
    system = SystemClock()
    offsets = [system.offset_ms() for _ in range(1_000)]

    assert max(offsets) - min(offsets) < CLOCK_JUMP_MS


class Halting(SystemClock):
    """A process that stands still for three seconds just after it has looked at the wall clock, the first few times."""

    def __init__(self, times: int) -> None:
        self.left, self.stood_ms = times, 0

    def now_ms(self) -> int:
        now_ms = super().now_ms() + self.stood_ms
        if self.left:
            self.left -= 1
            self.stood_ms += 3_000
        return now_ms

    def boot_ms(self) -> int:
        return super().boot_ms() + self.stood_ms


@pytest.mark.parametrize("times", [1, 3])
def test_a_process_that_stands_still_between_two_clocks_takes_neither_for_one_that_was_set(times: int) -> None:
    halting, offset = Halting(0), SystemClock().offset_ms()
    settled = SettledClock(halting)
    halting.left = times
    earliest = time.time_ns() // 1_000_000
    assert halting.offset_ms() == pytest.approx(offset, abs=CLOCK_JUMP_MS / 2)
    halting.left = 1
    now_ms, found = settled.reading()
    assert found == pytest.approx(offset, abs=CLOCK_JUMP_MS / 2)
    assert earliest <= now_ms - halting.stood_ms <= time.time_ns() // 1_000_000
    halting.left = times
    assert settled.jump_ms() == 0


@pytest.mark.parametrize("made", [SystemClock(), FakeClock()], ids=["the system's", "a test's"])
def test_the_offset_is_the_difference_of_the_two(made: Clock) -> None:
    before, now, after = made.boot_ms(), made.now_ms(), made.boot_ms()
    assert now - after - CLOCK_JUMP_MS <= made.offset_ms() <= now - before + CLOCK_JUMP_MS


def test_the_clock_of_the_tests_tells_a_jump_from_time_that_passes() -> None:
    fake = FakeClock()
    now, boot, offset = fake.now_ms(), fake.boot_ms(), fake.offset_ms()
    fake.advance(10)
    assert (fake.now_ms(), fake.boot_ms(), fake.offset_ms()) == (now + 10, boot + 10, offset)

    fake.set_wall(-5)
    assert (fake.now_ms(), fake.boot_ms(), fake.offset_ms()) == (now + 5, boot + 10, offset - 5)


def test_a_start_of_the_machine_has_one_name() -> None:
    assert boot_id() == boot_id()
    assert "\n" not in boot_id()


def test_where_there_is_no_boot_id_it_is_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(clock, "Path", lambda name: tmp_path / "none")

    assert boot_id() == ""


# ---------------------------------------------------------------------------------------------------------- in words


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (1_769_860_800_123, "2026-01-31T12:00:00.123Z"),
        (1_709_164_799_999, "2024-02-28T23:59:59.999Z"),
        (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
    ],
)
def test_a_time_is_written_in_utc_to_the_millisecond(ms: int, text: str) -> None:
    assert rfc3339(ms) == text


def test_no_time_is_no_text() -> None:
    assert rfc3339(None) is None


@given(st.integers(0, YEAR_10000_MS - 1))
def test_what_is_written_can_be_read(ms: int) -> None:
    assert to_ms(dt.datetime.fromisoformat(rfc3339(ms) or "")) == ms


@pytest.mark.parametrize("jump_ms", [86_400_000, -86_400_000])
def test_a_settled_clock_goes_on_as_it_did_until_it_is_settled(jump_ms: int) -> None:
    fake = FakeClock()
    clock = SettledClock(fake)
    now, offset = clock.reading()
    fake.set_wall(jump_ms)
    fake.advance(10)
    assert (clock.reading(), clock.now_ms(), clock.offset_ms()) == ((now + 10, offset), now + 10, offset)
    assert (clock.jump_ms(), clock.wall_ms()) == (jump_ms, now + 10 + jump_ms)
    clock.settle(jump_ms)
    assert (clock.reading(), clock.jump_ms()) == ((now + 10 + jump_ms, offset + jump_ms), 0)
    clock.settle(-jump_ms)  # the rows have not moved after all
    assert (clock.now_ms(), clock.jump_ms()) == (now + 10, jump_ms)


def test_a_settled_clock_follows_one_that_is_slewed() -> None:
    fake = FakeClock()
    clock = SettledClock(fake)
    fake.set_wall(CLOCK_JUMP_MS)
    assert (clock.reading(), clock.jump_ms()) == (fake.reading(), 0)


@given(st.integers(0, YEAR_10000_MS - 1), st.integers(0, YEAR_10000_MS - 1))
def test_texts_sort_as_their_times(one: int, other: int) -> None:
    assert ((rfc3339(one) or "") < (rfc3339(other) or "")) == (one < other)


@given(st.integers(0, YEAR_10000_MS - 86_400_001), st.integers(-14 * 60, 14 * 60))
def test_a_time_is_the_same_in_every_zone(ms: int, minutes: int) -> None:
    zone = dt.timezone(dt.timedelta(minutes=minutes))
    there = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=ms)
    if minutes < 0 and ms < 86_400_000:
        there += dt.timedelta(days=1)

    assert to_ms(there.astimezone(zone)) == to_ms(there)


def test_a_time_without_a_zone_is_utc() -> None:
    assert (
        to_ms(dt.datetime(2026, 1, 31, 12)) == to_ms(dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)) == 1_769_860_800_000
    )
