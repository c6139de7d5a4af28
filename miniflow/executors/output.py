"""What a process writes to a pipe, as lines in the log of its job: live, in bounded memory, and as fast as it comes.

A log that has its first half takes only the newest lines from there on. Then nothing is cut into lines any more as it comes, only
counted, and the newest megabyte is kept as it is: a flood of gigabytes costs about what the kernel asks for moving it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from miniflow.errors import JobInterrupted
from miniflow.joblog import JobLog

LINE_BYTES_MAX = 64_000  # without a line break so far: one is made (the log cuts it further)
LAST_BYTES = 2_000  # shown where the process dies
KEPT_BYTES = 1_100_000  # of a flood


class Output:
    """One stream of one process, for the log that is set: there may be none, between two jobs."""

    def __init__(self, level: str, *, taken: Callable[[bytes], bool] | None = None) -> None:
        """``taken`` is shown each line first, and may keep it from the log; of a flood only the last."""
        self._level, self._taken = level, taken
        self._open_log: Callable[[], JobLog] | None = None
        self._part = b""
        self._flood: deque[bytes] = deque()
        self._flood_size = 0
        self.last = b""

    def __repr__(self) -> str:
        return f"<Output {self._level} [{self._flood_size} bytes of a flood]>"

    def begin(self, open_log: Callable[[], JobLog]) -> None:
        """What comes from now on belongs to this log."""
        self._open_log = open_log
        self._part = self.last = b""

    def feed(self, data: bytes) -> None:
        """What has come. May wait, while the log takes no more."""
        self.last = (self.last + data)[-LAST_BYTES:] if len(data) < LAST_BYTES else data[-LAST_BYTES:]
        if self._open_log is None:
            return
        if self._flood or self._open_log().full:
            self._pour(data)
            return
        data = self._part + data
        lines = data.split(b"\n")
        self._part = lines.pop()
        if len(self._part) > LINE_BYTES_MAX:
            lines.append(self._part)
            self._part = b""
        for i, line in enumerate(lines):
            self._say(line)
            if not i & 1023 and self._open_log().full:
                self._pour(b"\n".join([*lines[i + 1 :], self._part]))
                self._part = b""
                return

    def also(self, line: str) -> None:
        """The job has said this in another way, and it is in the log already: it is of its last words."""
        before = self.last if self.last.endswith(b"\n") or not self.last else self.last + b"\n"
        self.last = (before + line[-LAST_BYTES:].encode(errors="replace") + b"\n")[-LAST_BYTES:]

    def end(self) -> None:
        """The job has ended: half a line is a whole one now, and what is left of a flood goes into the log."""
        if self._open_log is None:
            return
        if self._flood:
            rest = b"".join(self._flood)
            self._flood.clear()
            self._flood_size = 0
            for line in rest.removesuffix(b"\n").split(b"\n"):
                self._say(line)
        elif self._part:
            self._say(self._part)
        self._part = b""
        self._open_log = None

    def _say(self, line: bytes) -> None:
        assert self._open_log is not None
        if self._taken is not None and self._taken(line):
            return
        text = line.removesuffix(b"\r").decode(errors="replace")
        try:
            self._open_log().add(self._level, text if "\r" not in text else text[text.rfind("\r") + 1 :])
        except JobInterrupted:  # while it was held back: the job is being stopped, and its output goes on being read
            pass

    def _pour(self, data: bytes) -> None:
        assert self._open_log is not None
        self._flood.append(data)
        self._flood_size += len(data)
        left_lines = left_bytes = 0
        while self._flood_size - len(self._flood[0]) > KEPT_BYTES:
            old = self._flood.popleft()
            self._flood_size -= len(old)
            left_lines += old.count(b"\n")
            left_bytes += len(old)
        if left_bytes:
            self._open_log().leave_out(left_lines, left_bytes)
        if self._taken is not None:
            end = data.rfind(b"\n")
            if end > 0:
                self._taken(data[data.rfind(b"\n", 0, end) + 1 : end])


def in_words(last: bytes) -> str:
    """The last of what was written, for the error of a job; empty if there was nothing."""
    text = last.decode(errors="replace").strip()
    return f"; last output: {text}" if text else ""
