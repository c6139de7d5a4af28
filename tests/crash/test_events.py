"""A follower of all jobs over ``kill -9``: whatever it was told before, in the end it knows the last state of every job."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource

from tests.api import TASKS, everything_ended
from tests.invariants import read
from tests.servers import Server
from tests.waiting import wait_until

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]

ROUNDS = 4
BATCHES_A_ROUND = 3
"""At least: how far a load has come after some tenths of a second is up to the machine."""
WAIT_S = 10


class Follower:
    """Follows one process after another, always from the last event that it was given."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.latest: dict[str, dict[str, Any]] = {}

    def states(self) -> dict[str, tuple[str, int]]:
        return {job_id: (job["status"], job["change"]) for job_id, job in self.latest.items()}

    def follow(self, server: Server) -> Iterator[None]:
        """Until the stream is cut; gives control back after each event."""
        headers = {"last-event-id": self.ids[-1]} if self.ids else {}
        after = {} if self.ids else {"after": "0-0"}
        try:
            with (
                server.client(WAIT_S) as client,
                client.stream("GET", "/api/v1/events", headers=headers, params=after) as answer,
            ):
                for event in EventSource(answer).iter_sse():
                    if event.event == "job":
                        self.ids.append(event.id)
                        job = event.json()
                        self.latest[job["id"]] = job
                    else:
                        assert event.event == "message", f"{event.event}: {event.data}"
                    yield
        except httpx.TransportError:  # killed, or nothing came for WAIT_S
            return


def test_a_follower_learns_the_last_state_of_every_job_though_the_process_is_killed_again_and_again(
    tmp_path: Path,
) -> None:
    rng = random.Random(7)
    follower = Follower()
    batches: list[int] = []

    def load(server: Server) -> None:
        try:
            with server.client(WAIT_S) as client:
                while True:
                    jobs = [{"task": rng.choice(["add", "bad"]), "payload": {}} for _ in range(rng.randrange(1, 60))]
                    for job in jobs:
                        job["payload"] = {"a": 1} if job["task"] == "add" else {}
                    client.post("/api/v1/jobs/batch", json=jobs)
                    batches.append(len(jobs))
        except httpx.TransportError:
            return

    with Server(tmp_path, {"sample.py": TASKS}) as server:
        for number in range(ROUNDS):
            if number:
                server.start()
            threads = [threading.Thread(target=load, args=(server,))]
            threads.append(threading.Thread(target=lambda: [None for _ in follower.follow(server)]))
            for thread in threads:
                thread.start()
            threading.Event().wait(rng.uniform(0.1, 0.7))
            wait_until(lambda: len(batches), 10, "some batches", until=((number + 1) * BATCHES_A_ROUND).__le__)
            server.kill9()
            for thread in threads:
                thread.join(WAIT_S * 2)
                assert not thread.is_alive()
        server.start()
        with server.client() as client:
            everything_ended(client, stalled_s=30)
        with closing(read(server.db)) as connection:
            rows = {
                job_id: (state, n) for job_id, state, n in connection.execute("SELECT id, state, changed FROM jobs")
            }
        highest = max(n for _, n in rows.values())
        for _ in follower.follow(server):
            if int(follower.ids[-1].partition("-")[0]) == highest and follower.states() == rows:
                break

    places = [tuple(map(int, event_id.split("-"))) for event_id in follower.ids]
    assert places == sorted(set(places)), "out of order, or twice"
    assert len(rows) > 100
    assert follower.states() == rows
