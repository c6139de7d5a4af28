"""The threads that wait for jobs with processes of their own: ``process`` and ``command``.

A thread for each job that may run at once. It takes the job, hands it to its process and waits; so everything around the body is
as for a job in a thread, and such jobs do not take the threads of others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from miniflow.attempts import Attempt, Claimed
from miniflow.executors.process import Children
from miniflow.minutes import ProcessUse
from miniflow.readahead import ReadAhead

log = logging.getLogger("miniflow.process")

IDLE_WAIT_S = 5.0
JOIN_S = 10.0


class ProcessLane:
    """Takes jobs from the "process" lane of the read-ahead."""

    def __init__(
        self,
        readahead: ReadAhead,
        begin: Callable[[Claimed, str], Attempt],
        execute: Callable[[Attempt], None],
        refuse: Callable[[Attempt, BaseException], None],
        children: Children,
        *,
        prefix: str,
        slots: int,
        idle_s: float,
    ) -> None:
        """``idle_s``: after how many seconds without a job a warm child is ended."""
        self._readahead, self._begin, self._execute, self._refuse = readahead, begin, execute, refuse
        self.children, self.slots, self._idle_s = children, slots, idle_s
        self._started = self._stopping = False
        self.jobs_run = 0
        self._current: dict[str, Attempt | None] = {f"{prefix}-process-{n + 1}": None for n in range(slots)}
        self._threads = [
            threading.Thread(target=self._serve, args=(worker_id,), name=f"Process-{n + 1}", daemon=True)
            for n, worker_id in enumerate(self._current)
        ]

    def __repr__(self) -> str:
        return f"<ProcessLane [{len(self)} running | {self.slots} slots]>"

    def __len__(self) -> int:
        return sum(self.busy().values())

    def start(self) -> None:
        self._started = True
        for thread in self._threads:
            thread.start()

    def busy(self) -> dict[str, bool]:
        """By the worker's id, whether it has a job. Nobody where no task wants a process."""
        if not (self._started and self._readahead.has_process_tasks):
            return {}
        return {worker_id: attempt is not None for worker_id, attempt in self._current.items()}

    def stop_taking(self) -> None:
        """No further job is begun; those under way go on."""
        self._stopping = True
        self._readahead.wake_all()

    def close(self) -> None:
        """End all processes. Jobs that still run have been interrupted."""
        self._stopping = True
        self._readahead.wake_all()
        self.children.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(JOIN_S)
        self.children.processes.close()

    def use(self) -> ProcessUse:
        """What the metrics tell of it."""
        processes, children = self.children.processes, self.children
        return ProcessUse(
            self.busy(), children.alive, children.recycled_total, processes.started_total, processes.died_total,
            processes.stopped_total, processes.left_total,
        )  # fmt: skip

    def _serve(self, worker_id: str) -> None:
        def begin(claimed: Claimed) -> Attempt:
            return self._begin(claimed, worker_id)

        while not self._stopping:
            attempt = self._readahead.take("process", begin, timeout_s=IDLE_WAIT_S, stopped=lambda: self._stopping)
            if attempt is None:
                self.children.retire(round(self._idle_s * 1000))
                continue
            self._current[worker_id] = attempt
            try:
                self._execute(attempt)
            except BaseException as exc:  # outside of the body: the job must not stay leased, and the thread goes on
                log.exception("running job %s failed outside of its body", attempt.claimed.id)
                self._refuse(attempt, exc)
            self._current[worker_id] = None
            self.jobs_run += 1  # approximate where two threads count at once: it paces the claims
