"""Carries a benchmark out: starts server and load generator, sends the load, waits for the jobs, looks into the file."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from miniflow import __version__, db, scaffold
from miniflow import statements as sql
from miniflow.bench import calibrate, profiles
from miniflow.bench.figures import Chance, Durations, growth_per_hour
from miniflow.bench.plan import Outcome
from miniflow.bench.processes import LoadProcess, ServerGone, ServerProcess
from miniflow.bench.profiles import Phase, Setup, Unusable
from miniflow.bench.result import PhaseResult, Result, Server
from miniflow.bench.show import Show
from miniflow.bench.watch import Look, Watch, size_mb
from miniflow.clock import SystemClock

QUEUE = "bench"
"""The queue of the jobs on a server that is not our own."""
LOOK_EVERY_S = 0.25
STILL_S_MAX = 60.0
"""When no job has ended for so long, the rest is not waited for."""
SAMPLES = 500
LAST_OUTCOME_S = 3.0
GENERATOR_BUSY = 0.9
IN_MEMORY = frozenset({"tmpfs", "ramfs"})


class Bench:
    """One benchmark. ``run`` gives what was found, also where it was interrupted."""

    def __init__(self, setup: Setup, *, url: str, token: str, calibrated: bool, show: Show) -> None:
        self._setup, self._url, self._token, self._show = setup, url, token, show
        self._calibrated = calibrated and not url
        self._clock = SystemClock()
        self.folder = Path(tempfile.mkdtemp(prefix="miniflow-bench-"))
        self._db = self.folder / "bench.db"
        self._result = Result(setup=setup, url=url, version=__version__, machine=machine())
        self._load: LoadProcess
        self._watch: Watch
        self._server: ServerProcess | None = None

    def run(self) -> Result:
        """ServerGone where there is no server, or it has ended; Unusable where it cannot be used."""
        result = self._result
        with contextlib.ExitStack() as stack:
            self._show.begin("starting")
            self._load = stack.enter_context(LoadProcess(self.folder))
            self._start_server(stack)
            self._watch = stack.enter_context(
                contextlib.closing(
                    Watch(
                        self._url,
                        self._token,
                        queue="default" if self._server else QUEUE,
                        server=self._server,
                        db=self._db if self._server else None,
                    )
                )
            )
            self._check_tasks()
            self._watch.begin()
            self._under_load()
            if self._server is not None:
                self._show.begin("reading file")
                self._server.stop()
                self._look_into_the_file()
            elif not result.gone:
                self._ask_about_the_jobs()
            self._judge()
            if self._calibrated and not (result.interrupted or result.gone):
                try:
                    self._calibrate()
                except KeyboardInterrupt:
                    result.interrupted = True
        return result

    def clean_up(self, *, keep: bool) -> None:
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------------------ starting

    def _start_server(self, stack: contextlib.ExitStack) -> None:
        if self._url:
            return
        tasks = self.folder / scaffold.TASKS
        tasks.mkdir()
        for name, text in scaffold.samples():
            (tasks / name).write_text(text, encoding="utf-8")
        flags = {"port": 0, "db": self._db, "tasks": tasks, "log-dir": self.folder / "logs", "grace": 2}
        flags["workers"] = self._setup.workers
        server = ServerProcess(self.folder, *(f"--{name}={value}" for name, value in flags.items()))
        self._server = stack.enter_context(server)
        self._url = server.url

    def _check_tasks(self) -> None:
        known = {task["name"] for task in self._watch.get("/api/v1/tasks")["items"]}
        missing = [name for name in self._setup.mix.tasks if name not in known]
        if missing:
            raise Unusable(
                f"the server at {self._url} has no task {', '.join(missing)}; `miniflow init` writes the sample tasks"
            )

    # ---------------------------------------------------------------------------------------------------------------- load

    def _under_load(self) -> None:
        try:
            self._all_phases()
        except KeyboardInterrupt:
            self._result.interrupted = True
        except ServerGone as exc:
            if not self._result.phases:
                raise
            self._result.gone = str(exc)
        self._look_back()

    def _all_phases(self) -> None:
        for phase in self._setup.phases():
            self._phase(phase)
        if self._setup.profile == "stress":
            self._go_on_until_too_much()

    def _go_on_until_too_much(self) -> None:
        result = self._result
        for number in range(2, profiles.STRESS_STEPS_MAX + 2):
            last = result.phases[-1]
            result.too_much = too_much(last)
            if result.too_much:
                return
            result.sustained = last.phase.rate
            if number <= profiles.STRESS_STEPS_MAX:
                self._phase(self._setup.step(number))
        result.notes.append("the limit was not reached: each step was sustained; begin higher with --rate")

    def _phase(self, phase: Phase) -> None:
        left_before = self._watch.looks[-1].left
        plan = self._setup.plan(
            phase, url=self._url, token=self._token, queue=None if self._server else QUEUE, samples=self._samples
        )
        began_s, began_at_ms = time.perf_counter(), self._clock.now_ms()
        self._show.begin(phase.name, phase.requests)
        self._load.begin(plan)
        try:
            outcome = self._until_sent(phase)
        except (KeyboardInterrupt, ServerGone):
            outcome = self._stopped_outcome()
            self._add(phase, outcome, began_s, began_at_ms, left_before)
            raise
        self._watch.look()
        done = self._add(phase, outcome, began_s, began_at_ms, left_before)
        if outcome.ended_early and not outcome.accepted:
            raise ServerGone(outcome.ended_early)
        if phase.drain:
            self._drain(done)

    @property
    def _samples(self) -> int:
        """On our own server the file tells the times of all jobs."""
        return 0 if self._server is not None else SAMPLES

    def _until_sent(self, phase: Phase) -> Outcome:
        next_look = 0.0
        while True:
            said = self._load.look(LOOK_EVERY_S)
            if isinstance(said, Outcome):
                return said
            if time.perf_counter() >= next_look:
                next_look = time.perf_counter() + LOOK_EVERY_S
                look = self._watch.look()
            if said is not None and said.accepted + said.failed:
                failed = f", {said.failed:,} failed" if said.failed else ""
                self._show.at(
                    said.accepted, f"{said.accepted:,} of {phase.requests:,} accepted{failed}, {look.left:,} not ended"
                )

    def _stopped_outcome(self) -> Outcome:
        self._load.stop_sending()
        until = time.perf_counter() + LAST_OUTCOME_S
        while time.perf_counter() < until:
            said = self._load.look(0.1)
            if isinstance(said, Outcome):
                return said
        return Outcome(ended_early="stopped before its outcome was known")

    def _add(self, phase: Phase, outcome: Outcome, began_s: float, began_at_ms: int, left_before: int) -> PhaseResult:
        ended_s = time.perf_counter()
        done = PhaseResult(
            phase=phase,
            outcome=outcome,
            began_s=began_s,
            ended_s=ended_s,
            began_at_ms=began_at_ms,
            left=self._watch.looks[-1].left,
            left_before=left_before,
        )
        self._result.phases.append(done)
        return done

    def _drain(self, done: PhaseResult) -> None:
        """Wait until no job is left; a problem where they stop ending."""
        total, look = done.left, self._watch.look()
        if total:
            self._show.begin("draining", total)
        ended, moved_at = look.ended, time.perf_counter()
        while look.left:
            time.sleep(LOOK_EVERY_S / 5 if look.left < 100 else LOOK_EVERY_S)
            look = self._watch.look()
            self._show.at(total - look.left, f"{look.left:,} of {look.found:,} jobs have not ended")
            if look.ended != ended:
                ended, moved_at = look.ended, time.perf_counter()
            elif time.perf_counter() - moved_at > STILL_S_MAX:
                states = ", ".join(f"{n:,} {state}" for state, n in self._watch.by_state().items())
                self._result.problems.append(f"no job ended for {STILL_S_MAX:g} s; there are {states}")
                return
        done.all_ended_s = time.perf_counter() - done.began_s

    # ----------------------------------------------------------------------------------------------------------- afterwards

    def _look_back(self) -> None:
        result, looks = self._result, self._watch.looks
        if self._setup.profile == "spike" and len(result.phases) == 3:
            result.recovery_s = recovery_s(looks, result.phases)
        if self._server is None:
            return
        first, last = looks[0], looks[-1]
        cpu_s, seconds = (last.cpu_s or 0.0) - (first.cpu_s or 0.0), last.at_s - first.at_s
        seen = result.server = Server(
            memory_begin=first.memory or 0.0,
            memory_max=max(look.memory or 0.0 for look in looks),
            memory_growth=growth_per_hour([(look.at_s, look.memory or 0.0) for look in looks]),
            wal_max=max(look.wal or 0.0 for look in looks),
            cpu_s=cpu_s,
            cpu_share=cpu_s / seconds * 100 if seconds else 0.0,
            ready_s=self._server.ready_s,
        )
        seen.filesystem = db.filesystem_type(os.path.realpath(self.folder))
        if seen.filesystem in IN_MEMORY:
            result.notes.append(
                f"{self.folder} lies in memory ({seen.filesystem}), where a commit costs next to nothing;"
                " set TMPDIR to a folder on a disk"
            )

    def _look_into_the_file(self) -> None:
        """Count what is really there, once the server has let go of it."""
        result = self._result
        reader = db.open_reader(self._db)
        try:
            rows: list[Any] = reader.execute(sql.JOBS_BY_TASK_AND_STATE).fetchall()
            bounds = [one.began_at_ms for one in result.phases] + [2**62]
            for one, begin, end in zip(result.phases, bounds, bounds[1:], strict=False):
                waits: list[Any] = reader.execute(sql.WAITS_OF_FIRST_ATTEMPTS, (begin, end)).fetchall()
                one.wait = Durations.of_counts((ms * 1000, n) for ms, n in waits)
                if self._setup.mix.workflow:
                    times: list[Any] = reader.execute(sql.TIMES_OF_WORKFLOWS, (begin, end)).fetchall()
                    one.whole = Durations.of_counts((ms * 1000, n) for ms, n in times)
        finally:
            reader.close()
        for _, state, n, _, _ in rows:
            result.states[state] = result.states.get(state, 0) + n
        result.found = sum(result.states.values())
        retried = sum(attempts - n for _, state, n, attempts, _ in rows if state == "completed")
        result.failed_attempts = retried + sum(attempts for _, state, _, attempts, _ in rows if state == "dead_letter")
        if result.server is not None:
            result.server.file = size_mb(self._db)
        last = result.phases[-1] if result.phases else None
        if (
            last is not None and last.all_ended_s is not None
        ):  # to the millisecond, where looking is to a fraction of a second
            last.all_ended_s = max((at or 0) for *_, at in rows) / 1000 - last.began_at_ms / 1000
        self._judge_flaky(
            sum(n for task, state, n, _, _ in rows if task == profiles.FLAKY_TASK and state == "dead_letter")
        )

    def _ask_about_the_jobs(self) -> None:
        result = self._result
        result.states = self._watch.by_state()
        result.found = sum(result.states.values())
        for one in result.phases:
            if self._setup.mix.workflow:
                one.wait, one.whole = self._watch.times_of_workflows(one.outcome.ids)
            else:
                one.wait = self._watch.waits_of(one.outcome.ids)
        self._judge_flaky(result.states.get("dead_letter", 0))

    def _judge_flaky(self, dead: int) -> None:
        """Only once all have ended: before that, some dead letters are still to come."""
        tasks = self._setup.mix.tasks_of_bodies()
        if profiles.FLAKY_TASK not in tasks or self._result.interrupted or self._result.problems:
            return
        kind = tasks.index(profiles.FLAKY_TASK)
        n = sum(one.outcome.good[kind] for one in self._result.phases)
        self._result.flaky = Chance(n, profiles.FLAKY_DEAD, dead)

    def _judge(self) -> None:
        """What must not be, and what a reader should know."""
        result = self._result
        sums, flaky = result.sums(), result.flaky
        if result.lost:
            result.problems.append(f"{result.lost:,} of {result.jobs_accepted:,} accepted jobs are not in the file")
        if flaky is not None and not flaky.plausible:
            result.problems.append(
                f"{flaky.found:,} dead letters are {abs(flaky.sigmas):.1f} standard deviations from {flaky.expected:,.0f}"
            )
        unexpected = {s: n for s, n in result.states.items() if s in ("dead_letter", "cancelled", "expired")}
        if unexpected and profiles.FLAKY_TASK not in self._setup.mix.tasks:
            result.problems.append(f"jobs that should have completed did not: {unexpected}")
        if sums["unanswered"]:
            result.notes.append(
                f"submits without an answer: {sums['unanswered']:,}; as many jobs more may be there, and hide a loss"
            )
        for one in result.phases:
            outcome, name = one.outcome, one.phase.name
            if outcome.ended_early and not (result.interrupted or result.gone):
                result.problems.append(f"{name} ended early: {outcome.ended_early}")
            if 0 < outcome.connections < min(self._setup.concurrency, one.phase.requests):
                result.notes.append(f"{name}: only {outcome.connections} connections could be opened at its start")
            if outcome.seconds and outcome.cpu_s / outcome.seconds > GENERATOR_BUSY:
                result.notes.append(
                    f"{name}: the load generator was busy all the time; the server may be faster than what is shown"
                )

    def _calibrate(self) -> None:
        self._show.begin("calibrating")
        size = 20_000 if self._setup.profile == "smoke" else 100_000
        connections = min(self._setup.concurrency, 100)
        self._result.calibration = calibrate.measure(
            self.folder, self._load, connections=connections, requests=size // 5, rows=size
        )


def too_much(step: PhaseResult) -> str:
    """Why a step of "stress" was not sustained; empty if it was."""
    outcome, rate = step.outcome, step.phase.rate or 0.0
    p95 = outcome.latency.percentile_ms(95) or math.inf
    if outcome.failures:
        return f"{outcome.failures:,} submits failed: {outcome.failed}"
    if p95 > profiles.STRESS_P95_MS:
        return f"the p95 was {p95:,.0f} ms, above {profiles.STRESS_P95_MS:g} ms"
    if step.left - step.left_before > max(0.05 * outcome.sent, 50):
        return f"the backlog grew by {step.left - step.left_before:,} jobs"
    if outcome.per_second < 0.95 * rate:
        return f"only {outcome.per_second:,.0f} jobs a second were accepted"
    return ""


def recovery_s(looks: list[Look], phases: list[PhaseResult]) -> float | None:
    """From the end of the spike until the backlog was no longer than it had been before it."""
    before, spike, _ = phases
    usual = max((look.left for look in looks if before.began_s <= look.at_s <= before.ended_s), default=0)
    usual = max(usual, round((before.phase.rate or 0.0) * LOOK_EVERY_S))
    caught_up = next((look.at_s for look in looks if look.at_s >= spike.ended_s and look.left <= usual), None)
    return None if caught_up is None else caught_up - spike.ended_s


def machine() -> str:
    return (
        f"{os.cpu_count()} cores, {platform.python_implementation()} {platform.python_version()}, {platform.system()}"
    )
