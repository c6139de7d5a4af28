"""Runs a program as a job: the payload goes in, lines come out, the exit code decides.

The payload is JSON on standard input and in the environment. Each line of output is a line of the job's log as soon as it is
there; a line ``{"progress": 0.4}`` moves the job's progress instead. The result is the file named by MINIFLOW_RESULT_FILE if the
program has written it, else its last line if that is JSON.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from miniflow import outcome
from miniflow.attempts import Attempt
from miniflow.errors import BadResult, MiniFlowError, NonRetryable, ProcessDied, TooLarge
from miniflow.executors import output
from miniflow.executors.children import Processes
from miniflow.executors.inbox import inbox
from miniflow.executors.output import Output
from miniflow.executors.process import PATIENCE_MS, Job, RemoteResult, how_it_ended
from miniflow.executors.tree import Tree
from miniflow.executors.watch import MustEnd, Watch
from miniflow.programs import ENV_CHARS_MAX, Program, environment

SETTLE_S = 0.2
"""How long the pipes of a program that has ended are waited for where they cannot be looked into."""
REST_CHUNKS_MAX = 64


class CommandFailed(MiniFlowError):
    """The program ended with an exit code that is no success."""


class CommandRefused(NonRetryable):
    """The program cannot be started, or its exit code says that another attempt is of no use."""


class Lines:
    """What the lines of standard output mean, beside being a log."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.last = b""

    def take(self, line: bytes) -> bool:
        """True if the line is a progress and belongs into no log."""
        stripped = line.strip()
        if not stripped:
            return False
        if stripped.startswith(b"{") and b'"progress"' in stripped and self._progress(stripped):
            return True
        self.last = stripped
        return False

    def _progress(self, line: bytes) -> bool:
        try:
            said = msgspec.json.decode(line)
            done, total, message = float(said["progress"]), said.get("total"), said.get("message")
            if said.keys() - {"progress", "total", "message"} or done != done:
                return False
            total = None if total is None else float(total)
        except (msgspec.DecodeError, UnicodeError, KeyError, TypeError, ValueError, AttributeError):
            return False  # a line like any other
        if total is not None and not total > 0:
            return False
        self._job.write_progress(min(max(done, 0.0), 1.0 if total is None else total), total, message)
        return True


class CommandExecutor:
    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def run(self, job: Job) -> RemoteResult:
        """The program's result. Raises CommandFailed, CommandRefused, ProcessDied, or the JobInterrupted that stopped it."""
        program = job.spec.program
        assert program is not None
        # A folder that the program has made hard to remove, or that a daemon of its still writes to, is no failure of the job.
        with tempfile.TemporaryDirectory(prefix=self._processes.folders, ignore_cleanup_errors=True) as folder:
            result_file = Path(folder) / "result.json"
            running = self._start(job, program, result_file)
            try:
                lines, streams, code = self._until_end(job, running)
            finally:
                job.attempt.leave()
                running.close()
            if job.attempt.pending is not None and code not in program.success:
                raise job.attempt.pending
            if code not in program.success:
                raise _failure(code, program, streams)
            return RemoteResult(_result(job, result_file, lines.last))

    def _start(self, job: Job, program: Program, result_file: Path) -> Running:
        claimed = job.attempt.claimed
        payload: dict[str, Any] = msgspec.json.decode(claimed.payload)
        values = {**_defaults(job), **payload}
        try:
            argv = program.command_line(values)
        except ValueError as exc:
            raise CommandRefused(str(exc)) from None
        more = {
            "MINIFLOW_JOB_ID": claimed.id,
            "MINIFLOW_TASK": claimed.task,
            "MINIFLOW_QUEUE": claimed.queue,
            "MINIFLOW_ATTEMPT": str(job.attempt.number),
            "MINIFLOW_REQUEST_ID": claimed.request_id or claimed.id,
            "MINIFLOW_RESULT_FILE": str(result_file),
            "TRACEPARENT": job.traceparent(),
        }
        if len(claimed.payload) <= ENV_CHARS_MAX:
            more["MINIFLOW_PAYLOAD"] = claimed.payload
        env = environment(program, os.environ, values, more)
        with tempfile.TemporaryFile() as stdin:  # and no pipe: a program that reads nothing holds nobody up
            stdin.write(claimed.payload.encode())
            stdin.seek(0)
            try:
                tree = self._processes.start(argv, env=env, cwd=program.cwd, stdin=stdin)
            except (OSError, ValueError) as exc:
                raise _refusal(exc, argv, program, env) from None
        return Running(tree, job)

    def _until_end(self, job: Job, running: Running) -> tuple[Lines, list[Output], int]:
        attempt: Attempt = job.attempt
        attempt.enter(None, cancel=running.inbox.wake, patience_ms=PATIENCE_MS)
        watch = Watch(
            attempt, running.tree, running.inbox, self._processes.clock, grace_ms=self._processes.grace_ms,
            limits=job.spec.limits, warn=lambda words: job.write_log("WARNING", words), on_stop=self._stopping,
        )  # fmt: skip
        if job.spec.limits is not None and job.spec.limits.open_files is not None:
            limit_open_files(running.tree.pid, int(job.spec.limits.open_files.kill))
        open_pipes = {"stdout", "stderr"}
        try:
            while open_pipes and not running.tree.exited():
                running.feed(watch.wait(), open_pipes)
            while not running.tree.exited():  # its output is closed, and it goes on
                running.feed(watch.wait(), open_pipes)
        except MustEnd:
            running.end(job)
            running.read_rest(open_pipes)
            assert attempt.pending is not None
            raise attempt.pending from None
        if watch.asked:
            running.end(job)
        elif running.tree.end_group():
            self._processes.left_total += 1
            job.write_log("WARNING", "what the program had left running was ended with the job")
        code = running.tree.reap()
        running.read_rest(open_pipes)
        running.finish()
        if code < 0 and attempt.pending is None:
            self._processes.died_total += 1
        return running.lines, running.streams, code

    def _stopping(self) -> None:
        self._processes.stopped_total += 1


class Running:
    """A program under way, with its pipes."""

    def __init__(self, tree: Tree, job: Job) -> None:
        self.tree, self.lines = tree, Lines(job)
        process = tree.process
        assert process.stdout is not None
        assert process.stderr is not None
        self._by_name = {"stdout": Output("INFO", taken=self.lines.take), "stderr": Output("WARNING")}
        for stream in self.streams:
            stream.begin(job.open_log)
        self._exit_fd = tree.watch(lambda: self.inbox.wake())
        pipes = {"stdout": process.stdout.fileno(), "stderr": process.stderr.fileno()}
        self.inbox = inbox(pipes if self._exit_fd is None else {**pipes, "exit": self._exit_fd})

    @property
    def streams(self) -> list[Output]:
        return list(self._by_name.values())

    def feed(self, events: list[tuple[str, bytes]], open_pipes: set[str]) -> None:
        for name, data in events:
            if name in self._by_name and data:
                self._by_name[name].feed(data)
            elif name in self._by_name:
                open_pipes.discard(name)

    def read_rest(self, open_pipes: set[str]) -> None:
        """It has ended: what is in the pipes is read, and what something else still writes is not waited for."""
        for _ in range(REST_CHUNKS_MAX):
            events = self.inbox.wait(0 if self.inbox.in_order else SETTLE_S) if open_pipes else []
            if not events:
                return
            self.feed(events, open_pipes)

    def end(self, job: Job) -> None:
        left = self.tree.end()
        if left:
            words = "process that it had started was" if left == 1 else "processes that it had started were"
            job.write_log("WARNING", f"{left} {words} ended with the job")

    def finish(self) -> None:
        for stream in self.streams:
            stream.end()

    def close(self) -> None:
        if not self.tree.exited():
            self.tree.end()
        try:
            self.finish()
        finally:
            self.inbox.close()
            for pipe in (self.tree.process.stdout, self.tree.process.stderr):
                if pipe is not None:
                    pipe.close()
            if self._exit_fd is not None:
                os.close(self._exit_fd)


def _defaults(job: Job) -> dict[str, Any]:
    """The fields with the values that hold where the payload leaves them out."""
    _, fields = job.spec.binding.arguments(job.attempt.claimed.payload)
    return fields


def _refusal(exc: Exception, argv: list[str], program: Program, env: dict[str, str]) -> CommandRefused:
    if program.cwd is not None and not os.path.isdir(program.cwd):
        return CommandRefused(f"the working directory {program.cwd} does not exist")
    name, path = argv[0], env.get("PATH", "")
    by_path = os.path.dirname(name) != ""
    folders = [program.cwd or ""] if by_path else path.split(os.pathsep)
    there = next((found for folder in folders if os.path.isfile(found := os.path.join(folder, name))), None)
    if there is not None and not os.access(there, os.X_OK):
        return CommandRefused(f"the program {there} is not executable; `chmod +x {shlex.quote(there)}` makes it so")
    if there is not None and isinstance(exc, FileNotFoundError):  # a script's first line names what there is not
        return CommandRefused(
            f"the program {there} cannot be started: what is to run it (see its first line) was not found"
        )
    if isinstance(exc, FileNotFoundError) or (not by_path and shutil.which(name, path=path) is None):
        return CommandRefused(f"the program {name!r} was not found" + ("" if by_path else f" (PATH is {path!r})"))
    return CommandRefused(f"the program {name!r} cannot be started: {getattr(exc, 'strerror', None) or exc}")


def _failure(code: int, program: Program, streams: list[Output]) -> Exception:
    last = max((output.in_words(stream.last) for stream in reversed(streams)), key=bool)
    if code < 0:
        return ProcessDied(how_it_ended(code).replace("the process of the job", "the program") + last)
    words = f"the program ended with exit code {code}{last}"
    if program.retryable is not None and code not in program.retryable:
        return CommandRefused(words)
    return CommandFailed(words)


def _result(job: Job, result_file: Path, last: bytes) -> str | None:
    """The result as JSON text. BadResult where the file is none; a last line that is none is just a line."""
    limit_name, limit = job.result_limit
    try:
        size, data = _read_file(result_file, limit)
    except FileNotFoundError:
        size, data = len(last), last
        if not last:
            return None
        if size <= limit and not _is_json(last):
            return None
    else:
        if size <= limit and not _is_json(data):
            raise BadResult("the result is not JSON: what the program wrote to MINIFLOW_RESULT_FILE cannot be read")
    if size > limit:
        raise BadResult(str(TooLarge("the result", size, limit_name, limit)))
    # Written anew: NaN and half surrogates are none of JSON's, and it is one line.
    return outcome.encode_result(msgspec.json.decode(data), as_text=False, limit=limit, limit_name=limit_name)


def _read_file(path: Path, limit: int) -> tuple[int, bytes]:
    """The size of what a program has left there, and that itself if it is no more than ``limit`` bytes. No link is followed, no
    pipe waited for, and of a file without end no more is read. BadResult for what is no file."""
    try:
        _check_is_file(path.lstat().st_mode)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise BadResult(
            f"what the program wrote to MINIFLOW_RESULT_FILE cannot be read: {exc.strerror or exc}"
        ) from None
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        _check_is_file(found.st_mode)  # what was looked at and what was opened need not be the same
        data = file.read(limit + 1)
    return max(found.st_size, len(data)), data if len(data) <= limit else b""


def _check_is_file(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISLNK, "a link"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    found = next((words for is_one, words in kinds if is_one(mode)), "a device")
    raise BadResult(f"the program has left {found} at MINIFLOW_RESULT_FILE, where only a regular file is read")


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


def limit_open_files(pid: int, limit: int) -> None:
    """From the outside, where the system has a way (Linux)."""
    try:
        import resource

        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (least, hard))
    except (ImportError, AttributeError, OSError):  # another system, or it has ended already
        pass
