"""Followers of a log that are cut off, by the network or by ``kill -9`` of the server: they go on and have each line, once."""

from __future__ import annotations

import json
import random
import threading
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.api import submit
from tests.invariants import check_invariants, read
from tests.servers import Server
from tests.waiting import wait_until

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]

KILLS = 2  # the third crash would make a dead letter of it
TASKS = '''
import time

from miniflow import current_job, task


@task
def counting(lines: int, kills: int) -> None:
    """Its first attempts do not end by themselves: each is there to be killed, however far behind the followers are."""
    for n in range(lines):
        print(f"line {n} of attempt {current_job().attempt}")
        if n % 20 == 0:
            time.sleep(0.002)
    while current_job().attempt <= kills:
        time.sleep(0.01)
'''


class Follower:
    """Follows a job's log by its events, again and again from where it was, until the stream says that it is over."""

    def __init__(self, server: Server, job_id: str, *, hang_up_after: int = 0) -> None:
        """``hang_up_after``: lines after which it hangs up by itself."""
        self._server, self._job_id, self._hang_up_after = server, job_id, hang_up_after
        self.ids: list[int] = []
        self.messages: list[str] = []
        self.status = ""
        self.connections = 0
        self.trouble: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"{len(self.ids)} lines in {self.connections} connections, and no end"

    def _run(self) -> None:
        pause = threading.Event()  # never set
        while not self.status:
            try:
                self._follow()
            except httpx.TransportError:  # the server is gone, or the stream was cut
                pause.wait(0.01)

    def _follow(self) -> None:
        headers = {"Last-Event-ID": str(self.ids[-1])} if self.ids else {}
        url = f"{self._server.url}/api/v1/jobs/{self._job_id}/logs?follow=1"
        with httpx.stream("GET", url, headers=headers, timeout=20, trust_env=False) as answer:
            if answer.status_code != 200:
                self.trouble.append(f"{answer.status_code} {answer.read()[:300]!r}")
                return
            self.connections += 1
            event, taken = "", 0
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    event = value
                elif name == "data" and event == "line":
                    found = json.loads(value)
                    self.ids.append(found["id"])
                    self.messages.append(found["message"])
                    taken += 1
                    if taken == self._hang_up_after:
                        return
                elif name == "data" and event == "end":
                    self.status = json.loads(value)["status"]
                    return


def test_each_follower_has_each_line_once_whatever_cuts_it_off(tmp_path: Path) -> None:
    chance = random.Random(20_260_131)
    with Server(tmp_path, {"counting.py": TASKS}) as server:
        with server.client() as client:
            job_id = submit(client, "counting", {"lines": 8_000, "kills": KILLS})["id"]
        followers = [Follower(server, job_id), Follower(server, job_id, hang_up_after=700)]
        for _ in range(KILLS):
            enough = len(followers[0].ids) + chance.randrange(50, 3_000)
            wait_until(lambda: len(followers[0].ids), 20, "lines", until=enough.__le__)
            server.restart()
        for follower in followers:
            follower.wait(60)
        assert server.terminate() == 0, server.output()

    check_invariants(server.db, stopped=True)
    with closing(read(server.db)) as connection:
        in_file = list(connection.execute("SELECT id, message FROM logs ORDER BY id"))
    for follower in followers:
        assert not follower.trouble
        assert follower.status == "completed"
        assert follower.connections > KILLS
        assert list(zip(follower.ids, follower.messages, strict=True)) == in_file
    last = [message for _, message in in_file if message.endswith(f"of attempt {KILLS + 1}")]
    assert last == [f"line {n} of attempt {KILLS + 1}" for n in range(8_000)]
