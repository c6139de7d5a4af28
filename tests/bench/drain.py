"""Drains no-op jobs, in a process of its own: ``python -m tests.bench.drain DB JOBS WORKERS [thread|process]``.

Prints the jobs a second from the first claim to the last commit, results stored. WORKERS are threads of huey's, or warm children.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from miniflow.engine import Engine
from miniflow.huey_adapter import JobsHuey
from miniflow.intake import Submission
from miniflow.settings import Settings

TASK = """
from miniflow import task


@task(executor="{executor}")
def noop(payload: dict) -> dict:
    return {{"ok": True}}
"""


def main() -> None:
    path, jobs, workers, executor = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), (*sys.argv, "thread")[4]
    tasks = Path(f"{path}-tasks")
    tasks.mkdir(exist_ok=True)
    (tasks / "noop.py").write_text(TASK.format(executor=executor))
    engine = Engine(Settings(db=path, tasks=str(tasks), workers=workers, processes=workers), huey=JobsHuey("bench"))
    engine.start()
    drain(engine, 20 * workers)  # processes are warm after that
    print(drain(engine, jobs))
    engine.stop(1)


def drain(engine: Engine, jobs: int) -> float:
    """Jobs a second, of so many that are in the file before the first is claimed."""
    before = engine.writer.counter("completed", "default")
    engine.jobs.claiming = False
    last = ""
    for start in range(0, jobs, 1000):
        batch = [engine.intake.job(Submission(task="noop")) for _ in range(min(1000, jobs - start))]
        engine.writer.call("insert", batch)
        last = batch[-1].id
    ended = threading.Event()
    engine.notices.listen(last, lambda _: ended.set())
    started = engine.clock.boot_ms()
    engine.jobs.claiming = True
    engine.writer.nudge()
    ended.wait(300)
    while (
        engine.writer.counter("completed", "default") < before + jobs
    ):  # the last may have overtaken some of the others
        engine.writer.call("verb", lambda tx: None)
    return jobs * 1000 / max(engine.clock.boot_ms() - started, 1)


if __name__ == "__main__":
    main()
