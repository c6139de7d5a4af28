"""How tasks that are called through huey come into the table.

A call is a row. A pipeline is a row for each of its tasks and an edge of kind ``then`` between neighbours; a chord is its
members, its callback, and an edge of kind ``all`` from each to it (see ``dependencies``). All of a group, chord or pipeline goes
in with one transaction, so it is there as a whole or not at all; what follows from a job is decided in the transaction that ends
it. huey keeps successors inside the message of the task before them, and counts a chord's members when they are done; nothing of
that is left: a task that runs knows no ``on_complete``.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from typing import Any

from huey import signals as S
from huey.api import PeriodicTask, ResultGroup, Task, chord, group
from huey.serializer import Serializer as PickleSerializer
from huey.utils import ChordConfig

from miniflow import context, registry
from miniflow import statements as core
from miniflow.clock import Clock, SystemClock
from miniflow.errors import MiniFlowError
from miniflow.huey_messages import Times, encode_call, policy, settings_of
from miniflow.huey_periodic import PeriodicHuey
from miniflow.huey_serializer import JsonSerializer, OtherSerializer, SealingSerializer
from miniflow.huey_services import Services
from miniflow.huey_storage import JobsStorage, is_beside
from miniflow.huey_tasks import JobsRegistry
from miniflow.huey_verbs import HueyVerbs, Parent
from miniflow.intake import Intake, submission_from_options
from miniflow.model import NewJob, Waits
from miniflow.states import State
from miniflow.writer import Transaction

NOT_RUNNING = "no MiniFlow runs in this process; start one with `miniflow serve`, or set huey.immediate = True"
KEY = "huey_key"
"""In ``meta``: what sealed values of this file are signed with."""


class Batch:
    """Rows that go in together, and what chords need of each other until all of their members are known."""

    def __init__(self) -> None:
        self.jobs: list[NewJob] = []
        self.parents: list[tuple[Parent, list[NewJob]]] = []
        """For tasks that are in the table already: another parent; and their rows, should they have ended."""
        self.callbacks: dict[
            str, tuple[ChordConfig, dict[int, str]]
        ] = {}  # by the callback's id, with its members by place


class Enqueuing(PeriodicHuey):
    """A huey that makes rows of what it is given."""

    def __init__(
        self,
        name: str = "miniflow",
        *,
        serializer: OtherSerializer | str | None = None,
        delayed_by_worker: bool = False,
        **options: Any,
    ) -> None:
        """``serializer``: None is JSON; "auto" is JSON, and pickle for what is none; or what is none goes through the serializer
        that is given. ``delayed_by_worker``: a delayed task goes through the queue to a worker, who puts it off, as in huey; else
        it is `scheduled` at once."""
        self.times = Times(options.get("utc", True))
        other = PickleSerializer() if serializer == "auto" else serializer
        assert not isinstance(other, str), 'serializer is None, "auto", or a serializer of huey\'s kind'
        self.json = JsonSerializer() if other is None else SealingSerializer(other)
        self._delayed_by_worker = delayed_by_worker
        self._services: Services | None = None
        self._intake: Intake | None = None
        self._specs: registry.Registry | None = None
        self._path = ""
        self._gathering = threading.local()
        self.clock: Clock = SystemClock()
        options.setdefault("storage_class", JobsStorage)
        super().__init__(name, serializer=self.json, **options)
        self._registry = JobsRegistry()

    # ---------------------------------------------------------------------------------------------------------- its storage

    def create_storage(self) -> Any:
        # huey makes a new storage each time `immediate` is switched off: there is one database, so there is one of these.
        if "_jobs_storage" not in self.__dict__:
            self._jobs_storage = JobsStorage(self.name, times=self.times, when_needed=self.open)
            self._jobs_storage.results.is_tagged = self._is_tagged
            self._jobs_storage.results.is_shown = self._is_shown
            self._jobs_storage.results.decode = self.json.from_json
        if self._immediate and self.immediate_use_memory:
            return self.get_immediate_storage()
        return self._jobs_storage

    def _is_tagged(self, task: str) -> bool:
        spec = self._specs.find(task) if self._specs is not None else None
        return spec is not None and not spec.native

    def _is_shown(self, task: str) -> bool:
        return self.results and not issubclass(self._registry._registry.get(task, Task), PeriodicTask)

    def open(self) -> None:
        """Called where the file is needed and no system runs."""
        raise MiniFlowError(NOT_RUNNING)

    @property
    def attached(self) -> bool:
        return self._services is not None

    @property
    def services(self) -> Services:
        if self._services is None:
            self.open()
            assert self._services is not None
        return self._services

    @property
    def _verbs(self) -> HueyVerbs:
        return HueyVerbs(self.services.jobs)

    def load_key(self, tx: Transaction) -> None:
        """The key of this file for sealed values; made when it is first wanted."""
        if isinstance(self.json, SealingSerializer):
            rows = tx.run(core.META_GET, KEY)
            if rows:
                self.json.key = bytes.fromhex(rows[0][0])
            else:
                tx.run(core.META_PUT, KEY, self.json.key.hex())

    def forget_former(self, name: str) -> None:
        """A task file that is loaded again makes its tasks again."""
        former = self._registry._registry.get(name)
        if former is not None and self.specs_here().find(name) is None:
            self._registry.unregister(former)

    def _get_timestamp(self) -> dt.datetime:
        return self.times.from_ms(self.clock.now_ms()) if self.attached else super()._get_timestamp()

    # ---------------------------------------------------------------------------------------------------------- enqueuing

    def enqueue(self, task: Any) -> Any:
        if self._immediate:
            return super().enqueue(task)
        if isinstance(task, group):
            return self._together(lambda: ResultGroup([self.enqueue(member) for member in task.tasks]))
        if isinstance(task, chord):
            return self._together(lambda: self._enqueue_chord(task))
        claim = task.__dict__.pop("claim", None)
        if claim is not None:  # from the schedule: it is ready
            self._jobs_storage.give_back(claim)
            self._emit(S.SIGNAL_ENQUEUED, task)
            return None
        self._together(lambda: self._enqueue_one(task))
        if not self.results:
            return None
        results = self._pipeline_results(task)
        return ResultGroup(results) if len(results) > 1 else results[0]

    def _enqueue_one(self, task: Task) -> None:
        if task.expires:
            task.resolve_expires(self.utc)
        batch: Batch = self._gathering.batch
        self._emit(S.SIGNAL_ENQUEUED, task)
        self._add(batch, task)
        if batch.jobs[0].state is State.SCHEDULED:
            self._emit(S.SIGNAL_SCHEDULED, task)

    def _together(self, enqueue: Callable[[], Any]) -> Any:
        """What ``enqueue`` enqueues goes in with one transaction, the outermost one's."""
        if getattr(self._gathering, "batch", None) is not None:
            return enqueue()
        batch = self._gathering.batch = Batch()
        try:
            result = enqueue()
        finally:
            self._gathering.batch = None
        self._finish(batch)
        self._jobs_storage.insert(batch.jobs, batch.parents)
        return result

    def rows_of(self, task: Task) -> list[NewJob]:
        """All that comes with a task, for a transaction of somebody else's."""
        if task.expires:
            task.resolve_expires(self.utc)
        batch = Batch()
        self._add(batch, task)
        self._finish(batch)
        return batch.jobs

    def _add(self, batch: Batch, task: Task, waits: Waits | None = None) -> None:
        """``task`` and what follows it in its pipeline. Chord callbacks are left for ``_finish``."""
        tail = task
        while True:
            batch.jobs.append(self._new_job(tail, waits))
            tail.enqueued = True
            following = tail.on_complete
            if following is None:
                break
            waits = Waits((tail.id,), "then")
            if getattr(following, "enqueued", False):  # it waits already, for a task whose place this one takes
                rest = Batch()
                following.enqueued = False
                self._add(rest, following, waits)
                batch.parents.append(((following.id, 0, tail.id, "then"), rest.jobs))
                break
            tail = following
        if tail.chord_config is not None:
            config = tail.chord_config
            if getattr(config.callback, "enqueued", False):
                batch.parents.append(((config.callback.id, config.idx, tail.id, "all"), []))
            else:
                batch.callbacks.setdefault(config.callback.id, (config, {}))[1][config.idx] = tail.id

    def _finish(self, batch: Batch) -> None:
        """The callbacks of chords, from the inside out: one may be a member of another."""
        while batch.callbacks:
            whole = (job_id for job_id, (config, members) in batch.callbacks.items() if len(members) == config.size)
            job_id = next(whole, next(iter(batch.callbacks)))
            config, members = batch.callbacks.pop(job_id)
            callback = config.callback
            if callback.expires:
                callback.resolve_expires(self.utc)
            self._add(batch, callback, Waits(tuple(members[place] for place in sorted(members)), "all"))

    def _new_job(self, task: Any, waits: Waits | None) -> NewJob:
        if self._intake is None:
            self.open()
        assert self._intake is not None
        self._registry.string_to_task(self._registry.task_to_string(type(task)))  # raises if it is unregistered
        spec, now = type(task).spec, self._get_timestamp()
        kwargs = task.kwargs
        if kwargs and kwargs.get("task") is task:
            kwargs.pop("task")
        payload, own = encode_call(
            spec.binding,
            task.args,
            kwargs,
            self.json,
            partial=waits is not None,
            checked=type(task).checked and type(self.json) is JsonSerializer,
        )
        if task.eta is not None:
            task.eta = self.times.round(task.eta)
        own |= settings_of(task, self.times)
        if task.on_error is not None:
            own["on_error"] = self.json.serialize(self._registry.create_message(task.on_error))
        if waits is not None:
            own["fed"] = True
        later = task.eta if task.eta is not None and task.eta > now and not self._delayed_by_worker else None
        options: dict[str, Any] = {
            "priority": int(task.priority) if task.priority is not None else None,
            "max_retries": int(task.retries),
            "timeout": task.timeout,
            "run_at": None if later is None else dt.datetime.fromtimestamp(self.times.to_ms(later) / 1000, dt.UTC),
        }
        if task.retry_delay != task.default_retry_delay or task.retry_backoff != task.default_retry_backoff:
            options["retry"] = policy(task.retry_delay, task.retry_backoff)
        if task.expires:
            options["ttl"] = self._ttl_s(task, now, later)
        if context.place() is not context.OUTSIDE:  # a task of a task is in its trace
            options["traceparent"] = context.current().traceparent
        submission = submission_from_options(spec.name, payload, options)
        return self._intake.job(
            submission, job_id=task.id, checked=False, own={"huey": own} if own else None, waits=waits
        )

    def _ttl_s(self, task: Task, now: dt.datetime, later: dt.datetime | None) -> float:
        """How long it may wait, from when it is ready: huey counts a relative ``expires`` again from its eta."""
        ready = max(task.eta or now, now)
        if isinstance(task.expires, dt.datetime):
            over = task.expires_resolved
        else:
            over = task.expires_resolved + (ready - now)
        return float(max((over - (later or now)).total_seconds(), 0.001))

    def add_schedule(self, task: Any) -> None:
        if self._immediate:
            super().add_schedule(task)
            return
        batch = Batch()
        own_way, self._delayed_by_worker = self._delayed_by_worker, False
        try:
            self._add(batch, task)
        finally:
            self._delayed_by_worker = own_way
        self._finish(batch)
        self._jobs_storage.insert(batch.jobs, batch.parents)
        self._emit(S.SIGNAL_SCHEDULED, task)

    # ------------------------------------------------------------------------------------------- locks, results, revocations

    def delete(self, key: str) -> bool:
        # huey deletes the revocation of each job that it has run, and nearly none has one.
        if not self._immediate and is_beside(key) and key not in self._jobs_storage.keys:
            return False
        return bool(super().delete(key))

    def is_revoked(self, task: Any, timestamp: dt.datetime | None = None, peek: bool = True) -> bool:
        if not self._immediate and not self._jobs_storage.keys.intersection(self._revoke_keys(task)):
            return False
        return bool(super().is_revoked(task, timestamp, peek))
