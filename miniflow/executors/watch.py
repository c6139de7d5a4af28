"""Keeps a job that has processes of its own to its time and to its limits, and stops it when it is asked to.

The thread that waits for the job does this in between. A stop is SIGTERM to all processes, then, after the grace, SIGKILL. What
is over a limit gets SIGKILL at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from miniflow.attempts import Attempt
from miniflow.clock import Clock
from miniflow.errors import JobOverLimit, JobReturned, JobTimeout
from miniflow.executors.inbox import Inbox
from miniflow.executors.tree import Tree, Usage
from miniflow.limits import Limits, Threshold, in_words

MEASURE_FIRST_MS, MEASURE_EVERY_MS = 20, 100
ANSWER_WITHIN_S = 1.0  # of a job that has ended by itself
MEASURED_SHARE = 20  # measuring takes no more than one part in so many of the time


class MustEnd(Exception):
    """The grace is over, or a limit was passed: all processes of the job are to be ended now."""


class Watch:
    """Over one attempt. ``wait`` is called again and again until the job has ended."""

    def __init__(
        self,
        attempt: Attempt,
        tree: Tree,
        inbox: Inbox,
        clock: Clock,
        *,
        grace_ms: int,
        limits: Limits | None,
        warn: Callable[[str], None],
        on_stop: Callable[[], None] = lambda: None,
        ended: Callable[[], bool] = lambda: False,
    ) -> None:
        """``warn`` writes a warning into the job's log; ``on_stop`` is called once, when the job is asked to stop, unless it
        has ``ended`` by itself and what it answered is on its way."""
        self._attempt, self._tree, self._inbox, self._clock = attempt, tree, inbox, clock
        self._grace_ms, self._on_stop, self._ended = grace_ms, on_stop, ended
        self._end_at: int | None = None
        self._meter = Meter(tree, limits, warn) if limits is not None and measured(limits) else None
        self._measure_at = clock.boot_ms() + MEASURE_FIRST_MS

    @property
    def asked(self) -> bool:
        """Whether the job was asked to stop, so that its processes are not to be used again."""
        return self._end_at is not None

    def wait(self, patience_ms: float = math.inf, *, but: str = "") -> list[tuple[str, bytes]]:
        """What the inbox has (see its ``but``), or nothing after a while, of ``patience_ms`` at most. MustEnd when the time
        has come."""
        attempt, now = self._attempt, self._clock.boot_ms()
        deadline, until = attempt.deadline_boot_ms, now + patience_ms
        if deadline is not None and attempt.pending is None:
            if now >= deadline:
                attempt.interrupt(JobTimeout("the job is over its timeout"), now + self._grace_ms)
            until = min(until, deadline)
        if attempt.pending is not None:
            if self._end_at is None and self._ended():
                return self._inbox.wait(ANSWER_WITHIN_S, but=but)
            if self._end_at is None:
                self._stop(now)
            if self._end_at is None or now >= self._end_at:
                raise MustEnd
            until = self._end_at
        if self._meter is not None:
            if now >= self._measure_at:
                self._measure()
                now = self._clock.boot_ms()
                if attempt.pending is not None and self._end_at is None:
                    return []
            until = min(until, self._measure_at)
        return self._inbox.wait(None if until == math.inf else (until - now) / 1000, but=but)

    def _stop(self, now: int) -> None:
        at_once = isinstance(self._attempt.pending, (JobOverLimit, JobReturned))
        self._end_at = now if at_once else now + self._grace_ms
        if not at_once:
            self._tree.ask()
        self._on_stop()

    def _measure(self) -> None:
        assert self._meter is not None
        began = self._clock.boot_ms()
        over = self._meter.look()
        took = self._clock.boot_ms() - began
        self._measure_at = began + max(MEASURE_EVERY_MS, took * MEASURED_SHARE)
        if over is not None:
            self._attempt.interrupt(JobOverLimit(over), began)


class Meter:
    """Holds what a tree uses against the limits of a task."""

    def __init__(self, tree: Tree, limits: Limits, warn: Callable[[str], None]) -> None:
        self._tree, self._limits, self._warn = tree, limits, warn
        self._warned: set[str] = set()
        self._before = self._usage()

    def look(self) -> str | None:
        """Which limit was passed, in words; None if none."""
        usage = self._usage()
        for name, used in (
            ("memory", usage.memory),
            ("cpu_seconds", usage.cpu_s - self._before.cpu_s),
            ("open_files", usage.open_files),
        ):
            limit: Threshold | None = getattr(self._limits, name)
            if limit is None:
                continue
            if used > limit.warn and name not in self._warned:  # also where one look finds it beyond both
                self._warned.add(name)
                self._warn(near_limit(name, used, limit))
            if used > limit.kill and (name != "open_files" or not enforced_by_the_system()):
                return over_limit(name, used, limit)
        return None

    def _usage(self) -> Usage:
        return self._tree.usage(files=self._limits.open_files is not None)


def measured(limits: Limits) -> bool:
    """Whether there is one among them that only measuring can keep."""
    return limits.memory is not None or limits.cpu_seconds is not None or limits.open_files is not None


def enforced_by_the_system() -> bool:
    """Whether the number of open files is a limit of the process, so that opening one more fails."""
    try:
        import resource  # noqa: F401 - whether it is there
    except ImportError:  # Windows
        return False
    return True


def over_limit(name: str, used: float, limit: Threshold) -> str:
    return f"over the task's limit {name} = {in_words(name, limit.kill)}: it used {in_words(name, used)}"


def near_limit(name: str, used: float, limit: Threshold) -> str:
    return (
        f"{name}: {in_words(name, used)} used, beyond the {in_words(name, limit.warn)} from which on there is a warning; "
        f"the limit is {in_words(name, limit.kill)}"
    )
