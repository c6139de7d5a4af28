"""The canonical API: what each route promises, on a real server."""

from __future__ import annotations

import json
import re
import threading
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from miniflow.errors import InvalidRequest
from miniflow.states import State
from miniflow.web.api import split_batch
from tests.api import TASKS, all_ended, assert_problem, end_of, get, lines_of, still_answers, submit, wait_for_status
from tests.invariants import check_invariants
from tests.servers import Server
from tests.waiting import wait_until

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def held(client: httpx.Client, folder: Path, **options: Any) -> tuple[str, Path]:
    """A job that runs and runs until the file is made; its id and the file."""
    gate, started = folder / "gate", folder / "started"
    job = submit(client, "hold", {"gate": str(gate), "started": str(started)}, **options)
    wait_until(started.exists, 10, "the held job to begin")
    wait_for_status(client, job["id"], "running")
    return job["id"], gate


def ids(page: dict[str, Any]) -> list[str]:
    return [job["id"] for job in page["items"]]


# ----------------------------------------------------------------------------------------------------------- submitting


def test_a_submit_answers_201_with_the_job_and_where_it_is(client: httpx.Client) -> None:
    answer = client.post("/api/v1/jobs", json={"task": "add", "payload": {"a": 1}})

    job = answer.json()
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert UUID7.fullmatch(job["id"])
    assert RFC3339.fullmatch(job["created_at"])
    expected = {
        "task": "add", "type": "add", "queue": "default", "priority": 0, "status": "queued", "payload": {"a": 1}, "attempt": 0,
        "max_retries": 3, "timeout": 900.0, "step_index": 0, "idempotency_key": job["id"],
    }  # fmt: skip
    assert {key: job[key] for key in expected} == expected
    assert end_of(client, job["id"])["result"] == 3


def test_the_place_named_by_location_is_the_job(client: httpx.Client) -> None:
    answer = client.post("/api/v1/jobs", json={"type": "add", "payload": {"a": 1}})

    found = client.get(answer.headers["location"])

    assert found.status_code == 200
    assert found.json()["id"] == answer.json()["id"]


def test_the_submit_and_a_later_look_show_the_same_job(client: httpx.Client) -> None:
    job = submit(client, "add", {"a": 1}, delay=3600, tags=["x"], meta={"y": 1}, description="z", ttl=7200)

    # The times of the one are those of the answer, of the other those of the commit; the answer comes before the change's number.
    times = {"created_at", "updated_at", "change"}
    shown = get(client, job["id"])
    assert {key: value for key, value in shown.items() if key not in times} == {
        key: value for key, value in job.items() if key not in times
    }


def test_all_options_are_taken_and_shown(client: httpx.Client) -> None:
    job = submit(
        client,
        "add",
        {"a": 1},
        queue="reports:eu/1",
        priority="high",
        delay=3600,
        ttl=60,
        timeout=5,
        max_retries=7,
        retry={"base": 0.5, "factor": 3, "max_delay": 9, "jitter": 0},
        idempotency_key="all-options",
        tags=["a", "b"],
        meta={"who": {"is": "it"}},
        description="a description",
        result_ttl=10,
        failure_ttl=20,
    )

    expected = {
        "queue": "reports:eu/1", "priority": 10, "status": "scheduled", "timeout": 5.0, "max_retries": 7,
        "idempotency_key": "all-options", "tags": ["a", "b"], "meta": {"who": {"is": "it"}}, "description": "a description",
    }  # fmt: skip
    assert {key: job[key] for key in expected} == expected
    assert job["scheduled_at"] > job["created_at"]
    assert job["expires_at"] > job["scheduled_at"]
    shown = get(client, job["id"])
    assert {key: shown[key] for key in expected} == expected


def test_run_at_takes_any_zone_and_shows_utc(client: httpx.Client) -> None:
    next_year = time.gmtime().tm_year + 1

    job = submit(client, "add", {"a": 1}, run_at=f"{next_year}-01-01T02:00:00+02:00")

    assert job["status"] == "scheduled"
    assert job["scheduled_at"] == f"{next_year}-01-01T00:00:00.000Z"


def test_a_run_at_that_has_passed_runs_at_once(client: httpx.Client) -> None:
    job = submit(client, "add", {"a": 1}, run_at="2020-01-01T00:00:00Z")

    assert end_of(client, job["id"])["status"] == "completed"


def test_a_delayed_job_runs_when_its_time_has_come(client: httpx.Client) -> None:
    job = submit(client, "add", {"a": 1}, delay=0.3)

    assert job["status"] == "scheduled"
    ended = end_of(client, job["id"])
    assert ended["status"] == "completed"
    assert ended["started_at"] >= job["scheduled_at"]


def test_a_waiting_job_over_its_ttl_expires_and_never_runs(client: httpx.Client, tmp_path: Path) -> None:
    holds = [held(client, _made(tmp_path / str(n))) for n in range(4)]  # every worker is busy
    file = tmp_path / "runs"

    job = submit(client, "count", {"file": str(file)}, ttl=0.1)
    ended = end_of(client, job["id"])

    for _, gate in holds:
        gate.touch()
    all_ended(client, [job_id for job_id, _ in holds])
    assert ended["status"] == "expired"
    assert ended["attempt"] == 0
    assert lines_of(file) == []


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"task": "add", "payload": {"a": "1"}}, "payload.a"),
        ({"task": "add", "payload": {}}, "payload.a"),
        ({"task": "add", "payload": {"a": 1, "c": 2}}, "payload.c"),
        ({"task": "add", "payload": [1]}, "payload"),
        ({"task": "ad", "payload": {}}, "task"),
        ({"payload": {"a": 1}}, "task"),
        ({"task": "", "payload": {}}, "task"),
        ({"task": "add", "type": "bad", "payload": {"a": 1}}, "type"),
        ({"task": "add", "payload": {"a": 1}, "queue": "no spaces"}, "queue"),
        ({"task": "add", "payload": {"a": 1}, "queue": "x" * 101}, "queue"),
        ({"task": "add", "payload": {"a": 1}, "priority": 1001}, "priority"),
        ({"task": "add", "payload": {"a": 1}, "priority": "urgent"}, "priority"),
        ({"task": "add", "payload": {"a": 1}, "delay": -1}, "delay"),
        ({"task": "add", "payload": {"a": 1}, "delay": 1, "run_at": "2100-01-01T00:00:00Z"}, "delay"),
        ({"task": "add", "payload": {"a": 1}, "run_at": "2100-01-01T00:00:00"}, "run_at"),
        ({"task": "add", "payload": {"a": 1}, "run_at": "tomorrow"}, "run_at"),
        ({"task": "add", "payload": {"a": 1}, "run_at": "9999-12-31T23:59:59Z"}, "run_at"),
        ({"task": "add", "payload": {"a": 1}, "ttl": "soon"}, "ttl"),
        ({"task": "add", "payload": {"a": 1}, "timeout": -0.1}, "timeout"),
        ({"task": "add", "payload": {"a": 1}, "max_retries": -1}, "max_retries"),
        ({"task": "add", "payload": {"a": 1}, "max_retries": 1.5}, "max_retries"),
        ({"task": "add", "payload": {"a": 1}, "retry": []}, "retry"),
        ({"task": "add", "payload": {"a": 1}, "retry": {"bases": 1}}, "retry.bases"),
        ({"task": "add", "payload": {"a": 1}, "retry": {"factor": 0}}, "retry"),
        ({"task": "add", "payload": {"a": 1}, "idempotency_key": ""}, "idempotency_key"),
        ({"task": "add", "payload": {"a": 1}, "idempotency_key": "x" * 256}, "idempotency_key"),
        ({"task": "add", "payload": {"a": 1}, "tags": [1]}, "tags[0]"),
        ({"task": "add", "payload": {"a": 1}, "tags": ["x"] * 51}, "tags"),
        ({"task": "add", "payload": {"a": 1}, "meta": []}, "meta"),
        ({"task": "add", "payload": {"a": 1}, "description": "x" * 1001}, "description"),
        ({"task": "add", "payload": {"a": 1}, "priorty": 5}, "priorty"),
    ],
)
def test_a_wrong_field_is_named(client: httpx.Client, body: dict[str, Any], field: str) -> None:
    assert_problem(client.post("/api/v1/jobs", json=body), 422, field=field, says=field)


def test_an_unknown_task_is_refused_with_what_could_be_meant(client: httpx.Client) -> None:
    answer = client.post("/api/v1/jobs", json={"task": "chattty", "payload": {}})

    assert_problem(answer, 422, "unknown_task", "task", says="did you mean chatty?")


def test_only_registered_names_run(client: httpx.Client) -> None:
    assert_problem(client.post("/api/v1/jobs", json={"task": "os.system", "payload": {}}), 422, "unknown_task")


# ----------------------------------------------------------------------------------------------------------- request ids


@pytest.mark.parametrize("body", [{"task": "add", "payload": {"a": 1}}, {"task": "add", "payload": {"a": "x"}}])
def test_the_callers_request_id_comes_back(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.post("/api/v1/jobs", json=body, headers={"X-Request-ID": "from-me.1"})

    assert answer.headers.get_list("x-request-id") == ["from-me.1"]
    assert answer.json()["request_id"] == "from-me.1"


def test_the_request_id_is_the_jobs(client: httpx.Client) -> None:
    answer = client.post("/api/v1/jobs/batch", json=[{"task": "chatty"}], headers={"X-Request-ID": "from-me.2"})

    assert get(client, answer.json()["ids"][0])["request_id"] == "from-me.2"


@pytest.mark.parametrize("given", ["", "x" * 129, "é".encode(), b"a\tb"])
def test_a_request_id_that_cannot_be_shown_is_replaced(client: httpx.Client, given: str | bytes) -> None:
    answer = client.get("/api/v1/jobs", headers={"X-Request-ID": given})

    assert UUID7.fullmatch(answer.headers["x-request-id"])


# ------------------------------------------------------------------------------------------------------ idempotency keys


def test_a_submit_repeated_with_its_key_gives_the_first_job(client: httpx.Client) -> None:
    body = {"task": "add", "payload": {"a": 5}}
    first = client.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": "key-1"})
    end_of(client, first.json()["id"])

    second = client.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": "key-1"})

    assert "idempotency-replayed" not in first.headers
    assert first.json()["idempotency_key"] == "key-1"
    assert second.status_code == 201
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["location"] == first.headers["location"]
    assert second.json()["id"] == first.json()["id"]
    assert second.json()["result"] == 7


def test_a_key_means_the_same_in_the_header_and_in_the_body(client: httpx.Client) -> None:
    first = client.post("/api/v1/jobs", json={"task": "add", "payload": {"a": 5}}, headers={"Idempotency-Key": "key-2"})

    second = submit(client, "add", {"a": 5}, idempotency_key="key-2")

    assert second["id"] == first.json()["id"]


def test_the_order_of_the_fields_does_not_matter_to_a_key(client: httpx.Client) -> None:
    first = submit(client, "whole", {"a": {"x": 1, "y": 2}, "b": 3}, idempotency_key="key-3")

    second = submit(client, "whole", {"b": 3, "a": {"y": 2, "x": 1}}, idempotency_key="key-3")

    assert second["id"] == first["id"]


def test_a_key_used_with_another_body_is_a_conflict_that_names_the_job(client: httpx.Client) -> None:
    first = submit(client, "add", {"a": 5}, idempotency_key="key-4")

    answer = client.post("/api/v1/jobs", json={"task": "add", "payload": {"a": 6}, "idempotency_key": "key-4"})

    assert_problem(answer, 409, "idempotency_conflict", says=first["id"])
    assert "use a new key" in answer.json()["detail"]


def test_two_different_keys_in_one_submit_are_refused(client: httpx.Client) -> None:
    answer = client.post(
        "/api/v1/jobs",
        json={"task": "add", "payload": {"a": 1}, "idempotency_key": "x"},
        headers={"Idempotency-Key": "y"},
    )

    assert_problem(answer, 422, field="idempotency_key")


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_is_1_to_255_characters(client: httpx.Client, key: str) -> None:
    answer = client.post("/api/v1/jobs", json={"task": "add", "payload": {"a": 1}}, headers={"Idempotency-Key": key})

    assert_problem(answer, 422, field="Idempotency-Key")


def test_keys_are_compared_to_their_last_character(client: httpx.Client) -> None:
    keys = ["k", "k\0", "k\0a", "k\0b", "K", "k_", "kx", "k%"]

    jobs = [submit(client, "add", {"a": 1}, idempotency_key=key) for key in keys]

    assert len({job["id"] for job in jobs}) == len(keys)
    assert [submit(client, "add", {"a": 1}, idempotency_key=key)["id"] for key in keys] == [job["id"] for job in jobs]


def test_a_hundred_parallel_submits_with_one_key_are_one_job_and_one_run(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    body = {"task": "count", "payload": {"file": str(file)}}
    ready = threading.Barrier(20)

    def five_submits(_: int) -> list[httpx.Response]:
        with server.client() as own:
            ready.wait(20)
            return [own.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": "race"}) for _ in range(5)]

    with ThreadPoolExecutor(20) as pool:
        answers = [answer for some in pool.map(five_submits, range(20)) for answer in some]

    assert Counter(answer.status_code for answer in answers) == {201: 100}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    with server.client() as client:
        end_of(client, answers[0].json()["id"])
    assert lines_of(file) == [answers[0].json()["id"]]


# ---------------------------------------------------------------------------------------------------------------- batches


def test_a_batch_gives_the_ids_in_the_order_of_its_jobs(client: httpx.Client) -> None:
    answer = client.post("/api/v1/jobs/batch", json=[{"task": "add", "payload": {"a": n}} for n in range(50)])

    assert answer.status_code == 201
    assert answer.json()["count"] == 50
    assert "replayed" not in answer.json()
    assert [job["result"] for job in all_ended(client, answer.json()["ids"])] == [n + 2 for n in range(50)]


@pytest.mark.parametrize("content_type", ["application/x-ndjson", "application/jsonl", "application/json"])
def test_a_batch_may_be_one_job_a_line(client: httpx.Client, content_type: str) -> None:
    lines = "\r\n".join(json.dumps({"task": "add", "payload": {"a": n}}) for n in range(3)) + "\n\n"

    answer = client.post("/api/v1/jobs/batch", content=lines, headers={"content-type": content_type})

    assert answer.status_code == 201
    assert [job["result"] for job in all_ended(client, answer.json()["ids"])] == [2, 3, 4]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"task": "add", "payload": {"a": "x"}}, "[3].payload.a"),
        ({"task": "add", "payload": {"a": 1, "x": 1}}, "[3].payload.x"),
        ({"task": "add", "payload": [1]}, "[3].payload"),
        ({"task": "nothing"}, "[3].task"),
        ({"payload": {}}, "[3].task"),
        ({"task": "add", "payload": {"a": 1}, "queue": "a b"}, "[3].queue"),
        ({"task": "add", "payload": {"a": 1}, "delay": 1, "run_at": "2100-01-01T00:00:00Z"}, "[3].delay"),
        ({"task": "add", "payload": {"a": 1}, "bogus": 1}, "[3].bogus"),
        ({"task": "add", "payload": {"a": 1}, "tags": [1]}, "[3].tags[0]"),
        (7, "[3]"),
    ],
)
def test_a_batch_is_all_or_nothing_and_the_wrong_job_is_named(client: httpx.Client, bad: Any, field: str) -> None:
    good = {"task": "add", "payload": {"a": 1}, "queue": "all-or-nothing"}

    answer = client.post("/api/v1/jobs/batch", json=[good, good, good, bad, good])

    assert_problem(answer, 422, field=field, says=field)
    assert client.get("/api/v1/jobs", params={"queue": "all-or-nothing"}).json()["items"] == []


def test_a_payload_that_is_too_large_is_named_in_its_batch(client: httpx.Client) -> None:
    big = {"task": "whole", "payload": {"a": "x" * 1_100_000}}

    answer = client.post("/api/v1/jobs/batch", json=[{"task": "add", "payload": {"a": 1}}, big])

    assert_problem(answer, 413, "too_large", says="[1].payload")


def test_a_batch_is_all_or_nothing_over_a_conflict_too(client: httpx.Client) -> None:
    submit(client, "add", {"a": 1}, idempotency_key="batch-conflict")
    new = {"task": "add", "payload": {"a": 1}, "queue": "no-conflict"}

    answer = client.post(
        "/api/v1/jobs/batch", json=[new, {"task": "add", "payload": {"a": 2}, "idempotency_key": "batch-conflict"}]
    )

    assert_problem(answer, 409, "idempotency_conflict", says="batch-conflict")
    assert client.get("/api/v1/jobs", params={"queue": "no-conflict"}).json()["items"] == []


def test_keys_count_inside_a_batch_and_across_batches(client: httpx.Client) -> None:
    jobs = [{"task": "add", "payload": {"a": n // 2}, "idempotency_key": f"in-batch-{n // 2}"} for n in range(6)]

    first = client.post("/api/v1/jobs/batch", json=jobs).json()
    second = client.post("/api/v1/jobs/batch", json=jobs).json()

    assert len(set(first["ids"])) == 3
    assert first["replayed"] == 3
    assert second == {"ids": first["ids"], "count": 6, "replayed": 6}


@pytest.mark.parametrize("body", ["[]", "", "\n\n", "  [ ]  "])
def test_an_empty_batch_is_refused(client: httpx.Client, body: str) -> None:
    assert_problem(client.post("/api/v1/jobs/batch", content=body), 422, says="empty")


def test_a_batch_over_max_batch_is_refused_with_the_limit(client: httpx.Client) -> None:
    answer = client.post("/api/v1/jobs/batch", content=b"[" + b",".join([b'{"task":"bad"}'] * 10_001) + b"]")

    assert_problem(answer, 422, says="10,000")


LONG_BATCHES = {
    "line breaks": (b"\n" * 5_000_000, "blank lines"),
    "lines": (b"1\n" * 2_500_000, "max_batch is 10,000"),
    "an array": (b"[" + b"1," * 2_500_000 + b"1]", "max_batch is 10,000"),
}


@pytest.mark.parametrize("name", LONG_BATCHES)
def test_a_batch_far_over_its_limit_is_refused_before_it_is_taken_apart(client: httpx.Client, name: str) -> None:
    body, says = LONG_BATCHES[name]
    assert_problem(client.post("/api/v1/jobs/batch", content=body), 422, says=says)

    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=says):
            split_batch(body, "", 10_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000, "all of it was made"  # of the whole, hundreds of megabytes


def test_a_batch_may_have_blank_lines_between_its_jobs(client: httpx.Client) -> None:
    answer = client.post("/api/v1/jobs/batch", content=b'\r\n{"task":"add","payload":{"a":1}}\r\n \n' * 50)

    assert answer.status_code == 201
    assert answer.json()["count"] == 50


def test_long_payloads_do_not_count_as_jobs(client: httpx.Client) -> None:
    jobs = [
        {"task": "whole", "payload": {"long": [0] * 300_000}},
        {"task": "whole", "payload": {"long": [1] * 300_000}},
    ]

    answer = client.post("/api/v1/jobs/batch", json=jobs)

    assert answer.status_code == 201
    assert [job["payload"]["long"][0] for job in (get(client, one) for one in answer.json()["ids"])] == [0, 1]


# ---------------------------------------------------------------------------------------------------------------- looking


def test_get_with_wait_answers_when_the_job_has_ended(client: httpx.Client, tmp_path: Path) -> None:
    job_id, gate = held(client, tmp_path)
    begun = time.monotonic()
    opener = threading.Timer(0.3, gate.touch)
    opener.start()

    job = get(client, job_id, wait=20)

    assert job["status"] == "completed"
    assert job["result"] == "let go"
    assert 0.2 < time.monotonic() - begun < 5


def test_get_with_wait_answers_with_the_job_as_it_is_when_the_wait_is_over(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    job_id, gate = held(client, tmp_path)

    def wait_longer() -> Any:
        with server.client(timeout_s=90) as own:
            return get(own, job_id, wait=60)["status"]

    with ThreadPoolExecutor(1) as pool:
        longer = pool.submit(wait_longer)
        begun = time.monotonic()
        job = get(client, job_id, wait=0.3)
        passed_s, first = time.monotonic() - begun, not longer.done()
        gate.touch()
        assert longer.result() == "completed"

    assert job["status"] == "running"
    assert passed_s > 0.25
    assert first, "it waited as long as one who would wait for a minute"


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "soon"])
def test_a_wait_out_of_range_is_refused(client: httpx.Client, wait: str) -> None:
    job = submit(client, "add", {"a": 1})

    assert_problem(client.get(f"/api/v1/jobs/{job['id']}", params={"wait": wait}), 422, field="wait")


def test_many_waits_on_one_job_all_end_with_it(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    job_id, gate = held(client, tmp_path)

    def wait(_: int) -> str:
        with server.client() as own:
            return str(get(own, job_id, wait=20)["status"])

    with ThreadPoolExecutor(10) as pool:
        waits = [pool.submit(wait, n) for n in range(10)]
        gate.touch()
        statuses = [one.result(20) for one in waits]

    assert statuses == ["completed"] * 10


def test_the_result_of_a_completed_job(client: httpx.Client) -> None:
    job = submit(client, "add", {"a": 1})

    answer = client.get(f"/api/v1/jobs/{job['id']}/result", params={"wait": 10})

    assert answer.status_code == 200
    assert answer.json() == {"id": job["id"], "status": "completed", "result": 3}


def test_a_result_of_none_is_null(client: httpx.Client) -> None:
    job = submit(client, "chatty")

    assert client.get(f"/api/v1/jobs/{job['id']}/result", params={"wait": 10}).json()["result"] is None
    assert get(client, job["id"])["result"] is None


def test_while_there_is_no_result_the_answer_is_202_and_when_to_ask_again(client: httpx.Client, tmp_path: Path) -> None:
    job_id, gate = held(client, tmp_path)

    answer = client.get(f"/api/v1/jobs/{job_id}/result")

    gate.touch()
    assert answer.status_code == 202
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["status"] == "running"
    end_of(client, job_id)


def test_the_retry_after_of_a_scheduled_job_is_its_time(client: httpx.Client) -> None:
    job = submit(client, "add", {"a": 1}, delay=1000)

    answer = client.get(f"/api/v1/jobs/{job['id']}/result")

    assert answer.status_code == 202
    assert 995 <= int(answer.headers["retry-after"]) <= 1002


def test_the_result_of_a_failed_job_is_409_with_its_error(client: httpx.Client) -> None:
    job = submit(client, "bad", {"text": "out of luck"})

    answer = client.get(f"/api/v1/jobs/{job['id']}/result", params={"wait": 10})

    assert answer.status_code == 409
    assert answer.json()["status"] == "dead_letter"
    assert answer.json()["error"] == "ValueError: out of luck"


ROUTES_OF_A_JOB = [
    ("GET", ""), ("GET", "/result"), ("GET", "/attempts"), ("GET", "/logs"), ("POST", "/cancel"), ("POST", "/retry"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "route"), ROUTES_OF_A_JOB)
@pytest.mark.parametrize("job_id", ["no-such-job", "%00", "%FF%FE", "x" * 2000, "JOB-1", "..."])
def test_an_unknown_job_is_404_on_each_route(client: httpx.Client, method: str, route: str, job_id: str) -> None:
    assert_problem(client.request(method, f"/api/v1/jobs/{job_id}{route}"), 404, "not_found", says="job not found")


# ---------------------------------------------------------------------------------------------------------------- listing


def test_a_list_is_newest_first_and_leaves_results_out(client: httpx.Client) -> None:
    jobs = [submit(client, "add", {"a": n}, queue="newest") for n in range(3)]
    all_ended(client, [job["id"] for job in jobs])

    page = client.get("/api/v1/jobs", params={"queue": "newest"}).json()

    assert ids(page) == [job["id"] for job in reversed(jobs)]
    assert all("result" not in job for job in page["items"])
    assert [job["payload"]["a"] for job in page["items"]] == [2, 1, 0]


def test_a_list_leaves_long_payloads_out(client: httpx.Client) -> None:
    submit(client, "whole", {"a": "x" * 5000}, queue="long-payloads")

    (job,) = client.get("/api/v1/jobs", params={"queue": "long-payloads"}).json()["items"]

    assert "payload" not in job


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("completed", {"good"}), ("finished", {"good"}), ("dead_letter", {"bad"}), ("failed", {"bad"}),
        ("scheduled", {"later"}), ("retrying", {"again"}), ("waiting", {"later", "again"}),
        ("cancelled", {"never"}), ("canceled", {"never"}), ("running", {"held"}), ("in_progress", {"held"}),
        ("started", {"held"}),
        ("completed,dead_letter", {"good", "bad"}), ("finished, failed,failed", {"good", "bad"}), ("deferred", set()),
        ("queued", set()), ("pending", set()), ("expired", set()),
    ],
)  # fmt: skip
def test_the_states_of_a_filter_go_by_our_names_and_by_those_of_the_seeds(
    one_of_each: tuple[Server, dict[str, str]], name: str, members: set[str]
) -> None:
    server, jobs = one_of_each

    with server.client() as client:
        page = client.get("/api/v1/jobs", params={"status": name}).json()

    assert set(ids(page)) == {jobs[member] for member in members}
    assert page["total"] == len(members)


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with one job in each of six states."""
    folder = tmp_path_factory.mktemp("one-of-each")
    with Server(folder, {"sample.py": TASKS}) as server, server.client() as client:
        jobs = {
            "good": submit(client, "add", {"a": 1})["id"],
            "bad": submit(client, "bad")["id"],
            "later": submit(client, "add", {"a": 1}, delay=3600)["id"],
            "again": submit(client, "bad_for_long")["id"],
            "never": submit(client, "add", {"a": 1}, delay=3600)["id"],
        }
        assert client.post(f"/api/v1/jobs/{jobs['never']}/cancel").status_code == 200
        all_ended(client, [jobs["good"], jobs["bad"]])
        wait_for_status(client, jobs["again"], "retrying")
        jobs["held"], gate = held(client, folder)
        yield server, jobs
        gate.touch()
        end_of(client, jobs["held"])
        check_invariants(server.db)


def test_a_list_can_be_narrowed_to_a_task_and_a_queue(client: httpx.Client) -> None:
    wanted = submit(client, "add", {"a": 1}, queue="narrow")
    submit(client, "chatty", queue="narrow")
    end_of(client, wanted["id"])

    by_both = client.get("/api/v1/jobs", params={"queue": "narrow", "task": "add", "status": "completed"}).json()

    assert ids(by_both) == [wanted["id"]]
    assert by_both["items"][0]["queue"] == "narrow"


def test_the_total_of_a_queue_is_counted(client: httpx.Client) -> None:
    for n in range(7):
        submit(client, "add", {"a": n}, queue="counted")

    page = client.get("/api/v1/jobs", params={"queue": "counted", "limit": 2}).json()

    assert page["total"] == 7
    assert len(page["items"]) == 2


def test_the_cursor_walks_all_jobs_without_gap_or_repeat_while_new_ones_come_in(client: httpx.Client) -> None:
    before = client.post("/api/v1/jobs/batch", json=[{"task": "add", "payload": {"a": n}} for n in range(100)]).json()[
        "ids"
    ]
    seen: list[str] = []
    params: dict[str, Any] = {"limit": 7}

    while True:
        page = client.get("/api/v1/jobs", params=params).json()
        seen += ids(page)
        if "next_cursor" not in page:
            break
        params["cursor"] = page["next_cursor"]
        submit(client, "add", {"a": 0})

    assert len(seen) == len(set(seen)), "a job came twice"
    assert set(before) <= set(seen), "a job was left out"
    everything = client.get("/api/v1/jobs", params={"limit": 500}).json()
    assert seen == [job_id for job_id in ids(everything) if job_id in set(seen)], "not in order"


def test_the_cursor_walks_a_filtered_list_to_its_end(client: httpx.Client) -> None:
    wanted = [submit(client, "add", {"a": n}, queue="walk" if n % 3 else "other")["id"] for n in range(30)]
    wanted = [job_id for n, job_id in enumerate(wanted) if n % 3]
    seen: list[str] = []
    cursor: str | None = None

    while True:
        page = client.get(
            "/api/v1/jobs", params={"queue": "walk", "limit": 4, **({"cursor": cursor} if cursor else {})}
        ).json()
        seen += ids(page)
        cursor = page.get("next_cursor")
        if cursor is None:
            break

    assert seen == wanted[::-1]


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("cursor", "x"), ("cursor", "s"), ("cursor", "s-1"), ("cursor", "sé"), ("cursor", "s١"), ("cursor", "s" + "9" * 30),
        ("limit", "0"), ("limit", "-1"), ("limit", "501"), ("limit", "ten"), ("limit", "1e3"), ("limit", "9" * 40),
        ("status", "bogus"), ("status", "completed,"), ("status", ","),
    ],
)  # fmt: skip
def test_a_wrong_parameter_of_a_list_is_named(client: httpx.Client, parameter: str, value: str) -> None:
    assert_problem(client.get("/api/v1/jobs", params={parameter: value}), 422, field=parameter, says=parameter)
    if parameter != "status":  # dead letters have one
        assert_problem(
            client.get("/api/v1/dead-letters", params={parameter: value}), 422, field=parameter, says=parameter
        )


# -------------------------------------------------------------------------------------------------------- acting on jobs


def test_a_waiting_job_is_cancelled_at_once(client: httpx.Client) -> None:
    job = submit(client, "add", {"a": 1}, delay=3600)

    answer = client.post(f"/api/v1/jobs/{job['id']}/cancel")

    assert answer.status_code == 200
    assert answer.json()["status"] == "cancelled"
    assert answer.json()["attempt"] == 0


def test_a_running_job_is_asked_to_stop_and_is_cancelled_when_it_has(client: httpx.Client, tmp_path: Path) -> None:
    job_id, _ = held(client, tmp_path)

    answer = client.post(f"/api/v1/jobs/{job_id}/cancel")

    assert answer.status_code == 202
    assert answer.json()["cancel_requested_at"]
    assert end_of(client, job_id)["status"] == "cancelled"


def test_cancelling_twice_is_fine(client: httpx.Client) -> None:
    job = submit(client, "add", {"a": 1}, delay=3600)
    first = client.post(f"/api/v1/jobs/{job['id']}/cancel")

    second = client.post(f"/api/v1/jobs/{job['id']}/cancel")

    assert second.status_code == 200
    assert second.json() == first.json()


@pytest.mark.parametrize("task", ["add", "bad"])
def test_a_job_that_has_ended_cannot_be_cancelled(client: httpx.Client, task: str) -> None:
    job = submit(client, task, {"a": 1} if task == "add" else {})
    status = end_of(client, job["id"])["status"]

    assert_problem(client.post(f"/api/v1/jobs/{job['id']}/cancel"), 409, "transition_refused", says=f"it is {status}")


def test_a_job_that_waits_for_its_next_attempt_can_have_it_now(client: httpx.Client) -> None:
    job = submit(client, "bad_for_long")
    wait_for_status(client, job["id"], "retrying")

    answer = client.post(f"/api/v1/jobs/{job['id']}/retry")

    assert answer.status_code == 200
    again = wait_until(
        lambda: get(client, job["id"]), 5, "the second attempt", until=lambda found: found["attempt"] == 2
    )
    assert again["max_retries"] == 5


@pytest.mark.parametrize("delay", [0, 3600])
def test_only_what_has_failed_can_be_retried(client: httpx.Client, delay: float) -> None:
    job = submit(client, "add", {"a": 1}, delay=delay)
    if not delay:
        end_of(client, job["id"])

    answer = client.post(f"/api/v1/jobs/{job['id']}/retry")

    assert_problem(answer, 409, "transition_refused", says="cannot retry")
    assert "submit it again" in answer.text or "only a dead letter" in answer.text


# --------------------------------------------------------------------------------------------------------- dead letters


def dead(client: httpx.Client, gate: Path, n: int, **options: Any) -> list[str]:
    found = [submit(client, "bad_until", {"gate": str(gate)}, **options)["id"] for _ in range(n)]
    assert {job["status"] for job in all_ended(client, found)} == {"dead_letter"}
    return found


def test_a_dead_letter_can_be_listed_and_replayed_with_its_attempts_counted_anew(
    client: httpx.Client, tmp_path: Path
) -> None:
    (job_id,) = dead(client, tmp_path / "gate", 1, queue="dead-one")
    listed = client.get("/api/v1/dead-letters", params={"queue": "dead-one"}).json()
    (tmp_path / "gate").touch()

    answer = client.post(f"/api/v1/dead-letters/{job_id}/replay")

    assert ids(listed) == [job_id]
    assert listed["items"][0]["last_error"] == "ValueError: not yet"
    assert answer.status_code == 200
    ended = end_of(client, job_id)
    assert (ended["status"], ended["attempt"], ended["result"]) == ("completed", 1, "good now")
    assert client.get("/api/v1/dead-letters", params={"queue": "dead-one"}).json()["items"] == []


def test_only_a_dead_letter_can_be_replayed(client: httpx.Client) -> None:
    job = submit(client, "add", {"a": 1})
    end_of(client, job["id"])

    assert_problem(
        client.post(f"/api/v1/dead-letters/{job['id']}/replay"), 404, "not_found", says="dead letter not found"
    )
    assert_problem(client.post("/api/v1/dead-letters/no-such-job/replay"), 404, "not_found")


def test_the_dead_letters_of_one_queue_or_task_or_all_can_be_replayed(client: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    some = dead(client, gate, 3, queue="dead-some")
    more = dead(client, gate, 2, queue="dead-more")
    gate.touch()

    by_queue = client.post("/api/v1/dead-letters/replay", json={"queue": "dead-some"}).json()
    assert by_queue == {"replayed": 3}
    assert {job["status"] for job in all_ended(client, some)} == {"completed"}
    assert {get(client, job_id)["status"] for job_id in more} == {"dead_letter"}
    assert client.post("/api/v1/dead-letters/replay", json={"task": "no_such_task"}).json() == {"replayed": 0}
    assert client.post("/api/v1/dead-letters/replay", json={"task": "bad_until"}).json() == {"replayed": 2}
    assert {job["status"] for job in all_ended(client, more)} == {"completed"}
    left = client.get("/api/v1/dead-letters").json()["total"]
    assert client.post("/api/v1/dead-letters/replay").json() == {"replayed": left}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"queues": "x"}, "queues"),
        ({"queue": 1}, "queue"),
        ({"queue": "x", "task": "y"}, "task"),
        ({"queue": ""}, "queue"),
        ({"task": " "}, "task"),
    ],
)
def test_a_replay_with_a_wrong_filter_replays_nothing(client: httpx.Client, body: dict[str, Any], field: str) -> None:
    assert_problem(client.post("/api/v1/dead-letters/replay", json=body), 422, field=field)


# ------------------------------------------------------------------------------------------------------ attempts and logs


def test_the_attempts_of_a_job_have_its_errors_and_tracebacks(client: httpx.Client) -> None:
    job = submit(client, "bad", {"text": "as expected"}, max_retries=1, retry=[0])
    end_of(client, job["id"])

    attempts = client.get(f"/api/v1/jobs/{job['id']}/attempts").json()["items"]

    assert [(one["attempt"], one["outcome"], one["error_type"]) for one in attempts] == [
        (1, "failed", "ValueError"),
        (2, "failed", "ValueError"),
    ]
    for attempt in attempts:
        assert attempt["error"] == "ValueError: as expected"
        assert "raise ValueError(text)" in attempt["traceback"]
        assert not {"huey_", "huey/"} & set(re.findall("huey.", attempt["traceback"])), "frames that are not the task's"
        assert attempt["started_at"] <= attempt["finished_at"]
        assert attempt["worker_id"]


def test_the_one_attempt_of_a_completed_job_is_listed_too(client: httpx.Client) -> None:
    job = submit(client, "add", {"a": 1})
    end_of(client, job["id"])

    (attempt,) = client.get(f"/api/v1/jobs/{job['id']}/attempts").json()["items"]

    assert (attempt["attempt"], attempt["outcome"]) == (1, "completed")


def test_the_log_of_a_job_can_be_read_in_pages_and_by_level(client: httpx.Client) -> None:
    job = submit(client, "chatty", {"lines": 5})
    end_of(client, job["id"])
    route = f"/api/v1/jobs/{job['id']}/logs"

    first = client.get(route, params={"limit": 2}).json()
    second = client.get(route, params={"limit": 10, "after_id": first["next_after_id"]}).json()
    warnings = client.get(route, params={"level": "warning"}).json()

    assert [line["message"] for line in first["items"] + second["items"]] == [f"line {n}" for n in range(5)]
    assert first["items"][0].keys() == {"id", "level", "message", "ts", "attempt"}
    assert [line["message"] for line in warnings["items"]] == ["line 1", "line 3"]
    after = second["next_after_id"]
    assert client.get(route, params={"after_id": after}).json() == {"items": [], "next_after_id": after}


@pytest.mark.parametrize(
    ("parameter", "value"), [("limit", "0"), ("limit", "1001"), ("after_id", "-1"), ("level", "loud")]
)
def test_a_wrong_parameter_of_a_log_is_named(client: httpx.Client, parameter: str, value: str) -> None:
    job = submit(client, "chatty")

    assert_problem(client.get(f"/api/v1/jobs/{job['id']}/logs", params={parameter: value}), 422, field=parameter)


# ------------------------------------------------------------------------------------------------------------- the server


def test_the_tasks_are_listed_with_the_schemas_of_their_payloads(client: httpx.Client) -> None:
    tasks = {task["name"]: task for task in client.get("/api/v1/tasks").json()["items"]}

    assert list(tasks) == sorted(tasks)
    assert tasks["add"]["description"] == "Add two numbers."
    schema = tasks["add"]["schema"]
    assert schema["properties"] == {"a": {"type": "integer"}, "b": {"type": "integer", "default": 2}}
    assert schema["required"] == ["a"]
    assert schema["additionalProperties"] is False


def test_health_readiness_and_the_document_of_the_api(client: httpx.Client) -> None:
    health = client.get("/api/v1/health").json()
    document = client.get("/openapi.json").json()

    assert client.get("/health").json() == {"ok": True, "status": "ok"}
    assert client.get("/ready").json() == {"ready": True}
    assert {key: health[key] for key in ("name", "status", "databaseAvailable")} == {
        "name": "MiniFlow",
        "status": "healthy",
        "databaseAvailable": True,
    }
    assert re.fullmatch(r"v\d+\.\d+\.\d+.*", health["version"])
    assert document["openapi"].startswith("3.")
    assert {"/api/v1/jobs", "/api/v1/jobs/batch", "/submit", "/create-jobs"} <= document["paths"].keys()


def test_numbers_and_texts_of_a_payload_come_back_as_they_were(client: httpx.Client) -> None:
    payload = {
        "big": 2**80,
        "small": -(2**70),
        "float": 0.1,
        "nul": "a\0b",
        "emoji": "🐝",
        "": {"deep": [[[]]]},
        "long": "x" * 100_000,
    }

    job = submit(client, "whole", payload)

    assert get(client, job["id"])["payload"] == payload
    assert end_of(client, job["id"])["result"] == payload


def test_a_nul_in_a_text_is_kept(client: httpx.Client) -> None:
    job = submit(client, "add", {"a": 1}, description="a\0b", tags=["c\0d"], meta={"e\0f": "g\0h"})

    shown = get(client, job["id"])

    assert (shown["description"], shown["tags"], shown["meta"]) == ("a\0b", ["c\0d"], {"e\0f": "g\0h"})


def test_states_in_lists_are_those_of_the_program(client: httpx.Client) -> None:
    for state in State:
        assert client.get("/api/v1/jobs", params={"status": state}).status_code == 200
    still_answers(client)
