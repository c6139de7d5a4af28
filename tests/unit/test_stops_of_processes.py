"""Jobs in processes that are asked to stop at an awkward moment: before their process is ready, in the midst of what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from miniflow.engine import Engine
from miniflow.huey_adapter import JobsHuey
from miniflow.settings import Settings
from miniflow.states import State
from tests.engines import cancel, submit, wait_for_state
from tests.invariants import check_invariants
from tests.waiting import wait_until

LOADS_SLOWLY = """
import os
import time
from pathlib import Path

from miniflow import task

folder = Path(__file__).parent
if "MINIFLOW_PROCESS" in os.environ:
    (folder / "loading").touch()
    while not (folder / "gate").exists():
        time.sleep(0.005)


@task(executor="process")
def work() -> str:
    (folder / "begun").touch()
    return "done"
"""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    running: list[Engine] = []

    def with_tasks(text: str, **more: Any) -> Engine:
        tasks = tmp_path / "tasks"
        tasks.mkdir()
        (tasks / "jobs.py").write_text(text)
        values: dict[str, Any] = {"workers": 1, "processes": 1, "stop_grace": 60} | more
        engine = Engine(Settings(db=str(tmp_path / "jobs.db"), tasks=str(tasks), **values), huey=JobsHuey())
        running.append(engine)
        engine.start()
        return engine

    yield with_tasks
    for engine in running:
        engine.stop(5)
        check_invariants(engine.database.path, stopped=True, replayed=True)


def test_a_job_that_is_cancelled_while_its_process_loads_the_tasks_does_not_begin(
    make: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make(LOADS_SLOWLY)
    job_id = submit(engine, "work")
    wait_until((tmp_path / "tasks" / "loading").exists, 20, "its process to load the tasks")
    assert cancel(engine, job_id) == State.RUNNING
    wait_until(lambda: engine.lane.children.processes.stopped_total, 5, "its process to be asked")
    (tmp_path / "tasks" / "gate").touch()

    assert wait_for_state(engine.database.path, job_id, timeout_s=20).state == State.CANCELLED
    assert not (tmp_path / "tasks" / "begun").exists()
