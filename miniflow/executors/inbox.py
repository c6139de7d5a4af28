"""Waiting for what comes out of several pipes at once, with a way to be woken.

Where pipes can be polled they are. Windows cannot: there a thread reads each pipe, and the waiting is for a queue.
"""

from __future__ import annotations

import os
import queue
import select
import threading
from collections.abc import Mapping
from typing import Protocol

CHUNK_BYTES = 262_144
FIRST_BYTES = 8_192
"""Of a pipe that had less than that in it the last time: a larger buffer costs more than the reading."""
PIPE_BYTES = 1_048_576
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ of Linux


class Inbox(Protocol):
    """Reads pipes as their data come. The names are the caller's own.

    ``in_order``: where data of one pipe are told, those that were written before them to a pipe that comes later in the
    caller's list are told with them.
    """

    in_order: bool

    def wait(self, timeout_s: float | None, *, but: str = "") -> list[tuple[str, bytes]]:
        """What has come, by the name of its pipe, empty for the end of one; nothing when woken or after ``timeout_s``.

        The pipe ``but`` is not looked at, where pipes can be polled.
        """
        ...

    def wake(self) -> None:
        """Have ``wait`` return, from any thread; the next one, if nobody waits now."""
        ...

    def close(self) -> None:
        """Read no more. The pipes themselves are the caller's to close."""
        ...


class PolledInbox:
    """For POSIX."""

    in_order = True  # poll looks at one pipe after the other

    def __init__(self, pipes: Mapping[str, int]) -> None:
        self._names = {fd: name for name, fd in pipes.items()}
        self._sizes = dict.fromkeys(self._names, FIRST_BYTES)
        self._poll = select.poll()
        self._polls = {"": self._poll}  # by the name of the pipe that is left out
        for fd in self._names:
            os.set_blocking(fd, False)
            _widen(fd)
            self._poll.register(fd, select.POLLIN)
        self._bell, self._ring = os.pipe()
        os.set_blocking(self._bell, False)
        os.set_blocking(self._ring, False)
        self._poll.register(self._bell, select.POLLIN)
        self._lock = threading.Lock()  # ``wake`` comes from other threads, also after the close

    def _without(self, but: str) -> select.poll:
        poll = self._polls[but] = select.poll()
        for fd in (self._bell, *(fd for fd, name in self._names.items() if name != but)):
            poll.register(fd, select.POLLIN)
        return poll

    def wait(self, timeout_s: float | None, *, but: str = "") -> list[tuple[str, bytes]]:
        found = []
        poll = self._polls.get(but) or self._without(but)
        for fd, _ in poll.poll(None if timeout_s is None else max(timeout_s, 0) * 1000):
            if fd == self._bell:
                os.read(fd, 4096)
                continue
            try:
                data = os.read(fd, self._sizes[fd])
            except BlockingIOError:
                continue
            except OSError:  # taken for its end, as an empty read is
                data = b""
            found.append((self._names[fd], data))
            self._sizes[fd] = FIRST_BYTES if len(data) < FIRST_BYTES else CHUNK_BYTES
            if not data:
                self._forget(fd)
        return found

    def _forget(self, fd: int) -> None:
        """It has ended."""
        name = self._names[fd]
        for but, poll in self._polls.items():
            if but != name:
                poll.unregister(fd)
        del self._names[fd]

    def wake(self) -> None:
        with self._lock:
            if self._ring < 0:
                return
            try:
                os.write(self._ring, b"!")
            except BlockingIOError:  # it has been rung often enough
                pass

    def close(self) -> None:
        with self._lock:
            if self._ring >= 0:
                os.close(self._bell)
                os.close(self._ring)
                self._ring = -1


class ThreadedInbox:
    """For Windows; works anywhere. A few chunks at a time: whoever writes into the pipe is held back beyond that."""

    in_order = False

    def __init__(self, pipes: Mapping[str, int]) -> None:
        self._queue: queue.Queue[tuple[str, bytes] | None] = queue.Queue(maxsize=16)
        self._closed = False
        for name, fd in pipes.items():
            threading.Thread(target=self._read, args=(name, fd), name=f"miniflow-{name}", daemon=True).start()

    def _read(self, name: str, fd: int) -> None:
        while not self._closed:
            try:
                data = os.read(fd, CHUNK_BYTES)
            except OSError:  # taken for its end, as an empty read is
                data = b""
            while not self._closed:
                try:
                    self._queue.put((name, data), timeout=1)
                    break
                except queue.Full:
                    continue
            if not data:
                return

    def wait(self, timeout_s: float | None, *, but: str = "") -> list[tuple[str, bytes]]:  # noqa: ARG002 - see Inbox
        try:
            first = self._queue.get(timeout=None if timeout_s is None else max(timeout_s, 0.0001))
        except queue.Empty:
            return []
        return [] if first is None else [first]

    def wake(self) -> None:
        try:
            self._queue.put_nowait(None)
        except queue.Full:  # there is something to return for anyhow
            pass

    def close(self) -> None:
        self._closed = True


def inbox(pipes: Mapping[str, int]) -> Inbox:
    """The inbox that works here."""
    return PolledInbox(pipes) if hasattr(select, "poll") else ThreadedInbox(pipes)


def _widen(fd: int) -> None:
    """A larger buffer, where the system has a way: whoever floods the pipe then costs fewer turns."""
    try:
        import fcntl

        fcntl.fcntl(fd, _SET_PIPE_SIZE, PIPE_BYTES)
    except (ImportError, OSError):  # no Linux, or the user's share of such buffers is used up
        pass
