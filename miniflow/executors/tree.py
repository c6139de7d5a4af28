"""A process that runs jobs, and all that it starts: measured together, stopped together, ended together.

It leads a process group (and session) of its own, and carries a mark in its environment that its descendants inherit. So what
leaves the group, or loses its parent, is found all the same: by descent while its ancestors live, by the mark after that.
Nothing here forks: processes are started afresh, with no file of the server's but the ends of their own pipes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import psutil

MARK = "MINIFLOW_PROCESS"
"""The environment variable with the mark: the server's own, a dot, and a number."""
POSIX = os.name == "posix"
LOOK_S = 0.01
GONE_WITHIN_S = 5.0
LOOKS_MIN = 20
"""Before what is left counts as what no signal ends: where a machine lets nobody run for seconds, that says nothing."""


class Usage(NamedTuple):
    """What a tree uses at a moment: resident bytes, processor seconds since the start of its processes, open files of the
    one that has most."""

    memory: int
    cpu_s: float
    open_files: int


class Tree:
    """One process and its descendants."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        mark: str,
        env: Mapping[str, str],
        cwd: str | Path | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        stands_back: bool = False,
    ) -> None:
        """Starts it. OSError where that cannot be. Its outputs are pipes, unbuffered. ``stands_back`` is for Windows, where a
        process is nicer than others from its start on; elsewhere see ``niceness``."""
        self.mark = mark
        self.process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={**env, MARK: mark},
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=POSIX,
            creationflags=0 if POSIX else _windows_flags(stands_back),
        )
        self.pid = self.process.pid
        try:
            self._leader: psutil.Process | None = psutil.Process(self.pid)
        except psutil.Error:  # on Windows it may be gone already
            self._leader = None

    def __repr__(self) -> str:
        return f"<Tree of process {self.pid} [{'ended' if self.exited() else 'running'}]>"

    # ------------------------------------------------------------------------------------------------------ its leader

    def exited(self) -> bool:
        """Whether the process itself has ended. It is not reaped here: its number is its group's, and must stay taken."""
        if self.process.returncode is not None:
            return True
        if not POSIX:
            return self.process.poll() is not None
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # reaped by somebody else
            return True

    def exits_within(self, timeout_s: float) -> bool:
        """Whether the process has ended, or does so soon."""
        deadline = time.monotonic() + timeout_s
        while not self.exited():
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_S / 10)
        return True

    def watch(self, wake: Callable[[], None]) -> int | None:
        """Have the end of the process noticed: a file descriptor that is readable from then on, or else ``wake`` is called."""
        if hasattr(os, "pidfd_open"):
            try:
                return os.pidfd_open(self.pid)
            except OSError:  # an old kernel, or no descriptor left
                pass

        def wait() -> None:
            if POSIX:
                try:
                    os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
                except ChildProcessError:  # it was reaped: it has ended
                    pass
            else:
                self.process.wait()
            wake()

        threading.Thread(target=wait, name="miniflow-exit", daemon=True).start()
        return None

    def reap(self) -> int:
        """The exit code of the process, which has ended: negative for a signal."""
        return self.process.wait(GONE_WITHIN_S)

    # ----------------------------------------------------------------------------------------------------- all of them

    def ask(self) -> None:
        """SIGTERM to all of them, and SIGCONT: one that was stopped hears it then. On Windows a Ctrl-Break."""
        if not POSIX:
            try:
                self.process.send_signal(signal.CTRL_BREAK_EVENT)  # type: ignore[attr-defined,unused-ignore]
            except OSError:  # it has ended, or has no console
                pass
            return
        outside = [other for other in self._descendants() if not self._in_group(other.pid)]
        for number in (signal.SIGTERM, signal.SIGCONT):
            self._signal_group(number)
            for other in outside:
                _signal(other, number)

    def end(self) -> int:
        """SIGKILL to all of them, again until none is left; how many there were beside the process itself.

        What no signal ends (a process that waits for a broken disk) is left behind after GONE_WITHIN_S and LOOKS_MIN looks."""
        deadline, looks = time.monotonic() + GONE_WITHIN_S, 0
        ended: dict[int, psutil.Process] = {}
        while True:
            gone = self.exited()  # before the look: what it had started until then is there to be seen
            others = {other.pid: other for other in [*self._descendants(), *marked(lambda mark: mark == self.mark)]}
            # One that is dying has neither its parent nor its mark any more, and may take its time on a busy machine.
            others = {pid: other for pid, other in (ended | others).items() if pid != self.pid and _is_alive(other)}
            for other in others.values():
                _signal(other, signal.SIGKILL if POSIX else signal.SIGTERM)
            ended |= others
            if POSIX:
                self._signal_group(signal.SIGKILL)
            elif not self.exited():
                self.process.kill()
            looks += 1
            if (gone and not others) or (time.monotonic() > deadline and looks >= LOOKS_MIN):
                break
            time.sleep(LOOK_S)
        if self.exited():
            self.reap()
        return len(ended)

    def end_group(self) -> bool:
        """The process has ended: what it has left behind in its group is ended too. Whether there was anything. What has
        left the group on purpose, a daemon, is let be."""
        self.reap()
        return POSIX and self._signal_group(signal.SIGKILL)

    def usage(self, *, files: bool = False) -> Usage:
        """What all of them use now. Takes some milliseconds. Without ``files`` nobody counts those."""
        memory = open_files = 0
        cpu_s = 0.0
        for one in [self._leader, *self._descendants()]:
            try:
                if one is None:
                    continue
                with one.oneshot():
                    memory += one.memory_info().rss
                    times = one.cpu_times()
                    # Of those of its children that have ended, its own account has it.
                    cpu_s += times.user + times.system + times.children_user + times.children_system
                    if files:
                        open_files = max(open_files, _open_files(one))
            except psutil.Error:  # it has ended meanwhile
                continue
        return Usage(memory, cpu_s, open_files)

    def _descendants(self) -> list[psutil.Process]:
        try:
            return [] if self._leader is None else self._leader.children(recursive=True)
        except psutil.Error:  # it has ended
            return []

    def _in_group(self, pid: int) -> bool:
        try:
            return os.getpgid(pid) == self.pid
        except OSError:  # it has ended
            return True

    def _signal_group(self, number: int) -> bool:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS says the latter where only the dead are left
            return False
        return True


def marked(wanted: Callable[[str], bool]) -> list[psutil.Process]:
    """The processes whose mark is ``wanted``, wherever they have gone to. Looks at all processes of the user."""
    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK)
        except (psutil.Error, OSError):  # somebody else's, or it has ended
            continue
        if mark is not None and wanted(mark):
            found.append(process)
    return found


def program_environment() -> dict[str, str]:
    """The environment that the program is started anew with: it finds what this process found."""
    path = [os.path.abspath(entry or os.curdir) for entry in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # it has ended
        return False


def _open_files(process: psutil.Process) -> int:
    count: Callable[[], int] = process.num_fds if POSIX else getattr(process, "num_handles")  # noqa: B009 - not here
    return count()


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)  # looks whether the number has passed to another process
    except (psutil.Error, OSError):  # it has ended
        pass


def _windows_flags(stands_back: bool) -> int:
    flags = {"CREATE_NEW_PROCESS_GROUP": True, "CREATE_NO_WINDOW": True, "BELOW_NORMAL_PRIORITY_CLASS": stands_back}
    return sum(getattr(subprocess, name, 0) for name, wanted in flags.items() if wanted)
