"""Queues, tasks and workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api import TASKS, Json, assert_problem, committed, end_of, submit, wait_for_status
from tests.servers import Server
from tests.waiting import wait_until

LATER = 3600

MORE = '''
import asyncio
import pathlib
import sys
import time

from miniflow import task


@task(queue="reports", max_retries=7, timeout=30, ttl=60, priority=5, retry=[1, 2])
def report(name: str) -> str:
    """Make a report.

    It takes long."""
    return name


@task
def crunch(gate: str) -> str:
    while not pathlib.Path(gate).exists():
        sum(range(5_000_000))  # in C, which does not let go of the interpreter
    return "done"


@task
async def block(gate: str) -> str:
    while not pathlib.Path(gate).exists():
        time.sleep(0.01)  # where an await belongs
    return "done"


@task
def patience() -> float:
    return sys.getswitchinterval()


@task(name="group/endless", timeout=0)
async def hold_async(gate: str) -> str:
    while not pathlib.Path(gate).exists():
        await asyncio.sleep(0.01)
    return "let go"
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    tasks = {"sample.py": TASKS, "more.py": MORE}
    settings = {"queues": "first,default,ran,held,async", "workers": 3, "async_slots": 7, "timeout": 120}
    with Server(tmp_path_factory.mktemp("system"), tasks, **settings) as running:
        yield running


def queue(client: httpx.Client, name: str) -> Json:
    """As it is when all is counted that was seen of its jobs before."""
    committed(client)
    answer = client.get(f"/api/v1/queues/{name}")
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


# ---------------------------------------------------------------------------------------------------------------- queues


def test_a_queue_says_how_many_of_its_jobs_are_in_each_state(client: httpx.Client, tmp_path: Path) -> None:
    end_of(client, submit(client, "add", {"a": 1}, queue="ran")["id"])
    end_of(client, submit(client, "bad", queue="ran")["id"])
    cancelled = submit(client, "add", {"a": 1}, queue="ran", delay=LATER)["id"]
    client.post(f"/api/v1/jobs/{cancelled}/cancel")
    submit(client, "add", {"a": 1}, queue="ran", delay=LATER)
    wait_for_status(client, submit(client, "bad_for_long", queue="ran")["id"], "retrying")
    held = submit(client, "hold", {"gate": str(tmp_path / "gate")}, queue="ran")["id"]
    wait_for_status(client, held, "running")

    assert queue(client, "ran") == {
        "name": "ran", "pending": 0, "scheduled": 1, "queued": 0, "running": 1, "retrying": 1, "completed": 1,
        "dead_letter": 1, "cancelled": 1, "expired": 0, "oldest_queued_age": None, "served": True,
        "paused_at": None, "concurrency": None, "rate": None,
    }  # fmt: skip
    (tmp_path / "gate").touch()
    end_of(client, held)
    assert queue(client, "ran")["completed"] == 2


def test_the_queues_are_those_with_jobs_and_those_that_are_named(client: httpx.Client) -> None:
    submit(client, "add", {"a": 1}, queue="zebra", delay=LATER)

    items = client.get("/api/v1/queues").json()["items"]

    names = [item["name"] for item in items]
    assert {"default", "first", "reports", "zebra"} <= set(names)
    assert names == sorted(names)
    assert queue(client, "zebra") in items
    assert {item["name"]: item["served"] for item in items if item["name"] in ("first", "reports", "zebra")} == {
        "first": True,
        "reports": False,  # a task is for it, and nobody serves it
        "zebra": False,
    }


def test_the_age_of_a_queue_is_that_of_the_job_that_was_ready_first_whatever_its_priority(client: httpx.Client) -> None:
    first = submit(client, "report", {"name": "a"}, priority=-5)
    submit(client, "report", {"name": "b"}, priority=9)
    submit(client, "add", {"a": 1}, queue="reports", delay=LATER)

    before = queue(client, "reports")["oldest_queued_age"]
    later = wait_until(lambda: queue(client, "reports")["oldest_queued_age"], until=lambda age: age > before)
    client.post(f"/api/v1/jobs/{first['id']}/cancel")

    assert 0 <= before < later
    assert queue(client, "reports")["queued"] == 1
    assert queue(client, "reports")["oldest_queued_age"] < later + 5


def test_a_job_that_is_claimed_ahead_has_an_age_too(client: httpx.Client, tmp_path: Path) -> None:
    gate = {"gate": str(tmp_path / "gate")}
    held = [submit(client, "hold", gate, queue="held")["id"] for _ in range(3)]
    for job_id in held:
        wait_for_status(client, job_id, "running")
    waits = submit(client, "hold", gate, queue="held")["id"]

    assert wait_until(
        lambda: queue(client, "held")["oldest_queued_age"], until=lambda age: age is not None and age > 0.1
    )
    (tmp_path / "gate").touch()
    end_of(client, waits)
    assert queue(client, "held")["oldest_queued_age"] is None


def test_an_unknown_queue_is_404_and_a_name_may_have_slashes(client: httpx.Client) -> None:
    submit(client, "add", {"a": 1}, queue="team/mail", delay=LATER)

    assert queue(client, "team/mail")["scheduled"] == 1
    assert queue(client, "team%2Fmail")["name"] == "team/mail"
    assert_problem(client.get("/api/v1/queues/no-such"), 404, "not_found", says="queue not found: no-such")


@pytest.mark.parametrize(
    ("name", "sent"),
    [("odd//b", "odd//b"), ("odd/./b", "odd/%2E/b"), ("odd/../b", "odd/%2E%2E/b"), ("odd/", "odd/"), ("/odd", "/odd")],
)  # fmt: skip
def test_a_name_that_would_be_another_one_as_a_path_is_that_name(client: httpx.Client, name: str, sent: str) -> None:
    submit(client, "add", {"a": 1}, queue=name, delay=LATER)

    found = queue(client, sent)

    assert (found["name"], found["scheduled"]) == (name, 1)
    assert_problem(client.get(f"/api/v1/tasks/{sent}"), 404, "not_found", says=f"task not found: {name}")


# ----------------------------------------------------------------------------------------------------------------- tasks


def test_a_task_says_what_holds_for_its_jobs(client: httpx.Client, server: Server) -> None:
    found = client.get("/api/v1/tasks/report").json()

    schema = found.pop("schema")
    assert found == {
        "name": "report", "description": "Make a report.", "queue": "reports", "priority": 5, "executor": "thread",
        "max_retries": 7, "timeout": 30.0, "ttl": 60.0, "heartbeat": None, "on_stall": None, "limits": None,
        "file": str(server.tasks / "more.py"), "module": found["module"],
        "retry": {"base": 1.0, "factor": 2.0, "max_delay": 60.0, "jitter": 0.1, "intervals": [1.0, 2.0]},
        "concurrency": None, "rate": None, "concurrency_key": None, "concurrency_per_key": None, "on_conflict": "wait",
        "unique": None, "debounce": None, "durable": False,
    }  # fmt: skip
    assert schema["required"] == ["name"]
    assert "more" in found["module"]


def test_what_a_task_leaves_open_is_shown_as_the_server_has_it(client: httpx.Client) -> None:
    tasks = {item["name"]: item for item in client.get("/api/v1/tasks").json()["items"]}

    assert (tasks["add"]["max_retries"], tasks["add"]["timeout"], tasks["add"]["ttl"]) == (3, 120.0, None)
    assert tasks["add"]["retry"]["base"] == 1.0
    assert (tasks["group/endless"]["timeout"], tasks["group/endless"]["executor"]) == (None, "async")
    job = submit(client, "add", {"a": 1})
    assert (job["max_retries"], job["timeout"]) == (3, 120.0)


def test_an_unknown_task_is_404_and_a_name_may_have_slashes(client: httpx.Client) -> None:
    assert client.get("/api/v1/tasks/group/endless").json()["name"] == "group/endless"
    assert_problem(client.get("/api/v1/tasks/no-such"), 404, "not_found", says="task not found: no-such")


# --------------------------------------------------------------------------------------------------------------- workers


def test_workers_are_idle_until_they_have_a_job_and_then_say_which(client: httpx.Client, tmp_path: Path) -> None:
    def workers() -> list[Json]:
        items: list[Json] = client.get("/api/v1/workers").json()["items"]
        return items

    idle = wait_until(workers, until=lambda items: not any(item["busy"] for item in items))
    assert [item.keys() for item in idle] == [{"id", "executor", "busy"}] * 3
    assert len({item["id"] for item in idle}) == 3
    assert client.get("/api/v1/workers").json()["slots"] == {"thread": 3, "async": 7, "process": 4}

    gate = {"gate": str(tmp_path / "gate")}
    jobs = [submit(client, "hold", gate)["id"], submit(client, "group/endless", gate, queue="async")["id"]]
    shown = {job_id: wait_for_status(client, job_id, "running") for job_id in jobs}
    busy = [item for item in workers() if item["busy"]]
    (tmp_path / "gate").touch()

    assert [(item["executor"], item["job_id"]) for item in busy] == list(zip(["thread", "async"], jobs, strict=True))
    for item in busy:
        job = shown[item["job_id"]]
        assert item["running_for"] >= 0
        assert (item["task"], item["queue"], item["attempt"], item["started_at"], item["id"]) == (
            job["task"], job["queue"], 1, job["started_at"], job["worker_id"])  # fmt: skip
    for job_id in jobs:
        end_of(client, job_id)
    assert wait_until(workers, until=lambda items: not any(item["busy"] for item in items)) == idle


def held_by(client: httpx.Client, loop: str) -> set[str]:
    """Tasks that a loop was held up by until now: to it a machine that lets nobody run looks like one of a test before."""
    return set(client.get("/api/v1/workers").json()[loop]["held_by"])


def test_a_task_that_holds_up_the_event_loop_is_named_with_advice(
    client: httpx.Client, server: Server, tmp_path: Path
) -> None:
    gate = {"gate": str(tmp_path / "gate")}
    before = held_by(client, "event_loop")
    job = submit(client, "crunch", gate, queue="default")["id"]

    def named() -> Json:
        answer: Json = client.get("/api/v1/workers").json()
        return answer

    answer = wait_until(named, 20, until=lambda found: any("advice" in item for item in found["items"]))
    (tmp_path / "gate").touch()
    end_of(client, job)

    (item,) = [item for item in answer["items"] if item["busy"]]
    assert (item["task"], item["advice"]) == ("crunch", '@task(executor="process") moves it out of the way')
    assert 0.02 <= item["holds_loop_for"] <= answer["event_loop"]["lag_max"]
    assert answer["event_loop"]["held_by"].keys() - before == {"crunch"}
    assert 'miniflow_event_loop_held_seconds_total{task="crunch"}' in client.get("/metrics").text
    assert "task crunch holds up the event loop" in (server.folder / "logs" / "app.log").read_text("utf-8")


def test_an_async_task_that_blocks_is_named_with_advice(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    before = held_by(client, "async_loop")
    job = submit(client, "block", {"gate": str(tmp_path / "gate")}, queue="default")["id"]

    def named() -> Json:
        answer: Json = client.get("/api/v1/workers").json()
        return answer

    answer = wait_until(named, 20, until=lambda found: any("advice" in item for item in found["items"]))
    (tmp_path / "gate").touch()
    end_of(client, job)

    (item,) = [item for item in answer["items"] if item["busy"]]
    assert (item["task"], item["executor"]) == ("block", "async")
    assert "asyncio.to_thread" in item["advice"]
    assert item["holds_loop_for"] >= 0.25
    loop = answer["async_loop"]
    assert loop["held_by"].keys() - before == {"block"}
    assert loop["lag_max"] >= loop["lag"]
    assert "block" not in answer["event_loop"]["held_by"], "requests did not wait for it"
    page = client.get("/metrics").text
    assert 'miniflow_async_loop_held_seconds_total{task="block"}' in page
    assert "miniflow_async_loop_lag_max_seconds " in page
    log = (server.folder / "logs" / "app.log").read_text("utf-8")
    assert "task block holds up the loop that all async jobs share" in log


def test_a_task_that_computes_lets_the_server_in_every_half_millisecond(client: httpx.Client) -> None:
    assert end_of(client, submit(client, "patience")["id"])["result"] == 0.0005


def test_a_server_without_workers_has_none_and_serves_no_queue(tmp_path: Path) -> None:
    with Server(tmp_path, {"sample.py": TASKS}, workers=0) as server, server.client() as client:
        answer = client.get("/api/v1/workers").json()
        assert (answer["items"], answer["slots"]) == ([], {"thread": 0, "async": 0, "process": 0})
        assert answer["event_loop"]["held_by"] == {}
        submit(client, "add", {"a": 1})
        assert queue(client, "default")["served"] is False
