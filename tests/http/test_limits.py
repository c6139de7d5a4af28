"""What takes long is cut short, and meanwhile others are answered."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from miniflow.notices import Notices
from miniflow.states import State
from miniflow.web.api import find_job
from tests.api import assert_problem, end_of, submit
from tests.servers import Server
from tests.waiting import PATIENCE

COSTLY = {"q": "a" * 990 + "b"}
"""Nearly found at each place of a payload that is all a."""


@pytest.fixture(scope="module")
def jobs_to_search(server: Server) -> None:
    with server.client() as client:
        for _ in range(4):
            jobs = [{"task": "whole", "payload": {"text": "a" * 60_000}, "delay": 3600}] * 50
            assert client.post("/api/v1/jobs/batch", json=jobs).status_code == 201


@pytest.mark.usefixtures("jobs_to_search")
def test_searches_are_given_up_and_stop_nobody_meanwhile(server: Server, client: httpx.Client) -> None:
    job_id = end_of(client, submit(client, "chatty")["id"])["id"]

    def search() -> httpx.Response:
        with server.client() as another:
            return another.get("/api/v1/jobs", params=COSTLY)

    with ThreadPoolExecutor() as threads:
        searches = [threads.submit(search) for _ in range(2)]
        rounds = 0
        while not any(one.done() for one in searches):
            for path in ("/api/v1/jobs?limit=1", f"/api/v1/jobs/{job_id}/logs", "/api/v1/queues", "/metrics"):
                assert client.get(path).status_code == 200
            rounds += 1

    assert rounds > 3, "none of them waits until a search has an end"
    for answer in (one.result() for one in searches):
        assert_problem(answer, 422, "search_too_expensive", says="narrow it by status, queue, task or dates")
    assert client.get("/api/v1/jobs", params={**COSTLY, "status": "completed"}).json()["items"] == []


def test_nobody_waits_for_a_job_when_the_server_stops() -> None:
    """Not one either that comes when all who waited were called."""
    running: Any = SimpleNamespace(status=State.RUNNING)
    notices = Notices()
    backend: Any = SimpleNamespace(notices=notices, queries=SimpleNamespace(job=lambda job_id: running))

    async def run() -> None:
        waiting = asyncio.create_task(find_job(backend, "17", 30))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        notices.call_all()
        assert await asyncio.wait_for(waiting, PATIENCE) is running
        assert await asyncio.wait_for(find_job(backend, "17", 30), PATIENCE) is running

    asyncio.run(run())
