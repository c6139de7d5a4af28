"""Figures by the minute, kept in the file for charts: what was submitted and ended, how long it took, how much waited.

What is counted (COUNTED) is the difference between a counter and how much of it is in the table already. That second number is
a counter of its own, written with the rows in one transaction, so nothing is counted twice or left out: what a dead process had
not written yet is found at the next start, and goes into the minute of the last change in the file. Times and gauges are what
this process has seen; after a crash the last few seconds of them are missing.

Nothing is written for a group of the writer, and nothing by an idle server: every few seconds somebody looks whether a job has
changed since.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from miniflow import statements as sql
from miniflow.clock import Clock, rfc3339
from miniflow.histogram import JobTimes
from miniflow.operations import Operation
from miniflow.readers import Readers
from miniflow.states import WAITING, State
from miniflow.writer import CHANGES, Transaction, Writer, json_text

COUNTED = ("enqueued", "finished", "failed", "attempts_failed")
"""Counters by task that are kept by the minute."""
WRITTEN = "minutes "
"""Before the name of such a counter: how much of it is in the table."""

LOOK_EVERY_MS = 5_000
MINUTE_MS = 60_000
KEPT_MINUTES = 30 * 24 * 60
PRUNED_MAX = 5_000  # rows deleted in one transaction
HOURS = 24
MEAN_OF = 100  # jobs that the mean of run times is taken of
IDLE = {"thread": 0, "async": 0, "process": 0}


class ProcessUse(NamedTuple):
    """What the processes of jobs do at a moment; totals are since the start."""

    workers: dict[str, bool]
    """By the worker's id, whether it has a job in a process."""
    warm: int
    """Child processes that are there, with a job or waiting for one."""
    recycled: int
    """Children that were replaced for having run their number of jobs, or for their size."""
    started: int
    """Processes, children and commands."""
    died: int
    """Of those, how many ended under a job without being asked to."""
    stopped: int
    """Jobs whose processes were ended for a timeout, a cancel or a limit."""
    left: int
    """Processes that jobs had left behind, and that were ended with them."""


class LoopUse(NamedTuple):
    """Of the loop of async jobs: how late it was at the last look, and at most in the last minute; and by task, for how many
    seconds it has held it."""

    lag_s: float
    lag_max_s: float
    held_s: dict[str, float]


class WorkerUse(NamedTuple):
    """What the workers do at a moment."""

    threads: dict[str, bool]
    """By the worker's id, whether it has a job."""
    coroutines: int
    """`async def` jobs that run."""
    coroutine_slots: int
    busy_s: float
    """Seconds that worker threads have spent in jobs, added up over the threads."""
    abandoned: int
    """Threads given up since the start because their job was deaf to its timeout, or to a cancel."""
    deaf: int
    """Of those, how many are still inside their job."""
    held_s: dict[str, float]
    """By task, for how many seconds it has held up the event loop."""
    processes: ProcessUse = ProcessUse({}, 0, 0, 0, 0, 0, 0)
    async_loop: LoopUse = LoopUse(0.0, 0.0, {})

    @property
    def busy(self) -> dict[str, int]:
        return {
            "thread": sum(self.threads.values()),
            "async": self.coroutines,
            "process": sum(self.processes.workers.values()),
        }


class Minutes:
    """Writes the table. ``look`` is called from one thread, a few times a second or as often as it suits."""

    def __init__(self, writer: Writer, times: JobTimes, clock: Clock, use: Callable[[], WorkerUse]) -> None:
        self._writer, self._times, self._clock, self._use = writer, times, clock, use
        self._looked_ms = clock.now_ms()
        self._next_ms = 0
        self._written_change: int | None = None  # number of the last change that the table knows of
        self._written_busy = IDLE
        self._written_times: dict[str, tuple[int, float, float]] = {}
        self._written_depths: set[str] = set()
        self._pruned_hour = 0

    def catch_up(self, tx: Transaction) -> None:
        """At the start, before anything is counted anew: what the last process had not written."""
        rows = self._counted(tx)
        if rows:
            ((at,),) = tx.run(sql.LAST_CHANGE_AT)
            minute = min(tx.now_ms if at is None else at, tx.now_ms) // MINUTE_MS
            tx.run(sql.ADD_TO_MINUTE, minute, json_text(rows))
        else:  # it stopped in order: the table is as the file is now
            self._written_change = self._writer.counter(*CHANGES)

    def look(self) -> None:
        """Write what has changed, if it is time to; without waiting for it."""
        now_ms = self._clock.now_ms()
        if self._looked_ms <= now_ms < self._next_ms:
            return
        minute = self._minute(now_ms)
        self._next_ms = now_ms - now_ms % LOOK_EVERY_MS + LOOK_EVERY_MS  # so that a look comes with each minute's end
        if self._writer.counter(*CHANGES) != self._written_change or self._use().busy != self._written_busy:
            self._writer.post(Operation("verb", lambda tx: self._write(tx, minute, self._use().busy)))

    def write_last(self, tx: Transaction) -> None:
        """At the stop, when nothing is counted any more and nobody works: what is left."""
        if self._writer.counter(*CHANGES) != self._written_change or self._written_busy != IDLE:
            self._write(tx, self._minute(self._clock.now_ms()), IDLE)

    def _minute(self, now_ms: int) -> int:
        """The minute of what has happened since the last look: that of the time half-way."""
        since_ms, self._looked_ms = self._looked_ms, now_ms
        return (since_ms + now_ms) // 2 // MINUTE_MS if 0 <= now_ms - since_ms < MINUTE_MS else now_ms // MINUTE_MS

    # ----------------------------------------------------------------------------------------------- in the writer's thread

    def _write(self, tx: Transaction, minute: int, busy: dict[str, int]) -> None:
        change = self._writer.counter(*CHANGES)
        times = {task: (t.run.count, t.run.sum, t.wait.sum) for task, t in self._times.by_task.items()}
        depths = {queue: n for queue, n in self._writer.counters.get(State.QUEUED, {}).items() if n > 0}
        added = [*self._counted(tx), *self._times_since(times)]
        gauges = [("queue_depth", queue, depths.get(queue, 0)) for queue in {*depths, *self._written_depths}]
        gauges += [("workers_busy", executor, n) for executor, n in busy.items()]
        if added:
            tx.run(sql.ADD_TO_MINUTE, minute, json_text(added))
        tx.run(sql.SET_IN_MINUTE, minute, json_text(gauges))
        self._prune(tx, minute)

        def written() -> None:
            self._written_change, self._written_busy = change, busy
            self._written_times, self._written_depths = times, set(depths)

        tx.on_commit(written)

    def _counted(self, tx: Transaction) -> list[tuple[str, str, int]]:
        """By how much the counters are ahead of the table, and that they will not be."""
        rows = []
        for name in COUNTED:
            written = self._writer.counters.get(WRITTEN + name, {})
            for task, n in self._writer.counters.get(name, {}).items():
                ahead = n - written.get(task, 0)
                if ahead:
                    rows.append((name, task, ahead))
                    tx.count(WRITTEN + name, task, ahead)
        return rows

    def _times_since(self, times: dict[str, tuple[int, float, float]]) -> list[tuple[str, str, float]]:
        rows = []
        for task, now in times.items():
            before = self._written_times.get(task, (0, 0, 0))
            for name, a, b in zip(("runs", "run_ms", "wait_ms"), before, now, strict=True):
                if b != a:
                    rows.append((name, task, b - a))
        return rows

    def _prune(self, tx: Transaction, minute: int) -> None:
        """Once an hour, in steps that hold up nobody."""
        hour = minute // 60
        if hour != self._pruned_hour and tx.change(sql.PRUNE_MINUTES, minute - KEPT_MINUTES, PRUNED_MAX) < PRUNED_MAX:
            tx.on_commit(lambda: setattr(self, "_pruned_hour", hour))


class Minute(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What happened in one minute. By task: how many jobs, how many executions ended (``runs``), and the sums of how long those
    ran and had waited. By queue and by executor: how many waited and worked at the last look."""

    minute: str
    enqueued: dict[str, int] = {}
    finished: dict[str, int] = {}
    failed: dict[str, int] = {}
    attempts_failed: dict[str, int] = {}
    runs: dict[str, int] = {}
    run_ms: dict[str, int] = {}
    wait_ms: dict[str, int] = {}
    queue_depth: dict[str, int] = {}
    workers_busy: dict[str, int] = {}


class MinutesPage(msgspec.Struct, kw_only=True):
    """The minutes in which something happened, oldest first."""

    items: list[Minute]


class Hour(msgspec.Struct, kw_only=True):
    """What happened in one hour, over all tasks."""

    hour: str
    enqueued: int = 0
    finished: int = 0
    failed: int = 0


class Stats(msgspec.Struct, kw_only=True):
    """How many jobs there are, by queue and state, and what happened in the last 24 hours."""

    queues: dict[str, dict[str, int]]
    throughput_per_hour: list[Hour]


class Dashboard(msgspec.Struct, kw_only=True, rename="camel"):
    """Jobs in the file. ``pending`` are all that wait, for a worker or for their time."""

    total_tasks: int
    pending: int
    in_progress: int
    completed: int
    failed: int
    dlq_counts: int


class SystemHealth(msgspec.Struct, kw_only=True, rename="camel"):
    """Jobs that a worker could begin now, and the workers."""

    messages_ready: int
    workers_online: int


class Summary(msgspec.Struct, kw_only=True, rename="camel"):
    """The system in a few numbers, in the names that an earlier service gave them."""

    avg_processing_time_seconds: float
    dashboard_metrics: Dashboard
    system_health: SystemHealth


class History:
    """Reads the table."""

    def __init__(self, readers: Readers, writer: Writer, clock: Clock) -> None:
        self._readers, self._writer, self._clock = readers, writer, clock

    async def minutes(self, since_ms: int, until_ms: int) -> list[msgspec.Raw]:
        """The minutes from that of ``since_ms`` up to ``until_ms`` in which something happened, oldest first; each a Minute."""
        rows = await self._readers.fetch(sql.MINUTES_BETWEEN, since_ms // MINUTE_MS, -(-until_ms // MINUTE_MS))
        return [
            msgspec.Raw(f'{{"minute":"{_to_the_second(minute * MINUTE_MS)}",{figures[1:]}'.encode())
            for minute, figures in rows
        ]

    async def stats(self) -> Stats:
        this_hour = self._clock.now_ms() // (60 * MINUTE_MS)
        hours = {
            hour: Hour(hour=_to_the_second(hour * 60 * MINUTE_MS))
            for hour in range(this_hour - HOURS + 1, this_hour + 1)
        }
        # One statement, so one moment of the file: what is not in the table yet is the difference of two counters.
        rows = await self._readers.fetch(sql.THROUGHPUT_SINCE, (this_hour - HOURS + 1) * 60)
        for hour, name, n in rows:
            figures = hours.get(this_hour if hour is None else hour)
            if figures is not None:  # else of the future: somebody has set the clock back
                setattr(figures, name, getattr(figures, name) + n)
        return Stats(queues=self.by_queue(), throughput_per_hour=list(hours.values()))

    async def summary(self, workers_online: int) -> Summary:
        ((mean_ms,),) = await self._readers.fetch(sql.MEAN_RUN_MS, MEAN_OF)
        n = {state: self._writer.total(state) for state in State}
        return Summary(
            avg_processing_time_seconds=(mean_ms or 0) / 1000,
            dashboard_metrics=Dashboard(
                total_tasks=sum(n.values()),
                pending=sum(n[state] for state in WAITING),
                in_progress=n[State.RUNNING],
                completed=n[State.COMPLETED],
                failed=n[State.DEAD_LETTER],
                dlq_counts=n[State.DEAD_LETTER],
            ),
            system_health=SystemHealth(messages_ready=n[State.QUEUED], workers_online=workers_online),
        )

    def by_queue(self) -> dict[str, dict[str, int]]:
        """Jobs by queue and state; ``default`` is there also before it is used."""
        counters = self._writer.counters
        names = sorted({"default", *(queue for state in State for queue in counters.get(state, {}))})
        return {queue: {state.value: counters.get(state, {}).get(queue, 0) for state in State} for queue in names}


def _to_the_second(ms: int) -> str:
    return f"{(rfc3339(ms) or '')[:19]}Z"
