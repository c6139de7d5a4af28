"""Steps that are workflows themselves: how they begin, what they return, how they fail, and who stops them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from miniflow import bulk, current_job
from miniflow.engine import Engine
from miniflow.errors import InvalidRequest, NotFound, TransitionRefused
from miniflow.explain import explain
from miniflow.readers import Readers
from miniflow.states import State
from miniflow.workflow_graph import definition_of
from miniflow.workflow_queries import WorkflowQueries
from miniflow.workflows import WORKFLOWS
from miniflow.writer import Transaction
from tests.engines import Engines, FakeClock, Gate, cancel, row, rows, settle, verb, wait_for_state
from tests.invariants import check_invariants, read
from tests.waiting import wait_until
from tests.workflows import act, ended, new_workflow, start, state, step_job, steps


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as engines:
        yield engines


def echo(value: Any = None) -> Any:
    return value


def fail() -> None:
    raise ValueError("no such file")


class Fickle:
    """Fails until it is mended; notes what was done and undone."""

    def __init__(self) -> None:
        self.mended = False
        self.done: list[Any] = []

    def fickle(self) -> str:
        if not self.mended:
            raise ValueError("broken")
        return "whole"

    def note(self, what: Any) -> Any:
        self.done.append(what)
        return what


class Held:
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def held(self) -> str:
        self.gate.look_out(current_job().check_cancelled)
        return "let go"


def step(name: str, task: str = "echo", /, **fields: Any) -> dict[str, Any]:
    return {"name": name, "task": task, "max_retries": 0, **fields}


def sub(name: str, workflow: str, /, **fields: Any) -> dict[str, Any]:
    return {"name": name, "workflow": workflow, **fields}


def keep(engine: Engine, name: str, *steps: dict[str, Any], **fields: Any) -> None:
    verb(engine, engine.definitions.put(name, definition_of(msgspec.json.encode({"steps": steps, **fields}))))


def children(path: Path, workflow: str) -> list[tuple[str, str, str | None]]:
    """(id, state, error) of the workflows that are steps, or items, of this one, in the order in which they were started."""
    sql = """
    SELECT c.id, c.state, c.error FROM workflows w JOIN steps s ON s.workflow = w.number JOIN workflows c ON c.parent = s.job
    WHERE w.id = ? ORDER BY c.number
    """
    with closing(read(path)) as connection:
        return list(connection.execute(sql, (workflow,)))


def items_of(path: Path, workflow: str) -> list[str]:
    """The ids of the jobs of items."""
    sql = """
    SELECT j.id FROM workflows w JOIN steps s ON s.workflow = w.number JOIN jobs j ON j.seq = s.job
    WHERE w.id = ? AND s.role = 'item' ORDER BY j.seq
    """
    with closing(read(path)) as connection:
        return [job for (job,) in connection.execute(sql, (workflow,))]


def counted(engine: Engine) -> dict[str, int]:
    settle(engine)  # what the file has is counted a moment after it, and before the next group
    return {name: n for name, n in engine.writer.counters.get(WORKFLOWS, {}).items() if n}


# ---------------------------------------------------------------------------------------------------------- input and output


def test_a_step_starts_a_workflow_with_an_input_and_returns_what_that_does(engines: Engines) -> None:
    engine = engines([echo])
    keep(engine, "inner", step("a", payload={"value": "${input.n}"}), inputs={"n": {}}, output={"got": "${steps.a}"})
    workflow = start(
        engine,
        [
            step("first", payload={"value": [4, 5]}),
            sub("nested", "inner", input={"n": "${steps.first.1}"}),
            step("last", payload={"value": "${steps.nested.got} of ${input.x}"}),
        ],
        input={"x": "six"},
    )
    assert ended(engines.path, workflow) == ("completed", 3, None)
    assert steps(engines.path, workflow)["nested"] == ("completed", {"got": 5})
    assert steps(engines.path, workflow)["last"] == ("completed", "5 of six")
    ((child, status, error),) = children(engines.path, workflow)
    assert (status, error) == ("completed", None)
    assert steps(engines.path, child) == {"a": ("completed", 5)}
    assert counted(engine) == {"completed": 2}
    engines.stop(engine)


def test_without_an_output_it_returns_what_all_its_steps_did(engines: Engines) -> None:
    engine = engines([echo])
    keep(
        engine,
        "inner",
        step("a", payload={"value": 1}),
        step("b", when="${input.never}"),
        step("c", payload={"value": [2]}),
    )
    workflow = start(engine, [sub("nested", "inner", input={"never": False})])
    assert ended(engines.path, workflow)[0] == "completed"
    assert steps(engines.path, workflow)["nested"] == ("completed", {"a": 1, "b": None, "c": [2]})
    engines.stop(engine)


def test_workflows_are_steps_of_steps_and_of_one_whose_every_step_is_skipped(engines: Engines) -> None:
    engine = engines([echo])
    keep(engine, "leaf", step("a", payload={"value": "${input}"}, when="${input.on}"), output="${steps.a}")
    keep(
        engine,
        "middle",
        sub("x", "leaf", input="${input}"),
        sub("y", "leaf", input={"on": False}),
        output=["${steps.x}", "${steps.y}"],
    )
    keep(engine, "top", sub("m", "middle", input="${input}"), output="${steps.m}")
    workflow = start(engine, [sub("t", "top", input={"on": 1})])
    assert ended(engines.path, workflow)[0] == "completed"
    assert steps(engines.path, workflow)["t"] == ("completed", [{"on": 1}, None])
    assert counted(engine) == {"completed": 5}
    engines.stop(engine)


def test_a_graph_runs_its_workflows_side_by_side_and_one_that_is_skipped_is_not_started(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines([Held(gate).held, echo], workers=2)
    keep(engine, "inner", step("h", "held"))
    workflow = start(
        engine,
        [
            sub("left", "inner", needs=[]),
            sub("right", "inner", needs=[]),
            sub("never", "inner", needs=[], when="${input}"),
            step("both", needs=["left", "right"], payload={"value": "${steps.left.h}"}),
        ],
    )
    gate.wait_for_arrival()
    gate.wait_for_arrival()
    assert len(children(engines.path, workflow)) == 2
    gate.open()
    assert ended(engines.path, workflow) == ("completed", 4, None)
    assert steps(engines.path, workflow)["both"] == ("completed", "let go")
    assert steps(engines.path, workflow)["never"] == ("skipped", None)
    engines.stop(engine)


def test_a_list_of_workflows(engines: Engines) -> None:
    engine = engines([echo, fail])
    keep(engine, "inner", step("a", payload={"value": "${input.n}"}), inputs={"n": {}}, output="${steps.a}")
    each = sub("each", "inner", for_each="${input}", input={"n": "<${item}>"}, max_parallel=1)
    workflow = start(engine, [each, step("then", payload={"value": "${steps.each.1}"})], input=["${a}", "b", "c"])
    assert ended(engines.path, workflow) == ("completed", 2, None)
    assert steps(engines.path, workflow) == {
        "each": ("completed", ["<${a}>", "<b>", "<c>"]),  # what an item says is not taken for a reference
        "then": ("completed", "<b>"),
    }
    assert len(children(engines.path, workflow)) == 3
    engines.stop(engine)


def test_the_step_says_the_workflow_and_the_workflow_the_step(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines([Held(gate).held, echo])
    keep(engine, "inner", step("h", "held"))
    workflow = start(engine, [sub("nested", "inner", timeout=60)], description="outer")
    gate.wait_for_arrival()
    ((child, *_),) = children(engines.path, workflow)
    job = step_job(engines.path, workflow, "nested")
    assert row(engines.path, job).state == State.PENDING
    found = verb(engine, explain(engine.jobs, engine.roster, engine.clock, job))
    assert [reason.code for reason in found.reasons] == ["waits_for_workflow"]
    assert child in found.text
    gate.open()
    ended(engines.path, workflow)
    engines.stop(engine)


# --------------------------------------------------------------------------------------------------------------- its failing


def test_a_workflow_that_fails_fails_the_step_and_the_cause_names_it(engines: Engines) -> None:
    engine = engines([echo, fail])
    keep(engine, "inner", step("good"), step("bad", "fail"))
    workflow = start(engine, [step("after", needs=["nested"]), sub("nested", "inner", needs=[])])
    end, done, error = ended(engines.path, workflow)
    ((child, status, cause),) = children(engines.path, workflow)
    assert (status, cause) == ("failed", "step bad is dead_letter: ValueError: no such file")
    assert (end, done) == ("failed", 0)
    assert error == f"step nested failed: workflow inner {child} failed: {cause}"
    assert counted(engine) == {"failed": 2}
    engines.stop(engine)


def test_what_needs_a_step_that_failed_names_that_step_and_what_cannot_begin_says_so_once(engines: Engines) -> None:
    engine = engines([echo, fail])
    keep(engine, "inner", step("bad", "fail"))
    wanted = [sub("nested", "inner"), step("then"), step("last")]
    workflow = start(engine, wanted)
    _, _, error = ended(engines.path, workflow)
    ((child, *_),) = children(engines.path, workflow)
    cause = f"workflow inner {child} failed: step bad is dead_letter: ValueError: no such file"
    assert error == f"step nested failed: {cause}"
    said = [row(engines.path, step_job(engines.path, workflow, name)).last_error for name in ("nested", "then", "last")]
    assert said == [cause, *[f"not run: step nested, which it depends on, failed: {cause}"] * 2]
    workflow = start(
        engine, [step("a", "echo", for_each=[1], payload={"value": "${item}"}), step("b", when="${steps.a} > 1")]
    )
    assert ended(engines.path, workflow)[2] == (
        "step b cannot begin: an array of 1 > 1: only numbers, or texts, have an order"
    )
    engines.stop(engine)


def test_a_step_whose_workflow_undoes_while_the_whole_is_cancelled_says_why_it_failed(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines([Held(gate).held, fail, echo])
    keep(engine, "inner", step("a", compensate={"task": "held"}), step("bad", "fail"))
    workflow = start(engine, [sub("nested", "inner"), step("then")])
    gate.wait_for_arrival()
    act(engine, "cancel", workflow)
    gate.open()
    assert ended(engines.path, workflow)[0] == "cancelled"
    ((child, *_),) = children(engines.path, workflow)
    readers = Readers(engine.database.path)
    nested, _ = WorkflowQueries(readers, engine.writer).workflow(workflow).steps or ()
    asyncio.run(readers.close())
    assert nested.status == "failed"
    assert nested.error == f"workflow inner {child} failed: step bad is dead_letter: ValueError: no such file"
    engines.stop(engine)


def test_an_output_that_cannot_be_made_and_one_that_is_too_long_fail_the_step(engines: Engines) -> None:
    engine = engines([echo], max_result_bytes=100)
    keep(engine, "hollow", step("a"), output="${steps.a.x}")
    keep(engine, "long", step("a", payload={"value": "x" * 60}), output=["${steps.a}", "${steps.a}"])
    for name, says in (("hollow", "steps.a has no 'x'"), ("long", "is over the limit max_result_bytes = 100")):
        workflow = start(engine, [sub("nested", name)])
        status, _, error = ended(engines.path, workflow)
        assert status == "failed"
        assert says in (error or "")
        assert "the output of workflow" in (error or "")
    engines.stop(engine)


def test_a_workflow_that_cannot_begin_fails_the_step_and_says_why(engines: Engines) -> None:
    engine = engines([echo])
    keep(engine, "inner", step("a", payload={"value": "${input.n}"}), inputs={"n": {}})
    workflow = start(
        engine, [step("first", payload={"value": {"m": 1}}), sub("nested", "inner", input="${steps.first}")]
    )
    status, _, error = ended(engines.path, workflow)
    assert (status, error) == (
        "failed",
        "step nested cannot begin: workflow inner: input.m: is no input of it; there are n",
    )
    assert children(engines.path, workflow) == []
    engines.stop(engine)


def test_a_definition_that_is_gone_when_its_turn_comes_fails_the_step(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines([Held(gate).held, echo])
    keep(engine, "inner", step("a"))
    workflow = start(engine, [step("first", "held"), sub("nested", "inner")])
    gate.wait_for_arrival()
    verb(engine, engine.definitions.delete("inner"))
    gate.open()
    assert "there is no definition 'inner'" in (ended(engines.path, workflow)[2] or "")
    engines.stop(engine)


def test_what_it_did_is_undone_before_what_the_whole_did(engines: Engines) -> None:
    fickle = Fickle()
    engine = engines([fickle.note, fail], workers=2)
    undo = {"compensate": {"task": "note", "payload": {"what": "undo ${output}"}}}
    keep(engine, "inner", step("a", "note", payload={"what": "inner"}, **undo), step("b", "fail"))
    keep(engine, "well", step("a", "note", payload={"what": "well"}), output="${steps.a}")
    workflow = start(
        engine,
        [
            step("first", "note", payload={"what": "outer"}, **undo),
            sub("good", "well", **undo),
            sub("nested", "inner", **undo),
        ],
    )
    assert ended(engines.path, workflow)[0] == "failed"
    assert fickle.done == ["outer", "well", "inner", "undo inner", "undo well", "undo outer"]
    engines.stop(engine)


# ------------------------------------------------------------------------------------------------------- cancel, pause, time


def holding(engines: Engines, **settings: Any) -> tuple[Engine, Gate, str]:
    """A workflow in a workflow in a workflow whose innermost step runs."""
    gate = engines.gate()
    engine = engines([Held(gate).held, echo], **settings)
    keep(engine, "leaf", step("h", "held"), step("after"))
    keep(engine, "middle", sub("x", "leaf"), step("after"))
    workflow = start(engine, [sub("m", "middle"), step("after")], timeout=60)
    gate.wait_for_arrival()
    return engine, gate, workflow


def test_a_cancel_reaches_what_is_nested_and_the_whole_ends_when_that_has(engines: Engines) -> None:
    engine, _, workflow = holding(engines)
    ((middle, *_),) = children(engines.path, workflow)
    ((leaf, *_),) = children(engines.path, middle)
    act(engine, "cancel", workflow)
    for one in (workflow, middle, leaf):
        assert ended(engines.path, one) == ("cancelled", 0, None)
    assert counted(engine) == {"cancelled": 3}
    ends = {}
    with closing(read(engines.path)) as connection:
        ends = dict(connection.execute("SELECT id, completed_at FROM workflows"))
    assert ends[leaf] <= ends[middle] <= ends[workflow]
    engines.stop(engine)


def test_a_timeout_of_the_whole_reaches_what_is_nested(engines: Engines) -> None:
    clock = FakeClock()
    engine, _, workflow = holding(engines, clock=clock)
    clock.advance(61_000)
    settle(engine)
    assert ended(engines.path, workflow) == ("failed", 0, "it took longer than its timeout of 60 s")
    ((middle, status, _),) = children(engines.path, workflow)
    assert status == "cancelled"
    assert children(engines.path, middle)[0][1] == "cancelled"
    engines.stop(engine)


def test_its_own_timeout_fails_the_step(engines: Engines) -> None:
    clock = FakeClock()
    gate = engines.gate()
    engine = engines([Held(gate).held, echo], clock=clock)
    keep(engine, "leaf", step("h", "held"))
    workflow = start(engine, [sub("x", "leaf", timeout=5)])
    gate.wait_for_arrival()
    clock.advance(6_000)
    settle(engine)
    assert "took longer than its timeout of 5 s" in (ended(engines.path, workflow)[2] or "")
    engines.stop(engine)


def test_a_workflow_that_is_cancelled_by_itself_fails_the_step(engines: Engines) -> None:
    engine, _, workflow = holding(engines)
    ((middle, *_),) = children(engines.path, workflow)
    act(engine, "cancel", middle)
    status, _, error = ended(engines.path, workflow)
    assert (status, error) == ("failed", f"step m failed: workflow middle {middle} was cancelled")
    engines.stop(engine)


def test_with_the_job_of_the_step_goes_its_workflow(engines: Engines) -> None:
    engine, _, workflow = holding(engines)
    cancel(engine, step_job(engines.path, workflow, "m"))
    assert ended(engines.path, workflow)[0] == "failed"
    assert [status for _, status, _ in children(engines.path, workflow)] == ["cancelled"]
    engines.stop(engine)


def test_a_pause_reaches_what_is_nested_and_so_does_a_resume(engines: Engines) -> None:
    engine, gate, workflow = holding(engines)
    act(engine, "pause", workflow)
    gate.open()
    ((middle, *_),) = children(engines.path, workflow)
    ((leaf, *_),) = children(engines.path, middle)
    wait_for_state(engines.path, step_job(engines.path, leaf, "h"), State.COMPLETED)
    settle(engine)
    assert steps(engines.path, leaf)["after"] == ("pending", None)
    act(engine, "resume", workflow)
    assert ended(engines.path, workflow) == ("completed", 2, None)
    engines.stop(engine)


def test_one_that_ends_while_the_whole_is_paused_ends_its_step_and_no_other_begins(engines: Engines) -> None:
    gate = engines.gate()
    engine = engines([Held(gate).held, echo])
    keep(engine, "leaf", step("h", "held"))
    workflow = start(engine, [sub("x", "leaf"), step("after")])
    gate.wait_for_arrival()
    act(engine, "pause", workflow)
    gate.open()
    ((leaf, *_),) = children(engines.path, workflow)
    assert ended(engines.path, leaf)[0] == "completed"
    assert steps(engines.path, workflow) == {"x": ("completed", {"h": "let go"}), "after": ("pending", None)}
    with pytest.raises(TransitionRefused, match=f"it is the step x of workflow {workflow}, which has not ended"):
        act(engine, "delete", leaf)
    act(engine, "resume", workflow)
    assert ended(engines.path, workflow) == ("completed", 2, None)
    engines.stop(engine)


@pytest.mark.parametrize("stop", ["cancel", "timeout"])
@pytest.mark.parametrize("each", [{}, {"for_each": [1, 2]}])
def test_what_ended_well_while_the_whole_was_paused_is_undone_with_it(
    engines: Engines, stop: str, each: dict[str, Any]
) -> None:
    gate, clock, fickle = engines.gate(), FakeClock(), Fickle()
    engine = engines([Held(gate).held, fickle.note, echo], clock=clock)
    keep(engine, "pay", step("charge", "held"), output="${steps.charge}")
    refund = {"task": "note", "payload": {"what": "refund: ${output}"}}
    workflow = start(engine, [sub("x", "pay", compensate=refund, **each), step("after")], timeout=60)
    for _ in range(len(each.get("for_each", [1]))):
        gate.wait_for_arrival()
    act(engine, "pause", workflow)
    gate.open()
    for child, *_ in children(engines.path, workflow):
        assert ended(engines.path, child)[0] == "completed"
    assert {name: found for name, (found, _) in steps(engines.path, workflow).items()} == {
        "x": "completed", "after": "pending",
    }  # fmt: skip
    if stop == "cancel":
        act(engine, "cancel", workflow)
    else:
        clock.advance(61_000)
        settle(engine)
    assert ended(engines.path, workflow)[:2] == ("cancelled" if stop == "cancel" else "failed", 1)
    assert fickle.done == ["refund: let go"] * len(each.get("for_each", [1]))
    engines.stop(engine)


def test_what_ends_well_in_the_transaction_of_the_timeout_is_undone_with_the_rest(engines: Engines) -> None:
    clock, fickle, gate = FakeClock(), Fickle(), engines.gate()

    def late() -> str:
        gate.pass_through()
        return "done"

    engine = engines([late, fickle.note, echo], clock=clock)
    keep(engine, "inner", step("a", "late"), output="${steps.a}")
    undo = {"task": "note", "payload": {"what": "undo: ${output}"}}
    workflow = start(engine, [sub("x", "inner", compensate=undo), step("then")], timeout=60)
    gate.wait_for_arrival()

    def over_when_it_ends(tx: Transaction) -> None:
        """The next group has its end, and finds that the time of the whole is over."""
        gate.open()
        wait_until(lambda: [one.kind for one in engine.writer._queue], 5, "its end", until=lambda kinds: "end" in kinds)
        clock.advance(61_000)

    verb(engine, over_when_it_ends)
    assert ended(engines.path, workflow) == ("failed", 1, "it took longer than its timeout of 60 s")
    assert steps(engines.path, workflow) == {"x": ("completed", "done"), "then": ("cancelled", None)}
    assert fickle.done == ["undo: done"]
    engines.stop(engine)


@pytest.mark.parametrize("each", [{}, {"for_each": [1, 2]}])
def test_what_ends_well_in_the_moment_of_the_cancel_is_undone_with_the_rest(
    engines: Engines, each: dict[str, Any]
) -> None:
    gate, fickle = engines.gate(), Fickle()
    engine = engines([Held(gate).held, fickle.note, echo], workers=2)
    keep(engine, "pay", step("charge", "held"), output="${steps.charge}")
    refund = {"task": "note", "payload": {"what": "refund: ${output}"}}
    workflow = start(engine, [sub("x", "pay", compensate=refund, **each), step("after")])
    many = len(each.get("for_each", [1]))
    for _ in range(many):
        gate.wait_for_arrival()
    at_work = engine.jobs.running.all()
    assert len(at_work) == many

    def cancel_when_over(tx: Transaction) -> None:
        """While this is written no end is: the jobs have ended, and the file does not know of it."""
        gate.open()
        wait_until(lambda: all(one.finished for one in at_work), 10, "the jobs to end")
        engine.jobs.workflows.cancel(workflow)(tx)

    verb(engine, cancel_when_over)
    assert ended(engines.path, workflow)[:2] == ("cancelled", 0)
    assert [found for _, found, *_ in children(engines.path, workflow)] == ["completed"] * many
    assert fickle.done == ["refund: let go"] * many
    with pytest.raises(TransitionRefused, match="what its steps did is undone; rerun it"):
        act(engine, "retry", workflow)
    engines.stop(engine)


def test_an_end_ends_the_pause_too_and_a_retry_runs_on(engines: Engines) -> None:
    fickle, gate = Fickle(), engines.gate()

    def pausable() -> str:
        gate.pass_through()
        return fickle.fickle()

    engine = engines([pausable, echo])
    keep(engine, "leaf", step("b", "pausable"))
    workflow = start(engine, [sub("x", "leaf"), step("after")])
    gate.wait_for_arrival()
    act(engine, "pause", workflow)
    gate.open()
    assert ended(engines.path, workflow)[0] == "failed"
    with closing(read(engines.path)) as connection:
        assert list(connection.execute("SELECT count(*) FROM workflows WHERE paused_at IS NOT NULL")) == [(0,)]
    fickle.mended = True
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow) == ("completed", 2, None)
    engines.stop(engine)


def test_what_runs_again_inside_of_one_that_is_paused_is_paused(engines: Engines) -> None:
    fickle, gate = Fickle(), engines.gate()
    engine = engines([fickle.fickle, Held(gate).held, echo])
    keep(engine, "leaf", step("b", "fickle"), step("c"))
    workflow = start(engine, [sub("x", "leaf", needs=[]), step("y", "held", needs=[])])
    gate.wait_for_arrival()
    ((leaf, *_),) = children(engines.path, workflow)
    assert ended(engines.path, leaf)[0] == "failed"
    act(engine, "pause", workflow)
    fickle.mended = True
    for name in ("b", "c"):
        verb(engine, engine.jobs.retry(step_job(engines.path, leaf, name)))
        wait_until(lambda: steps(engines.path, leaf)["b"][0], until="completed".__eq__)
        settle(engine)
    assert steps(engines.path, leaf)["c"] == ("pending", None)
    act(engine, "resume", workflow)
    gate.open()
    assert ended(engines.path, workflow) == ("completed", 2, None)
    engines.stop(engine)


# -------------------------------------------------------------------------------------------------- retry, delete, a restart


def test_a_retry_runs_it_on_from_the_step_that_failed_however_deep(engines: Engines) -> None:
    fickle = Fickle()
    engine = engines([fickle.fickle, fickle.note, echo])
    keep(engine, "leaf", step("a", "note", payload={"what": 1}), step("b", "fickle"), output="${steps.b}")
    keep(engine, "middle", sub("x", "leaf"), output="${steps.x}")
    workflow = start(engine, [sub("m", "middle"), step("last", payload={"value": "${steps.m}"})])
    assert ended(engines.path, workflow)[0] == "failed"
    ((middle, *_),) = children(engines.path, workflow)
    with pytest.raises(TransitionRefused, match=f"it is the step m of workflow {workflow}; retry that"):
        act(engine, "retry", middle)
    with pytest.raises(TransitionRefused, match=f"it stands for a workflow; retry workflow {workflow}"):
        verb(engine, engine.jobs.retry(step_job(engines.path, workflow, "m")))
    assert counted(engine) == {"failed": 3}

    fickle.mended = True
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow) == ("completed", 2, None)
    assert steps(engines.path, workflow)["last"] == ("completed", "whole")
    assert fickle.done == [1]
    assert [status for _, status, _ in children(engines.path, workflow)] == ["completed"]
    assert counted(engine) == {"completed": 3}
    engines.stop(engine)


def test_a_retry_of_items_that_are_workflows_runs_the_failed_ones_on(engines: Engines) -> None:
    fickle = Fickle()
    engine = engines([fickle.fickle, fickle.note, echo])
    keep(
        engine,
        "leaf",
        step("a", "note", payload={"what": "${input}"}),
        step("b", "fickle", when="${input} > 1"),
        output="${steps.a}",
    )
    workflow = start(engine, [sub("each", "leaf", for_each=[1, 2, 3], input="${item}"), step("last")])
    status, _, error = ended(engines.path, workflow)
    assert status == "failed"
    assert "each[" in (error or "")
    assert "workflow leaf" in (error or "")
    fickle.mended = True
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow) == ("completed", 2, None)
    assert steps(engines.path, workflow)["each"] == ("completed", [1, 2, 3])
    assert sorted(fickle.done) == [1, 2, 3]
    engines.stop(engine)


def test_one_that_has_undone_what_it_did_is_started_anew_by_a_retry(engines: Engines) -> None:
    fickle = Fickle()
    engine = engines([fickle.fickle, fickle.note])
    undo = {"task": "note", "payload": {"what": "undo"}}
    keep(engine, "leaf", step("a", "note", payload={"what": "do"}, compensate=undo), step("b", "fickle"))
    workflow = start(engine, [sub("x", "leaf")])
    assert ended(engines.path, workflow)[0] == "failed"
    fickle.mended = True
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow) == ("completed", 1, None)
    assert fickle.done == ["do", "undo", "do"]
    assert [status for _, status, _ in children(engines.path, workflow)] == ["failed", "completed"]
    engines.stop(engine)


@pytest.mark.parametrize("each", [{}, {"for_each": [1, 2]}])
@pytest.mark.parametrize("since", ["changed", "deleted"])
def test_one_that_is_started_anew_is_the_version_that_it_was(
    engines: Engines, since: str, each: dict[str, Any]
) -> None:
    fickle = Fickle()
    engine = engines([fickle.fickle, fickle.note, echo])
    undo = {"task": "note", "payload": {"what": "undo"}}
    keep(engine, "leaf", step("first"))
    keep(engine, "leaf", step("a", "note", payload={"what": "${input.n}"}, compensate=undo), step("b", "fickle"),
         inputs={"n": {"default": 7}}, output="second ${steps.b}")  # fmt: skip
    workflow = start(engine, [sub("x", "leaf", **each), step("then", payload={"value": "${steps.x}"})])
    assert ended(engines.path, workflow)[0] == "failed"
    if since == "changed":
        keep(engine, "leaf", step("third"), output="third")
    else:
        verb(engine, engine.definitions.delete("leaf"))
    fickle.mended = True
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow) == ("completed", 2, None)
    n = len(each.get("for_each", [1]))
    assert steps(engines.path, workflow)["then"][1] == (["second whole"] * n if each else "second whole")
    with closing(read(engines.path)) as connection:
        versions = connection.execute("SELECT of_definition, of_version, state FROM workflows WHERE parent IS NOT NULL")
        assert sorted(versions) == [("leaf", 2, "completed")] * n + [("leaf", 2, "failed")] * n
    assert fickle.done.count(7) == 2 * n
    engines.stop(engine)


def test_compensations_of_both_that_a_step_was_can_run_again_at_once(engines: Engines) -> None:
    fickle = Fickle()
    engine = engines([fickle.fickle, echo])
    undo = {"task": "fickle", "max_retries": 0}
    keep(engine, "leaf", step("a", compensate=undo), step("b", "fickle"))
    workflow = start(engine, [sub("x", "leaf")])
    assert ended(engines.path, workflow)[0] == "failed"
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow)[0] == "failed"
    assert [status for _, status, _ in children(engines.path, workflow)] == ["failed", "failed"]
    fickle.mended = True
    dead = [job.seq for job in rows(engines.path, "state = 'dead_letter'")]
    assert verb(engine, lambda tx: engine.jobs.replay(tx, dead)) == 2
    wait_until(lambda: [state(engines.path, one) for one, *_ in [(workflow,), *children(engines.path, workflow)]],
               until=lambda found: all(one[0] == "failed" for one in found))  # fmt: skip
    assert "compensation" not in str(children(engines.path, workflow))
    settle(engine)
    engines.stop(engine)


def test_a_retry_of_items_of_which_some_run_on_and_some_begin_anew_waits_for_all_of_them(engines: Engines) -> None:
    fickle = Fickle()
    engine = engines([fickle.fickle, fickle.note, echo])
    undo = {"task": "note", "payload": {"what": "undo ${input}"}}
    do = step("a", "note", payload={"what": "${input}"}, when="${input} != 2", compensate=undo)
    keep(engine, "leaf", do, step("b", "fickle"), step("c"), output="${input}")
    each = sub("each", "leaf", for_each=[1, 2, 3], input="${item}")
    workflow = start(engine, [each, step("then", payload={"value": "${steps.each}"}), step("last")])
    assert ended(engines.path, workflow)[0] == "failed"
    assert len(children(engines.path, workflow)) == 3
    fickle.mended = True
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow) == ("completed", 3, None)
    assert steps(engines.path, workflow)["then"] == ("completed", [1, 2, 3])
    assert [status for _, status, _ in children(engines.path, workflow)].count("completed") == 3
    assert len(children(engines.path, workflow)) == 5
    engines.stop(engine)


def test_a_retry_of_which_a_part_ends_at_once_is_not_over_before_the_rest_of_it_runs_again(engines: Engines) -> None:
    engine = engines([echo], max_result_bytes=10)
    keep(engine, "inner", step("a", payload={"value": "let"}), output="${steps.a} go, as it is")
    keep(engine, "middle", sub("b", "inner"), output="${steps.b}")
    undo = {"task": "echo", "payload": {"value": "${output}"}}
    workflow = start(engine, [sub("c", "middle", compensate=undo), step("d", payload={"value": "${steps.c}"})])
    assert ended(engines.path, workflow)[0] == "failed"
    ((middle, _, _),) = children(engines.path, workflow)
    ((inner, *_),) = children(engines.path, middle)
    assert state(engines.path, inner)[0] == "completed"
    engines.stop(engine)

    engine = engines([echo])  # whose limit is greater: the output can be made, and inner has nothing to do
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow) == ("completed", 2, None)
    assert steps(engines.path, workflow)["d"] == ("completed", "let go, as it is")
    engines.stop(engine)


def test_a_dead_job_inside_that_is_retried_lets_all_around_it_run_again(engines: Engines) -> None:
    fickle = Fickle()
    engine = engines([fickle.fickle, echo])
    keep(engine, "leaf", step("b", "fickle"))
    keep(engine, "middle", sub("x", "leaf"))
    workflow = start(engine, [sub("m", "middle"), step("beside", needs=[])])
    assert ended(engines.path, workflow)[0] == "failed"
    ((middle, *_),) = children(engines.path, workflow)
    ((leaf, *_),) = children(engines.path, middle)
    fickle.mended = True
    verb(engine, engine.jobs.retry(step_job(engines.path, leaf, "b")))
    for one in (leaf, middle, workflow):
        assert ended(engines.path, one)[0] == "completed"
    assert counted(engine) == {"completed": 3}
    engines.stop(engine)


def test_a_step_that_was_skipped_is_over_and_cannot_run_again(engines: Engines) -> None:
    engine = engines([echo])
    keep(
        engine, "leaf", step("a"), step("b", when="${input} > 1"), step("c", payload={"value": 3}), output="${steps.c}"
    )
    workflow = start(engine, [sub("x", "leaf", input=1), step("then", payload={"value": "${steps.x}"})])
    assert ended(engines.path, workflow)[0] == "completed"
    inner = children(engines.path, workflow)[0][0]
    with pytest.raises(TransitionRefused, match="its condition does not hold, so the step was skipped"):
        verb(engine, engine.jobs.retry(step_job(engines.path, inner, "b")))
    assert [state(engines.path, one)[0] for one in (workflow, inner)] == ["completed", "completed"]
    assert steps(engines.path, workflow)["then"] == ("completed", 3)
    engines.stop(engine)


def test_a_retry_that_lacks_a_job_inside_of_what_is_nested_is_refused(engines: Engines) -> None:
    fickle = Fickle()
    engine = engines([fickle.fickle, fickle.note, echo])
    keep(engine, "leaf", step("a", "note", payload={"what": 1}), step("b", "fickle"))
    keep(engine, "fine", step("c"), output="${steps.c}")
    workflow = start(engine, [sub("f", "fine"), sub("each", "leaf", for_each=[1, 2]), step("last")])
    assert ended(engines.path, workflow)[0] == "failed"
    fine, leaf, _ = (child for child, *_ in children(engines.path, workflow))
    verb(engine, bulk.delete_one(step_job(engines.path, fine, "c")))  # it has ended well, and what it returned is kept
    verb(engine, bulk.delete_one(step_job(engines.path, leaf, "a")))
    fickle.mended = True
    with pytest.raises(TransitionRefused, match=f"the job of the step a of workflow {leaf}, which is a step of it, is"):
        act(engine, "retry", workflow)
    verb(engine, bulk.delete_one(items_of(engines.path, workflow)[0]))
    with pytest.raises(TransitionRefused, match="the job of an item of the step each is deleted; rerun it"):
        act(engine, "retry", workflow)
    assert fickle.done == [1, 1]
    engines.stop(engine, deleted=True)


def test_a_dead_job_inside_of_what_is_undone_cannot_run_again(engines: Engines) -> None:
    fickle = Fickle()
    engine = engines([fickle.fickle, fickle.note])
    keep(engine, "leaf", step("b", "fickle"))
    undo = {"task": "note", "payload": {"what": "undo"}}
    workflow = start(engine, [step("a", "note", payload={"what": "do"}, compensate=undo), sub("x", "leaf")])
    assert ended(engines.path, workflow)[0] == "failed"
    ((leaf, *_),) = children(engines.path, workflow)
    job = step_job(engines.path, leaf, "b")
    with pytest.raises(TransitionRefused, match="undone"):
        verb(engine, engine.jobs.retry(job))
    assert verb(engine, lambda tx: engine.jobs.replay(tx, [row(engines.path, job).seq])) == 0
    assert state(engines.path, leaf)[0] == "failed"
    engines.stop(engine)


def test_with_a_workflow_goes_what_is_nested_in_it(engines: Engines) -> None:
    engine, gate, workflow = holding(engines)
    gate.open()
    ended(engines.path, workflow)
    ((middle, *_),) = children(engines.path, workflow)
    act(engine, "delete", workflow)
    assert counted(engine) == {}
    assert rows(engines.path) == []
    with pytest.raises(NotFound):
        act(engine, "delete", middle)
    engine.stop(5.0)
    engines._running.remove(engine)
    check_invariants(engines.path, stopped=True, deleted=True)


def test_it_goes_on_after_a_crash(engines: Engines) -> None:
    engine, gate, workflow = holding(engines)
    engines.crash(engine)
    gate.open()

    def held() -> str:
        return "again"

    engine = engines([held, echo])
    assert ended(engines.path, workflow) == ("completed", 2, None)
    assert steps(engines.path, workflow)["m"] == ("completed", {"x": {"h": "again", "after": None}, "after": None})
    engines.stop(engine)


# --------------------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_a_step_is_refused_and_names_the_field(engines: Engines) -> None:
    engine = engines([echo])
    keep(engine, "inner", step("a"), inputs={"n": {}})
    for fields, field, says in (
        ({"workflow": "other"}, "steps[0].workflow", "there is no definition 'other'; there are inner"),
        ({"workflow": "inner", "task": "echo"}, "steps[0].task", "is of a task"),
        ({"workflow": "inner", "payload": {"a": 1}}, "steps[0].payload", "is of a task"),
        ({"workflow": "inner", "max_retries": 1}, "steps[0].max_retries", "is of a task"),
        ({"task": "echo", "input": {"a": 1}}, "steps[0].input", "is of a workflow"),
        ({"workflow": "inner"}, "steps[0].input.n", "is missing"),
        (
            {"workflow": "inner", "input": {"n": 1, "m": "${input}"}},
            "steps[0].input.m",
            "is no input of it; there are n",
        ),
        ({"workflow": "inner", "input": {"n": "${steps.x}"}}, "steps[0].input", "the step 'x', and there is none"),
        ({"workflow": "inner", "input": {"n": "${input.z}"}}, "steps[0].input", "input has no 'z'"),
        ({"workflow": "inner", "for_each": [1], "input": {"m": "${item}"}}, "steps[0].input.m", "is no input of it"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            new_workflow(engine, [{"name": "a", **fields}], input={})
        assert refused.value.field == field
        assert says in str(refused.value)
    engines.stop(engine)


def test_an_input_that_the_steps_of_what_is_nested_would_refuse_is_refused_at_the_start_where_it_is_known(
    engines: Engines,
) -> None:
    def charge(amount: int, note: str = "") -> int:
        return amount

    engine = engines([charge, echo])
    inputs = {"n": {}, "note": {"default": "none"}}
    payload = {"amount": "${input.n}", "note": "${input.note}"}
    keep(engine, "inner", step("a"), step("pay", "charge", payload=payload), inputs=inputs)
    says = "inner would refuse it: steps[1].payload.amount: expected int, got str"
    for fields in (
        {"input": {"n": "much"}},
        {"input": {"n": "${input.word}"}},
        {"input": {"n": "${item}"}, "for_each": [1, 2, "${input.word}"]},
    ):
        with pytest.raises(InvalidRequest) as refused:
            new_workflow(engine, [step("first"), sub("x", "inner", **fields)], input={"word": "w"})
        assert refused.value.field == "steps[1].input"
        assert says in str(refused.value)
    with pytest.raises(InvalidRequest, match="inner would refuse it"):
        keep(engine, "outer", sub("x", "inner", input={"n": "much"}))
    new_workflow(
        engine,
        [sub("x", "inner", input={"n": "${input.word}"}, when="${input.never}")],
        input={"word": "w", "never": 0},
    )
    workflow = start(engine, [step("first", payload={"value": "w"}), sub("x", "inner", input={"n": "${steps.first}"})])
    assert "step x cannot begin: workflow inner: steps[1].payload.amount: expected int, got str" in str(
        ended(engines.path, workflow)[2]
    )
    workflow = start(engine, [sub("x", "inner", input={"n": 5})])
    assert ended(engines.path, workflow)[0] == "completed"
    engines.stop(engine)


def test_circles_and_towers_of_workflows_are_refused(engines: Engines) -> None:
    engine = engines([echo])
    keep(engine, "a", step("x"))
    keep(engine, "b", sub("x", "a"))
    with pytest.raises(InvalidRequest, match="is a circle: a runs b runs a") as refused:
        keep(engine, "a", step("x"), sub("y", "b"))
    assert refused.value.field == "steps[1].workflow"
    with pytest.raises(InvalidRequest, match="is a circle: c runs c"):
        keep(engine, "c", sub("x", "c"))
    keep(engine, "n0", step("x"))
    for n in range(1, 20):
        keep(engine, f"n{n}", sub("x", f"n{n - 1}"))
    with pytest.raises(InvalidRequest, match="more than 20 workflows in one another"):
        keep(engine, "n20", sub("x", "n19"))
    workflow = start(engine, [sub("x", "n18")])
    assert ended(engines.path, workflow)[0] == "completed"
    assert counted(engine) == {"completed": 20}
    engines.stop(engine)
