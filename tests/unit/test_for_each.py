"""Steps with ``for_each``: a job for each item of a list, and one output for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from miniflow.errors import InvalidRequest
from miniflow.states import State
from tests.engines import Engines, Gate, cancel, row, settle, verb, wait_for_state
from tests.invariants import read
from tests.waiting import wait_until
from tests.workflows import act, ended, new_workflow, start, state, step_job, steps


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as engines:
        yield engines


def double(n: int, at: int = 0) -> int:
    return n * 2


def echo(value: Any = None) -> Any:
    return value


class Picky:
    """Refuses some numbers, and notes how often it was asked for each."""

    def __init__(self, *refused: int) -> None:
        self.refused = set(refused)
        self.asked: list[int] = []
        self.undone: list[Any] = []

    def picky(self, n: int) -> int:
        self.asked.append(n)
        if n in self.refused:
            raise ValueError(f"not {n}")
        return n * 10

    def undo(self, item: int, index: int, was: int) -> None:
        self.undone.append((item, index, was))


class Held:
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def held(self, n: int) -> int:
        self.gate.pass_through()
        return n


def step(name: str, task: str, /, **fields: Any) -> dict[str, Any]:
    return {"name": name, "task": task, "max_retries": 0, **fields}


def items(path: Path, workflow: str) -> list[tuple[str, str, str]]:
    """(name, job's id, state) of the jobs of items."""
    sql = """
    SELECT s.name, j.id, j.state FROM workflows w JOIN steps s ON s.workflow = w.number JOIN jobs j ON j.seq = s.job
    WHERE w.id = ? AND s.role = 'item' ORDER BY j.seq
    """
    with closing(read(path)) as connection:
        return [tuple(found) for found in connection.execute(sql, (workflow,))]  # type: ignore[misc]


def test_each_item_is_a_job_and_the_output_is_theirs_in_order(engines: Engines) -> None:
    engine = engines([double, echo])
    workflow = start(
        engine,
        [
            step("list", "echo", payload={"value": [3, 1, 2]}),
            step("each", "double", for_each="${steps.list}", payload={"n": "${item}", "at": "${index}"}),
            step("again", "double", for_each="${steps.each}", payload={"n": "${item}"}, queue="other", priority=3),
            step("sum", "echo", payload={"value": ["${steps.again}", "${steps.each.1}"]}),
        ],
    )
    assert ended(engines.path, workflow) == ("completed", 4, None)
    assert steps(engines.path, workflow)["each"] == ("completed", [6, 2, 4])
    assert steps(engines.path, workflow)["sum"] == ("completed", [[12, 4, 8], 2])
    found = items(engines.path, workflow)
    assert [name for name, *_ in found] == ["each[0]", "each[1]", "each[2]", "again[0]", "again[1]", "again[2]"]
    last = row(engines.path, found[-1][1])
    assert (last.queue, last.priority) == ("other", 3)
    engines.stop(engine)


@pytest.mark.parametrize("wanted", ["${input}", []])
def test_an_empty_list_is_an_empty_output_at_once(engines: Engines, wanted: Any) -> None:
    engine = engines([double, echo])
    steps_of = [step("each", "double", for_each=wanted, payload={"n": "${item}"}), step("then", "echo")]
    workflow = start(engine, steps_of, input=[])
    assert ended(engines.path, workflow) == ("completed", 2, None)
    assert steps(engines.path, workflow)["each"] == ("completed", [])
    engines.stop(engine)


def test_one_that_is_skipped_is_not_expanded(engines: Engines) -> None:
    engine = engines([double])
    workflow = start(engine, [step("each", "double", for_each=[1], payload={"n": "${item}"}, when="${input}")])
    assert ended(engines.path, workflow) == ("completed", 1, None)
    assert items(engines.path, workflow) == []
    engines.stop(engine)


def test_all_items_run_whatever_becomes_of_one_and_a_retry_runs_the_failed_ones(engines: Engines) -> None:
    picky = Picky(2, 4)
    engine = engines([picky.picky, echo], workers=1)  # one after the other: the failure that is named is the first
    workflow = start(
        engine,
        [
            step("each", "picky", for_each=[1, 2, 3, 4], payload={"n": "${item}"}),
            step("then", "echo", payload={"value": "${steps.each}"}),
        ],
    )
    assert ended(engines.path, workflow) == ("failed", 0, "step each[1] is dead_letter: ValueError: not 2")
    placeholder = row(engines.path, step_job(engines.path, workflow, "each"))
    assert (placeholder.state, placeholder.last_error) == (
        "cancelled",
        "2 of 4 items did not end well: each[1] is dead_letter: ValueError: not 2",
    )
    assert sorted(picky.asked) == [1, 2, 3, 4]

    picky.refused.clear()
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow) == ("completed", 2, None)
    assert steps(engines.path, workflow)["then"] == ("completed", [10, 20, 30, 40])
    assert sorted(picky.asked) == [1, 2, 2, 3, 4, 4]
    engines.stop(engine)


def test_an_item_that_is_replayed_by_itself_completes_its_step(engines: Engines) -> None:
    picky = Picky(2)
    engine = engines([picky.picky])
    workflow = start(engine, [step("each", "picky", for_each=[1, 2], payload={"n": "${item}"})])
    assert ended(engines.path, workflow)[0] == "failed"
    picky.refused.clear()
    verb(engine, engine.jobs.retry(items(engines.path, workflow)[1][1]))
    assert ended(engines.path, workflow) == ("completed", 1, None)
    assert steps(engines.path, workflow)["each"] == ("completed", [10, 20])
    engines.stop(engine)


def test_no_more_run_at_once_than_max_parallel_says(engines: Engines) -> None:
    held = Held(engines.gate())
    engine = engines([held.held], workers=4)
    workflow = start(engine, [step("each", "held", for_each=list(range(5)), payload={"n": "${item}"}, max_parallel=2)])
    for _ in range(2):
        held.gate.wait_for_arrival()
    settle(engine)
    found = [found for *_, found in items(engines.path, workflow)]
    assert found[2:] == ["pending"] * 3
    held.gate.open()
    assert ended(engines.path, workflow) == ("completed", 1, None)
    assert steps(engines.path, workflow)["each"] == ("completed", [0, 1, 2, 3, 4])
    engines.stop(engine)


def test_cancel_takes_the_items_along(engines: Engines) -> None:
    held = Held(engines.gate())
    engine = engines([held.held], workers=1, stop_grace=30)
    workflow = start(engine, [step("each", "held", for_each=[1, 2, 3], payload={"n": "${item}"})])
    held.gate.wait_for_arrival()
    assert act(engine, "cancel", workflow) == "running"
    assert [found for *_, found in items(engines.path, workflow)][1:] == ["cancelled", "cancelled"]
    held.gate.open()
    assert ended(engines.path, workflow)[0] == "cancelled"
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow) == ("completed", 1, None)
    engines.stop(engine)


def test_a_step_that_is_cancelled_takes_its_items_along(engines: Engines) -> None:
    held = Held(engines.gate())
    engine = engines([held.held], workers=1, stop_grace=30)
    workflow = start(engine, [step("each", "held", for_each=[1, 2], payload={"n": "${item}"})])
    held.gate.wait_for_arrival()
    cancel(engine, step_job(engines.path, workflow, "each"))
    settle(engine)
    assert state(engines.path, workflow)[0] == "running", "an item runs still"
    held.gate.open()
    assert ended(engines.path, workflow)[0] == "failed"
    engines.stop(engine)


def test_a_process_that_dies_between_two_items_loses_none(engines: Engines) -> None:
    held = Held(engines.gate())
    engine = engines([held.held, echo], workers=2)
    wanted = [step("each", "held", for_each=[1, 2, 3], payload={"n": "${item}"}), step("then", "echo")]
    workflow = start(engine, wanted)
    for _ in range(2):
        held.gate.wait_for_arrival()
    engines.crash(engine)
    held.gate.open()
    engine = engines([held.held, echo])
    assert ended(engines.path, workflow) == ("completed", 2, None)
    assert steps(engines.path, workflow)["each"] == ("completed", [1, 2, 3])
    engines.stop(engine)


def test_compensation_is_of_the_items_that_had_ended_well(engines: Engines) -> None:
    picky = Picky(3)
    engine = engines([picky.picky, picky.undo, echo], workers=1)
    undo = {"task": "undo", "payload": {"item": "${item}", "index": "${index}", "was": "${output}"}}
    workflow = start(
        engine,
        [
            step("list", "echo", payload={"value": [1, 2, 3]}),
            step("each", "picky", for_each="${steps.list}", payload={"n": "${item}"}, compensate=undo),
        ],
    )
    assert ended(engines.path, workflow)[0] == "failed"
    assert picky.undone == [(2, 1, 20), (1, 0, 10)]
    engines.stop(engine)


@pytest.mark.parametrize(
    ("value", "says"),
    [(7, "leads to no list, but to 7"), ([0] * 10_001, "a list of 10,001, and 10,000 are the most; go in parts")],
)
def test_what_is_no_list_in_the_end_fails_the_step_and_says_so(engines: Engines, value: Any, says: str) -> None:
    engine = engines([double, echo])
    workflow = start(
        engine,
        [
            step("list", "echo", payload={"value": value}),
            step("each", "double", for_each="${steps.list}", payload={"n": "${item}"}),
        ],
    )
    found, _, error = ended(engines.path, workflow)
    assert found == "failed"
    assert says in (error or "")
    engines.stop(engine)


def test_outputs_that_are_too_large_together_fail_the_step(engines: Engines) -> None:
    engine = engines([echo], max_result_bytes=100)
    workflow = start(engine, [step("each", "echo", for_each=["x" * 60] * 2, payload={"value": "${item}"})])
    assert "over the limit max_result_bytes = 100" in (ended(engines.path, workflow)[2] or "")
    wait_for_state(engines.path, step_job(engines.path, workflow, "each"), State.CANCELLED)
    engines.stop(engine)


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"for_each": "all of them"}, "steps[0].for_each", "neither a list nor one reference"),
        ({"for_each": "${input.files}"}, "steps[0].for_each", "input has no 'files'"),
        ({"for_each": "${input}"}, "steps[0].for_each", "leads to no list, but to an object with n"),
        ({"for_each": "${item}"}, "steps[0].for_each", "known only in a step with for_each"),
        ({"for_each": [1, "two"]}, "steps[0].payload.n", "int"),
        (
            {"for_each": [{"n": 1}], "payload": {"n": "${item.m}"}},
            "steps[0].payload",
            "for item 0: ${item.m}: item has no 'm'",
        ),
        ({"for_each": "${steps.x}"}, "steps[0].for_each", "refers to the step 'x', and there is none"),
        ({"max_parallel": 3, "payload": {"n": 1}}, "steps[0].max_parallel", "there is none"),
        ({"payload": {"n": "${item}"}}, "steps[0].payload", "known only in a step with for_each"),
    ],
)
def test_what_cannot_be_expanded_is_refused_and_named(
    engines: Engines, fields: dict[str, Any], field: str, says: str
) -> None:
    engine = engines([double], workers=0)
    with pytest.raises(InvalidRequest) as refused:
        new_workflow(engine, [step("each", "double", **{"payload": {"n": "${item}"}, **fields})], input={"n": 1})
    assert refused.value.field == field
    assert says in str(refused.value)


def test_a_paused_workflow_does_not_expand(engines: Engines) -> None:
    held = Held(engines.gate())
    engine = engines([held.held, double])
    each = step("each", "double", for_each=[1], payload={"n": "${item}"})
    workflow = start(engine, [step("first", "held", payload={"n": 1}), each])
    held.gate.wait_for_arrival()
    act(engine, "pause", workflow)
    held.gate.open()
    wait_until(lambda: state(engines.path, workflow)[1] == 1, what="the first step to end")
    assert items(engines.path, workflow) == []
    act(engine, "resume", workflow)
    assert ended(engines.path, workflow)[0] == "completed"
    engines.stop(engine)


def test_a_step_whose_items_have_ended_while_its_workflow_is_paused_has_ended_too(engines: Engines) -> None:
    held = Held(engines.gate())
    engine = engines([held.held, double])
    each = step("each", "held", for_each=[1, 2, 3], payload={"n": "${item}"}, max_parallel=2)
    workflow = start(engine, [each, step("after", "double", payload={"n": 1})])
    for _ in range(2):
        held.gate.wait_for_arrival()
    act(engine, "pause", workflow)
    held.gate.open()
    wait_until(
        lambda: [found for *_, found in items(engines.path, workflow)], until=(["completed"] * 2 + ["pending"]).__eq__
    )
    assert steps(engines.path, workflow)["each"] == ("pending", None)
    act(engine, "resume", workflow)
    assert ended(engines.path, workflow)[0] == "completed"

    held.gate = engines.gate()
    workflow = start(engine, [each | {"for_each": [1, 2]}, step("after", "double", payload={"n": 1})])
    for _ in range(2):
        held.gate.wait_for_arrival()
    act(engine, "pause", workflow)
    held.gate.open()
    wait_until(lambda: state(engines.path, workflow)[1], until=(1).__eq__)
    act(engine, "cancel", workflow)
    assert ended(engines.path, workflow)[0] == "cancelled"
    assert steps(engines.path, workflow) == {"each": ("completed", [1, 2]), "after": ("cancelled", None)}
    engines.stop(engine)
