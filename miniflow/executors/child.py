"""A child process: takes jobs from the server through a pipe and runs them, one at a time, until the pipe ends.

It is this program started anew, and imports the task files as the server does. It never opens the database: what a job logs,
its progress and the jobs that it submits go through the pipe too. Messages come in by what was standard input and go out by
what was standard output; both are put out of the way first, so that a task may print to them, or close them, as it likes. What it
writes there by itself (C code, programs that it starts) ends up in the pipe of standard error, which the server reads.

A stop comes as SIGTERM and raises JobCancelled or JobTimeout where the job is. The end of the server is the end of the child,
whatever the job does: see ``_follow_the_server``.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import msgspec

from miniflow import capture, context, outcome, packaged, registry
from miniflow.clock import SystemClock
from miniflow.context import JobContext
from miniflow.errors import (
    BadResult,
    InvalidRequest,
    JobCancelled,
    JobInterrupted,
    JobTimeout,
    MiniFlowError,
    NonRetryable,
    RetryAfter,
    SettingsError,
    TaskExit,
    TooLarge,
    UnknownTask,
    words_of,
)
from miniflow.executors.messages import (
    AskTrace,
    Beat,
    Done,
    Failed,
    Frames,
    Hello,
    Progress,
    Run,
    Said,
    Submit,
    Submitted,
    ToChild,
    Traced,
    frame,
)
from miniflow.executors.remotelog import RemoteLog
from miniflow.executors.turns import ChildTurns
from miniflow.intake import submission_from_options
from miniflow.loader import Loaded, load_tasks
from miniflow.registry import TaskSpec

COMMAND = "_child"
CHUNK_BYTES = 16_384
PROGRESS_CHARS_MAX = 16_000
BEAT_EVERY_MS = 200  # at most: a job may say as often as it likes that it is alive
SURE_END_S = 1.0  # within which a child whose server is gone has ended, whatever its job does
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> NoReturn:
    """Serve until the server closes the pipe."""
    packaged.restore_environment()
    came_in, goes_out = _take_over_streams()
    faulthandler.enable(2, all_threads=False)
    child = Child(came_in, goes_out)
    hello = child.next_message()
    if isinstance(hello, Hello):
        child.prepare(hello)
        child.serve()
    os._exit(0)


def _take_over_streams() -> tuple[int, int]:
    """The two pipes of messages, moved where nobody looks for them: no program that a task starts inherits them."""
    came_in, goes_out = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return came_in, goes_out


class Child:
    def __init__(self, came_in: int, goes_out: int) -> None:
        self._in, self._out = came_in, goes_out
        self._frames = Frames(ToChild)
        self._ready: list[Any] = []
        self._sending = threading.Lock()
        self._asking = threading.Lock()
        self._clock = SystemClock()
        self._loaded: Loaded | None = None
        self._pending: JobInterrupted | None = None
        self._beat_at_ms = 0
        self._turns: ChildTurns | None = None
        self._alone = False  # no job that was handed ahead is begun: the server has to see to something first
        self._in_a_message = False  # the thread that hears signals writes one
        self._untold: JobInterrupted | None = None  # what it is to raise after that
        self._waits = False  # for a job: nothing is under way
        self._ends = False  # asked to stop between two jobs, or on the way to the first
        self.run: Run | None = None  # the job under way

    def __repr__(self) -> str:
        return f"<Child {os.getpid()} [{self.run.task if self.run else 'idle'}]>"

    # ------------------------------------------------------------------------------------------------------- the pipes

    def next_message(self) -> Any:
        """The next message; None at the end of the server."""
        while not self._ready:
            data = os.read(self._in, CHUNK_BYTES)
            if not data:
                return None
            self._ready += self._frames.feed(data)
        return self._ready.pop(0)

    def _next_run(self) -> Run | None:
        """The next job that may begin. One that was handed ahead and has no turn was taken back, and is dropped."""
        while (run := self._next_given()) is not None:
            if not run.ahead:
                break
            assert self._turns is not None
            if not self._alone and self._turns.take():
                if run.deadline_ms is not None:
                    run.deadline_ms += self._clock.boot_ms()
                break
        return run  # type: ignore[no-any-return]

    def _next_given(self) -> Any:
        self._waits = True
        run = None if self._ends else self.next_message()
        self._waits = False
        return run

    def send(self, message: Any, *, of: Run | None = None) -> bool:
        """Whole messages only, from any thread; waits while the server does not read. What is said ``of`` a job that is over is
        not sent, since another would get it: False. It is over before its answer is sent, so this is asked where no answer can
        come between."""
        data, hears_signals = frame(message), threading.current_thread() is threading.main_thread()
        with self._sending:
            if of is not None and self.run is not of:
                return False
            self._in_a_message = hears_signals
            try:
                while data:
                    data = data[os.write(self._out, data) :]
            finally:
                self._in_a_message = False
        if hears_signals and self._untold is not None:
            untold, self._untold = self._untold, None
            raise untold
        return True

    # ----------------------------------------------------------------------------------------------------- the beginning

    def prepare(self, hello: Hello) -> None:
        """Become what the server is, as far as tasks can see: its paths, its task files, its ways to log."""
        sys.path[:] = hello.path
        os.environ.pop("PYTHONPATH", None)
        if hello.pythonpath is not None:
            os.environ["PYTHONPATH"] = hello.pythonpath
        _follow_the_server(self._in)
        if hello.turns is not None:
            self._turns = ChildTurns(hello.turns)
        for name in ("SIGINT", "SIGBREAK"):  # a Ctrl-C in the terminal is for the server
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(getattr(signal, "SIGBREAK", signal.SIGTERM), self._on_stop)
        logging.getLogger().setLevel(logging.DEBUG if hello.debug else logging.INFO)
        logging.getLogger("miniflow.task").setLevel(logging.DEBUG if hello.debug else logging.INFO)
        capture.install()
        registry.bind_submit(self._submit)
        try:
            self._loaded = load_tasks(Path(hello.tasks))
        except SettingsError as exc:  # the folder has gone since
            print(exc, file=sys.stderr)
        self.send(Beat())

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        run = self.run
        if run is None:  # the server ends us, or somebody else does: no other job is begun
            self._ends = True
            if self._waits:
                os._exit(0)
            return
        late = run.deadline_ms is not None and self._clock.boot_ms() >= run.deadline_ms
        self._pending = JobTimeout("the job is over its timeout") if late else JobCancelled("the job was cancelled")
        if self._in_a_message:  # raised here it would leave the server with a part of it
            self._untold = self._pending
            return
        raise self._pending

    # ----------------------------------------------------------------------------------------------------------- jobs

    def serve(self) -> None:
        """One job after the other."""
        while (run := self._next_run()) is not None:
            try:
                answer = self._answer(run)
            except JobInterrupted as exc:  # it came just after the job had ended
                self.run = None
                answer = _failed(exc)
            self._pending = None
            if has_children():
                answer.leaves = True
            if self._turns is not None and not self._turns.read_so_far():
                answer.wrote = True
            self._alone = answer.leaves or answer.wrote
            try:
                self.send(answer)
            except JobInterrupted:  # it is being ended, and nobody waits for the answer
                return

    def _answer(self, run: Run) -> Done | Failed:
        spec = self._loaded.registry.find(run.task) if self._loaded is not None else None
        if spec is None:
            return self._unknown(run.task)
        log = RemoteLog(lambda said: self.send(said, of=run))
        try:
            self.run = run
            if self._ends:  # since it was read
                raise JobCancelled("the job was cancelled")
            with context.use(lambda: self._context(run), lambda: log):
                try:
                    args, kwargs = spec.binding.arguments(run.payload)
                except Exception as exc:  # the signature no longer fits: a person must look at it
                    failed = _failed(exc)
                    failed.final = True
                    return failed
                if spec.binding.context_parameter is not None:
                    kwargs = {**kwargs, spec.binding.context_parameter: context.current()}
                began = time.perf_counter()
                with open_files(run.open_files):
                    value = spec.function(*args, **kwargs)
                took_us = int((time.perf_counter() - began) * 1_000_000)
                return Done(encode(spec, value, run), took_us=took_us)
        except BaseException as exc:  # whatever the task raises is the job's failure, and the child goes on
            return _failed(exc, spec, run)
        finally:
            log.close()
            # A thread that the job leaves behind gets the answer that it waits for, and asks no more.
            with self._asking:
                self.run = None

    def _unknown(self, task: str) -> Failed:
        failures = [] if self._loaded is None else self._loaded.failures
        errors = "; ".join(f"{failure.path.name} failed there: {failure.error}" for failure in failures)
        words = f"the task {task!r} was not found in the process that was to run it" + (f": {errors}" if errors else "")
        return Failed("UnknownTask", words, None, final=True)

    def _context(self, run: Run) -> JobContext:
        def write_progress(done: float, total: float | None, message: str | None) -> None:
            say(Progress(done, total, outcome.middle_out(str(message), PROGRESS_CHARS_MAX) if message else None))

        def say(message: Progress | Said) -> None:
            self.send(message, of=run)

        return JobContext(
            job_id=run.id,
            task=run.task,
            queue=run.queue,
            attempt=run.attempt,
            max_retries=run.max_retries,
            payload=run.payload,
            request_id=run.request_id or run.id,
            meta=outcome.decode_json(run.meta) if run.meta else None,
            tags=tuple(outcome.decode_json(run.tags)) if run.tags else (),
            write_log=lambda level, message: say(Said(level, outcome.middle_out(message, PROGRESS_CHARS_MAX))),
            write_progress=write_progress,
            beat=lambda: self._beat(run),
            pending_interrupt=lambda: self._pending if run is self.run else None,
            deadline_ms=run.deadline_ms,
            boot_ms=self._clock.boot_ms,
            traceparent=lambda: self._traceparent(run),
        )

    def _beat(self, run: Run) -> None:
        now = self._clock.boot_ms()
        if now >= self._beat_at_ms and run is self.run:
            self._beat_at_ms = now + BEAT_EVERY_MS
            self.send(Beat(), of=run)

    def _ask(self, question: Submit | AskTrace, job_id: str, attempt: int) -> Any:
        """What the server answers; None if the attempt that asks has ended, and asks nothing any more. Code that is in no job's
        context has no ``job_id``: it is of the one that runs."""
        with self._asking:  # threads of the job take turns
            run = self.run
            if run is None or (job_id and (job_id, attempt) != (run.id, run.attempt)):
                return None
            self.send(question)
            answer = self._next_answer()
        if answer is None:
            raise MiniFlowError("the server is gone")
        return answer

    def _traceparent(self, run: Run) -> str | None:
        """Asked for each time: most jobs never do."""
        answer = self._ask(AskTrace(), run.id, run.attempt)
        return answer.traceparent if isinstance(answer, Traced) else None

    def _next_answer(self) -> Any:
        """The answer to what was asked. Jobs that were handed ahead may have come before it."""
        ahead: list[Any] = []
        while isinstance(message := self.next_message(), Run):
            ahead.append(message)
        self._ready[:0] = ahead
        return message

    def _submit(self, spec: TaskSpec, payload: str, options: dict[str, Any]) -> str:
        """The hook behind ``task.submit()``: the server inserts the job, and it is committed when this returns."""
        submission = submission_from_options(spec.name, payload, options)
        asking = context.current()
        answer = self._ask(Submit(msgspec.json.encode(submission)), asking.job_id, asking.attempt)
        if not isinstance(answer, Submitted):
            raise MiniFlowError("the job has ended, and submits nothing any more")
        if answer.job_id is None:
            raise InvalidRequest(answer.field, answer.reason)
        return answer.job_id


def encode(spec: TaskSpec, value: Any, run: Run) -> str | None:
    """The result as JSON text; BadResult where it is none, or over the limit."""
    try:
        return outcome.encode_result(value, as_text=spec.as_text, limit=run.result_bytes, limit_name=run.result_limit)
    except Exception as exc:  # no JSON, a cycle, too large: the next attempt would return the same
        raise BadResult(str(exc) if isinstance(exc, TooLarge) else f"the result is not JSON: {exc}") from exc


def _failed(exc: BaseException, spec: TaskSpec | None = None, run: Run | None = None) -> Failed:
    if isinstance(exc, (SystemExit, KeyboardInterrupt, GeneratorExit)):
        cause = exc
        exc = TaskExit(f"the task raised {type(cause).__name__}({cause}); a task ends by returning")
        exc.__cause__, exc.__traceback__ = cause, cause.__traceback__
    final = isinstance(exc, (NonRetryable, UnknownTask, *(spec.no_retry_on if spec is not None else ())))
    error = words_of(exc)
    if run is not None and run.open_files is not None and getattr(exc, "errno", None) == 24:  # EMFILE
        error += f" (the task's limit open_files is {run.open_files})"
    return Failed(
        type(exc).__name__,
        outcome.middle_out(error, outcome.ERROR_CHARS_MAX),
        outcome.middle_out(outcome.format_traceback(exc), outcome.TRACEBACK_CHARS_MAX),
        final=final,
        bad_result=isinstance(exc, BadResult),
        delay_s=exc.delay_s if isinstance(exc, RetryAfter) else None,
    )


# ------------------------------------------------------------------------------------------------------------- the system


class open_files:
    """Within a ``with`` block the process may have so many files open; None: as many as ever."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit

    def __enter__(self) -> None:
        if self._limit is None:
            return
        try:
            import resource
        except ImportError:  # Windows: the server looks now and then
            self._limit = None
            return
        self._before = resource.getrlimit(resource.RLIMIT_NOFILE)
        hard = self._before[1]
        least = self._limit if hard == resource.RLIM_INFINITY else min(self._limit, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))

    def __exit__(self, *_: object) -> None:
        if self._limit is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_NOFILE, self._before)


def has_children() -> bool:
    """Whether a process that was started here is still there, or waits to be reaped: one look, where the system has it. The
    child is the reaper of orphans below it, so those that were detached count."""
    if not hasattr(os, "waitid"):
        return False
    try:
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is not None:
            pass  # a zombie, which is reaped with that
    except ChildProcessError:
        return False
    return True


def _follow_the_server(pipe: int) -> None:
    """End with the server, even if it is killed: by its closing the pipe, and on Linux by a signal of the kernel besides, for a
    job that lets no other thread run. (What the job has started is the warden's to end.)"""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(pipe, 0)  # nothing but its end

        def follow() -> None:
            poll.poll()
            os.killpg(0, signal.SIGKILL)  # itself, and what the job has started

        threading.Thread(target=follow, name="miniflow-server", daemon=True).start()
