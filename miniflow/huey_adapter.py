"""huey around the jobs table: the engine that runs attempts.

huey does what it is good at – the registry of tasks, its decorators, hooks, signals, RetryTask, CancelExecution, locks, rate
limits, and the order in which all of that happens around a body. MiniFlow gives it another idea of a message: a row of the jobs
table, claimed and fenced by a lease. The seams are few. ``deserialize_task`` makes a huey task of a claimed row; ``execute``
opens an Execution around huey's own ``execute`` and writes, in one acknowledgement, whatever came of it; ``enqueue`` inserts
rows (how, is in ``huey_enqueuing``). No state of a job lives in huey.

Written against huey 3.5.4; its private names that are overridden here and in ``huey_enqueuing``: ``_requeue_task``,
``_timeout_context``, ``_emit``, ``_run_post_execute``, ``_get_timestamp``, ``_enqueue_chord``.
"""

from __future__ import annotations

import contextvars
import datetime as dt
import logging
import weakref
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from huey import signals as S
from huey.api import Task, TaskWrapper
from huey.exceptions import ConfigurationError, TaskException
from huey.utils import Error

from miniflow import outcome, registry
from miniflow.attempts import Attempt, Claimed, own_executor
from miniflow.errors import InvalidRequest, repr_of
from miniflow.huey_enqueuing import Enqueuing
from miniflow.huey_execution import Body, Execution, refuse
from miniflow.huey_messages import decode_call, expires_of
from miniflow.huey_services import Services
from miniflow.huey_statements import MESSAGE_FIELDS
from miniflow.huey_tasks import HueyTask, JobTask, call
from miniflow.intake import Intake
from miniflow.states import State
from miniflow.writer import Transaction

log = logging.getLogger("miniflow.worker")

_execution: contextvars.ContextVar[Execution | None] = contextvars.ContextVar("miniflow_execution", default=None)


class JobsHuey(Enqueuing):
    """A huey whose queue, schedule and results are the jobs table. Task files use it as ``from miniflow import huey``."""

    known: ClassVar[weakref.WeakSet[JobsHuey]] = weakref.WeakSet()
    """All there are: a task file may make one of its own."""

    def __init__(self, name: str = "miniflow", **options: Any) -> None:
        super().__init__(name, **options)
        self._owners: dict[str, JobsHuey] = {}
        self.known.add(self)

    def get_task_wrapper_class(self) -> type[TaskWrapper]:
        return HueyTask

    # ------------------------------------------------------------------------------------------------- a system that runs

    def attach(self, services: Services, intake: Intake, path: str, specs: registry.Registry) -> None:
        """A system is there: ``load`` comes next, and then tasks can be enqueued and executed."""
        self._join(services, intake, path, specs)
        self.adopt(specs)

    def _join(self, services: Services, intake: Intake, path: str, specs: registry.Registry) -> None:
        self._services, self._intake, self.clock, self._path = services, intake, services.clock, path
        self._specs = specs
        self._jobs_storage.attach(path, services.jobs, services.clock)

    def load(self, tx: Transaction) -> None:
        """At start, in its first transaction: what huey keeps beside the jobs."""
        self._jobs_storage.release_locks(tx)
        for huey in (self, *set(self._owners.values())):
            huey.load_own(tx)

    def load_own(self, tx: Transaction) -> None:
        self._jobs_storage.load(tx)
        self.load_key(tx)

    def detach(self) -> None:
        others, self._owners = set(self._owners.values()), {}
        for other in others:
            other.detach()
        self._services = self._intake = None
        self._jobs_storage.detach()

    def adopt(self, specs: registry.Registry) -> None:
        """Make a huey task class of every native spec, find the huey object of each other one; called again after a reload."""
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
        if self._services is not None:
            self._find_owners(specs)

    def owner_of(self, task: str) -> JobsHuey:
        return self._owners.get(task, self)

    def _find_owners(self, specs: registry.Registry) -> None:
        assert self._services is not None
        assert self._intake is not None
        self._owners = {
            name: other
            for other in self.known
            if other is not self
            for name, cls in other._registry._registry.items()
            if not cls.spec.native and specs.find(name) is cls.spec
        }
        writer = self._services.jobs.writer
        for other in set(self._owners.values()):
            if not other.attached:
                other._join(self._services, self._intake, self._path, specs)
                if writer.started:
                    writer.call("verb", other.load_own)

    # ---------------------------------------------------------------------------------------------------- a row as a task

    def deserialize_task(self, data: Any) -> Task:
        """A huey task of a claimed row, or of one that is listed; anything else is a message of huey's own."""
        if isinstance(data, Claimed):
            attempt = self.services.begin(data, "huey")
            attempt.deadline_boot_ms = None  # its time begins when it is executed
            self._jobs_storage.took(attempt)
            try:
                return self._task(attempt, self.task_class(data.task))
            except Exception as exc:  # the task is gone, or its signature no longer fits: a person must look at it
                self.refuse(attempt, exc)
                raise
        if isinstance(data, tuple):
            row = dict(zip(MESSAGE_FIELDS, data, strict=True))
            task = self._make(self.task_class(row["task"]), row)
            if row["run_at"] is not None:
                task.eta = self.times.from_ms(row["run_at"])
            return task
        return super().deserialize_task(data)

    def task_class(self, name: str) -> Any:
        cls = self._registry._registry.get(name)
        if cls is None:
            assert self._specs is not None
            self._specs.get(name)  # raises UnknownTask with what it could have meant
            raise InvalidRequest("task", f"{name!r} is registered and not adopted")
        return cls

    def _task(self, attempt: Attempt, cls: Any) -> Task:
        claimed = attempt.claimed
        task = self._make(cls, claimed._asdict())
        task.claim = attempt
        if claimed.expires_at is not None and not claimed.attempt:
            task.expires_resolved = self.times.from_ms(claimed.expires_at)
        elif isinstance(task.expires, dt.datetime):
            task.resolve_expires(self.utc)
        elif task.expires:  # counted again from each time that it is enqueued
            after = task.expires if isinstance(task.expires, dt.timedelta) else dt.timedelta(seconds=task.expires)
            task.expires_resolved = self.times.from_ms(claimed.ready_at) + after
        return task

    def _make(self, cls: Any, row: dict[str, Any]) -> Any:
        """A task of what is in a row."""
        options = outcome.decode_json(row["options"]) if row["options"] else {}
        own = options.get("huey") or {}
        spec = cls.spec
        args, kwargs = decode_call(spec.binding, row["payload"], own, self.json)
        failed = row["attempt"] - row["crashes"]
        timeout_ms = row.get("timeout_ms")
        task = cls(
            args,
            kwargs,
            row["id"],
            self.times.from_ms(own["eta"]) if "eta" in own else None,
            max(row["max_retries"] - failed, 0),
            own.get("retry_delay"),
            own.get("priority", row["priority"] if spec.native or row["priority"] != spec.priority else None),
            expires_of(own),
            timeout=own.get("timeout", timeout_ms / 1000 if spec.native and timeout_ms else None),
            retry_backoff=own.get("retry_backoff"),
        )
        if "on_error" in own:
            task.on_error = self._registry.create_task(self.json.from_json(own["on_error"]))
        if own.get("fed"):
            kind, values = self._jobs_storage.results.of_parents(row["id"], self.json)
            if kind == "all":
                task.extend_data((values,))
            elif values:
                task.extend_data(values[0])
        task.own = own
        return task

    # ---------------------------------------------------------------------------------------------------------- executing

    def run_attempt(self, attempt: Attempt) -> None:
        """Execute a claimed job to its end; never raises for what the job does.

        A job that ends well, with nobody listening, needs nothing of huey's ``execute``, so its body is run directly. Anything
        else – a failure, a hook, a listener, a lock or a revocation in the file – goes through it; an exception that the body
        has raised by then is raised again where huey calls the body, and huey decides what follows.
        """
        services = self.services
        claimed = attempt.claimed
        if self._owners and (owner := self.owner_of(claimed.task)) is not self:
            owner.run_attempt(attempt)
            return
        try:
            cls = self.task_class(claimed.task)
            spec = cls.spec
            if not spec.native:
                task = self._task(attempt, cls)
                if task.eta is not None and (claimed.attempt or not self._delayed_by_worker):
                    task.eta = min(task.eta, self._get_timestamp())  # the row is ready: somebody has called it forward
                self._run_through_huey(self._execution_of(attempt, cls), task)
                return
            args, kwargs = ((), {}) if attempt.handed else spec.binding.arguments(claimed.payload)
        except Exception as exc:  # the task is gone, or its signature no longer fits: a person must look at it
            self.refuse(attempt, exc)
            return
        run = Execution(attempt, spec, services)
        plain = attempt.handed or ((claimed.expires_at is None or claimed.attempt) and self._nobody_listens(claimed))
        if plain or spec.durable:  # huey knows no task that sleeps
            try:
                run.run_body(lambda: call(spec, args, kwargs))
            except Exception as exc:  # whatever the task raises
                run.raised = exc
            else:
                run.state = None if run.suspended else State.COMPLETED
                run.conclude()
                return
        self._run_through_huey(run, self._task(attempt, cls))

    def is_plain(self, claimed: Claimed) -> bool:
        """Whether the job runs in a process, with no limits, and nobody listens: so it needs nothing but to be run."""
        if self._owners and self.owner_of(claimed.task) is not self:
            return False
        spec = self._specs.find(claimed.task) if self._specs is not None else None
        if spec is None or not spec.native or spec.limits is not None:
            return False
        own = own_executor(claimed.options) if spec.executor in ("thread", "process") else None
        expires = claimed.expires_at is not None and not claimed.attempt
        return (own or spec.executor) == "process" and not expires and self._nobody_listens(claimed)

    def _execution_of(self, attempt: Attempt, cls: Any) -> Execution:
        return Execution(attempt, cls.spec, self.services, None if cls.spec.native else self._encode_result)

    def _encode_result(self, value: Any) -> str | None:
        return None if value is None and not self.store_none else self.json.serialize(value)

    def _nobody_listens(self, claimed: Claimed) -> bool:
        keys = self._jobs_storage.keys
        return not (
            self._pre_execute
            or self._post_execute
            or (keys and (f"r:{claimed.id}" in keys or f"rt:{claimed.task}" in keys))
            or any(self._signal.receivers.values())
        )

    def execute(self, task: Any, timestamp: dt.datetime | None = None) -> Any:
        """As huey's, for whoever drives it himself: a task that was dequeued ends with its row, before this returns."""
        attempt = task.__dict__.pop("claim", None)
        if attempt is None or self._immediate:
            return super().execute(task, timestamp)
        claimed = attempt.claimed
        if claimed.timeout_ms:
            attempt.deadline_boot_ms = self.clock.boot_ms() + claimed.timeout_ms
        return self._run_through_huey(self._execution_of(attempt, type(task)), task, timestamp, wait=True)

    def _run_through_huey(
        self, run: Execution, task: Any, timestamp: dt.datetime | None = None, *, wait: bool = False
    ) -> Any:
        task.__dict__.pop("claim", None)
        run.own = own = task.own
        run.handler_id = task.on_error.id if task.on_error is not None else None
        token = _execution.set(run)
        # Whoever listens is told what became ready with the end: that must be in the file by then.
        followed = (
            self._heard(S.SIGNAL_ENQUEUED) and run.attempt.claimed.seq in self.services.jobs.dependencies.waited_for
        )
        try:
            return super().execute(task, timestamp)
        except Exception as exc:  # a hook or a listener, not the body: say so, and end the attempt by what is known
            log.exception("executing job %s failed outside of its body", run.attempt.claimed.id)
            if run.state is None:
                run.error_type, run.error, run.trace = type(exc).__name__, str(exc), outcome.format_traceback(exc)
            return None
        finally:
            _execution.reset(token)
            changed = None if run.own is own else run.own
            if changed is not None or run.again_now or run.handlers:
                run.after = self._verbs.after_end(
                    run.attempt.claimed.seq, own=changed, now=run.again_now, handlers=run.handlers
                )
            run.conclude(wait=wait or followed)
            if followed:
                self._tell_released(run.attempt.claimed)

    def _tell_released(self, parent: Claimed) -> None:
        for row in self._jobs_storage.released_by(parent.seq):
            self._emit(S.SIGNAL_ENQUEUED, self.deserialize_task(row))

    def refuse(self, attempt: Attempt, exc: BaseException) -> None:
        """End an attempt that could not be run at all as a dead letter, unless it has ended already."""
        refuse(self.services, attempt, exc)

    # ------------------------------------------------------------------------------------------------- what came of it

    @staticmethod
    def _run_of(task: Any) -> Execution | None:
        """The execution that ``task`` is the task of; None where huey runs it by itself (immediate, or inside of another)."""
        run = _execution.get()
        return run if run is not None and run.attempt.claimed.id == task.id else None

    def _timeout_context(self, task: Task) -> AbstractContextManager[Any]:
        run = self._run_of(task)
        if run is None or (run.body_over and run.raised is None):
            return super()._timeout_context(task)
        return Body(run, task)

    def enqueue(self, task: Any) -> Any:
        run = _execution.get()
        if (
            run is not None
            and run.body_over
            and run.handler_id is not None
            and getattr(task, "id", "") == run.handler_id
        ):
            self._take_handler(run, task)
            return None
        return super().enqueue(task)

    def _take_handler(self, run: Execution, handler: Any) -> None:
        """The task to run on an error goes in with the end that it is for. Each error has its own: huey gives all the same id."""
        if run.own.get("handled"):
            handler.id = handler.create_id()
            handler.revoke_id = f"r:{handler.id}"
        run.own = {**run.own, "handled": True}
        self._emit(S.SIGNAL_ENQUEUED, handler)
        run.handlers += self.rows_of(handler)

    def add_schedule(self, task: Any) -> None:
        run = self._run_of(task)
        if run is None:
            super().add_schedule(task)
            return
        run.state, run.attempt.charged = State.SCHEDULED, False  # a worker has taken it before its time
        run.retry_at = self.times.to_ms(task.eta)
        self._emit(S.SIGNAL_SCHEDULED, task)

    def _requeue_task(self, task: Any, timestamp: dt.datetime, retry_eta: dt.datetime | None = None) -> None:
        run = self._run_of(task)
        if run is None:
            super()._requeue_task(task, timestamp, retry_eta)
            return
        task.retries -= 1
        run.retries_left, run.state = task.retries, State.RETRYING
        now_ms, run.offset_ms = run.services.clock.reading()
        if run.spec.native:
            delay_ms = run.delay_ms if run.delay_ms is not None else outcome.retry_delay_ms(run.attempt, run.spec.retry)
            run.retry_at = now_ms + delay_ms if retry_eta is None else self.times.to_ms(retry_eta)
            self._emit(S.SIGNAL_SCHEDULED, task)
            return
        if retry_eta is not None:
            run.retry_at = self.times.to_ms(retry_eta)
        else:
            run.retry_at = now_ms + round(task.retry_delay * 1000)
        if retry_eta is None and not task.retry_delay:
            run.again_now = run.services.jobs.timers.paused
            run.own = {name: value for name, value in run.own.items() if name != "eta"}
            self._emit(S.SIGNAL_ENQUEUED, task)
            return
        if retry_eta is None and task.retry_backoff:
            task.retry_delay *= task.retry_backoff
            run.own = {**run.own, "retry_delay": task.retry_delay}
        task.eta = self.times.from_ms(run.retry_at)
        run.own = {**run.own, "eta": run.retry_at}
        self._emit(S.SIGNAL_SCHEDULED, task)

    def build_error_result(self, task: Task, exception: Exception) -> dict[str, Any]:
        run = self._run_of(task)
        if run is None:
            return dict(super().build_error_result(task, exception))
        run.note_error(exception)
        words = run.error
        if not run.spec.native:
            words = (isinstance(exception, TaskException) and exception.metadata.get("error")) or repr_of(exception)
        return {"error": words, "retries": task.retries, "traceback": run.trace, "task_id": task.id}

    def put_result(self, key: str, data: Any) -> Any:
        run = _execution.get()
        if run is None or key != run.attempt.claimed.id:
            return super().put_result(key, data)
        if isinstance(data, Error) and not run.spec.native:  # a value has its own column already
            run.own = {**run.own, "error": self._error_text(run, data.metadata)}
        return None

    def _error_text(self, run: Execution, metadata: dict[str, Any]) -> str:
        """What the attempt's history does not have of huey's metadata."""
        kept = {name: value for name, value in metadata.items() if name != "task_id"}
        if kept.get("traceback") == run.trace:
            del kept["traceback"]
        try:
            return self.json.serialize(kept)
        except (TypeError, ValueError):  # somebody's own addition, and no JSON
            return self.json.serialize({name: repr(value) for name, value in kept.items()})

    def _run_post_execute(self, task: Task, task_value: Any, exception: Exception | None) -> None:
        run = self._run_of(task)
        if run is not None and exception is not None:
            run.note_error(exception)  # also one that huey does not show
        elif run is not None:
            run.state = State.COMPLETED
            if self._heard(S.SIGNAL_COMPLETE):  # a listener may read the result: it must be in the file
                run.conclude(wait=True)
        if self._post_execute:
            super()._run_post_execute(task, task_value, exception)

    def _heard(self, signal: str) -> bool:
        return bool(self._signal.receivers["any"] or self._signal.receivers.get(signal))

    def _emit(self, signal: str, task: Task, *args: Any, **kwargs: Any) -> None:
        run = self._run_of(task)
        if run is not None and not run.attempt.finished:
            if signal in (S.SIGNAL_REVOKED, S.SIGNAL_EXPIRED):
                run.state = State.CANCELLED if signal == S.SIGNAL_REVOKED else State.EXPIRED
                run.error = "revoked" if signal == S.SIGNAL_REVOKED else "not begun within its ttl"
                run.attempt.charged = False
            elif signal == S.SIGNAL_CANCELED:
                run.state = State.CANCELLED
                run.error = run.error or "cancelled"
                run.attempt.charged = run.began
            elif signal == S.SIGNAL_INTERRUPTED and run.body_over:
                run.returned = True
        if self._heard(signal):
            super()._emit(signal, task, *args, **kwargs)

    def create_consumer(self, **options: Any) -> Any:
        raise ConfigurationError("MiniFlow runs the consumer: start it with `miniflow serve`")


huey = JobsHuey()
"""The one that task files use. ``miniflow serve`` attaches it to the database; before that, only ``immediate`` mode runs."""
