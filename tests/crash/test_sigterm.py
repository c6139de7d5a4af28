"""SIGTERM under load: nothing is lost, and what goes back to the queue has no attempt counted."""

from __future__ import annotations

import json
import signal
import threading
import time
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api import end_of, everything_ended, get, submit, wait_for_status
from tests.crash import journal
from tests.invariants import acknowledged_all_there, all_ended, check_invariants, read
from tests.servers import Server
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.crash

LONG = ["hold", "deaf", "hold_async"]
GRACE_S = 5
"""In which short jobs end, also where the machine has something else to do for a moment."""


def rows(db: Path) -> dict[str, dict[str, Any]]:
    with closing(read(db)) as connection:
        found = connection.execute("SELECT id, task, state, attempt, crashes, lease, last_error FROM jobs")
        return {
            row[0]: dict(zip(("id", "task", "state", "attempt", "crashes", "lease", "last_error"), row, strict=True))
            for row in found
        }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_loses_nothing_and_counts_no_attempt_of_what_it_returns(
    tmp_path: Path, number: signal.Signals
) -> None:
    runs, gate = tmp_path / "journal", tmp_path / "gate"
    acknowledged: set[str] = set()
    refusals: list[int] = []

    def load(server: Server) -> None:
        try:
            with server.client() as http:
                while True:
                    answer = http.post(
                        "/api/v1/jobs/batch", json=[{"task": "plain", "payload": {"journal": str(runs), "ms": 5}}] * 10
                    )
                    if answer.status_code == 201:
                        acknowledged.update(answer.json()["ids"])
                    else:
                        refusals.append(answer.status_code)
        except httpx.TransportError:  # the server has gone
            return

    with (
        Server(tmp_path, {"journal.py": journal.TASKS}, grace=GRACE_S, stop_grace=0.5, workers=4) as server,
        server.client() as client,
    ):
        long = {submit(client, task, {"journal": str(runs), "gate": str(gate)})["id"] for task in LONG}
        for job_id in long:
            wait_for_status(client, job_id, "running")
        threads = [threading.Thread(target=load, args=(server,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(journal.read(runs)), 10, "some short jobs to have run", until=lambda n: n > 60)

        assert server.process is not None
        begun = time.monotonic()
        server.process.send_signal(number)
        code = server.process.wait(20 * PATIENCE)
        took_s = time.monotonic() - begun
        for thread in threads:
            thread.join(10)

        assert code == 0, server.output()
        assert took_s < GRACE_S + 3, f"took {took_s:.1f} s"
        assert "3 jobs went back to the queue" in server.output()
        assert set(refusals) <= {503}
        check_invariants(server.db, stopped=True)
        acknowledged_all_there(server.db, acknowledged | long)
        stopped = rows(server.db)
        for job_id in long:
            assert (stopped[job_id]["state"], stopped[job_id]["attempt"], stopped[job_id]["crashes"]) == (
                "queued",
                0,
                0,
            )
        for job in stopped.values():
            assert job["state"] in ("queued", "completed")
            assert (job["attempt"], job["crashes"]) == ((1, 0) if job["state"] == "completed" else (0, 0)), job

        gate.touch()
        server.start()
        assert "did not stop cleanly" not in server.output()
        with server.client() as again:
            everything_ended(again, stalled_s=30)
        assert server.terminate() == 0
    all_ended(server.db)
    check_invariants(server.db, stopped=True)
    ended = rows(server.db)
    assert {(job["state"], job["attempt"]) for job in ended.values()} == {("completed", 1)}
    begins = journal.begins(journal.read(runs))
    assert {begins[job_id] for job_id in acknowledged} == {1}, "a short job ran twice, or never"


def test_within_the_grace_running_jobs_end_by_themselves(tmp_path: Path) -> None:
    runs, gate = tmp_path / "journal", tmp_path / "gate"
    with Server(tmp_path, {"journal.py": journal.TASKS}, grace=20) as server, server.client() as client:
        ids = [submit(client, task, {"journal": str(runs), "gate": str(gate)})["id"] for task in LONG]
        for job_id in ids:
            wait_for_status(client, job_id, "running")
        assert server.process is not None
        server.process.terminate()
        wait_until(lambda: client.get("/ready").status_code, 5, "the server to drain", until=lambda code: code == 503)

        gate.touch()

        assert server.process.wait(5 * PATIENCE) == 0
    assert {(job["state"], job["attempt"]) for job in rows(server.db).values()} == {("completed", 1)}
    check_invariants(server.db, stopped=True)


def test_a_job_that_was_asked_to_stop_and_is_deaf_is_cancelled_by_the_stop_and_does_not_come_back(
    tmp_path: Path,
) -> None:
    runs, gate = tmp_path / "journal", tmp_path / "gate"
    with (
        Server(tmp_path, {"journal.py": journal.TASKS}, grace=0.2, stop_grace=60) as server,
        server.client() as client,
    ):
        deaf, other = (submit(client, "deaf", {"journal": str(runs), "gate": str(gate)})["id"] for _ in range(2))
        for job_id in (deaf, other):
            wait_for_status(client, job_id, "running")
        wait_until(lambda: journal.begins(journal.read(runs)), 10, "both to begin", until={deaf: 1, other: 1}.__eq__)
        assert client.post(f"/api/v1/jobs/{deaf}/cancel").status_code == 202
        assert server.terminate() == 0
        assert "1 job went back to the queue" in server.output()
        stopped = rows(server.db)
        assert (stopped[deaf]["state"], stopped[other]["state"]) == ("cancelled", "queued")
        assert stopped[deaf]["last_error"] == "cancelled; the server stopped before the job did"
        check_invariants(server.db, stopped=True)

        gate.touch()
        server.start()
        with server.client() as again:
            everything_ended(again, 20)
        assert server.terminate() == 0
    ended = rows(server.db)
    assert (ended[deaf]["state"], ended[other]["state"]) == ("cancelled", "completed")
    assert journal.begins(journal.read(runs)) == {deaf: 1, other: 2}
    check_invariants(server.db, stopped=True)


def test_an_attempt_that_failed_before_stays_counted_and_the_returned_one_is_not(tmp_path: Path) -> None:
    task = """
import pathlib, time
from miniflow import current_job, task

@task(max_retries=5, retry=[0])
def second_time_holds(started: str) -> None:
    if current_job().attempt == 1:
        raise ValueError("first")
    pathlib.Path(started).touch()
    while True:
        time.sleep(0.01)
"""
    started = tmp_path / "started"
    with Server(tmp_path, {"t.py": task}, grace=0.2, stop_grace=0.5) as server, server.client() as client:
        job = submit(client, "second_time_holds", {"started": str(started)})
        wait_until(started.exists, 10, "the second attempt")
        wait_for_status(client, job["id"], "running")

        assert server.terminate(5) == 0

    stopped = rows(server.db)[job["id"]]
    assert (stopped["state"], stopped["attempt"]) == ("queued", 1)
    check_invariants(server.db, stopped=True)


def test_a_second_signal_cuts_the_grace_short(tmp_path: Path) -> None:
    runs, gate = tmp_path / "journal", tmp_path / "gate"
    with Server(tmp_path, {"journal.py": journal.TASKS}, grace=60, stop_grace=0.5) as server, server.client() as client:
        ids = [submit(client, task, {"journal": str(runs), "gate": str(gate)})["id"] for task in LONG]
        for job_id in ids:
            wait_for_status(client, job_id, "running")
        assert server.process is not None
        server.process.terminate()
        wait_until(lambda: client.get("/ready").status_code, 5, "the server to drain", until=lambda code: code == 503)
        assert get(client, ids[0])["status"] == "running"

        begun = time.monotonic()
        server.process.terminate()

        assert server.process.wait(10 * PATIENCE) == 0, server.output()
        assert time.monotonic() - begun < 3
    assert {(job["state"], job["attempt"]) for job in rows(server.db).values()} == {("queued", 0)}
    check_invariants(server.db, stopped=True)


def test_clients_that_wait_for_a_job_do_not_hold_up_the_stop(tmp_path: Path) -> None:
    runs, gate = tmp_path / "journal", tmp_path / "gate"
    with (
        Server(tmp_path, {"journal.py": journal.TASKS}, grace=2, stop_grace=0.5) as server,
        server.client() as client,
        ExitStack() as waiting,
    ):
        job = submit(client, "hold", {"journal": str(runs), "gate": str(gate)})
        wait_for_status(client, job["id"], "running")
        address = server.url.removeprefix("http://")
        waiters = [waiting.enter_context(closing(HTTPConnection(address, timeout=70))) for _ in range(5)]
        for waiter in waiters:  # sent before the stop, each of them
            waiter.request("GET", f"/api/v1/jobs/{job['id']}?wait=60")
        client.get("/ready")

        begun = time.monotonic()
        assert server.terminate(20) == 0

        assert time.monotonic() - begun < 2 + 3
        assert [json.load(waiter.getresponse())["status"] for waiter in waiters] == ["running"] * 5


def test_an_idle_server_stops_at_once(tmp_path: Path) -> None:
    with Server(tmp_path, {"journal.py": journal.TASKS}, grace=60) as server, server.client() as client:
        job = submit(client, "plain", {"journal": str(tmp_path / "journal")})
        end_of(client, job["id"])
        begun = time.monotonic()

        assert server.terminate() == 0

        assert time.monotonic() - begun < 2
    assert not Path(str(server.db) + "-wal").exists(), "the WAL was not taken in"
