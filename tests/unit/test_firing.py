"""What becomes of the slots of a schedule: fired, missed, made up for, waiting for each other. Time is a clock of the test's."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from miniflow import current_job
from miniflow.engine import Engine
from miniflow.errors import InvalidRequest, NotFound, ScheduleExists, ShuttingDown
from miniflow.firing import COUNTED_MAX, LATE_MS
from miniflow.states import State
from tests.engines import (
    Engines,
    FakeClock,
    Gate,
    SetInAGroup,
    cancel,
    rows,
    settle,
    verb,
    wait_for_ends,
    wait_for_state,
)
from tests.schedules import (
    DAY,
    HOUR,
    MINUTE,
    after,
    backfill,
    change,
    column,
    create,
    fires,
    iso,
    outcomes,
    runs,
    to_the_minute,
)
from tests.waiting import wait_until


@pytest.fixture
def clock() -> FakeClock:
    made = FakeClock()
    to_the_minute(made, 1440)
    return made


def work(n: int = 0) -> int:
    return n


def fail() -> None:
    raise ValueError("no")


# ------------------------------------------------------------------------------------------------------------------- on time


def test_a_slot_makes_one_job_that_knows_its_time_and_its_schedule(engines: Engines, clock: FakeClock) -> None:
    seen: list[Any] = []

    def look() -> None:
        job = current_job()
        seen.append((job.schedule, job.scheduled_for))

    engine = engines([look], clock=clock)
    start = clock.now_ms()
    create(engine, "each minute", "look", every=60)
    after(engine, clock, MINUTE - 1)
    assert fires(engines.path, "each minute") == []

    after(engine, clock, 1)
    wait_for_ends(engines.path)
    assert fires(engines.path, "each minute") == [("due", "fired", start + MINUTE)]
    ((name, slot),) = seen
    assert (name, slot.timestamp() * 1000, slot.tzname()) == ("each minute", start + MINUTE, "UTC")
    engines.stop(engine)


def test_the_job_is_claimed_in_the_transaction_that_fires(engines: Engines, clock: FakeClock) -> None:
    gate = engines.gate()

    def held() -> None:
        gate.pass_through()

    engine = engines([held], clock=clock)
    create(engine, "s", "held", every=60)
    engine.supervisor.stop()  # which has what happened in a minute written
    settle(engine)
    groups = engine.writer.groups
    clock.advance(MINUTE)
    verb(engine, lambda tx: None)
    (job,) = rows(engines.path)
    assert job.lease is not None
    # That of the fire, and of the mark of the job; where an idle writer has looked at the clock in between, that of the verb too.
    assert engine.writer.groups <= groups + 3


def test_a_new_schedule_does_not_run_for_the_present_minute_nor_does_a_restart(
    engines: Engines, clock: FakeClock
) -> None:
    engine = engines([work], clock=clock)
    create(engine, "s", "work", cron="* * * * *")
    settle(engine)
    assert runs(engines.path, "s") == []
    after(engine, clock, MINUTE)
    assert len(runs(engines.path, "s")) == 1
    for _ in range(3):
        engines.stop(engine)
        engine = engines([work], clock=clock)
        after(engine, clock, 5000)
    assert len(runs(engines.path, "s")) == 1


def test_a_one_shot_runs_once_and_is_finished(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock)
    at = clock.now_ms() + HOUR
    create(engine, "once", "work", at=iso(at))
    after(engine, clock, HOUR)
    after(engine, clock, DAY)
    assert fires(engines.path, "once") == [("due", "fired", at)]
    assert column(engines.path, "once", "next_slot") is None
    with pytest.raises(InvalidRequest, match="at: is over"):
        create(engine, "late", "work", at=iso(at))


def test_jitter_puts_a_run_off_by_the_same_after_a_restart(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock)
    create(engine, "s", "work", every=3600, jitter=600)
    slot, fire_at = column(engines.path, "s", "next_slot"), column(engines.path, "s", "fire_at")
    assert slot < fire_at <= slot + 600_000
    engines.stop(engine)
    engine = engines([work], clock=clock)
    clock.advance(fire_at - clock.now_ms() - 1)
    settle(engine)
    assert runs(engines.path, "s") == []
    after(engine, clock, 1)
    assert runs(engines.path, "s") == [slot]


def test_many_at_one_moment_all_fire_in_groups(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock, workers=0)
    for n in range(210):
        create(engine, f"s{n}", "work", every=60)
    after(engine, clock, MINUTE)
    wait_until(lambda: len(rows(engines.path)), 5, "all of them", until=lambda n: n == 210)
    assert all(len(runs(engines.path, f"s{n}")) == 1 for n in (0, 199, 200, 209))
    engines.stop(engine)


def test_an_idle_scheduler_writes_nothing(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock)
    create(engine, "s", "work", every=86_400)
    settle(engine)
    groups = engine.writer.groups
    for _ in range(50):
        clock.advance(MINUTE)
        engine.writer.nudge()
    assert engine.writer.groups == groups


def test_a_job_starts_within_fifty_milliseconds_of_its_time(engines: Engines) -> None:
    """By the machine's clock. The best of some: others use this machine too."""
    engine = engines([work])
    create(engine, "s", "work", every=1)

    def late_ms() -> list[int]:
        return [
            job.started_at % 1000 for job in rows(engines.path, "state = 'completed'") if job.started_at is not None
        ]

    wait_until(late_ms, 20, "one that is in time", until=lambda late: min(late, default=50) < 50)


# -------------------------------------------------------------------------------------------------------------- missed runs


def off_for(engines: Engines, clock: FakeClock, ms: int, **contract: Any) -> Engine:
    """A schedule of each hour, and a machine that was off for ``ms``."""
    engine = engines([work], clock=clock)
    create(engine, "hourly", "work", cron="0 * * * *", **contract)
    engines.crash(engine)
    clock.advance(ms)
    engine = engines([work], clock=clock)
    settle(engine)
    settle(engine)
    return engine


@pytest.mark.parametrize(
    ("contract", "hours"),
    [
        ({"catchup": "none"}, []),
        ({"catchup": "latest"}, [5]),
        ({}, [5]),
        ({"catchup": "all", "overlap": "allow"}, [1, 2, 3, 4, 5]),
        ({"catchup": "all", "overlap": "allow", "catchup_max": 2}, [4, 5]),
        ({"catchup": "all", "overlap": "allow", "catchup_window": 3 * 3600}, [3, 4, 5]),
        ({"catchup": "latest", "catchup_window": 600}, []),
    ],
)
def test_what_a_machine_that_was_off_makes_up_for(
    engines: Engines, clock: FakeClock, contract: dict[str, Any], hours: list[int]
) -> None:
    start = clock.now_ms()
    engine = off_for(engines, clock, 5 * HOUR + 20 * MINUTE, **contract)
    assert runs(engines.path, "hourly") == [start + hour * HOUR for hour in hours]
    after(engine, clock, 40 * MINUTE)
    assert fires(engines.path, "hourly")[-1] == ("due", "fired", start + 6 * HOUR) or contract.get("overlap") != "allow"
    engines.stop(engine)


def test_missed_slots_are_one_row_that_says_how_many(engines: Engines, clock: FakeClock) -> None:
    start = clock.now_ms()
    engine = off_for(engines, clock, 5 * HOUR + 20 * MINUTE, catchup="none")
    assert fires(engines.path, "hourly") == [("due", "missed", start + 5 * HOUR)]
    assert engine.writer.counter("schedule_missed", "hourly") == 5
    engines.stop(engine)


def test_a_late_start_of_less_than_a_minute_is_on_time(engines: Engines, clock: FakeClock) -> None:
    start = clock.now_ms()
    off_for(engines, clock, HOUR + LATE_MS, catchup="none")
    assert fires(engines.path, "hourly") == [("due", "fired", start + HOUR)]


def test_a_year_of_missed_seconds_is_settled_at_once(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock)
    create(engine, "s", "work", cron="* * * * * *")
    clock.advance(366 * DAY)
    settle(engine)
    settle(engine)
    assert [outcome for _, outcome, _ in fires(engines.path, "s")] == ["missed", "fired"]
    assert engine.writer.counter("schedule_missed", "s") == COUNTED_MAX


def test_runs_that_are_made_up_for_wait_for_each_other(engines: Engines, clock: FakeClock) -> None:
    """Also where a run that is on time would be skipped: it was asked for all of them."""
    start = clock.now_ms()
    engine = off_for(engines, clock, 4 * HOUR + 20 * MINUTE, catchup="all", overlap="skip")
    wait_until(lambda: runs(engines.path, "hourly"), 5, "four runs", until=lambda found: len(found) == 4)
    assert runs(engines.path, "hourly") == [start + n * HOUR for n in range(1, 5)]
    wait_for_ends(engines.path)
    jobs = rows(engines.path)
    assert all(one.completed_at <= two.started_at for one, two in itertools.pairwise(jobs))  # type: ignore[operator]
    engines.stop(engine)


# ----------------------------------------------------------------------------------------------------------------- the clock


def test_a_clock_that_is_set_back_fires_nothing_twice(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock)
    create(engine, "s", "work", every=600)
    for _ in range(6):
        after(engine, clock, 10 * MINUTE)
        wait_for_ends(engines.path)
    before = runs(engines.path, "s")
    clock.set_wall(-HOUR)
    for _ in range(6):
        after(engine, clock, 10 * MINUTE)
    assert runs(engines.path, "s") == before
    after(engine, clock, 10 * MINUTE)
    assert len(runs(engines.path, "s")) == len(before) + 1
    engines.stop(engine)


def test_a_clock_that_is_set_forward_is_as_a_machine_that_was_off(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock)
    start = clock.now_ms()
    create(engine, "s", "work", every=600)
    clock.set_wall(HOUR + 5 * MINUTE)
    settle(engine)
    settle(engine)
    assert fires(engines.path, "s") == [("due", "missed", start + 50 * MINUTE), ("catchup", "fired", start + HOUR)]
    engines.stop(engine)


def test_a_clock_that_was_years_ahead_and_is_put_right_does_not_silence_a_schedule(
    engines: Engines, clock: FakeClock
) -> None:
    engine = engines([work], clock=clock)
    start = clock.now_ms()
    create(engine, "s", "work", every=600)
    clock.set_wall(4 * 366 * DAY)
    settle(engine)
    settle(engine)
    wait_for_ends(engines.path)
    clock.set_wall(-4 * 366 * DAY)
    settle(engine)
    after(engine, clock, 10 * MINUTE)
    assert start + 10 * MINUTE in runs(engines.path, "s")
    engines.stop(engine)


def test_a_clock_that_is_set_while_a_group_is_written_counts_from_the_next_on(engines: Engines) -> None:
    clock = SetInAGroup()
    start = to_the_minute(clock, 10)
    engine = engines([work], clock=clock)
    create(engine, "s", "work", every=600)
    clock.set_wall(4 * 366 * DAY)
    settle(engine)
    wait_for_ends(engines.path)
    settle(engine)
    clock.set_next = -4 * 366 * DAY
    settle(engine)
    settle(engine)
    assert len(runs(engines.path, "s")) == 1
    after(engine, clock, 10 * MINUTE)
    assert start + 10 * MINUTE in runs(engines.path, "s")
    engines.stop(engine)


# ------------------------------------------------------------------------------------------------------------------- overlaps


def holding(
    engines: Engines, clock: FakeClock, overlap: str, minutes: int = 3, **contract: Any
) -> tuple[Engine, Gate, int]:
    """A run that does not end, and as many further slots as there are minutes."""
    gate = engines.gate()

    def hold() -> None:
        gate.look_out(current_job().check_cancelled)

    engine = engines([hold], clock=clock, workers=4)
    start = clock.now_ms()
    create(engine, "s", "hold", every=60, overlap=overlap, **contract)
    after(engine, clock, MINUTE)
    gate.wait_for_arrival()
    for _ in range(minutes):
        after(engine, clock, MINUTE)
    return engine, gate, start


@pytest.mark.parametrize(
    ("overlap", "at_first", "in_the_end"),
    [
        ("allow", ["fired"] * 4, ["fired"] * 4),
        ("skip", ["fired", "skipped", "skipped", "skipped"], ["fired", "skipped", "skipped", "skipped"]),
        ("queue_one", ["fired", "waiting", "skipped", "skipped"], ["fired", "fired", "skipped", "skipped"]),
        ("queue_all", ["fired", "waiting", "waiting", "waiting"], ["fired"] * 4),
    ],
)
def test_what_a_slot_does_while_the_run_before_it_goes_on(
    engines: Engines, clock: FakeClock, overlap: str, at_first: list[str], in_the_end: list[str]
) -> None:
    engine, gate, _ = holding(engines, clock, overlap)
    assert outcomes(engines.path, "s") == at_first
    gate.open()
    wait_until(lambda: outcomes(engines.path, "s"), 5, "the runs that waited", until=lambda found: found == in_the_end)
    wait_for_ends(engines.path)
    engines.stop(engine)


def test_a_newer_run_can_take_the_place_of_the_one_that_goes_on(engines: Engines, clock: FakeClock) -> None:
    engine, gate, start = holding(engines, clock, "cancel_running", minutes=1)
    wait_until(lambda: runs(engines.path, "s"), 5, "the newer run", until=lambda found: len(found) == 2)
    first, second = rows(engines.path)
    assert wait_for_state(engines.path, first.id).state == State.CANCELLED
    gate.open()
    assert wait_for_state(engines.path, second.id).state == State.COMPLETED
    assert runs(engines.path, "s") == [start + MINUTE, start + 2 * MINUTE]
    engines.stop(engine)


def test_a_job_that_is_cancelled_lets_the_next_run_begin(engines: Engines, clock: FakeClock) -> None:
    engine, gate, _ = holding(engines, clock, "queue_one", minutes=1)
    (first,) = rows(engines.path)
    cancel(engine, first.id)
    wait_until(lambda: outcomes(engines.path, "s"), 5, "the next run", until=lambda found: found == ["fired", "fired"])
    gate.open()
    wait_for_ends(engines.path)
    engines.stop(engine)


def test_what_waits_outlasts_a_crash(engines: Engines, clock: FakeClock) -> None:
    engine, gate, _ = holding(engines, clock, "queue_all", minutes=2)
    engines.crash(engine)
    gate.open()

    def hold() -> None: ...

    engine = engines([hold], clock=clock)
    wait_until(lambda: outcomes(engines.path, "s"), 5, "all runs", until=lambda found: found == ["fired"] * 3)
    wait_for_ends(engines.path)
    engines.stop(engine)


# ------------------------------------------------------------------------------------------------------------------- failures


def test_a_schedule_pauses_itself_after_failures_in_a_row(engines: Engines, clock: FakeClock) -> None:
    engine = engines([fail], clock=clock)
    create(engine, "s", "fail", every=60, max_retries=0, pause_after_failures=2)
    for _ in range(4):
        after(engine, clock, MINUTE)
        wait_for_ends(engines.path)
        settle(engine)
        settle(engine)
    assert len(runs(engines.path, "s")) == 2
    assert column(engines.path, "s", "paused_reason") == "2 runs in a row failed (pause_after_failures is 2)"
    verb(engine, engine.schedules.resume("s"))
    assert column(engines.path, "s", "failures") == 0
    after(engine, clock, MINUTE)
    assert len(runs(engines.path, "s")) == 3
    engines.stop(engine)


def test_one_that_ends_well_ends_the_row_of_failures(engines: Engines, clock: FakeClock) -> None:
    bad = [True, True, False, True]

    def sometimes() -> None:
        if bad.pop(0):
            raise ValueError("no")

    engine = engines([sometimes], clock=clock)
    create(engine, "s", "sometimes", every=60, max_retries=0, pause_after_failures=3)
    seen = []
    for _ in range(4):
        after(engine, clock, MINUTE)
        wait_for_ends(engines.path)
        settle(engine)
        settle(engine)
        seen.append(column(engines.path, "s", "failures"))
    assert seen == [1, 2, 0, 1]
    assert column(engines.path, "s", "paused_at") is None
    engines.stop(engine)


def test_a_run_that_cannot_be_made_is_refused_and_said(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock)
    create(engine, "s", "work", every=60)
    engines.stop(engine)
    engine = engines([fail], clock=clock)
    after(engine, clock, MINUTE)
    assert outcomes(engines.path, "s") == ["refused"]
    assert column(engines.path, "s", "failures") == 1
    engines.stop(engine)


def test_a_full_queue_refuses_a_run_as_it_does_a_submit(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock, workers=0, max_queue=1)
    create(engine, "a", "work", every=60)
    create(engine, "b", "work", every=60)
    after(engine, clock, MINUTE)
    assert sorted(outcomes(engines.path, "a") + outcomes(engines.path, "b")) == ["fired", "refused"]
    engines.stop(engine)


# ---------------------------------------------------------------------------------------------------------------------- verbs


def test_a_pause_is_not_made_up_for(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock)
    start = clock.now_ms()
    create(engine, "s", "work", every=60, catchup="all", overlap="allow")
    verb(engine, engine.schedules.pause("s", "for a while"))
    verb(engine, engine.schedules.pause("s", "twice is fine"))
    after(engine, clock, HOUR)
    verb(engine, engine.schedules.pause("s"))
    assert runs(engines.path, "s") == []
    assert column(engines.path, "s", "paused_reason") == "for a while"
    verb(engine, engine.schedules.resume("s"))
    after(engine, clock, MINUTE)
    assert runs(engines.path, "s") == [start + HOUR + MINUTE]
    engines.stop(engine)


def test_what_is_due_when_a_schedule_changes_runs_as_it_was_promised(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock)
    start = clock.now_ms()
    create(engine, "s", "work", every=3600, payload={"n": 1})
    clock.advance(HOUR)
    change(engine, "s", "work", every=600, payload={"n": 2})
    wait_for_ends(engines.path)
    after(engine, clock, 10 * MINUTE)
    wait_for_ends(engines.path)
    assert runs(engines.path, "s") == [start + HOUR, start + HOUR + 10 * MINUTE]
    assert [job.result for job in rows(engines.path)] == ["1", "2"]
    engines.stop(engine)


def test_a_change_that_leaves_the_times_alone_keeps_what_was_missed(engines: Engines, clock: FakeClock) -> None:
    engine = off_for(engines, clock, 10 * MINUTE)
    change(engine, "hourly", "work", cron="0 * * * *", description="new words")
    after(engine, clock, 50 * MINUTE)
    assert len(runs(engines.path, "hourly")) == 1
    engines.stop(engine)


def test_run_now_runs_beside_the_timetable(engines: Engines, clock: FakeClock) -> None:
    engine, gate, _ = holding(engines, clock, "skip", minutes=0)
    job_id = verb(engine, engine.schedules.run_now("s")).id
    assert wait_for_state(engines.path, job_id, State.RUNNING)
    assert fires(engines.path, "s")[-1][:2] == ("manual", "fired")
    gate.open()
    wait_for_ends(engines.path)
    after(engine, clock, MINUTE)
    assert outcomes(engines.path, "s") == ["fired", "fired", "fired"]
    engines.stop(engine)


def test_a_backfill_says_the_count_first_and_runs_each_slot_once(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock)
    create(engine, "s", "work", cron="0 * * * *", catchup="none")
    start = clock.now_ms()
    after(engine, clock, HOUR)
    wait_for_ends(engines.path)
    verb(engine, engine.schedules.pause("s"))
    clock.advance(3 * HOUR)

    day = (start, start + DAY)
    assert backfill(engine, "s", *day, dry_run=True) == (5, 1, 4)
    assert len(rows(engines.path)) == 1
    assert backfill(engine, "s", *day) == (5, 1, 4)
    verb(engine, engine.schedules.resume("s"))
    wait_until(lambda: runs(engines.path, "s"), 5, "all runs", until=lambda found: len(found) == 5)
    assert runs(engines.path, "s") == [start + n * HOUR for n in range(5)]
    assert backfill(engine, "s", *day) == (5, 5, 0)
    wait_for_ends(engines.path)
    engines.stop(engine)


def test_a_backfill_runs_what_was_missed_and_what_was_skipped(engines: Engines, clock: FakeClock) -> None:
    start = clock.now_ms()
    engine = off_for(engines, clock, 2 * HOUR + 20 * MINUTE, catchup="none", overlap="allow")
    assert outcomes(engines.path, "hourly") == ["missed"]
    assert backfill(engine, "hourly", start + 1, start + 2 * HOUR) == (2, 0, 2)
    assert runs(engines.path, "hourly") == [start + HOUR, start + 2 * HOUR]
    engines.stop(engine)


def test_a_backfill_that_is_too_much_is_refused(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock, max_batch=10)
    create(engine, "s", "work", every=60)
    now = clock.now_ms()
    with pytest.raises(InvalidRequest, match="60 runs are missing there, the limit max_batch is 10"):
        backfill(engine, "s", now - HOUR + 1, now)
    with pytest.raises(InvalidRequest, match="more than 20,000 slots"):
        backfill(engine, "s", now - 366 * DAY, now, dry_run=True)
    with pytest.raises(InvalidRequest, match="to: is before from"):
        backfill(engine, "s", now, now - 1, dry_run=True)


def test_a_schedule_that_is_deleted_is_gone_and_its_jobs_stay(engines: Engines, clock: FakeClock) -> None:
    engine, gate, _ = holding(engines, clock, "queue_all", minutes=1)
    verb(engine, engine.schedules.delete("s"))
    gate.open()
    wait_for_ends(engines.path)
    after(engine, clock, HOUR)
    assert len(rows(engines.path)) == 1
    with pytest.raises(NotFound, match="schedule not found: s"):
        verb(engine, engine.schedules.delete("s"))
    engines.stop(engine)


def test_a_name_is_taken_once(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock, max_schedules=1)
    create(engine, "s", "work", every=60)
    with pytest.raises(ScheduleExists, match="there is a schedule 's' already"):
        create(engine, "s", "work", every=60)
    with pytest.raises(InvalidRequest, match="the limit max_schedules is 1"):
        create(engine, "t", "work", every=60)


def test_a_server_that_stops_fires_nothing_more(engines: Engines, clock: FakeClock) -> None:
    engine = engines([work], clock=clock)
    create(engine, "s", "work", every=60)
    engine.stop_taking()
    clock.advance(MINUTE)
    settle(engine)
    assert fires(engines.path, "s") == []
    with pytest.raises(ShuttingDown):
        verb(engine, engine.schedules.run_now("s"))
