"""Keeps running jobs to their limits, and the workers alive.

One thread. While jobs run it looks at them a few times a second: over its timeout, a job is interrupted; still there after the
grace, its thread is given up – the attempt is ended in the file, the thread replaced, and whatever it says later is refused.
With nothing running it sleeps.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from miniflow import outcome
from miniflow.attempts import Attempt, Running, hear_of_lost, look_no_more
from miniflow.clock import Clock
from miniflow.errors import JobCancelled, JobStalled, JobTimeout
from miniflow.heartbeat import Heartbeats
from miniflow.huey_consumer import JobConsumer
from miniflow.joblog import JobLogs
from miniflow.jobs import Jobs
from miniflow.model import Ending
from miniflow.readahead import ReadAhead
from miniflow.registry import Registry
from miniflow.states import State

log = logging.getLogger("miniflow.supervisor")

TICK_BUSY_S = 0.2
TICK_IDLE_S = 0.5  # a job that begins just after a look is over its time by that much at most
HEALTH_EVERY_S = 10.0
AHEAD_S = 0.05  # how much work to have claimed ahead


class Supervisor:
    def __init__(
        self,
        jobs: Jobs,
        logs: JobLogs,
        running: Running,
        consumer: JobConsumer,
        readahead: ReadAhead,
        registry: Registry,
        clock: Clock,
        *,
        grace_ms: int,
        least_ahead: Callable[[], int],
        jobs_elsewhere: Callable[[], int] = lambda: 0,
    ) -> None:
        """``jobs_elsewhere()``: how many jobs were run in processes since the start."""
        self._jobs, self._logs, self._running, self._consumer, self._readahead, self._registry, self._clock = (
            jobs,
            logs,
            running,
            consumer,
            readahead,
            registry,
            clock,
        )
        self._grace_ms, self._least_ahead, self._jobs_elsewhere = grace_ms, least_ahead, jobs_elsewhere
        self.heartbeats = Heartbeats(jobs.writer, logs, clock, grace_ms=grace_ms)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="miniflow-supervisor", daemon=True)
        self._next_health_ms = 0
        self._paced_done, self._paced_at_ms = 0, clock.boot_ms()
        self.worker_busy_s = 0.0  # that threads were in jobs, as far as can be told from a look now and then
        self.also: Callable[[], None] = lambda: None  # to be done at each look
        hear_of_lost()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.wait(TICK_BUSY_S if len(self._running) else TICK_IDLE_S):
            try:
                self.tick(self._clock.boot_ms())
            except Exception:  # one bad look must not end the looking
                log.exception("the supervisor stumbled")

    def tick(self, boot_ms: int) -> None:
        """One look at all running attempts."""
        attempts = self._running.all()
        self.heartbeats.look(attempts, boot_ms)
        for attempt in attempts:
            if attempt.lost:
                attempt.remind()
            if attempt.abandon_at_boot_ms is not None and boot_ms >= attempt.abandon_at_boot_ms:
                self._give_up(attempt)
            elif attempt.deadline_boot_ms is not None and boot_ms >= attempt.deadline_boot_ms:
                attempt.interrupt(JobTimeout("the job is over its timeout"), boot_ms + self._grace_ms)
        self._pace(boot_ms)
        self.also()
        if boot_ms >= self._next_health_ms:
            self._next_health_ms = boot_ms + round(HEALTH_EVERY_S * 1000)
            if self._consumer.started and not self._consumer.stop_flag.is_set():
                self._consumer.check_worker_health()

    def _pace(self, boot_ms: int) -> None:
        """Claim ahead what the workers do in AHEAD_S: hundreds of no-ops, a handful of real jobs.

        Counted in jobs a second and not by their run times: those include waiting for the GIL, and would say "slow" of the
        fastest.
        """
        done, elapsed_ms = self._consumer.jobs_run() + self._jobs_elsewhere(), boot_ms - self._paced_at_ms
        rate = max(done - self._paced_done, 0) * 1000 / max(elapsed_ms, 1)
        self.worker_busy_s += sum(self._consumer.busy().values()) * max(elapsed_ms, 0) / 1000
        self._paced_done, self._paced_at_ms = done, boot_ms
        if rate or len(self._running):
            ahead = min(int(rate * AHEAD_S), self._readahead.target_max)
            self._readahead.target = max(self._consumer.workers * 2, self._least_ahead(), ahead)

    def _give_up(self, attempt: Attempt) -> None:
        """The body did not hear: end the attempt without it."""
        if not attempt.finish():
            return
        claimed, reason = attempt.claimed, attempt.pending
        seconds = self._grace_ms / 1000
        spec = self._registry.find(claimed.task)
        runner = "a coroutine" if spec is not None and spec.executor == "async" else "a thread"
        words = (
            "its process was killed and has not ended, which only the system can explain (a broken disk?): it was abandoned"
            if attempt.killable
            else f"it did not stop within {seconds:g} s of being asked, and {runner} cannot be killed: "
            "it was abandoned and goes on in the background"
        )
        ending: Ending
        if isinstance(reason, JobCancelled):
            ending = Ending(
                attempt, State.CANCELLED, outcome="cancelled", error_type="JobCancelled", error=f"cancelled; {words}"
            )
        else:
            stalled = isinstance(reason, JobStalled)
            again = outcome.retries_left(attempt) > 0 and not (stalled and attempt.on_stall == "fail")
            what = str(reason) if stalled else f"timed out after {(claimed.timeout_ms or 0) / 1000:g} s"
            now_ms, offset_ms = self._clock.reading()
            ending = outcome.failure(
                attempt,
                outcome="timed_out",
                error_type=type(reason).__name__,
                error=f"{what}; {words}",
                trace=None,
                now_ms=now_ms,
                offset_ms=offset_ms,
                delay_ms=outcome.retry_delay_ms(attempt, spec.retry if spec else None) if again else None,
            )
        advice = "" if attempt.killable else "; run such a job in a process to have it killed"
        self._logs.last_word(attempt, "WARNING", f"{ending.error}{advice}")
        self._jobs.post_end(ending)
        self._consumer.abandon(attempt)
        look_no_more()  # it may be deaf for hours
        log.warning("job %s (%s): %s", claimed.id, claimed.task, ending.error)
