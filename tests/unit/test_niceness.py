"""The processes of jobs stand back behind the server."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from miniflow.clock import SystemClock
from miniflow.executors import niceness
from miniflow.executors.children import Processes
from miniflow.executors.niceness import Niceness
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has priority classes")
grouped = pytest.mark.skipif(
    not Path("/proc/self/autogroup").exists() or not Path("/proc/self/autogroup").read_text(),
    reason="this system does not group processes by session",
)
SLEEPS = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


@pytest.fixture
def session() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(SLEEPS, start_new_session=True) as process:
        yield process
        process.kill()


@pytest.fixture
def of_a_job() -> Iterator[int]:
    """A process as a job's is started, with a niceness of 5."""
    processes = Processes(SystemClock(), grace_ms=100, niceness=5)
    tree = processes.start(SLEEPS, env=os.environ)
    yield tree.pid
    tree.end()
    for pipe in (tree.process.stdout, tree.process.stderr):
        assert pipe is not None
        pipe.close()
    processes.close()


def test_a_process_of_a_job_is_nicer_than_the_server(of_a_job: int) -> None:
    assert os.getpriority(os.PRIO_PROCESS, of_a_job) == min(os.getpriority(os.PRIO_PROCESS, 0) + 5, 19)


@grouped
def test_so_is_its_session_where_the_system_shares_the_cores_out_among_sessions(of_a_job: int) -> None:
    wanted = min(niceness.own_group() + 5, 19)
    wait_until(lambda: niceness.group_of(of_a_job), what="the niceness of the session", until=wanted.__eq__)


@grouped
def test_what_the_system_does_not_take_at_once_is_given_later_and_nothing_stays_open(
    session: subprocess.Popen[bytes],
) -> None:
    may = threading.Event()
    written: list[bytes] = []

    def write(file: int, text: bytes) -> int:
        if not may.is_set():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        written.append(text)
        return len(text)

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    standing = Niceness(7, write=write, pause_s=0.001)
    for _ in range(3):
        standing.give(session.pid)
    assert repr(standing) == "<Niceness 7 [3 to be given]>"
    may.set()
    wait_until(lambda: repr(standing), what="all to be given", until="<Niceness 7 [0 to be given]>".__eq__)
    wait_until(open_files, what="their files to be closed", until=before.__eq__)
    assert written == [b"%d" % min(niceness.own_group() + 7, 19)] * 3
    standing.give(session.pid)  # and from there on at once again
    assert len(written) == 4


@grouped
def test_where_no_thread_can_be_started_the_next_process_brings_it_up_again(
    session: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[BaseException | None] = [BlockingIOError(), None, None]

    def write(file: int, text: bytes) -> int:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return len(text)

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    standing = Niceness(7, write=write)
    standing.give(session.pid)
    assert repr(standing) == "<Niceness 7 [1 to be given]>"
    standing.give(session.pid)
    assert repr(standing) == "<Niceness 7 [0 to be given]>"


def test_none_is_given_to_a_process_that_has_ended_or_where_none_is_wanted(session: subprocess.Popen[bytes]) -> None:
    Niceness(0).give(session.pid)
    assert os.getpriority(os.PRIO_PROCESS, session.pid) == os.getpriority(os.PRIO_PROCESS, 0)
    session.kill()
    session.wait()
    Niceness(5).give(session.pid)
