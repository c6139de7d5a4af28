"""Jobs in processes that are asked to stop at an awkward moment: before their process is ready, in the midst of what it says."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from miniflow.engine import Engine
from miniflow.executors.messages import Beat, Frames, FromChild, Said
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


SAYS_ONE_THING = """
import os
import signal

from miniflow.errors import JobInterrupted
from miniflow.executors.child import Child
from miniflow.executors.messages import Beat, Run, Said

child = Child(0, 1)
child.run = Run("id", "work", "default", 1, 0, "{}", None, "max_result_bytes", 1, None, None, None, None)
signal.signal(signal.SIGTERM, child._on_stop)
try:
    child.send(Said("INFO", "x" * 1_000_000))
except JobInterrupted:
    child.send(Beat())
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the pipe how much is in it")
def test_a_stop_in_the_midst_of_a_message_leaves_it_whole() -> None:
    """The server does not read just now, so a part of it is in the pipe when the stop comes."""
    with subprocess.Popen(
        [sys.executable, "-c", SAYS_ONE_THING], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        out = child.stdout
        assert out is not None
        wait_until(lambda: unread(out), 20, "the pipe to be full", until=lambda n: n >= 65_536)
        child.send_signal(signal.SIGTERM)
        wait_until(lambda: handled(child.pid), 5, "it to hear of that")
        found = Frames(FromChild).feed(out.read())

    assert [type(one) for one in found] == [Said, Beat]


def unread(pipe: IO[bytes]) -> int:
    """How many bytes are in it."""
    import fcntl
    import termios

    return int.from_bytes(fcntl.ioctl(pipe.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


def handled(pid: int) -> bool:
    """Whether no signal waits for it any more."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["SigPnd"], 16) == int(status["ShdPnd"], 16) == 0
