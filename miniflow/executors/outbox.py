"""Writing into a pipe whose reader may take its time, without waiting for it where much is to be written."""

from __future__ import annotations

import threading
from collections import deque
from typing import IO

AT_ONCE_BYTES_MAX = 32_768
"""More than that is written by a thread of its own: the child may not be reading yet, and a stop must not wait for it."""


class Outbox:
    """The pipe to a child. What is sent arrives whole and in the order of the calls: a small message does not overtake a large
    one of which the pipe has only taken a part."""

    def __init__(self, pipe: IO[bytes]) -> None:
        """``pipe`` is unbuffered, and the caller's to close."""
        self._pipe = pipe
        self._lock = threading.Lock()
        self._unsent: deque[bytes] = deque()  # the first is being written; empty: no thread writes

    def __repr__(self) -> str:
        return f"<Outbox [{len(self._unsent)} to be written]>"

    def send(self, data: bytes) -> None:
        """One that has died, or was closed, hears nothing: its end is noticed elsewhere."""
        with self._lock:
            if self._unsent:  # the thread takes it along
                self._unsent.append(data)
                return
            if len(data) <= AT_ONCE_BYTES_MAX:
                self._write(data)
                return
            self._unsent.append(data)
        threading.Thread(target=self._write_all, name="miniflow-send", daemon=True).start()

    def _write_all(self) -> None:
        while True:
            self._write(self._unsent[0])
            with self._lock:
                self._unsent.popleft()
                if not self._unsent:
                    return

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[self._pipe.write(data) :]
        except (OSError, ValueError):  # it has died, or was closed
            pass
