"""Who wants to hear that a job has ended, or that any has changed.

The writer publishes after the commit: the ids of jobs that it has ended, and that something has changed at all. Whoever listens
is called from the writer's thread and must be quick. Nothing is published that is not in the file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

Listener = Callable[[str], None]


class Changes:
    """Tells that jobs have changed; which ones, the file says (``jobs.changed``)."""

    def __init__(self) -> None:
        self._listeners: tuple[Callable[[], None], ...] = ()  # replaced, never changed: read without a lock
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Changes [{len(self._listeners)} listeners]>"

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener()`` after each commit that changed a job, until ``forget``."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def forget(self, listener: Callable[[], None]) -> None:
        with self._lock:
            self._listeners = tuple(one for one in self._listeners if one != listener)

    def publish(self) -> None:
        for listener in self._listeners:
            listener()


class Notices:
    def __init__(self) -> None:
        self._waiting: dict[str, list[Listener]] = {}
        self._lock = threading.Lock()
        self.over = False  # the server stops: nobody is to wait for more

    def __repr__(self) -> str:
        return f"<Notices [{len(self._waiting)} jobs waited for]>"

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for anything."""
        return bool(self._waiting)

    def listen(self, job_id: str, listener: Listener) -> None:
        """Call ``listener(job_id)`` once, when that job has ended. Look at the job *after* this call: it may be over."""
        with self._lock:
            self._waiting.setdefault(job_id, []).append(listener)

    def call_all(self) -> None:
        """The server stops: all who wait are called, and find the job as it is."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            self.over = True
        for job_id, listeners in waiting.items():
            for listener in listeners:
                listener(job_id)

    def forget(self, job_id: str, listener: Listener) -> None:
        with self._lock:
            listeners = self._waiting.get(job_id, [])
            if listener in listeners:
                listeners.remove(listener)
            if not listeners:
                self._waiting.pop(job_id, None)

    def publish(self, job_ids: Iterable[str]) -> None:
        if not self._waiting:  # the common case costs one look
            return
        for job_id in job_ids:
            with self._lock:
                listeners = self._waiting.pop(job_id, ())
            for listener in listeners:
                listener(job_id)
