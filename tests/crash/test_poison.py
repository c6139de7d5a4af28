"""A job that kills the process is found out and buried, and those around it are not held responsible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api import all_ended, everything_ended, get
from tests.crash import journal
from tests.invariants import check_invariants
from tests.servers import Server

pytestmark = pytest.mark.crash

WORKERS = 4
RUNS_MAX = 4
"""Of the poison: one whose mark did not reach the file in time, and three that are counted."""
STARTS_MAX = RUNS_MAX + 1
INNOCENT = 120


def wait_for_death(server: Server) -> int:
    assert server.process is not None
    return server.process.wait(30)


def survives(server: Server) -> bool:
    """Start it; False if the poison kills it again, be it before it is ready or later."""
    try:
        server.start()
        with server.client() as client:
            everything_ended(client, 30)
    except (AssertionError, httpx.TransportError):
        wait_for_death(server)
        return False
    return True


@pytest.mark.parametrize(
    ("task", "payload"),
    [("poison", {"how": "exit"}), ("poison", {"how": "kill"}), ("poison", {"how": "abort"}), ("poison_async", {})],
    ids=["exit", "kill", "abort", "async"],
)
def test_a_job_that_kills_the_process_is_buried_after_its_third_crash(
    tmp_path: Path, task: str, payload: dict[str, Any]
) -> None:
    runs = tmp_path / "journal"
    kinds = ["plain", "coroutine"]
    jobs: list[dict[str, Any]] = [
        {"task": kinds[n % 2], "payload": {"journal": str(runs), "ms": 10}} for n in range(INNOCENT)
    ]
    jobs.insert(INNOCENT // 2, {"task": task, "payload": {"journal": str(runs), **payload}, "max_retries": 0})
    with Server(tmp_path, {"journal.py": journal.TASKS}, workers=WORKERS, async_slots=WORKERS) as server:
        with server.client() as client:
            ids = client.post("/api/v1/jobs/batch", json=jobs).json()["ids"]
        poison = ids[INNOCENT // 2]
        wait_for_death(server)
        starts = 1
        while starts < STARTS_MAX and not survives(server):
            starts += 1
        assert server.alive, f"it died {starts} times:\n{server.output()[-2000:]}"
        with server.client() as client:
            buried = get(client, poison)
            attempts = client.get(f"/api/v1/jobs/{poison}/attempts").json()["items"]
            innocent = all_ended(client, [job_id for job_id in ids if job_id != poison])
            page = client.get("/api/v1/dead-letters").json()
        assert server.terminate() == 0
    check_invariants(server.db, stopped=True)

    assert (buried["status"], buried["crashes"]) == ("dead_letter", 3)
    assert buried["last_error"] == "the process ended while this job ran, for the third time"
    assert [(one["outcome"], one["error_type"]) for one in attempts] == [("crashed", "ProcessDied")] * 3
    assert journal.begins(journal.read(runs))[poison] <= RUNS_MAX
    assert [job["id"] for job in page["items"]] == [poison]
    assert {job["status"] for job in innocent} == {"completed"}
    charged = [job.get("crashes", 0) for job in innocent]
    # With each death went at most those that ran beside it: the other workers, and the other slots.
    assert sum(charged) <= RUNS_MAX * (2 * WORKERS - 1), charged
