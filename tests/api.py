"""Talking to a server over HTTP, in the words of the tests: submit, wait for the end, and hold an error to its shape."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from miniflow.states import TERMINAL
from tests.servers import ROOT
from tests.waiting import wait_until

Json = dict[str, Any]

PROBLEM = "application/problem+json"
SAMPLES = {path.name: path.read_text("utf-8") for path in (ROOT / "tasks").glob("*.py")}
"""The sample tasks of the checkout."""

TASKS = '''
import pathlib
import time
from typing import Any

from miniflow import NonRetryable, current_job, task


@task
def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


@task
def whole(payload: dict[str, Any]) -> dict[str, Any]:
    return payload


@task
def hold(gate: str, started: str = "") -> str:
    """Run until the file ``gate`` is there, or somebody cancels."""
    job = current_job()
    if started:
        pathlib.Path(started).touch()
    while not pathlib.Path(gate).exists():
        job.check_cancelled()
        time.sleep(0.01)  # the task, not a test, waits here
    return "let go"


@task(max_retries=0)
def bad(text: str = "no") -> None:
    raise ValueError(text)


@task(max_retries=5, retry=[3600])
def bad_for_long() -> None:
    raise ValueError("not now")


@task(max_retries=0)
def bad_until(gate: str) -> str:
    """Fails until the file ``gate`` is there."""
    if not pathlib.Path(gate).exists():
        raise ValueError("not yet")
    return "good now"


@task
def chatty(lines: int = 3) -> None:
    for n in range(lines):
        current_job().log(f"line {n}", level="INFO" if n % 2 == 0 else "WARNING")


@task
def count(file: str) -> None:
    """One line in ``file`` for each run."""
    with open(file, "a") as f:
        f.write(current_job().job_id + "\\n")
'''
"""The task file of the HTTP tests."""


def submit(client: httpx.Client, task: str, payload: Json | None = None, **options: Any) -> Json:
    """Submit one job; the job as the 201 shows it."""
    answer = client.post("/api/v1/jobs", json={"task": task, "payload": payload or {}, **options})
    assert answer.status_code == 201, answer.text
    job: Json = answer.json()
    return job


def get(client: httpx.Client, job_id: str, wait: float | None = None) -> Json:
    answer = client.get(f"/api/v1/jobs/{job_id}", params={} if wait is None else {"wait": wait})
    assert answer.status_code == 200, answer.text
    job: Json = answer.json()
    return job


def committed(client: httpx.Client) -> None:
    """What was read in the file is counted, and the next look at the changes begins after it: a moment after the commit both are,
    and before the next group. Each explanation is one."""
    assert client.get("/api/v1/jobs/nobody/explain").status_code == 404


def end_of(client: httpx.Client, job_id: str, timeout_s: float = 10) -> Json:
    """The job when it has ended."""
    return wait_until(
        lambda: get(client, job_id, wait=min(timeout_s, 5)),
        timeout_s,
        f"the end of job {job_id}",
        until=lambda job: job["status"] in TERMINAL,
    )


def wait_for_status(client: httpx.Client, job_id: str, status: str, timeout_s: float = 10) -> Json:
    return wait_until(
        lambda: get(client, job_id),
        timeout_s,
        f"job {job_id} to be {status}",
        until=lambda job: job["status"] == status,
    )


def all_ended(client: httpx.Client, job_ids: Iterable[str], timeout_s: float = 30) -> list[Json]:
    return [end_of(client, job_id, timeout_s) for job_id in job_ids]


def everything_ended(client: httpx.Client, timeout_s: float = 60, *, stalled_s: float | None = None) -> None:
    """Nothing waits and nothing runs any more. With ``stalled_s`` it may take as long as it needs (how many jobs there are is up
    to the machine), but not that long without one of them ending."""

    def left() -> int:
        answer = client.get("/api/v1/jobs", params={"status": "waiting,running", "limit": 1})
        assert answer.status_code == 200, answer.text
        total: int = answer.json()["total"]
        return total

    before = left()
    while stalled_s is not None and before:
        before = wait_until(
            left, stalled_s, "another job to end (how many have not)", until=partial(operator.gt, before)
        )
    wait_until(left, timeout_s, "all jobs to end (how many have not)", until=lambda n: n == 0)


def assert_problem(
    answer: httpx.Response, status: int, code: str | None = None, field: str | None = None, says: str = ""
) -> Json:
    """The answer is an error in its one shape: problem details under /api/, ``{"detail"}`` elsewhere, and it names its fault."""
    shown = f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:500]}"
    assert answer.status_code == status, shown
    body: Json = answer.json()
    assert answer.headers.get("x-request-id"), shown
    assert len(body["detail"].split()) >= 2, f"says too little: {shown}"
    assert says in body["detail"], shown
    assert "Traceback" not in answer.text, shown
    if answer.request.url.path.startswith("/api/"):
        assert answer.headers["content-type"] == PROBLEM, shown
        assert body.keys() >= {"title", "status", "detail", "code", "request_id"}, shown
        assert body["status"] == status, shown
        assert body["request_id"] == answer.headers["x-request-id"], shown
        if code is not None:
            assert body["code"] == code, shown
    else:
        assert answer.headers["content-type"].startswith("application/json"), shown
        assert body.keys() <= {"detail", "field", "status", "error"}, shown
    if field is not None:
        assert body.get("field") == field, shown
    return body


def still_answers(client: httpx.Client) -> None:
    """After whatever was done to it, the server takes a job and runs it."""
    assert client.get("/health").json() == {"ok": True, "status": "ok"}
    assert client.get("/ready").status_code == 200
    job = submit(client, "add", {"a": 1})
    assert end_of(client, job["id"])["result"] == 3


def lines_of(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []
