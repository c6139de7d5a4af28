"""Ends the processes of jobs when their server has died without doing so.

A process of its own, since the server cannot: ``kill -9`` leaves it no time. It waits for the end of its standard input, which
the server holds open, and then ends everything that carries the server's mark, or descends from that. After a stop in order it
finds nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import psutil

from miniflow import packaged
from miniflow.executors import tree

COMMAND = "_warden"
LOOKS, LOOK_S = 200, 0.02
LOOKS_AT_LEAST = 5  # a process that was just being started shows up a moment later


def folders_of(mark: str) -> str:
    """What the names of temporary folders begin with that go with the processes of a server."""
    return f"miniflow-{mark}-"


class Warden:
    """The server's end of it."""

    def __init__(self, mark: str) -> None:
        """``mark`` is the server's; those of its processes begin with it and a dot."""
        self._process = subprocess.Popen(
            packaged.program(COMMAND, mark, str(os.getpid())),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=tree.program_environment(),
            start_new_session=tree.POSIX,
            creationflags=0 if tree.POSIX else getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        packaged.leave_to_warden()
        stdin = self._process.stdin
        assert stdin is not None
        self._stdin: IO[bytes] = stdin

    def __repr__(self) -> str:
        return f"<Warden process {self._process.pid}>"

    @property
    def there(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> None:
        """Until it has ended."""
        self._process.wait()

    def dismiss(self) -> None:
        """The server has ended its processes itself."""
        self._stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)


def main() -> None:
    """In the process of its own: wait for the end of the server, then end what it has left."""
    mark, server = sys.argv[2], int(sys.argv[3])
    for number in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, number):
            signal.signal(getattr(signal, number), signal.SIG_IGN)
    while os.read(sys.stdin.fileno(), 4096):
        pass
    for look in range(LOOKS):
        found = _left(mark)
        groups = set()
        for process in found:
            groups.add(_group(process.pid))
            try:
                process.kill()
            except psutil.Error:  # it has ended
                pass
        for group in groups - {None, _group(os.getpid())}:
            _end_group(group)
        if not found and look >= LOOKS_AT_LEAST:
            break
        time.sleep(LOOK_S)
    for folder in Path(tempfile.gettempdir()).glob(f"{folders_of(mark)}*"):
        shutil.rmtree(folder, ignore_errors=True)
    if os.getppid() != server:  # it was not dismissed
        packaged.remove_unpacked()


def _left(mark: str) -> list[psutil.Process]:
    """What carries the server's mark, and what descends from that: one may have an environment of its own. They are stopped where
    they are found, so that none of them is left without its parent, and unfound, by the end of that."""
    found: dict[int, psutil.Process] = {}
    while True:
        families = [[one, *_descendants(one)] for one in tree.marked(lambda other: other.startswith(f"{mark}."))]
        new = {one.pid: one for family in families for one in family if one.pid not in found}
        if not new:
            return list(found.values())
        for one in new.values():
            try:
                one.suspend()
            except (psutil.Error, OSError):  # it has ended
                pass
        found |= new


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:  # it has ended
        return []


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid) if tree.POSIX else None
    except OSError:  # it has ended
        return None


def _end_group(group: int | None) -> None:
    try:
        if group is not None:
            os.killpg(group, signal.SIGKILL)
    except OSError:  # nobody is left in it
        pass
