"""Runs a task's function in a child process, and keeps children warm for the jobs to come.

A worker's thread hands its job to a child and waits: so huey's hooks, retries and signals are the same as for a thread. One job
at a time; what it logs comes live. A child that has died, was stopped, or has something of its job's left running is not used
again, nor is one that has run ``jobs_max`` jobs or grown over ``memory_max`` bytes; another takes its place.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

import psutil

from miniflow.attempts import Attempt
from miniflow.clock import Clock
from miniflow.errors import InvalidRequest, JobInterrupted, MiniFlowError, ProcessDied, TaskFailed
from miniflow.executors import child as child_program
from miniflow.executors import output, tree
from miniflow.executors.inbox import inbox
from miniflow.executors.messages import (
    Beat,
    Done,
    Failed,
    Frames,
    FromChild,
    Hello,
    Progress,
    Run,
    Said,
    Submit,
    Submitted,
    frame,
)
from miniflow.executors.output import Output
from miniflow.executors.tree import Tree
from miniflow.executors.warden import Warden
from miniflow.executors.watch import MustEnd, Watch
from miniflow.intake import Submission, decode_submission
from miniflow.joblog import JobLog
from miniflow.registry import TaskSpec

log = logging.getLogger("miniflow.process")

PATIENCE_MS = 3 * round(tree.GONE_WITHIN_S * 1000)
"""How much longer than a thread a job may take to end: its processes are being ended, and that is waited for."""
SEND_BYTES_MAX = 32_768
"""A larger message is sent by a thread of its own: the child may not be reading yet, and a stop must not wait for it."""
EXIT_WITHIN_S = 1.0  # a process that ends closes its pipes a moment before it can be told how it ended
WEIGH_EVERY_MS = 1_000  # between two looks at the size of a child


class Job(Protocol):
    """What an executor needs of the job that it runs: an ``Execution``."""

    attempt: Attempt
    spec: TaskSpec

    @property
    def result_limit(self) -> tuple[str, int]: ...

    def open_log(self) -> JobLog: ...

    def write_log(self, level: str, message: str) -> None: ...

    def write_progress(self, done: float, total: float | None, message: str | None) -> None: ...


class RemoteResult:
    """A result that is JSON text already."""

    __slots__ = ("text",)

    def __init__(self, text: str | None) -> None:
        self.text = text


class Processes:
    """What the processes of jobs have in common: how they are started, and figures for the metrics."""

    def __init__(self, clock: Clock, *, grace_ms: int, niceness: int) -> None:
        self.clock, self.grace_ms, self.niceness = clock, grace_ms, niceness
        self._mark = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._warden: Warden | None = None
        self.started_total = self.died_total = self.stopped_total = self.left_total = 0

    def __repr__(self) -> str:
        return f"<Processes [{self.started_total} started, {self.died_total} died]>"

    def start(self, argv: list[str], **options: Any) -> Tree:
        """As ``Tree``. From the first one on a warden watches that none outlives the server."""
        with self._lock:
            if self._warden is None:
                self._warden = Warden(self._mark)
            self.started_total += 1
            number = self.started_total
        return Tree(argv, mark=f"{self._mark}.{number}", niceness=self.niceness, **options)

    def close(self) -> None:
        """All of them have been ended."""
        with self._lock:
            if self._warden is not None:
                self._warden.dismiss()
                self._warden = None


class Child:
    """A child process, as the server has it."""

    def __init__(self, processes: Processes, hello: Hello, generation: int) -> None:
        self.tree = processes.start(
            tree.program(child_program.COMMAND), env=tree.program_environment(), stdin=subprocess.PIPE
        )
        process = self.tree.process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._stdin = process.stdin
        pipes = {"messages": process.stdout.fileno(), "output": process.stderr.fileno()}
        exits = self.tree.watch(self._wake)
        self._exit_fd = exits
        self.inbox = inbox(pipes if exits is None else {**pipes, "exit": exits})
        self.frames = Frames(FromChild)
        self.output = Output("INFO")
        self.generation = generation
        self.jobs = 0
        self.idle_since_ms = processes.clock.boot_ms()
        self.weigh_at_ms = 0
        self.ready = False  # it has told that it takes jobs
        self.send(hello)

    def __repr__(self) -> str:
        return f"<Child process {self.tree.pid} [{self.jobs} jobs]>"

    def _wake(self) -> None:
        self.inbox.wake()

    def send(self, message: Any) -> None:
        """One that has died hears nothing: its end is noticed elsewhere."""
        data = frame(message)
        if len(data) <= SEND_BYTES_MAX:
            self._write(data)
        else:
            threading.Thread(target=self._write, args=(data,), name="miniflow-send", daemon=True).start()

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[self._stdin.write(data) :]
        except (OSError, ValueError):  # it has died, or was closed
            pass

    def end(self) -> int:
        """End it and all that it has started; how many processes that were beside it."""
        left = self.tree.end()
        self.inbox.close()
        process = self.tree.process
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        if self._exit_fd is not None:
            os.close(self._exit_fd)
        return left


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
        while (child := self._pop()) is not None:
            if not child.tree.exited() and child.generation == self._generation:
                return child
            self.discard(child)
        return self._start()

    def release(self, child: Child) -> None:
        """Its job has ended well, and nothing is left of it."""
        child.jobs += 1
        child.idle_since_ms = self.processes.clock.boot_ms()
        if child.jobs >= self._jobs_max or self._is_large(child) or child.generation != self._generation:
            self.recycled_total += 1
            self.discard(child)
            return
        with self._lock:
            if not self._closed:
                self._idle.append(child)
                return
        self.discard(child)

    def prepare(self) -> None:
        """Have one more ready. It gets ready by itself: this does not wait."""
        with self._lock:
            if self._closed or self._idle:
                return
        try:
            child = self._start()
        except OSError:  # the next job tries again, and says so if it cannot be
            return
        with self._lock:
            self._idle.append(child)

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


class ProcessExecutor:
    """Runs jobs in children. Called by the threads of the process lane."""

    def __init__(self, processes: Processes, children: Children, submit: Callable[[Submission], str]) -> None:
        self._processes, self.children, self._submit = processes, children, submit

    def run(self, job: Job) -> RemoteResult:
        """What the task returns. Raises TaskFailed for what it raises, ProcessDied, or the JobInterrupted that stopped it."""
        attempt = job.attempt
        child = self.children.acquire()
        keep = False
        try:
            attempt.enter(None, cancel=child.inbox.wake, patience_ms=PATIENCE_MS)
            watch = Watch(
                attempt, child.tree, child.inbox, self._processes.clock, grace_ms=self._processes.grace_ms,
                limits=job.spec.limits, warn=lambda words: job.write_log("WARNING", words), on_stop=self._stopping,
            )  # fmt: skip
            child.output.begin(job.open_log)
            silent_ms = attempt.heartbeat_ms
            if not child.ready:  # it cannot give a sign of life yet
                attempt.heartbeat_ms = None
            child.send(_run_message(job))
            answer = self._converse(job, child, watch, silent_ms)
            keep = not (answer.leaves or watch.asked)
        except MustEnd:
            answer = None
        finally:
            attempt.leave()
            if keep:
                self.children.release(child)
            else:
                self._discard(job, child)
        if answer is None or (attempt.pending is not None and isinstance(answer, Failed)):
            assert attempt.pending is not None
            raise attempt.pending
        if isinstance(answer, Done):
            return RemoteResult(answer.result)
        raise TaskFailed(
            answer.error_type,
            answer.error,
            answer.trace,
            final=answer.final or answer.bad_result,
            delay_s=answer.delay_s,
        )

    def _stopping(self) -> None:
        self._processes.stopped_total += 1
        self.children.prepare()  # it is warm when the other one is gone

    def _discard(self, job: Job, child: Child) -> None:
        left = self.children.discard(child)
        child.output.end()
        if left:
            self._processes.left_total += left
            words = "process that it had started was" if left == 1 else "processes that it had started were"
            job.write_log("WARNING", f"{left} {words} ended with the job")

    def _converse(self, job: Job, child: Child, watch: Watch, silent_ms: int | None) -> Done | Failed:
        died = False
        while True:
            events = watch.wait() if not died else child.inbox.wait(0)
            answer = None
            for name, data in events:
                if name == "messages" and data:
                    for message in child.frames.feed(data):
                        if isinstance(message, (Done, Failed)):
                            answer = message
                        else:
                            self._hear(job, child, message)
                    if not child.ready:
                        child.ready = True
                        job.attempt.beat()
                        job.attempt.heartbeat_ms = silent_ms
                elif name == "output" and data:
                    child.output.feed(data)
                elif name != "output":  # the end of its messages, or of itself
                    died = True
            if answer is not None:
                if not child.inbox.in_order or any(name == "output" for name, _ in events):
                    self._read_rest(child)
                child.output.end()
                return answer
            if died and not events:
                child.output.end()
                raise self._death(child, job)

    def _read_rest(self, child: Child) -> None:
        """What the job has written before its answer is in the pipe by now."""
        while rest := [data for name, data in child.inbox.wait(0) if name == "output" and data]:
            for data in rest:
                child.output.feed(data)

    def _hear(self, job: Job, child: Child, message: Any) -> None:
        if isinstance(message, Said):
            _say(job, message.level, message.message)
        elif isinstance(message, Progress):
            job.write_progress(message.done, message.total, message.message)
        elif isinstance(message, Beat):
            job.attempt.beat()
        elif isinstance(message, Submit):
            child.send(self._submitted(message))

    def _submitted(self, message: Submit) -> Submitted:
        try:
            return Submitted(self._submit(decode_submission(message.submission)))
        except InvalidRequest as exc:
            return Submitted(None, exc.field, exc.reason)
        except MiniFlowError as exc:  # the queue is full, the server stops
            return Submitted(None, "", str(exc))

    def _death(self, child: Child, job: Job) -> BaseException:
        attempt = job.attempt
        if attempt.pending is not None:  # it was asked to
            return attempt.pending
        self._processes.died_total += 1
        code = child.tree.reap() if child.tree.exits_within(EXIT_WITHIN_S) else None
        return ProcessDied(f"{how_it_ended(code)}{output.in_words(child.output.last)}")


def _say(job: Job, level: str, message: str) -> None:
    try:
        job.write_log(level, message)
    except JobInterrupted:  # while it was held back: the job is being stopped
        pass


def _run_message(job: Job) -> Run:
    attempt, claimed, limits = job.attempt, job.attempt.claimed, job.spec.limits
    return Run(
        claimed.id,
        claimed.task,
        claimed.queue,
        attempt.number,
        claimed.max_retries,
        claimed.payload,
        attempt.deadline_boot_ms,
        *job.result_limit,
        None if limits is None or limits.open_files is None else int(limits.open_files.kill),
        claimed.request_id,
        claimed.tags,
        claimed.meta,
    )


def hello(tasks: str, *, debug: bool) -> Hello:
    """What a child is told first; ``tasks`` is the folder of task files."""
    path = [os.path.abspath(entry or os.curdir) for entry in sys.path]
    return Hello(os.path.abspath(tasks), path, os.environ.get("PYTHONPATH"), debug)


def how_it_ended(code: int | None) -> str:
    """The exit code of a process that was not to end, in words."""
    if code is None:
        return "the process of the job has closed its pipe and goes on; it is ended"
    if code >= 0:
        return f"the process of the job ended by itself, with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    reasons = {
        "SIGSEGV": "it touched memory that is not its own",
        "SIGKILL": "somebody ended it, or the system for want of memory",
        "SIGABRT": "it gave up by itself",
        "SIGBUS": "it touched memory that is not there",
        "SIGILL": "it ran into what is no instruction",
        "SIGFPE": "an arithmetic error",
    }
    return f"the process of the job was killed by {name}" + (f" ({reasons[name]})" if name in reasons else "")
