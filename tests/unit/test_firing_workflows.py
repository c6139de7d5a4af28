"""Schedules that start workflows: what becomes of their slots, and what a run knows of its own."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import msgspec
import pytest

from miniflow import current_job
from miniflow.contract import Definition
from miniflow.engine import Engine
from miniflow.errors import InvalidRequest
from miniflow.states import State
from miniflow.workflow_graph import definition_of
from tests.engines import Engines, FakeClock, Gate, rows, settle, verb, wait_for_ends
from tests.invariants import read
from tests.schedules import MINUTE, after, change, column, fires, iso, outcomes, runs, to_the_minute
from tests.waiting import wait_until
from tests.workflows import act, ended, steps


@pytest.fixture
def clock() -> FakeClock:
    made = FakeClock()
    to_the_minute(made, 1440)
    return made


def echo(value: Any = None) -> Any:
    return value


def fail() -> None:
    raise ValueError("no")


STAMP = [
    {"name": "first", "task": "echo", "payload": {"value": "${workflow.scheduled_for}"}},
    {"name": "then", "task": "echo", "payload": {"value": ["${steps.first}", "${workflow.schedule}", "${input.n}"]}},
]


def keep(engine: Engine, name: str, steps: list[dict[str, Any]], **fields: Any) -> None:
    verb(engine, engine.definitions.put(name, definition_of(msgspec.json.encode({"steps": steps, **fields}))))


def create(engine: Engine, name: str, workflow: str, **fields: Any) -> None:
    """One that starts a workflow; ``input`` as it is."""
    raw = msgspec.Raw(msgspec.json.encode(fields.pop("input", None)))
    definition = msgspec.convert({**fields, "workflow": workflow, "input": raw}, Definition)
    verb(engine, engine.schedules.create(name, engine.schedules.checked(definition)))


def started(path: Any, schedule: str = "s") -> list[str]:
    """The ids of the workflows that a schedule has started, by slot."""
    sql = (
        "SELECT job_id FROM fires JOIN schedules s ON s.id = schedule_id WHERE name = ? AND workflow = 1 ORDER BY slot"
    )
    with closing(read(path)) as connection:
        return [one for (one,) in connection.execute(sql, (schedule,))]


def test_a_slot_starts_a_workflow_that_knows_its_time_and_its_schedule(engines: Engines, clock: FakeClock) -> None:
    engine = engines([echo], clock=clock)
    keep(engine, "flow", STAMP, inputs={"n": {"default": 7}})
    begin = clock.now_ms()
    create(engine, "s", "flow", every=60)
    after(engine, clock, MINUTE)
    (workflow,) = started(engines.path)
    assert ended(engines.path, workflow) == ("completed", 2, None)
    at = iso(begin + MINUTE).replace("+00:00", ".000Z")
    assert steps(engines.path, workflow)["then"] == ("completed", [at, "s", 7])
    assert fires(engines.path, "s") == [("due", "fired", begin + MINUTE)]
    engines.stop(engine)


def test_each_run_is_of_the_newest_version_and_of_the_input_of_the_schedule(engines: Engines, clock: FakeClock) -> None:
    engine = engines([echo], clock=clock)
    keep(engine, "flow", STAMP)
    create(engine, "s", "flow", every=60, input={"n": 1})
    after(engine, clock, MINUTE)
    wait_for_ends(engines.path)
    keep(engine, "flow", [{"name": "only", "task": "echo", "payload": {"value": "${input.n}"}}])
    after(engine, clock, MINUTE)
    wait_for_ends(engines.path)
    assert [steps(engines.path, one).keys() for one in started(engines.path)] == [{"first", "then"}, {"only"}]
    engines.stop(engine)


# ------------------------------------------------------------------------------------------------------------------- overlaps


def holding(engines: Engines, clock: FakeClock, overlap: str, minutes: int, **contract: Any) -> tuple[Engine, Gate]:
    """A workflow whose first step does not end, and as many further slots as there are minutes."""
    gate = engines.gate()

    def hold() -> None:
        gate.look_out(current_job().check_cancelled)

    engine = engines([hold, echo], clock=clock, workers=4)
    keep(engine, "flow", [{"name": "hold", "task": "hold"}, {"name": "then", "task": "echo"}])
    create(engine, "s", "flow", every=60, overlap=overlap, **contract)
    after(engine, clock, MINUTE)
    gate.wait_for_arrival()
    for _ in range(minutes):
        after(engine, clock, MINUTE)
    return engine, gate


@pytest.mark.parametrize(
    ("overlap", "at_first", "in_the_end"),
    [
        ("skip", ["fired", "skipped", "skipped"], ["fired", "skipped", "skipped"]),
        ("queue_one", ["fired", "waiting", "skipped"], ["fired", "fired", "skipped"]),
        ("queue_all", ["fired", "waiting", "waiting"], ["fired", "fired", "fired"]),
        ("allow", ["fired", "fired", "fired"], ["fired", "fired", "fired"]),
    ],
)
def test_what_a_slot_does_while_the_workflow_before_it_goes_on(
    engines: Engines, clock: FakeClock, overlap: str, at_first: list[str], in_the_end: list[str]
) -> None:
    engine, gate = holding(engines, clock, overlap, 2)
    assert outcomes(engines.path, "s") == at_first
    gate.open()
    wait_until(lambda: outcomes(engines.path, "s"), 5, "the runs that waited", until=lambda found: found == in_the_end)
    for workflow in started(engines.path):
        assert ended(engines.path, workflow) == ("completed", 2, None)
    engines.stop(engine)


def test_a_newer_run_can_take_the_place_of_the_workflow_that_goes_on(engines: Engines, clock: FakeClock) -> None:
    engine, gate = holding(engines, clock, "cancel_running", 1)
    wait_until(lambda: len(started(engines.path)), 5, "the newer run", until=lambda n: n == 2)
    first, second = started(engines.path)
    assert ended(engines.path, first)[0] == "cancelled"
    gate.open()
    assert ended(engines.path, second) == ("completed", 2, None)
    engines.stop(engine)


def test_a_workflow_that_runs_is_still_known_after_a_restart(engines: Engines, clock: FakeClock) -> None:
    engine, gate = holding(engines, clock, "queue_one", 1)
    engines.crash(engine)
    gate.open()

    def hold() -> None: ...

    engine = engines([echo, hold], clock=clock)
    wait_until(
        lambda: outcomes(engines.path, "s"), 5, "the run that waited", until=lambda found: found == ["fired"] * 2
    )
    engines.stop(engine)


def test_workflows_that_fail_in_a_row_pause_the_schedule_and_cancelled_ones_do_not(
    engines: Engines, clock: FakeClock
) -> None:
    engine = engines([fail, echo], clock=clock)
    keep(engine, "flow", [{"name": "bad", "task": "fail", "max_retries": 0}])
    create(engine, "s", "flow", every=60, pause_after_failures=2)
    for failures in (1, 2):
        after(engine, clock, MINUTE)
        wait_until(lambda: column(engines.path, "s", "failures"), 5, "the failure", until=lambda n, f=failures: n == f)
    assert column(engines.path, "s", "paused_reason") == "2 runs in a row failed (pause_after_failures is 2)"
    assert ended(engines.path, started(engines.path)[0])[0] == "failed"
    engines.stop(engine)


# --------------------------------------------------------------------------------------------------------------------- verbs


def test_a_workflow_that_is_gone_is_a_refused_run_and_said(engines: Engines, clock: FakeClock) -> None:
    engine = engines([echo], clock=clock)
    keep(engine, "flow", STAMP, inputs={"n": {"default": 1}})
    create(engine, "s", "flow", every=60)
    verb(engine, engine.definitions.delete("flow"))
    after(engine, clock, MINUTE)
    assert outcomes(engines.path, "s") == ["refused"]
    assert column(engines.path, "s", "failures") == 1
    engines.stop(engine)


def test_a_workflow_that_does_not_fit_in_the_queue_is_refused_as_a_start_is(engines: Engines, clock: FakeClock) -> None:
    gate = engines.gate()
    engine = engines([gate.pass_through, echo], clock=clock, workers=1, max_queue=3)
    keep(engine, "flow", [{"name": f"s{n}", "task": "echo"} for n in range(4)])
    create(engine, "s", "flow", every=60)
    after(engine, clock, MINUTE)
    assert outcomes(engines.path, "s") == ["refused"]
    assert started(engines.path) == []
    assert rows(engines.path) == []
    engines.stop(engine)


def test_run_now_and_a_backfill_start_workflows(engines: Engines, clock: FakeClock) -> None:
    engine = engines([echo], clock=clock)
    keep(engine, "flow", STAMP, inputs={"n": {"default": 1}})
    create(engine, "s", "flow", every=60)
    begin = clock.now_ms()
    workflow = verb(engine, engine.schedules.run_now("s")).id
    assert ended(engines.path, workflow)[0] == "completed"
    verb(engine, engine.schedules.pause("s"))
    after(engine, clock, 3 * MINUTE)
    definition = engine.schedules.checked(msgspec.convert({"workflow": "flow", "every": 60}, Definition))
    slots = engine.schedules.slots_between(definition, begin + 1, begin + 2 * MINUTE)
    assert verb(engine, engine.schedules.backfill("s", definition, slots, dry_run=False)).done == 2
    verb(engine, engine.schedules.resume("s"))
    wait_until(lambda: len(runs(engines.path, "s")), 5, "all of them", until=lambda n: n == 3)
    wait_for_ends(engines.path)
    settle(engine)
    assert len(started(engines.path)) == 3
    engines.stop(engine)


def test_a_schedule_can_be_changed_from_a_task_to_a_workflow_and_back(engines: Engines, clock: FakeClock) -> None:
    engine = engines([echo], clock=clock)
    keep(engine, "flow", STAMP)
    create(engine, "s", "flow", every=60, input={"n": 1})
    change(engine, "s", "echo", payload={"value": 2})
    after(engine, clock, MINUTE)
    wait_for_ends(engines.path)
    verb(engine, engine.schedules.change("s", {"workflow": "flow", "input": {"n": 3}}))
    after(engine, clock, MINUTE)
    wait_for_ends(engines.path)
    (workflow,) = started(engines.path)
    assert steps(engines.path, workflow)["then"][1][2] == 3
    assert [job.result for job in rows(engines.path, "task = 'echo' AND options ->> 'schedule' = 's'")] == ["2"]
    assert outcomes(engines.path, "s") == ["fired", "fired"]
    engines.stop(engine)


def test_a_workflow_that_a_schedule_started_can_be_cancelled_and_retried(engines: Engines, clock: FakeClock) -> None:
    engine, gate = holding(engines, clock, "skip", 0)
    (workflow,) = started(engines.path)
    act(engine, "cancel", workflow)
    assert ended(engines.path, workflow)[0] == "cancelled"
    gate.open()
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow) == ("completed", 2, None)
    assert all(job.state == State.COMPLETED for job in rows(engines.path))
    engines.stop(engine)


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({}, "task", "say what to run"),
    ({"task": "echo", "workflow": "flow"}, "workflow", "give one of the two"),
    ({"task": "echo", "input": {"n": 1}}, "input", "is of a workflow"),
    ({"workflow": "flow", "payload": {"n": 1}, "input": {"n": 1}}, "payload", "is of a task"),
    ({"workflow": "flow", "input": {"n": 1}, "queue": "x"}, "queue", "is of the jobs of a task"),
    ({"workflow": "flow", "input": {"n": 1}, "max_retries": 1}, "max_retries", "is of the jobs of a task"),
    ({"workflow": "flow"}, "input.n", "is missing"),
    ({"workflow": "flaw", "input": {"n": 1}}, "workflow", "there is no definition 'flaw'; there are flow"),
]


def test_what_cannot_be_names_its_field(engines: Engines) -> None:
    engine = engines([echo])
    keep(engine, "flow", STAMP, inputs={"n": {}})
    for fields, field, says in WRONG:
        given = {name: msgspec.Raw(msgspec.json.encode(value)) if name in ("payload", "input") else value
                 for name, value in fields.items()}  # fmt: skip
        with pytest.raises(InvalidRequest) as refused:
            engine.schedules.checked(msgspec.convert({"every": 60, **given}, Definition))
        assert refused.value.field == field
        assert says in str(refused.value)
    engines.stop(engine)
