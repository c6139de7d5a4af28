"""For tests of task code: the real engine on a file of the test's own, without threads and with a clock that the test moves.

A ``Harness`` accepts jobs as a server does – the same checks, the same states, the same transactions – but has no workers: jobs
run when the test says so, one after the other, in the thread of the test. So a breakpoint in a task stops there, what the test
has patched is patched, and nothing has to be waited for. Time stands still until the test moves ``harness.clock``.

pytest has it as the fixture ``miniflow``, see ``pytest_plugin``; elsewhere it is a context manager::

    with Harness(tasks="tasks") as jobs:
        assert jobs.run("greet", {"name": "Ada"}) == ["Hello, Ada!"]
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import datetime as dt
import math
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from miniflow import capture, context, registry, settings
from miniflow import statements as sql
from miniflow.answers import Job, LogLine, ResultNotReady, result_of
from miniflow.attempts import Attempt, Claimed
from miniflow.clock import ManualClock, rfc3339
from miniflow.engine import Engine
from miniflow.errors import NotFound, SettingsError
from miniflow.executors import thread
from miniflow.executors.coroutine import in_greenlet
from miniflow.list_statements import list_by_seq
from miniflow.loader import load_tasks
from miniflow.queries import job_of_row
from miniflow.registry import Registry, TaskSpec
from miniflow.states import WAITING, State
from miniflow.testing_tasks import TasksOfTest
from miniflow.writer import Transaction

JOBS_MAX = 10_000
"""Jobs that one ``drain`` or ``run`` runs: beyond it they are taken to go round in a circle."""
SHOWN = 20
"""Jobs that a failed assertion names."""
EVERY_SEQ = (0, 2**63 - 1)

AnyTask = str | registry.Task[Any, Any] | type[Any]
"""A task by its name, or as what ``@task`` made, or as a subclass of ``BaseJob``."""


class _Engine(Engine):
    """One that runs nothing by itself."""

    submitted: Callable[[TaskSpec], None]
    accepted: Callable[[], object]

    def submit(self, spec: TaskSpec, payload: str, options: dict[str, object]) -> str:
        self.submitted(spec)
        job_id = super().submit(spec, payload, options)
        self.accepted()
        return job_id

    def start_function(self, spec: TaskSpec, input: object, options: Mapping[str, object]) -> str:
        self.submitted(spec)
        run_id = super().start_function(spec, input, options)
        self.accepted()
        return run_id

    def _lane_of(self, task: str) -> str:  # noqa: ARG002 - a single lane, so that all run in one order
        return "thread"


class Harness:
    """Submit, run and look at jobs. It accepts tasks by name, as ``@task`` made them, and as classes of ``BaseJob``."""

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        tasks: str | Path | Registry | None = None,
        inline: bool = False,
        **options: Any,
    ) -> None:
        """The file is made in ``folder`` (else in one that is deleted at the end). Known are the tasks of modules that were
        imported, and those of the folder of task files ``tasks``, if one is given; its modules are then ``miniflow_tasks.…``.

        ``inline`` runs a job within the call that submits it, if it is due. ``options`` are settings, such as
        ``max_result_bytes``. SettingsError for one that is none, and for a task file that fails to import.
        """
        self.clock = ManualClock()
        self.inline = inline
        self._exit = contextlib.ExitStack()
        if folder is None:
            folder = self._exit.enter_context(
                tempfile.TemporaryDirectory(prefix="miniflow-", ignore_cleanup_errors=True)
            )
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._tasks = TasksOfTest(registry.active())
        if tasks is not None:
            self._tasks.take_up(tasks if isinstance(tasks, Registry) else load(tasks))
        self._settings = _settings(self.folder, options)
        self._engine: _Engine | None = None

    def __repr__(self) -> str:
        return f"<Harness {self.folder} [{'inline' if self.inline else 'by drain()'} | {self.clock}]>"

    def __enter__(self) -> Self:
        try:
            self._engine = self._start()
        except BaseException:  # whatever it was, nothing is left open
            self._exit.close()
            raise
        self._exit.enter_context(registry.collecting(self._tasks))
        return self

    def _start(self) -> _Engine:
        engine = _Engine(self._settings, clock=self.clock, specs=self._tasks)
        engine.submitted = self._submitted
        engine.accepted = lambda: self.drain() if self.inline else None
        engine.services.contained = (SystemExit,)  # Ctrl-C, and what ends a test, end the test
        elsewhere: dict[str, Any] = engine.services.elsewhere
        elsewhere["process"] = _here
        self._exit.callback(engine.stop, 0)
        engine.start()
        engine.jobs.claiming = True
        return engine

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()
        self._engine = None

    # ----------------------------------------------------------------------------------------------------------- submitting

    def submit(self, task: AnyTask, payload: Mapping[str, Any] | None = None, **options: Any) -> Job:
        """Submit a job, as ``Client.submit`` does; with options such as ``delay``, ``ttl``, ``queue``, ``max_retries``. Of a
        durable function a run is started, as by its ``start``: its id is the job's ``workflow_id``."""
        spec = self._spec(task)
        if spec.durable:
            run_id = self._running.start_function(spec, dict(payload or {}), options)
            return self.jobs(spec.name, workflow_id=run_id)[0]
        text = msgspec.json.encode(dict(payload or {})).decode()
        return self.job(self._running.submit(spec, text, options))

    def send_event(self, run: str | Job, name: str, payload: Any = None) -> None:
        """Send an event to a run of a durable function, as ``Client.workflows.send_event`` does."""
        run_id = run if isinstance(run, str) else run.workflow_id or run.id
        text = msgspec.json.encode(payload).decode()
        engine = self._running
        engine.writer.call("verb", engine.jobs.checkpoints.deliver(run_id, name, text, key=None, request_id=None))
        engine.accepted()

    def run(self, task: AnyTask, payload: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Submit a job and run it to its end, retries included; its result.

        What was ready before it is run as well, what it submits is not. While nothing is ready the clock moves on to what is
        due next. Raises JobFailed, JobWasCancelled or JobExpired if it does not end well, with its traceback; ResultNotReady
        if it waits for what never comes.
        """
        job = self.submit(task, payload, **options)
        ran = 0
        while not job.ended:
            ran = self._counted(ran)
            if self._run_next() is None and not self._to_what_is_due():
                raise ResultNotReady(job)
            job = self.job(job)
        try:
            return result_of(job)
        except Exception as error:  # whichever it is: the test shows where the task failed
            for (trace,) in self._look(lambda tx: tx.run(sql.LAST_TRACEBACK, job.id)):
                error.add_note(trace or "")
            raise

    def drain(self, *, scheduled: bool = False) -> list[Job]:
        """Run all that is ready, and what that submits, until nothing is; the jobs as they were after each run, in order.

        What is not due is left alone: move the clock first, or have it moved on to what is due next, until nothing waits for
        its time or for a rate (``scheduled=True``). A job that fails is retried or buried, as ever; look at its ``status`` and
        ``last_error``.
        """
        ran: list[Job] = []
        while True:
            job_id = self._run_next()
            if job_id is not None:
                ran.append(self.job(job_id))
                self._counted(len(ran))
            elif not (scheduled and self._to_what_is_due()):
                return ran

    # -------------------------------------------------------------------------------------------------------------- looking

    def job(self, job: str | Job) -> Job:
        """A job as it is now. NotFound if there is none."""
        job_id = job if isinstance(job, str) else job.id
        rows = self._look(lambda tx: tx.run(sql.JOB_BY_ID, job_id))
        if not rows:
            raise NotFound("job", job_id)
        return _job(rows[0])

    def jobs(self, task: AnyTask | None = None, payload: Mapping[str, Any] | None = None, **fields: Any) -> list[Job]:
        """The jobs that were submitted, first one first; those of a task, with these fields in their payload (it may have
        more), and with these values of ``Job`` (``status="completed"``, ``queue="mail"``). ``delay`` is how many seconds it
        takes until a job is due."""
        name = None if task is None else self._spec(task).name
        wanted = msgspec.to_builtins(dict(payload or {}), str_keys=True)
        for field in fields:
            if field != "delay" and field not in Job.__struct_fields__:
                raise TypeError(f"{field} is no field of a job; there are delay, {', '.join(Job.__struct_fields__)}")
        return [
            job
            for job in self._all()
            if name in (None, job.task)
            and _has(job.payload, wanted)
            and all(self._is(job, *one) for one in fields.items())
        ]

    def logs(self, job: str | Job) -> list[LogLine]:
        """What a job has logged, printed, and said through ``logging``."""
        job_id = self.job(job).id
        ((seq, _, last),) = self._look(lambda tx: tx.run(sql.LOG_OF_JOB, job_id))
        rows = self._look(lambda tx: tx.run(sql.LOG_LINES, seq, 0, last or 0, None, None))
        return [
            msgspec.convert({"id": n, "level": level, "message": text, "ts": rfc3339(ts), "attempt": attempt}, LogLine)
            for n, level, text, ts, attempt in rows
        ]

    def assert_enqueued(
        self, task: AnyTask, payload: Mapping[str, Any] | None = None, *, count: int | None = None, **fields: Any
    ) -> Job:
        """There is a job that was submitted and waits to be run, as ``jobs`` finds it; the first of them. ``count`` says how
        many there are, else it is one or more."""
        __tracebackhide__ = True
        found = [job for job in self.jobs(task, payload, **fields) if job.status in WAITING]
        if not found or count not in (None, len(found)):
            wanted = "a job" if count is None else f"{count} jobs"
            raise AssertionError(self._told(f"{wanted} of {self._described(task, payload, fields)} to wait", found))
        return found[0]

    def assert_not_enqueued(
        self, task: AnyTask | None = None, payload: Mapping[str, Any] | None = None, **fields: Any
    ) -> None:
        """No such job waits; with no arguments, none at all."""
        __tracebackhide__ = True
        found = [job for job in self.jobs(task, payload, **fields) if job.status in WAITING]
        if found:
            raise AssertionError(self._told(f"no job of {self._described(task, payload, fields)} to wait", found))

    # -------------------------------------------------------------------------------------------------------------- inside

    @property
    def _running(self) -> _Engine:
        if self._engine is None:
            raise RuntimeError("the harness is not open: use it in a with statement")
        self._tasks.take_up_new()
        if self._tasks.changed:
            self._tasks.changed = False
            self._engine.huey.adopt(self._tasks)
        self._apply_limits(self._engine)
        return self._engine

    def _submitted(self, spec: TaskSpec) -> None:
        self._tasks.take_up([spec])
        if self._engine is not None:
            self._apply_limits(self._engine)

    def _apply_limits(self, engine: _Engine) -> None:
        """Before a job of theirs comes in: those of tasks that were defined since the start."""
        if self._tasks.limited:
            self._tasks.limited = False
            engine.writer.call("verb", engine.jobs.rules.apply)

    def _spec(self, task: AnyTask) -> TaskSpec:
        self._tasks.take_up_new()
        if isinstance(task, str):
            return self._tasks.get(task)
        of_huey = getattr(task, "task_class", None)
        spec = getattr(task if of_huey is None else of_huey, "spec", None)
        if not isinstance(spec, TaskSpec):
            raise TypeError(
                f"{task!r} is no task: give its name, the function with its @task, or a subclass of BaseJob"
            )
        return spec

    def _look(self, read: Callable[[Transaction], Any]) -> Any:
        """What ``read`` finds, when all that was said before is in the file and all that is due has moved."""
        engine = self._running
        while True:
            engine.writer.call("verb", lambda _: None)
            if not engine.jobs.dependencies.due:
                return engine.writer.call("verb", read)

    def _all(self) -> list[Job]:
        def read(tx: Transaction) -> list[Any]:
            listed = tx.run(list_by_seq((), "ASC"), *EVERY_SEQ, -1)
            return [tx.run(sql.JOB_BY_ID, row[2])[0] for row in listed]  # a list leaves long payloads out, and results

        return [_job(row) for row in self._look(read)]

    def _is(self, job: Job, field: str, wanted: object) -> bool:
        if field != "delay":
            return bool(getattr(job, field) == wanted)
        if isinstance(wanted, dt.timedelta):
            wanted = wanted.total_seconds()
        due = self.clock.now if job.scheduled_at is None else job.scheduled_at
        return round((due - self.clock.now).total_seconds(), 3) == wanted

    def _run_next(self) -> str | None:
        """Run the job whose turn it is; its id, or None if none is ready."""
        self._look(lambda _: None)
        engine = self._running
        attempt = engine.readahead.take("thread", self._begin)
        if attempt is None:
            return None
        spec = self._tasks.find(attempt.claimed.task)
        capture.install()  # again: pytest puts its own streams in place between the phases of a test
        try:
            if spec is not None and spec.executor == "async":
                _on_a_loop(lambda: engine.huey.run_attempt(attempt))
            else:
                engine.huey.run_attempt(attempt)
        except BaseException as error:  # the test ends, by Ctrl-C say: the job must not stay leased
            engine.huey.refuse(attempt, error)
            raise
        finally:
            capture.remove()
        return attempt.claimed.id

    def _begin(self, claimed: Claimed) -> Attempt:
        return self._running.begin(claimed, "test")

    def _to_what_is_due(self) -> bool:
        """Move the clock to when the next job becomes ready, or a rate frees; False if none waits for that."""
        claims = self._running.jobs.claims
        ((due_ms,),), opens_at_ms = self._look(lambda tx: (tx.run(sql.NEXT_DUE), claims.opens_at_ms(tx)))
        at_ms = opens_at_ms if due_ms is None else min(due_ms, opens_at_ms)
        if at_ms == math.inf:
            return False
        self.clock.advance(max(at_ms - self.clock.now_ms(), 0) / 1000)
        return True

    def _counted(self, ran: int) -> int:
        if ran > JOBS_MAX:
            raise RuntimeError(
                f"{JOBS_MAX:,} jobs ran and there are more: does a task submit itself, or is it retried for ever?"
            )
        return ran + 1

    def _described(self, task: AnyTask | None, payload: object, fields: Mapping[str, object]) -> str:
        parts = ["any task" if task is None else self._spec(task).name]
        parts += [f"with the payload {payload!r}"] if payload else []
        parts += [f"with {', '.join(f'{name}={value!r}' for name, value in fields.items())}"] if fields else []
        return " ".join(parts)

    def _told(self, expected: str, found: list[Job]) -> str:
        every = self._all()
        lines = [f"expected {expected}; there are {len(found)}"]
        lines += [f"  {self._line(job)}" for job in every[-SHOWN:]]
        if len(every) > SHOWN:
            lines.insert(1, f"  … {len(every) - SHOWN} before these")
        return "\n".join(lines if every else [*lines, "  no job was submitted"])

    def _line(self, job: Job) -> str:
        due = ""
        if job.status in (State.SCHEDULED, State.RETRYING) and job.scheduled_at is not None:
            due = f", due in {(job.scheduled_at - self.clock.now).total_seconds():g} s"
        return f"{job.task} {job.payload!r}: {job.status}{due} (queue {job.queue}, priority {job.priority})"


def load(tasks: str | Path) -> Registry:
    """The tasks of a folder of task files. SettingsError with the traceback for one that fails to import."""
    loaded = load_tasks(Path(tasks))
    for failure in loaded.failures:
        raise SettingsError(f"task file {failure.path} was not loaded: {failure.error}\n{failure.traceback}")
    return loaded.registry


def _settings(folder: Path, options: Mapping[str, Any]) -> settings.Settings:
    fixed = {"db": str(folder / "jobs.db"), "tasks": str(folder), "workers": 0, "durability": "relaxed"}
    for name in options:
        if name in fixed or name not in settings.BY_NAME:
            raise SettingsError(f"{name} is no setting that a test can choose; see `miniflow serve --help`")
    return settings.load({**fixed, **options}, environ={}, folder=folder)


def _job(row: tuple[Any, ...]) -> Job:
    *columns, parents = row
    found = job_of_row(tuple(columns))
    found.depends_on = msgspec.Raw(parents.encode())
    return msgspec.json.decode(msgspec.json.encode(found), type=Job)


def _has(payload: object, wanted: Mapping[str, object]) -> bool:
    if not isinstance(payload, dict):
        return not wanted
    return all(name in payload and payload[name] == value for name, value in wanted.items())


def _here(job: Any) -> Any:
    """Run the job of a process in the thread of the test: a child would know neither its patches nor its tasks."""
    spec: TaskSpec = job.spec
    args, kwargs = spec.binding.arguments(job.attempt.claimed.payload)
    if spec.binding.context_parameter is not None:
        kwargs = {**kwargs, spec.binding.context_parameter: context.current()}
    return thread.run(job.attempt, lambda: spec.function(*args, **kwargs))


def _on_a_loop(call: Callable[[], None]) -> None:
    """Run what may await, see ``executors.coroutine``, on an event loop that is there for it alone."""

    def run() -> None:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(in_greenlet(call))

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        run()
    else:  # an async test: its own loop is busy with this very call
        with ThreadPoolExecutor(1) as pool:
            pool.submit(contextvars.copy_context().run, run).result()
