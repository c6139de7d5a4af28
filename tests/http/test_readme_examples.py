"""The examples of the README, run as they stand there: task files, each curl line in its order, and the sqlite3 lines."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from miniflow.scaffold import samples
from tests.servers import ROOT, Server, environment

README = (ROOT / "README.md").read_text("utf-8")

HOST = "localhost:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.+?)\n```$", README, re.MULTILINE | re.DOTALL)


A_PROGRAM = re.compile(r"^from miniflow import (Async)?Client\b", re.MULTILINE)
A_TEST = re.compile(r"^def test_", re.MULTILINE)
PYTHON = [block for block in blocks("python") if not A_PROGRAM.search(block) and not A_TEST.search(block)]
PROGRAMS = [block for block in blocks("python") if A_PROGRAM.search(block)]
FLOWS = dict(re.findall(r"say `tasks/(\w+\.toml)`:\n\n```toml\n(.+?)\n```$", README, re.MULTILINE | re.DOTALL))
SQLITE = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("sqlite3 ")]


class Curl(NamedTuple):
    """A curl command, and the status that the comment above it promises."""

    status: int
    method: str
    url: str
    headers: dict[str, str]
    body: str | None


def curls() -> Iterator[Curl]:
    for block in blocks("bash"):
        for status, command in re.findall(r"^# (\d{3})\b.*\n(curl .+(?:\n[^#\n].*)*)", block, re.MULTILINE):
            yield parse(int(status), shlex.split(command))


def parse(status: int, words: list[str]) -> Curl:
    method, url, headers, body = "GET", "", {}, None
    rest = iter(words[1:])
    for word in rest:
        if word == "-X":
            method = next(rest)
        elif word == "-H":
            name, _, value = next(rest).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = next(rest)
        else:
            assert not word.startswith("-"), f"teach this test the option {word}"
            url = word
    return Curl(status, method, url, headers, body)


def ids(answer: Any) -> list[str]:
    """The ids of jobs in an answer to a submit."""
    if not isinstance(answer, dict):
        return []
    return answer.get("ids") or [answer[key] for key in ("id", "job_id") if key in answer]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the samples, and what the README writes."""
    tasks = {**dict(samples()), **{f"readme_{number}.py": text for number, text in enumerate(PYTHON)}}
    with Server(tmp_path_factory.mktemp("readme"), {**tasks, **FLOWS}) as running:
        yield running


def test_task_files_load(server: Server) -> None:
    assert FLOWS
    assert "was not loaded" not in server.output()
    assert "was not taken up" not in server.output()
    with server.client() as client:
        names = {task["name"] for task in client.get("/api/v1/tasks").json()["items"]}
    assert {"greet", "build_report", "fetch", "SendMail", "invite"} <= names


def test_each_curl_line_is_answered_as_promised(server: Server) -> None:
    commands = list(curls())
    assert len(commands) == len(re.findall(r"^curl ", "\n".join(blocks("bash")), re.MULTILINE)), (
        "one has no status above it"
    )
    job = ""
    with server.client() as client:
        for command in commands:
            path = command.url.removeprefix(HOST).replace("ID", job)
            body = command.body and command.body.replace('"ID"', f'"{job}"')
            answer = client.request(command.method, path, headers=command.headers, content=body)
            assert answer.status_code == command.status, f"{command.method} {path}: {answer.text}"
            if command.method == "POST" and (found := ids(answer.json())):
                job = found[0]


def test_the_examples_do_what_the_text_says(server: Server) -> None:
    with server.client() as client:
        refused = client.post("/api/v1/jobs", json={"task": "greet", "payload": {"name": 5}})
        assert (refused.status_code, refused.json()["detail"]) == (422, "payload.name: expected str, got int")
        twice = [client.post("/api/v1/jobs", json={"task": "noop"}, headers={"Idempotency-Key": "k"}) for _ in range(2)]
        assert twice[0].json()["id"] == twice[1].json()["id"]
        assert [answer.headers.get("Idempotency-Replayed") for answer in twice] == [None, "true"]
        other = client.post(
            "/api/v1/jobs", json={"task": "greet", "payload": {"name": "x"}}, headers={"Idempotency-Key": "k"}
        )
        assert other.status_code == 409
        assert run(client, "greet", {"name": "Ada"})["result"] == ["Hello, Ada!"]
        assert run(client, "fetch", {"url": f"{server.url}/health"})["result"] == 200
        missing = run(client, "fetch", {"url": f"{server.url}/nothing"})
        assert (missing["status"], missing["attempt"]) == ("dead_letter", 1)
        mail, report = run(client, "invite", {"guests": ["ada@example.org"]})["result"]
        assert client.get(f"/api/v1/jobs/{mail}", params={"wait": 10}).json()["result"] == "1 to ada@example.org"
        assert client.get(f"/api/v1/jobs/{report}", params={"wait": 10}).json()["result"] == {"pages": 1}


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_of_the_client_run(server: Server, program: str) -> None:
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=environment(MINIFLOW_URL=server.url), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def run(client: httpx.Client, task: str, payload: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A job at its end."""
    accepted = client.post("/api/v1/jobs", json={"task": task, "payload": payload, **options})
    job: dict[str, Any] = client.get(accepted.headers["Location"], params={"wait": 10}).json()
    return job


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="there is no sqlite3 shell here")
@pytest.mark.parametrize("line", SQLITE)
def test_each_sqlite3_line_shows_rows(server: Server, line: str) -> None:
    """Beside the running server, and without hurting it."""
    with server.client() as client:
        run(client, "greet", {"name": "Bo"})
        run(client, "FailedJob", {}, max_retries=0)
        done = subprocess.run(shlex.split(line), cwd=server.folder, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip()
        assert run(client, "greet", {"name": "Bo"})["status"] == "completed"
