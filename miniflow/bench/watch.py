"""Looks at a server while it is under load: how many jobs it has and how many have ended, its memory, its file."""

from __future__ import annotations

import datetime as dt
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

from miniflow.bench.figures import Durations
from miniflow.bench.processes import ServerGone, ServerProcess
from miniflow.states import TERMINAL, State

ANSWER_S = 10.0
MB = 1e6


class Look(NamedTuple):
    """What there was to see at one moment. Sizes in megabytes; None for another machine's server."""

    at_s: float
    found: int
    ended: int
    memory: float | None = None
    file: float | None = None
    wal: float | None = None
    cpu_s: float | None = None
    """Since the process began."""

    @property
    def left(self) -> int:
        return self.found - self.ended


class Watch:
    """Counts come over HTTP, as everybody could ask for them: those of the queue that the jobs are sent to. What was in it before
    is subtracted; a server that is not our own may have had jobs already.
    """

    def __init__(self, url: str, token: str, *, queue: str, server: ServerProcess | None, db: Path | None) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=ANSWER_S, trust_env=False)
        self._queue, self._server, self._db = queue, server, db
        self._before: dict[str, int] = {}
        self.looks: list[Look] = []

    def close(self) -> None:
        self._http.close()

    def begin(self) -> None:
        """From here on is counted."""
        self._before = self._counts()
        self.looks = [self._look()]

    def get(self, path: str, missing: Any = None) -> Any:
        """ServerGone if nobody answers there, or not as MiniFlow does. ``missing``, where given, stands for what is not there."""
        try:
            answer = self._http.get(path)
            if answer.status_code == 404 and missing is not None:
                return missing
            if answer.status_code == 401:
                raise ServerGone(f"{self._http.base_url} asks for a token; give it with --token or MINIFLOW_TOKEN")
            answer.raise_for_status()
            return answer.json()
        except httpx.TransportError as exc:
            raise ServerGone(self._gone(exc)) from exc
        except (httpx.HTTPStatusError, ValueError) as exc:
            raise ServerGone(f"{self._http.base_url} does not answer as a MiniFlow does: {exc}") from exc

    def _gone(self, exc: Exception) -> str:
        if self._server is not None and not self._server.alive:
            return self._server.last_words()
        return f"no server answers at {self._http.base_url}: {str(exc) or type(exc).__name__}"

    def look(self) -> Look:
        """Look, and remember it. A server too busy to answer shows as it was last."""
        try:
            found = self._look()
        except ServerGone as exc:
            if not isinstance(exc.__cause__, httpx.TimeoutException):
                raise
            return self.looks[-1]
        self.looks.append(found)
        return found

    def by_state(self) -> dict[str, int]:
        """The bench's jobs, in each state that has some."""
        return {state: n for state, n in self._since_begin().items() if n}

    def waits_of(self, job_ids: list[str]) -> Durations:
        """How long these jobs waited to be begun, only those that were begun once."""
        jobs = (self.get(f"/api/v1/jobs/{job_id}") for job_id in job_ids)
        return Durations.of(
            _microseconds(job, "created_at", "started_at")
            for job in jobs
            if job["attempt"] == 1 and "started_at" in job
        )

    def times_of_workflows(self, workflow_ids: list[str]) -> tuple[Durations, Durations]:
        """How long the first steps of these workflows waited to be begun, and how long the workflows took, if they completed."""
        found = [self.get(f"/api/v1/workflows/{workflow_id}") for workflow_id in workflow_ids]
        whole = Durations.of(
            _microseconds(one, "created_at", "completed_at") for one in found if one["status"] == "completed"
        )
        return self.waits_of([one["steps"][0]["job_id"] for one in found]), whole

    def _look(self) -> Look:
        counts = self._since_begin()
        found, ended = sum(counts.values()), sum(n for state, n in counts.items() if state in TERMINAL)
        if self._server is None or self._db is None:
            return Look(time.perf_counter(), found, ended)
        try:
            memory = self._server.watched.memory_info().rss / MB
            times = self._server.watched.cpu_times()
        except psutil.Error:
            raise ServerGone(self._server.last_words()) from None
        sizes = (memory, size_mb(self._db), size_mb(f"{self._db}-wal"))
        return Look(time.perf_counter(), found, ended, *sizes, times.user + times.system)

    def _since_begin(self) -> dict[str, int]:
        return {state: n - self._before[state] for state, n in self._counts().items()}

    def _counts(self) -> dict[str, int]:
        """The jobs of the queue by state; none of a queue that is not there yet."""
        queue = self.get(f"/api/v1/queues/{self._queue}", missing={})
        return {state.value: int(queue.get(state.value, 0)) for state in State}


def _microseconds(job: dict[str, Any], since: str, until: str) -> float:
    begin, end = (dt.datetime.fromisoformat(job[name]) for name in (since, until))
    return (end - begin).total_seconds() * 1e6


def size_mb(path: str | Path) -> float:
    """0 where there is no such file."""
    try:
        return os.stat(path).st_size / MB
    except OSError:
        return 0.0
