"""Verbs on many jobs, and deleting."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api import (
    TASKS,
    Json,
    all_ended,
    assert_problem,
    end_of,
    get,
    lines_of,
    submit,
    wait_for_status,
)
from tests.invariants import check_invariants, read
from tests.servers import Server
from tests.waiting import PATIENCE, wait_until

LATER = 3600


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As the other modules have it, but that jobs are deleted here."""
    with Server(tmp_path_factory.mktemp("bulk"), {"sample.py": TASKS}, stop_grace=1.0, workers=2) as running:
        yield running
        assert running.terminate() == 0, running.output()
        check_invariants(running.db, stopped=True, replayed=True, deleted=True)


def bulk(client: httpx.Client, verb: str, **body: Any) -> Json:
    answer = client.post(f"/api/v1/jobs/bulk/{verb}", json=body)
    assert answer.status_code == 200, answer.text
    outcome: Json = answer.json()
    return outcome


def batch(client: httpx.Client, n: int, **options: Any) -> list[str]:
    answer = client.post("/api/v1/jobs/batch", json=[{"task": "add", "payload": {"a": i}, **options} for i in range(n)])
    assert answer.status_code == 201, answer.text
    return list(answer.json()["ids"])


def count_of(client: httpx.Client, **params: Any) -> int:
    answer = client.get("/api/v1/jobs", params={**params, "limit": 1})
    total: int = answer.json()["total"]
    return total


def statuses(client: httpx.Client, ids: list[str]) -> list[str]:
    return [get(client, job_id)["status"] for job_id in ids]


# ---------------------------------------------------------------------------------------------------------------- cancel


def test_what_waits_is_cancelled_what_runs_is_asked_to_stop_and_what_has_ended_is_refused(
    client: httpx.Client, tmp_path: Path
) -> None:
    ended = submit(client, "add", {"a": 1}, queue="three")["id"]
    end_of(client, ended)
    runs = submit(client, "hold", {"gate": str(tmp_path / "gate")}, queue="three")["id"]
    wait_for_status(client, runs, "running")
    waits = submit(client, "add", {"a": 1}, queue="three", delay=LATER)["id"]
    other = submit(client, "add", {"a": 1}, queue="four", delay=LATER)["id"]

    outcome = bulk(client, "cancel", filter={"queue": "three"})

    assert outcome == {"matched": 3, "done": 2, "refused": 1, "dry_run": False}
    assert end_of(client, runs)["status"] == "cancelled"
    assert statuses(client, [ended, waits, other]) == ["completed", "cancelled", "scheduled"]


def test_jobs_that_are_claimed_ahead_are_cancelled_and_never_run(client: httpx.Client, tmp_path: Path) -> None:
    holds = [submit(client, "hold", {"gate": str(tmp_path / "gate")}, queue="ahead")["id"] for _ in range(2)]
    for job_id in holds:
        wait_for_status(client, job_id, "running")
    ran = tmp_path / "ran"
    waiting = [submit(client, "count", {"file": str(ran)}, queue="ahead")["id"] for _ in range(30)]

    outcome = bulk(client, "cancel", filter={"task": "count", "queue": "ahead"})
    (tmp_path / "gate").touch()

    assert outcome == {"matched": 30, "done": 30, "refused": 0, "dry_run": False}
    assert set(statuses(client, waiting)) == {"cancelled"}
    assert {job["status"] for job in all_ended(client, holds)} == {"completed"}
    end_of(client, submit(client, "add", {"a": 1}, queue="ahead")["id"])
    assert lines_of(ran) == []


def test_one_who_waits_for_a_job_hears_that_it_was_cancelled_with_others(client: httpx.Client, server: Server) -> None:
    job_id = submit(client, "add", {"a": 1}, queue="awaited", delay=LATER)["id"]
    heard: list[Json] = []

    def wait() -> None:
        with server.client() as other:
            heard.append(get(other, job_id, wait=20))

    thread = threading.Thread(target=wait)
    thread.start()
    bulk(client, "cancel", filter={"queue": "awaited"})
    thread.join(10 * PATIENCE)

    assert [job["status"] for job in heard] == ["cancelled"]


# ------------------------------------------------------------------------------------------------------------- which jobs


@pytest.mark.parametrize("verb", ["cancel", "retry", "delete"])
def test_a_dry_run_says_the_counts_and_changes_nothing(client: httpx.Client, verb: str) -> None:
    queue = f"dry-{verb}"
    ended = batch(client, 3, queue=queue)
    all_ended(client, ended)
    dead = [submit(client, "bad", queue=queue)["id"] for _ in range(2)]
    all_ended(client, dead)
    waiting = batch(client, 4, queue=queue, delay=LATER)
    everything = [*ended, *dead, *waiting]
    before = [get(client, job_id) for job_id in everything]

    for which in ({"filter": {"queue": queue}}, {"filter": {"q": f"queue:{queue}"}}, {"ids": everything}):
        outcome = bulk(client, verb, dry_run=True, **which)
        done = {"cancel": 4, "retry": 2, "delete": 5}[verb]
        assert outcome == {"matched": 9, "done": done, "refused": 9 - done, "dry_run": True}
    assert [get(client, job_id) for job_id in everything] == before
    assert bulk(client, verb, filter={"queue": queue}) == {**outcome, "dry_run": False}
    if verb == "retry":
        all_ended(client, dead)  # or it would be another test's change


def test_a_filter_is_that_of_a_list(client: httpx.Client) -> None:
    wanted = submit(client, "add", {"a": 1}, queue="like", tags=["x"], delay=LATER)
    submit(client, "add", {"a": 1}, queue="like", delay=LATER)
    submit(client, "add", {"a": 1}, queue="unlike", tags=["x"], delay=LATER)

    outcome = bulk(client, "cancel", filter={
        "status": "waiting", "queue": "like", "task": "add", "tag": "x", "q": "queue:like",
        "created_after": "2020-01-01T00:00:00Z", "created_before": "2100-01-01T00:00:00+01:00"})  # fmt: skip

    assert outcome["done"] == 1
    assert get(client, wanted["id"])["status"] == "cancelled"
    assert bulk(client, "cancel", filter={"queue": "like", "status": "failed", "q": "status:queued"})["matched"] == 0
    assert bulk(client, "cancel", filter={"q": "id:no-such-job"})["matched"] == 0


def test_of_ids_those_that_are_there_are_matched_once(client: httpx.Client) -> None:
    first, second = batch(client, 2, delay=LATER)

    outcome = bulk(client, "cancel", ids=[first, "no-such-job", first])

    assert outcome == {"matched": 1, "done": 1, "refused": 0, "dry_run": False}
    assert statuses(client, [first, second]) == ["cancelled", "scheduled"]
    assert bulk(client, "cancel", ids=[])["matched"] == 0


def test_as_many_ids_as_max_batch_may_come_in_one_request(client: httpx.Client) -> None:
    body = {"ids": [f"{n:036}" for n in range(10_000)]}

    answer = client.post("/api/v1/jobs/bulk/cancel", content=json.dumps(body, indent=4))

    assert answer.json() == {"matched": 0, "done": 0, "refused": 0, "dry_run": False}


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({}, "filter", '"all": true'),
        ({"dry_run": True}, "filter", "one of filter, ids"),
        ({"all": False}, "filter", "one of filter, ids"),
        ({"all": True, "ids": ["x"]}, "filter", "one of filter, ids"),
        ({"filter": {"queue": "x"}, "ids": ["x"]}, "filter", "one of filter, ids"),
        ({"filter": {}}, "filter", "is empty"),
        ({"filter": {"queue": ""}}, "filter.queue", "is empty"),
        ({"filter": {"queue": "x", "q": " "}}, "filter.q", "is empty"),
        ({"filter": {"q": '""'}}, "filter.q", 'empty term ""'),
        ({"filter": {"queue": "x", "q": '"" ""'}}, "filter.q", 'empty term ""'),
        ({"filter": {"q": "\0"}}, "filter.q", "NUL"),
        ({"filter": {"status": "bogus"}}, "filter.status", "bogus"),
        ({"filter": {"q": "user:bob"}}, "filter.q", "there are status:"),
        ({"filter": {"created_after": "soon"}}, "filter.created_after", "2026-01-31"),
        ({"filter": {"statsu": "failed"}}, "filter.statsu", "no field"),
        ({"all": 1}, "all", "bool"),
        ({"ids": "x"}, "ids", "array"),
        ({"ids": ["x"] * 10_001}, "ids", "max_batch"),
        ({"ids": ["x" * 100] * 10_000}, "ids", "bytes"),
    ],
)
@pytest.mark.parametrize("verb", ["cancel", "retry", "delete"])
def test_a_bulk_verb_that_does_not_say_which_jobs_touches_none(
    client: httpx.Client, verb: str, body: Json, field: str, says: str
) -> None:
    before = client.get("/api/v1/jobs", params={"sort": "-updated_at", "limit": 1}).json()

    assert_problem(client.post(f"/api/v1/jobs/bulk/{verb}", json=body), 422, field=field, says=says)

    assert client.get("/api/v1/jobs", params={"sort": "-updated_at", "limit": 1}).json() == before


# ----------------------------------------------------------------------------------------------------------------- retry


def test_dead_letters_are_replayed_and_what_waits_for_its_next_attempt_gets_it_now(
    client: httpx.Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    dead = [submit(client, "bad_until", {"gate": str(gate)}, queue="again")["id"] for _ in range(3)]
    all_ended(client, dead)
    retrying = submit(client, "bad_for_long", queue="again")["id"]
    wait_for_status(client, retrying, "retrying")
    ended = submit(client, "add", {"a": 1}, queue="again")["id"]
    end_of(client, ended)
    gate.touch()

    outcome = bulk(client, "retry", filter={"queue": "again"})

    assert outcome == {"matched": 5, "done": 4, "refused": 1, "dry_run": False}
    assert [(job["status"], job["attempt"]) for job in all_ended(client, dead)] == [("completed", 1)] * 3
    wait_until(lambda: get(client, retrying)["attempt"], 5, "the second attempt", until=lambda n: n == 2)


# ---------------------------------------------------------------------------------------------------------------- delete


def test_a_deleted_job_is_gone_with_its_attempts_and_its_log(client: httpx.Client, server: Server) -> None:
    jobs = [submit(client, "chatty", queue="gone")["id"], submit(client, "bad", queue="gone")["id"]]
    kept = submit(client, "chatty", queue="kept")["id"]
    all_ended(client, [*jobs, kept])
    seqs = rows(server, f"SELECT seq FROM jobs WHERE id IN ('{jobs[0]}', '{jobs[1]}')")
    assert len(seqs) == 2

    outcome = bulk(client, "delete", filter={"queue": "gone"})

    assert outcome == {"matched": 2, "done": 2, "refused": 0, "dry_run": False}
    for job_id in jobs:
        assert_problem(client.get(f"/api/v1/jobs/{job_id}"), 404, "not_found")
        assert_problem(client.get(f"/api/v1/jobs/{job_id}/logs"), 404, "not_found")
    for (seq,) in seqs:
        assert rows(server, f"SELECT id FROM logs WHERE job_seq = {seq}") == []
        assert rows(server, f"SELECT id FROM attempts WHERE job_seq = {seq}") == []
    assert count_of(client, queue="gone") == 0
    assert len(client.get(f"/api/v1/jobs/{kept}/logs").json()["items"]) == 3


def rows(server: Server, sql: str) -> list[tuple[Any, ...]]:
    connection = read(server.db)
    try:
        return list(connection.execute(sql))
    finally:
        connection.close()


def test_one_job_can_be_deleted_when_it_has_ended_and_not_before(client: httpx.Client) -> None:
    ended, waits = submit(client, "add", {"a": 1})["id"], submit(client, "add", {"a": 1}, delay=LATER)["id"]
    end_of(client, ended)

    answer = client.delete(f"/api/v1/jobs/{ended}")
    refused = client.delete(f"/api/v1/jobs/{waits}")

    assert (answer.status_code, answer.content) == (204, b"")
    assert_problem(client.get(f"/api/v1/jobs/{ended}"), 404)
    assert_problem(client.delete(f"/api/v1/jobs/{ended}"), 404, "not_found")
    assert_problem(refused, 409, "transition_refused", says="cancel it first")
    assert get(client, waits)["status"] == "scheduled"


def test_the_key_of_a_deleted_job_is_free_again(client: httpx.Client) -> None:
    first = submit(client, "add", {"a": 1}, idempotency_key="reused")["id"]
    end_of(client, first)
    client.delete(f"/api/v1/jobs/{first}")

    assert submit(client, "add", {"a": 1}, idempotency_key="reused")["id"] != first


def test_all_is_all_and_a_job_that_has_not_ended_stays(tmp_path: Path) -> None:
    with Server(tmp_path, {"sample.py": TASKS}) as server, server.client() as client:
        all_ended(client, batch(client, 20))
        waits = batch(client, 2, delay=LATER)

        outcome = bulk(client, "delete", all=True)

        assert outcome == {"matched": 22, "done": 20, "refused": 2, "dry_run": False}
        assert {job["id"] for job in client.get("/api/v1/jobs").json()["items"]} == set(waits)
        assert client.get("/api/v1/jobs").json()["total"] == 2
        check_invariants(server.db, deleted=True)


# ------------------------------------------------------------------------------------------------------------ beside others


def test_submits_are_answered_and_jobs_run_while_thousands_are_cancelled_and_deleted(
    client: httpx.Client, server: Server
) -> None:
    for _ in range(3):
        batch(client, 10_000, queue="many", delay=LATER)
    outcomes: list[Json] = []

    def act() -> None:
        with server.client() as other:
            outcomes.append(bulk(other, "cancel", filter={"queue": "many", "status": "scheduled"}))
            outcomes.append(bulk(other, "delete", filter={"queue": "many"}))

    acting = threading.Thread(target=act)
    acting.start()
    meanwhile = 0
    while acting.is_alive():
        job = submit(client, "add", {"a": 1}, queue="beside")
        assert end_of(client, job["id"])["status"] == "completed"
        meanwhile += acting.is_alive()
    acting.join()

    assert outcomes == [{"matched": 30_000, "done": 30_000, "refused": 0, "dry_run": False}] * 2
    assert meanwhile >= 10  # one in each pause between two steps would be sixty
    assert count_of(client, queue="many") == 0


def test_a_search_does_not_walk_over_what_was_deleted(client: httpx.Client) -> None:
    sides: dict[str, Any] = {"tags": ["side"], "delay": LATER}
    first = submit(client, "add", {"a": 1}, **sides)["id"]
    for _ in range(3):
        batch(client, 10_000, queue="gap", delay=LATER)
    last = submit(client, "add", {"a": 1}, **sides)["id"]
    bulk(client, "cancel", filter={"queue": "gap"})
    bulk(client, "delete", filter={"queue": "gap"})

    one = client.get("/api/v1/jobs", params={"tag": "side"}).json()
    two = client.get("/api/v1/jobs", params={"tag": "side", "cursor": one["next_cursor"]}).json()

    assert [job["id"] for page in (one, two) for job in page["items"]] == [last, first]


# ------------------------------------------------------------------------------------------------------ the classic routes


def test_the_classic_replay_of_all_dead_letters_counts_them_and_says_404_when_there_are_none(
    client: httpx.Client, tmp_path: Path
) -> None:
    bulk(client, "delete", filter={"status": "dead_letter"})
    gate = tmp_path / "gate"
    dead = [submit(client, "bad_until", {"gate": str(gate)})["id"] for _ in range(3)]
    all_ended(client, dead)
    gate.touch()

    some = client.post("/api/v1/jobs/action/retry", params={"target_queue_name": "task_queue", "max_messages": 2})
    rest = client.post("/api/v1/jobs/action/retry")
    none = client.post("/api/v1/jobs/action/retry")

    assert (some.status_code, some.json()) == (200, {"success": 2, "failed": 0, "status": "Replay successful"})
    assert rest.json()["success"] == 1
    assert_problem(none, 404, "not_found")
    assert {job["status"] for job in all_ended(client, dead)} == {"completed"}


def test_the_classic_replay_of_one_dead_letter_leaves_the_others(client: httpx.Client) -> None:
    first, second = (submit(client, "bad")["id"] for _ in range(2))
    all_ended(client, [first, second])

    answer = client.post(f"/api/v1/jobs/action/{first}/retry")

    assert answer.status_code == 200
    assert answer.json() == {"success": True, "task_id": first, "status": "Replay successful"}
    assert end_of(client, first)["attempt"] == 1
    assert get(client, second)["status"] == "dead_letter"
    completed = submit(client, "add", {"a": 1})["id"]
    end_of(client, completed)
    assert_problem(client.post(f"/api/v1/jobs/action/{completed}/retry"), 404, "not_found")
    assert_problem(client.post("/api/v1/jobs/action/no-such-job/retry"), 404, "not_found")
