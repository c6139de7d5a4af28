"""Traces over HTTP, from the client and from the command line."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
from click.testing import CliRunner, Result

from miniflow.answers import Invalid, NotFound
from miniflow.async_client import AsyncClient
from miniflow.cli import cli
from miniflow.client import Client
from miniflow.commands import exits
from tests.api import assert_problem
from tests.invariants import check_invariants
from tests.servers import Server
from tests.traces import CALLER, HEADER, TRACE_ID

Json = dict[str, Any]
TASKS = """
from miniflow import WorkflowContext, current_job, task, workflow


@task
def tell() -> str:
    return current_job().traceparent


@task(max_retries=0)
def bad() -> None:
    raise ValueError("no")


@workflow
def told(ctx: WorkflowContext) -> str:
    return ctx.step(lambda: ctx.traceparent, name="tell")
"""
COMMANDS = f"""
[commands.shell]
argv = [{sys.executable!r}, "-c", "import json, os; print(json.dumps(os.environ['TRACEPARENT']))"]
"""
STEPS = [{"name": "one", "task": "tell"}, {"name": "two", "task": "shell"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "miniflow.toml").write_text(COMMANDS, "utf-8")
    with Server(folder, {"traced.py": TASKS}, stop_grace=1.0) as running:
        yield running
        assert running.terminate() == 0, running.output()
        check_invariants(running.db, stopped=True)


def spans(client: httpx.Client, path: str) -> Json:
    answer = client.get(f"{path}/trace")
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def end_of(client: httpx.Client, path: str) -> Json:
    found: Json = client.get(path, params={"wait": 20}).json()
    assert found["status"] == "completed", found
    return found


def started(answer: httpx.Response) -> str:
    """The path of what a submit or a start has made."""
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


# ------------------------------------------------------------------------------------------------------------ the header


def test_the_header_of_a_submit_is_passed_on_to_the_job(client: httpx.Client) -> None:
    path = started(client.post("/api/v1/jobs", json={"task": "tell"}, headers={"traceparent": HEADER}))
    told = end_of(client, path)["result"]
    trace = spans(client, path)
    job, attempt = trace["spans"]

    assert trace["trace_id"] == TRACE_ID
    assert (job["parent_id"], job["kind"], attempt["parent_id"]) == (CALLER, "job", job["span_id"])
    assert told == f"00-{TRACE_ID}-{attempt['span_id']}-01"
    assert attempt["duration"] >= 0


@pytest.mark.parametrize("header", ["junk", f"00-{'0' * 32}-{CALLER}-01", f"00-{TRACE_ID}-{CALLER}"])
def test_a_header_that_cannot_be_read_is_passed_over(client: httpx.Client, header: str) -> None:
    for path, body in (("jobs", {"task": "tell"}), ("workflows", {"name": "f", "steps": STEPS[:1]})):
        made = started(client.post(f"/api/v1/{path}", json=body, headers={"traceparent": header}))
        trace = spans(client, made)
        assert trace["trace_id"] == made.rpartition("/")[2].replace("-", "")
        assert "parent_id" not in trace["spans"][0]


def test_it_may_stand_in_the_body_too_which_is_refused_where_it_cannot_be_read(client: httpx.Client) -> None:
    for path, body in (
        ("jobs", {"task": "tell"}),
        ("workflows", {"name": "f", "steps": STEPS[:1]}),
        ("workflows", {"workflow": "told"}),
    ):
        made = started(client.post(f"/api/v1/{path}", json={**body, "traceparent": HEADER}))
        assert spans(client, made)["trace_id"] == TRACE_ID
        assert_problem(
            client.post(f"/api/v1/{path}", json={**body, "traceparent": "junk"}), 422, field="traceparent", says="W3C"
        )


def test_a_repeated_submit_is_the_same_whatever_its_trace(client: httpx.Client) -> None:
    for path, body in (
        ("jobs", {"task": "tell"}),
        ("workflows", {"name": "f", "steps": STEPS[:1]}),
        ("workflows", {"workflow": "told"}),
    ):
        keyed = {**body, "idempotency_key": f"traced {body}"}
        first = started(client.post(f"/api/v1/{path}", json=keyed, headers={"traceparent": HEADER}))
        other = HEADER.replace(CALLER, "1" * 16)
        again = client.post(f"/api/v1/{path}", json=keyed, headers={"traceparent": other})
        assert (started(again), again.headers["idempotency-replayed"]) == (first, "true")
        assert spans(client, first)["spans"][0]["parent_id"] == CALLER


def test_all_jobs_of_a_batch_are_in_the_trace_and_so_are_those_of_the_classic_routes(client: httpx.Client) -> None:
    own = HEADER.replace(TRACE_ID, "1" * 32)
    batch = [{"task": "tell"}, {"task": "tell", "traceparent": own}, {"task": "tell", "traceparent": ""}]
    ids = client.post("/api/v1/jobs/batch", json=batch, headers={"traceparent": HEADER}).json()["ids"]
    classic = [
        client.post(path, json=body, headers={"traceparent": HEADER}).json()["job_id"]
        for path, body in (
            ("/submit", {"task": "tell", "payload": {}}),
            ("/submit-job", {"task": "tell", "payload": {}}),
            ("/create-jobs/", {"job": "tell"}),
        )
    ]

    found = [spans(client, f"/api/v1/jobs/{one}")["trace_id"] for one in [*ids, *classic]]

    assert found == [TRACE_ID, "1" * 32, ids[2].replace("-", ""), TRACE_ID, TRACE_ID, TRACE_ID]


# ---------------------------------------------------------------------------------------------------------- the workflow


def test_steps_and_commands_see_the_trace_of_the_caller_and_it_is_the_same_after_a_restart(server: Server) -> None:
    with server.client() as client:
        path = started(
            client.post("/api/v1/workflows", json={"name": "f", "steps": STEPS}, headers={"traceparent": HEADER})
        )
        outputs = [step["output"] for step in end_of(client, path)["steps"]]
        trace = spans(client, path)
    root, one, first, two, second = trace["spans"]

    assert (root["parent_id"], root["kind"], root["status"], root["name"]) == (CALLER, "workflow", "completed", "f")
    assert [span["parent_id"] for span in (one, first, two, second)] == [
        root["span_id"], one["span_id"], root["span_id"], two["span_id"],
    ]  # fmt: skip
    assert outputs == [f"00-{TRACE_ID}-{span['span_id']}-01" for span in (first, second)]
    assert one["attributes"]["task"] == "tell"
    assert second["attributes"]["attempt"] == 1

    server.kill9()
    server.start()
    with server.client() as client:
        assert {**spans(client, path), "at": trace["at"]} == trace


def test_a_rerun_is_in_the_trace_of_who_asked_for_it(client: httpx.Client) -> None:
    for body in ({"name": "f", "steps": STEPS[:1]}, {"workflow": "told"}):
        path = started(client.post("/api/v1/workflows", json=body))
        end_of(client, path)
        again = started(client.post(f"{path}/rerun", headers={"traceparent": HEADER}))
        root = spans(client, again)
        assert (root["trace_id"], root["spans"][0]["parent_id"]) == (TRACE_ID, CALLER)
        assert root["spans"][0]["attributes"]["rerun_of"] == path.rpartition("/")[2]


def test_the_trace_of_a_durable_function_is_that_of_its_job_too(client: httpx.Client) -> None:
    path = started(client.post("/api/v1/workflows", json={"workflow": "told"}, headers={"traceparent": HEADER}))
    run = end_of(client, path)
    whole, of_job = spans(client, path), spans(client, f"/api/v1/jobs/{run['job_id']}")

    assert [span["name"] for span in whole["spans"]] == ["told", "tell"]
    assert run["output"] == f"00-{TRACE_ID}-{whole['spans'][1]['span_id']}-01"
    assert of_job["spans"] == whole["spans"]


# ------------------------------------------------------------------------------------------------------------- its shape


def test_the_export_can_be_posted_to_a_collector(client: httpx.Client) -> None:
    path = started(client.post("/api/v1/jobs", json={"task": "bad"}, headers={"traceparent": HEADER}))
    client.get(path, params={"wait": 20})
    answer = client.get(f"{path}/trace", params={"format": "otlp"})

    assert answer.headers["content-type"] == "application/json"
    job, attempt = answer.json()["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert (job["traceId"], job["parentSpanId"], attempt["parentSpanId"]) == (TRACE_ID, CALLER, job["spanId"])
    assert (attempt["status"]["code"], attempt["status"]["message"]) == (2, "ValueError: no")
    assert int(attempt["endTimeUnixNano"]) >= int(attempt["startTimeUnixNano"])


def test_another_format_and_what_is_not_there_are_refused(client: httpx.Client) -> None:
    path = started(client.post("/api/v1/jobs", json={"task": "tell"}))

    assert_problem(client.get(f"{path}/trace", params={"format": "xml"}), 422, field="format")
    for what in ("jobs", "workflows"):
        assert_problem(client.get(f"/api/v1/{what}/nobody/trace"), 404)
    assert_problem(client.get(f"/api/v1/workflows/{path.rpartition('/')[2]}/trace"), 404)


# ------------------------------------------------------------------------------------------ the client, the command line


def test_both_clients_give_a_trace_and_take_one(server: Server) -> None:
    async def by_the_other(workflow_id: str, job_id: str) -> list[str]:
        async with AsyncClient(server.url) as other:
            found = [(await other.workflows.trace(workflow_id)).trace_id, (await other.trace(job_id)).trace_id]
            assert (await other.otlp(job_id))["resourceSpans"]
            assert (await other.workflows.otlp(workflow_id))["resourceSpans"]
            return found

    with Client(server.url) as client:
        job = client.submit("tell", traceparent=HEADER)
        client.wait(job)
        flow = client.workflows.wait(client.workflows.start("f", STEPS[:1], traceparent=HEADER))
        run = client.workflows.wait(client.workflows.start_function("told", traceparent=HEADER))
        trace = client.trace(job)
        assert [span.name for span in trace.spans] == ["tell", "attempt 1"]
        assert trace.spans[1].started_at <= trace.spans[1].ended_at <= trace.at  # type: ignore[operator]
        for one in (flow, run):
            assert client.workflows.trace(one).trace_id == TRACE_ID
        assert client.otlp(job)["resourceSpans"]
        assert client.workflows.otlp(flow)["resourceSpans"]
        assert asyncio.run(by_the_other(flow.id, job.id)) == [TRACE_ID, TRACE_ID]
        with pytest.raises(NotFound):
            client.trace("nobody")
        with pytest.raises(Invalid):
            client.submit("tell", traceparent="junk")


def run(server: Server, *arguments: str, **env: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--url", server.url], env=env)


def test_the_command_line_shows_a_tree_of_a_workflow_or_a_job(server: Server, tmp_path: Path) -> None:
    flow = tmp_path / "flow.json"
    flow.write_text(json.dumps({"name": "f", "steps": STEPS[:1]}))
    started = run(server, "workflow", "start", str(flow), "--wait", "--json", TRACEPARENT=HEADER)
    workflow_id = json.loads(started.stdout)["id"]

    told = run(server, "trace", workflow_id)
    lines = told.stdout.splitlines()

    assert told.exit_code == 0, told.output
    assert lines[0] == f"trace {TRACE_ID}  3 spans", "that of the command's environment"
    assert [line[2:].rstrip().split("  completed")[0].rstrip() for line in lines[1:]] == ["f", "  one", "    attempt 1"]
    assert all("+0 ms" in line or "+" in line for line in lines[1:])
    document = json.loads(run(server, "trace", workflow_id, "--json").stdout)
    assert [span["kind"] for span in document["spans"]] == ["workflow", "step", "attempt"]
    exported = json.loads(run(server, "trace", document["spans"][1]["attributes"]["job_id"], "--otlp").stdout)
    assert len(exported["resourceSpans"][0]["scopeSpans"][0]["spans"]) == 2
    assert run(server, "trace", "nobody").exit_code == exits.NOT_FOUND


def test_a_command_that_submits_is_in_the_trace_of_its_environment(server: Server) -> None:
    with Client(server.url) as client:
        for given, expected in ((HEADER, True), ("junk", False)):
            job_id = run(server, "submit", "tell", "--quiet", TRACEPARENT=given).stdout.strip()
            assert (client.trace(job_id).trace_id == TRACE_ID) is expected
        with mock.patch.dict("os.environ", {"TRACEPARENT": HEADER}):
            assert client.trace(client.submit("tell")).trace_id != TRACE_ID, "the library asks no environment"
