"""Workflows over HTTP, from the client and from the command line."""

from __future__ import annotations

import asyncio
import json
import os
import time
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
from miniflow.web.workflows import BYTES_S
from miniflow.workflow_answers import BadItem, Compensation, Workflow, WorkflowNotEnded, WorkflowStep
from miniflow.workflow_client import Workflows
from tests.api import TASKS, assert_problem, get
from tests.invariants import check_invariants
from tests.servers import Server
from tests.terminals import Terminal
from tests.waiting import wait_until

Json = dict[str, Any]
DEAF = """
import time
from pathlib import Path

from miniflow import task


@task
def deaf(gate: str, started: str) -> None:
    \"\"\"Waits for the file ``gate``, whatever is asked of it.\"\"\"
    Path(started).touch()
    while not Path(gate).exists():
        try:
            time.sleep(0.01)
        except BaseException:
            pass
"""
SUM = [
    {"name": "first", "task": "add", "payload": {"a": "${input.n}", "b": 1}},
    {"name": "second", "task": "add", "payload": {"a": "${steps.first}", "b": 10}},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """That of the others, but rows may be deleted."""
    with Server(tmp_path_factory.mktemp("server"), {"sample.py": TASKS, "deaf.py": DEAF}, stop_grace=30.0) as running:
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


def held(client: httpx.Client, tmp_path: Path, **fields: Any) -> tuple[Json, Path]:
    """One whose first step runs until the file is made."""
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    workflow = start(
        client,
        [
            {"name": "first", "task": "hold", "payload": {"gate": str(gate), "started": str(begun)}},
            {"name": "second", "task": "whole", "payload": {"was": "${steps.first}"}},
        ],
        **fields,
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


def test_what_is_long_is_left_out_of_a_step_with_its_size_and_the_step_by_its_index_has_it(
    server: Server, client: httpx.Client
) -> None:
    text = "x" * 70_000
    steps = [
        {"name": "long", "task": "whole", "payload": {"text": "${input}"},
         "compensate": {"task": "whole", "payload": "${output}"}},
        {"name": "short", "task": "whole", "payload": {}},
        {"name": "bad", "task": "bad", "max_retries": 0, "when": "${input} == 1"},
    ]  # fmt: skip
    found = end_of(client, start(client, steps, input=text))
    long, short, _ = found["steps"]
    assert (long["payload_bytes"], long["output_bytes"]) == (70_011, 70_011)
    assert not {"payload", "output"} & long.keys()
    assert (short["payload"], short["output"]) == ({}, {})
    assert not {"payload_bytes", "output_bytes"} & short.keys()
    whole = client.get(f"/api/v1/workflows/{found['id']}/steps/0").json()
    assert (whole["payload"], whole["output"]) == ({"text": text}, {"text": text})
    assert not {"payload_bytes", "output_bytes"} & whole.keys()
    assert client.get(f"/api/v1/workflows/{found['id']}/steps/long").json() == whole
    assert_problem(client.get(f"/api/v1/workflows/{found['id']}/steps/3"), 404, says="step not found: 3 of workflow")
    with Client(server.url) as caller:
        assert caller.workflows.get(found["id"]).steps[0].output_bytes == 70_011
        assert caller.workflows.step(found["id"], 0).output == {"text": text}
    job_id = long["job_id"]
    assert f"output of 70,011 bytes: miniflow result {job_id}" in miniflow(server, "show", found["id"]).output
    assert json.loads(miniflow(server, "result", found["id"], "long", "--json").stdout) == {"text": text}

    steps[2]["when"] = "${input} != 1"
    undone = end_of(client, start(client, steps, input=text))["compensations"][0]
    assert (undone["payload_bytes"], undone["output_bytes"]) == (70_011, 70_011)


def test_the_output_of_a_workflow_is_given_whatever_its_size(server: Server, client: httpx.Client) -> None:
    steps = [{"name": "a", "task": "whole", "payload": {"text": "${input}"}}]
    definition = {"steps": steps, "output": "${steps.a.text}"}
    assert client.put("/api/v1/workflow-definitions/long", json=definition).status_code == 201
    started = client.post("/api/v1/workflows", json={"definition": "long", "input": "x" * 70_000}).json()
    assert end_of(client, started)["output"] == "x" * 70_000
    assert miniflow(server, "result", started["id"]).stdout == "x" * 70_000 + "\n"


def test_what_is_wrong_is_refused_by_name_and_nothing_is_started(client: httpx.Client) -> None:
    before = client.get("/api/v1/workflows").json()["total"]
    for steps, field, says in [
        ([{"name": "a", "task": "add", "payload": {"a": "${steps.b}"}}], "steps[0].payload", "there is none"),
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
    assert_problem(
        client.get("/api/v1/workflows?status=failed,lost"), 422, field="status", says="'lost' is none of running,"
    )
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
    assert not {"steps", "input"} & page["items"][0].keys()
    rest = client.get("/api/v1/workflows", params={"name": "listed", "limit": 2, "cursor": page["next_cursor"]}).json()
    assert [one["id"] for one in rest["items"]] == [ids[0]]
    assert "next_cursor" not in rest
    for one in ids:
        end_of(client, {"id": one})
    done = client.get("/api/v1/workflows?name=listed&status=completed").json()
    assert {one["id"] for one in done["items"]} == set(ids)
    every = client.get("/api/v1/workflows?status=completed&limit=1").json()
    assert every["total"] >= 3


@pytest.mark.parametrize("name", [{}, {"name": "several"}])
def test_a_list_of_several_states_is_one_list_newest_first(client: httpx.Client, name: Json, tmp_path: Path) -> None:
    stopped, _ = held(client, tmp_path, name="several")
    act(client, stopped, "cancel", 202)
    failed = start(client, [{"name": "a", "task": "bad", "max_retries": 0}], name="several")
    done = start(client, SUM, name="several", input={"n": 1})
    for one in (stopped, failed, done):
        end_of(client, one)
    pages, cursor = [], None
    for _ in range(2):
        which = {**name, "status": "cancelled, failed", "limit": 1, **({"cursor": cursor} if cursor else {})}
        page = client.get("/api/v1/workflows", params=which).json()
        cursor = page["next_cursor"] if not pages else None
        pages.append(page)
    assert [one["id"] for page in pages for one in page["items"]] == [failed["id"], stopped["id"]]
    if not name:
        assert pages[0]["total"] == sum(
            client.get(f"/api/v1/workflows?status={one}").json()["total"] for one in ("failed", "cancelled")
        )


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


def test_a_stream_of_a_large_workflow_is_no_faster_than_it_may_be_and_still_tells_the_last(
    client: httpx.Client,
) -> None:
    steps = [{"name": f"s{n}", "task": "whole", "payload": {"text": "x" * 10_000}} for n in range(40)]
    workflow = start(client, steps)  # of 0.8 MB in the end: one beyond BYTES_S is told of once a second all the same
    begun, told = time.monotonic(), list[str]()
    with client.stream("GET", f"/api/v1/workflows/{workflow['id']}/events") as answer:
        told = [line for line in answer.iter_lines() if line.startswith("data:")]
    size, took = sum(map(len, told)), time.monotonic() - begun
    assert size <= BYTES_S * took + 2 * max(map(len, told))  # that which it is at once, and that of the end
    assert json.loads(told[-2].removeprefix("data:"))["current_step"] == 40
    assert told[-1] == 'data: {"status":"completed"}'


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

    begun, gate = tmp_path / "deaf begun", tmp_path / "deaf gate"  # it is running still when the answer is made
    deaf_one = {"name": "first", "task": "deaf", "payload": {"gate": str(gate), "started": str(begun)}}
    other = start(client, [deaf_one, {"name": "second", "task": "add", "payload": {"a": 1}}])
    wait_until(begun.exists, 10, "the first step to begin")
    asked = act(client, other, "cancel", 202)
    assert (asked["status"], asked["steps"][1]["status"]) == ("running", "cancelled")
    gate.touch()
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
    by_number = end_of(client, act(client, workflow, "rerun", 201, **{"from": 2}))
    assert [step["status"] for step in by_number["steps"]] == ["reused", "reused", "completed"]
    whole = end_of(client, act(client, workflow, "rerun", 201))
    assert [step["output"] for step in whole["steps"]] == [3, "good now", 4]
    for number in ("3", "0000000000", "1" * 5_000):
        beyond = client.post(f"/api/v1/workflows/{workflow['id']}/rerun", json={"from": number})
        assert_problem(beyond, 422, field="from", says="there is no step")
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


def test_a_step_over_a_list_runs_while_its_items_do_and_is_cancelled_with_them(
    client: httpx.Client, tmp_path: Path
) -> None:
    steps = [{"name": "each", "task": "hold", "for_each": [1, 2], "payload": {"gate": str(tmp_path / "gate")}}]
    workflow = start(client, steps)

    def each() -> Json:
        found: Json = client.get(f"/api/v1/workflows/{workflow['id']}").json()["steps"][0]
        return found

    wait_until(each, 10, "its items to run", until=lambda step: step["status"] == "running")
    act(client, workflow, "cancel", 202)
    found = end_of(client, workflow)
    assert (found["status"], found["steps"][0]["status"]) == ("cancelled", "cancelled")


def test_a_step_that_is_a_workflow_runs_until_that_has_stopped_and_is_cancelled_then(
    client: httpx.Client, tmp_path: Path
) -> None:
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    kept = {"steps": [{"name": "deaf", "task": "deaf", "payload": {"gate": str(gate), "started": str(begun)}}]}
    assert client.put("/api/v1/workflow-definitions/inner", json=kept).status_code == 201
    workflow = start(client, [{"name": "outer", "workflow": "inner"}])
    wait_until(begun.exists, 10, "the inner workflow to run")
    asked = act(client, workflow, "cancel", 202)
    assert asked["steps"][0]["status"] == "running"
    gate.touch()
    assert end_of(client, workflow)["steps"][0]["status"] == "cancelled"


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_the_steps_of_a_run_that_is_a_step_stand_below_it_and_are_drawn_as_they_change(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    deepest = {"steps": [{"name": "held", "task": "hold", "payload": {"gate": str(gate)}}]}
    middle = {
        "steps": [
            {"name": "before", "task": "add", "payload": {"a": 1, "b": 2}},
            {"name": "down", "workflow": "deepest"},
        ]
    }
    for name, kept in (("deepest", deepest), ("middle", middle)):
        assert client.put(f"/api/v1/workflow-definitions/{name}", json=kept).status_code == 201
    whole = start(client, [{"name": "top", "workflow": "middle"}, {"name": "after", "task": "whole"}])
    with Terminal("workflow", "show", "-f", whole["id"], "--url", server.url, cwd=tmp_path) as terminal:
        terminal.wait_for(r"\n {6}. held +running")
        gate.touch()
        assert terminal.end() == 0
        last = terminal.text.splitlines()
    names = ["  ✓ top", "    ✓ before", "    ✓ down", "      ✓ held", "  ✓ after"]
    assert [line.split("  completed")[0] for line in last[-5:]] == names
    shown = miniflow(server, "show", whole["id"]).output.splitlines()
    assert [line.split()[1] for line in shown[1:6]] == ["top", "before", "down", "held", "after"]
    for step in end_of(client, whole)["steps"][:1]:
        assert client.delete(f"/api/v1/workflows/{step['workflow_id']}").status_code == 204
    shown = miniflow(server, "show", whole["id"]).output.splitlines()
    assert [line.split()[1] for line in shown[1:3]] == ["top", "after"]


def test_those_that_are_steps_of_others_can_be_left_out_and_last_is_none_of_them(
    server: Server, client: httpx.Client
) -> None:
    kept = {"steps": [{"name": "only", "task": "add", "payload": {"a": 1, "b": 2}}]}
    assert client.put("/api/v1/workflow-definitions/inside", json=kept).status_code == 201
    whole = end_of(client, start(client, [{"name": "outside", "workflow": "inside"}], name="of two\nlines"))
    inside = whole["steps"][0]["workflow_id"]

    def listed(**which: str) -> list[str]:
        answer = client.get("/api/v1/workflows", params=which)
        assert answer.status_code == 200, answer.text
        return [one["id"] for one in answer.json()["items"]]

    for which in ({}, {"status": "completed"}):
        assert listed(**which)[:2] == [inside, whole["id"]]
        assert listed(**which, nested="false")[0] == whole["id"]
        assert inside not in listed(**which, nested="false")
    for which in ({"name": "inside"}, {"name": "inside", "status": "completed"}):
        assert (listed(**which), listed(**which, nested="false")) == ([inside], [])
    assert miniflow(server, "show", "last").output.startswith(f"of two lines  {whole['id']}  completed")
    assert f"{whole['id']}  of two lines  completed" in miniflow(server, "list").output
    assert inside not in miniflow(server, "list").output
    assert inside in miniflow(server, "list", "--all").output


def test_a_rerun_that_fails_undoes_what_it_did_and_not_what_it_took_over(client: httpx.Client) -> None:
    undo = {"task": "whole", "payload": {"was": "${output}"}}
    steps = [
        {"name": "first", "task": "add", "payload": {"a": 1, "b": 2}, "compensate": undo},
        {"name": "second", "task": "add", "payload": {"a": 3, "b": 4}, "compensate": undo},
        {"name": "third", "task": "bad_until", "payload": {"gate": "${input}"}, "max_retries": 0},
    ]
    workflow = start(client, steps, input="/")
    assert end_of(client, workflow)["status"] == "completed"
    found = end_of(client, act(client, workflow, "rerun", 201, **{"from": "second", "input": "/no such file"}))
    assert [step["status"] for step in found["steps"]] == ["reused", "completed", "dead_letter"]
    assert (found["status"], [undone["name"] for undone in found["compensations"]]) == ("failed", ["second"])


def test_of_a_tree_that_is_longer_than_the_terminal_what_runs_is_in_view_and_at_the_end_all_of_it(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    steps = [{"name": f"s{n}", "task": "whole", "payload": {}} for n in range(60)]
    steps[40] = {"name": "s40", "task": "hold", "payload": {"gate": str(gate)}}
    whole = start(client, steps)
    with Terminal("workflow", "show", "-f", whole["id"], "--url", server.url, cwd=tmp_path, rows=24) as terminal:
        terminal.wait_for(r"… \d\d completed\r?\n(.*\n)+ +▶ s40 +running(.*\n)+ +… \d+ pending")
        gate.touch()
        assert terminal.end() == 0
        last = terminal.text.splitlines()
    assert [line.split()[1] for line in last[-60:]] == [f"s{n}" for n in range(60)]


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


def test_what_undoes_a_workflow_stands_in_the_order_in_which_it_is_run(server: Server, client: httpx.Client) -> None:
    undo = {"task": "whole", "payload": {}}
    steps = [{"name": name, "task": "whole", "payload": {}, "compensate": undo} for name in ("a", "b", "c")]
    found = end_of(client, start(client, [*steps, {"name": "d", "task": "bad", "max_retries": 0}], on_failure={**undo}))
    assert [one["name"] for one in found["compensations"]] == ["c", "b", "a", "on_failure"]
    begun = [one["started_at"] for one in found["compensations"]]
    assert begun == sorted(begun)
    lines = miniflow(server, "show", found["id"]).output.splitlines()
    assert [line.split()[2] for line in lines if " undo " in line] == ["c", "b", "a"]


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
    file, gate, last = tmp_path / "flow.json", tmp_path / "gate", tmp_path / "last gate"
    steps = [
        {"name": "load", "task": "add", "payload": {"a": "${input.n}"}},
        {"name": "left", "task": "bad_until", "payload": {"gate": str(gate)}, "needs": ["load"]},
        {"name": "right", "task": "add", "payload": {"a": "${steps.load}"}, "needs": ["load"]},
        {"name": "end", "task": "hold", "payload": {"gate": str(last)}, "needs": ["left"]},
    ]
    file.write_text(json.dumps({"name": "tree", "steps": steps}), "utf-8")
    run = miniflow(server, "start", str(file), "--input", '{"n": 1}', "--wait", code=exits.JOB_FAILED)
    lines = [line.split() for line in run.stdout.splitlines()]
    assert lines[0][:1] + lines[0][2:6] == ["tree", "failed", "2", "of", "4"]
    assert lines[1][1:3] == ["load", "completed"]
    assert lines[2][1:3] == ["left", "dead_letter"]
    assert "step left is dead_letter: ValueError: not yet" in run.stderr

    gate.touch()
    assert "running" in miniflow(server, "retry", "last").output
    last.touch()
    assert "4 of 4" in miniflow(server, "show", "last", "-f").output
    again = miniflow(server, "rerun", "last", "--from", "right", "--wait", "--json")
    assert [step["status"] for step in json.loads(again.stdout)["steps"]] == ["reused", "reused", "completed", "reused"]
    shown = miniflow(server, "show", "last").output
    assert "rerun of" in shown
    assert "tree" in miniflow(server, "list", "--name", "tree", "--status", "completed").output
    assert "deleted" in miniflow(server, "delete", "last").output
    assert "cannot cancel" in miniflow(server, "cancel", "last", code=exits.REFUSED).output
    assert "nobody" in miniflow(server, "show", "nobody", code=exits.NOT_FOUND).output


def test_who_no_longer_waits_for_a_workflow_is_told_that_it_goes_on(
    server: Server, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow, gate = held(client, tmp_path)

    def press_ctrl_c(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Workflows, "wait", press_ctrl_c)
    told = miniflow(server, "show", workflow["id"], "-f", code=exits.INTERRUPTED).stderr
    assert f"goes on; `miniflow workflow show -f {workflow['id']}`" in told
    gate.touch()
    assert end_of(client, workflow)["status"] == "completed"


@pytest.mark.parametrize(
    ("text", "says"), [("[]", "not a JSON object"), ("{", "not JSON"), ('{"name": "x"}', "name and steps are needed")]
)
def test_a_file_that_is_no_workflow_is_refused_in_a_line(server: Server, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "flow.json"
    file.write_text(text, "utf-8")
    assert says in miniflow(server, "start", str(file), code=exits.UNUSABLE).output
