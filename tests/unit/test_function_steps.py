"""Durable functions and declared workflows in one another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from miniflow.engine import Engine
from miniflow.errors import InvalidRequest
from miniflow.registry import Registry
from miniflow.workflow_context import WorkflowContext
from miniflow.workflow_graph import decode_definition
from tests.engines import Engines, registry_of, verb
from tests.functions import asleep, begin, functions, output, recorded, send
from tests.invariants import check_invariants
from tests.waiting import wait_until
from tests.workflows import act, ended, start, state, steps


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as engines:
        yield engines


def add(a: int, b: int = 1) -> int:
    return a + b


def paid(ctx: WorkflowContext, cents: int) -> Any:
    charged = ctx.step(int, cents, name="charge")
    return {"cents": charged, "by": ctx.wait_event("paid")}


def known(*given: Any, **options: Any) -> Registry:
    """Tasks, and the workflow functions among them."""
    found = registry_of([one for one in given if "ctx" not in one.__code__.co_varnames[:1]])
    for spec in functions(*[one for one in given if "ctx" in one.__code__.co_varnames[:1]], **options):
        found.add(spec)
    return found


def child_of(engine: Engine, workflow: str, n: int = 1, place: int = 0) -> str:
    """The id of the newest of the workflows, of which there are ``n``, that are steps of it, or of that ``place`` before it."""
    sql = (
        "SELECT c.id FROM workflows w JOIN steps s ON s.workflow = w.number JOIN workflows c ON c.parent = s.job "
        "WHERE w.id = ? ORDER BY c.number DESC"
    )
    found = wait_until(
        lambda: engine.writer.call("verb", lambda tx: tx.run(sql, workflow)), 5, "its step", until=lambda x: len(x) == n
    )
    return str(found[place][0])


def test_a_step_can_be_a_durable_function_and_its_output_is_what_that_returns(engines: Engines) -> None:
    engine = engines(known(add, paid))
    flow = start(
        engine,
        [
            {"name": "sum", "task": "add", "payload": {"a": 4}},
            {"name": "pay", "workflow": "paid", "input": {"cents": "${steps.sum}"}},
            {"name": "last", "task": "add", "payload": {"a": "${steps.pay.cents}", "b": "${steps.pay.by}"}},
        ],
    )
    child = child_of(engine, flow)
    asleep(engines.path, child)
    assert state(engines.path, flow)[:2] == ("running", 1)
    check_invariants(engines.path)
    engines.crash(engine)
    engine = engines(known(add, paid))
    send(engine, child, "paid", 10)
    assert ended(engines.path, flow)[:2] == ("completed", 3)
    assert steps(engines.path, flow)["pay"] == ("completed", {"cents": 5, "by": 10})
    assert steps(engines.path, flow)["last"] == ("completed", 15)
    engines.stop(engine)


def test_what_a_step_gives_a_function_is_held_against_it_at_the_start(engines: Engines) -> None:
    engine = engines(known(add, paid))
    for step, says in [
        ({"workflow": "paid", "input": {"cents": "x"}}, r"steps\[0\]\.input\.cents: expected int"),
        ({"workflow": "paid"}, r"steps\[0\]\.input\.cents: is missing"),
        ({"workflow": "payd", "input": {"cents": 1}}, r"steps\[0\]\.workflow: there is no definition 'payd'"),
        ({"workflow": "paid", "payload": {"cents": 1}}, r"steps\[0\]\.payload: is of a task"),
    ]:
        with pytest.raises(InvalidRequest, match=says):
            start(engine, [step])
    engines.stop(engine)


def test_a_cancel_and_a_retry_of_the_whole_reach_the_function_that_is_a_step(engines: Engines) -> None:
    engine = engines(known(add, paid))
    flow = start(engine, [{"name": "pay", "workflow": "paid", "input": {"cents": 5}}])
    child = child_of(engine, flow)
    asleep(engines.path, child)
    act(engine, "cancel", flow)
    assert ended(engines.path, flow)[0] == "cancelled"
    assert ended(engines.path, child)[0] == "cancelled"
    check_invariants(engines.path)

    act(engine, "retry", flow)
    asleep(engines.path, child)
    act(engine, "pause", flow)
    send(engine, child, "paid", "cash")
    assert state(engines.path, child)[0] == "running"
    act(engine, "resume", flow)
    assert ended(engines.path, flow)[0] == "completed"
    assert steps(engines.path, flow)["pay"] == ("completed", {"cents": 5, "by": "cash"})
    assert output(engines.path, child) == {"cents": 5, "by": "cash"}
    engines.stop(engine)


def test_a_function_that_fails_fails_its_step_and_a_retry_goes_on_at_what_failed_in_it(engines: Engines) -> None:
    calls: list[str] = []
    broken = [True]

    def fickle(ctx: WorkflowContext) -> Any:
        ctx.step(calls.append, "first", name="first")
        ctx.step(work, name="second", max_retries=0)
        return "whole"

    def work() -> None:
        calls.append("second")
        if broken[0]:
            raise ValueError("not yet")

    engine = engines(known(add, fickle))
    flow = start(engine, [{"name": "do", "workflow": "fickle"}, {"name": "last", "task": "add", "payload": {"a": 1}}])
    found, _, error = ended(engines.path, flow)
    assert found == "failed"
    assert "StepFailed: step second failed: ValueError: not yet" in str(error)
    broken[0] = False
    act(engine, "retry", flow)
    assert ended(engines.path, flow)[0] == "completed"
    assert calls == ["first", "second", "second"]
    assert steps(engines.path, flow)["do"] == ("completed", "whole")
    engines.stop(engine)


def test_a_pause_is_of_what_runs_and_a_function_that_had_ended_runs_when_it_is_retried(engines: Engines) -> None:
    engine = engines(known(add, paid))
    pay = {"name": "pay", "workflow": "paid", "input": {"cents": 5}, "needs": []}
    other = {"name": "other", "workflow": "paid", "input": {"cents": 6}, "needs": []}
    flow = start(engine, [pay, other])
    first, second = [child_of(engine, flow, 2, n) for n in (0, 1)]
    for one in (first, second):
        asleep(engines.path, one)
    act(engine, "cancel", first)
    act(engine, "pause", flow)
    act(engine, "cancel", flow)
    assert ended(engines.path, flow)[0] == "cancelled"
    act(engine, "retry", flow)
    for one in (first, second):
        asleep(engines.path, one)
        send(engine, one, "paid", "cash")
    assert ended(engines.path, flow)[0] == "completed"
    engines.stop(engine)


def test_a_function_is_run_for_each_item_of_a_list(engines: Engines) -> None:
    def twice(ctx: WorkflowContext, n: int) -> int:
        return 2 * ctx.step(int, n)

    engine = engines(known(add, twice))
    step = {"name": "each", "for_each": [1, 2, 3], "workflow": "twice", "input": {"n": "${item}"}}
    flow = start(engine, [step])
    assert ended(engines.path, flow)[0] == "completed"
    assert steps(engines.path, flow)["each"] == ("completed", [2, 4, 6])
    assert recorded(engines.path, flow) == []
    engines.stop(engine)


# ------------------------------------------------------------------------------------------------- a function spawns steps


def spawned_by(engine: Engine, run: str) -> str:
    """The id of the workflow that it has spawned."""
    sql = (
        "SELECT c.id FROM workflows w JOIN checkpoints p ON p.workflow = w.number JOIN workflows c ON c.number = p.child "
        "WHERE w.id = ?"
    )
    return str(engine.writer.call("verb", lambda tx: tx.run(sql, run))[0][0])


def keep(engine: Engine, name: str, steps: list[dict[str, Any]], **fields: Any) -> None:
    definition = decode_definition(msgspec.json.encode({"steps": steps, **fields}))
    verb(engine, engine.definitions.put(name, definition))


def test_a_function_spawns_a_workflow_that_is_kept_and_gets_its_output(engines: Engines) -> None:
    def parent(ctx: WorkflowContext, name: str) -> Any:
        return ctx.spawn(name, {"a": 4}).result()

    engine = engines(known(add, parent))
    one = {"name": "sum", "task": "add", "payload": {"a": "${input.a}"}}
    keep(engine, "with output", [one], output="${steps.sum}")
    keep(engine, "without", [one, {"name": "more", "task": "add", "payload": {"a": "${steps.sum}"}}])
    keep(engine, "wrong", [one], output="${steps.sum.rows}")
    assert output(engines.path, begin(engine, "parent", {"name": "with output"})) == 5
    assert output(engines.path, begin(engine, "parent", {"name": "without"})) == {"sum": 5, "more": 6}
    assert "its output cannot be made" in str(ended(engines.path, begin(engine, "parent", {"name": "wrong"}))[2])
    assert "no workflow is registered as 'nobody'" in str(
        ended(engines.path, begin(engine, "parent", {"name": "nobody"}))[2]
    )
    engines.stop(engine)


def test_a_retry_retries_the_steps_that_were_spawned_or_spawns_them_anew_where_they_were_undone(
    engines: Engines,
) -> None:
    calls: list[str] = []
    broken = [True]

    def fickle() -> str:
        calls.append("fickle")
        if broken[0]:
            raise ValueError("not yet")
        return "whole"

    def first() -> str:
        calls.append("first")
        return "first"

    def undo() -> None:
        calls.append("undo")

    def parent(ctx: WorkflowContext, name: str) -> Any:
        return ctx.spawn(name).result()

    engine = engines(known(first, fickle, undo, parent))
    last = {"name": "last", "task": "fickle", "max_retries": 0}
    keep(engine, "plain", [{"name": "first", "task": "first"}, last], output="${steps.last}")
    undone = [{"name": "first", "task": "first", "compensate": {"task": "undo"}}, last]
    keep(engine, "undone", undone, output="${steps.last}")
    for name, before, after in [
        ("plain", ["first", "fickle"], ["fickle"]),
        ("undone", ["first", "fickle", "undo"], ["first", "fickle"]),
    ]:
        broken[0] = True
        run = begin(engine, "parent", {"name": name})
        found, _, error = ended(engines.path, run)
        assert (found, calls) == ("failed", before), error
        broken[0] = False
        calls.clear()
        act(engine, "retry", run)
        assert output(engines.path, run) == "whole"
        assert calls == after
        calls.clear()
    engines.stop(engine)


def test_a_retry_of_what_was_cancelled_spawns_anew_what_has_undone_what_it_did(engines: Engines) -> None:
    def parent(ctx: WorkflowContext) -> Any:
        spawned = ctx.spawn("undone")
        ctx.step(int, 1)
        return spawned.result()

    engine = engines(known(add, paid, parent))
    first = {"name": "first", "task": "add", "payload": {"a": 1}, "compensate": {"task": "add", "payload": {"a": 1}}}
    pay = {"name": "pay", "workflow": "paid", "input": {"cents": 5}}
    keep(engine, "undone", [first, pay], output="${steps.pay.by}")
    run = begin(engine, "parent")
    asleep(engines.path, run)
    inner = spawned_by(engine, run)
    asleep(engines.path, child_of(engine, inner))
    act(engine, "cancel", run)
    assert ended(engines.path, inner)[0] == "cancelled"
    act(engine, "retry", run)
    asleep(engines.path, run)
    anew = spawned_by(engine, run)
    assert anew != inner
    last = child_of(engine, anew)
    asleep(engines.path, last)
    send(engine, last, "paid", "cash")
    assert output(engines.path, run) == "cash"
    engines.stop(engine)


def test_a_cancel_leaves_alone_what_a_spawned_workflow_is_undoing(engines: Engines) -> None:
    gate = engines.gate()

    def undo() -> None:
        gate.pass_through()

    def fail() -> None:
        raise ValueError("no")

    def parent(ctx: WorkflowContext) -> Any:
        return ctx.spawn("undone").result()

    engine = engines(known(add, undo, fail, parent))
    first = {"name": "first", "task": "add", "payload": {"a": 1}, "compensate": {"task": "undo"}}
    second = {"name": "second", "task": "add", "payload": {"a": 1}, "compensate": {"task": "undo"}}
    keep(engine, "undone", [first, second, {"name": "last", "task": "fail", "max_retries": 0}])
    run = begin(engine, "parent")
    gate.wait_for_arrival()
    asleep(engines.path, run)
    assert act(engine, "cancel", run) == "cancelled"
    gate.open()
    inner = spawned_by(engine, run)
    assert ended(engines.path, inner) == ("failed", 2, "step last is dead_letter: ValueError: no")
    engines.stop(engine)


def test_functions_and_steps_that_start_each_other_without_end_are_stopped(engines: Engines) -> None:
    def round_and_round(ctx: WorkflowContext) -> Any:
        return ctx.spawn("circle").result()

    engine = engines(known(add, round_and_round))
    keep(engine, "circle", [{"name": "again", "workflow": "round_and_round"}])
    run = begin(engine, "round_and_round")
    assert "runs spawn runs 50 deep at most" in str(ended(engines.path, run, 30)[2])
    engines.stop(engine)
