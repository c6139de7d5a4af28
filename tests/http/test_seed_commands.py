"""The commands that the texts MiniFlow grew out of print, as they print them, against the sample tasks.

Each command is the seed's own line, run by curl; only the port is another. The SQL runs in another process, as in a shell.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from tests.api import SAMPLES
from tests.invariants import check_invariants
from tests.servers import Server
from tests.waiting import wait_until

UUID4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
ORIGINS = re.compile(r"http://(localhost|127\.0\.0\.1):80[08]0")

SQL = """
import json, sys, apsw
found = apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READONLY).execute(sys.argv[2])
rows = [dict(zip([column[0] for column in found.description], row)) for row in found]
print(json.dumps(rows))
"""


class Answer(NamedTuple):
    status: int
    body: Any


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # A job of some seconds is left behind: nobody waits for it.
    with Server(tmp_path_factory.mktemp("seeds"), SAMPLES, grace=0.2, stop_grace=0.2) as server:
        yield server
        assert server.terminate() == 0, server.output()
        check_invariants(server.db, stopped=True)


def run(server: Server, command: str) -> Answer:
    """Run a curl command as it is printed, with this server's address in it."""
    words = shlex.split(ORIGINS.sub(server.url, command))
    assert words[0] == "curl"
    if shutil.which("curl") is None:
        return _without_curl(words[1:])
    ended = subprocess.run(
        [*words, "-sS", "-w", "\n%{http_code}"], capture_output=True, text=True, timeout=30, check=True
    )
    body, _, status = ended.stdout.rpartition("\n")
    return Answer(int(status), json.loads(body))


def _without_curl(words: list[str]) -> Answer:
    method, headers, body, url = "", {}, None, ""
    rest = iter(words)
    for word in rest:
        if word == "-X":
            method = next(rest)
        elif word == "-H":
            name, _, value = next(rest).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = next(rest)
            headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
        else:
            url = word
    answer = httpx.request(method or ("POST" if body else "GET"), url, headers=headers, content=body, trust_env=False)
    return Answer(answer.status_code, answer.json())


def select(server: Server, sql: str) -> list[dict[str, Any]]:
    """Rows of the live file, read by another process."""
    command = [sys.executable, "-c", SQL, str(server.db), sql]
    found: list[dict[str, Any]] = json.loads(
        subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    )
    return found


def status_becomes(server: Server, command: str, wanted: str, timeout_s: float = 15) -> Answer:
    return wait_until(
        lambda: run(server, command),
        timeout_s,
        f"{wanted} from {command}",
        until=lambda answer: answer.body["status"] == wanted,
    )


def test_the_mini_workflow_engine(seeded: Server) -> None:
    submitted = run(
        seeded,
        'curl -X POST http://localhost:8000/submit -H "Content-Type: application/json" '
        """-d '{"task":"example_task","payload":{"text":"Hello mini workflow engine"}}'""",
    )
    assert submitted.status == 200
    assert submitted.body.keys() == {"job_id"}
    job = submitted.body["job_id"]
    assert re.fullmatch(UUID4, job)

    status = run(seeded, f"curl http://localhost:8000/status/{job}")
    assert status.status == 200
    assert status.body["job_id"] == job
    assert status.body["status"] in ("queued", "started", "finished")
    status_becomes(seeded, f"curl http://localhost:8000/status/{job}", "finished")

    result = run(seeded, f"curl http://localhost:8000/result/{job}")
    assert result == (200, {"job_id": job, "result": {"uppercase": "HELLO MINI WORKFLOW ENGINE", "token_count": 4}})

    assert run(seeded, "curl http://localhost:8000/health") == (200, {"ok": True, "status": "ok"})

    rows = select(seeded, f"SELECT * FROM job_log WHERE job_id='{job}' ORDER BY id")
    assert [(row["level"], row["message"]) for row in rows] == [
        ("INFO", "Started processing payload keys=['text']"),
        ("INFO", 'Computed result={"uppercase": "HELLO MINI WORKFLOW ENGINE", "token_count": 4}'),
    ]
    assert rows[0].keys() >= {"id", "job_id", "level", "message", "ts"}

    (meta,) = select(
        seeded,
        f"SELECT job_id,status,task_name,created_at,finished_at,result_preview FROM job_meta WHERE job_id='{job}'",
    )
    assert (meta["status"], meta["task_name"]) == ("finished", "example_task")
    assert json.loads(meta["result_preview"])["token_count"] == 4
    assert meta["created_at"] <= meta["finished_at"]


def test_the_mini_workflow_engines_errors(seeded: Server) -> None:
    unknown = run(
        seeded,
        """curl -X POST http://localhost:8000/submit -H "Content-Type: application/json" -d '{"task":"nothing","payload":{}}'""",
    )
    assert unknown == (400, {"detail": "Unknown task"})
    assert run(seeded, "curl http://localhost:8000/status/nothing") == (404, {"detail": "Job not found"})

    with seeded.client() as client:  # what it takes are two seconds, and a curl may take as long
        client.post("/api/v1/queues/default/pause").raise_for_status()
        slow = run(
            seeded,
            'curl -X POST http://localhost:8000/submit -H "Content-Type: application/json" '
            """-d '{"task":"heavy_compute","payload":{}}'""",
        )
        early = run(seeded, f"curl http://localhost:8000/result/{slow.body['job_id']}")
        client.post("/api/v1/queues/default/resume").raise_for_status()
    assert early.status == 404
    assert early.body["detail"] == "Result not available yet"


def test_a_failure_of_the_mini_workflow_engine_is_in_its_log(seeded: Server) -> None:
    job = run(
        seeded,
        """curl -X POST http://localhost:8000/submit -H "Content-Type: application/json" """
        """-d '{"task":"example_task","payload":{"text":5}}'""",
    ).body["job_id"]

    status_becomes(seeded, f"curl http://localhost:8000/status/{job}", "failed")

    rows = select(seeded, f"SELECT level, message FROM job_log WHERE job_id='{job}' AND level='ERROR'")
    assert [row["message"] for row in rows] == ["Task failed: 'int' object has no attribute 'upper'"]


def test_the_rq_lesson(seeded: Server) -> None:
    submitted = run(
        seeded,
        'curl -X POST http://127.0.0.1:8000/submit-job -H "Content-Type: application/json" '
        """-d '{"task":"heavy_compute","payload":{"user_id":101,"message":"hello"}}'""",
    )
    assert submitted.status == 200
    assert submitted.body.keys() == {"job_id", "status", "submitted_at"}
    assert re.fullmatch("JOB-" + UUID4, submitted.body["job_id"])
    assert submitted.body["status"] in ("queued", "started")
    assert RFC3339.fullmatch(submitted.body["submitted_at"])
    job = submitted.body["job_id"]

    finished = status_becomes(seeded, f"curl http://127.0.0.1:8000/job-status/{job}", "finished")

    body = finished.body
    assert body.keys() >= {"job_id", "status", "meta", "enqueued_at", "started_at", "ended_at", "result", "exc_info"}
    assert body.keys() >= {"id", "created_at", "updated_at"}
    assert body["job_id"] == body["id"] == job
    assert body["meta"].keys() == {"job_id", "submitted_at", "payload", "task_name", "tags"}
    assert body["meta"]["payload"] == {"user_id": 101, "message": "hello"}
    assert body["meta"]["task_name"] == "heavy_compute"
    assert body["meta"]["tags"] == ["api", "v1"]
    assert body["result"] == {
        "echo": {"user_id": 101, "message": "hello"},
        "summary": "Processed keys: ['user_id', 'message']",
    }
    assert body["exc_info"] is None
    assert body["enqueued_at"] <= body["started_at"] < body["ended_at"]


def test_the_job_processing_system(seeded: Server) -> None:
    created = run(seeded, "curl -X POST http://localhost:8000/create-jobs/")
    assert created.status == 200
    assert created.body["status"] == "enqueued"
    assert created.body["jobs"][0] == {"job_id": created.body["job_id"], "job": "TruncateTable"}
    job = created.body["job_id"]

    status = status_becomes(seeded, f"curl http://localhost:8000/job-status/{job}", "completed")

    assert status.body.keys() >= {"id", "status", "result", "created_at", "updated_at"}
    assert status.body.keys() >= {"job_id", "meta", "enqueued_at", "started_at", "ended_at", "exc_info"}
    assert status.body["id"] == job
    assert status.body["result"] == "Table public.users truncated successfully"

    rows = select(seeded, "SELECT * FROM job_statuses ORDER BY created_at DESC LIMIT 5;")
    assert len(rows) == 5
    assert rows[0].keys() >= {"id", "status", "result", "error", "retry_count", "created_at", "updated_at"}
    (own,) = select(seeded, f"SELECT * FROM job_statuses WHERE id='{job}'")
    assert (own["status"], own["result"], own["job_class"]) == (
        "completed",
        "Table public.users truncated successfully",
        "TruncateTable",
    )


def test_the_distributed_workflow_engine(seeded: Server) -> None:
    created = run(
        seeded,
        """curl -X POST http://localhost:8080/api/v1/jobs -H "Content-Type: application/json" """
        """-d '{"type":"compute","payload":{"iterations":5000},"max_retries":3}'""",
    )
    assert created.status == 201
    job = created.body
    assert job.keys() >= {
        "id", "idempotency_key", "step_index", "type", "payload", "status", "attempt", "max_retries", "created_at", "updated_at",
    }  # fmt: skip
    assert re.fullmatch(UUID, job["id"])
    assert re.fullmatch(UUID, job["idempotency_key"])
    expected = {
        "step_index": 0,
        "type": "compute",
        "payload": {"iterations": 5000},
        "status": "queued",
        "attempt": 0,
        "max_retries": 3,
    }
    assert {key: job[key] for key in expected} == expected
    assert RFC3339.fullmatch(job["created_at"])
    assert job["created_at"].endswith("Z")

    done = status_becomes(seeded, f"curl http://localhost:8080/api/v1/jobs/{job['id']}", "completed")
    assert done.body.keys() >= {"id", "type", "status", "attempt", "worker_id", "started_at", "completed_at"}
    assert done.body["attempt"] == 1

    listed = run(seeded, 'curl "http://localhost:8080/api/v1/jobs?status=completed"')
    assert listed.status == 200
    assert job["id"] in {item["id"] for item in listed.body["items"]}
    assert {item["status"] for item in listed.body["items"]} == {"completed"}

    health = run(seeded, "curl http://localhost:8080/health")
    assert health.status == 200
    assert health.body["status"] == "ok"


def test_a_multi_step_workflow_of_the_distributed_workflow_engine(seeded: Server) -> None:
    started = run(
        seeded,
        """curl -X POST http://localhost:8080/api/v1/workflows -H "Content-Type: application/json" -d '{
    "name": "data-pipeline",
    "steps": [
      {"name":"extract","type":"transform","payload":{"source":"db"},"max_retries":3},
      {"name":"process","type":"compute","payload":{"iterations":1000},"max_retries":2},
      {"name":"notify","type":"notify","payload":{"channel":"slack"},"max_retries":1}
    ]
  }'""",
    )
    assert started.status == 201
    workflow = started.body
    assert re.fullmatch(UUID, workflow["id"])
    assert RFC3339.fullmatch(workflow["created_at"])
    expected = {"name": "data-pipeline", "status": "running", "current_step": 0, "total_steps": 3}
    assert {key: workflow[key] for key in expected} == expected

    done = status_becomes(seeded, f"curl http://localhost:8080/api/v1/workflows/{workflow['id']}", "completed")
    assert (done.body["current_step"], done.body["total_steps"]) == (3, 3)
    assert RFC3339.fullmatch(done.body["completed_at"])
    steps = done.body["steps"]
    assert [(step["name"], step["type"], step["status"]) for step in steps] == [
        ("extract", "transform", "completed"),
        ("process", "compute", "completed"),
        ("notify", "notify", "completed"),
    ]
    for before, after in itertools.pairwise(steps):
        assert before["completed_at"] <= after["started_at"]


def test_a_flaky_job_has_three_chances_with_two_retries(seeded: Server) -> None:
    created = run(
        seeded,
        """curl -X POST http://localhost:8080/api/v1/jobs -H "Content-Type: application/json" """
        """-d '{"type":"flaky","payload":{"failure_rate":1.0},"max_retries":2,"retry":{"base":0.01}}'""",
    )

    dead = status_becomes(seeded, f"curl http://localhost:8080/api/v1/jobs/{created.body['id']}", "dead_letter")

    assert dead.body["attempt"] == 3


@pytest.mark.parametrize("task", ["default", "compute", "notify", "transform", "noop"])
def test_each_type_of_the_load_test_runs(seeded: Server, task: str) -> None:
    created = run(
        seeded,
        f"""curl -X POST http://localhost:8080/api/v1/jobs -H "Content-Type: application/json" """
        f"""-d '{{"type":"{task}","payload":{{"seed":true,"index":1,"iterations":1000}},"max_retries":3}}'""",
    )

    status_becomes(seeded, f"curl http://localhost:8080/api/v1/jobs/{created.body['id']}", "completed")


def test_the_etl_example(seeded: Server) -> None:
    created = run(
        seeded,
        """curl -X POST http://localhost:8000/create-jobs/ """
        """-d '{"job":"DataImportJob","queue":"etl","source":"external_api","target":"data_warehouse"}'""",
    )

    done = status_becomes(seeded, f"curl http://localhost:8000/job-status/{created.body['job_id']}", "completed")

    assert done.body["result"] == "Imported 100 rows from external_api into data_warehouse."
