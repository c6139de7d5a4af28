"""Rules, pauses, limits and explanations over HTTP, from the client and from the command line: one server for all of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from miniflow import AsyncClient, Client
from miniflow.answers import Invalid, NotFound, Refused
from miniflow.cli import cli
from tests.api import TASKS, assert_problem, end_of, get, submit, wait_for_status
from tests.servers import Server

RULED = """
import pathlib
import time

from miniflow import task


@task(concurrency_key="customer")
def bill(customer: str, gate: str = "") -> str:
    while gate and not pathlib.Path(gate).exists():
        time.sleep(0.01)
    return customer


@task(rate="1000/s", concurrency=3, unique=["customer"])
def once(customer: str, n: int = 0) -> int:
    return n
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("rules"), {"sample.py": TASKS, "ruled.py": RULED}, workers=3) as running:
        yield running


@pytest.fixture
def run(server: Server) -> Callable[..., Result]:
    def invoke(*arguments: str, code: int = 0) -> Result:
        settings = {"MINIFLOW_URL": server.url, "MINIFLOW_TOKEN": "", "NO_COLOR": "1"}
        result = CliRunner().invoke(cli, arguments, env=settings, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return invoke


# ------------------------------------------------------------------------------------------------------------------ pauses


@pytest.mark.parametrize("name", ["mail", "mail/urgent"])
def test_a_queue_is_paused_and_resumed_by_patch_and_by_verb(client: httpx.Client, name: str) -> None:
    paused = client.patch(f"/api/v1/queues/{name}", json={"paused": True})
    assert paused.status_code == 200, paused.text
    assert paused.json()["paused_at"] is not None
    assert paused.json()["served"] is False
    job = submit(client, "add", {"a": 1}, queue=name)["id"]
    assert get(client, job)["status"] == "queued"
    assert client.post(f"/api/v1/queues/{name}/resume").json()["paused_at"] is None
    assert end_of(client, job)["result"] == 3

    assert client.post(f"/api/v1/queues/{name}/pause").json()["paused_at"] is not None
    assert client.get(f"/api/v1/queues/{name}").json()["paused_at"] is not None
    assert client.patch(f"/api/v1/queues/{name}", json={"paused": False}).json()["served"] is True


def test_a_queue_without_jobs_is_resumed_and_unlimited_though_nothing_of_it_is_left(run: Callable[..., Result]) -> None:
    assert "paused" in run("pause", "void").stdout
    assert "void" in run("resume", "void").stdout
    run("limit", "--queue", "void", "--concurrency", "2")
    run("limit", "--queue", "void", "--concurrency", "none")


def test_limits_are_set_shown_and_taken_away(client: httpx.Client) -> None:
    set_to = client.patch("/api/v1/queues/limited", json={"concurrency": 2, "rate": "5/minute"}).json()
    assert (set_to["concurrency"], set_to["rate"]) == (2, "5/minute")
    kept = client.patch("/api/v1/queues/limited", json={"concurrency": None}).json()
    assert (kept["concurrency"], kept["rate"]) == (None, "5/minute")
    gone = client.patch("/api/v1/queues/limited", json={"rate": None})
    assert (gone.status_code, gone.json()["name"], gone.json()["rate"]) == (200, "limited", None)
    assert client.get("/api/v1/queues/limited").status_code == 404, "nothing of it is left, and it had no job"

    task = client.patch("/api/v1/tasks/once", json={"concurrency": 1}).json()
    assert (task["concurrency"], task["rate"], task["unique"]["fields"]) == (1, "1000/s", ["customer"])
    assert client.patch("/api/v1/tasks/once", json={"concurrency": None}).json()["concurrency"] == 3
    bill = client.get("/api/v1/tasks/bill").json()
    assert (bill["concurrency_key"], bill["concurrency_per_key"], bill["on_conflict"]) == (["customer"], 1, "wait")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("queues/mail", {"concurrency": 0}, "concurrency"),
        ("queues/mail", {"rate": "often"}, "rate"),
        ("queues/mail", {"pause": True}, "pause"),
        ("queues/no spaces", {"paused": True}, "name"),
        ("tasks/add", {"rate": "1/year"}, "rate"),
        ("workers", {"workers": -1}, "workers"),
        ("workers", {}, ""),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_by_name(
    client: httpx.Client, path: str, body: object, field: str
) -> None:
    problem = assert_problem(client.patch(f"/api/v1/{path}", json=body), 422, "invalid_request")
    assert problem.get("field", "") == field


def test_what_is_not_there_is_not_found(client: httpx.Client) -> None:
    assert_problem(client.patch("/api/v1/tasks/nobody", json={"concurrency": 1}), 404, "not_found")
    assert_problem(client.post("/api/v1/queues/mail/stop"), 404, "not_found")
    assert_problem(client.get("/api/v1/jobs/nobody/explain"), 404, "not_found")


def test_the_number_of_workers_is_changed_and_holds_over_a_restart(server: Server, client: httpx.Client) -> None:
    answer = client.patch("/api/v1/workers", json={"workers": 5, "async_slots": 9, "processes": 3}).json()
    assert answer["slots"] == {"thread": 5, "async": 9, "process": 3}
    assert len(answer["items"]) == 5
    client.post("/api/v1/queues/kept/pause")
    server.terminate()
    server.start()
    with server.client() as again:
        assert again.get("/api/v1/workers").json()["slots"] == {"thread": 5, "async": 9, "process": 3}
        assert again.get("/api/v1/queues/kept").json()["paused_at"] is not None
        assert len(again.patch("/api/v1/workers", json={"workers": 3}).json()["items"]) == 3


# --------------------------------------------------------------------------------------------------------- keys and unique


def test_an_explanation_names_who_holds_the_slot(client: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = submit(client, "bill", {"customer": "ada", "gate": str(gate)})["id"]
    wait_for_status(client, first, "running")
    second = submit(client, "bill", {"customer": "ada"})["id"]
    end_of(client, submit(client, "bill", {"customer": "grace"})["id"])

    found = client.get(f"/api/v1/jobs/{second}/explain").json()
    assert found["status"] == "queued"
    assert found["reasons"] == [
        {
            "code": "slots_taken",
            "text": f"1 of 1 slot of key 'ada' of task bill is held by {first}; it is the next",
            "jobs": [first],
        }
    ]
    gate.touch()
    end_of(client, second)
    assert client.get(f"/api/v1/jobs/{second}/explain").json()["reasons"][0]["code"] == "completed"


def test_a_unique_submit_is_answered_with_the_job_that_is_there(client: httpx.Client) -> None:
    body = {"task": "add", "payload": {"a": 17}, "delay": 600, "unique": True}
    first = client.post("/api/v1/jobs", json=body)
    second = client.post("/api/v1/jobs", json=body)

    assert first.status_code == second.status_code == 201
    assert "submit-outcome" not in first.headers
    assert second.headers["submit-outcome"] == second.json()["submit_outcome"] == "existing"
    assert second.headers["location"] == first.headers["location"]
    rejected = client.post("/api/v1/jobs", json={**body, "unique": {"on_conflict": "reject"}})
    assert assert_problem(rejected, 409, "not_unique")["job_id"] == first.json()["id"]
    batch = client.post("/api/v1/jobs/batch", json=[{"task": "add", "payload": {"a": 1}}, body]).json()
    assert batch["ids"][1] == first.json()["id"]
    assert batch["existing"] == [1]


def test_a_field_that_the_task_does_not_take_is_refused_at_submit(server: Server, client: httpx.Client) -> None:
    body = {"task": "once", "payload": {"customer": "ada"}, "unique": {"fields": ["custmer"]}}
    problem = assert_problem(client.post("/api/v1/jobs", json=body), 422, "invalid_request")
    assert problem["field"] == "unique.fields[0]"
    assert "the task takes no 'custmer'; it takes customer, n" in problem["detail"]
    batch = client.post("/api/v1/jobs/batch", json=[{"task": "add", "payload": {"a": 1}}, body])
    assert assert_problem(batch, 422, "invalid_request")["field"] == "[1].unique.fields[0]"
    with Client(server.url) as python, pytest.raises(Invalid, match=r"unique\.fields\[0\]"):
        python.submit("once", {"customer": "ada"}, unique={"fields": ["custmer"]})


def test_a_debounced_submit_moves_the_job_and_gives_it_its_payload(client: httpx.Client) -> None:
    body = {"task": "add", "debounce": {"wait": 600}}
    first = client.post("/api/v1/jobs", json={**body, "payload": {"a": 1}}).json()
    second = client.post("/api/v1/jobs", json={**body, "payload": {"a": 2}})

    assert second.headers["submit-outcome"] == "debounced"
    assert second.json()["id"] == first["id"]
    assert second.json()["payload"] == {"a": 2}
    assert second.json()["scheduled_at"] >= first["scheduled_at"]


def test_a_longest_wait_that_is_shorter_than_the_wait_is_refused_with_both(client: httpx.Client) -> None:
    body = {"task": "add", "payload": {"a": 1}, "debounce": {"wait": 600, "max_wait": 0.5}}
    problem = assert_problem(client.post("/api/v1/jobs", json=body), 422, "invalid_request")
    assert problem["field"] == "debounce.max_wait"
    assert "is 0.5, less than wait, which is 600" in problem["detail"]


# ------------------------------------------------------------------------------------------------ client and command line


def test_the_client_controls_and_explains(server: Server) -> None:
    with Client(server.url) as client:
        assert client.pause("by-client").paused_at is not None
        job = client.submit("add", {"a": 1}, queue="by-client", unique=True)
        assert job.submit_outcome is None
        assert client.submit("add", {"a": 1}, queue="by-client", unique=True).submit_outcome == "existing"
        assert [reason.code for reason in client.explain(job).reasons] == ["queue_paused"]
        assert client.limit_queue("by-client", concurrency=2, rate="50/s").rate == "50/s"
        assert client.limit_queue("by-client", rate=None).concurrency == 2
        assert client.resume("by-client").paused_at is None
        assert client.result(job, timeout=10) == 3
        assert client.limit_task("add", concurrency=4).concurrency == 4
        assert client.limit_task("add", concurrency=None).concurrency is None
        assert sum(worker.executor == "thread" for worker in client.resize(workers=4)) == 4
        client.resize(workers=3)
        with pytest.raises(Invalid):
            client.limit_queue("by-client", rate="often")
        with pytest.raises(NotFound):
            client.limit_task("nobody", concurrency=1)
        held = client.submit("add", {"a": 99}, delay=600, unique=True)
        with pytest.raises(Refused) as refused:
            client.submit("add", {"a": 99}, delay=600, unique={"on_conflict": "reject"})
        assert held.id in refused.value.detail


def test_the_async_client_does_the_same(server: Server) -> None:
    async def talk() -> None:
        async with AsyncClient(server.url) as client:
            assert (await client.pause("by-async")).paused_at is not None
            job = await client.submit("add", {"a": 1}, queue="by-async", concurrency_key="k")
            assert "paused" in (await client.explain(job)).text
            assert (await client.limit_queue("by-async", concurrency=1)).concurrency == 1
            assert (await client.resume("by-async")).paused_at is None
            assert await client.result(job, timeout=10) == 3
            assert (await client.limit_task("bill", rate="1000/s")).rate == "1000/s"
            assert (await client.limit_task("bill", rate=None)).rate is None
            assert len(await client.resize(workers=3)) >= 3

    asyncio.run(talk())


def test_the_command_line_controls_and_explains(client: httpx.Client, run: Callable[..., Result]) -> None:
    assert run("pause", "by-hand").stdout == "by-hand  paused\n"
    job = run("submit", "add", "a=1", "--queue", "by-hand", "--quiet").stdout.strip()
    said = run("explain", job).stdout.splitlines()
    assert said[0] == f"{job}  queued"
    assert said[1].startswith("- queue by-hand is paused since ")
    assert json.loads(run("explain", job, "--json").stdout)["reasons"][0]["code"] == "queue_paused"
    assert "paused, 2 at once" in run("limit", "--queue", "by-hand", "--concurrency", "2").stdout.replace(
        "paused  ", "paused, "
    )
    assert "paused, 2 at once" in run("queues").stdout
    assert run("resume", "by-hand").stdout == "by-hand  2 at once\n"
    assert run("limit", "--queue", "by-hand", "--concurrency", "none").stdout == "by-hand  no limit\n"
    assert end_of(client, job)["result"] == 3
    assert run("limit", "--task", "once").stdout == "once  3 at once, 1000/s\n"
    assert "by customer: one at a time, else wait" in run("tasks", "bill").stdout
    assert run("scale", "2").stdout.startswith("2 workers, ")
    assert run("scale", "3", "--processes", "2").stdout.endswith("busy; 2 at once in processes\n")


def test_submits_of_the_command_line_can_be_unique_and_debounced(run: Callable[..., Result]) -> None:
    first = run("submit", "add", "a=41", "--delay", "10m", "--unique", "--quiet").stdout.strip()
    said = run("submit", "add", "a=41", "--delay", "10m", "--unique").stdout
    assert said.startswith(f"{first}  scheduled in default, due in ")
    assert said.endswith(", was there already\n")
    assert run("submit", "add", "a=41", "b=5", "--delay", "10m", "--unique-by", "a", "--quiet").stdout.strip() != first
    debounced = ("submit", "add", "--debounce", "10m", "--debounce-max", "1h", "--concurrency-key", "k")
    again = run(*debounced, "a=1", "--quiet").stdout.strip()
    assert run(*debounced, "a=2").stdout.endswith("and takes this payload\n")
    assert run(*debounced, "a=3", "--quiet").stdout.strip() == again


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["limit"], "say what to limit: --queue NAME or --task NAME"),
        (["limit", "--queue", "mail", "--concurrency", "many"], "--concurrency is a number, or none; got 'many'"),
        (["limit", "--queue", "mail", "--rate", "often"], "rate: is a number per period, such as 10/minute"),
        (["scale"], "say how many"),
        (["submit", "add", "a=1", "--debounce-max", "5"], "--debounce-max goes with --debounce"),
    ],
)
def test_what_is_missing_on_the_command_line_is_named(
    run: Callable[..., Result], arguments: list[str], words: str
) -> None:
    assert words in run(*arguments, code=2).stderr
