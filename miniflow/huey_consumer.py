"""huey's Consumer, embedded: its worker threads, its health check, its replacement of dead workers.

Changed for a process that is also a server: signals belong to the application; idle workers wait on a condition and poll
nothing; a worker whose job is deaf to its timeout is abandoned and replaced, so that the slot is free when it is said to be;
how many workers there are can be changed.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Callable
from typing import Any

from huey.consumer import Consumer, Scheduler, Worker

from miniflow.attempts import Attempt, Claimed
from miniflow.holdups import CpuTime, Thread
from miniflow.huey_adapter import JobsHuey
from miniflow.readahead import ReadAhead

log = logging.getLogger("miniflow.worker")

IDLE_WAIT_S = 5.0  # an idle worker looks up that often, only to notice a stop it was not woken for


class JobWorker(Worker):
    """Takes jobs from the read-ahead and runs them, one at a time."""

    _names = iter(range(1, 1 << 62))

    def __init__(
        self, *, readahead: ReadAhead, begin: Callable[[Claimed, str], Attempt], prefix: str, **options: Any
    ) -> None:
        super().__init__(**options)
        self._readahead, self._begin = readahead, begin
        self.worker_id = f"{prefix}-{next(self._names)}"
        self.current: Attempt | None = None
        self.task_name: str | None = None  # of the job that it has, or had last
        self.cpu: CpuTime | None = None
        self.abandoned = False
        self.leaves = False  # there are to be fewer

    def initialize(self) -> None:
        super().initialize()
        self.cpu = CpuTime()  # in the thread itself, which is where this runs

    def loop(self, now: dt.datetime | None = None) -> None:
        attempt = self._readahead.take("thread", self._take, timeout_s=IDLE_WAIT_S, stopped=self._stopped)
        if attempt is None:
            return
        self.current, self.task_name = attempt, attempt.claimed.task
        try:
            self.huey.run_attempt(attempt)
        except BaseException as exc:  # this thread ends and is replaced: its job must not stay leased
            self.huey.refuse(attempt, exc)
            raise
        self.current = None
        self.task_count += 1
        if self.abandoned:
            log.info("%s came back from the job it was abandoned with, and ends", self.worker_id)
            raise SystemExit

    def _take(self, claimed: Claimed) -> Attempt:
        return self._begin(claimed, self.worker_id)

    @property
    def is_to_go(self) -> bool:
        return self.abandoned or self.leaves

    def _stopped(self) -> bool:
        return bool(self.stop_flag.is_set()) or self.is_to_go


class IdleScheduler(Scheduler):
    """Does nothing: periodic tasks, delays and retries are the writer's business. The health check wants one that lives."""

    def loop(self, now: dt.datetime | None = None) -> None:
        self.stop_flag.wait()


class JobConsumer(Consumer):
    """``start`` and ``stop_taking``; never ``run``, which would take the signals and the process."""

    worker_class = JobWorker
    scheduler_class = IdleScheduler

    def __init__(
        self,
        huey: JobsHuey,
        *,
        readahead: ReadAhead,
        begin: Callable[[Claimed, str], Attempt],
        prefix: str,
    ) -> None:
        """Without workers, until ``resize`` makes some."""
        self._readahead, self._begin, self._prefix = readahead, begin, prefix
        self.worker_threads: list[tuple[JobWorker, threading.Thread]] = []
        self._abandoned: list[JobWorker] = []
        self._leaving: list[JobWorker] = []
        self._changing = threading.RLock()  # who is a worker: looked at by the supervisor, changed by the writer too
        self.abandoned_total = 0
        self.started = False
        super().__init__(huey, workers=0)

    def _create_worker(self) -> JobWorker:
        return JobWorker(
            readahead=self._readahead,
            begin=self._begin,
            prefix=self._prefix,
            huey=self.huey,
            stop_flag=self.stop_flag,
            default_delay=self.default_delay,
            max_delay=self.max_delay,
            backoff=self.backoff,
        )

    def _create_process(self, process: Any, name: str) -> threading.Thread:
        def run() -> None:
            try:
                process.initialize()
                while not (self.stop_flag.is_set() or (isinstance(process, JobWorker) and process.is_to_go)):
                    process.loop()
            except SystemExit:
                pass
            except BaseException:  # the health check sees the dead thread and replaces it
                log.exception("%s died", name)
            finally:
                process.shutdown()

        return threading.Thread(target=run, name=name, daemon=True)

    def _set_signal_handlers(self) -> None:
        """The application owns the signals."""

    def abandon(self, attempt: Attempt) -> bool:
        """Give up the thread that is deaf in ``attempt``, and start another in its place; False if no worker has it."""
        with self._changing:
            for i, (worker, _) in enumerate(self.worker_threads):
                if worker.current is attempt:
                    self._give_up(worker)
                    self.worker_threads[i] = self._start_worker(i)
                    return True
            for worker in self._leaving:
                if worker.current is attempt:
                    self._give_up(worker)
                    return True
        return False

    def _give_up(self, worker: JobWorker) -> None:
        worker.abandoned = True
        self._abandoned = [*(other for other in self._abandoned if other.current is not None), worker]
        self._leaving = [other for other in self._leaving if other is not worker]
        self.abandoned_total += 1

    def _start_worker(self, place: int) -> tuple[JobWorker, threading.Thread]:
        worker = self._create_worker()
        thread = self._create_process(worker, f"Worker-{place + 1}")
        thread.start()
        return worker, thread

    def check_worker_health(self) -> bool:
        with self._changing:
            return bool(super().check_worker_health())

    def resize(self, workers: int) -> None:
        """So many workers from now on. Of those that are too many the idle ones end at once, the others after their job."""
        with self._changing:
            self.workers = workers
            if not self.started and workers:
                self.started = True
                self.scheduler.start()
            for place in range(len(self.worker_threads), workers):
                self.worker_threads.append(self._start_worker(place))
            surplus = max(len(self.worker_threads) - workers, 0)
            for worker, _ in sorted(self.worker_threads, key=lambda found: found[0].current is not None)[:surplus]:
                worker.leaves = True
                self._leaving.append(worker)
            self.worker_threads = [found for found in self.worker_threads if not found[0].leaves]
            self._leaving = [worker for worker in self._leaving if worker.current is not None]
        self._readahead.wake_all()

    def deaf_threads(self) -> int:
        """Abandoned threads that are still inside their job."""
        return sum(worker.current is not None for worker in self._abandoned)

    def busy(self) -> dict[str, bool]:
        """By the worker's id, whether it has a job."""
        leaving = {worker.worker_id: True for worker in self._leaving if worker.current is not None}
        return {worker.worker_id: worker.current is not None for worker, _ in self.worker_threads} | leaving

    def threads(self) -> list[Thread]:
        """What each thread runs, or ran last, and its processor time; those too that were abandoned inside their job."""
        deaf = [worker for worker in self._abandoned if worker.current is not None]
        workers = [*(worker for worker, _ in self.worker_threads), *deaf]
        return [(worker.worker_id, worker.task_name, worker.cpu) for worker in workers]

    def jobs_run(self) -> int:
        """Jobs that the present workers have run since they started."""
        return sum(worker.task_count for worker, _ in self.worker_threads)

    def stop_taking(self) -> None:
        """Begin no further job; workers end with the one they have."""
        self.stop_flag.set()
        self._readahead.wake_all()
