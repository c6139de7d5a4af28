"""Runs a task's function in a child process.

A worker's thread hands its job to a child and waits: so huey's hooks, retries and signals are the same as for a thread. One job
at a time; what it logs comes live.

Where a task's jobs are short, the next ones are handed to the child ahead, so that it goes on while the server writes down what
came of the last (see ``turns`` and ``loans``). They are taken back when the job before them is not so short after all.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import Any, Protocol

from miniflow.attempts import Attempt, Claimed
from miniflow.errors import InvalidRequest, JobInterrupted, MiniFlowError, ProcessDied, TaskFailed
from miniflow.executors import output, tree
from miniflow.executors.children import Child, Children, Processes
from miniflow.executors.messages import AskTrace, Beat, Done, Failed, Progress, Run, Said, Submit, Submitted, Traced
from miniflow.executors.watch import MustEnd, Watch
from miniflow.intake import Submission, decode_submission
from miniflow.joblog import JobLog
from miniflow.loans import Loan
from miniflow.readahead import ReadAhead
from miniflow.registry import TaskSpec

log = logging.getLogger("miniflow.process")

PATIENCE_MS = 3 * round(tree.GONE_WITHIN_S * 1000)
"""How much longer than a thread a job may take to end: its processes are being ended, and that is waited for."""
EXIT_WITHIN_S = 1.0  # a process that ends closes its pipes a moment before it can be told how it ended
AHEAD_MAX = 16
"""Jobs that a child is handed ahead. It gets the next when it has half of them."""
SHORT_US = 1_000
"""A task whose last job took no longer has short ones."""
AHEAD_PATIENCE_MS = 10
"""For so long a job that was short the last time keeps those behind it waiting."""
AHEAD_CHARS_MAX = 1_024


class Job(Protocol):
    """What an executor needs of the job that it runs: an ``Execution``."""

    attempt: Attempt
    spec: TaskSpec

    @property
    def result_limit(self) -> tuple[str, int]: ...

    def open_log(self) -> JobLog: ...

    def write_log(self, level: str, message: str) -> None: ...

    def write_progress(self, done: float, total: float | None, message: str | None) -> None: ...

    def traceparent(self) -> str: ...


class RemoteResult:
    """A result that is JSON text already."""

    __slots__ = ("text",)

    def __init__(self, text: str | None) -> None:
        self.text = text


class ProcessExecutor:
    """Runs jobs in children. Called by the threads of the process lane."""

    def __init__(
        self,
        processes: Processes,
        children: Children,
        readahead: ReadAhead,
        submit: Callable[[Submission], str],
        *,
        plain: Callable[[Claimed], bool],
    ) -> None:
        """``plain`` is whether a job can run with nothing around it but what is done here."""
        self._processes, self.children, self._readahead, self._submit = processes, children, readahead, submit
        self._plain = plain
        self._short: set[str] = set()  # tasks

    def run(self, job: Job) -> RemoteResult:
        """What the task returns. Raises TaskFailed for what it raises, ProcessDied, or the JobInterrupted that stopped it."""
        attempt = job.attempt
        child = self._acquire(attempt)
        keep, answer = False, None
        fresh = (
            child.stale and not attempt.handed
        )  # what it has that was taken back comes before this job, and nothing behind
        try:
            self._enter(attempt, child)
            watch = Watch(
                attempt, child.tree, child.inbox, self._processes.clock, grace_ms=self._processes.grace_ms,
                limits=job.spec.limits, warn=lambda words: job.write_log("WARNING", words), on_stop=self._stopping,
                ended=lambda: self._has_ended(attempt.loan),
            )  # fmt: skip
            child.output.begin(job.open_log)
            silent_ms = attempt.heartbeat_ms
            if not child.ready:  # it cannot give a sign of life yet
                attempt.heartbeat_ms = None
            runs = self._hand_ahead(job, child)
            if not attempt.handed:
                runs.insert(0, _run_message(attempt.claimed, job, attempt.deadline_boot_ms))
            if runs:
                child.send(*runs)
            answer = self._converse(job, child, watch, silent_ms)
            keep = not (answer.leaves or watch.asked)
        except MustEnd:
            pass
        finally:
            attempt.leave()
            if fresh:
                child.stale = False
            self._part(job, child, answer if keep else None)
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

    # ----------------------------------------------------------------------------------------------- from job to job

    def _acquire(self, attempt: Attempt) -> Child:
        if not attempt.handed:
            return self.children.acquire()
        assert attempt.loan is not None
        child = attempt.loan.holder
        if child is None:
            raise ProcessDied("the process that had begun the job was ended with the job before it")
        assert isinstance(child, Child)
        return child

    def _enter(self, attempt: Attempt, child: Child) -> None:
        try:
            attempt.enter(None, cancel=child.inbox.wake, patience_ms=PATIENCE_MS)
        except JobInterrupted:
            if not attempt.handed:  # it runs already, and is stopped as if it had been here in time
                raise

    def _hand_ahead(self, job: Job, child: Child) -> list[Run]:
        """The jobs that go to the child with this one."""
        attempt = job.attempt
        loan, claimed = attempt.loan, attempt.claimed
        if loan is None or claimed.task not in self._short or len(loan.rows) > AHEAD_MAX // 2:
            return []
        if not (attempt.handed or self._may_go_ahead(claimed)):
            return []
        most = min(AHEAD_MAX, self.children.jobs_ahead(child)) - len(loan.rows)
        if most <= 0:
            return []
        loan.holder = child
        rows = self._readahead.lend(loan, most, self._may_go_ahead)
        return [_run_message(row, job, row.timeout_ms, ahead=True) for row in rows]

    def _may_go_ahead(self, claimed: Claimed) -> bool:
        size = len(claimed.payload) + len(claimed.tags or "") + len(claimed.meta or "")
        return claimed.task in self._short and size <= AHEAD_CHARS_MAX and self._plain(claimed)

    def _has_ended(self, loan: Loan | None) -> bool:
        """Whether the child has begun another job, so that the one before is over."""
        if loan is None:
            return False
        self._readahead.recall(loan)
        return bool(loan.begun)

    def _part(self, job: Job, child: Child, answer: Done | Failed | None) -> None:
        """The job is over: with this answer, or so that its child is of no use any more."""
        attempt = job.attempt
        loan, claimed = attempt.loan, attempt.claimed
        short = isinstance(answer, Done) and answer.took_us <= SHORT_US and not answer.wrote
        (self._short.add if short else self._short.discard)(claimed.task)
        if loan is not None and not short:  # whatever comes of it now may take its time
            self._readahead.recall(loan)
        if answer is None:
            if loan is not None:
                self._readahead.part(loan)
            self._discard(job, child)
            return
        child.jobs += 1
        if loan:
            return
        if loan is not None:
            self._readahead.part(loan)
        self.children.release(child)

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
        loan = job.attempt.loan
        died = wrote = False
        while (answer := self._heed(job, child)) is None:
            if loan is not None and loan.again:
                loan.again = False
                if job.attempt.pending is not None:  # it need not begin
                    raise MustEnd
                child.send(_run_message(job.attempt.claimed, job, job.attempt.deadline_boot_ms))
            if died:
                events = child.inbox.wait(0)
            elif loan:  # another job's output may follow in the pipe; ours is read when it is known to be the last
                events = watch.wait(AHEAD_PATIENCE_MS, but="output")
                if not events:
                    self._readahead.recall(loan)
            else:
                events = watch.wait()
            wrote = False
            for name, data in events:
                if name == "messages" and data:
                    child.backlog.extend(child.frames.feed(data))
                    if not child.ready:
                        child.ready = True
                        job.attempt.beat()
                        job.attempt.heartbeat_ms = silent_ms
                elif name == "output" and data:
                    self._hear_all(job, child)  # what it said before comes before it
                    child.output.feed(data)
                    wrote = True
                elif name != "output":  # the end of its messages, or of itself
                    died = True
            if died and not events and not child.backlog:
                child.output.end()
                raise self._death(child, job)
        if answer.wrote or (not loan and (wrote or not child.inbox.in_order)):
            self._read_rest(child)
        child.output.end()
        return answer

    def _heed(self, job: Job, child: Child) -> Done | Failed | None:
        """Go through the messages that have come, up to the answer."""
        self._hear_all(job, child)
        return child.backlog.popleft() if child.backlog else None

    def _hear_all(self, job: Job, child: Child) -> None:
        """But for the answer, and what comes behind it."""
        while child.backlog and not isinstance(child.backlog[0], (Done, Failed)):
            self._hear(job, child, child.backlog.popleft())

    def _read_rest(self, child: Child) -> None:
        """What the job has written before its answer is in the pipe by now."""
        while True:
            events = child.inbox.wait(0)
            for name, data in events:
                if name == "messages":  # of a thread that the job has left behind
                    child.backlog.extend(child.frames.feed(data))
                elif name == "output":
                    child.output.feed(data)
            if not any(name == "output" and data for name, data in events):
                return

    def _hear(self, job: Job, child: Child, message: Any) -> None:
        if isinstance(message, Said):
            child.output.also(message.message)
            _say(job, message.level, message.message)
        elif isinstance(message, Progress):
            job.write_progress(message.done, message.total, message.message)
        elif isinstance(message, Beat):
            job.attempt.beat()
        elif isinstance(message, Submit):
            child.send(self._submitted(message))
        elif isinstance(message, AskTrace):
            child.send(Traced(job.traceparent()))

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


def _run_message(claimed: Claimed, job: Job, deadline_ms: int | None, *, ahead: bool = False) -> Run:
    """``job`` is itself, or the one before, which has the same limits if this one goes ahead with it."""
    limits = job.spec.limits
    return Run(
        claimed.id,
        claimed.task,
        claimed.queue,
        claimed.attempt + 1,
        claimed.max_retries,
        claimed.payload,
        deadline_ms,
        *job.result_limit,
        None if limits is None or limits.open_files is None else int(limits.open_files.kill),
        claimed.request_id,
        claimed.tags,
        claimed.meta,
        ahead,
    )


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
