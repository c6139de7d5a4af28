"""A clock without a battery: schedules wait until it can be believed, and say so."""

from __future__ import annotations

import sys

import pytest

from miniflow import clocktrust
from miniflow.clocktrust import BEHIND_MS, MADE_MS, ClockTrust, synchronised
from miniflow.engine import Engine
from tests.engines import Engines, FakeClock, settle, submit, wait_for_ends
from tests.schedules import DAY, MINUTE, after, create, outcomes, runs, to_the_minute

YEARS = 20 * 365 * DAY


@pytest.fixture
def clock() -> FakeClock:
    made = FakeClock()
    to_the_minute(made, 1440)
    return made


def work() -> None:
    pass


@pytest.fixture
def right(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the system says that its clock is kept right; the test may change it."""
    answer = [False]
    monkeypatch.setattr(clocktrust, "synchronised", lambda: answer[0])
    return answer


# ---------------------------------------------------------------------------------------------------------- what is believed


@pytest.mark.parametrize(
    ("behind_ms", "answer", "anyway", "believed"),
    [
        (0, False, False, True),
        (BEHIND_MS, False, False, True),
        (BEHIND_MS + 1, False, False, False),
        (BEHIND_MS + 1, None, False, False),
        (BEHIND_MS + 1, True, False, True),
        (YEARS, False, False, False),
        (YEARS, False, True, True),
    ],
)
def test_a_clock_is_believed_that_is_not_behind_or_that_something_keeps_right(
    behind_ms: int, answer: bool | None, anyway: bool, believed: bool, clock: FakeClock
) -> None:
    trust = ClockTrust(clock, anyway=anyway, ask=lambda: answer)
    trust.begin(clock.now_ms() + behind_ms)
    assert trust.trusted == believed
    assert believed or "--trust-clock" in trust.reason


def test_a_clock_from_before_the_program_was_made_is_not_believed_in_an_empty_file(clock: FakeClock) -> None:
    clock.set_wall(MADE_MS - BEHIND_MS - 1 - clock.now_ms())
    trust = ClockTrust(clock, ask=lambda: False)
    trust.begin(0)
    assert not trust.trusted
    assert "before 2025-11-24T" in trust.reason


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says it")
def test_this_system_says_whether_its_clock_is_kept_right() -> None:
    assert synchronised() in (True, False)


# ------------------------------------------------------------------------------------------------------- what schedules do


def rebooted(engines: Engines, clock: FakeClock) -> Engine:
    """A schedule of each minute has run; then the board lost its power, and its clock begins twenty years ago."""
    engine = engines([work], clock=clock)
    create(engine, "s", "work", every=60, catchup="latest")
    after(engine, clock, MINUTE)
    wait_for_ends(engines.path)
    engines.crash(engine)
    clock.set_wall(-YEARS)
    return engines([work], clock=clock)


def test_schedules_wait_for_a_clock_that_lost_its_time_and_then_make_up_for_it(
    engines: Engines, clock: FakeClock, right: list[bool]
) -> None:
    engine = rebooted(engines, clock)
    ran = runs(engines.path, "s")
    after(engine, clock, 10 * MINUTE)
    assert runs(engines.path, "s") == ran
    assert "schedules wait until it is right" in engine.schedules.firing.trust.reason

    clock.set_wall(YEARS)  # the network tells the time
    after(engine, clock, 0)
    assert engine.schedules.firing.trust.trusted
    assert outcomes(engines.path, "s") == ["fired", "missed", "fired"]
    assert runs(engines.path, "s")[-1] == clock.now_ms()
    engines.stop(engine)


def test_they_go_on_as_soon_as_the_system_calls_the_clock_right(
    engines: Engines, clock: FakeClock, right: list[bool]
) -> None:
    """Also if it is behind what is in the file: what was ahead was wrong then. Nothing fires for the years between."""
    engine = rebooted(engines, clock)
    ran = runs(engines.path, "s")
    right[0] = True
    after(engine, clock, 0)
    after(engine, clock, MINUTE)
    assert engine.schedules.firing.trust.trusted
    assert len(runs(engines.path, "s")) == len(ran) + 1
    engines.stop(engine)


def test_a_clock_of_1970_that_is_put_right_makes_up_for_nothing(
    engines: Engines, clock: FakeClock, right: list[bool]
) -> None:
    clock.set_wall(-clock.now_ms() + MINUTE)
    engine = engines([work], clock=clock, trust_clock=True)
    create(engine, "s", "work", every=60, catchup="all")
    clock.set_wall(YEARS + 36 * 365 * DAY)
    after(engine, clock, 0)
    assert outcomes(engines.path, "s") == []
    after(engine, clock, MINUTE)
    assert runs(engines.path, "s") == [clock.now_ms() - clock.now_ms() % MINUTE]
    engines.stop(engine)


def test_an_owner_can_have_them_fire_by_any_clock(engines: Engines, clock: FakeClock, right: list[bool]) -> None:
    clock.set_wall(-YEARS)
    engine = engines([work], clock=clock, trust_clock=True)
    create(engine, "s", "work", every=60)
    after(engine, clock, MINUTE)
    settle(engine)
    assert len(runs(engines.path, "s")) == 1
    engines.stop(engine)


def test_jobs_run_meanwhile(engines: Engines, clock: FakeClock, right: list[bool]) -> None:
    engine = rebooted(engines, clock)
    submit(engine, "work")
    wait_for_ends(engines.path)
    engines.stop(engine)
