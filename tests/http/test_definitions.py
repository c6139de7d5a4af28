"""Kept definitions of workflows over HTTP, from the client and from the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner, Result

from miniflow.answers import Answer, Invalid, NotFound, Refused
from miniflow.async_client import AsyncClient
from miniflow.cli import cli
from miniflow.client import Client
from miniflow.commands import exits
from miniflow.workflow_answers import Workflow, WorkflowDefinition
from tests.api import TASKS, assert_problem
from tests.invariants import check_invariants
from tests.servers import Server, replace
from tests.waiting import wait_until

Json = dict[str, Any]
SUM = [
    {"name": "first", "task": "add", "payload": {"a": "${input.n}", "b": 1}},
    {"name": "second", "task": "add", "payload": {"a": "${steps.first}", "b": "${input.more}"}},
]
INPUTS = {"n": {}, "more": {"default": 10}}
NIGHTLY = """
output = { sum = "${steps.first}" }
[[steps]]
name = "first"
task = "add"
payload = { a = 1, b = 1 }
"""
SCHEDULES = """
[schedules.in_file]
workflow = "nightly"
input = { day = "monday" }
cron = "0 2 * * *"
"""
PATH = "/api/v1/workflow-definitions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    files, folder = {"sample.py": TASKS, "nightly.toml": NIGHTLY}, tmp_path_factory.mktemp("server")
    (folder / "miniflow.toml").write_text(SCHEDULES, "utf-8")
    with Server(folder, files, stop_grace=1.0, reload=True) as running:
        yield running
        assert running.terminate() == 0, running.output()
        check_invariants(running.db, stopped=True)


def put(client: httpx.Client, name: str, steps: list[Json] = SUM, status: int = 201, **fields: Any) -> Json:
    answer = client.put(f"{PATH}/{name}", json={"steps": steps, **fields})
    assert answer.status_code == status, answer.text
    found: Json = answer.json()
    return found


def end_of(client: httpx.Client, workflow: Json) -> Json:
    found: Json = client.get(f"/api/v1/workflows/{workflow['id']}", params={"wait": 10}).json()
    assert found["status"] != "running", found
    return found


def run(client: httpx.Client, definition: str, **fields: Any) -> Json:
    answer = client.post("/api/v1/workflows", json={"definition": definition, **fields})
    assert answer.status_code == 201, answer.text
    return end_of(client, answer.json())


def miniflow(server: Server, *arguments: str, group: str = "workflow", code: int = exits.DONE) -> Result:
    settings = {"MINIFLOW_URL": server.url, "MINIFLOW_TOKEN": "", "NO_COLOR": "1"}
    result = CliRunner().invoke(cli, [group, *arguments], env=settings, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


# --------------------------------------------------------------------------------------------------------------- over HTTP


def test_a_definition_is_put_and_started_by_name_with_an_output(client: httpx.Client) -> None:
    kept = put(client, "sum", inputs=INPUTS, output={"is": "${steps.second}", "of": "${input.n}"})
    assert (kept["version"], kept["total_steps"], kept["source"]) == (1, 2, "api")
    assert put(client, "sum", status=200, inputs=INPUTS, output=kept["output"]) == kept
    workflow = run(client, "sum", input={"n": 4})
    assert (workflow["name"], workflow["definition"], workflow["version"]) == ("sum", "sum", 1)
    assert (workflow["input"], workflow["output"]) == ({"n": 4, "more": 10}, {"is": 15, "of": 4})

    assert put(client, "sum", SUM[:1], inputs={"n": {}})["version"] == 2
    assert run(client, "sum", input={"n": 4}, name="own")["total_steps"] == 1
    old = run(client, "sum", version=1, input={"n": 4})
    assert (old["version"], old["total_steps"]) == (1, 2)
    again = client.post(f"/api/v1/workflows/{old['id']}/rerun", json={"from": "second"}).json()
    assert (again["definition"], again["version"]) == ("sum", 1)
    assert end_of(client, again)["output"] == old["output"]
    assert_problem(client.post(f"/api/v1/workflows/{old['id']}/rerun", json={"input": {"m": 1}}), 422, field="input.m")


def test_versions_are_listed_the_newest_first_and_each_can_be_looked_at(client: httpx.Client) -> None:
    first = put(client, "two", SUM[:1])
    put(client, "two", [{"task": "add", "payload": {"a": 1}}])
    found = client.get(f"{PATH}/two/versions").json()["items"]
    assert [one["version"] for one in found] == [2, 1]
    assert "steps" not in found[0]
    assert client.get(f"{PATH}/two", params={"version": 1}).json() == first
    newest = client.get(f"{PATH}/two").json()
    assert [one for one in client.get(PATH).json()["items"] if one["name"] == "two"] == [found[0]]
    assert newest["steps"] == [{"task": "add", "payload": {"a": 1}}]


def test_what_cannot_be_is_refused_and_names_its_fault(client: httpx.Client) -> None:
    put(client, "there", [{"task": "add", "payload": {"a": 1}}])
    assert_problem(client.get(f"{PATH}/nobody"), 404)
    assert_problem(client.get(f"{PATH}/there", params={"version": 9}), 404, says="there of version 9")
    assert_problem(client.get(f"{PATH}/nobody/versions"), 404)
    assert_problem(client.delete(f"{PATH}/nobody"), 404)
    assert_problem(client.put(f"{PATH}/new", json={"steps": [{"task": "nobody"}]}), 422, field="steps[0].task")
    assert_problem(client.put(f"{PATH}/new", json={"steps": [{"task": "add", "payload": {"a": "${input.m}"}}], "inputs": {}}),
                   422, field="steps[0].payload")  # fmt: skip
    started = client.post("/api/v1/workflows", json={"definition": "nobody"})
    assert_problem(started, 422, field="definition", says="there are")
    started = client.post("/api/v1/workflows", json={"definition": "there", "version": 9})
    assert_problem(started, 422, field="version", says="the newest is 1")
    assert_problem(client.put(f"{PATH}/nightly", json={"steps": SUM}), 409, "definition_refused", says="nightly.toml")
    assert_problem(client.delete(f"{PATH}/nightly"), 409, "definition_refused")


def test_an_output_that_refers_to_what_is_not_there_is_said(client: httpx.Client) -> None:
    put(client, "hollow", [{"name": "a", "task": "add", "payload": {"a": 1}}], output="${steps.a.nothing}")
    found = run(client, "hollow")
    assert found["status"] == "completed"
    assert "output" not in found
    assert "steps.a has no 'nothing', it is 3" in found["error"]


def test_a_file_beside_the_tasks_is_started_by_its_name_and_a_change_is_taken_up(
    client: httpx.Client, server: Server
) -> None:
    kept = client.get(f"{PATH}/nightly").json()
    assert (kept["source"], Path(kept["origin"]).name) == ("file", "nightly.toml")
    assert run(client, "nightly")["output"] == {"sum": 2}
    replace(server.tasks / "nightly.toml", NIGHTLY.replace("b = 1", "b = 2"))
    wait_until(
        lambda: client.get(f"{PATH}/nightly").json()["version"], 10, "the file to be read", until=lambda n: n == 2
    )
    assert run(client, "nightly")["output"] == {"sum": 3}


# ----------------------------------------------------------------------------------------------------- workflows as steps


def start(client: httpx.Client, *steps: Json, **fields: Any) -> Json:
    answer = client.post("/api/v1/workflows", json={"name": "outer", "steps": steps, **fields})
    assert answer.status_code == 201, answer.text
    found: Json = answer.json()
    return found


def test_a_step_that_is_a_workflow_says_which_and_that_says_the_step(client: httpx.Client, server: Server) -> None:
    put(client, "inner", inputs=INPUTS, output="${steps.second}")
    steps = [
        {"name": "nested", "workflow": "inner", "input": {"n": "${input}"}},
        {"name": "last", "task": "add", "payload": {"a": "${steps.nested}", "b": 0}},
    ]
    outer = end_of(client, start(client, *steps, input=1))
    nested, last = outer["steps"]
    assert (nested["status"], nested["workflow"], nested["output"], nested["input"]) == (
        "completed",
        "inner",
        12,
        {"n": 1},
    )
    assert last["output"] == 12
    inner = client.get(f"/api/v1/workflows/{nested['workflow_id']}").json()
    assert (inner["parent_id"], inner["parent_step"], inner["definition"]) == (outer["id"], "nested", "inner")
    assert (inner["input"], inner["output"]) == ({"n": 1, "more": 10}, 12)
    listed = client.get("/api/v1/workflows", params={"name": "inner"}).json()["items"]
    assert listed[0]["parent_id"] == outer["id"]
    again = client.post(f"/api/v1/workflows/{outer['id']}/rerun", json={"from": "last"}).json()
    reused = end_of(client, again)["steps"][0]
    assert (reused["status"], reused["workflow"], reused["output"]) == ("reused", "inner", 12)
    with Client(server.url) as flows:
        step = flows.workflows.get(outer["id"]).steps[0]
        assert (step.workflow, step.workflow_id, step.input) == ("inner", inner["id"], {"n": 1})
        known = flows.workflows.get(inner["id"])
        assert (known.parent_id, known.parent_step) == (outer["id"], "nested")
    assert f"workflow inner  {inner['id']}" in miniflow(server, "show", outer["id"]).output
    assert f"nested of workflow {outer['id']}" in miniflow(server, "show", inner["id"]).output


def test_one_that_runs_is_running_and_one_that_fails_has_failed_with_its_cause(
    client: httpx.Client, tmp_path: Path
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    hold = {"name": "hold", "task": "hold", "payload": {"gate": str(gate), "started": str(begun)}}
    put(client, "failing", [hold, {"name": "bad", "task": "bad"}])
    outer = start(client, {"name": "nested", "workflow": "failing"})
    wait_until(begun.exists, 10, "the first step to begin")
    (step,) = client.get(f"/api/v1/workflows/{outer['id']}").json()["steps"]
    assert step["status"] == "running"
    gate.touch()
    outer = end_of(client, outer)
    (step,) = outer["steps"]
    assert step["status"] == "failed"
    assert step["error"] == (f"workflow failing {step['workflow_id']} failed: step bad is dead_letter: ValueError: no")
    assert outer["error"] == f"step nested failed: {step['error']}"
    retry = client.post(f"/api/v1/workflows/{step['workflow_id']}/retry")
    assert_problem(retry, 409, says="retry that")
    refused = client.post("/api/v1/workflows", json={"name": "x", "steps": [{"name": "a", "workflow": "nobody"}]})
    assert_problem(refused, 422, field="steps[0].workflow")


# --------------------------------------------------------------------------------------------------------------- schedules


def test_a_schedule_starts_a_workflow_and_says_which(client: httpx.Client) -> None:
    put(client, "clocked", SUM[:1], inputs={"n": {}})
    made = client.post(
        "/api/v1/schedules", json={"name": "by clock", "workflow": "clocked", "input": {"n": 1}, "every": 3600}
    )
    assert made.status_code == 201, made.text
    shown = made.json()
    assert (shown["task"], shown["workflow"], shown["input"]) == (None, "clocked", {"n": 1})
    ran = client.post("/api/v1/schedules/by clock/run")
    assert ran.status_code == 201, ran.text
    workflow = end_of(client, ran.json())
    assert ran.headers["location"] == f"/api/v1/workflows/{workflow['id']}"
    assert (workflow["status"], workflow["schedule"], workflow["definition"]) == ("completed", "by clock", "clocked")
    (fire,) = client.get("/api/v1/schedules/by clock/history").json()["items"]
    assert (fire["workflow_id"], fire["status"], fire["scheduled_for"]) == (
        workflow["id"], "completed", workflow["scheduled_for"],
    )  # fmt: skip
    assert "job_id" not in fire
    again = client.post(f"/api/v1/workflows/{workflow['id']}/rerun").json()
    assert (again["schedule"], again["scheduled_for"]) == ("by clock", workflow["scheduled_for"])
    last = wait_until(
        lambda: client.get("/api/v1/schedules/by clock").json(), 10, "the end", until=lambda found: not found["running"]
    )
    assert (last["last_run"]["workflow_id"], last["last_run"]["status"]) == (workflow["id"], "completed")
    found = client.get("/api/v1/schedules", params={"workflow": "clocked"}).json()["items"]
    assert [one["name"] for one in found] == ["by clock"]
    end_of(client, again)


def test_a_schedule_of_what_cannot_be_is_refused(client: httpx.Client) -> None:
    for given, field in (
        ({"workflow": "nobody"}, "workflow"),
        ({}, "task"),
        ({"workflow": "nightly", "task": "add"}, "workflow"),
        ({"workflow": "nightly", "queue": "x"}, "queue"),
    ):
        answer = client.post("/api/v1/schedules", json={"name": "x", "every": 60, **given})
        assert_problem(answer, 422, field=field)


def test_a_schedule_in_the_settings_file_starts_a_workflow_beside_the_tasks(client: httpx.Client) -> None:
    found = client.get("/api/v1/schedules/in_file").json()
    assert (found["workflow"], found["input"], found["status"]) == ("nightly", {"day": "monday"}, "active")


def test_the_client_and_the_command_line_schedule_workflows(server: Server) -> None:
    with Client(server.url) as flows:
        flows.workflows.define("clocked-too", SUM[:1], inputs={"n": {}})
        made = flows.schedules.create("sdk", workflow="clocked-too", input={"n": 1}, every=3600)
        assert (made.workflow, made.input, made.task) == ("clocked-too", {"n": 1}, None)
        run = flows.schedules.run(made)
        assert isinstance(run, Workflow)
        assert flows.workflows.wait(run, 10).schedule == "sdk"
        assert [fire.workflow_id for fire in flows.schedules.history("sdk")] == [run.id]
        assert [one.name for one in flows.schedules.list(workflow="clocked-too")] == ["sdk"]
        assert flows.schedules.change("sdk", input={"n": 2}).input == {"n": 2}

    said = miniflow(
        server, "create", "cli", "--workflow", "clocked-too", "--input", '{"n": 3}', "--every", "1h", group="schedule"
    )
    assert "clocked-too" in said.output
    assert "workflow clocked-too" in miniflow(server, "list", "--workflow", "clocked-too", group="schedule").output
    workflow = miniflow(server, "run", "cli", "--quiet", group="schedule").output.strip()
    assert "cli, for" in miniflow(server, "show", workflow).output
    assert workflow in miniflow(server, "history", "cli", group="schedule").output
    for wrong, says in ((("--every", "1h"), "say what to run"), (("--workflow", "x", "--input", "{"), "not JSON")):
        assert says in miniflow(server, "create", "z", *wrong, group="schedule", code=exits.UNUSABLE).output


# --------------------------------------------------------------------------------------------------------- from the client


def test_the_client_keeps_runs_and_deletes_definitions(server: Server) -> None:
    with Client(server.url) as flows:
        first = flows.workflows.define("by-client", SUM, inputs=INPUTS, output="${steps.second}", timeout=60)
        assert (first.version, first.timeout, len(first.steps)) == (1, 60, 2)
        flows.workflows.define("by-client", SUM, inputs=INPUTS)
        assert flows.workflows.definition("by-client", 1).output == "${steps.second}"
        assert [one.version for one in flows.workflows.definitions("by-client")] == [2, 1]
        assert {"by-client", "nightly"} <= {one.name for one in flows.workflows.definitions()}
        done = flows.workflows.wait(flows.workflows.run("by-client", version=1, input={"n": 1}), 10)
        assert (done.output, done.definition, done.version) == (12, "by-client", 1)
        key = {"idempotency_key": "once", "input": {"n": 1}}
        assert flows.workflows.run("by-client", **key).id == flows.workflows.run("by-client", **key).id
        with pytest.raises(Invalid) as refused:
            flows.workflows.run("by-client")
        assert refused.value.field == "input.n"
        with pytest.raises(Refused, match="it stands in"):
            flows.workflows.undefine("nightly")
        flows.workflows.undefine("by-client")
        with pytest.raises(NotFound):
            flows.workflows.definition("by-client")


def test_the_client_for_asyncio_does_the_same(server: Server) -> None:
    async def flow() -> None:
        async with AsyncClient(server.url) as flows:
            await flows.workflows.define("asynced", SUM[:1])
            done = await flows.workflows.wait(await flows.workflows.run("asynced", input={"n": 1}), 10)
            assert done.status == "completed"
            assert (await flows.workflows.definition("asynced")).version == 1
            assert [one.version for one in await flows.workflows.definitions("asynced")] == [1]
            await flows.workflows.undefine("asynced")

    asyncio.run(flow())


def test_the_client_knows_each_field_of_the_server(client: httpx.Client) -> None:
    fields: Json = {"inputs": INPUTS, "output": 1, "timeout": 60, "description": "d", "on_failure": {"task": "whole"}}
    kept = put(client, "known", **fields)
    for given, kind in ((kept, WorkflowDefinition), (run(client, "known", input={"n": 1}), Workflow)):
        known: type[Answer] = kind
        assert given.keys() <= {field.encode_name for field in msgspec.structs.fields(known)}


# ---------------------------------------------------------------------------------------------------- from the command line


def test_the_command_line_keeps_starts_lists_and_deletes(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "typed.toml"
    file.write_text('[inputs.n]\n[[steps]]\nname = "first"\ntask = "add"\npayload = { a = "${input.n}" }\n', "utf-8")
    assert miniflow(server, "define", str(file)).output.split()[:3] == ["typed", "version", "1"]
    done = miniflow(server, "start", "typed", "--input", '{"n": 1}', "--wait", "--json")
    assert json.loads(done.stdout)["steps"][0]["output"] == 3
    assert "typed, version 1" in miniflow(server, "show", "last").output
    file.write_text('{"name": "typed", "steps": [{"task": "add", "payload": {"a": 1}}]}', "utf-8")
    file = file.rename(tmp_path / "typed.json")
    assert "version 2" in miniflow(server, "define", str(file)).output
    assert "completed" in miniflow(server, "start", "typed", "--version", "1", "--input", '{"n": 1}', "--wait").output
    rows = [line.split()[:3] for line in miniflow(server, "definitions", "typed").output.splitlines()]
    assert rows[1:] == [["typed", "2", "1"], ["typed", "1", "1"]]
    assert "nightly.toml" in miniflow(server, "definitions").output
    shown = json.loads(miniflow(server, "definitions", "typed", "--version", "1").output)
    assert shown["inputs"] == {"n": {}}
    assert "typed  deleted" in miniflow(server, "undefine", "typed").output
    assert "typed" in miniflow(server, "definitions", "typed", code=exits.NOT_FOUND).output
    assert "it stands in" in miniflow(server, "undefine", "nightly", code=exits.REFUSED).output
    assert "no definition 'typed'" in miniflow(server, "start", "typed", code=exits.UNUSABLE).output
    assert "is a file" in miniflow(server, "start", str(file), "--version", "1", code=exits.UNUSABLE).output


def test_the_command_line_takes_yaml(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "spoken.yaml"
    file.write_text("name: spoken\nsteps:\n  - {task: add, payload: {a: 1}}\n", "utf-8")
    done = miniflow(server, "start", str(file), "--wait", "--json")
    assert json.loads(done.stdout)["steps"][0]["output"] == 3
    assert miniflow(server, "define", str(file)).output.split()[:3] == ["spoken", "version", "1"]
    file.write_text("steps: [{task: add}]\nday: 2026-01-31\n", "utf-8")
    for verb in ("start", "define"):
        told = miniflow(server, verb, str(file), code=exits.UNUSABLE).output
        assert "spoken.yaml: not YAML that JSON can say: line 2: a date, which JSON does not have" in told
    file.write_text("- a\n", "utf-8")
    assert "not a mapping" in miniflow(server, "start", str(file), code=exits.UNUSABLE).output


@pytest.mark.parametrize(("text", "says"), [("a = [", "not TOML"), ("a = 1", "steps are needed")])
def test_a_file_that_is_no_definition_is_refused_in_a_line(
    server: Server, tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "flow.toml"
    file.write_text(text, "utf-8")
    assert says in miniflow(server, "define", str(file), code=exits.UNUSABLE).output
