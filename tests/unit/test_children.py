"""Starting children, and what they outlive."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from miniflow.clock import SystemClock
from miniflow.executors import children
from miniflow.executors.children import Child, Children, Processes
from miniflow.executors.messages import Failed, Run
from tests.waiting import wait_until


@pytest.mark.skipif(sys.platform != "linux", reason="counts what is open as Linux tells it")
def test_a_child_that_cannot_be_listened_to_is_ended_and_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: Any) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    processes = Processes(SystemClock(), grace_ms=100, niceness=0)
    warm = Children(processes, lambda: children.hello(str(tmp_path), debug=False), jobs_max=10, memory_max=10**9)
    warm.discard(warm.acquire())  # with the first one comes the warden
    before = len(os.listdir("/proc/self/fd")), len(psutil.Process().children())
    monkeypatch.setattr(children, "inbox", none_left)
    for _ in range(2):
        with pytest.raises(OSError, match="open files"):
            warm.acquire()
    assert (len(os.listdir("/proc/self/fd")), len(psutil.Process().children())) == before
    assert warm.alive == 0
    processes.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the parent of a process is a process")
def test_a_child_outlives_the_worker_that_started_it(tmp_path: Path) -> None:
    processes = Processes(SystemClock(), grace_ms=100, niceness=0)
    warm = Children(processes, lambda: children.hello(str(tmp_path), debug=False), jobs_max=10, memory_max=10**9)
    started: list[Child] = []
    may_go = threading.Event()

    def work() -> None:
        started.append(warm.acquire())
        may_go.wait(60)

    worker = threading.Thread(target=work)
    worker.start()
    wait_until(lambda: bool(started and started[0].inbox.wait(100)), what="the child to say that it is ready")
    child = started[0]
    own = Path(f"/proc/self/task/{worker.native_id}")
    may_go.set()
    worker.join()
    wait_until(lambda: not own.exists(), what="the worker's thread to be gone for the system too")
    # a signal that was on its way has come when the child answers what it was sent after it
    child.send(Run("1", "no such task", "default", 1, 0, "{}", None, "result", 1_000, None, None, None, None, False))
    answers: list[Any] = []

    def answer() -> bool:
        for name, data in child.inbox.wait(100):
            if name == "messages" and data:
                answers.extend(child.frames.feed(data))
        return bool(answers) or child.tree.exited()

    wait_until(answer, what="the child's answer, or its end")
    assert not child.tree.exited()
    assert isinstance(answers[0], Failed)
    warm.discard(child)
    processes.close()


def test_a_child_that_was_to_be_ready_for_the_next_job_is_ended_where_the_server_stops_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = Processes(SystemClock(), grace_ms=100, niceness=0)
    warm = Children(processes, lambda: children.hello(str(tmp_path), debug=False), jobs_max=10, memory_max=10**9)
    start = warm._start

    def while_it_stops() -> Child:
        child = start()
        warm.close()
        return child

    monkeypatch.setattr(warm, "_start", while_it_stops)
    warm.prepare()
    assert warm.alive == 0
    processes.close()


def only_warden() -> psutil.Process:
    """The one that there is. It is a process a moment before the system knows its command line."""
    (found,) = wait_until(wardens, what="the warden", until=lambda found: len(found) == 1)
    return found


def wardens() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if one.status() != "zombie" and "_warden" in one.cmdline()]


@pytest.mark.skipif(sys.platform == "win32", reason="finds it by its command line")
def test_a_warden_that_was_killed_is_replaced_before_a_warm_child_takes_a_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "WARDEN_LIVES_S", 3600.0)  # none follows it at once
    processes = Processes(SystemClock(), grace_ms=100, niceness=0)
    warm = Children(processes, lambda: children.hello(str(tmp_path), debug=False), jobs_max=10, memory_max=10**9)
    child = warm.acquire()
    child.ready, child.weigh_at_ms = True, SystemClock().boot_ms() + 600_000
    ahead = warm.jobs_ahead(child)
    warden = only_warden()
    warden.kill()
    wait_until(lambda: not processes.watched, what="its end to be seen")
    assert warm.jobs_ahead(child) == 0  # none begins past it
    warm.release(child)

    assert warm.acquire() is child
    another = only_warden()
    assert another.pid != warden.pid
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "has ended; another is started" in caplog.text
    assert warm.jobs_ahead(child) == ahead
    warm.discard(child)
    processes.close()
    assert not wardens()


@pytest.mark.skipif(sys.platform == "win32", reason="finds it by its command line")
def test_a_warden_that_was_killed_is_replaced_though_no_job_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "WARDEN_LIVES_S", 0.0)
    processes = Processes(SystemClock(), grace_ms=100, niceness=0)
    running = processes.start([sys.executable, "-c", "input()"], env=dict(os.environ), stdin=subprocess.PIPE)
    warden = only_warden()
    warden.kill()
    wait_until(lambda: "has ended; another is started" in caplog.text and processes.watched, what="another one")
    another = only_warden()
    assert another.pid != warden.pid
    with running.process:  # closes its pipes
        running.end()
    processes.close()
    assert not wardens()
    assert len(caplog.records) == 1  # one that is dismissed is not followed
