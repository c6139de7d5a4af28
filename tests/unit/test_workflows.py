"""Workflows: steps in order and as graphs, what flows between them, how they fail, and what can be done to them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from miniflow import bulk
from miniflow.engine import Engine
from miniflow.errors import (
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    QueueFull,
    TooLarge,
    TransitionRefused,
    UnknownTask,
)
from miniflow.explain import explain
from miniflow.states import State
from miniflow.workflow_graph import decode_workflow
from miniflow.workflows import WORKFLOWS
from tests.engines import Engines, FakeClock, Gate, row, settle, submit, verb, wait_for_state
from tests.invariants import check_invariants, read
from tests.workflows import act, ended, new_workflow, start, state, step_job, steps


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as engines:
        yield engines


def add(a: int = 0, b: int = 0) -> int:
    return a + b


def needy(a: int, b: int = 0) -> int:
    return a + b


def echo(value: Any = None) -> Any:
    return value


async def awaited() -> None:
    pass


def fail() -> None:
    raise ValueError("no such file")


class Held:
    """A task that waits at a gate."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def held(self) -> str:
        self.gate.pass_through()
        return "let go"


class Fickle:
    """Fails until it is mended."""

    def __init__(self) -> None:
        self.mended = False
        self.runs = 0

    def fickle(self) -> str:
        self.runs += 1
        if not self.mended:
            raise ValueError("broken")
        return "whole"


def step(name: str, task: str = "echo", /, **fields: Any) -> dict[str, Any]:
    return {"name": name, "task": task, **fields}


def counted(engine: Engine) -> dict[str, int]:
    settle(engine)  # what the file has is counted a moment after it, and before the next group
    return {name: n for name, n in engine.writer.counters.get(WORKFLOWS, {}).items() if n}


# ------------------------------------------------------------------------------------------------------ order and flow


def test_steps_run_one_after_the_other_and_each_sees_what_those_before_it_returned(engines: Engines) -> None:
    engine = engines([add, echo])
    workflow = start(
        engine,
        [
            step("first", "add", payload={"a": "${input.n}", "b": 1}),
            step("second", "add", payload={"a": "${steps.first}", "b": 10}),
            step("last", payload={"value": "${workflow.name}: ${steps.first} and ${steps.second}"}),
        ],
        input={"n": 4},
    )
    assert ended(engines.path, workflow) == ("completed", 3, None)
    assert steps(engines.path, workflow) == {
        "first": ("completed", 5),
        "second": ("completed", 15),
        "last": ("completed", "flow: 5 and 15"),
    }
    assert counted(engine) == {"completed": 1}
    engines.stop(engine)


def test_a_graph_begins_each_step_as_soon_as_all_that_it_needs_have_ended(engines: Engines) -> None:
    held = Held(engines.gate())
    engine = engines([add, held.held])
    workflow = start(
        engine,
        [
            step("join", "add", needs=["quick", "slow"], payload={"a": "${steps.quick}"}),
            step("slow", "held"),
            step("quick", "add", payload={"a": 1}),
            step("beside", "add", needs=["quick"], payload={"a": "${steps.quick}", "b": 1}),
        ],
    )
    held.gate.wait_for_arrival()
    wait_for_state(engines.path, step_job(engines.path, workflow, "beside"), State.COMPLETED)
    assert steps(engines.path, workflow)["join"] == ("pending", None)
    assert state(engines.path, workflow) == ("running", 2, None)

    held.gate.open()
    assert ended(engines.path, workflow)[:2] == ("completed", 4)
    assert steps(engines.path, workflow)["join"] == ("completed", 1)


def test_a_step_whose_condition_does_not_hold_is_skipped_and_those_after_it_run(engines: Engines) -> None:
    engine = engines([add, echo])
    workflow = start(
        engine,
        [
            step("check", "add", payload={"a": 0}),
            step("mend", "add", when="${steps.check} > 0"),
            step("report", payload={"value": ["${steps.check}", "${steps.mend}"]}),
            step("dry", when="not ${input.dry}"),
        ],
        input={"dry": True},
    )
    assert ended(engines.path, workflow) == ("completed", 4, None)
    assert steps(engines.path, workflow) == {
        "check": ("completed", 0),
        "mend": ("skipped", None),
        "report": ("completed", [0, None]),
        "dry": ("skipped", None),
    }
    assert row(engines.path, step_job(engines.path, workflow, "mend")).last_error == (
        "skipped: ${steps.check} > 0 does not hold"
    )
    engines.stop(engine)


def test_a_first_step_that_is_skipped_ends_a_workflow_in_the_transaction_that_accepts_it(engines: Engines) -> None:
    engine = engines([echo])
    workflow = start(engine, [step("only", when="${input}")], input=False)
    assert state(engines.path, workflow) == ("completed", 1, None)
    assert counted(engine) == {"completed": 1}


def test_a_step_keeps_the_options_that_it_was_given(engines: Engines) -> None:
    engine = engines([fail, echo])
    workflow = start(
        engine,
        [step("one", "fail", max_retries=1, retry=[0.01], queue="slow", priority=7, timeout=5), step("two", queue="x")],
    )
    assert ended(engines.path, workflow)[0] == "failed"
    found = row(engines.path, step_job(engines.path, workflow, "one"))
    assert (found.queue, found.priority, found.attempt, found.timeout_ms) == ("slow", 7, 2, 5000)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("wanted", "field", "says"),
    [
        ([step("a"), step("a")], "steps[1].name", "'a' is the name of steps[0] already"),
        ([{"task": "echo"}, {"task": "echo"}], "steps[1].name", "is the name of steps[0]"),
        ([step("a", needs=["b"])], "steps[0].needs[0]", "there is no step 'b'"),
        ([step("a", needs=["b"]), step("b", needs=["a"])], "steps[0].needs", "is a circle: "),
        ([step("a", needs=["a"])], "steps[0].needs", "is a circle: a needs a"),
        (
            [step("a", payload={"value": "${steps.b}"})],
            "steps[0].payload",
            "the step 'a' refers to the step 'b', and there is none",
        ),
        (
            [step("a"), step("b", needs=[], payload={"value": "${steps.a}"})],
            "steps[1].needs",
            "does not lead to the step 'a'",
        ),
        ([step("a", payload={"value": "${steps.b}"}), step("b")], "steps[0].needs", "does not lead to the step 'b'"),
        ([step("a", payload={"value": "${other}"})], "steps[0].payload", "refers to nothing"),
        ([step("a", payload={"value": "${input.x}"})], "steps[0].payload", "input has no 'x', it is null"),
        (
            [step("a"), step("b", payload={"value": ["${steps.a}", "${input.x}"]})],
            "steps[1].payload",
            "input has no 'x'",
        ),
        ([step("a"), step("b", payload={"value": "${steps.a} ${workflow.idd}"})], "steps[1].payload", "has no 'idd'"),
        ([step("a", when="yes")], "steps[0].when", "is no condition"),
        ([step("a", when="${input.x}")], "steps[0].when", "input has no 'x'"),
        ([step("a"), step("b", when="${steps.a} == ${input.x}")], "steps[1].when", "input has no 'x'"),
        ([step("a", when="${input} > 3")], "steps[0].when", "only numbers, or texts, have an order"),
        (
            [step("a"), step("b", "add", payload={"a": "${steps.a}", "c": 1})],
            "steps[1].payload.c",
            "is not a parameter",
        ),
        ([step("a"), step("b", "needy", payload={"b": "${steps.a}"})], "steps[1].payload.a", "is missing"),
        ([step("a"), step("b", "add", payload={"a": "${steps.a}", "b": "x"})], "steps[1].payload.b", "expected int"),
        (
            [step("a"), step("b", "add", payload={"a": "${steps.a}", "b": "${input}"})],
            "steps[1].payload.b",
            "expected int",
        ),
        ([step("a", "add", for_each=[1], payload={"a": "${item}", "b": "x"})], "steps[0].payload.b", "expected int"),
        (
            [step("a", compensate={"task": "add", "payload": {"a": "${output}", "c": 1}})],
            "steps[0].compensate.payload.c",
            "is not a parameter",
        ),
        (
            [step("a"), step("b", when="${steps.c}")],
            "steps[1].when",
            "the step 'b' refers to the step 'c', and there is none",
        ),
        ([step("a", "add", payload={"a": "x"})], "steps[0].payload.a", "int"),
        ([step("a", "add", payload={"a": "${workflow.id}"})], "steps[0].payload.a", "int"),
        ([step("a", queue="not a queue")], "steps[0].queue", "letters"),
        ([{"name": "a"}], "steps[0].task", "is missing"),
        ([step("a", "awaited", executor="process")], "steps[0].executor", "awaited is an async def"),
    ],
)
def test_what_cannot_run_is_refused_and_names_the_step(
    engines: Engines, wanted: list[dict[str, Any]], field: str, says: str
) -> None:
    engine = engines([add, echo, needy, awaited], workers=0)
    with pytest.raises(InvalidRequest) as refused:
        new_workflow(engine, wanted)
    assert refused.value.field == field
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"output": "${input.x}"}, "output"),
        ({"output": {"a": ["${steps.a}", "${workflow.x}"]}}, "output"),
        ({"on_failure": {"task": "add", "payload": {"c": "${workflow.error}"}}}, "on_failure.payload.c"),
        ({"on_failure": {"task": "add", "payload": {"a": "${input.x}"}}}, "on_failure.payload"),
    ],
)
def test_what_is_made_in_the_end_is_looked_at_at_the_start(
    engines: Engines, fields: dict[str, Any], field: str
) -> None:
    engine = engines([add, echo], workers=0)
    with pytest.raises(InvalidRequest) as refused:
        new_workflow(engine, [step("a")], input={"day": 1}, **fields)
    assert refused.value.field == field


@pytest.mark.parametrize("more", [{"payload": {"value": ["${steps.a}", "${input.n}"]}}, {"when": "${input.n}"}])
def test_a_shape_that_was_started_before_is_held_against_each_input(engines: Engines, more: dict[str, Any]) -> None:
    engine = engines([echo], workers=0)
    wanted = [step("a"), step("b", **more)]
    for n in range(2):
        start(engine, wanted, input={"n": n})
    with pytest.raises(InvalidRequest, match="input has no 'n'"):
        start(engine, wanted, input={})


@pytest.mark.parametrize(
    "more",
    [
        {"payload": {"a": "${input.n}"}},
        {"payload": {"a": "${input.n}", "b": "${steps.first}"}},
        {"payload": {"a": "${input.n.deep}"}},
        {"payload": {"a": "${item}"}, "for_each": "${input.n}"},
        {"payload": {"a": 1}, "compensate": {"task": "add", "payload": {"a": "${input.n}", "b": "${output}"}}},
    ],
)
def test_an_input_that_does_not_fit_a_step_is_no_reason_to_refuse_what_skips_it(
    engines: Engines, more: dict[str, Any]
) -> None:
    engine = engines([add, echo])
    wanted = [step("first"), step("second", "add", when="${input.n} != null", **more), step("third")]
    workflow = start(engine, wanted, input={"n": None})
    assert ended(engines.path, workflow)[0] == "completed"
    assert [found for found, _ in steps(engines.path, workflow).values()] == ["completed", "skipped", "completed"]
    with pytest.raises(InvalidRequest, match=r"steps\[1\]"):
        new_workflow(engine, wanted, input={"n": "text"})
    wanted[1]["payload"] = {**more["payload"], "c": "${input.n}"}
    with pytest.raises(InvalidRequest, match=r"payload\.c: is not a parameter"):
        new_workflow(engine, wanted, input={"n": None})


def test_an_input_may_be_as_large_as_a_payload_and_no_larger(engines: Engines) -> None:
    engine = engines([echo], workers=0, max_payload_bytes=1_000)
    start(engine, [step("a")], input="x" * 990)
    with pytest.raises(TooLarge, match=r"input .* max_payload_bytes"):
        start(engine, [step("a")], input="x" * 1_000)


def test_one_that_is_being_cancelled_cannot_be_paused(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines([Held(gate).held, echo], stop_grace=60)
    running = start(engine, [step("a", "held"), step("b")])
    gate.wait_for_arrival()
    act(engine, "cancel", running)
    with pytest.raises(TransitionRefused, match="it is being cancelled"):
        act(engine, "pause", running)
    gate.open()


def test_an_unknown_task_is_refused_and_names_the_step(engines: Engines) -> None:
    engine = engines([echo], workers=0)
    with pytest.raises(UnknownTask, match=r"steps\[1\]"):
        new_workflow(engine, [step("a"), step("b", "nobody")])


def test_a_workflow_over_the_limit_of_the_queue_leaves_nothing(engines: Engines) -> None:
    engine = engines([echo], max_queue=2, workers=0)
    with pytest.raises(QueueFull):
        start(engine, [step("a"), step("b"), step("c")])
    start(engine, [step("a"), step("b")])
    assert counted(engine) == {"running": 1}


def test_the_same_key_names_the_same_workflow_and_another_body_is_refused(engines: Engines) -> None:
    engine = engines([echo])
    first = start(engine, [step("a")], idempotency_key="k")
    assert start(engine, [step("a")], idempotency_key="k") == first
    with pytest.raises(IdempotencyConflict, match=f"workflow {first}"):
        start(engine, [step("b")], idempotency_key="k")


# ----------------------------------------------------------------------------------------------------------- failures


def test_a_failed_step_ends_what_needs_it_and_lets_the_rest_run(engines: Engines) -> None:
    engine = engines([fail, add, echo])
    workflow = start(
        engine,
        [
            step("bad", "fail", needs=[], max_retries=0),
            step("after", needs=["bad"], payload={"value": "${steps.bad}"}),
            step("beside", "add", needs=[], payload={"a": 1}),
        ],
    )
    assert ended(engines.path, workflow) == ("failed", 1, "step bad is dead_letter: ValueError: no such file")
    assert {name: state for name, (state, _) in steps(engines.path, workflow).items()} == {
        "bad": "dead_letter",
        "after": "cancelled",
        "beside": "completed",
    }
    assert counted(engine) == {"failed": 1}
    engines.stop(engine)


def test_a_reference_that_leads_nowhere_in_the_end_fails_the_workflow_and_says_so(engines: Engines) -> None:
    engine = engines([add, echo])
    workflow = start(engine, [step("one", "add"), step("two", payload={"value": "${steps.one.total}"}), step("three")])
    found, done, error = ended(engines.path, workflow)
    assert (found, done) == ("failed", 1)
    assert error == ("step two cannot begin: ${steps.one.total}: steps.one has no 'total', it is 0")
    engines.stop(engine)


def test_outputs_that_make_a_payload_too_large_fail_the_step(engines: Engines) -> None:
    engine = engines([echo], max_payload_bytes=200)
    workflow = start(
        engine, [step("one", payload={"value": "x" * 150}), step("two", payload={"value": ["${steps.one}"] * 2})]
    )
    found, _, error = ended(engines.path, workflow)
    assert found == "failed"
    assert "over the limit max_payload_bytes = 200" in (error or "")


def test_a_payload_that_came_of_outputs_and_does_not_fit_the_task_is_a_dead_letter(engines: Engines) -> None:
    engine = engines([add, echo])
    workflow = start(engine, [step("one", payload={"value": "x"}), step("two", "add", payload={"a": "${steps.one}"})])
    assert ended(engines.path, workflow)[0] == "failed"
    assert steps(engines.path, workflow)["two"][0] == "dead_letter"


@pytest.mark.parametrize("jump_ms", [86_400_000, -86_400_000])
def test_a_timeout_of_the_whole_keeps_its_length_when_the_clock_is_set(engines: Engines, jump_ms: int) -> None:
    clock = FakeClock()
    engine = engines([echo], clock=clock, workers=0)
    before = start(engine, [step("one")], timeout=60)
    clock.set_wall(jump_ms)
    after = start(engine, [step("one")], timeout=60)
    settle(engine)
    clock.advance(59_999)
    settle(engine)
    assert [state(engines.path, one)[0] for one in (before, after)] == ["running", "running"]
    clock.advance(1)
    settle(engine)
    for one in (before, after):
        assert ended(engines.path, one)[2] == "it took longer than its timeout of 60 s"
    engines.stop(engine)


@pytest.mark.parametrize("when", ["${steps.one} == ${steps.one}", None])
def test_an_output_that_is_nested_too_deeply_fails_the_step_that_refers_to_it_and_not_the_one_that_made_it(
    engines: Engines, when: str | None
) -> None:
    def deep() -> list[Any]:
        value: list[Any] = [1]
        for _ in range(900):
            value = [value]
        return value

    engine = engines([deep, echo])
    workflow = start(engine, [step("one", "deep"), step("two", when=when, payload={"value": "${steps.one.--1}"})])
    assert ended(engines.path, workflow)[0] == "failed"
    with closing(read(engines.path)) as connection:
        found = list(connection.execute("SELECT task, state, result IS NULL FROM jobs ORDER BY seq"))
    assert found == [("deep", "completed", False), ("echo", "cancelled", True)]
    engines.stop(engine)


def test_a_workflow_that_takes_too_long_has_failed_and_its_steps_are_cancelled(engines: Engines) -> None:
    clock = FakeClock()
    engine = engines([echo], clock=clock, workers=0)
    workflow = start(engine, [step("one"), step("two")], timeout=60)
    clock.advance(59_000)
    settle(engine)
    assert state(engines.path, workflow)[0] == "running"
    clock.advance(2_000)
    settle(engine)
    assert state(engines.path, workflow) == ("failed", 0, "it took longer than its timeout of 60 s")
    assert {found for found, _ in steps(engines.path, workflow).values()} == {"cancelled"}

    act(engine, "retry", workflow)  # it has its whole time again
    clock.advance(59_000)
    settle(engine)
    assert state(engines.path, workflow)[0] == "running"
    clock.advance(2_000)
    settle(engine)
    assert state(engines.path, workflow)[0] == "failed"
    engines.stop(engine)


# -------------------------------------------------------------------------------------------------------------- verbs


def test_cancel_ends_what_waits_at_once_and_the_rest_when_it_has_stopped(engines: Engines) -> None:
    held = Held(engines.gate())
    engine = engines([echo, held.held], stop_grace=30)
    waiting = start(engine, [step("one", "held", needs=[]), step("two", needs=["one"])])
    held.gate.wait_for_arrival()
    assert act(engine, "cancel", waiting) == "running"
    assert steps(engines.path, waiting)["two"][0] == "cancelled"
    held.gate.open()
    assert ended(engines.path, waiting)[0] == "cancelled"
    assert act(engine, "cancel", waiting) == "cancelled"
    engines.stop(engine)


def test_cancel_of_one_that_has_ended_is_refused(engines: Engines) -> None:
    engine = engines([echo])
    workflow = start(engine, [step("one")])
    ended(engines.path, workflow)
    with pytest.raises(TransitionRefused, match=f"workflow {workflow}: cannot cancel, it is completed"):
        act(engine, "cancel", workflow)
    for name in ("cancel", "retry", "pause", "resume", "delete"):
        with pytest.raises(NotFound):
            act(engine, name, "nobody")


def test_retry_goes_on_from_the_step_that_failed(engines: Engines) -> None:
    fickle = Fickle()
    engine = engines([add, echo, fickle.fickle])
    workflow = start(
        engine,
        [
            step("one", "add", payload={"a": 1}),
            step("two", "fickle", max_retries=0),
            step("skip", when="${steps.one} > 1"),
            step("three", payload={"value": ["${steps.one}", "${steps.two}"]}),
        ],
    )
    assert ended(engines.path, workflow)[:2] == ("failed", 1)
    fickle.mended = True
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow) == ("completed", 4, None)
    assert steps(engines.path, workflow)["three"] == ("completed", [1, "whole"])
    assert row(engines.path, step_job(engines.path, workflow, "one")).attempt == 1
    assert fickle.runs == 2
    with pytest.raises(TransitionRefused, match="rerun it"):
        act(engine, "retry", workflow)
    assert counted(engine) == {"completed": 1}
    engines.stop(engine)


def test_retry_of_one_that_fails_again_fails_again(engines: Engines) -> None:
    engine = engines([fail, echo])
    workflow = start(engine, [step("one", "fail", max_retries=0), step("two")])
    assert ended(engines.path, workflow)[0] == "failed"
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow)[0] == "failed"
    assert {name: found for name, (found, _) in steps(engines.path, workflow).items()} == {
        "one": "dead_letter",
        "two": "cancelled",
    }
    engines.stop(engine)


def test_a_dead_step_that_is_replayed_by_itself_makes_its_workflow_run_again(engines: Engines) -> None:
    fickle = Fickle()
    engine = engines([fickle.fickle])
    workflow = start(engine, [step("one", "fickle", max_retries=0)])
    assert ended(engines.path, workflow)[0] == "failed"
    fickle.mended = True
    verb(engine, engine.jobs.retry(step_job(engines.path, workflow, "one")))
    assert ended(engines.path, workflow) == ("completed", 1, None)
    assert counted(engine) == {"completed": 1}
    engines.stop(engine)


def test_a_paused_workflow_begins_no_further_step_until_it_is_resumed(engines: Engines) -> None:
    held = Held(engines.gate())
    engine = engines([echo, held.held])
    workflow = start(engine, [step("one", "held"), step("two", payload={"value": "${steps.one}"})])
    held.gate.wait_for_arrival()
    act(engine, "pause", workflow)
    act(engine, "pause", workflow)
    held.gate.open()
    wait_for_state(engines.path, step_job(engines.path, workflow, "one"), State.COMPLETED)
    settle(engine)
    assert steps(engines.path, workflow)["two"] == ("pending", None)
    assert state(engines.path, workflow)[0] == "running"
    waiting = step_job(engines.path, workflow, "two")
    (why,) = verb(engine, explain(engine.jobs, engine.roster, engine.clock, waiting)).reasons
    assert why.code == "workflow_paused"
    assert f"`miniflow workflow resume {workflow}`" in why.text

    act(engine, "resume", workflow)
    assert ended(engines.path, workflow)[0] == "completed"
    assert steps(engines.path, workflow)["two"] == ("completed", "let go")
    with pytest.raises(TransitionRefused, match="cannot pause, it is completed"):
        act(engine, "pause", workflow)
    engines.stop(engine)


def test_one_that_is_paused_stays_so_over_a_restart_and_can_be_cancelled(engines: Engines) -> None:
    held = Held(engines.gate())
    engine = engines([echo, held.held])
    workflow = start(engine, [step("one", "held"), step("two")])
    held.gate.wait_for_arrival()
    act(engine, "pause", workflow)
    held.gate.open()
    wait_for_state(engines.path, step_job(engines.path, workflow, "one"), State.COMPLETED)
    engines.stop(engine)

    engine = engines([echo, held.held])
    settle(engine)
    assert steps(engines.path, workflow)["two"] == ("pending", None)
    assert act(engine, "cancel", workflow) == "cancelled"
    engines.stop(engine)


def test_delete_forgets_the_workflow_and_its_jobs(engines: Engines) -> None:
    engine = engines([echo])
    workflow = start(engine, [step("one"), step("two")])
    ended(engines.path, workflow)
    job = step_job(engines.path, workflow, "one")
    later = submit(engine, "echo", depends_on=[job], delay=1000)
    with pytest.raises(TransitionRefused, match="another job depends on a step of it"):
        act(engine, "delete", workflow)
    verb(engine, engine.jobs.cancel(later))
    act(engine, "delete", workflow)
    assert counted(engine) == {}
    assert steps(engines.path, workflow) == {}
    check_invariants(engines.path, replayed=True, deleted=True)


def test_a_workflow_that_runs_is_not_deleted_nor_are_its_steps(engines: Engines) -> None:
    held = Held(engines.gate())
    engine = engines([echo, held.held])
    workflow = start(engine, [step("one"), step("two", "held")])
    held.gate.wait_for_arrival()
    with pytest.raises(TransitionRefused, match="cancel it first"):
        act(engine, "delete", workflow)
    with pytest.raises(TransitionRefused):
        verb(engine, bulk.delete_one(step_job(engines.path, workflow, "one")))


def test_the_job_of_a_workflow_that_runs_is_not_deleted_though_nothing_waits_for_it(engines: Engines) -> None:
    held = Held(engines.gate())
    engine = engines([echo, held.held])
    workflow = start(engine, [step("one"), step("two"), step("three", "held")])
    held.gate.wait_for_arrival()
    job = step_job(engines.path, workflow, "one")
    with pytest.raises(TransitionRefused, match=f"it is of workflow {workflow}, which has not ended"):
        verb(engine, bulk.delete_one(job))
    assert row(engines.path, job).state == State.COMPLETED
    held.gate.open()
    ended(engines.path, workflow)
    verb(engine, bulk.delete_one(job))
    engines.stop(engine, deleted=True)


@pytest.mark.parametrize("lost", ["one", "two", "three"])
def test_a_retry_that_lacks_the_job_of_a_step_is_refused_and_names_it(engines: Engines, lost: str) -> None:
    fickle = Fickle()
    engine = engines([echo, fickle.fickle])
    workflow = start(engine, [step("one"), step("two", "fickle", max_retries=0), step("three"), step("four")])
    assert ended(engines.path, workflow)[0] == "failed"
    jobs = {name: step_job(engines.path, workflow, name) for name in steps(engines.path, workflow)}
    verb(engine, bulk.delete_one(jobs.pop(lost)))
    fickle.mended = True
    with pytest.raises(TransitionRefused, match=f"the job of the step {lost} is deleted; rerun it"):
        act(engine, "retry", workflow)
    for name in jobs:
        with pytest.raises(TransitionRefused):
            verb(engine, engine.jobs.retry(jobs[name]))
    assert state(engines.path, workflow)[0] == "failed"
    assert fickle.runs == 1
    engines.stop(engine, deleted=True)


def test_one_whose_step_is_replayed_with_others_and_that_lacks_a_job_says_why_it_failed(engines: Engines) -> None:
    fickle = Fickle()
    engine = engines([echo, fickle.fickle])
    workflow = start(engine, [step("one"), step("two", "fickle", max_retries=0)])
    assert ended(engines.path, workflow)[0] == "failed"
    dead = row(engines.path, step_job(engines.path, workflow, "two")).seq
    verb(engine, bulk.delete_one(step_job(engines.path, workflow, "one")))
    fickle.mended = True
    assert verb(engine, lambda tx: engine.jobs.replay(tx, [dead])) == 1
    assert ended(engines.path, workflow) == ("failed", 1, "the job of a step of it was deleted")
    engines.stop(engine, deleted=True)


# ------------------------------------------------------------------------------------------------------------- crashes


def test_a_process_that_dies_between_two_steps_loses_neither(engines: Engines) -> None:
    held = Held(engines.gate())
    engine = engines([add, echo, held.held])
    workflow = start(
        engine,
        [step("one", "add", payload={"a": 2}), step("two", "held"), step("three", payload={"value": "${steps.one}"})],
    )
    held.gate.wait_for_arrival()
    engines.crash(engine)
    held.gate.open()

    engine = engines([add, echo, held.held])
    assert ended(engines.path, workflow) == ("completed", 3, None)
    assert steps(engines.path, workflow)["three"] == ("completed", 2)
    assert row(engines.path, step_job(engines.path, workflow, "one")).attempt == 1
    engines.stop(engine)


def test_a_step_that_kills_the_process_three_times_fails_its_workflow_at_the_start_after(engines: Engines) -> None:
    engine = None
    workflow = ""
    for _ in range(3):
        held = Held(engines.gate())
        engine = engines([held.held, echo])
        workflow = workflow or start(engine, [step("one", "held"), step("two")])
        held.gate.wait_for_arrival()
        settle(engine)
        engines.crash(engine)
    engine = engines([held.held, echo])
    found, done, error = ended(engines.path, workflow)
    assert (found, done) == ("failed", 0)
    assert "step one is dead_letter" in (error or "")
    engines.stop(engine)


def test_a_shape_that_is_started_again_is_the_same_with_ids_and_inputs_of_its_own(engines: Engines) -> None:
    engine = engines([echo], workers=0)
    wanted = [
        {"name": "fixed", "task": "echo", "payload": {"value": 1}},
        {"name": "given", "task": "echo", "payload": {"value": "${input.n}"}},
        {"name": "later", "task": "echo", "payload": {"value": "${steps.fixed}"}},
    ]
    for n in (1, 2):
        start(engine, wanted, input={"n": n})
    with closing(read(engine.database.path)) as connection:
        found = list(connection.execute("SELECT id, state, json(payload) FROM jobs ORDER BY seq"))
    assert [json.loads(payload)["value"] for *_, payload in found] == [
        1, 1, "${steps.fixed}", 1, 2, "${steps.fixed}"
    ]  # fmt: skip
    assert [state for _, state, _ in found] == [State.QUEUED, State.PENDING, State.PENDING] * 2
    assert len({job_id for job_id, *_ in found}) == 6


def test_a_shape_is_looked_at_again_when_the_tasks_have_changed(engines: Engines) -> None:
    engine = engines([echo], workers=0)
    start(engine, [{"task": "echo"}])
    engine.registry.discard(engine.registry.get("echo"))
    with pytest.raises(UnknownTask):
        start(engine, [{"task": "echo"}])


@pytest.mark.parametrize(
    "said", [b"${input.n}", b"${ input.n }", b"${\\u0069nput.n}", b"n: ${ input.n}", b"${ workflow.id}"]
)
def test_what_is_filled_in_at_a_start_is_that_starts_own_however_it_is_spelled(engines: Engines, said: bytes) -> None:
    engine = engines([echo], workers=0)
    body = b'{"name": "flow", "steps": [{"task": "echo", "payload": {"value": "%s"}}], "input": {"n": %d}}'
    for n in (1, 2, 3):
        new = engine.workflow_intake.workflow(decode_workflow(body % (said, n)))
        engine.writer.call("workflow", new)
    with closing(read(engine.database.path)) as connection:
        found = list(connection.execute("SELECT payload ->> 'value' FROM jobs ORDER BY seq"))
    assert len(set(found)) == 3


def test_a_shape_none_of_whose_steps_depends_on_the_input_comes_into_the_file_as_at_first(engines: Engines) -> None:
    engine = engines([echo, add], workers=0)
    wanted = [
        {"name": "first", "task": "echo", "queue": "own", "when": "not ${input.dry}"},
        {"name": "left", "task": "add", "needs": ["first"], "priority": 3, "tags": ["a"], "max_retries": 0},
        {"name": "right", "task": "echo", "needs": ["first"], "payload": {"value": "${steps.first}"}},
        {"name": "last", "task": "echo", "needs": ["left", "right"], "when": "${steps.left} > 0"},
    ]
    ids = [start(engine, wanted, input={"dry": False}) for _ in range(3)]
    sql = """
    SELECT s.idx, s.name, s.template, s.condition, s.refs, s.kind, s.role, j.task, j.queue, j.priority, j.state, j.payload,
      j.tags, j.max_retries, j.timeout_ms, j.options, (
        SELECT json_group_array(json_array(p.name, e.idx, e.kind))
        FROM edges e JOIN steps p ON p.job = e.parent WHERE e.child = j.seq)
    FROM workflows w JOIN steps s ON s.workflow = w.number JOIN jobs j ON j.seq = s.job WHERE w.id = ? ORDER BY j.seq
    """
    with closing(read(engine.database.path)) as connection:
        first, second, third = (list(connection.execute(sql, (one,))) for one in ids)
        job_ids = list(connection.execute("SELECT DISTINCT id FROM jobs"))
    assert [name for _, name, *_ in first] == ["first", "left", "right", "last"]
    assert [edges for *_, edges in first] == [
        "[]",
        '[["first",0,"after"]]',
        '[["first",0,"after"]]',
        '[["left",0,"after"],["right",1,"after"]]',
    ]
    assert second == first == third
    assert len(job_ids) == 12
    assert engine.writer.counter("enqueued", "echo") == 9
    assert engine.writer.counter(State.QUEUED, "own") == 3
    check_invariants(engine.database.path)
