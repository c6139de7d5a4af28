"""How many jobs run at once: worker threads, coroutines on the event loop, and processes. Set at start, changed while the server
runs.

A change is kept in the file and holds over a restart, for as long as the settings say what they said when it was made: who
edits the settings afterwards means the new ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from miniflow import statements as sql
from miniflow.control import PoolSize, PoolSizeChange
from miniflow.errors import ShuttingDown
from miniflow.executors.coroutine import AsyncLane
from miniflow.executors.lane import ProcessLane
from miniflow.huey_consumer import JobConsumer
from miniflow.jobs import Jobs
from miniflow.readahead import ReadAhead
from miniflow.writer import Transaction

log = logging.getLogger("miniflow.pool")

META_KEY = "pool"


class _Kept(msgspec.Struct):
    """What is kept in the file: the size, and that of the settings when it was chosen."""

    size: PoolSize
    settings: PoolSize


class Pool:
    def __init__(
        self,
        jobs: Jobs,
        readahead: ReadAhead,
        consumer: JobConsumer,
        async_lane: AsyncLane,
        lane: ProcessLane,
        size: PoolSize,
    ) -> None:
        """``size`` is what the settings say."""
        self._jobs, self._readahead, self._consumer = jobs, readahead, consumer
        self._async_lane, self._lane = async_lane, lane
        self._settings = self.size = size
        self._started = False
        self._crashed: list[int] = []

    def __repr__(self) -> str:
        return f"<Pool [{self.size}]>"

    def load(self, tx: Transaction, crashed: list[int]) -> None:
        """At start: the size that was chosen before. ``crashed`` are rows under which the last process died: they are run
        one by one, as soon as anything is."""
        for (text,) in tx.run(sql.META_GET, META_KEY):
            kept = msgspec.json.decode(text, type=_Kept)
            if kept.settings == self._settings:
                self.size = kept.size
                log.info("%s, as was chosen while the server ran before", self.size)
        if self.size.workers:
            self._jobs.quarantine.put(tx, crashed)
        else:
            self._crashed = crashed

    def start(self) -> None:
        """Run jobs, if there is to be anybody who does."""
        self._apply(self.size)

    def resize(self, change: PoolSizeChange) -> Callable[[Transaction], PoolSize]:
        """A verb: so many jobs at once, from now on. A worker that is one too many ends when its job has."""

        def verb(tx: Transaction) -> PoolSize:
            if not self._jobs.accepting:
                raise ShuttingDown
            size = change.of(self.size)
            kept = _Kept(size, self._settings)
            tx.run(sql.META_PUT, META_KEY, msgspec.json.encode(kept).decode())
            if not size.workers and self._jobs.claiming:
                tx.on_rollback(lambda: self._claim(True))
                self._claim(False)  # now: this transaction may come to a claim yet
                self._jobs.give_back(tx, lambda _: True)
            elif size.workers and self._crashed:
                self._jobs.quarantine.put(tx, self._crashed)
            tx.on_commit(lambda: self._apply(size))
            return size

        return verb

    def _apply(self, size: PoolSize) -> None:
        self.size = size
        if size.workers and not self._started:
            self._async_lane.start()
            self._lane.start()
            self._started = True
        self._consumer.resize(size.workers)
        self._async_lane.resize(size.async_slots)
        self._lane.resize(size.processes)
        if size.workers:
            self._crashed = []
            self._readahead.target = max(self._readahead.target, 2 * size.workers)
        if size.workers and self._jobs.accepting:
            self._claim(True)
            self._jobs.writer.nudge()

    def _claim(self, claim: bool) -> None:
        self._jobs.claiming = self._jobs.quarantine.open = claim
