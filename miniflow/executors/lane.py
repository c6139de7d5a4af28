"""The threads that wait for jobs with processes of their own: ``process`` and ``command``.

A thread for each job that may run at once. It takes the job, hands it to its process and waits; so everything around the body is
as for a job in a thread, and such jobs do not take the threads of others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from miniflow.attempts import Attempt, Claimed
from miniflow.executors.children import Child, Children
from miniflow.loans import Loan
from miniflow.minutes import ProcessUse
from miniflow.readahead import ReadAhead

log = logging.getLogger("miniflow.process")

IDLE_WAIT_S = 5.0
JOIN_S = 10.0


class _Waiter:
    """A thread that takes jobs, the one it has, and whether it goes: there are to be fewer."""

    def __init__(self, worker_id: str, thread: threading.Thread) -> None:
        self.worker_id, self.thread = worker_id, thread
        self.attempt: Attempt | None = None
        self.leaves = False


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
        self._prefix = prefix
        self._started = self._stopping = False
        self.jobs_run = 0
        self._named = 0
        self._changing = threading.Lock()  # which threads there are
        self._waiters: list[_Waiter] = []

    def __repr__(self) -> str:
        return f"<ProcessLane [{len(self)} running | {self.slots} slots]>"

    def __len__(self) -> int:
        return sum(self.busy().values())

    def start(self) -> None:
        self._started = True
        self.resize(self.slots)

    def resize(self, slots: int) -> None:
        """So many at once from now on. Of those that are too many the idle ones go at once, the others after their job."""
        self.slots = self._readahead.sharers = slots
        if not self._started:
            return
        with self._changing:
            staying = [waiter for waiter in self._waiters if not waiter.leaves]
            for _ in range(len(staying), slots):
                self._add()
            for waiter in sorted(staying, key=lambda waiter: waiter.attempt is not None)[
                : max(len(staying) - slots, 0)
            ]:
                waiter.leaves = True
        self._readahead.wake_all()

    def _add(self) -> None:
        self._named += 1
        waiter = _Waiter(f"{self._prefix}-process-{self._named}", threading.Thread(
            target=lambda: self._serve(waiter), name=f"Process-{self._named}", daemon=True
        ))  # fmt: skip
        self._waiters.append(waiter)
        waiter.thread.start()

    def busy(self) -> dict[str, bool]:
        """By the worker's id, whether it has a job. Nobody where no task wants a process."""
        if not (self._started and self._readahead.has_process_tasks):
            return {}
        waiters = [(waiter, waiter.attempt is not None) for waiter in list(self._waiters)]
        return {waiter.worker_id: busy for waiter, busy in waiters if busy or not waiter.leaves}

    def stop_taking(self) -> None:
        """No further job is begun; those under way go on."""
        self._stopping = True
        self._readahead.recall_all()
        self._readahead.wake_all()

    def close(self) -> None:
        """End all processes. Jobs that still run have been interrupted."""
        self._stopping = True
        self._readahead.wake_all()
        self.children.close()
        for waiter in list(self._waiters):
            if waiter.thread.is_alive():
                waiter.thread.join(JOIN_S)
        self.children.processes.close()

    def use(self) -> ProcessUse:
        """What the metrics tell of it."""
        processes, children = self.children.processes, self.children
        return ProcessUse(
            self.busy(), children.alive, children.recycled_total, processes.started_total, processes.died_total,
            processes.stopped_total, processes.left_total,
        )  # fmt: skip

    def _serve(self, waiter: _Waiter) -> None:
        def begin(claimed: Claimed) -> Attempt:
            attempt = self._begin(claimed, waiter.worker_id)
            attempt.loan = loan
            return attempt

        loan = Loan(begin, stopped=lambda: self._stopping or waiter.leaves)
        while True:
            attempt = self._next(loan)
            if attempt is None:
                if loan.stopped():
                    break
                self.children.retire(round(self._idle_s * 1000))
                continue
            waiter.attempt = attempt
            try:
                self._execute(attempt)
            except BaseException as exc:  # outside of the body: the job must not stay leased, and the thread goes on
                log.exception("running job %s failed outside of its body", attempt.claimed.id)
                self._refuse(attempt, exc)
            if attempt.handed and not attempt.entered:  # its process has run it, and nobody has heard the answer
                self._part_with(loan)
            waiter.attempt = None
            self.jobs_run += 1  # approximate where two threads count at once: it paces the claims
        with self._changing:
            self._waiters = [other for other in self._waiters if other is not waiter]

    def _next(self, loan: Loan) -> Attempt | None:
        """The next job, begun: one that was handed ahead, or the best of those that wait."""
        if loan.stopped():
            self._readahead.recall(loan)
        attempt = self._readahead.next_of(loan)
        if attempt is not None:
            return attempt
        if isinstance(child := loan.holder, Child):  # all that it was handed was taken back
            self._readahead.part(loan)
            self.children.release(child)
        return self._readahead.take("process", loan.begin, timeout_s=IDLE_WAIT_S, stopped=loan.stopped)

    def _part_with(self, loan: Loan) -> None:
        self._readahead.recall(loan)
        if isinstance(child := loan.holder, Child):
            self._readahead.part(loan)
            self.children.discard(child)
