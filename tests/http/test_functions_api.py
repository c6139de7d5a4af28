"""Durable functions over HTTP, from the client and from the command line."""

from __future__ import annotations

import asyncio
import datetime as dt
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
from miniflow.workflow_answers import ReceivedEvent, Workflow, WorkflowEvent, WorkflowStep
from tests.api import TASKS, assert_problem
from tests.invariants import check_invariants
from tests.servers import Server
from tests.waiting import wait_until

Json = dict[str, Any]
FUNCTIONS = '''
from pathlib import Path
from typing import Any

from miniflow import WorkflowContext, schedule, task, workflow


@task(max_retries=0)
def charge(cents: int) -> dict[str, int]:
    return {"charged": cents}


def check(gate: str) -> str:
    if not Path(gate).exists():
        raise ValueError("not yet")
    return "checked"


@workflow
def order(ctx: WorkflowContext, cents: int) -> Any:
    """Charge, wait for the payment, ship."""
    charged = ctx.step(charge, cents)
    paid = ctx.wait_event("paid")
    return {**charged, "paid": paid, "shipped": ctx.step(str.upper, "ok", name="ship")}


@workflow
def checked(ctx: WorkflowContext, gate: str = "") -> Any:
    first = ctx.step(str.upper, "first", name="first")
    return [first, ctx.step(check, gate, max_retries=0)]


@schedule("0 0 1 1 *", timezone="UTC", input={"word": "new year"})
@workflow
def clocked(ctx: WorkflowContext, word: str) -> Any:
    return [word, ctx.schedule, ctx.scheduled_for.isoformat()]


@workflow
def leaving(ctx: WorkflowContext, payload: dict[str, Any]) -> Any:
    return ctx.spawn("order", payload).id


@workflow(max_retries=0)
def impatient(ctx: WorkflowContext) -> Any:
    return ctx.wait_event("paid", timeout=0.01)


@workflow
def long(ctx: WorkflowContext, n: int) -> Any:
    return ctx.step(str.ljust, "x", n, "x", name="fill") + ctx.wait_event("paid")


@workflow
def parent(ctx: WorkflowContext, payload: dict[str, Any]) -> Any:
    return ctx.spawn("order", payload).result()
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    tasks = {"sample.py": TASKS, "functions.py": FUNCTIONS}
    with Server(tmp_path_factory.mktemp("server"), tasks, stop_grace=1.0) as running:
        yield running
        assert running.terminate() == 0, running.output()
        check_invariants(running.db, stopped=True, replayed=True)


def start(client: httpx.Client, workflow: str, input: Any = None, **fields: Any) -> Json:
    given = {} if input is None else {"input": input}
    answer = client.post("/api/v1/workflows", json={"workflow": workflow, **given, **fields})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/api/v1/workflows/{answer.json()['id']}"
    found: Json = answer.json()
    return found


def show(client: httpx.Client, run: Json, wait: float = 0) -> Json:
    found: Json = client.get(f"/api/v1/workflows/{run['id']}", params={"wait": wait} if wait else {}).json()
    return found


def waiting(client: httpx.Client, run: Json, step: str) -> Json:
    """The run, when it waits for that."""

    def waits(found: Json) -> bool:
        last = found.get("steps", [{}])[-1:] or [{}]
        if (last[0].get("name"), last[0].get("status")) != (step, "waiting"):
            return False
        return client.get(f"/api/v1/jobs/{found['job_id']}").json()["status"] in ("pending", "scheduled")

    return wait_until(lambda: show(client, run), 10, f"the run to wait for {step}", until=waits)


def send(client: httpx.Client, run: Json, name: str, status: int = 201, **fields: Any) -> httpx.Response:
    answer = client.post(f"/api/v1/workflows/{run['id']}/events", json={"name": name, **fields})
    assert answer.status_code == status, answer.text
    return answer


def miniflow(server: Server, *arguments: str, code: int = exits.DONE) -> Result:
    settings = {"MINIFLOW_URL": server.url, "MINIFLOW_TOKEN": "", "NO_COLOR": "1"}
    result = CliRunner().invoke(cli, ["workflow", *arguments], env=settings, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


# --------------------------------------------------------------------------------------------------------------- over HTTP


def test_a_run_says_of_each_step_what_it_returned_and_what_it_waits_for(client: httpx.Client) -> None:
    run = start(client, "order", {"cents": 5}, description="an order", meta={"for": "ada"})
    assert (run["kind"], run["status"], run["name"]) == ("function", "running", "order")
    found = waiting(client, run, "paid")
    charged, event = found["steps"]
    assert (charged["kind"], charged["output"], charged["key"]) == ("step", {"charged": 5}, f"{run['id']}-0")
    assert (event["kind"], event["waits"]) == ("event", "waits for the event paid")
    assert (found["current_step"], found["total_steps"], found["description"]) == (1, 2, "an order")
    job = client.get(f"/api/v1/jobs/{found['job_id']}").json()
    assert (job["status"], job["workflow_id"], job["attempt"]) == ("pending", run["id"], 0)
    explained = client.get(f"/api/v1/jobs/{found['job_id']}/explain").json()
    assert [reason["code"] for reason in explained["reasons"]] == ["waits_for_event"]

    assert send(client, run, "paid", payload=[1]).json() == {"workflow_id": run["id"], "name": "paid", "payload": [1]}
    found = show(client, run, wait=10)
    assert (found["status"], found["output"]) == ("completed", {"charged": 5, "paid": [1], "shipped": "OK"})
    assert [(event["name"], event["payload"]) for event in found["events"]] == [("paid", [1])]
    assert client.get("/api/v1/workflows?name=order").json()["items"][0]["kind"] == "function"


def test_what_a_run_returns_is_given_whatever_its_size_and_a_long_step_says_how_long_it_is(
    server: Server, client: httpx.Client
) -> None:
    run = start(client, "long", {"n": 70_000})
    send(client, run, "paid", payload="y" * 70_000)
    found = show(client, run, wait=10)
    whole = "x" * 70_000 + "y" * 70_000
    assert found["output"] == whole
    assert [(step["output_bytes"], "output" in step) for step in found["steps"]] == [(70_002, False)] * 2
    assert (found["events"][0]["payload_bytes"], "payload" in found["events"][0]) == (70_002, False)
    assert client.get(f"/api/v1/workflows/{run['id']}/steps/1").json()["output"] == "y" * 70_000
    told = client.get(f"/api/v1/workflows/{run['id']}/events").text
    assert json.dumps(whole) in told
    with Client(server.url) as caller:
        assert caller.workflows.wait(run["id"]).output == whole
    shown = miniflow(server, "show", run["id"]).output
    assert f"output of 70,002 bytes: miniflow workflow result {run['id']} 0" in shown
    assert f'returned "{whole}"' in shown
    assert miniflow(server, "result", run["id"], "fill").stdout.strip() == "x" * 70_000


def test_the_first_event_of_a_name_wins_and_the_same_again_is_answered_as_the_first_was(client: httpx.Client) -> None:
    run = start(client, "order", {"cents": 5})
    waiting(client, run, "paid")
    first = send(client, run, "paid", payload="first", idempotency_key="k")
    assert "idempotency-replayed" not in first.headers
    same = send(client, run, "paid", payload="first", idempotency_key="k")
    assert (same.headers["idempotency-replayed"], same.json()) == ("true", first.json())
    for other in ({"payload": "second"}, {"payload": "second", "idempotency_key": "k"}, {"payload": "first"}):
        refused = client.post(f"/api/v1/workflows/{run['id']}/events", json={"name": "paid", **other})
        assert_problem(refused, 409, code="late_event", says="has an event 'paid' already; the first one stays")
    assert show(client, run, wait=10)["output"]["paid"] == "first"
    refused = client.post(f"/api/v1/workflows/{run['id']}/events", json={"name": "new"})
    assert_problem(refused, 409, code="transition_refused", says="cannot send an event, it is completed")


def test_an_event_that_comes_before_it_is_asked_for_is_kept(client: httpx.Client, tmp_path: Path) -> None:
    run = start(client, "order", {"cents": 1}, queue="stopped")
    assert client.post("/api/v1/queues/stopped/pause").status_code == 200
    run = start(client, "order", {"cents": 2}, queue="stopped")
    send(client, run, "paid", payload={"early": True})
    assert show(client, run)["events"][0]["payload"] == {"early": True}
    assert client.post("/api/v1/queues/stopped/resume").status_code == 200
    assert show(client, run, wait=10)["output"]["paid"] == {"early": True}


def test_an_event_for_nobody_for_declared_steps_or_of_a_wrong_shape_is_refused(client: httpx.Client) -> None:
    answer = client.post("/api/v1/workflows/nobody/events", json={"name": "paid"})
    assert_problem(answer, 404, says="workflow not found: nobody")
    steps = [{"name": "a", "task": "add", "payload": {"a": 1}}]
    declared = client.post("/api/v1/workflows", json={"name": "flow", "steps": steps}).json()
    answer = client.post(f"/api/v1/workflows/{declared['id']}/events", json={"name": "paid"})
    assert_problem(answer, 409, code="transition_refused", says="its steps are declared, and wait for no event")

    run = start(client, "order", {"cents": 5})
    path = f"/api/v1/workflows/{run['id']}/events"
    for body, field in [
        ({}, "name"),
        ({"name": 5}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "paid", "payloads": 1}, "payloads"),
        ({"name": "paid", "idempotency_key": 5}, "idempotency_key"),
    ]:
        assert_problem(client.post(path, json=body), 422, field=field)
    for content in (b'{"name": ', b'{"name": "paid", "payload": "\\ud800"}', b'{"name": "paid", "payload": "\xff"}'):
        assert client.post(path, content=content).status_code in (400, 422), content
    assert "events" not in show(client, run)
    send(client, run, "paid")
    assert show(client, run, wait=10)["output"]["paid"] is None


def test_an_event_may_be_as_long_as_a_payload_and_no_longer(client: httpx.Client) -> None:
    run = start(client, "order", {"cents": 5})
    path = f"/api/v1/workflows/{run['id']}/events"
    answer = client.post(path, json={"name": "paid", "payload": "x" * (10 * 1024 * 1024)})
    assert_problem(answer, 413, code="too_large", says="max_payload_bytes")
    long = "x" * (900 * 1024)
    send(client, run, "paid", payload=long)
    found = show(client, run, wait=10)
    assert found["status"] == "completed"
    assert "payload" not in found["events"][0]  # over 64 KiB
    assert client.get(f"/api/v1/jobs/{found['job_id']}/result").json()["result"]["paid"] == long


def test_a_start_is_held_against_the_function_and_its_key_starts_one(client: httpx.Client) -> None:
    for body, field, says in [
        ({"workflow": "ordre", "input": {"cents": 1}}, "workflow", "did you mean order"),
        ({"workflow": "charge", "input": {"cents": 1}}, "workflow", "'charge' is a task, and no workflow"),
        ({"workflow": "order", "input": {"cents": "many"}}, "input.cents", "expected int"),
        ({"workflow": "order"}, "input.cents", "missing"),
        (
            {"workflow": "order", "input": {"cent": 1}},
            "input.cent",
            "is not a parameter of workflow order; it takes cents",
        ),
        ({"workflow": 5}, "workflow", "expected"),
        ({"workflow": "order", "input": {"cents": 1}, "steps": []}, "steps", "steps"),
        ({"workflow": "order", "input": {"cents": 1}, "timeout": "long"}, "timeout", "expected"),
        ({"workflow": "order", "input": {"cents": 1}, "queue": "no such name"}, "queue", "letters"),
    ]:
        assert_problem(client.post("/api/v1/workflows", json=body), 422, field=field, says=says)
    answer = client.post("/api/v1/jobs", json={"task": "order", "payload": {"cents": 1}})
    assert_problem(answer, 422, field="task", says="start it with POST /api/v1/workflows")
    answer = client.post("/api/v1/workflows", json={"name": "f", "steps": [{"task": "order", "payload": {"cents": 1}}]})
    assert_problem(answer, 422, field="steps[0].task", says="is a workflow")

    first = start(client, "order", {"cents": 1}, idempotency_key="once", timeout=60, tags=["a"])
    body = {"workflow": "order", "input": {"cents": 1}, "timeout": 60, "tags": ["a"]}
    again = client.post("/api/v1/workflows", json=body, headers={"Idempotency-Key": "once"})
    assert (again.status_code, again.json()["id"]) == (201, first["id"])
    assert again.headers["idempotency-replayed"] == "true"
    other = client.post("/api/v1/workflows", json={**body, "input": {"cents": 2}, "idempotency_key": "once"})
    assert_problem(other, 409, code="idempotency_conflict")
    waiting(client, first, "paid")
    assert client.post(f"/api/v1/workflows/{first['id']}/cancel").json()["status"] == "cancelled"
    task = client.get("/api/v1/tasks/order").json()
    assert (task["durable"], task["timeout"], task["max_retries"]) == (True, None, 0)


def test_a_retry_goes_on_and_a_rerun_points_at_the_run_before(client: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    run = start(client, "checked", {"gate": str(gate)})
    failed = show(client, run, wait=10)
    assert failed["error"] == "StepFailed: step check failed: ValueError: not yet"
    assert [(step["name"], step["status"], step.get("error")) for step in failed["steps"]] == [
        ("first", "completed", None),
        ("check", "failed", "ValueError: not yet"),
    ]
    gate.touch()
    assert client.post(f"/api/v1/workflows/{run['id']}/retry").json()["status"] in ("running", "completed")  # by now
    assert show(client, run, wait=10)["output"] == ["FIRST", "checked"]

    answer = client.post(f"/api/v1/workflows/{run['id']}/rerun", json={"from": "check"})
    assert (answer.status_code, answer.json()["rerun_of"]) == (201, run["id"])
    again = show(client, answer.json(), wait=10)
    assert (again["output"], again["steps"][0]["completed_at"]) == (
        ["FIRST", "checked"],
        failed["steps"][0]["completed_at"],
    )
    answer = client.post(f"/api/v1/workflows/{run['id']}/rerun", json={"from": "lost"})
    assert_problem(answer, 422, field="from", says="has recorded no step 'lost'")
    answer = client.post(f"/api/v1/workflows/{run['id']}/rerun", json={"input": {"gate": 5}})
    assert_problem(answer, 422, field="input.gate")


def test_a_spawned_run_and_its_parent_point_at_each_other(client: httpx.Client) -> None:
    run = start(client, "parent", {"cents": 3})
    (step,) = waiting(client, run, "order")["steps"]
    assert step["waits"] == f"waits for the workflow order {step['workflow_id']}"
    child = {"id": step["workflow_id"]}
    inner = show(client, child)
    assert (inner["parent_id"], inner["parent_step"]) == (run["id"], "order")
    send(client, child, "paid", payload="yes")
    assert show(client, run, wait=10)["output"] == {"charged": 3, "paid": "yes", "shipped": "OK"}


def test_a_spawned_run_is_left_out_with_those_that_are_steps_of_others_and_last_is_none(
    server: Server, client: httpx.Client
) -> None:
    run = start(client, "parent", {"cents": 3})
    child = waiting(client, run, "order")["steps"][0]["workflow_id"]

    def listed(**which: str) -> list[str]:
        return [one["id"] for one in client.get("/api/v1/workflows", params=which).json()["items"]]

    for which in ({}, {"status": "running"}, {"name": "order"}, {"name": "order", "status": "running"}):
        assert child in listed(**which)
        assert child not in listed(**which, nested="false")
    assert run["id"] in listed(nested="false")
    assert miniflow(server, "show", "last").output.startswith(f"parent  {run['id']}")
    send(client, {"id": child}, "paid", payload=1)
    assert show(client, run, wait=10)["status"] == "completed"


def test_a_spawned_run_that_nobody_waits_for_runs_until_it_has_ended(client: httpx.Client) -> None:
    run = start(client, "leaving", {"cents": 3})
    found = show(client, run, wait=10)
    (step,) = found["steps"]
    assert (found["status"], step["status"], "error" in step) == ("completed", "running", False)
    send(client, {"id": step["workflow_id"]}, "paid")
    show(client, {"id": step["workflow_id"]}, wait=10)
    assert show(client, run)["steps"][0]["status"] == "completed"


def test_an_event_that_did_not_come_says_so(client: httpx.Client) -> None:
    (step,) = show(client, start(client, "impatient"), wait=10)["steps"]
    assert (step["status"], step["error"]) == ("failed", "no event 'paid' came in time")


def test_a_schedule_starts_a_durable_function_which_knows_its_time_and_so_does_its_rerun(client: httpx.Client) -> None:
    found = client.get("/api/v1/schedules/clocked").json()
    assert (found["workflow"], found["source"]) == ("clocked", "code")
    run = {"id": client.post("/api/v1/schedules/clocked/run").json()["id"]}
    first = show(client, run, wait=10)
    at = dt.datetime.fromisoformat(first["scheduled_for"])
    assert (first["schedule"], first["output"]) == ("clocked", ["new year", "clocked", at.isoformat()])
    over = wait_until(
        lambda: client.get("/api/v1/schedules/clocked").json(), 10, "the end", until=lambda found: not found["running"]
    )
    assert (over["last_run"]["workflow_id"], over["last_run"]["status"]) == (run["id"], "completed")
    again = client.post(f"/api/v1/workflows/{run['id']}/rerun", json={}).json()
    assert show(client, again, wait=10)["output"] == first["output"]
    made = client.post(
        "/api/v1/schedules", json={"name": "x", "workflow": "order", "input": {"cents": "x"}, "every": 60}
    )
    assert_problem(made, 422, field="input.cents")
    answer = client.post("/api/v1/schedules", json={"name": "x", "task": "order", "every": 60})
    assert_problem(answer, 422, field="task", says="is a workflow")


def test_a_stream_tells_of_each_step_and_ends_with_the_run(client: httpx.Client) -> None:
    run = start(client, "order", {"cents": 5})
    told: list[Json] = []
    with client.stream("GET", f"/api/v1/workflows/{run['id']}/events") as stream:
        for line in stream.iter_lines():
            if not line.startswith("data: "):
                continue
            told.append(json.loads(line.removeprefix("data: ")))
            steps = told[-1].get("steps", [])
            if steps and steps[-1]["name"] == "paid" and steps[-1]["status"] == "waiting" and "events" not in told[-1]:
                client.post(f"/api/v1/workflows/{run['id']}/events", json={"name": "paid", "payload": 1})
    assert told[-1] == {"status": "completed"}
    assert [step["name"] for step in told[-2]["steps"]] == ["charge", "paid", "ship"]


# --------------------------------------------------------------------------------------- from the client, the command line


def test_the_client_starts_sends_and_waits(server: Server) -> None:
    with Client(server.url) as client:
        run = client.workflows.start_function("order", {"cents": 5}, timeout=60, tags=["a"])
        sent = client.workflows.send_event(run, "paid", {"by": "card"})
        assert (sent.workflow_id, sent.name, sent.payload) == (run.id, "paid", {"by": "card"})
        found = client.workflows.wait(run, timeout=10)
        assert (found.kind, found.output["paid"]) == ("function", {"by": "card"})
        assert [step.kind for step in found.steps] == ["step", "event", "step"]
        assert client.workflows.rerun(run, from_step="ship").rerun_of == run.id
        with pytest.raises(Refused, match="cannot send an event"):
            client.workflows.send_event(run, "other")
        with pytest.raises(NotFound):
            client.workflows.send_event("nobody", "paid")
        with pytest.raises(Invalid, match=r"input\.cents"):
            client.workflows.start_function("order", {"cents": "x"})


def test_the_client_for_asyncio_does_the_same(server: Server) -> None:
    async def main() -> Any:
        async with AsyncClient(server.url) as client:
            run = await client.workflows.start_function("order", {"cents": 5})
            await client.workflows.send_event(run, "paid", 1)
            return (await client.workflows.wait(run, timeout=10)).output

    assert asyncio.run(main()) == {"charged": 5, "paid": 1, "shipped": "OK"}


def test_the_client_knows_each_field_of_the_server(client: httpx.Client) -> None:
    run = start(client, "parent", {"cents": 3})
    child = {"id": waiting(client, run, "order")["steps"][0]["workflow_id"]}
    sent = send(client, child, "paid", payload="yes").json()
    found = show(client, child, wait=10)
    steps = [show(client, run, wait=10)["steps"][0], *found["steps"]]
    for given, kind in (
        (found, Workflow),
        (found["events"][0], ReceivedEvent),
        (sent, WorkflowEvent),
        *((step, WorkflowStep) for step in steps),
    ):
        known: type[Answer] = kind
        assert given.keys() - {"type"} <= {field.encode_name for field in msgspec.structs.fields(known)}


def test_the_command_line_starts_sends_and_shows(server: Server) -> None:
    run = miniflow(server, "start", "order", "--input", '{"cents": 7}', "--quiet").stdout.strip()
    with server.client() as client:
        waiting(client, {"id": run}, "paid")
    assert "waits for the event paid" in miniflow(server, "show", run).output
    assert (
        f"{run}  has the event paid" in miniflow(server, "send", "last", "paid", "--payload", '{"by": "card"}').output
    )
    assert "already; the first one stays" in miniflow(server, "send", run, "paid", code=exits.REFUSED).output
    lines = miniflow(server, "show", run, "-f").output.splitlines()
    assert [line.split()[1:3] for line in lines[1:4]] == [
        ["charge", "completed"],
        ["paid", "completed"],
        ["ship", "completed"],
    ]
    assert lines[4] == '  returned {"charged":7,"paid":{"by":"card"},"shipped":"OK"}'
    again = miniflow(server, "rerun", run, "--from", "ship", "--wait", "--json")
    assert json.loads(again.stdout)["output"]["shipped"] == "OK"
    told = miniflow(server, "start", "nobody", code=exits.UNUSABLE).output
    assert "there is no definition 'nobody'; none is kept; durable functions are " in told
    assert "order" in told
    told = miniflow(server, "start", "order", "--version", "2", code=exits.UNUSABLE).output
    assert "order is a durable function, which has no versions; leave --version out" in told
    assert "not JSON" in miniflow(server, "start", "order", "--input", "{", code=exits.UNUSABLE).output
    settings = {"MINIFLOW_URL": server.url, "MINIFLOW_TOKEN": "", "NO_COLOR": "1"}
    card = CliRunner().invoke(cli, ["tasks", "order"], env=settings, catch_exceptions=False).output
    assert "as a workflow" in card
    assert "miniflow workflow start order --input '{\"cents\": 1}'" in card
