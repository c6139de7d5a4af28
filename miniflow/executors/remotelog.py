"""The log of a job that runs in another process, at that end: lines are sent as they are complete."""

from __future__ import annotations

import threading
from collections.abc import Callable

from miniflow.executors.messages import Said
from miniflow.outcome import middle_out

LINE_CHARS_MAX = 16_000
STREAM_LEVELS = ("INFO", "WARNING")
"""Of lines printed to standard output and to standard error, as in ``joblog``."""


class RemoteLog:
    """What ``context.Log`` asks for."""

    __slots__ = ("_closed", "_partial", "_send")

    def __init__(self, send: Callable[[Said], bool]) -> None:
        """``send`` says whether the job was still there."""
        self._send = send
        self._partial: dict[tuple[int, int], str] = {}  # half lines, by stream and thread
        self._closed = False

    def __repr__(self) -> str:
        return f"<RemoteLog [{'closed' if self._closed else 'open'}]>"

    def add(self, level: str, message: str) -> bool:
        """One line; False after the job's end. Waits while the server does not read."""
        if self._closed:
            return False
        return self._send(Said(level, middle_out(str.__str__(message), LINE_CHARS_MAX)))

    def write(self, stream: int, text: str) -> bool:
        """A piece of what is printed; each line break ends a line. After the job's end it is taken and dropped: what the process
        itself writes is the output of the job that it runs by then."""
        if self._closed:
            return True
        key = (stream, threading.get_ident())
        text = self._partial.pop(key, "") + text
        *lines, rest = text.split("\n")
        if len(rest) >= LINE_CHARS_MAX:  # no line break is in sight: one is made
            lines.append(rest)
            rest = ""
        for line in lines:
            self.add(STREAM_LEVELS[stream], last_drawing(line))
        if rest:
            self._partial[key] = rest
        return True

    def close(self) -> None:
        """The job has ended: half lines are whole ones now."""
        while self._partial:
            (stream, _), text = self._partial.popitem()
            self.add(STREAM_LEVELS[stream], last_drawing(text))
        self._closed = True


def last_drawing(line: str) -> str:
    """What a terminal shows of a line in the end: what comes after a carriage return is written over what stood there."""
    kept = line.rstrip("\r")
    return kept[kept.rfind("\r") + 1 :]
