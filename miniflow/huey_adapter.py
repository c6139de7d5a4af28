"""huey around the jobs table: the engine that runs attempts.

huey does what it is good at – the registry of tasks, its decorators, hooks, signals, RetryTask, CancelExecution, locks, rate
limits, and the order in which all of that happens around a body. MiniFlow gives it another idea of a message: a row of the jobs
table, claimed and fenced by a lease. The seams are few. ``deserialize_task`` makes a huey task of an attempt; ``execute`` opens
an Execution around huey's own ``execute`` and writes, in one acknowledgement, whatever came of it; ``enqueue`` inserts a row.
No state of a job lives in huey.

Written against huey 3.5.4; its private names that are overridden here: ``_requeue_task``, ``_timeout_context``, ``_emit``,
``_run_post_execute``.
"""

from __future__ import annotations

import contextvars
import datetime as dt
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from huey import signals as S
from huey.api import Result, ResultGroup, Task, TaskWrapper, chord, group
from huey.exceptions import CancelExecution, ConfigurationError, TaskTimeout
from huey.registry import Registry as HueyRegistry

from miniflow import context, outcome, registry
from miniflow.attempts import Attempt
from miniflow.clock import Clock, SystemClock, to_ms
from miniflow.errors import HeartbeatMissed, InvalidRequest, MiniFlowError
from miniflow.huey_execution import Execution, Services
from miniflow.huey_periodic import PeriodicHuey
from miniflow.huey_serializer import JsonSerializer
from miniflow.huey_storage import JobsStorage, naive_utc
from miniflow.intake import Intake, submission_from_options
from miniflow.model import NewJob
from miniflow.payload import bind_signature
from miniflow.registry import TaskSpec
from miniflow.retry import RetryPolicy
from miniflow.states import State

log = logging.getLogger("miniflow.worker")

_execution: contextvars.ContextVar[Execution | None] = contextvars.ContextVar("miniflow_execution", default=None)


class JobTask(Task):
    """A claimed job as huey sees it. Each registered task has a subclass that carries its spec."""

    spec: TaskSpec

    def execute(self) -> Any:
        return _call(self.spec, *self.data)


def _call(spec: TaskSpec, args: Any, kwargs: dict[str, Any]) -> Any:
    """Call a task's function, with its context where it takes one; for ``async def``, the coroutine."""
    if spec.binding.context_parameter is not None:
        kwargs = {**kwargs, spec.binding.context_parameter: context.current()}
    return spec.function(*args, **kwargs)


class JobsRegistry(HueyRegistry):
    """huey's registry, by the plain names that jobs have."""

    def task_to_string(self, task_class: type[Task]) -> str:
        return task_class.__name__

    def clear(self) -> None:
        self._registry.clear()
        self._periodic_tasks.clear()


class HueyTask(TaskWrapper):
    """What huey's own decorators make: a huey task that is known to MiniFlow too, so that HTTP can submit it."""

    def __init__(self, huey: JobsHuey, func: Callable[..., Any], **settings: Any) -> None:
        context_wanted = settings.get("context", False)
        super().__init__(huey, func, **settings)
        name = settings.get("name") or func.__name__
        binding = bind_signature(_without_task(func) if context_wanted else func, name=name)
        spec = TaskSpec(
            name=name,
            function=func,
            binding=binding,
            priority=int(settings.get("default_priority") or 0),
            timeout_s=settings.get("default_timeout"),
            max_retries=settings.get("default_retries") or 0,
            retry=_policy(settings.get("default_retry_delay") or 0, settings.get("default_retry_backoff") or 0),
            executor="thread",
            native=False,
        )
        self.task_class.spec = spec
        registry.active().add(spec)


def _policy(delay_s: float, backoff: float) -> RetryPolicy:
    return RetryPolicy(base=delay_s, factor=max(backoff, 1), max_delay=7 * 86_400, jitter=0)


def _without_task(func: Callable[..., Any]) -> Callable[..., Any]:
    """``func`` without the parameter ``task`` that huey's ``context=True`` fills in."""
    import inspect

    signature = inspect.signature(func)

    def shown(**_: Any) -> None: ...

    shown.__wrapped__ = func  # type: ignore[attr-defined]  # where annotations that are strings are looked up
    shown.__name__, shown.__doc__, shown.__module__ = func.__name__, func.__doc__, func.__module__
    shown.__signature__ = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "task"])  # type: ignore[attr-defined]
    shown.__annotations__ = {name: hint for name, hint in func.__annotations__.items() if name != "task"}
    return shown


class JobsHuey(PeriodicHuey):
    """A huey whose queue, schedule and results are the jobs table. Task files use it as ``from miniflow import huey``."""

    def __init__(self, name: str = "miniflow", **options: Any) -> None:
        options.setdefault("storage_class", JobsStorage)
        options.setdefault("serializer", JsonSerializer())
        super().__init__(name, **options)
        self._registry = JobsRegistry()
        self._intake: Intake | None = None
        self._services: Services | None = None
        self._specs: registry.Registry | None = None
        self.clock: Clock = SystemClock()

    def get_task_wrapper_class(self) -> type[TaskWrapper]:
        return HueyTask

    def create_storage(self) -> Any:
        if self._immediate and self.immediate_use_memory:
            return self.get_immediate_storage()
        # huey makes a new storage each time `immediate` is switched off: there is one database, so there is one of these.
        kept = self.__dict__.get("_jobs_storage")
        if kept is None:
            kept = self._jobs_storage = self.get_storage(**self.storage_kwargs)
        return kept

    def attach(self, services: Services, intake: Intake, path: str, specs: registry.Registry) -> None:
        """The system runs: from now on tasks can be enqueued and executed."""
        self._services, self._intake, self.clock = services, intake, services.clock
        self._jobs_storage.attach(path, services.jobs.writer, services.jobs.notices, services.clock)
        self.adopt(specs)

    def detach(self) -> None:
        self._services = self._intake = None
        self._jobs_storage.detach()

    def adopt(self, specs: registry.Registry) -> None:
        """Make a huey task class of every native spec; called again after a reload."""
        self._specs = specs
        native = {spec.name: spec for spec in specs if spec.native}
        kept = {
            name: cls
            for name, cls in self._registry._registry.items()
            if specs.find(name) is getattr(cls, "spec", None)
        }
        self._registry.clear()
        for cls in kept.values():
            self._registry.register(cls)
        for name, spec in native.items():
            if name not in kept:
                self._registry.register(type(name, (JobTask,), {"spec": spec, "__module__": spec.function.__module__}))

    # ---------------------------------------------------------------------------------------------------------- enqueuing

    def enqueue(self, task: Any) -> Any:
        if self._immediate:
            return super().enqueue(task)
        if isinstance(task, group):
            jobs = [self._new_job(member) for member in task.tasks]
            self._insert(jobs)
            return ResultGroup([Result(self, member) for member in task.tasks])
        if isinstance(task, chord) or task.on_complete is not None or task.on_error is not None:
            raise ConfigurationError(
                "pipelines, chords and on_error need huey's own storage for now; "
                "use a group, or enqueue the next task from the first"
            )
        job = self._new_job(task)
        self._emit(S.SIGNAL_ENQUEUED, task)
        self._insert([job])
        return Result(self, task) if self.results else None

    def _new_job(self, task: Task) -> NewJob:
        if self._intake is None:
            raise MiniFlowError(
                "no MiniFlow runs in this process; start one with `miniflow serve`, or set huey.immediate = True"
            )
        spec = type(task).spec
        args = dict(task.kwargs)
        args.pop("task", None)
        options: dict[str, Any] = {
            "priority": int(task.priority) if task.priority is not None else None,
            "max_retries": int(task.retries),
            "timeout": task.timeout,
            "run_at": task.eta.replace(tzinfo=dt.UTC) if task.eta is not None else None,
        }
        if task.retry_delay != task.default_retry_delay or task.retry_backoff != task.default_retry_backoff:
            options["retry"] = _policy(task.retry_delay, task.retry_backoff)
        if task.expires:
            task.resolve_expires(self.utc)
            options["ttl"] = max((task.expires_resolved - (task.eta or self._get_timestamp())).total_seconds(), 0.001)
        submission = submission_from_options(spec.name, spec.binding.from_call(task.args, args), options)
        return self._intake.job(submission, job_id=task.id)

    def _insert(self, jobs: list[NewJob]) -> None:
        assert self._services is not None
        self._services.jobs.writer.call("insert", jobs)

    # ---------------------------------------------------------------------------------------------------------- executing

    def deserialize_task(self, data: Any) -> Task:
        """A huey task of a listed row (task, id, run_at, payload), for ``pending`` and ``scheduled``."""
        if not isinstance(data, tuple):
            return super().deserialize_task(data)
        name, job_id, run_at, payload = data
        cls = self._task_class(name)
        args, kwargs = cls.spec.binding.arguments(payload)
        return cls(args, kwargs, job_id, None if run_at is None else naive_utc(run_at))

    def _task_class(self, name: str) -> Any:
        cls = self._registry._registry.get(name)
        if cls is None:
            assert self._specs is not None
            self._specs.get(name)  # raises UnknownTask with what it could have meant
            raise InvalidRequest("task", f"{name!r} is registered and not adopted")
        return cls

    def _task(self, attempt: Attempt, cls: Any, args: Any, kwargs: dict[str, Any]) -> Task:
        claimed = attempt.claimed
        timeout = None if claimed.timeout_ms is None else claimed.timeout_ms / 1000
        task = cls(
            args, kwargs, claimed.id, None, outcome.retries_left(attempt), priority=claimed.priority, timeout=timeout
        )
        if claimed.expires_at is not None and not claimed.attempt:
            task.expires_resolved = naive_utc(claimed.expires_at)
        return task

    def run_attempt(self, attempt: Attempt) -> None:
        """Execute a claimed job to its end; never raises for what the job does.

        A job that ends well, with nobody listening, needs nothing of huey's ``execute``, so its body is run directly. Anything
        else – a failure, a hook, a listener, a lock or a revocation in the file – goes through it; an exception that the body
        has raised by then is raised again where huey calls the body, and huey decides what follows.
        """
        services = self._services
        assert services is not None
        claimed = attempt.claimed
        try:
            cls = self._task_class(claimed.task)
            args, kwargs = cls.spec.binding.arguments(claimed.payload)
        except Exception as exc:  # the task is gone, or its signature no longer fits: a person must look at it
            self.refuse(attempt, exc)
            return
        run = Execution(attempt, cls.spec, services)
        if cls.spec.native and self._nobody_listens() and (claimed.expires_at is None or claimed.attempt):
            try:
                run.run_body(lambda: _call(cls.spec, args, kwargs))
            except Exception as exc:  # whatever the task raises
                run.raised = exc
            else:
                run.state = State.COMPLETED
                run.conclude()
                return
        self._run_through_huey(run, self._task(attempt, cls, args, kwargs))

    def _nobody_listens(self) -> bool:
        return not (
            self._pre_execute
            or self._post_execute
            or not self._jobs_storage.quiet
            or any(self._signal.receivers.values())
        )

    def _run_through_huey(self, run: Execution, task: Task) -> None:
        token = _execution.set(run)
        try:
            self.execute(task)
        except Exception as exc:  # a hook or a listener, not the body: say so, and end the attempt by what is known
            log.exception("executing job %s failed outside of its body", run.attempt.claimed.id)
            if run.state is None:
                run.error_type, run.error, run.trace = type(exc).__name__, str(exc), outcome.format_traceback(exc)
        finally:
            _execution.reset(token)
            run.conclude()

    def refuse(self, attempt: Attempt, exc: BaseException) -> None:
        """End an attempt that could not be run at all as a dead letter, unless it has ended already."""
        assert self._services is not None
        if attempt.finish():
            ending = outcome.failure(
                attempt,
                outcome="failed",
                error_type=type(exc).__name__,
                error=str(exc),
                trace=None,
                now_ms=self._services.clock.now_ms(),
                delay_ms=None,
            )
            self._services.jobs.post_end(ending)

    def _timeout_context(self, task: Task) -> AbstractContextManager[Any]:
        run = _execution.get()
        return super()._timeout_context(task) if run is None else _Body(run, task)

    def _requeue_task(self, task: Task, timestamp: dt.datetime, retry_eta: dt.datetime | None = None) -> None:
        run = _execution.get()
        if run is None:
            super()._requeue_task(task, timestamp, retry_eta)
            return
        task.retries -= 1
        run.retries_left = task.retries
        now_ms = run.services.clock.now_ms()
        if retry_eta is not None:
            run.retry_at = to_ms(retry_eta)
        else:
            delay_ms = run.delay_ms if run.delay_ms is not None else outcome.retry_delay_ms(run.attempt, run.spec.retry)
            run.retry_at = now_ms + delay_ms
        run.state = State.RETRYING
        self._emit(S.SIGNAL_SCHEDULED, task)

    def add_schedule(self, task: Task) -> None:
        if self._immediate or _execution.get() is None:
            super().add_schedule(task)

    def build_error_result(self, task: Task, exception: Exception) -> dict[str, Any]:
        run = _execution.get()
        if run is None:
            return dict(super().build_error_result(task, exception))
        shown: BaseException = (
            exception.__cause__
            if isinstance(exception, TaskTimeout | CancelExecution | HeartbeatMissed) and exception.__cause__
            else exception
        )
        run.error_type = "JobTimeout" if isinstance(exception, TaskTimeout) else type(shown).__name__
        run.error = (
            str(exception)
            if isinstance(exception, TaskTimeout | HeartbeatMissed)
            else f"{type(shown).__name__}: {shown}"
            if str(shown)
            else type(shown).__name__
        )
        run.trace = outcome.format_traceback(shown)
        return {"error": run.error, "retries": task.retries, "traceback": run.trace, "task_id": task.id}

    def put_result(self, key: str, data: Any) -> Any:
        run = _execution.get()
        if run is None or key != run.attempt.claimed.id:
            return super().put_result(key, data)
        return None  # rides in the acknowledgement

    def _run_post_execute(self, task: Task, task_value: Any, exception: Exception | None) -> None:
        run = _execution.get()
        if run is not None and exception is None:
            run.state = State.COMPLETED
            if self._heard(S.SIGNAL_COMPLETE):  # a listener may read the result: it must be in the file
                run.conclude(wait=True)
        if self._post_execute:
            super()._run_post_execute(task, task_value, exception)

    def _heard(self, signal: str) -> bool:
        return bool(self._signal.receivers["any"] or self._signal.receivers.get(signal))

    def _emit(self, signal: str, task: Task, *args: Any, **kwargs: Any) -> None:
        run = _execution.get()
        if run is not None and task.id == run.attempt.claimed.id:
            if signal in (S.SIGNAL_REVOKED, S.SIGNAL_EXPIRED):
                run.state = State.CANCELLED if signal == S.SIGNAL_REVOKED else State.EXPIRED
                run.error = "revoked" if signal == S.SIGNAL_REVOKED else "not begun within its ttl"
                run.attempt.charged = False
            elif signal == S.SIGNAL_CANCELED:
                run.state = State.CANCELLED
                run.error = run.error or "cancelled"
                run.attempt.charged = run.began
        if self._heard(signal):
            super()._emit(signal, task, *args, **kwargs)

    # ------------------------------------------------------------------------------------------ locks, results, revocations

    def delete(self, key: str) -> bool:
        if not self._immediate and self._jobs_storage.quiet:
            return False
        return bool(super().delete(key))

    def is_revoked(self, task: Any, timestamp: dt.datetime | None = None, peek: bool = True) -> bool:
        if not self._immediate and self._jobs_storage.quiet:
            return False
        return bool(super().is_revoked(task, timestamp, peek))

    def create_consumer(self, **options: Any) -> Any:
        raise ConfigurationError("MiniFlow runs the consumer: start it with `miniflow serve`")


class _Body:
    """Around the one call of ``task.execute()`` that huey makes inside of ``_timeout_context``: it goes through the execution."""

    __slots__ = ("_body", "_run", "_task")

    def __init__(self, run: Execution, task: Task) -> None:
        self._run, self._task, self._body = run, task, task.execute

    def __enter__(self) -> None:
        self._task.execute = self._execute

    def __exit__(self, *_: object) -> None:
        del self._task.execute

    def _execute(self) -> Any:
        run = self._run
        try:
            if run.raised is not None:
                raise run.raised
            return run.run_body(self._body)
        except Exception:  # whatever the task raises; huey goes on with it
            if run.final:
                self._task.retries = 0
            raise


huey = JobsHuey()
"""The one that task files use. ``miniflow serve`` attaches it to the database; before that, only ``immediate`` mode runs."""
