"""Schedules that stand in code, in miniflow.toml and in huey's words; and what becomes of them when those change."""

from __future__ import annotations

import datetime as dt
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huey import crontab

from miniflow import BaseJob, registry, schedule, task
from miniflow.contract import Declared
from miniflow.declared import cron_of, from_table
from miniflow.engine import Engine
from miniflow.errors import InvalidRequest, SettingsError
from miniflow.huey_adapter import JobsHuey
from miniflow.huey_periodic import cron_of as cron_of_huey
from miniflow.loader import load_tasks
from miniflow.registry import Registry
from miniflow.settings import Settings
from miniflow.timetable import Cron, slots
from tests.engines import Engines, FakeClock, rows, verb, wait_for_ends
from tests.schedules import DAY, HOUR, MINUTE, after, change, column, create, fires, outcomes, runs, to_the_minute


@pytest.fixture
def clock() -> FakeClock:
    made = FakeClock()
    to_the_minute(made, 1440)
    return made


def declared(define: Callable[[], Any]) -> list[Declared]:
    with registry.collecting(Registry()) as found:
        define()
    return found.schedules


def one(*when: Any, **options: Any) -> Declared:
    def define() -> None:
        @schedule(*when, **options)
        def nightly(n: int = 0) -> int:
            return n

    (found,) = declared(define)
    return found


# ----------------------------------------------------------------------------------------------------------------- decorators


@pytest.mark.parametrize(
    ("when", "options", "cron"),
    [
        ((), {"hour": 2}, "0 2 * * *"),
        (("cron",), {"hour": 2}, "0 2 * * *"),
        ((), {"day_of_week": "mon-fri", "hour": 1}, "0 1 * * mon-fri"),
        ((), {"day_of_week": "sat,sun"}, "0 0 * * sat,sun"),
        ((), {"day_of_week": "fri-sun", "hour": "8-10", "minute": "*/20"}, "*/20 8-10 * * fri-7"),
        ((), {"minute": 30}, "30 * * * *"),
        ((), {"day": 1}, "0 0 1 * *"),
        ((), {"month": "6,12"}, "0 0 1 6,12 *"),
        ((), {"second": "*/10"}, "*/10 * * * * *"),
        ((), {"second": 0}, "* * * * *"),
        (("0 2 * * *",), {}, "0 2 * * *"),
        (("@daily",), {}, "@daily"),
        ((), {"cron": "15 3 * * *"}, "15 3 * * *"),
    ],
)
def test_keywords_are_a_cron_expression(when: tuple[str, ...], options: dict[str, Any], cron: str) -> None:
    assert one(*when, **options).definition.cron == cron


@pytest.mark.parametrize(
    ("options", "every"),
    [
        ({"minutes": 5}, 300),
        ({"seconds": 1}, 1),
        ({"hours": 1, "minutes": 30}, 5400),
        ({"days": 1}, 86_400),
        ({"weeks": 2}, 1_209_600),
        ({"every": dt.timedelta(minutes=2)}, 120),
    ],
)
def test_units_are_an_interval(options: dict[str, Any], every: float) -> None:
    assert one(**options).definition.every == every
    assert one("interval", **options).definition.every == every


@pytest.mark.parametrize("name", ["at", "run_date"])
def test_a_time_is_a_one_shot(name: str) -> None:
    when = dt.datetime(2030, 1, 31, 12, tzinfo=dt.UTC)
    assert one("date", **{name: when}).definition.at == when
    assert one(**{name: "2030-01-31T12:00:00Z"}).definition.at == when


@pytest.mark.parametrize(
    ("when", "options", "says"),
    [
        ((), {}, "cron: is missing; say when by one of cron, every and at"),
        (("0 25 * * *",), {}, "cron: '0 25 * * *' cannot be read: bad hour"),
        (("0 2 * * *",), {"hour": 2}, "cron: is given twice"),
        ((), {"hour": 2, "minutes": 5}, "minutes: cannot be given together with hour"),
        ((), {"minutes": 5, "cron": "0 2 * * *"}, "cron: cannot be given together with minutes"),
        ((), {"day_of_week": 0}, "day_of_week: takes names, such as mon-fri"),
        (
            (),
            {"hour": 2, "timezone": "Europe/Berln"},
            "timezone: 'Europe/Berln' is no time zone; did you mean Europe/Berlin",
        ),
        ((), {"hour": 2, "catchup": "some"}, "catchup: invalid enum value 'some'"),
        ((), {"hour": 2, "retries": 3}, "retries: is no option of a schedule"),
        ((), {"hour": 2, "payload": {"n": object()}}, "payload: is not JSON"),
        ((), {"minutes": "5"}, "minutes: is a number, got '5'"),
        ((), {"minutes": 5, "on_gap": "skip"}, "on_gap: is for cron"),
        ((), {"seconds": 0.5}, "every: expected float >= 1.0"),
        ((), {"hour": 2, "name": "a/b"}, "name: is one line, without a slash"),
        ((), {"every": 60, "jitter": 60}, "jitter: is less than every"),
        ((), {"hour": 2, "anchor": "2026-01-01T00:00:00Z"}, "anchor: is the phase of every"),
    ],
)
def test_what_cannot_be_taken_is_refused_where_it_stands(when: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="@schedule of task 'nightly'") as refused:
        one(*when, **options)
    assert says in str(refused.value)


def test_it_goes_over_functions_tasks_and_classes() -> None:
    def define() -> None:
        @schedule(hour=1)
        def plain() -> None: ...

        @schedule(hour=2, name="second")
        @schedule(hour=3)
        @task(queue="mail")
        def made() -> None: ...

        @schedule(day_of_week="mon-fri", hour=1, payload={"n": 5})
        class Import(BaseJob):
            n: int

            def _perform(self) -> None: ...

    assert [(found.name, found.definition.task) for found in declared(define)] == [
        ("Import", "Import"), ("made", "made"), ("plain", "plain"), ("second", "made"),
    ]  # fmt: skip


def test_two_tasks_cannot_have_schedules_of_one_name() -> None:
    def define() -> None:
        schedule(hour=1, name="x")(work)
        schedule(hour=1, name="x")(other)

    with pytest.raises(ValueError, match=r"the schedule 'x' is defined for 'work' in .* give one of them another name"):
        declared(define)


def test_cron_of_keywords_is_never_refused_by_cron() -> None:
    for name in ("second", "minute", "hour", "day", "month"):
        Cron(cron_of({name: 1}), "UTC")


# ------------------------------------------------------------------------------------------------------------------- the file

TABLE = """
[schedules.nightly]
task = "work"
hour = 2
timezone = "Europe/Berlin"
payload = { n = 3 }

[schedules."every five minutes"]
task = "work"
minutes = 5
overlap = "allow"

[schedules.once]
task = "work"
at = 2030-01-31T12:00:00Z
"""


def test_miniflow_toml_has_them_as_tables() -> None:
    found = {made.name: made for made in from_table(tomllib.loads(TABLE)["schedules"], "miniflow.toml")}
    assert found["nightly"].definition.cron == "0 2 * * *"
    assert bytes(found["nightly"].definition.payload) == b'{"n":3}'
    assert found["every five minutes"].definition.every == 300
    assert found["once"].definition.at == dt.datetime(2030, 1, 31, 12, tzinfo=dt.UTC)
    assert {(made.source, made.origin) for made in found.values()} == {("file", "miniflow.toml")}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '[schedules.x]\ntask = "work"\ncron = "0 99 * * *"',
            "miniflow.toml: schedules.x.cron: '0 99 * * *' cannot be read",
        ),
        ("[schedules.x]\nhour = 2", "miniflow.toml: schedules.x.task: is missing"),
        ("[schedules]\nx = 1", "miniflow.toml: schedules.x is no table"),
    ],
)
def test_what_is_wrong_in_it_is_named(text: str, says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        from_table(tomllib.loads(text)["schedules"], "miniflow.toml")
    assert says in str(refused.value)


# ------------------------------------------------------------------------------------------ definitions that come, change and go


def work(n: int = 0) -> int:
    return n


def other() -> None: ...


def with_schedule(*when: Any, **options: Any) -> Registry:
    with registry.collecting(Registry()) as found:
        schedule(*when, **options)(work)
    return found


def test_a_definition_is_taken_up_and_fires(engines: Engines, clock: FakeClock) -> None:
    engine = engines(with_schedule(minutes=5, payload={"n": 7}), clock=clock)
    assert (column(engines.path, "work", "source"), column(engines.path, "work", "origin")) == ("code", __file__)
    after(engine, clock, 5 * MINUTE)
    wait_for_ends(engines.path)
    assert [job.result for job in rows(engines.path)] == ["7"]
    engines.stop(engine)


def test_one_that_vanished_stays_marked_and_does_not_fire_and_goes_on_when_it_is_back(
    engines: Engines, clock: FakeClock
) -> None:
    start = clock.now_ms()
    engine = engines(with_schedule(minutes=5), clock=clock)
    engines.stop(engine)
    engine = engines([work], clock=clock)
    assert column(engines.path, "work", "missing_since") == start
    after(engine, clock, HOUR)
    assert fires(engines.path, "work") == []
    engines.stop(engine)
    engine = engines(with_schedule(minutes=5), clock=clock)
    assert column(engines.path, "work", "missing_since") is None
    after(engine, clock, 5 * MINUTE)
    assert runs(engines.path, "work") == [start + HOUR + 5 * MINUTE]
    engines.stop(engine)


def test_one_that_vanished_can_be_deleted_and_one_that_is_there_cannot(engines: Engines, clock: FakeClock) -> None:
    engine = engines(with_schedule(minutes=5), clock=clock)
    with pytest.raises(Exception, match=r"cannot delete, it is defined in .*; take it out there, or pause it"):
        verb(engine, engine.schedules.delete("work"))
    with pytest.raises(Exception, match=r"cannot change, it is defined in .*; change it there"):
        change(engine, "work", "work", every=60)
    engines.stop(engine)
    engine = engines([work], clock=clock)
    verb(engine, engine.schedules.delete("work"))
    engines.stop(engine)


@pytest.mark.parametrize(
    ("later", "minutes"), [({"minutes": 5, "payload": {"n": 2}}, [10]), ({"minutes": 7}, [10, 14])]
)
def test_what_was_missed_before_a_definition_changed_is_made_up_for_by_the_old_one(
    engines: Engines, clock: FakeClock, later: dict[str, Any], minutes: list[int]
) -> None:
    start = clock.now_ms()
    engine = engines(with_schedule(minutes=5, payload={"n": 1}), clock=clock)
    engines.crash(engine)
    clock.advance(12 * MINUTE)
    engine = engines(with_schedule(**later), clock=clock)
    wait_for_ends(engines.path)
    after(engine, clock, 2 * MINUTE)
    wait_for_ends(engines.path)
    # Of an interval of seven minutes the phase is that of the epoch, not of the change.
    assert len(runs(engines.path, "work")) >= 1
    assert runs(engines.path, "work")[0] == start + 10 * MINUTE
    assert rows(engines.path)[0].result == "1"
    assert all(slot > start + 12 * MINUTE for slot in runs(engines.path, "work")[1:])
    engines.stop(engine)


def test_a_pause_outlasts_a_restart_and_a_changed_definition(engines: Engines, clock: FakeClock) -> None:
    engine = engines(with_schedule(minutes=5), clock=clock)
    verb(engine, engine.schedules.pause("work"))
    engines.stop(engine)
    engine = engines(with_schedule(minutes=1), clock=clock)
    after(engine, clock, HOUR)
    assert fires(engines.path, "work") == []
    assert column(engines.path, "work", "fire_at") is None
    engines.stop(engine)


def test_a_name_that_a_person_took_first_stays_that_persons(
    engines: Engines, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engines([work], clock=clock)
    create(engine, "work", "work", every=60)
    engines.stop(engine)
    engine = engines(with_schedule(minutes=5), clock=clock)
    assert column(engines.path, "work", "source") == "api"
    assert "was not taken up: name: there is a schedule 'work' already" in caplog.text
    engines.stop(engine)


def test_files_are_loaded_with_their_schedules_and_a_broken_one_keeps_its_own(tmp_path: Path, clock: FakeClock) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    good = "from miniflow import schedule\n@schedule(minutes=5)\ndef a(): ...\n"
    (tasks / "a.py").write_text(good, "utf-8")
    assert [made.name for made in load_tasks(tasks).registry.schedules] == ["a"]
    engine = Engine(Settings(db=str(tmp_path / "jobs.db"), tasks=str(tasks)), clock=clock, huey=JobsHuey())
    try:
        engine.start()
        (tasks / "a.py").write_text("this is no Python", "utf-8")
        engine.reload()
        assert column(tmp_path / "jobs.db", "a", "missing_since") is None
        (tasks / "a.py").write_text(good.replace("=5", "=7"), "utf-8")
        engine.reload()
        assert '"every":420.0' in column(tmp_path / "jobs.db", "a", "definition")
        (tasks / "a.py").unlink()
        engine.reload()
        assert column(tmp_path / "jobs.db", "a", "missing_since") == clock.now_ms()
    finally:
        engine.stop(1)


def test_definitions_of_the_settings_file_and_of_code_stand_beside_each_other(tmp_path: Path, clock: FakeClock) -> None:
    made = from_table({"b": {"task": "a", "minutes": 5, "timezone": "Europe/Berlin"}}, "miniflow.toml")
    (tmp_path / "a.py").write_text("from miniflow import schedule\n@schedule(minutes=5)\ndef a(): ...\n", "utf-8")
    engine = Engine(
        Settings(db=str(tmp_path / "jobs.db"), tasks=str(tmp_path), timezone="Asia/Tokyo"),
        clock=clock,
        huey=JobsHuey(),
        declared=made,
    )
    try:
        engine.start()
        found = [column(tmp_path / "jobs.db", name, "source || (definition ->> 'timezone')") for name in ("a", "b")]
        assert found == ["codeAsia/Tokyo", "fileEurope/Berlin"]
    finally:
        engine.stop(1)


# ----------------------------------------------------------------------------------------------------------------------- huey


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"minute": "*/5"},
        {"minute": "0", "hour": "2"},
        {"minute": "0", "hour": "1", "day_of_week": "1-5"},
        {"minute": "3,17,40-43", "hour": "*/4"},
        {"minute": "0", "hour": "0", "day": "1"},
        {"minute": "0", "hour": "0", "day": "*/10", "day_of_week": "0"},
        {"minute": "0", "hour": "22-2", "month": "11-2"},
        {"minute": "0", "hour": "12", "day_of_week": "6,7"},
    ],
)
def test_hueys_crontab_is_the_cron_expression_with_the_same_minutes(given: dict[str, str]) -> None:
    validate = crontab(**given)
    cron = cron_of_huey(validate)
    assert cron is not None
    start = dt.datetime(2026, 2, 20)
    minutes = [start + dt.timedelta(minutes=n) for n in range(1, 40 * 1440)]
    theirs = [minute for minute in minutes if validate(minute)]
    first, last = (round(when.replace(tzinfo=dt.UTC).timestamp() * 1000) for when in (start, minutes[-1]))
    ours = [
        dt.datetime.fromtimestamp(slot / 1000, dt.UTC).replace(tzinfo=None)
        for slot in slots(Cron(cron, "UTC"), first, last)
    ]
    assert ours == theirs


@pytest.mark.parametrize("validate", [crontab(day="13", day_of_week="5"), lambda when: when.minute == 3, max])
def test_what_cron_cannot_say_is_asked_each_minute(validate: Any) -> None:
    assert cron_of_huey(validate) is None


def periodic(huey: JobsHuey, validate: Any) -> tuple[Registry, Any]:
    with registry.collecting(Registry()) as found:

        @huey.periodic_task(validate)
        def tick() -> None: ...

    return found, tick


def test_a_periodic_task_runs_once_a_slot_and_over_restarts(engines: Engines, clock: FakeClock) -> None:
    huey = JobsHuey()
    specs, _ = periodic(huey, crontab(minute="*/5"))
    engine = engines(specs, clock=clock, huey=huey)
    start = clock.now_ms()
    for _ in range(3):
        after(engine, clock, 5 * MINUTE)
        engines.stop(engine)
        engine = engines(specs, clock=clock, huey=huey)
    wait_for_ends(engines.path)
    assert runs(engines.path, "tick") == [start + n * 5 * MINUTE for n in (1, 2, 3)]
    engines.stop(engine)


def test_a_function_of_ones_own_says_when_and_only_those_minutes_are_in_the_history(
    engines: Engines, clock: FakeClock
) -> None:
    huey = JobsHuey()
    specs, _ = periodic(huey, lambda when: when.minute == 3)
    engine = engines(specs, clock=clock, huey=huey)
    start = clock.now_ms()
    for _ in range(5):
        after(engine, clock, MINUTE)
    assert runs(engines.path, "tick") == [start + 3 * MINUTE]
    assert outcomes(engines.path, "tick") == ["fired"]
    engines.stop(engine)


def test_a_function_that_raises_does_not_stop_the_writer(engines: Engines, clock: FakeClock) -> None:
    huey = JobsHuey()
    specs, _ = periodic(huey, lambda when: 1 / 0 > 0)
    engine = engines(specs, clock=clock, huey=huey)
    after(engine, clock, MINUTE)
    assert fires(engines.path, "tick") == []
    engines.stop(engine)


def test_a_periodic_task_that_is_revoked_is_skipped_when_it_would_fire(engines: Engines, clock: FakeClock) -> None:
    huey = JobsHuey()
    specs, tick = periodic(huey, crontab())
    engine = engines(specs, clock=clock, huey=huey)
    tick.revoke()
    after(engine, clock, MINUTE)
    assert (outcomes(engines.path, "tick"), rows(engines.path)) == (["skipped"], [])
    tick.restore()
    after(engine, clock, MINUTE)
    assert outcomes(engines.path, "tick") == ["skipped", "fired"]
    wait_for_ends(engines.path)
    tick.revoke(revoke_once=True)
    after(engine, clock, MINUTE)
    wait_for_ends(engines.path)
    after(engine, clock, MINUTE)
    wait_for_ends(engines.path)
    assert [job.state for job in rows(engines.path)] == ["completed", "cancelled", "completed"]
    engines.stop(engine)


def test_a_job_of_a_periodic_task_can_still_be_enqueued_by_hand(engines: Engines, clock: FakeClock) -> None:
    huey = JobsHuey()
    specs, tick = periodic(huey, crontab(hour="3", minute="0"))
    engine = engines(specs, clock=clock, huey=huey)
    tick()
    wait_for_ends(engines.path)
    assert len(rows(engines.path)) == 1
    engines.stop(engine)


def test_a_payload_that_does_not_fit_the_task_is_said_at_the_start(
    engines: Engines, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engines(with_schedule(minutes=5, payload={"n": "five"}), clock=clock)
    assert "was not taken up: payload.n: expected int, got str" in caplog.text
    after(engine, clock, DAY)
    assert rows(engines.path) == []
    engines.stop(engine)


def test_an_invalid_request_names_its_field() -> None:
    with pytest.raises(InvalidRequest) as refused:
        cron_of({"day_of_week": "1-5"})
    assert refused.value.field == "day_of_week"
