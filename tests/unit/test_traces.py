"""Traces: what is passed on is what the trace shows, whoever asks and whenever; and nothing is kept for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from miniflow import WorkflowContext, current_job, otlp, registry, task
from miniflow.command_tasks import add_commands, load_commands
from miniflow.engine import Engine
from miniflow.errors import InvalidRequest
from miniflow.ids import uuid7
from miniflow.intake import checked_traceparent, submission_from_options
from miniflow.loader import load_tasks
from miniflow.registry import Registry, Task
from miniflow.states import State
from miniflow.testing import Harness
from miniflow.trace_shape import FoundSpan, FoundTrace, shown
from miniflow.traceparent import TraceContext, own_trace, parse, span_of_attempt, span_of_job, span_of_workflow
from miniflow.workflow_graph import definition_of
from tests.engines import Engines, FakeClock, submit, verb, wait_for_state
from tests.functions import begin, functions, output, recorded
from tests.invariants import read
from tests.traces import CALLER, HEADER, TRACE_ID, as_tree, passed_on, trace_of
from tests.workflows import act, ended, start

MS = 1_700_000_000_000


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as engines:
        yield engines


def said() -> str | None:
    return current_job().traceparent


def the_task(function: Callable[..., Any]) -> Task[Any, Any]:
    with registry.collecting(Registry()):
        return task(function)


def result_of(path: Path, job_id: str) -> Any:
    found = wait_for_state(path, job_id, timeout_s=10)
    assert found.state == State.COMPLETED, found
    return None if found.result is None else json.loads(found.result)


# -------------------------------------------------------------------------------------------------- the header, and ids


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"ff-{TRACE_ID}-{CALLER}-01",
        f"00-{TRACE_ID.upper()}-{CALLER}-01",
        f"00-{TRACE_ID}-{CALLER}",
        f"00-{TRACE_ID}-{CALLER}-01-more",
        f"0-{TRACE_ID}-{CALLER}-01",
        f"00-{TRACE_ID}-{CALLER}-0x",
        f"01-{TRACE_ID}-{CALLER}-01-{'x' * 600}",
    ],
)
def test_a_header_that_is_none_is_as_if_there_were_none(header: str | None) -> None:
    assert parse(header) is None


def test_a_later_version_may_say_more_and_is_passed_on_as_ours() -> None:
    found = parse(f" cc-{TRACE_ID}-{CALLER}-ff-what-comes-later")

    assert found == TraceContext(TRACE_ID, CALLER, 0xFF)
    assert found.at("1234567890abcdef") == f"00-{TRACE_ID}-1234567890abcdef-03", "flags that nobody knows are not"


def test_a_run_without_a_caller_has_a_trace_of_its_own() -> None:
    job_id = uuid7()

    assert own_trace(job_id) == TraceContext(job_id.replace("-", ""), None, 1)
    assert own_trace("JOB-x") == own_trace("JOB-x"), "an id of another form"
    assert parse(own_trace("JOB-x").at("1234567890abcdef")) is not None
    assert (
        len({span_of_job("a"), span_of_workflow("a"), span_of_attempt("a", 1, MS), span_of_attempt("a", 1, MS + 1)})
        == 4
    )


def test_as_a_field_it_is_refused_where_it_cannot_be_read() -> None:
    with pytest.raises(InvalidRequest, match="traceparent"):
        checked_traceparent("00-no")
    assert submission_from_options("t", "{}", {"traceparent": HEADER}).traceparent == HEADER


# ------------------------------------------------------------------------------------------------------------- its shape


def a_trace() -> FoundTrace:
    root = FoundSpan("a" * 16, CALLER, "flow", "workflow", "failed", MS, MS + 30, {"workflow_id": "w"}, "step one is …")
    step = FoundSpan("b" * 16, root.span_id, "one", "step", "running", MS + 5, None, {"attempts": 2, "queue": "q"})
    tried = FoundSpan(
        "c" * 16, step.span_id, "attempt 1", "attempt", "crashed", MS + 6, MS + 9, {}, "OSError: gone", "OSError"
    )
    return FoundTrace(TraceContext(TRACE_ID, CALLER, 1), MS + 100, [root, step, tried])


def test_the_export_is_the_json_of_the_protocol() -> None:
    """Ids are hex digits, 64-bit numbers are texts, enumerations are numbers; what goes on says so."""
    ((resource,),) = otlp.export(a_trace()).values()
    (scope,) = resource["scopeSpans"]
    root, step, tried = scope["spans"]

    assert {"key": "service.name", "value": {"stringValue": "miniflow"}} in resource["resource"]["attributes"]
    assert (root["traceId"], root["spanId"], root["parentSpanId"]) == (TRACE_ID, "a" * 16, CALLER)
    assert (root["startTimeUnixNano"], root["endTimeUnixNano"]) == (f"{MS}000000", f"{MS + 30}000000")
    assert root["status"] == {"code": 2, "message": "step one is …"}
    assert (root["kind"], tried["kind"]) == (1, 5)
    assert {"key": "miniflow.attempts", "value": {"intValue": "2"}} in step["attributes"]
    assert {"key": "miniflow.unended", "value": {"boolValue": True}} in step["attributes"]
    assert (step["status"], step["endTimeUnixNano"]) == ({"code": 0}, f"{MS + 100}000000")
    (event,) = tried["events"]
    assert (event["name"], event["attributes"][0]["value"]) == ("exception", {"stringValue": "OSError"})


def test_what_goes_on_has_no_end_and_no_duration() -> None:
    root, step, _ = shown(a_trace()).spans

    assert (root.duration, root.ended_at) == (0.03, "2023-11-14T22:13:20.030Z")
    assert (step.duration, step.ended_at, step.status) == (None, None, "running")


# --------------------------------------------------------------------------------------------------------- plain jobs


def test_an_attempt_passes_on_the_span_that_the_trace_shows_for_it(engines: Engines) -> None:
    engine = engines(said)
    own, given = submit(engine, "said"), submit(engine, "said", traceparent=HEADER)

    heard = {job_id: result_of(engines.path, job_id) for job_id in (own, given)}

    for job_id, parent in ((own, None), (given, CALLER)):
        trace = trace_of(engines.path, job_id, job=True)
        job, attempt = trace.spans
        assert (job.parent_id, attempt.parent_id) == (parent, job.span_id)
        assert heard[job_id] == passed_on(trace, attempt)
    assert trace_of(engines.path, own, job=True).context.trace_id == own.replace("-", "")
    assert trace_of(engines.path, given, job=True).context.trace_id == TRACE_ID


def test_attempts_that_are_counted_anew_are_other_spans_and_stay_the_same_after_a_restart(engines: Engines) -> None:
    broken, clock, heard = [True], FakeClock(), []

    def work() -> None:
        heard.append(current_job().traceparent)
        if broken:
            raise ValueError("no")

    engine = engines(work, clock=clock)
    job_id = submit(engine, "work", max_retries=0)
    wait_for_state(engines.path, job_id, State.DEAD_LETTER)
    broken.clear()
    clock.advance(1000)
    verb(engine, engine.jobs.retry(job_id))
    wait_for_state(engines.path, job_id, State.COMPLETED)
    trace = trace_of(engines.path, job_id, job=True)

    assert as_tree(trace) == ["work completed", "  attempt 1 failed", "  attempt 1 completed"]
    assert heard == [passed_on(trace, one) for one in trace.spans[1:]]
    assert trace.spans[1].error == "ValueError: no"
    engines.stop(engine)
    engines(work, clock=clock)
    assert trace_of(engines.path, job_id, job=True) == trace


def test_a_job_that_a_job_submits_hangs_below_its_attempt_unless_told_otherwise(engines: Engines) -> None:
    inner = the_task(said)

    def outer(how: str) -> Any:
        options = {"here": {}, "own": {"traceparent": ""}, "other": {"traceparent": HEADER}}[how]
        return [current_job().traceparent, inner.submit_with(options)]

    engine = engines([outer, inner])
    found = {how: result_of(engines.path, submit(engine, "outer", {"how": how})) for how in ("here", "own", "other")}

    heard = {how: (outside, result_of(engines.path, job_id), job_id) for how, (outside, job_id) in found.items()}
    outside, inside, job_id = heard["here"]
    assert trace_of(engines.path, job_id, job=True).spans[0].parent_id == outside.split("-")[2]
    assert inside.split("-")[1] == outside.split("-")[1]
    assert heard["own"][1].split("-")[1] == heard["own"][2].replace("-", "")
    assert heard["other"][1].split("-")[1] == TRACE_ID


def test_a_job_that_nobody_traces_keeps_nothing_for_it(engines: Engines) -> None:
    engine = engines([said], workers=0)
    submit(engine, "said")

    with closing(read(engines.path)) as connection:
        assert list(connection.execute("SELECT options FROM jobs")) == [(None,)]
    assert repr(engine.services.traces) == "<Traces unused>"


def test_where_no_job_runs_there_is_no_trace() -> None:
    assert current_job().traceparent is None


def test_the_kit_for_tests_has_them_too(tmp_path: Path) -> None:
    with Harness(tmp_path) as jobs:

        @task
        def tell() -> Any:
            return current_job().traceparent

        job = jobs.submit("tell", traceparent=HEADER)
        (done,) = jobs.drain()

    assert done.id == job.id
    assert done.result.startswith(f"00-{TRACE_ID}-")


def test_a_coroutine_a_process_and_a_command_are_told_too(engines: Engines) -> None:
    async def waiting() -> Any:
        return current_job().traceparent

    script = "import json, os; print(json.dumps(os.environ['TRACEPARENT']))"
    (engines.folder / "away.py").write_text(
        "from miniflow import current_job, task\n\n"
        "@task(executor='process')\ndef away() -> list:\n"
        "    return [current_job().traceparent, current_job().traceparent, inner.submit()]\n\n"
        "@task\ndef inner() -> str:\n    return current_job().traceparent\n"
    )
    specs = load_tasks(engines.folder).registry
    specs.add(the_task(waiting).spec)
    add_commands(specs, load_commands({"shell": {"argv": [sys.executable, "-c", script]}}, engines.folder))
    engine = engines(specs, processes=1)
    heard = {}
    for name in ("waiting", "away", "shell"):
        job_id = submit(engine, name, traceparent=HEADER)
        heard[name] = result_of(engines.path, job_id)
        trace = trace_of(engines.path, job_id, job=True)
        mine = heard[name] if isinstance(heard[name], str) else heard[name][0]
        assert mine == passed_on(trace, trace.spans[1]), name
    first, again, inner = heard["away"]
    assert first == again
    assert result_of(engines.path, inner).split("-")[1] == TRACE_ID
    assert trace_of(engines.path, inner, job=True).spans[0].parent_id == first.split("-")[2]


# ----------------------------------------------------------------------------------------------------------- workflows


def heard_by(path: Path, workflow_id: str) -> dict[str, str]:
    """What each job of a workflow returned, by its span."""
    sql = """
    SELECT j.id, j.result FROM workflows w JOIN steps s ON s.workflow = w.number JOIN jobs j ON j.seq = s.job
    WHERE w.id = ? AND s.kind IS NULL AND j.state = 'completed'
    """
    with closing(read(path)) as connection:
        return {span_of_job(job_id): json.loads(result) for job_id, result in connection.execute(sql, (workflow_id,))}


def test_every_job_of_a_workflow_is_in_the_trace_of_its_caller_also_those_that_are_made_later(engines: Engines) -> None:
    def fail() -> None:
        raise ValueError("no seat")

    def tell(n: int = 0) -> Any:
        return current_job().traceparent

    engine = engines([tell, fail])
    flow = start(
        engine,
        [
            {"name": "first", "task": "tell", "compensate": {"task": "tell"}},
            {"name": "each", "task": "tell", "for_each": [1, 2], "payload": {"n": "${item}"}},
            {"name": "bad", "task": "fail", "max_retries": 0},
            {"name": "never", "task": "tell"},
        ],
        on_failure={"task": "tell"},
        traceparent=HEADER,
    )
    assert ended(engines.path, flow)[0] == "failed"
    trace = trace_of(engines.path, flow)

    assert (trace.context.trace_id, trace.spans[0].parent_id) == (TRACE_ID, CALLER)
    assert sorted(as_tree(trace)) == sorted(
        ["flow failed", "  first completed", "    attempt 1 completed", "  each completed"]
        + [f"    each[{n}] completed" for n in (0, 1)] + ["      attempt 1 completed"] * 2
        + ["  bad dead_letter", "    attempt 1 failed", "  never cancelled"]
        + ["  undo first completed", "    attempt 1 completed", "  on_failure completed", "    attempt 1 completed"]
    )  # fmt: skip
    heard = heard_by(engines.path, flow)
    attempts = {
        one.parent_id: passed_on(trace, one)
        for one in trace.spans
        if one.status == "completed" and one.kind == "attempt"
    }
    assert heard == attempts, "first, two items, a compensation, and on_failure"
    assert len(heard) == 5


def test_a_step_is_a_span_from_the_moment_that_its_turn_came(engines: Engines) -> None:
    clock, gate = FakeClock(), engines.gate()

    def held() -> Any:
        gate.pass_through()
        return current_job().traceparent

    engine = engines([said, held], clock=clock)
    flow = start(engine, [{"name": "one", "task": "held"}, {"name": "two", "task": "said"}])
    gate.wait_for_arrival()
    assert as_tree(trace_of(engines.path, flow)) == ["flow running", "  one running", "    attempt 1 running"]

    clock.advance(700)
    gate.open()
    assert ended(engines.path, flow)[0] == "completed"
    trace = trace_of(engines.path, flow)
    root, one, _, two, _ = trace.spans

    assert trace.context.trace_id == flow.replace("-", ""), "nobody gave one"
    assert (two.name, two.started_ms) == ("two", one.ended_ms)
    assert two.started_ms == root.started_ms + 700
    assert list(heard_by(engines.path, flow).values())[1] == passed_on(trace, trace.spans[4])


def test_a_step_by_itself_is_its_part_of_the_workflows_trace(engines: Engines) -> None:
    engine = engines(said)
    flow = start(engine, [{"name": "each", "task": "said", "for_each": [1]}], traceparent=HEADER)
    ended(engines.path, flow)
    whole = trace_of(engines.path, flow)
    (item,) = [one for one in whole.spans if one.kind == "item"]

    part = trace_of(engines.path, item.attributes["job_id"], job=True)

    assert part.spans == whole.spans[2:]
    assert part.context.trace_id == TRACE_ID


def test_steps_that_run_again_are_in_the_same_trace(engines: Engines) -> None:
    broken = [True]

    def fickle() -> Any:
        if broken:
            raise ValueError("no")
        return current_job().traceparent

    engine = engines(fickle)
    flow = start(engine, [{"task": "fickle", "max_retries": 0}], traceparent=HEADER)
    assert ended(engines.path, flow)[0] == "failed"
    broken.clear()
    act(engine, "retry", flow)
    assert ended(engines.path, flow)[0] == "completed"
    trace = trace_of(engines.path, flow)

    assert as_tree(trace)[1:] == ["  fickle completed", "    attempt 1 failed", "    attempt 1 completed"]
    assert list(heard_by(engines.path, flow).values()) == [passed_on(trace, trace.spans[3])]


def test_a_trace_with_too_many_spans_is_cut_and_says_so(engines: Engines) -> None:
    engine = engines(said)
    flow = start(engine, [{"name": f"s{n}", "task": "said", "needs": []} for n in range(10)])
    ended(engines.path, flow)

    cut, whole = trace_of(engines.path, flow, spans_max=7), trace_of(engines.path, flow, spans_max=21)

    assert (len(cut.spans), cut.truncated) == (7, True)
    assert (len(whole.spans), whole.truncated) == (21, False)
    known: set[str | None] = {None}
    for one in cut.spans:
        assert one.parent_id in known, "parents come first, so that none is missing"
        known.add(one.span_id)


# ----------------------------------------------------------------------------------------------------- durable functions


def test_what_a_durable_function_calls_hangs_below_its_step_and_so_do_the_runs_that_it_spawns(engines: Engines) -> None:
    def child(ctx: WorkflowContext) -> Any:
        return [ctx.traceparent, ctx.step(said, name="inner")]

    def parent(ctx: WorkflowContext) -> Any:
        outside, inside = ctx.traceparent, ctx.step(said, name="tell")
        spawned = ctx.spawn("child")
        return [outside, inside, spawned.id, spawned.result()]

    engine = engines(functions(parent, child))
    run = begin(engine, "parent", traceparent=HEADER)
    outside, inside, child_id, (of_child, in_child) = output(engines.path, run)
    trace, below = trace_of(engines.path, run), trace_of(engines.path, child_id)

    assert as_tree(trace) == ["parent completed", "  tell completed", "  child completed"]
    assert [one.kind for one in trace.spans] == ["workflow", "step", "spawn"]
    assert [outside, inside] == [passed_on(trace, one) for one in trace.spans[:2]]
    assert (below.context.trace_id, below.spans[0].parent_id) == (TRACE_ID, trace.spans[2].span_id)
    assert [of_child, in_child] == [passed_on(below, one) for one in below.spans[:2]]
    assert "value" not in {kind for kind, *_ in recorded(engines.path, child_id)}, "asking for it records nothing"
    job_id = trace_of(engines.path, run).spans[0].attributes["workflow_id"]
    assert job_id == run


def test_a_step_may_ask_while_the_writer_waits_for_its_transaction(engines: Engines) -> None:
    def work(ctx: WorkflowContext) -> Any:
        def step() -> Any:
            with ctx.transaction() as db:
                db.execute("CREATE TABLE mine (x)")
                return ctx.traceparent

        return ctx.step(step)

    engine = engines(functions(work))
    run = begin(engine, "work", traceparent=HEADER)

    assert output(engines.path, run).startswith(f"00-{TRACE_ID}-")


# ----------------------------------------------------------------------------------------------- workflows of workflows


def keep(engine: Engine, name: str, *steps: dict[str, Any]) -> None:
    body = msgspec.json.encode({"steps": steps})
    verb(engine, engine.definitions.put(name, definition_of(body)))


def test_a_workflow_that_is_a_step_of_another_is_in_its_trace_below_that_step(engines: Engines) -> None:
    def work(ctx: WorkflowContext) -> Any:
        return ctx.traceparent

    specs = functions(work)
    specs.add(the_task(said).spec)
    engine = engines(specs)
    keep(engine, "part", {"name": "tell", "task": "said"})
    flow = start(
        engine,
        [
            {"name": "one", "workflow": "part"},
            {"name": "each", "workflow": "part", "for_each": [1]},
            {"name": "function", "workflow": "work", "input": {}},
        ],
        traceparent=HEADER,
    )
    assert ended(engines.path, flow)[0] == "completed"
    trace = trace_of(engines.path, flow)
    parts = {one.attributes["workflow_id"]: one for one in trace.spans[1:] if "workflow_id" in one.attributes}

    assert as_tree(trace)[1:] == [
        "  one completed", "  each completed", "    each[0] completed", "  function completed",
    ]  # fmt: skip
    assert len(parts) == 3
    for part_id, span in parts.items():
        below = trace_of(engines.path, part_id)
        assert (below.context.trace_id, below.spans[0].parent_id) == (TRACE_ID, span.span_id)
        caller = below.spans[0 if span.name == "function" else 2]
        assert passed_on(below, caller) in heard_by(engines.path, part_id).values()


def test_what_stands_for_others_begins_with_them_and_runs_as_long(engines: Engines) -> None:
    clock, gate = FakeClock(), engines.gate()

    def held(n: int) -> None:
        gate.pass_through()

    engine = engines(held, clock=clock)
    flow = start(engine, [{"name": "each", "task": "held", "for_each": [1], "payload": {"n": "${item}"}}])
    gate.wait_for_arrival()
    assert as_tree(trace_of(engines.path, flow))[1:3] == ["  each running", "    each[0] running"]

    clock.advance(300)
    gate.open()
    ended(engines.path, flow)
    _, each, item, _ = trace_of(engines.path, flow).spans

    assert (each.started_ms, each.ended_ms) == (item.started_ms, item.ended_ms)
    assert each.ended_ms == each.started_ms + 300


def test_what_takes_no_time_is_in_the_order_of_the_steps_each_with_its_attempt(engines: Engines) -> None:
    """A clock that stands still: all of it begins in the same millisecond."""
    engine = engines(said, clock=FakeClock())
    flow = start(engine, [{"name": name, "task": "said"} for name in ("one", "two", "three")])
    ended(engines.path, flow)

    tree = as_tree(trace_of(engines.path, flow))

    assert tree[1:] == [
        line for name in ("one", "two", "three") for line in (f"  {name} completed", "    attempt 1 completed")
    ]
