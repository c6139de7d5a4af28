"""Runs workflows of no-op steps, in a process of its own: ``python -m tests.bench.workflows DB SHAPE COUNT [WORKERS]``.

Prints the steps a second, from the first claim to the end of the last workflow. SHAPE is ``three`` (COUNT workflows of three
steps in order), ``chain`` (one of COUNT steps in order) or ``wide`` (one of COUNT steps at once, and one that waits for all).
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from miniflow.engine import Engine
from miniflow.huey_adapter import JobsHuey
from miniflow.operations import Operation, ThreadWaiter
from miniflow.settings import Settings
from miniflow.workflow_graph import WorkflowSubmission
from tests.bench.drain import TASK


def submission(steps: list[dict[str, Any]]) -> WorkflowSubmission:
    return msgspec.convert({"name": "bench", "steps": steps}, WorkflowSubmission)


def three() -> list[dict[str, Any]]:
    return [{"name": name, "task": "noop"} for name in ("a", "b", "c")]


def steps_of(shape: str, count: int) -> list[dict[str, Any]]:
    names = [f"s{n}" for n in range(count)]
    if shape == "chain":
        return [{"name": name, "task": "noop"} for name in names]
    return [
        *({"name": name, "task": "noop", "needs": []} for name in names),
        {"name": "end", "task": "noop", "needs": names},
    ]


def run(engine: Engine, wanted: list[list[dict[str, Any]]]) -> float:
    """Steps a second, of workflows that are in the file before the first step is claimed."""
    engine.jobs.claiming = False
    before = engine.writer.counter("workflows", "completed")
    operations = [Operation("workflow", engine.workflow_intake.workflow(submission(steps))) for steps in wanted]
    operations[-1].waiter = waiter = ThreadWaiter()
    engine.writer.post(*operations)
    waiter.wait()
    last = operations[-1].value.id
    ended = threading.Event()
    engine.notices.listen(last, lambda _: ended.set())
    started = engine.clock.boot_ms()
    engine.jobs.claiming = True
    engine.writer.nudge()
    ended.wait(300)
    while engine.writer.counter("workflows", "completed") < before + len(wanted):
        engine.writer.call("verb", lambda tx: None)
    return sum(map(len, wanted)) * 1000 / max(engine.clock.boot_ms() - started, 1)


def main() -> None:
    path, shape, count, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int((*sys.argv, "4")[4])
    tasks = Path(f"{path}-tasks")
    tasks.mkdir(exist_ok=True)
    (tasks / "noop.py").write_text(TASK.format(executor="thread"))
    engine = Engine(Settings(db=path, tasks=str(tasks), workers=workers), huey=JobsHuey("bench"))
    engine.start()
    run(engine, [three()] * 10)
    print(run(engine, [three()] * count if shape == "three" else [steps_of(shape, count)]))
    engine.stop(1)


if __name__ == "__main__":
    main()
