"""The classic routes: keys, names of states and errors as those who call them expect them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api import all_ended, assert_problem, end_of, get, submit, wait_for_status
from tests.waiting import wait_until

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def classic(client: httpx.Client, task: str, payload: dict[str, Any] | None = None, **more: Any) -> str:
    answer = client.post("/submit", json={"task": task, "payload": payload or {}, **more})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["job_id"])


def rq(client: httpx.Client, task: str, payload: dict[str, Any] | None = None, **more: Any) -> str:
    answer = client.post("/submit-job", json={"task": task, "payload": payload or {}, **more})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["job_id"])


# --------------------------------------------------------------------------------------------- /submit, /status, /result


def test_submit_answers_200_with_the_id_and_nothing_else(client: httpx.Client) -> None:
    answer = client.post("/submit", json={"task": "add", "payload": {"a": 1}})

    assert answer.status_code == 200
    assert answer.json().keys() == {"job_id"}
    assert UUID4.fullmatch(answer.json()["job_id"])


def test_a_submitted_job_is_seen_by_the_canonical_api(client: httpx.Client) -> None:
    job_id = classic(client, "add", {"a": 1})

    assert end_of(client, job_id)["result"] == 3


def test_submit_wants_a_payload(client: httpx.Client) -> None:
    assert_problem(client.post("/submit", json={}), 422, field="payload")
    assert_problem(client.post("/submit", json={"task": "add", "payload": 5}), 422, field="payload")


def test_submit_refuses_an_unknown_task_in_the_seeds_words(client: httpx.Client) -> None:
    answer = client.post("/submit", json={"task": "nothing", "payload": {}})

    assert (answer.status_code, answer.json()) == (400, {"detail": "Unknown task"})


def test_submit_checks_the_payload(client: httpx.Client) -> None:
    assert_problem(client.post("/submit", json={"task": "add", "payload": {"a": "x"}}), 422, field="payload.a")


def test_status_goes_from_queued_over_started_to_finished(client: httpx.Client, tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    job_id = classic(client, "hold", {"gate": str(gate), "started": str(started)})
    first = client.get(f"/status/{job_id}").json()
    wait_until(started.exists, 10, "the job to begin")
    wait_for_status(client, job_id, "running")
    second = client.get(f"/status/{job_id}").json()
    gate.touch()
    end_of(client, job_id)
    third = client.get(f"/status/{job_id}").json()

    assert first["job_id"] == job_id
    assert first["status"] in ("queued", "started")
    assert second["status"] == "started"
    assert third["status"] == "finished"


@pytest.mark.parametrize("route", ["/status", "/result", "/logs", "/job-status"])
def test_an_unknown_job_is_404_in_the_seeds_words(client: httpx.Client, route: str) -> None:
    answer = client.get(f"{route}/no-such-job")

    assert (answer.status_code, answer.json()) == (404, {"detail": "Job not found"})


def test_a_result_that_is_not_there_yet_is_404_and_says_when_to_come_back(client: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job_id = classic(client, "hold", {"gate": str(gate)})

    answer = client.get(f"/result/{job_id}")

    gate.touch()
    assert answer.status_code == 404
    assert answer.json()["detail"] == "Result not available yet"
    assert answer.json()["status"] in ("queued", "started")
    assert answer.headers["retry-after"] == "1"
    assert client.get(f"/result/{job_id}", params={"wait": 10}).json() == {"job_id": job_id, "result": "let go"}


def test_a_result_that_will_never_be_is_404_with_the_error(client: httpx.Client) -> None:
    job_id = classic(client, "bad", {"text": "oh"})
    end_of(client, job_id)

    answer = client.get(f"/result/{job_id}")

    assert answer.status_code == 404
    assert answer.json()["status"] == "failed"
    assert answer.json()["error"] == "ValueError: oh"
    assert "retry-after" not in answer.headers


def test_a_cancelled_job_is_not_said_to_have_failed(client: httpx.Client) -> None:
    job = submit(client, "add", {"a": 1}, delay=3600)
    client.post(f"/api/v1/jobs/{job['id']}/cancel")

    answer = client.get(f"/result/{job['id']}")

    assert answer.status_code == 404
    assert "cancelled" in answer.json()["detail"]
    assert client.get(f"/status/{job['id']}").json()["status"] == "failed"
    assert client.get(f"/job-status/{job['id']}").json()["status"] == "canceled"


def test_logs_come_in_pages(client: httpx.Client) -> None:
    job_id = classic(client, "chatty", {"lines": 3})
    end_of(client, job_id)

    first = client.get(f"/logs/{job_id}", params={"limit": 1}).json()
    rest = client.get(f"/logs/{job_id}", params={"after_id": first["next_after_id"]}).json()
    warnings = client.get(f"/logs/{job_id}", params={"level": "WARNING"}).json()

    assert first["job_id"] == job_id
    assert [line["message"] for line in first["logs"] + rest["logs"]] == ["line 0", "line 1", "line 2"]
    assert first["logs"][0].keys() >= {"id", "level", "message", "ts"}
    assert [line["message"] for line in warnings["logs"]] == ["line 1"]


def test_logs_are_plain_text_under_the_api(client: httpx.Client) -> None:
    job_id = classic(client, "chatty", {"lines": 2})
    end_of(client, job_id)

    answer = client.get(f"/api/v1/logs/{job_id}")

    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-disposition"] == f'inline; filename="{job_id}.log"'
    assert [line.split(" ", 1)[1] for line in answer.text.splitlines()] == ["INFO  line 0", "WARNING line 1"]


def test_a_key_makes_a_classic_submit_repeatable(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "classic-1"}
    first = client.post("/submit", json={"task": "add", "payload": {"a": 1}}, headers=headers).json()
    second = client.post("/submit", json={"task": "add", "payload": {"a": 1}}, headers=headers).json()
    other = client.post("/submit", json={"task": "add", "payload": {"a": 2}}, headers=headers)

    assert first == second
    assert_problem(other, 409, says="classic-1")


@pytest.mark.parametrize(("route", "field"), [("/submit", "idempotency_key"), ("/submit-job", "request_id")])
def test_a_key_of_a_classic_submit_has_the_limits_of_all_keys(client: httpx.Client, route: str, field: str) -> None:
    body = {"task": "add", "payload": {"a": 1}}

    assert_problem(client.post(route, json={**body, field: "x" * 256}), 422, field=field)
    assert_problem(client.post(route, json={**body, field: ""}), 422, field=field)
    assert_problem(client.post(route, json=body, headers={"Idempotency-Key": "x" * 256}), 422, field="Idempotency-Key")
    assert_problem(
        client.post(route, json={**body, field: "one"}, headers={"Idempotency-Key": "two"}), 422, field=field
    )


# ---------------------------------------------------------------------------------------------- /submit-job, /job-status


def test_submit_job_answers_the_three_keys(client: httpx.Client) -> None:
    answer = client.post("/submit-job", json={"task": "add", "payload": {"a": 1}})

    body = answer.json()
    assert answer.status_code == 200
    assert body.keys() == {"job_id", "status", "submitted_at"}
    assert body["job_id"].startswith("JOB-")
    assert UUID4.fullmatch(body["job_id"].removeprefix("JOB-"))


def test_job_status_of_a_finished_job_has_all_keys_of_both_seeds(client: httpx.Client) -> None:
    job_id = rq(client, "add", {"a": 1})
    end_of(client, job_id)

    body = client.get(f"/job-status/{job_id}").json()

    assert body.keys() >= {
        "job_id", "status", "meta", "enqueued_at", "started_at", "ended_at", "result", "exc_info", "id",
        "created_at", "updated_at",
    }  # fmt: skip
    assert body["status"] == "finished"
    assert body["result"] == 3
    assert body["exc_info"] is None
    assert body["meta"] == {
        "job_id": job_id,
        "submitted_at": body["created_at"],
        "payload": {"a": 1},
        "task_name": "add",
        "tags": ["api", "v1"],
    }
    assert body["enqueued_at"] <= body["started_at"] <= body["ended_at"]


def test_a_failed_job_has_no_retry_unless_asked_and_shows_its_traceback(client: httpx.Client) -> None:
    job_id = rq(client, "bad", {"text": "boom"})
    end_of(client, job_id)

    body = client.get(f"/job-status/{job_id}").json()

    assert body["status"] == "failed"
    assert body["result"] is None
    assert body["exc_info"].startswith("Traceback")
    assert body["exc_info"].rstrip().endswith("ValueError: boom")
    assert get(client, job_id)["attempt"] == 1


def test_retry_takes_max_and_interval(client: httpx.Client) -> None:
    job_id = rq(client, "bad", {}, retry={"max": 2, "interval": [0, 3600]})

    job = wait_for_status(client, job_id, "retrying")
    job = wait_until(
        lambda: get(client, job_id),
        5,
        "the second failure",
        until=lambda j: j["attempt"] == 2 and j["status"] == "retrying",
    )

    assert job["max_retries"] == 2
    assert client.get(f"/job-status/{job_id}").json()["status"] == "scheduled"


@pytest.mark.parametrize(
    "retry", [{"max": 0}, {"max": -1}, {"interval": []}, {"interval": [-1]}, {"interval": 1e300}, 5]
)
def test_a_retry_out_of_range_is_refused(client: httpx.Client, retry: Any) -> None:
    answer = client.post("/submit-job", json={"task": "bad", "retry": retry})

    assert_problem(answer, 422)
    assert answer.json()["field"].startswith("retry")


def test_submit_job_wants_a_task_and_knows_it(client: httpx.Client) -> None:
    assert_problem(client.post("/submit-job", json={"payload": {}}), 422, field="task")
    answer = client.post("/submit-job", json={"task": "os.system", "payload": {}})
    assert (answer.status_code, answer.json()) == (400, {"detail": "Unknown task: os.system"})


def test_the_request_id_of_the_body_makes_a_submit_job_repeatable(client: httpx.Client) -> None:
    first = client.post("/submit-job", json={"task": "add", "payload": {"a": 1}, "request_id": "rq-1"}).json()
    end_of(client, first["job_id"])
    second = client.post("/submit-job", json={"task": "add", "payload": {"a": 1}, "request_id": "rq-1"}).json()

    assert second["job_id"] == first["job_id"]
    assert second["status"] == "finished"


def test_a_ttl_ends_a_job_that_nobody_began(client: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    holds = [classic(client, "hold", {"gate": str(gate), "started": str(tmp_path / str(n))}) for n in range(4)]
    wait_until(
        lambda: sum((tmp_path / str(n)).exists() for n in range(4)),
        10,
        "all workers to be busy",
        until=lambda n: n == 4,
    )

    job_id = rq(client, "add", {"a": 1}, ttl=0.05)
    end_of(client, job_id)

    gate.touch()
    all_ended(client, holds)
    assert client.get(f"/job-status/{job_id}").json()["status"] == "failed"
    assert "ttl" in client.get(f"/job-status/{job_id}").json()["error"]


# --------------------------------------------------------------------------------------------------------- /create-jobs/


@pytest.mark.parametrize("path", ["/create-jobs", "/create-jobs/"])
def test_one_job_can_be_created_by_its_class(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json={"job": "add", "queue": "low", "a": 4})

    body = answer.json()
    assert answer.status_code == 200
    assert body == {"job_id": body["job_id"], "status": "enqueued", "jobs": [{"job_id": body["job_id"], "job": "add"}]}
    job = end_of(client, body["job_id"])
    assert (job["result"], job["queue"]) == (6, "low")


def test_without_the_demo_tasks_the_demo_set_is_refused_with_the_remedy(client: httpx.Client) -> None:
    assert_problem(client.post("/create-jobs/"), 422, field="job", says="miniflow init")


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"job": "nothing"}, 400, "no task is registered"),
        ({"a": 1}, 422, "job: is missing"),
        ({"job": 5}, 422, "job: expected"),
        ({"job": "add", "queue": 5, "a": 1}, 422, "queue: expected"),
        ({"job": "add", "queue": "a b", "a": 1}, 422, "queue: "),
        ({"job": "add", "a": "x"}, 422, "payload.a: expected int"),
    ],
)
def test_a_job_that_cannot_be_created_is_refused_by_name(
    client: httpx.Client, body: dict[str, Any], status: int, says: str
) -> None:
    assert_problem(client.post("/create-jobs/", json=body), status, says=says)
