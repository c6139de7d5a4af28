"""A huey object with a file of its own: ``MiniFlowHuey``, for applications that were written for huey.

In a task file that `miniflow serve` loads it takes part in that server, as ``from miniflow import huey`` does. Anywhere else it
opens the file that it names when it is first used, in the process that it is used in; then ``huey.create_consumer().run()``, or
huey's own program ``huey_consumer``, runs the tasks. One process has the file at a time: others submit over HTTP, to a server.
"""

from __future__ import annotations

import atexit
import threading
from typing import Any

from huey.consumer import Consumer
from huey.exceptions import ConfigurationError

from miniflow import registry
from miniflow.engine import Engine
from miniflow.errors import StoreBusy
from miniflow.huey_adapter import JobsHuey
from miniflow.settings import Settings

STOP_GRACE_S = 30.0
LONG_S = 30 * 86_400.0
ONE_PROCESS = (
    "A huey object's file is open in one process at a time: run the consumer in the process that enqueues "
    "(huey.start(workers=4)), or have `miniflow serve` run the tasks and submit to it with miniflow.Client"
)


class MiniFlowHuey(JobsHuey):
    """In place of ``SqliteHuey``, ``RedisHuey`` and the like: ``huey = MiniFlowHuey("app", filename="app.db")``."""

    def __init__(
        self, name: str = "huey", *, filename: str | None = None, durability: str = "full", **options: Any
    ) -> None:
        """``filename``: where the jobs are; ``NAME.db`` if it is not given. ``durability`` and the further options are those of
        the server's settings and of ``Huey``."""
        super().__init__(name, **options)
        self._file, self._durability = filename or f"{name}.db", durability
        self._own_specs = registry.Registry()
        self._opening = threading.RLock()
        self.engine: Engine | None = None

    def specs_here(self) -> registry.Registry:
        """A server that loads task files collects them; else this object keeps its own."""
        return registry.active(self._own_specs)

    def open(self) -> None:
        """Open the file, without running anything, if it is not open."""
        with self._opening:
            self.start(workers=0 if self.engine is None else self.engine.settings.workers)

    def start(self, workers: int) -> Engine:
        """Run tasks with so many worker threads. Open with another number of them, as it is without any after the first use, the
        file is closed before; what runs then has the grace of ``close``."""
        with self._opening:
            if self.engine is not None and self.engine.settings.workers != workers:
                self.close()
            if self.engine is None:
                settings = Settings(db=self._file, durability=self._durability, workers=workers)
                try:
                    engine = Engine(settings, huey=self, specs=self._own_specs)
                except StoreBusy as busy:
                    raise StoreBusy(f"{busy}. {ONE_PROCESS}") from None
                engine.jobs.timers.paused = not workers  # without a consumer nothing is taken out of the schedule
                engine.start()
                self.engine = engine
                atexit.register(self.close)
            return self.engine

    def close(self, grace_s: float = STOP_GRACE_S) -> None:
        """Give the file back; what was not run is in it. What runs has so long to end."""
        with self._opening:
            engine, self.engine = self.engine, None
            if engine is not None:
                atexit.unregister(self.close)
                self._jobs_storage.give_back_taken()
                engine.stop(grace_s)

    def create_consumer(self, **options: Any) -> EmbeddedConsumer:
        return EmbeddedConsumer(self, **options)


class EmbeddedConsumer(Consumer):
    """What huey's program ``huey_consumer`` runs: huey's own Consumer, its options and signals, with MiniFlow's workers."""

    def start(self) -> None:
        if self.worker_type != "thread":
            raise ConfigurationError(
                f"worker_type {self.worker_type!r}: a huey object on a file of its own runs tasks in threads; "
                "`miniflow serve` has other executors"
            )
        self._set_signal_handlers()  # first: one that comes when the first job has begun already stops it in order, too
        self._running = self.huey.start(self.workers)

    def stop(self, graceful: bool = False) -> None:
        """Begin nothing more, and end. ``graceful`` waits for what runs, at most ``shutdown_timeout`` seconds; what has not ended
        by then goes back to the queue."""
        if self._running is None:
            super().stop(graceful)
            return
        self.stop_flag.set()
        self.huey.close((self.shutdown_timeout or LONG_S) if graceful else 0)

    _running: Engine | None = None

    def check_worker_health(self) -> None:
        """The engine's supervisor sees to it."""
