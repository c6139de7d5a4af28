"""A command in a terminal of its own: what it draws, as it draws it."""

from __future__ import annotations

import os
import re
import select
import struct
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from tests.servers import environment
from tests.waiting import wait_until

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Runs ``miniflow ARGUMENTS`` in a terminal; for POSIX."""

    def __init__(self, *arguments: str, cwd: Path, columns: int = 100, rows: int = 40, **env: str) -> None:
        import fcntl
        import pty
        import termios

        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environ = {name: value for name, value in environment().items() if name not in ("NO_COLOR", "COLUMNS")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "miniflow", *arguments],
            cwd=cwd, env={**environ, "TERM": "xterm", **env}, stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        self._data = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)

    @property
    def drawn(self) -> str:
        """All that came so far, with the codes for colours and the cursor."""
        while select.select([self._ours], [], [], 0)[0]:
            try:
                part = os.read(self._ours, 65536)
            except OSError:  # Linux says so when the last process has closed it
                break
            if not part:
                break
            self._data += part
        return self._data.decode(errors="replace")

    @property
    def text(self) -> str:
        """The same without the codes."""
        return _CODES.sub("", self.drawn)

    def wait_for(self, pattern: str, timeout_s: float = 20) -> None:
        wait_until(
            lambda: self.text,
            timeout_s,
            f"{pattern!r} in the terminal",
            until=lambda text: bool(re.search(pattern, text)),
        )

    def end(self, timeout_s: float = 30) -> int:
        """Its exit code. What it draws is read meanwhile: a full terminal would hold it up."""
        wait_until(
            lambda: (self.text, self.process.poll()),
            timeout_s,
            "the command to end",
            until=lambda seen: seen[1] is not None,
        )
        assert self.drawn, "it drew nothing"  # read what came last, too
        return self.process.wait()
