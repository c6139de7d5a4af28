"""What can be changed while the server runs: a queue is paused and resumed, limits of a queue or a task are set, and how many
jobs run at once.

Verbs, as those of ``jobs``: one function, one transaction. What they set is in the file when they have answered, and holds over
a restart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from miniflow.errors import InvalidRequest, NotFound
from miniflow.jobs import Jobs
from miniflow.rule_options import LIMIT_MAX
from miniflow.rules import LimitChange, RunTimeLimit, changed
from miniflow.writer import Transaction

Verb = Callable[[Transaction], RunTimeLimit]

WORKERS_MAX = 1000
ASYNC_SLOTS_MAX = 100_000
PROCESSES_MAX = 1000


class QueueChange(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be changed of a queue. What is left out stays; null takes a limit away. ``concurrency`` is how many of its jobs
    run at once, ``rate`` how many begin in a period: ``10/minute``, ``5/30s``."""

    paused: bool | msgspec.UnsetType = msgspec.UNSET
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=LIMIT_MAX)] | msgspec.UnsetType | None = msgspec.UNSET
    rate: str | msgspec.UnsetType | None = msgspec.UNSET


class TaskChange(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be changed of a task, as for a queue. Without a limit of this kind the one holds that its author wrote."""

    concurrency: Annotated[int, msgspec.Meta(ge=1, le=LIMIT_MAX)] | msgspec.UnsetType | None = msgspec.UNSET
    rate: str | msgspec.UnsetType | None = msgspec.UNSET


class PoolSize(msgspec.Struct, frozen=True):
    """How many jobs run at once: in threads, as coroutines, in processes of their own (commands among them)."""

    workers: int
    async_slots: int
    processes: int

    def __str__(self) -> str:
        return f"{self.workers} workers, {self.async_slots} async slots, {self.processes} processes"


class PoolSizeChange(msgspec.Struct, forbid_unknown_fields=True):
    """How many threads, coroutines and processes there are to be. What is left out stays. With ``workers`` 0 no job begins."""

    workers: Annotated[int, msgspec.Meta(ge=0, le=WORKERS_MAX)] | None = None
    async_slots: Annotated[int, msgspec.Meta(ge=1, le=ASYNC_SLOTS_MAX)] | None = None
    processes: Annotated[int, msgspec.Meta(ge=1, le=PROCESSES_MAX)] | None = None

    def of(self, size: PoolSize) -> PoolSize:
        """``size`` with the change made. InvalidRequest if it changes nothing."""
        if self.workers is None and self.async_slots is None and self.processes is None:
            raise InvalidRequest("", "changes nothing; give workers, async_slots or processes")
        return PoolSize(
            size.workers if self.workers is None else self.workers,
            size.async_slots if self.async_slots is None else self.async_slots,
            size.processes if self.processes is None else self.processes,
        )


def change_queue(jobs: Jobs, queue: str, change: QueueChange) -> Verb:
    """Pause or resume a queue, set its limits. Of a paused queue no job begins; those that run go on."""
    limits = LimitChange(change.concurrency, change.rate)

    def verb(tx: Transaction) -> RunTimeLimit:
        before = jobs.rules.of("queue", queue)
        limit = changed(before, limits)
        if change.paused is True and limit.paused_at is None:
            limit = limit._replace(paused_at=tx.now_ms)
        elif change.paused is False:
            limit = limit._replace(paused_at=None)
        if limit != before:
            # What is claimed and has not begun is looked at anew.
            jobs.claims.give_back(tx, lambda row: row.queue == queue, current=limit.paused_at is not None)
            jobs.rules.put(tx, "queue", queue, limit)
        return limit

    return verb


def change_task(jobs: Jobs, task: str, change: TaskChange) -> Verb:
    """Set how many jobs of the task run at once and begin in a period. NotFound for a task that the server does not have."""

    def verb(tx: Transaction) -> RunTimeLimit:
        before = jobs.rules.of("task", task)
        if before == RunTimeLimit() and not jobs.rules.knows(task):
            raise NotFound("task", task)
        limit = changed(before, LimitChange(change.concurrency, change.rate))
        if limit != before:
            jobs.claims.give_back(tx, lambda row: row.task == task)
            jobs.rules.put(tx, "task", task, limit)
        return limit

    return verb
