"""Workflows over HTTP, from the client and from the command line."""

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
from miniflow.workflow_answers import BadItem, Compensation, Workflow, WorkflowNotEnded, WorkflowStep
from tests.api import TASKS, assert_problem, get
from tests.invariants import check_invariants
from tests.servers import Server
from tests.waiting import wait_until

Json = dict[str, Any]
SUM = [
    {"name": "first", "task": "add", "payload": {"a": "${input.n}", "b": 1}},
    {"name": "second", "task": "add", "payload": {"a": "${steps.first}", "b": 10}},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """That of the others, but rows may be deleted."""
    with Server(tmp_path_factory.mktemp("server"), {"sample.py": TASKS}, stop_grace=1.0) as running:
        yield running
        assert running.terminate() == 0, running.output()
        check_invariants(running.db, stopped=True, replayed=True, deleted=True)


def start(client: httpx.Client, steps: list[Json], **fields: Any) -> Json:
    answer = client.post("/api/v1/workflows", json={"name": "flow", "steps": steps, **fields})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/api/v1/workflows/{answer.json()['id']}"
    found: Json = answer.json()
    return found


def end_of(client: httpx.Client, workflow: Json) -> Json:
    found: Json = client.get(f"/api/v1/workflows/{workflow['id']}", params={"wait": 10}).json()
    assert found["status"] != "running", found
    return found


def act(client: httpx.Client, workflow: Json, verb: str, status: int = 200, **body: Any) -> Json:
    answer = client.post(f"/api/v1/workflows/{workflow['id']}/{verb}", json=body or None)
    assert answer.status_code == status, answer.text
    found: Json = answer.json()
    return found


def held(client: httpx.Client, tmp_path: Path) -> tuple[Json, Path]:
    """One whose first step runs until the file is made."""
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    workflow = start(
        client,
        [
            {"name": "first", "task": "hold", "payload": {"gate": str(gate), "started": str(begun)}},
            {"name": "second", "task": "whole", "payload": {"was": "${steps.first}"}},
        ],
    )
    wait_until(begun.exists, 10, "the first step to begin")
    return workflow, gate


def miniflow(server: Server, *arguments: str, code: int = exits.DONE) -> Result:
    settings = {"MINIFLOW_URL": server.url, "MINIFLOW_TOKEN": "", "NO_COLOR": "1"}
    result = CliRunner().invoke(cli, ["workflow", *arguments], env=settings, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


# --------------------------------------------------------------------------------------------------------------- over HTTP


def test_a_workflow_says_of_each_step_what_it_took_and_returned(client: httpx.Client) -> None:
    workflow = start(client, SUM, input={"n": 4}, description="a sum", meta={"for": "ada"})
    assert (workflow["status"], workflow["total_steps"], workflow["input"]) == ("running", 2, {"n": 4})
    found = end_of(client, workflow)
    assert (found["status"], found["current_step"], found["description"]) == ("completed", 2, "a sum")
    assert found["meta"] == {"for": "ada"}
    first, second = found["steps"]
    assert (first["name"], first["index"], first["status"], first["attempt"]) == ("first", 0, "completed", 1)
    assert (second["payload"], second["output"]) == ({"a": 5, "b": 10}, 15)
    assert first["completed_at"] <= second["started_at"]

    job = get(client, second["job_id"])
    assert (job["workflow_id"], job["step"], job["step_index"], job["result"]) == (workflow["id"], "second", 1, 15)


def test_what_is_wrong_is_refused_by_name_and_nothing_is_started(client: httpx.Client) -> None:
    before = client.get("/api/v1/workflows").json()["total"]
    for steps, field, says in [
        ([{"name": "a", "task": "add", "payload": {"a": "${steps.b}"}}], "steps[0]", "there is none"),
        ([{"name": "a", "task": "add", "needs": ["a"]}], "steps[0].needs", "circle"),
        ([{"name": "a", "task": "nobody"}], "steps[0].task", "nobody"),
        ([{"name": "a", "task": "add", "payload": {}}], "steps[0].payload.a", "missing"),
        ([{"name": "a b", "task": "add"}], "steps[0].name", "expected"),
        ([], "steps", "expected"),
        ([{"name": "a", "task": "add", "need": []}], "steps[0].need", "need"),
    ]:
        answer = client.post("/api/v1/workflows", json={"name": "flow", "steps": steps})
        assert_problem(answer, 422, field=field, says=says)
    assert client.get("/api/v1/workflows").json()["total"] == before
    assert_problem(client.get("/api/v1/workflows/nobody"), 404, says="workflow not found: nobody")
    assert_problem(client.get("/api/v1/workflows?status=lost"), 422, field="status")
    assert_problem(client.get("/api/v1/workflows?cursor=x"), 422, field="cursor")


def test_a_key_makes_one_workflow_however_often_it_is_sent(client: httpx.Client) -> None:
    body = {"name": "flow", "steps": SUM, "input": {"n": 1}}
    first = client.post("/api/v1/workflows", json=body, headers={"Idempotency-Key": "once"})
    again = client.post("/api/v1/workflows", json=body, headers={"Idempotency-Key": "once"})
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    other = client.post("/api/v1/workflows", json={**body, "input": {"n": 2}}, headers={"Idempotency-Key": "once"})
    assert_problem(other, 409, says="was used for workflow")


def test_lists_are_narrowed_and_go_on_by_cursor(client: httpx.Client) -> None:
    ids = [start(client, SUM, name="listed", input={"n": n})["id"] for n in range(3)]
    page = client.get("/api/v1/workflows?name=listed&limit=2").json()
    assert [one["id"] for one in page["items"]] == [ids[2], ids[1]]
    assert "steps" not in page["items"][0]
    rest = client.get("/api/v1/workflows", params={"name": "listed", "limit": 2, "cursor": page["next_cursor"]}).json()
    assert [one["id"] for one in rest["items"]] == [ids[0]]
    assert "next_cursor" not in rest
    for one in ids:
        end_of(client, {"id": one})
    done = client.get("/api/v1/workflows?name=listed&status=completed").json()
    assert {one["id"] for one in done["items"]} == set(ids)
    every = client.get("/api/v1/workflows?status=completed&limit=1").json()
    assert every["total"] >= 3


def test_a_stream_tells_each_change_and_ends_with_the_workflow(client: httpx.Client, tmp_path: Path) -> None:
    workflow, gate = held(client, tmp_path)
    seen: list[Json] = []
    with client.stream("GET", f"/api/v1/workflows/{workflow['id']}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                seen.append(json.loads(line.removeprefix("data:")))
                gate.touch()
    assert seen[-1] == {"status": "completed"}
    assert [one["current_step"] for one in seen[:-1]] == sorted(one["current_step"] for one in seen[:-1])
    assert (seen[0]["steps"][0]["status"], seen[-2]["steps"][1]["output"]) == ("running", {"was": "let go"})


def test_pause_resume_and_cancel(client: httpx.Client, tmp_path: Path) -> None:
    workflow, gate = held(client, tmp_path)
    assert act(client, workflow, "pause")["paused"] is True
    gate.touch()
    wait_until(
        lambda: client.get(f"/api/v1/workflows/{workflow['id']}").json(),
        10,
        "the first step to end",
        until=lambda found: found["current_step"] == 1,
    )
    act(client, workflow, "resume")
    assert end_of(client, workflow)["status"] == "completed"

    (tmp_path / "other").mkdir()
    other, _ = held(client, tmp_path / "other")
    asked = act(client, other, "cancel", 202)
    assert (asked["status"], asked["steps"][1]["status"]) == ("running", "cancelled")
    assert end_of(client, other)["status"] == "cancelled"
    refused = client.post(f"/api/v1/workflows/{workflow['id']}/cancel")
    assert_problem(refused, 409, "transition_refused", says="cannot cancel, it is completed")


def test_retry_goes_on_and_a_rerun_takes_over_what_was_done(client: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    workflow = start(
        client,
        [
            {"name": "first", "task": "add", "payload": {"a": "${input.n}"}},
            {"name": "second", "task": "bad_until", "payload": {"gate": str(gate)}},
            {"name": "third", "task": "add", "payload": {"a": "${steps.first}", "b": "${input.n}"}},
        ],
        input={"n": 1},
    )
    failed = end_of(client, workflow)
    assert (failed["status"], failed["current_step"]) == ("failed", 1)
    assert failed["error"] == "step second is dead_letter: ValueError: not yet"
    not_done = client.post(f"/api/v1/workflows/{workflow['id']}/rerun", json={"from": "third"})
    assert_problem(not_done, 422, field="from", says="the step 'second'")
    gate.touch()
    act(client, workflow, "retry")
    assert end_of(client, workflow)["status"] == "completed"

    again = act(client, workflow, "rerun", 201, **{"from": "third", "input": {"n": 50}})
    assert again["rerun_of"] == workflow["id"]
    found = end_of(client, again)
    assert [(step["status"], step["output"]) for step in found["steps"]] == [
        ("reused", 3),
        ("reused", "good now"),
        ("completed", 53),
    ]
    whole = end_of(client, act(client, workflow, "rerun", 201))
    assert [step["output"] for step in whole["steps"]] == [3, "good now", 4]
    unknown = client.post(f"/api/v1/workflows/{workflow['id']}/rerun", json={"from": "nobody"})
    assert_problem(unknown, 422, field="from", says="there is no step 'nobody'; there are first, second, third")


def test_a_step_over_a_list_says_how_far_it_is_and_which_item_was_bad(server: Server, client: httpx.Client) -> None:
    steps = [
        {
            "name": "each",
            "task": "bad_until",
            "for_each": "${input}",
            "payload": {"gate": "${item}"},
            "max_parallel": 1,
        },
        {"name": "then", "task": "whole", "payload": {"all": "${steps.each}"}},
    ]
    found = end_of(client, start(client, steps, input=["/", "/no such file", "/"]))
    each, then = found["steps"]
    assert (each["status"], then["status"], each["task"]) == ("failed", "cancelled", "bad_until")
    bad = each["items"].pop("bad")
    assert each["items"] == {"total": 3, "done": 2, "failed": 1}
    assert [(one["index"], one["status"], one["error"]) for one in bad] == [(1, "dead_letter", "ValueError: not yet")]
    assert bad[0].keys() <= {field.encode_name for field in msgspec.structs.fields(BadItem)}
    shown = miniflow(server, "show", found["id"]).output
    assert "each  failed  bad_until  2 of 3, 1 failed" in shown
    job = client.get(f"/api/v1/jobs/{bad[0]['job_id']}").json()
    assert (job["step"], job["workflow_id"]) == ("each[1]", found["id"])
    wrong = client.post("/api/v1/workflows", json={"name": "x", "steps": steps, "input": 5})
    assert_problem(wrong, 422, field="steps[0].for_each", says="leads to no list, but to 5")


def test_what_is_undone_is_shown_and_not_taken_over(server: Server, client: httpx.Client) -> None:
    steps = [
        {
            "name": "first",
            "task": "add",
            "payload": {"a": 1},
            "compensate": {"task": "whole", "payload": {"was": "${output}"}},
        },
        {"name": "second", "task": "add", "payload": {"a": "${steps.first}"}},
        {"name": "third", "task": "bad"},
    ]
    told = {"task": "bad", "payload": {"text": "${workflow.failed_step}"}}
    found = end_of(client, start(client, steps, on_failure=told))
    assert found["error"] == "step third is dead_letter: ValueError: no; on_failure is dead_letter: ValueError: third"
    undone, last = found["compensations"]
    assert (undone["name"], undone["status"], undone["payload"]) == ("first", "completed", {"was": 3})
    assert (last["name"], last["index"], last["error"]) == ("on_failure", 3, "ValueError: third")
    assert undone.keys() | last.keys() <= {field.encode_name for field in msgspec.structs.fields(Compensation)}
    shown = miniflow(server, "show", found["id"]).output
    assert "undo first  completed  whole" in shown
    again = client.post(f"/api/v1/workflows/{found['id']}/rerun", json={"from": "second"})
    assert_problem(again, 422, field="from", says="the step 'first'")
    assert_problem(client.post(f"/api/v1/workflows/{found['id']}/retry"), 409, says="rerun it")
    wrong = client.post("/api/v1/workflows", json={"name": "x", "steps": steps, "on_failure": {"tsk": "bad"}})
    assert_problem(wrong, 422, field="on_failure.tsk")


# -------------------------------------------------------------------------------------------------------- from the client


def test_the_client_starts_waits_and_acts(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    with Client(server.url) as flows:
        workflow = flows.workflows.start("summed", SUM, input={"n": 1})
        ended = flows.workflows.wait(workflow, 10)
        assert [step.output for step in ended.steps] == [2, 12]
        assert flows.workflows.wait(flows.workflows.rerun(workflow, input={"n": 5}), 10).steps[1].output == 16
        assert [one.name for one in flows.workflows.list(name="summed")] == ["summed", "summed"]
        with pytest.raises(Refused):
            flows.workflows.pause(workflow)
        flows.workflows.delete(workflow)
        with pytest.raises(NotFound):
            flows.workflows.get(workflow)
        with pytest.raises(Invalid) as refused:
            flows.workflows.start("x", [{"name": "a", "task": "nobody"}])
        assert refused.value.field == "steps[0].task"

        slow, gate = held(client, tmp_path)
        with pytest.raises(WorkflowNotEnded, match="is running"):
            flows.workflows.wait(slow["id"], 0.05)
        assert flows.workflows.pause(slow["id"]).paused
        assert not flows.workflows.resume(slow["id"]).paused
        gate.touch()
        assert [one.status for one in flows.workflows.events(slow["id"])][-1] == "completed"


def test_the_client_for_asyncio_does_the_same(server: Server) -> None:
    async def flow() -> None:
        async with AsyncClient(server.url) as flows:
            workflow = await flows.workflows.start("asynced", SUM, input={"n": 1})
            assert (await flows.workflows.wait(workflow, 10)).status == "completed"
            assert [one.id async for one in flows.workflows.list(name="asynced")] == [workflow.id]
            assert [one.status async for one in flows.workflows.events(workflow)] == ["completed"]
            with pytest.raises(Refused):
                await flows.workflows.retry(workflow)

    asyncio.run(flow())


def test_the_client_knows_each_field_of_the_server(client: httpx.Client) -> None:
    steps = [{**SUM[0], "when": "${input}", "needs": []}]
    found = end_of(client, start(client, steps, input={"n": 1}, timeout=60, description="d", meta={"a": 1}))
    for given, kind in ((found, Workflow), (found["steps"][0], WorkflowStep)):
        known: type[Answer] = kind
        assert given.keys() - {"type"} <= {field.encode_name for field in msgspec.structs.fields(known)}


# -------------------------------------------------------------------------------------------------- from the command line


def test_the_command_line_starts_shows_and_acts(server: Server, tmp_path: Path) -> None:
    file, gate = tmp_path / "flow.json", tmp_path / "gate"
    steps = [
        {"name": "load", "task": "add", "payload": {"a": "${input.n}"}},
        {"name": "left", "task": "bad_until", "payload": {"gate": str(gate)}, "needs": ["load"]},
        {"name": "right", "task": "add", "payload": {"a": "${steps.load}"}, "needs": ["load"]},
    ]
    file.write_text(json.dumps({"name": "tree", "steps": steps}), "utf-8")
    run = miniflow(server, "start", str(file), "--input", '{"n": 1}', "--wait", code=exits.JOB_FAILED)
    lines = [line.split() for line in run.stdout.splitlines()]
    assert lines[0][:1] + lines[0][2:6] == ["tree", "failed", "2", "of", "3"]
    assert lines[1][1:3] == ["load", "completed"]
    assert lines[2][1:3] == ["left", "dead_letter"]
    assert "step left is dead_letter: ValueError: not yet" in run.stderr

    gate.touch()
    assert "running" in miniflow(server, "retry", "last").output
    assert "3 of 3" in miniflow(server, "show", "last", "-f").output
    again = miniflow(server, "rerun", "last", "--from", "right", "--wait", "--json")
    assert [step["status"] for step in json.loads(again.stdout)["steps"]] == ["reused", "reused", "completed"]
    shown = miniflow(server, "show", "last").output
    assert "rerun of" in shown
    assert "tree" in miniflow(server, "list", "--name", "tree", "--status", "completed").output
    assert "deleted" in miniflow(server, "delete", "last").output
    assert "cannot cancel" in miniflow(server, "cancel", "last", code=exits.REFUSED).output
    assert "nobody" in miniflow(server, "show", "nobody", code=exits.NOT_FOUND).output


@pytest.mark.parametrize(
    ("text", "says"), [("[]", "not a JSON object"), ("{", "not JSON"), ('{"name": "x"}', "name and steps are needed")]
)
def test_a_file_that_is_no_workflow_is_refused_in_a_line(server: Server, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "flow.json"
    file.write_text(text, "utf-8")
    assert says in miniflow(server, "start", str(file), code=exits.UNUSABLE).output
