"""How the processes of jobs stand back behind the server, and behind the machine's other programs, where all want a core.

On Linux the niceness of a process is not enough. Where the kernel groups processes by session (sched(7), "The autogroup
feature": on by default wherever it is built in), niceness counts among those of one session only, and each process of a job
leads a session of its own. So the session's group is given the niceness as well.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable

NICEST = 19
AGAIN_S = 0.1
"""Without privileges the kernel lets one group be changed in a tenth of a second, on the whole machine."""


class Niceness:
    """Given to one process after the other; ``by`` is how much nicer than the server they are to be, 0 for not at all."""

    def __init__(self, by: int, *, write: Callable[[int, bytes], int] = os.write, pause_s: float = AGAIN_S) -> None:
        self.by, self._write, self._pause_s = by, write, pause_s
        self._late: deque[int] = deque()  # files of groups that could not be changed yet
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Niceness {self.by} [{len(self._late)} to be given]>"

    def give(self, pid: int) -> None:
        """To the process, which has just been started and leads its group and session. Returns at once: that of the session
        may follow a moment later."""
        if not self.by or os.name != "posix":
            return
        with contextlib.suppress(OSError):  # it has ended already
            own = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PGRP, pid, min(own + self.by, NICEST))
        try:
            file = os.open(f"/proc/{pid}/autogroup", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:  # not Linux, a kernel without such groups, or it has ended
            return
        with self._lock:
            self._late.append(file)
            if self._thread is None and not self._settle():
                self._thread = threading.Thread(target=self._go_on, name="miniflow-niceness", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # there are no threads to be had: the next process brings it up again
                    self._thread = None

    def _settle(self) -> bool:
        """Whether all have it."""
        wanted = b"%d" % min(own_group() + self.by, NICEST)
        while self._late:
            try:
                self._write(self._late[0], wanted)
            except BlockingIOError:
                return False
            except OSError:  # it has ended, or may not be changed: it runs all the same
                pass
            os.close(self._late.popleft())
        return True

    def _go_on(self) -> None:
        while True:
            time.sleep(self._pause_s)
            with self._lock:
                if self._settle():
                    self._thread = None
                    return


def own_group() -> int:
    """The niceness of the group that the kernel has put this process into; 0 where there are none."""
    return group_of("self")


def group_of(pid: int | str) -> int:
    """That of a process's group."""
    try:
        with open(f"/proc/{pid}/autogroup", encoding="ascii") as file:
            return int(file.read().rpartition(" ")[2])  # "/autogroup-57 nice 10"
    except (OSError, ValueError):
        return 0
