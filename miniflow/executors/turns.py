"""Whose turn it is: the pipe by which a child begins a job that it was handed ahead, or does not.

A child that had to ask for each short job would wait longer than it works. So it is handed the next ones while it runs one, and
for each there is a byte in this pipe. Reading a byte is the right to begin the next of them, and only one reads it: the child,
which begins it, or the server, which takes the last of them back and gives it to somebody else. So a job stays `queued`, and can
be cancelled, paused or displaced, until the moment that it begins.
"""

from __future__ import annotations

import os
import sys
from typing import Any

POSSIBLE = sys.platform == "linux"
"""Elsewhere there is no such pipe, or no way to ask another one whether it is empty, which a child must know as well."""
GIVEN_MAX = 256


class Turns:
    """The server's end. Turns are given and taken back by one thread at a time."""

    def __init__(self) -> None:
        self.reading, self._writing = os.pipe()  # the end for reading is for both, and goes on being the server's too
        os.set_blocking(self.reading, False)

    def __repr__(self) -> str:
        return f"<Turns [{self.reading}]>"

    def give(self, count: int) -> None:
        """So many jobs may be begun. They are sent after that: a child that has one and finds no turn drops it."""
        os.write(self._writing, b"!" * count)

    def take_back(self) -> int:
        """How many of the turns given were not taken: those of the last jobs. They cannot be begun any more."""
        try:
            return len(os.read(self.reading, GIVEN_MAX))
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self.reading)
        os.close(self._writing)


class ChildTurns:
    """The child's end: a file descriptor that it has inherited, and that no program it starts does."""

    def __init__(self, reading: int) -> None:
        import fcntl
        import termios

        self._reading, self._output = reading, os.dup(2)  # a task may close that, or put another in its place
        os.set_inheritable(reading, False)
        self._ask: Any = fcntl.ioctl
        self._unread, self._count = termios.FIONREAD, bytearray(4)

    def __repr__(self) -> str:
        return "<ChildTurns>"

    def take(self) -> bool:
        """Whether the next job that was handed ahead may begin; or else its turn was taken back."""
        try:
            return bool(os.read(self._reading, 1))
        except BlockingIOError:
            return False

    def read_so_far(self) -> bool:
        """Whether the server has read all that was written to the pipe of standard error: what comes after is the next job's."""
        self._ask(self._output, self._unread, self._count)
        return not any(self._count)
