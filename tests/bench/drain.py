"""Drains no-op jobs through huey's workers, in a process of its own: ``python -m tests.bench.drain DB JOBS WORKERS``.

Prints the jobs a second from the first claim to the last commit, results stored.
"""

from __future__ import annotations

import sys
import threading

from miniflow import registry
from miniflow.engine import Engine
from miniflow.huey_adapter import JobsHuey
from miniflow.intake import Submission
from miniflow.settings import Settings


def main() -> None:
    path, jobs, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    specs = registry.Registry()
    with registry.collecting(specs):

        @registry.task
        def noop(payload: dict) -> dict:  # type: ignore[type-arg]
            return {"ok": True}

    engine = Engine(Settings(db=path, workers=workers), specs=specs, huey=JobsHuey("bench"))
    engine.start()
    engine.jobs.claiming = False
    last = ""
    for _ in range(0, jobs, 1000):
        batch = [engine.intake.job(Submission(task="noop")) for _ in range(1000)]
        engine.writer.call("insert", batch)
        last = batch[-1].id
    ended = threading.Event()
    engine.notices.listen(last, lambda _: ended.set())
    started = engine.clock.boot_ms()
    engine.jobs.claiming = True
    engine.writer.nudge()
    ended.wait(300)
    while engine.writer.counter("completed", "default") < jobs:  # the last job may have overtaken some of the others
        engine.writer.call("verb", lambda tx: None)
    print(jobs * 1000 / (engine.clock.boot_ms() - started))
    engine.stop(1)


if __name__ == "__main__":
    main()
