"""What jobs in processes of their own do to others: how soon the slot of one that was killed is free, and what a read costs
beside four that compute."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

from tests.bench.logs import Bench

TASKS = '''
import signal
import time
from pathlib import Path

from miniflow import task


@task(executor="process", max_retries=0)
def deaf(note: str) -> None:
    """Hears no SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(note).touch()
    time.sleep(600)


@task(executor="process", max_retries=0)
def begun() -> float:
    """When it was begun: the slot was free then."""
    return time.time()


@task(executor="process", max_retries=0, timeout=600)
def computing(gate: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not Path(gate).exists():
        sum(range(20_000))
'''
GRACE_S = 0.5
READS = 1_500
PAUSE_S = 0.002


def write_tasks(folder: str) -> Path:
    tasks = Path(folder) / "tasks of the processes bench"
    tasks.mkdir(exist_ok=True)
    (tasks / "apart.py").write_text(TASKS, "utf-8")
    return tasks


class Processes(Bench):
    """A server with the tasks above."""

    def submit(self, task: str, **payload: object) -> str:
        return str(self.ask("POST", "/api/v1/jobs", {"task": task, "payload": payload})["id"])

    def slot_free_ms(self, folder: str) -> float:
        """From the cancel of a job that must be killed to the begin of the one that waits for its slot, the only one."""
        note = Path(folder) / f"note-{time.monotonic_ns()}"
        deaf = self.submit("deaf", note=str(note))
        while not note.exists():
            time.sleep(0.005)  # waits for the file
        waiting = self.submit("begun")
        asked = time.time()
        self.ask("POST", f"/api/v1/jobs/{deaf}/cancel")
        job = self.ask("GET", f"/api/v1/jobs/{waiting}?wait=30")
        assert job["status"] == "completed", job
        started = dt.datetime.fromisoformat(job["started_at"])
        return (started.timestamp() - asked) * 1000

    def reads_ms(self, job_id: str) -> tuple[float, float]:
        """p50 and p99 of single reads of a job, at a steady pace."""
        samples = []
        for _ in range(READS):
            began = time.perf_counter()
            self.ask("GET", f"/api/v1/jobs/{job_id}")
            samples.append((time.perf_counter() - began) * 1000)
            time.sleep(PAUSE_S)  # a steady pace, not as many as go
        samples.sort()
        return samples[len(samples) // 2], samples[int(len(samples) * 0.99)]

    def compute(self, gate: Path, jobs: int) -> None:
        """Keep so many jobs computing until the file ``gate`` is there; returns when they run."""
        ids = [self.submit("computing", gate=str(gate), seconds=120) for _ in range(jobs)]
        while any(self.ask("GET", f"/api/v1/jobs/{job_id}")["status"] != "running" for job_id in ids):
            time.sleep(0.01)  # waits for them to run
        time.sleep(1)  # the children import, and settle
