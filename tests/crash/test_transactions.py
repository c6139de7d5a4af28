"""A job's own writes through ``kill -9``: they are there as often as jobs have completed, and not once more."""

from __future__ import annotations

import os
import random
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tests.api import everything_ended
from tests.invariants import all_ended, check_invariants, read
from tests.servers import Server

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

JOBS = 1_000
ROUNDS = max(int(os.environ.get("CRASH_ROUNDS", "30")) // 4, 1)
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)

TASKS = """
from miniflow import current_job, task


@task(max_retries=20, retry=[0])
def book(n: int) -> int:
    with current_job().transaction() as db:
        db.execute("CREATE TABLE IF NOT EXISTS bookings (n INTEGER, job TEXT)")
        db.execute("INSERT INTO bookings VALUES (?, ?)", (n, current_job().job_id))
        if n % 7 == 0 and current_job().attempt == 1:
            raise ValueError("once more")
    return n
"""


def test_each_job_has_written_once_whenever_the_process_is_killed(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    pause = threading.Event()  # never set: a wait that can be interrupted
    with Server(tmp_path, {"book.py": TASKS}, workers=4) as server:
        with server.client() as http:
            jobs = [{"task": "book", "payload": {"n": n}} for n in range(JOBS)]
            assert http.post("/api/v1/jobs/batch", json=jobs).status_code == 201
        for _ in range(ROUNDS):
            pause.wait(rng.uniform(0.05, 0.3))
            server.kill9()
            check_invariants(server.db)
            with closing(read(server.db)) as connection:
                booked, completed = written(connection)
            assert booked == completed, f"seed {SEED}"
            server.start()
        with server.client() as http:
            everything_ended(http, stalled_s=30)
        assert server.terminate() == 0, server.output()

    check_invariants(server.db, stopped=True)
    all_ended(server.db)
    with closing(read(server.db)) as connection:
        booked, completed = written(connection)
    assert booked == completed, f"seed {SEED}"
    assert len(booked) == JOBS


def written(connection: object) -> tuple[list[str], list[str]]:
    """The jobs that have written, and those that have completed."""
    execute = connection.execute  # type: ignore[attr-defined]
    there = list(execute("SELECT 1 FROM sqlite_schema WHERE name = 'bookings'"))
    booked = [job for (job,) in execute("SELECT job FROM bookings ORDER BY job")] if there else []
    return booked, [job for (job,) in execute("SELECT id FROM jobs WHERE state = 'completed' ORDER BY id")]
