"""What was acknowledged is there after ``kill -9``, has ended, and was completed once: thirty rounds on one file.

A round starts the server, loads it over several connections and kills it at a random moment; some are killed while they start.
Meanwhile another process opens and closes the file as a sqlite3 shell does, while the server runs and while none does. The client
keeps its own list of what was acknowledged; each run of a job is a line in a file beside the database.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api import everything_ended
from tests.crash import journal
from tests.invariants import acknowledged_all_there, all_ended, check_invariants, read
from tests.servers import Server

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "30"))
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
CLIENTS = 4
NEW_JOBS_A_ROUND = 120
"""Of each client: how long the whole takes is up to the jobs then, and not to how many a quick machine submits."""
KINDS = ["plain", "plain", "plain", "coroutine", "flaky", "hopeless"]

SHELL = """
import sqlite3, sys, time
path, opened = sys.argv[1], 0
while True:
    try:
        with open(sys.argv[2] + ".tmp", "w") as f:
            f.write(str(opened))
        shell = sqlite3.connect(path, timeout=1)
        shell.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchall()
        shell.close()
        opened += 1
    except sqlite3.OperationalError:
        pass
    time.sleep(0.02)
"""


LOST = """
SELECT c.id FROM edges e JOIN jobs c ON c.seq = e.child JOIN jobs p ON p.seq = e.parent
WHERE e.kind <> 'all' AND p.state <> 'completed'
"""
"""Jobs that were not to run, because of one that they depend on."""


class Client:
    """Submits until the server is gone; knows what was acknowledged. What was not is sent again in the next round, by its key."""

    def __init__(self, number: int, journal_file: Path) -> None:
        self._rng = random.Random(SEED * 100 + number)
        self._number, self._journal = number, str(journal_file)
        self._sent = 0
        self._unanswered: list[list[dict[str, Any]]] = []
        self._answered: list[list[dict[str, Any]]] = []
        self.acknowledged: set[str] = set()
        self.by_key: dict[str, str] = {}
        self.sent_again = self.repeated = 0
        self.trouble: list[str] = []

    def run(self, server: Server) -> None:
        again, self._unanswered = self._unanswered, []
        try:
            with server.client(timeout_s=20) as http:
                while again:
                    self.sent_again += 1
                    self._send(http, again.pop())
                enough = self._sent + NEW_JOBS_A_ROUND
                while self._sent < enough:
                    self._send(http, self._batch())
                while True:  # until the kill: keys acknowledged in this process or an earlier one
                    self.repeated += 1
                    self._send(http, self._rng.choice(self._answered))
        except httpx.TransportError:  # the server is gone
            self._unanswered += again

    def _batch(self) -> list[dict[str, Any]]:
        count = 1 if self._rng.random() < 0.6 else self._rng.randrange(2, 40)
        jobs = [self._job() for _ in range(count)]
        for place, job in enumerate(jobs):
            if place and self._rng.random() < 0.4:
                job["depends_on"] = sorted({self._rng.randrange(place) for _ in range(self._rng.randrange(1, 4))})
                if self._rng.random() < 0.5:
                    job["on_dependency_failure"] = "run"
        return jobs

    def _job(self) -> dict[str, Any]:
        rng = self._rng
        self._sent += 1
        job: dict[str, Any] = {
            "task": rng.choice(KINDS),
            "payload": {"journal": self._journal, "ms": rng.randrange(21)},
            "idempotency_key": f"{self._number}-{self._sent}",
            "queue": rng.choice(["default", "default", "high"]),
        }
        if rng.random() < 0.2:
            job["delay"] = rng.uniform(0, 2)
        return job

    def _send(self, http: httpx.Client, jobs: list[dict[str, Any]]) -> None:
        try:
            answer = (
                http.post("/api/v1/jobs", json=jobs[0])
                if len(jobs) == 1
                else http.post("/api/v1/jobs/batch", json=jobs)
            )
        except httpx.TransportError:
            self._unanswered.append(jobs)
            raise
        if answer.status_code != 201:
            self.trouble.append(f"{answer.status_code} {answer.text[:200]}")
            return
        ids = [answer.json()["id"]] if len(jobs) == 1 else answer.json()["ids"]
        if not self.acknowledged.issuperset(ids):
            self._answered.append(jobs)
        self.acknowledged.update(ids)
        for job, job_id in zip(jobs, ids, strict=True):
            known = self.by_key.setdefault(job["idempotency_key"], job_id)
            if known != job_id:
                self.trouble.append(f"key {job['idempotency_key']}: job {known}, then job {job_id}")


@contextmanager
def a_shell_comes_and_goes(db: Path) -> Iterator[None]:
    """Another process, with another SQLite, opens and closes the file all the time."""
    shell = subprocess.Popen([sys.executable, "-c", SHELL, str(db), str(db) + ".opened"])
    try:
        yield
        assert shell.poll() is None, "the shell died"
    finally:
        shell.kill()
        shell.wait()


def start_and_be_killed(server: Server, after_s: float) -> None:
    """Killed at its start, before or after it is ready."""

    def kill() -> None:
        if server.process is not None:
            server.process.kill()

    timer = threading.Timer(after_s, kill)
    timer.start()
    try:
        server.start()
    except AssertionError:  # dead before it was ready
        pass
    timer.join()
    server.kill9()


def completed(db: Path) -> dict[str, tuple[int, int]]:
    with closing(read(db)) as connection:
        rows = connection.execute("SELECT id, attempt, completed_at FROM jobs WHERE state = 'completed'")
        return {job_id: (attempt, at) for job_id, attempt, at in rows}


def test_nothing_acknowledged_is_lost_and_nothing_completed_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    pause = threading.Event()  # never set: a wait that can be interrupted
    runs_file = tmp_path / "journal"
    clients = [Client(n, runs_file) for n in range(CLIENTS)]
    done_when_killed: list[tuple[int, dict[str, tuple[int, int]]]] = []  # process, what was completed when it died
    pids: list[int] = []
    with Server(tmp_path, {"journal.py": journal.TASKS}, queues="high,*") as server, a_shell_comes_and_goes(server.db):
        for number in range(ROUNDS):
            if number:
                if rng.random() < 0.2:
                    start_and_be_killed(server, rng.uniform(0.05, 0.9))
                    pids.append(server.pid)
                server.start()
            pids.append(server.pid)
            threads = [threading.Thread(target=client.run, args=(server,)) for client in clients]
            for thread in threads:
                thread.start()
            pause.wait(rng.uniform(0.05, 1.5))
            server.kill9()
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive()
            done_when_killed.append((len(pids), completed(server.db)))
        server.start()
        pids.append(server.pid)
        with server.client() as http:
            everything_ended(http, stalled_s=30)
        assert server.terminate() == 0, server.output()

    acknowledged = set().union(*(client.acknowledged for client in clients))
    runs = journal.read(runs_file)
    begins = journal.begins(runs)
    with closing(read(server.db)) as connection:
        rows = list(connection.execute("SELECT id, task, state, attempt, crashes FROM jobs"))
        lost = {child for (child,) in connection.execute(LOST)}
    with capsys.disabled():
        again = sum(1 for job_id, task, *_ in rows if task in ("plain", "coroutine") and begins[job_id] > 1)
        charged = [crashes for *_, crashes in rows if crashes]
        states = Counter(f"{task} {state}" for _, task, state, _, _ in rows)
        print(
            f"\nseed {SEED}: {ROUNDS} rounds, {len(pids)} starts, {len(acknowledged)} acknowledged, {len(rows)} in the file,\n"
            f"{sum(client.sent_again for client in clients)} submits sent again unanswered, "
            f"{sum(client.repeated for client in clients)} answered; {sum(begins.values())} runs,\n"
            f"{again} jobs without a failure of their own ran more than once,\n"
            f"{sum(charged)} crashes charged to {len(charged)} jobs (most: {max(charged, default=0)})\n{dict(states)}"
        )

    assert not [line for client in clients for line in client.trouble]
    acknowledged_all_there(server.db, acknowledged)
    all_ended(server.db)
    check_invariants(server.db, stopped=True)
    at_the_end = completed(server.db)
    ran_by = journal.pids_of(runs)
    for starts, before in done_when_killed:
        later = set(pids[starts:])
        for job_id, when in before.items():
            assert at_the_end.get(job_id) == when, f"job {job_id} was completed {when} and is {at_the_end.get(job_id)}"
            assert not later & set(ran_by[job_id]), f"job {job_id} was completed and ran again"
    for job_id, task, state, attempt, crashes in rows:
        told = f"{task} {job_id}: {state}, {attempt} attempts, {crashes} crashes, {begins[job_id]} begins"
        assert begins[job_id] >= attempt - crashes, f"counted and never begun: {told}"
        if job_id in lost:
            assert (state, attempt) == ("cancelled", 0), told
        elif crashes < 3:
            assert state == ("dead_letter" if task == "hopeless" else "completed"), told
    ended_well = {run.job_id for run in runs if run.what == "end"}
    assert {job_id for job_id, _, state, *_ in rows if state == "completed"} <= ended_well, (
        "completed without a run to its end"
    )
