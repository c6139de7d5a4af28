"""One attempt on its way through a worker: the body is run, and what came of it is written once.

Whatever a task does – return, raise, exit, return what is no JSON, go on past its timeout – ends here as a result or as an
exception of a kind that huey knows how to treat; then huey decides, and ``conclude`` writes its decision.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from huey.exceptions import CancelExecution, TaskTimeout

from miniflow import context, outcome
from miniflow.attempts import Attempt, own_executor
from miniflow.clock import from_ms
from miniflow.errors import (
    BadResult,
    HeartbeatMissed,
    JobCancelled,
    JobInterrupted,
    JobOverLimit,
    JobReplaced,
    JobStalled,
    JobTimeout,
    LimitExceeded,
    NonRetryable,
    RetryAfter,
    StepFailed,
    StoreClosed,
    Suspended,
    TaskExit,
    TaskFailed,
    TooLarge,
    TransactionRefused,
    UnknownTask,
    words_of,
)
from miniflow.executors import coroutine, thread
from miniflow.executors.process import RemoteResult
from miniflow.executors.watch import near_limit, over_limit
from miniflow.huey_services import Services
from miniflow.joblog import JobLog
from miniflow.jobs import Jobs
from miniflow.limits import Threshold
from miniflow.model import Ending, NewJob
from miniflow.operations import Operation
from miniflow.registry import TaskSpec
from miniflow.replay import Replay
from miniflow.run_record import RunRecord
from miniflow.states import State
from miniflow.step_calls import current_step
from miniflow.transactions import Lent
from miniflow.workflow_context import WorkflowContext
from miniflow.writer import Transaction, Undone

log = logging.getLogger("miniflow.worker")
late = logging.getLogger("miniflow.task")

MESSAGE_CHARS_MAX = 16_000  # of a progress message


class Execution:
    """One attempt on its way through huey's ``execute``: collects what came of it, to be written once."""

    __slots__ = (
        "after", "again_now", "attempt", "began", "body_over", "delay_ms", "encode", "error", "error_type", "final",
        "handler_id", "handlers", "lent", "offset_ms", "outcome", "own", "raised", "replay", "result", "retries_left", "retry_at",
        "returned", "services", "spec", "state", "suspended", "trace",
    )  # fmt: skip

    def __init__(
        self,
        attempt: Attempt,
        spec: TaskSpec,
        services: Services,
        encode: Callable[[Any], str | None] | None = None,
    ) -> None:
        """``encode`` writes the result, in place of plain JSON."""
        self.attempt, self.spec, self.services, self.encode = attempt, spec, services, encode
        self.began = self.body_over = False
        self.replay: Replay[RunRecord] | None = None  # of a durable function
        self.suspended = False  # which waits for something
        self.returned = False  # interrupted: back to the queue, as if it had not been begun
        self.after: Callable[[Transaction], None] | None = None  # to be done in the transaction of its end
        self.own: dict[str, Any] = {}  # what the options are to say for huey
        self.handler_id: str | None = None  # of the task to run on an error
        self.handlers: list[NewJob] = []
        self.again_now = False  # the next attempt is ready at once
        self.raised: Exception | None = None  # by the body, before huey heard of it
        self.final = False  # no retry, whatever is left
        self.retries_left = 0  # once it is to be retried
        self.state: State | None = None
        self.result: str | None = None
        self.delay_ms: int | None = None  # asked for by the task
        self.retry_at: int | None = None
        self.offset_ms = 0  # of the clock that it was counted by
        self.lent: Lent | None = None  # the writer's connection: what is written with it is committed with the end
        self.outcome = "failed"
        self.error_type = self.error = ""
        self.trace: str | None = None

    # ----------------------------------------------------------------------------------------------------- the body

    def run_body(self, call: Callable[[], Any]) -> Any:
        """Run the function by its executor and encode its result; whatever it does ends as a value or an Exception."""
        attempt = self.attempt
        self.began = True
        if self.services.talkative:
            log.debug("Working on %s", attempt.claimed.id)
        proven = self.services.proven
        if not attempt.finished:  # given up while a hook ran: the mark would take the place of the next one's
            unproven = attempt.claimed.task not in proven
            self.services.jobs.mark_begun(attempt, unproven=unproven, waiter=coroutine.waiter)
        try:
            if self.spec.durable and self.services.replay is not None:
                self.replay = self.services.replay(attempt)
                call = partial(self.replay.run, call)
            with context.use(self.context, self.open_log):
                value = self._run(call)
            self.result = value.text if isinstance(value, RemoteResult) else self._encode(value)
            self._warn_of_result()
            return value
        except JobInterrupted as exc:
            raise self._interrupted(exc) from exc
        except Suspended:
            self.suspended = True
            return None
        except Exception as exc:  # whatever the task raises; huey goes on with it
            if isinstance(exc, TaskFailed):
                self.final = exc.final
                self.delay_ms = None if exc.delay_s is None else round(exc.delay_s * 1000)
            elif isinstance(exc, RetryAfter):
                self.delay_ms = round(exc.delay_s * 1000)
            elif isinstance(exc, (NonRetryable, *self.spec.no_retry_on)):
                self.final = True
            if self.replay is not None:
                self.after = self.services.jobs.checkpoints.failed(
                    attempt.claimed.seq, exc if isinstance(exc, StepFailed) else None
                )
            raise
        except self.services.contained as exc:  # sys.exit, KeyboardInterrupt and the like end the job, not the worker
            if isinstance(exc, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise  # somebody at a terminal, and no worker's thread
            raise TaskExit(f"the task raised {type(exc).__name__}({exc}); a task ends by returning") from exc
        finally:
            self.body_over = True
            proven.add(attempt.claimed.task)

    def _run(self, call: Callable[[], Any]) -> Any:
        executor: str = self.spec.executor
        if executor in ("thread", "process"):
            executor = own_executor(self.attempt.claimed.options) or executor
        if executor == "thread":
            return thread.run(self.attempt, call)
        if executor == "async":
            return coroutine.run(self.attempt, call)
        return self.services.elsewhere[executor](self)

    @property
    def result_limit(self) -> tuple[str, int]:
        """The limit of the result: its name, and bytes."""
        limits = self.spec.limits
        if limits is None or limits.result_bytes is None:
            return "max_result_bytes", self.services.max_result_bytes
        return "result_bytes", int(limits.result_bytes.kill)

    def _warn_of_result(self) -> None:
        limits = self.spec.limits
        if limits is not None and limits.result_bytes is not None and self.result is not None:
            size = len(self.result.encode())
            if size > limits.result_bytes.warn:
                self.write_log("WARNING", near_limit("result_bytes", size, limits.result_bytes))

    def _encode(self, value: Any) -> str | None:
        name, limit = self.result_limit
        try:
            if self.encode is None:
                return outcome.encode_result(value, as_text=self.spec.as_text, limit=limit, limit_name=name)
            text = self.encode(value)
            if text is not None and len(text) > limit:
                raise TooLarge("the result", len(text), name, limit)
            return text
        except Exception as exc:  # too large, no JSON, a cycle: the next attempt would return the same
            raise BadResult(str(exc) if isinstance(exc, TooLarge) else f"the result is not JSON: {exc}") from exc

    def _interrupted(self, exc: JobInterrupted) -> Exception:
        if isinstance(exc, JobStalled):
            self.outcome, self.final = "timed_out", self.attempt.on_stall == "fail"
            return HeartbeatMissed(str(self.attempt.pending or exc))
        if isinstance(exc, JobTimeout):
            self.outcome = "timed_out"
            timed_out: Exception = TaskTimeout(f"timed out after {(self.attempt.claimed.timeout_ms or 0) / 1000:g} s")
            return timed_out
        if isinstance(exc, JobOverLimit):  # the text is with the one that was asked: a thread raises the bare class
            return LimitExceeded(str(self.attempt.pending or exc))
        cancelled: Exception = CancelExecution(retry=False)
        return cancelled

    def context(self) -> context.JobContext:
        attempt, claimed = self.attempt, self.attempt.claimed
        options = outcome.options_of(claimed)
        schedule, slot = options.get("started_by") or (options.get("schedule"), options.get("scheduled_for"))
        make = context.JobContext if self.replay is None else partial(WorkflowContext, self.replay)
        return make(
            job_id=claimed.id,
            task=claimed.task,
            queue=claimed.queue,
            attempt=attempt.number,
            max_retries=claimed.max_retries,
            payload=claimed.payload,
            request_id=claimed.request_id or claimed.id,
            meta=outcome.decode_json(claimed.meta) if claimed.meta else None,
            tags=tuple(outcome.decode_json(claimed.tags)) if claimed.tags else (),
            write_log=self.write_log,
            write_progress=self.write_progress,
            beat=attempt.beat,
            pending_interrupt=lambda: attempt.pending,
            schedule=schedule,
            scheduled_for=None if slot is None else from_ms(slot),
            deadline_ms=attempt.deadline_boot_ms,
            boot_ms=self.services.clock.boot_ms,
            traceparent=self.traceparent,
            **({"transaction": self._transaction} if self.in_thread else {}),
        )

    def traceparent(self) -> str:
        """What this attempt passes on."""
        run_id = None if self.replay is None else self.replay.record.workflow_id
        return self.services.traces.passed_on(self.attempt, run_id)

    @property
    def in_thread(self) -> bool:
        """Whether the body runs in a thread of the server."""
        own = own_executor(self.attempt.claimed.options) if self.spec.executor in ("thread", "process") else None
        return (own or self.spec.executor) == "thread"

    def _transaction_of_step(self) -> Lent:
        step = current_step()
        if step is None:
            raise TransactionRefused("a durable function runs again; its transactions belong into steps: ctx.step(…)")
        if step.lent is None or step.lent.given_up:
            step.lent = self.services.transactions.open()
        assert isinstance(step.lent, Lent)
        return step.lent

    def _transaction(self) -> Lent:
        if self.replay is not None:
            return self._transaction_of_step()
        if self.lent is None or self.lent.given_up:
            self.lent = self.services.transactions.open()
        return self.lent

    def write_log(self, level: str, message: str) -> None:
        if not self.open_log().add(level, message):  # by a thread that the job has left behind, or by a finalizer
            when = "after its end" if self.attempt.finished else "not in its log"
            late.log(getattr(logging, level), "job %s, %s: %s", self.attempt.claimed.id, when, message)

    def open_log(self) -> JobLog:
        return self.attempt.log or self._open_log()

    def _open_log(self) -> JobLog:
        log = self.services.logs.open(self.attempt)
        limit = None if self.spec.limits is None else self.spec.limits.log_bytes
        if limit is not None:
            log.mark, log.marked = int(limit.warn), partial(self._much_logged, log, limit)
        return log

    def _much_logged(self, log: JobLog, limit: Threshold) -> None:
        """The log is beyond what the task's own limit warns of; one line may have gone beyond the limit as well."""
        log.mark, log.marked = int(limit.kill), partial(self._too_much_logged, log, limit)
        log.add("WARNING", near_limit("log_bytes", log.said, limit))  # which looks at the mark in its turn

    def _too_much_logged(self, log: JobLog, limit: Threshold) -> None:
        reason = JobOverLimit(over_limit("log_bytes", log.said, limit))
        self.attempt.interrupt(reason, self.services.clock.boot_ms() + self.services.grace_ms)

    def write_progress(self, done: float, total: float | None, message: str | None) -> None:
        text = outcome.middle_out(str(message), MESSAGE_CHARS_MAX) if message else None
        self.services.jobs.progress.say(self.attempt, done, 1.0 if total is None else total, text)

    # -------------------------------------------------------------------------------------------------------- its end

    def note_error(self, exc: Exception) -> None:
        """What the history says of this attempt. Once: formatting a traceback is the dearest part of a failure."""
        if self.error_type:
            return
        if isinstance(exc, TaskTimeout):
            self.outcome = "timed_out"
        shown: BaseException = exc
        if isinstance(exc, TaskTimeout | CancelExecution | HeartbeatMissed) and exc.__cause__:
            shown = exc.__cause__
        if isinstance(shown, TaskFailed):  # it was raised in another process, and is told as if it had been here
            self.error_type, self.error, self.trace = shown.error_type, shown.error, shown.trace
            return
        self.error_type = "JobTimeout" if isinstance(exc, TaskTimeout) else type(shown).__name__
        self.error = str(exc) if isinstance(exc, TaskTimeout | HeartbeatMissed) else words_of(shown)
        self.trace = outcome.format_traceback(shown)

    def conclude(self, *, wait: bool = False) -> None:
        """Write the end. Once: the watchdog may have been first, and then this one is too late and says nothing."""
        lent = None if self.lent is None or not self.lent.asked_for else self.lent
        if lent is not None and (self.returned or self.state is not State.COMPLETED):
            lent.undo()
            lent = None
        if self.attempt.log is not None:
            self.attempt.log.close()
            if lent is None:  # or else the writer takes nothing: it waits for this end
                self.attempt.log.settle(coroutine.pause if self.spec.executor == "async" else time.sleep)
        if not self.attempt.finish():
            if lent is not None:
                lent.undo()
            return
        if self.returned:
            self.services.jobs.writer.call("verb", self.services.jobs.return_running([self.attempt]))
            self.services.jobs.running.remove(self.attempt)
            return
        if self.suspended and not isinstance(self.attempt.pending, JobCancelled):
            self._suspend()
            return
        ending = self._ending()
        if self.after is not None:
            ending = ending._replace(after=self.after)
        if self.services.talkative:
            log.debug("Job %s: %s", self.attempt.claimed.id, ending.state)
        if lent is not None:
            if self._commit_lent(lent, ending):
                return
            ending = self._ending()
        if not wait:
            try:
                self.services.jobs.post_end(ending)
            except StoreClosed:  # the process is on its way out: the job runs again, as after a crash
                log.warning("the end of job %s came after the store was closed", self.attempt.claimed.id)
            return
        operation, waiter = Operation("end", ending, keep=True), coroutine.waiter()
        operation.waiter = waiter
        self.services.jobs.post_end(ending, operation)
        waiter.wait()

    def _commit_lent(self, lent: Lent, ending: Ending) -> bool:
        """Commit what the job has written, and its end; False if it was undone, and the attempt has failed with that."""
        jobs = self.services.jobs
        try:
            lent.commit(functools.partial(_end_in, jobs, ending))
        except Exception as exc:  # over its limit, a full disk, a deferred foreign key: nothing of it is there
            self.state = None
            self.error_type, self.error = type(exc).__name__, f"{type(exc).__name__}: {exc}"
            return False
        jobs.forget(ending.attempt)
        return True

    def _suspend(self) -> None:
        assert self.replay is not None
        assert self.replay.suspension is not None
        run = self.replay.record.run
        try:
            self.services.jobs.checkpoints.post_suspension(run, self.replay.suspension)
        except StoreClosed:  # the process is on its way out: the function runs again, as after a crash
            log.warning("job %s went to sleep after the store was closed", self.attempt.claimed.id)

    def _ending(self) -> Ending:
        attempt = self.attempt
        if self.state is State.COMPLETED:
            return Ending(attempt, State.COMPLETED, result=self.result)
        if self.state is State.SCHEDULED:  # taken before its time
            return Ending(attempt, State.SCHEDULED, run_at=self.retry_at)
        if isinstance(
            attempt.pending, JobCancelled
        ):  # whatever it failed with, it was asked to stop and is not run again
            self.state = State.CANCELLED
        if self.state in (State.CANCELLED, State.EXPIRED):
            history = "cancelled" if attempt.charged else None
            words = str(attempt.pending) if isinstance(attempt.pending, JobReplaced) else self.error or self.state
            return Ending(attempt, self.state, outcome=history, error_type=self.error_type or None, error=words)
        now_ms = self.services.clock.boot_ms() + self.offset_ms
        return outcome.failure(
            attempt,
            outcome=self.outcome,
            error_type=self.error_type,
            error=self.error,
            trace=self.trace,
            now_ms=now_ms,
            delay_ms=None if self.retry_at is None else max(self.retry_at - now_ms, 0),
            max_retries=self._max_retries(),
            offset_ms=self.offset_ms,
        )

    def _max_retries(self) -> int | None:
        """huey's RetryTask gives a retry on top: then the row's number grows, so that what is left stays the same."""
        claimed = self.attempt.claimed
        if self.retry_at is None:
            return None
        wanted = self.attempt.number - claimed.crashes + self.retries_left
        return wanted if wanted != claimed.max_retries else None


def refuse(services: Services, attempt: Attempt, exc: BaseException) -> None:
    """End an attempt that could not be run at all as a dead letter, unless it has ended already."""
    if attempt.finish():
        ending = outcome.failure(
            attempt,
            outcome="failed",
            error_type=type(exc).__name__,
            error=exc.of_a_job if isinstance(exc, UnknownTask) else str(exc),
            trace=None,
            now_ms=services.clock.now_ms(),
            delay_ms=None,
        )
        services.jobs.post_end(ending)


def _end_in(jobs: Jobs, ending: Ending, tx: Transaction) -> None:
    if not jobs.end(tx, ending):
        raise Undone("the job was taken from this worker: its lease is gone")


class Body:
    """Around the one call of ``task.execute()`` that huey makes inside of ``_timeout_context``: it goes through the execution."""

    __slots__ = ("_body", "_run", "_task")

    def __init__(self, run: Execution, task: Any) -> None:
        self._run, self._task, self._body = run, task, task.execute

    def __enter__(self) -> None:
        self._task.execute = self._execute

    def __exit__(self, *_: object) -> None:
        del self._task.execute

    def _execute(self) -> Any:
        run = self._run
        try:
            if run.raised is not None:
                raised, run.raised = run.raised, None
                raise raised
            value = run.run_body(self._body)
            if isinstance(value, RemoteResult):  # hooks and listeners want the value itself
                return None if value.text is None else outcome.decode_json(value.text)
            return value
        except Exception:  # whatever the task raises; huey goes on with it
            if run.final:
                self._task.retries = 0
            raise
