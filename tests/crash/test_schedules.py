"""No fire is doubled and none is lost over ``kill -9``: rounds on one file, each killed within a moment of a schedule's time."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api import everything_ended
from tests.invariants import all_ended, check_invariants, read
from tests.servers import Server
from tests.waiting import wait_until

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]

ROUNDS = max(int(os.environ.get("CRASH_ROUNDS", "30")) // 4, 1)
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
AROUND_S = 0.03
"""So much before or after its time at most; a fire and its commit take a few milliseconds."""

TASKS = """
import time

from miniflow import current_job, schedule, task


@task
def step(ms: int = 0) -> None:
    time.sleep(ms / 1000)


@schedule("* * * * * *", name="in code", catchup="all", overlap="allow")
@task
def in_code() -> None:
    pass
"""
SCHEDULES: dict[str, dict[str, Any]] = {
    "each": {"every": 1, "catchup": "all", "overlap": "allow"},
    "one after the other": {"every": 1, "catchup": "all", "overlap": "queue_all", "payload": {"ms": 300}},
    "the latest": {"cron": "*/2 * * * * *", "catchup": "latest", "overlap": "skip", "payload": {"ms": 900}},
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, {"sample.py": TASKS}) as running:
        yield running


def wait_for_a_fire(chance: random.Random) -> None:
    moment = int(time.time()) + 1 + chance.uniform(-AROUND_S, AROUND_S)
    wait_until(lambda: time.time() >= moment, 5, "a moment near a fire")


def test_no_fire_is_doubled_or_lost(server: Server) -> None:
    print(f"CRASH_SEED={SEED}")
    chance = random.Random(SEED)
    with server.client() as client:
        for name, fields in SCHEDULES.items():
            answer = client.post("/api/v1/schedules", json={"name": name, "task": "step", **fields})
            assert answer.status_code == 201, answer.text
    for _ in range(ROUNDS):
        wait_for_a_fire(chance)
        server.kill9()
        check_invariants(server.db)
        server.start()
    with server.client() as client:
        for name in SCHEDULES:  # no more times, and what waits begins
            client.patch(f"/api/v1/schedules/{name}", json={"at": "2100-01-01T00:00:00Z"})
        client.post("/api/v1/schedules/in code/pause")
        wait_until(lambda: all(one["waiting"] == 0 for one in shown(client)), 60, "what waits has begun")
        everything_ended(client)
    assert server.terminate() == 0, server.output()
    check_invariants(server.db, stopped=True)
    all_ended(server.db)

    for name in ("each", "one after the other", "in code"):
        slots = [slot for slot, outcome, _ in times(server.db, name)]
        assert slots == list(range(slots[0], slots[-1] + 1000, 1000)), name
        assert {outcome for _, outcome, _ in times(server.db, name)} == {"fired"}, name
    latest = times(server.db, "the latest")
    told = sum(missed or 1 for _, _, missed in latest)
    first = latest[0][0] - ((latest[0][2] or 1) - 1) * 2000
    assert told == (latest[-1][0] - first) // 2000 + 1
    assert overlapping(server.db) == []


def shown(client: httpx.Client) -> list[Any]:
    found: list[Any] = client.get("/api/v1/schedules").json()["items"]
    return found


def times(db: Path, name: str) -> list[tuple[int, str, int | None]]:
    sql = """
    SELECT slot, outcome, missed FROM fires JOIN schedules s ON s.id = schedule_id WHERE name = ? ORDER BY slot
    """
    with closing(read(db)) as connection:
        return list(connection.execute(sql, (name,)))


def overlapping(db: Path) -> list[Any]:
    """Runs of the schedule that waits for itself that began before the one before them had ended."""
    sql = """
    SELECT a.id, b.id FROM jobs a JOIN jobs b ON b.seq > a.seq AND b.started_at < a.completed_at
    WHERE a.options ->> 'schedule' = 'one after the other' AND b.options ->> 'schedule' = 'one after the other'
    """
    with closing(read(db)) as connection:
        return list(connection.execute(sql))
