"""Starting children where the system has not enough of something."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from miniflow.clock import SystemClock
from miniflow.executors import children
from miniflow.executors.children import Children, Processes


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
