"""The child processes that run jobs: how they are started, and those that are kept warm for the jobs to come.

A child that has died, was stopped, or has something of its job's left running is not used again, nor is one that has run
``jobs_max`` jobs or grown over ``memory_max`` bytes; another takes its place.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import psutil

from miniflow import packaged
from miniflow.clock import Clock
from miniflow.executors import child as child_program
from miniflow.executors import tree, turns
from miniflow.executors.inbox import inbox
from miniflow.executors.messages import Frames, FromChild, Hello, frame
from miniflow.executors.niceness import Niceness
from miniflow.executors.outbox import Outbox
from miniflow.executors.output import Output
from miniflow.executors.tree import Tree
from miniflow.executors.turns import Turns
from miniflow.executors.warden import Warden, folders_of

log = logging.getLogger("miniflow.processes")

WARDEN_LIVES_S = 1.0  # at least, for another to follow it at once
WEIGH_EVERY_MS = 1_000  # between two looks at the size of a child


class Processes:
    """What the processes of jobs have in common: how they are started, and figures for the metrics."""

    def __init__(self, clock: Clock, *, grace_ms: int, niceness: int) -> None:
        self.clock, self.grace_ms, self._niceness = clock, grace_ms, Niceness(niceness)
        self._mark = secrets.token_hex(8)
        self.folders = folders_of(self._mark)
        self._lock = threading.Lock()
        self._closed = False
        self._warden: Warden | None = None
        # To Linux the parent of a process is the thread that started it, and a child is killed when its parent ends (see
        # ``child``); those that take jobs come and go, so one thread, which stays, starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="miniflow-start")
        self.started_total = self.died_total = self.stopped_total = self.left_total = 0

    def __repr__(self) -> str:
        return f"<Processes [{self.started_total} started, {self.died_total} died]>"

    def start(self, argv: list[str], **options: Any) -> Tree:
        """As ``Tree``. From the first one on a warden watches that none outlives the server."""
        with self._lock:
            if self._closed:
                raise OSError(errno.ECANCELED, "the server stops")
            self._have_warden()
            self.started_total += 1
            mark = f"{self._mark}.{self.started_total}"
            starting = self._starter.submit(Tree, argv, mark=mark, stands_back=self._niceness.by > 0, **options)
        started = starting.result()
        self._niceness.give(started.pid)
        return started

    @property
    def watched(self) -> bool:
        """Whether there is a warden."""
        warden = self._warden
        return warden is not None and warden.there

    def keep_watched(self) -> None:
        """For a job that begins in a process that there is already. OSError if no warden can be started."""
        with self._lock:
            if not self._closed:
                self._have_warden()

    def _have_warden(self) -> None:
        """One that takes the place of another finds by itself what runs already: all of it carries the server's mark."""
        if self._warden is not None and not self._warden.there:
            log.warning("the process that ends jobs' processes when the server is killed has ended; another is started")
            self._warden.dismiss()
            self._warden = None
        if self._warden is None:
            self._warden = warden = Warden(self._mark)
            threading.Thread(target=self._succeed, args=(warden,), name="miniflow-warden", daemon=True).start()

    def _succeed(self, warden: Warden) -> None:
        """Another one as soon as it has ended: jobs may run for long, and none begin. Not of one that cannot even begin: that
        would go on and on, and the next job tries it again."""
        since = time.monotonic()
        warden.wait()
        with self._lock:
            if self._closed or self._warden is not warden or time.monotonic() < since + WARDEN_LIVES_S:
                return
            try:
                self._have_warden()
            except OSError:  # the next job tries again, and fails if it cannot be
                pass

    def close(self) -> None:
        """All of them have been ended."""
        with self._lock:
            self._closed = True
            self._starter.shutdown()
            if self._warden is not None:
                self._warden.dismiss()
                self._warden = None


class Child:
    """A child process, as the server has it."""

    def __init__(self, processes: Processes, hello: Hello, generation: int) -> None:
        self.turns = Turns() if turns.POSSIBLE else None
        argv, env = packaged.program(child_program.COMMAND), tree.program_environment()
        handed = () if self.turns is None else (self.turns.reading,)
        try:
            self.tree = processes.start(argv, env=env, stdin=subprocess.PIPE, pass_fds=handed)
        except BaseException:  # whatever it was: there is no process, and nobody else would close them
            self._close_turns()
            raise
        process = self.tree.process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._outbox = Outbox(process.stdin)
        pipes = {"messages": process.stdout.fileno(), "output": process.stderr.fileno()}
        self._exit_fd = exits = self.tree.watch(self.wake)
        try:
            self.inbox = inbox(pipes if exits is None else {**pipes, "exit": exits})
        except BaseException:  # no descriptors are left, say: the process that there is would be nobody's
            self.tree.end()
            self._close_pipes()
            raise
        self.frames = Frames(FromChild)
        self.backlog: deque[Any] = deque()  # messages that have come and were not heard yet
        self.output = Output("INFO")
        self.generation = generation
        self.jobs = 0
        self.idle_since_ms = processes.clock.boot_ms()
        self.weigh_at_ms = 0
        self.stale = False  # see loans.Holder
        self.ready = False  # it has told that it takes jobs
        self.send(hello if self.turns is None else msgspec.structs.replace(hello, turns=self.turns.reading))

    def __repr__(self) -> str:
        return f"<Child process {self.tree.pid} [{self.jobs} jobs]>"

    def wake(self) -> None:
        self.inbox.wake()

    def give(self, count: int) -> None:
        """As loans.Holder has it."""
        assert self.turns is not None
        self.turns.give(count)

    def take_back(self) -> int:
        """As loans.Holder has it."""
        count = 0 if self.turns is None else self.turns.take_back()
        self.stale = self.stale or count > 0
        return count

    def send(self, *messages: Any) -> None:
        """All in one piece. One that has died hears nothing: its end is noticed elsewhere."""
        self._outbox.send(b"".join([frame(message) for message in messages]))

    def end(self) -> int:
        """End it and all that it has started; how many processes that were beside it."""
        left = self.tree.end()
        self.inbox.close()
        self._close_pipes()
        return left

    def _close_pipes(self) -> None:
        process = self.tree.process
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        if self._exit_fd is not None:
            os.close(self._exit_fd)
        self._close_turns()

    def _close_turns(self) -> None:
        if self.turns is not None:
            self.turns.close()


class Children:
    """The warm ones. Those that were used last are used first."""

    def __init__(self, processes: Processes, hello: Callable[[], Hello], *, jobs_max: int, memory_max: int) -> None:
        self.processes, self._hello, self._jobs_max, self._memory_max = processes, hello, jobs_max, memory_max
        self._idle: list[Child] = []
        self._lock = threading.Lock()
        self._generation = 0
        self._closed = False
        self.alive = 0
        self.recycled_total = 0

    def __repr__(self) -> str:
        return f"<Children [{self.alive} alive, {len(self._idle)} idle]>"

    def acquire(self) -> Child:
        """One that is ready, or a new one. OSError if none can be started."""
        self.processes.keep_watched()
        while (child := self._pop()) is not None:
            if not child.tree.exited() and child.generation == self._generation:
                return child
            self.discard(child)
        return self._start()

    def jobs_ahead(self, child: Child) -> int:
        """How many jobs it may be handed ahead before it has to be looked at again."""
        if (
            child.turns is None
            or not child.ready
            or child.stale
            or child.generation != self._generation
            or not self.processes.watched  # the next one that is acquired brings a warden
            or self.processes.clock.boot_ms() >= child.weigh_at_ms
        ):
            return 0
        return self._jobs_max - child.jobs - 1

    def release(self, child: Child) -> None:
        """Its jobs have ended well, and nothing is left of them."""
        child.idle_since_ms = self.processes.clock.boot_ms()
        if child.jobs >= self._jobs_max or self._is_large(child) or child.generation != self._generation:
            self.recycled_total += 1
            self.discard(child)
            return
        self._keep(child)

    def _keep(self, child: Child) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(child)
                return
        self.discard(child)  # the server has stopped meanwhile: nobody would end it

    def prepare(self) -> None:
        """Have one more ready. It gets ready by itself: this does not wait."""
        with self._lock:
            if self._closed or self._idle:
                return
        try:
            child = self._start()
        except OSError:  # the next job tries again, and says so if it cannot be
            return
        self._keep(child)

    def discard(self, child: Child) -> int:
        """End it; how many other processes were left in it."""
        with self._lock:
            self.alive -= 1
        return child.end()

    def retire(self, idle_ms: int) -> None:
        """End those that nobody has needed for so long."""
        before = self.processes.clock.boot_ms() - idle_ms
        with self._lock:
            old = [child for child in self._idle if child.idle_since_ms <= before]
            self._idle = [child for child in self._idle if child not in old]
        for child in old:
            self.discard(child)

    def renew(self) -> None:
        """The task files have changed: none that has the old ones takes another job."""
        self._generation += 1
        self.retire(0)

    def close(self) -> None:
        """End the idle ones, and from now on each that is released."""
        self._closed = True
        self.retire(-1)

    def _pop(self) -> Child | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _start(self) -> Child:
        child = Child(self.processes, self._hello(), self._generation)
        with self._lock:
            self.alive += 1
        return child

    def _is_large(self, child: Child) -> bool:
        if child.idle_since_ms < child.weigh_at_ms:
            return False
        child.weigh_at_ms = child.idle_since_ms + WEIGH_EVERY_MS
        try:
            size: int = psutil.Process(child.tree.pid).memory_info().rss
        except psutil.Error:  # it has died
            return True
        return size > self._memory_max


def hello(tasks: str, *, debug: bool) -> Hello:
    """What a child is told first; ``tasks`` is the folder of task files."""
    path = [os.path.abspath(entry or os.curdir) for entry in sys.path]
    return Hello(os.path.abspath(tasks), path, os.environ.get("PYTHONPATH"), debug)
