"""What a job that floods its log does to everybody else: lines a second into the file, and what a submit costs meanwhile.

Submits come one at a time at a steady pace, on an otherwise idle server, beside a job that only computes (it wants the GIL as
much as one that prints), and beside one that prints as fast as it can.
"""

from __future__ import annotations

import http.client
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TASKS = '''
import os
import time

from miniflow import task


@task(timeout=600)
def noop(payload: dict) -> dict:
    return {"ok": True}


def open_until(gate, seconds):
    """Looks at the file now and then only: each look gives the GIL away."""
    look = time.monotonic() + 0.05
    until = look + seconds
    while (now := time.monotonic()) < until:
        if now > look:
            look = now + 0.05
            if os.path.exists(gate):
                return
        yield


@task(timeout=600)
def computing(gate: str, seconds: float) -> int:
    return sum(sum(range(100)) for _ in open_until(gate, seconds))


@task(timeout=600)
def flooding(gate: str, seconds: float) -> int:
    """How many lines were taken."""
    n = 0
    for n, _ in enumerate(open_until(gate, seconds), 1):
        print("line", n, "of a log that has a lot of them")
    return n
'''
SUBMITS = 1_500
PAUSE_S = 0.002
SETTINGS = {"max_log_bytes": 1 << 30, "queues": "work"}  # what is only submitted lies in a queue that nobody serves


def write_tasks(folder: str) -> Path:
    tasks = Path(folder) / "tasks of the logs bench"
    tasks.mkdir(exist_ok=True)
    (tasks / "noisy.py").write_text(TASKS, "utf-8")
    return tasks


class Bench:
    def __init__(self, url: str) -> None:
        target = urlsplit(url)
        self._client = http.client.HTTPConnection(target.hostname or "", target.port)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        self._client.request(method, path, json.dumps(body).encode() if body is not None else None)
        answer = self._client.getresponse()
        data = answer.read()
        assert answer.status < 300, data
        return json.loads(data)

    def start(self, task: str, gate: str, seconds: float = 300) -> str:
        """Runs for so long, or until the file ``gate`` is there."""
        job = {"task": task, "payload": {"gate": gate, "seconds": seconds}, "queue": "work"}
        return str(self.ask("POST", "/api/v1/jobs", job)["id"])

    def result(self, job_id: str) -> int:
        job = self.ask("GET", f"/api/v1/jobs/{job_id}?wait=60")
        assert job["status"] == "completed", job
        return int(job["result"])

    def submits_ms(self) -> tuple[float, float]:
        """p50 and p99 of single submits."""
        body = {"task": "noop", "payload": {}}
        samples = []
        for _ in range(SUBMITS):
            began = time.perf_counter()
            self.ask("POST", "/api/v1/jobs", body)
            samples.append((time.perf_counter() - began) * 1000)
            time.sleep(PAUSE_S)  # a steady pace, not as many as go
        samples.sort()
        return samples[len(samples) // 2], samples[int(len(samples) * 0.99)]

    def beside(self, task: str) -> tuple[float, float, float]:
        """p50 and p99 of submits while a job runs, and what it counted a second."""
        with tempfile.TemporaryDirectory() as folder:
            gate = Path(folder) / "gate"
            began = time.perf_counter()
            job_id = self.start(task, str(gate))
            time.sleep(0.2)  # the job is in full flood when the submits begin
            p50, p99 = self.submits_ms()
            gate.touch()
            return p50, p99, self.result(job_id) / (time.perf_counter() - began)

    def alone(self, seconds: float) -> float:
        """Lines a second of a job that prints with nobody else there, to its end: then all of them are in the file."""
        began = time.perf_counter()
        lines = self.result(self.start("flooding", "", seconds))
        return lines / (time.perf_counter() - began)
