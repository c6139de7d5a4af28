"""The engine: everything that makes jobs run, without HTTP. Put together here, started in order and stopped in reverse.

Order matters at both ends. The file is recovered before anybody can write to it; tasks are known before a job is claimed;
at the stop claiming ends first, running jobs get their grace, what is left goes back to the queue without an attempt counted,
and the writer is the last to go, when nobody has anything to say any more.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from miniflow import capture, context, db, guard, registry
from miniflow import statements as sql
from miniflow.attempts import Attempt, Claimed, Running
from miniflow.clock import Clock, SettledClock, SystemClock, boot_id, rfc3339
from miniflow.clocktrust import ClockTrust
from miniflow.command_tasks import add_commands
from miniflow.contract import Declared
from miniflow.control import PoolSize
from miniflow.definitions import Declared as FlowDeclared
from miniflow.definitions import Definitions
from miniflow.errors import StoreFull, StoreLocked
from miniflow.executors.children import Children, Processes, hello
from miniflow.executors.command import CommandExecutor
from miniflow.executors.coroutine import AsyncLane
from miniflow.executors.lane import ProcessLane
from miniflow.executors.process import ProcessExecutor
from miniflow.firing import Firing
from miniflow.function_intake import FunctionIntake, function_submission
from miniflow.holdups import Holdups
from miniflow.huey_adapter import JobsHuey
from miniflow.huey_adapter import huey as shared_huey
from miniflow.huey_consumer import JobConsumer
from miniflow.huey_services import Services
from miniflow.intake import Intake, Submission, submission_from_options
from miniflow.jobs import Jobs
from miniflow.loader import Loaded, load_tasks
from miniflow.minutes import Minutes, WorkerUse
from miniflow.notices import Notices
from miniflow.pool import Pool
from miniflow.readahead import ReadAhead
from miniflow.recovery import Recovered, recover
from miniflow.registry import TaskSpec
from miniflow.replay import Replay
from miniflow.roster import Roster, Slots
from miniflow.rules import Rules
from miniflow.run_record import RunRecord
from miniflow.schedules import Schedules, run_of
from miniflow.settings import Settings
from miniflow.supervisor import Supervisor
from miniflow.tracing import Traces
from miniflow.workflow_files import load_definitions
from miniflow.workflow_functions import bind_start, input_text
from miniflow.workflow_intake import WorkflowIntake
from miniflow.writer import Transaction, Writer

log = logging.getLogger("miniflow")

STOP_TICK_S = 0.02


class Engine:
    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        huey: JobsHuey | None = None,
        specs: registry.Registry | None = None,
        declared: Sequence[Declared] = (),
        commands: Sequence[TaskSpec] = (),
    ) -> None:
        """Opens the database; StoreError if that cannot be. ``specs`` replaces the folder of task files (tests); ``declared`` are
        the schedules of miniflow.toml, ``commands`` the programs in it that are tasks."""
        self.settings = settings
        self.clock = SettledClock(clock or SystemClock())
        self.huey = huey or shared_huey
        guard.protect(settings.db)  # before the task files, which are code that could open it
        capture.install()  # and that may keep hold of sys.stdout
        try:
            self._commands, self._flows = list(commands), list[FlowDeclared]()
            self.loaded: Loaded | None = None if specs is not None else self._load()
            self.database = db.open_writer(
                settings.db, synchronous="FULL" if settings.durability == "full" else "NORMAL"
            )
        except BaseException:  # whatever it was, nothing is open
            capture.remove()
            guard.release(settings.db)
            raise
        self.registry = specs if specs is not None else self.loaded.registry if self.loaded else registry.Registry()
        self.running, self.notices, self.log_notices = Running(), Notices(), Notices()
        self.prefix = f"worker-{secrets.token_hex(4)}"
        self.writer = Writer(self.database.connection, self.clock)
        self.readahead = ReadAhead(lane_of=self._lane_of, rank_of=_ranks(settings.queue_order))
        self.jobs = self._jobs()
        self.intake, self.workflow_intake, self.function_intake = self._intakes()
        self.definitions = Definitions(self.workflow_intake)
        self._declared = list(declared)
        self.schedules = self._scheduling()
        services = self.services = self._services()
        self.huey.attach(services, self.intake, self.database.path, self.registry)
        self.consumer = JobConsumer(self.huey, readahead=self.readahead, begin=self.begin, prefix=self.prefix)
        run, refuse = self.huey.run_attempt, self.huey.refuse
        self.async_lane = AsyncLane(self.readahead, self._begin_async, run, refuse, settings.async_slots)
        self.lane = self._lane(services)
        size = PoolSize(settings.workers, settings.async_slots, settings.processes)
        self.pool = Pool(self.jobs, self.readahead, self.consumer, self.async_lane, self.lane, size)
        self._least_ahead()
        self.supervisor = self._supervisor(services)
        self.minutes = Minutes(self.writer, self.jobs.times, self.clock, self.worker_use)
        self.supervisor.also = self.minutes.look
        self.holdups = Holdups(lambda: [*self.consumer.threads(), *self.async_lane.threads()])
        self.recovered, self.started_at_ms = Recovered(0, 0, 0), self.clock.now_ms()

    def _jobs(self) -> Jobs:
        settings = self.settings
        return Jobs(
            self.writer,
            self.readahead,
            self.running,
            self.notices,
            self.clock,
            queues=settings.queue_order,
            max_queue=settings.max_queue,
            max_queues=settings.max_queues,
            max_payload_bytes=settings.max_payload_bytes,
            max_result_bytes=settings.max_result_bytes,
            cancel_grace_ms=round(settings.stop_grace * 1000),
            rules=Rules(self.registry, self.clock),
            ageing_ms=round(settings.priority_ageing * 1000),
        )

    def _intakes(self) -> tuple[Intake, WorkflowIntake, FunctionIntake]:
        """What makes rows of submissions; workflows make some by themselves."""
        settings = self.settings
        intake = Intake(
            self.registry, self.clock, max_payload_bytes=settings.max_payload_bytes, default_timeout_s=settings.timeout
        )
        functions = FunctionIntake(intake)
        flows = WorkflowIntake(intake, functions=functions)
        mine = self.jobs.workflows
        mine.compensation.intake = mine.expansion.intake = mine.subworkflows.intake = flows
        mine.subworkflows.functions = functions
        return intake, flows, functions

    def _services(self) -> Services:
        settings = self.settings
        services = Services(
            self.jobs,
            self.clock,
            self.log_notices,
            begin=self.begin,
            max_result_bytes=settings.max_result_bytes,
            max_log_bytes=settings.max_log_bytes,
            grace_ms=round(settings.stop_grace * 1000),
            transaction_limit_s=settings.transaction_limit,
        )
        services.replay = self._replay
        services.traces = Traces(self.database.path, lambda: self.jobs.workflows.any)
        return services

    def _scheduling(self) -> Schedules:
        settings = self.settings
        trust = ClockTrust(self.clock, anyway=settings.trust_clock)
        make_run = partial(run_of, self.intake, self.workflow_intake, self.function_intake)
        firing = Firing(self.jobs, self.writer, self.clock, trust, make_run)
        firing.revoked, firing.wanted = self.huey.revoked_for_good, self.huey.wants
        return Schedules(
            firing,
            make_run,
            timezone=settings.timezone,
            max_schedules=settings.max_schedules,
            max_batch=settings.max_batch,
        )

    # --------------------------------------------------------------------------------------------------------- start, stop

    def start(self) -> None:
        """Recover what a dead process left behind, then run jobs."""

        def first(tx: Transaction) -> None:
            self.jobs.timers.remember_clock(tx, boot_id())
            self.minutes.catch_up(tx)
            self.huey.load(tx)
            self.recovered, suspects = recover(tx)
            self.jobs.rules.load(tx)
            self.jobs.suspects = suspects.leased
            self.pool.load(tx, [seq for seq, queue in suspects.crashed if self._serves(queue)])
            self.jobs.dependencies.load(tx)
            self.definitions.load(tx)
            self.jobs.workflows.load(tx, suspects.ended)
            self.jobs.timers.look(tx)
            self._take_up(tx)
            self.schedules.firing.begin(tx)

        self.writer.run_now(first)
        self.describe_process(f"process {os.getpid()}, started {rfc3339(self.started_at_ms)}")
        registry.bind_submit(self.submit)
        bind_start(self.start_function)
        self.writer.start()
        self.pool.start()
        self.supervisor.start()

    def describe_process(self, words: str) -> None:
        """Leave in the file who has it, for the one who finds it taken."""

        def put(tx: Transaction) -> None:
            tx.run(sql.META_PUT, "process", words)

        if self.writer.started:
            self.writer.call("verb", put)
        else:
            self.writer.run_now(put)

    def stop_taking(self) -> None:
        """No further job is accepted or begun; what was claimed ahead goes back to the queue."""
        self.jobs.accepting = self.jobs.claiming = False
        self.async_lane.stop_taking()
        self.lane.stop_taking()
        self.consumer.stop_taking()
        self._if_disk_allows(self.jobs.give_back_all)

    def wait_for_running(self, grace_s: float, hurry: threading.Event | None = None) -> bool:
        """Give running jobs so long to end, or until ``hurry``; True if all have."""
        hurry = hurry or threading.Event()
        deadline = self.clock.boot_ms() + round(grace_s * 1000)
        while len(self.running) and self.clock.boot_ms() < deadline and not hurry.wait(STOP_TICK_S):
            pass
        return not len(self.running)

    def close(self) -> int:
        """Return what still runs to the queue, write what is left to write, give the file back. Returns how many came back."""
        self.services.transactions.close()
        late = [attempt for attempt in self.running.all() if attempt.finish()]
        back: int = self._if_disk_allows(self.jobs.return_running(late)) or 0
        self.running.dismiss(late, self.clock.boot_ms())
        self.supervisor.stop()
        self.lane.close()
        self.async_lane.close()
        registry.unbind_submit()
        bind_start(None)
        self.huey.detach()
        try:
            self.writer.call("verb", lambda _: None)  # then all that was posted is counted
            self.writer.call("verb", self.minutes.write_last)
        except (StoreFull, StoreLocked):  # the next start finds what is missing
            pass
        self.writer.close()
        self.services.traces.close()
        self.database.close()
        capture.remove()
        return back

    def _if_disk_allows(self, verb: Callable[[Transaction], object]) -> Any:
        try:
            return self.writer.call("verb", verb)
        except (StoreFull, StoreLocked) as exc:  # the next start voids all leases anyhow
            log.warning("%s; the next start makes up for it", exc)

    def stop(self, grace_s: float | None = None) -> int:
        """All of it, in order."""
        self.stop_taking()
        self.wait_for_running(self.settings.grace if grace_s is None else grace_s)
        return self.close()

    # --------------------------------------------------------------------------------------------------------------- tasks

    def _load(self) -> Loaded:
        """The task files as they are now, and the commands, each with the executor that it has here; and the workflows beside
        them."""
        loaded = load_tasks(Path(self.settings.tasks))
        flows, wrong = load_definitions(Path(self.settings.tasks))
        broken = {str(failure.path) for failure in wrong}
        self._flows = [*flows, *(one for one in self._flows if one.origin in broken)]
        loaded.failures.extend(wrong)
        add_commands(loaded.registry, self._commands)
        if self.settings.executor == "process":
            loaded.registry.run_unsaid_in_processes()
        return loaded

    def _supervisor(self, services: Services) -> Supervisor:
        return Supervisor(
            self.jobs,
            services.logs,
            self.running,
            self.consumer,
            self.readahead,
            self.registry,
            self.clock,
            grace_ms=services.grace_ms,
            least_ahead=self._least_ahead,
            jobs_elsewhere=lambda: self.lane.jobs_run,
        )

    def _lane(self, services: Services) -> ProcessLane:
        """What runs jobs in other processes, made known to ``services``."""
        settings = self.settings
        processes = Processes(self.clock, grace_ms=services.grace_ms, niceness=settings.process_niceness)
        children = Children(
            processes,
            lambda: hello(settings.tasks, debug=settings.log_level == "debug"),
            jobs_max=settings.process_max_jobs,
            memory_max=settings.process_max_bytes,
        )
        services.elsewhere["process"] = ProcessExecutor(
            processes, children, self.readahead, self._submit, plain=self.huey.is_plain
        ).run
        services.elsewhere["command"] = CommandExecutor(processes).run
        return ProcessLane(
            self.readahead,
            self.begin,
            self.huey.run_attempt,
            self.huey.refuse,
            children,
            prefix=self.prefix,
            slots=settings.processes,
            idle_s=settings.process_idle,
        )

    def _least_ahead(self) -> int:
        """Rows to have claimed whatever the rate: as many as there are slots that nobody counts at the claim."""
        executors = {spec.executor for spec in self.registry}
        self.readahead.has_process_tasks = self.readahead.process_jobs or not executors.isdisjoint(
            ("process", "command")
        )
        return max(
            self.async_lane.slots if "async" in executors else 0,
            self.lane.slots * 2 if self.readahead.has_process_tasks else 0,
        )

    def reload(self) -> Loaded:
        """Take up the task files as they are now. Jobs under way end with the code they began with; a file that fails to
        import leaves its tasks as they were."""
        fresh = self._load()
        broken = {str(failure.path) for failure in fresh.failures}
        for spec in self.registry:
            if spec.source in broken and fresh.registry.find(spec.name) is None:
                fresh.registry.add(spec)
        there = {declared.name for declared in fresh.registry.schedules}
        for declared in self.registry.schedules:
            if declared.origin in broken and declared.name not in there:
                fresh.registry.declare(declared)
        self.registry.replace_all(fresh.registry)
        self.huey.adopt(self.registry)
        self.lane.children.renew()
        if self.writer.started:
            self.writer.call("verb", self.jobs.rules.apply)
        self.loaded = fresh
        self._if_disk_allows(self._take_up)
        return fresh

    def _take_up(self, tx: Transaction) -> None:
        """Make the file follow what stands in code and in files."""
        self.definitions.take_up(tx, self._flows)
        self.schedules.take_up(tx, [*self._declared, *self.registry.schedules])

    def submit(self, spec: TaskSpec, payload: str, options: dict[str, object]) -> str:
        """The hook behind ``task.submit()``: insert and wait for the commit; the job's id."""
        return self._submit(submission_from_options(spec.name, payload, options))

    def _submit(self, submission: Submission) -> str:
        """What a job submits is in its trace, unless it says otherwise."""
        if submission.traceparent is None and context.place() is not context.OUTSIDE:
            submission.traceparent = context.current().traceparent
        accepted = self.writer.call("insert", [self.intake.job(submission)])
        return str(accepted[0].id)

    def start_function(self, spec: TaskSpec, input: object, options: Mapping[str, object]) -> str:
        """The hook behind ``function.start()``: insert and wait for the commit; the id of the run."""
        if context.place() is not context.OUTSIDE:
            options = {"traceparent": context.current().traceparent, **options}
        new = self.function_intake.run(function_submission(spec.name, input_text(input), options))
        return str(self.writer.call("workflow", new).id)

    # ------------------------------------------------------------------------------------------------------------- running

    def _replay(self, attempt: Attempt) -> Replay[RunRecord]:
        limit = self.settings.max_result_bytes
        return Replay(
            RunRecord(self.jobs.checkpoints, self.writer, self.function_intake, self.workflow_intake, attempt, limit)
        )

    def begin(self, claimed: Claimed, worker_id: str) -> Attempt:
        attempt = Attempt(claimed, worker_id, self.clock.now_ms())
        if claimed.timeout_ms:
            attempt.deadline_boot_ms = self.clock.boot_ms() + claimed.timeout_ms
        self.supervisor.heartbeats.arm(attempt)
        self.running.add(attempt)
        return attempt

    @property
    def roster(self) -> Roster:
        """Who works at what."""

        def slots() -> Slots:
            size = self.pool.size
            return Slots(size.workers, size.async_slots if size.workers else 0, self.lane.slots if size.workers else 0)

        return Roster(
            self.clock,
            slots,
            threads=self.consumer.busy,
            processes=self.lane.busy,
            running=self.running.all,
            holdups=self.holdups,
            async_holdups=self.async_lane.culprits,
        )

    def worker_use(self) -> WorkerUse:
        return WorkerUse(
            self.consumer.busy(),
            len(self.async_lane),
            self.async_lane.slots,
            self.supervisor.worker_busy_s,
            self.consumer.abandoned_total,
            self.consumer.deaf_threads(),
            dict(self.holdups.held_s),
            self.lane.use(),
            self.async_lane.use(),
        )

    def look(self, late_s: float) -> None:
        """At who holds up the loops; that of HTTP was so late just now."""
        self.holdups.look(late_s)
        self.async_lane.look()

    def _begin_async(self, claimed: Claimed) -> Attempt:
        return self.begin(claimed, f"{self.prefix}-async")

    def _serves(self, queue: str) -> bool:
        return "*" in self.settings.queue_order or queue in self.settings.queue_order

    def _lane_of(self, task: str) -> str:
        spec = self.registry.find(task)
        return "thread" if spec is None else "process" if spec.executor == "command" else spec.executor


def _ranks(order: list[str]) -> Callable[[str], int]:
    """The place of a queue in the order of service; those not named share that of ``*``, or come last and are not served."""
    places = {name: place for place, name in enumerate(order)}
    others = places.get("*", len(order))
    return lambda queue: places.get(queue, others)
