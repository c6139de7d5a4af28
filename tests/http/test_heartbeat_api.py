"""Progress and heartbeats as a client and the command line show them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from miniflow import Client
from miniflow.cli import cli
from miniflow.commands.words import coarse
from tests.api import Json, end_of, get, submit, wait_for_status
from tests.invariants import check_invariants
from tests.servers import Server
from tests.waiting import wait_until

TASKS = '''
import pathlib
import time

from miniflow import JobContext, task


@task(heartbeat=60, on_stall="warn")
def steps(gate: str, job: JobContext) -> str:
    """Half of it is done until the file ``gate`` is there."""
    job.progress(0, 10)
    time.sleep(0.25)
    job.progress(5, 10, "half of it")
    while not pathlib.Path(gate).exists():
        job.check_cancelled()
        time.sleep(0.01)
    return "done"
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), {"steps.py": TASKS}, stop_grace=1.0) as running:
        yield running
        assert running.terminate() == 0, running.output()
        check_invariants(running.db, stopped=True)


@pytest.fixture
def run(server: Server) -> Callable[..., str]:
    """What a command prints that is run in this process, against the server."""

    def invoke(*arguments: str) -> str:
        settings = {"MINIFLOW_URL": server.url, "MINIFLOW_TOKEN": "", "NO_COLOR": "1", "COLUMNS": "200"}
        result = CliRunner().invoke(cli, arguments, env=settings, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


def test_a_job_says_how_far_it_is_and_how_long_it_will_take(
    run: Callable[..., str], client: httpx.Client, tmp_path: Path
) -> None:
    job_id = submit(client, "steps", {"gate": str(tmp_path / "gate")})["id"]
    job = wait_until(
        lambda: get(client, job_id), what="half of it", until=lambda job: job.get("progress", {}).get("done") == 5
    )
    told = job["progress"]
    assert (told["total"], told["percent"], told["message"]) == (10, 50, "half of it")
    assert told["remaining"] >= 0.2  # as long as the first half took: 0.25 s, or what the machine made of it
    assert told["at"].endswith("Z")
    assert f"5 of 10, about {coarse(max(told['remaining'], 1))} left, half of it" in run("show", job_id)

    (tmp_path / "gate").touch()
    ended = end_of(client, job_id)
    assert ended["progress"]["done"] == 5


def test_a_stalled_job_is_shown_and_ends_by_its_policy(
    run: Callable[..., str], client: httpx.Client, tmp_path: Path
) -> None:
    gate = {"gate": str(tmp_path / "never")}
    warned = submit(client, "steps", gate, heartbeat=1)
    failed = submit(client, "steps", gate, heartbeat=1, on_stall="fail", max_retries=9)
    assert (warned["heartbeat"], warned["on_stall"]) == (1, "warn")

    ended = end_of(client, failed["id"])
    assert (ended["status"], ended["attempt"]) == ("dead_letter", 1)
    assert ended["last_error"].startswith("stalled: silent for ")
    assert "stalled_at" not in ended

    job = wait_until(lambda: get(client, warned["id"]), what="stalled_at", until=lambda job: "stalled_at" in job)
    assert job["status"] == "running"
    shown = run("show", warned["id"])
    assert "nothing was heard of it for longer than its heartbeat" in shown
    assert "1.0 s; silent for longer it is stalled, and it is only said" in shown
    (busy,) = [one for one in client.get("/api/v1/workers").json()["items"] if one.get("job_id") == warned["id"]]
    assert busy["stalled"] is True
    assert busy["silent_for"] >= 1
    assert "stalled" in run("workers")
    assert 'jobs_stalled_total{task="steps"} 2.0' in client.get("/metrics").text
    assert client.post(f"/api/v1/jobs/{warned['id']}/cancel").status_code == 202
    assert end_of(client, warned["id"])["status"] == "cancelled"


def test_a_client_and_the_command_line_can_ask_for_a_heartbeat(
    server: Server, run: Callable[..., str], client: httpx.Client, tmp_path: Path
) -> None:
    (tmp_path / "gate").touch()
    with Client(server.url) as python:
        job = python.submit("steps", {"gate": str(tmp_path / "gate")}, heartbeat=30, on_stall="fail")
        assert (python.get(job).heartbeat, python.get(job).on_stall) == (30.0, "fail")
        assert (python.task("steps").heartbeat, python.task("steps").on_stall) == (60.0, "warn")
    words = ("submit", "steps", f"gate={tmp_path / 'gate'}", "--heartbeat", "2m", "--on-stall", "retry", "--quiet")
    job_id = run(*words).strip()
    found: Json = wait_for_status(client, job_id, "completed")
    assert (found["heartbeat"], found["on_stall"]) == (120.0, "retry")
    assert "1 min; silent for longer" in run("tasks", "steps")


@pytest.mark.parametrize(
    ("options", "field"), [({"heartbeat": 0.1}, "heartbeat"), ({"heartbeat": 5, "on_stall": "sing"}, "on_stall")]
)
def test_a_wrong_promise_is_refused_by_its_name(client: httpx.Client, options: Json, field: str) -> None:
    answer = client.post("/api/v1/jobs", json={"task": "steps", "payload": {"gate": "x"}, **options})
    assert (answer.status_code, answer.json()["field"]) == (422, field)
