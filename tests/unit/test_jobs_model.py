"""The verbs against a model: any sequence of submits, claims, ends, cancels, replays, crashes and hours that pass.

The model is a dict of what each job should be. The worker is the test itself: it takes from the read-ahead as a worker's thread
does, and ends attempts as it likes. After each step the file is compared with the model; in the end it is checked as a whole.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from miniflow import outcome
from miniflow.attempts import Attempt
from miniflow.engine import Engine
from miniflow.errors import IdempotencyConflict, JobCancelled, StoreClosed, TransitionRefused
from miniflow.model import Ending
from miniflow.recovery import CRASHES_MAX
from miniflow.states import TERMINAL, WAITING, State
from miniflow.writer import Operation, ThreadWaiter
from tests.effort import examples
from tests.engines import Engines, FakeClock, new_job, rows, submit_all, verb
from tests.invariants import acknowledged_all_there, all_ended, check_invariants

QUEUES = ["high", "default", "low"]
RETRY_MS = 10_000


def work(n: int = 0) -> None:
    """Never called: the test says how its attempts end."""


@dataclass
class Job:
    """What the model knows of a job."""

    id: str
    queue: str
    priority: int
    state: State
    run_at: int | None
    expires_at: int | None
    max_retries: int
    key: str | None
    n: int
    turn: int = 0
    place: int = 0  # the order of insertion: that of seq
    attempt: int = 0
    crashes: int = 0
    parents: tuple[str, ...] = ()
    lost_with_them: bool = True
    by_a_person: bool = False
    taken: Attempt | None = None
    cancel_wanted: bool = False
    history: list[str] = field(default_factory=list)

    @property
    def rank(self) -> tuple[int, int, int, int]:
        return (QUEUES.index(self.queue), -self.priority, self.turn, self.place)


class JobsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.engines = Engines(Path(self.folder.name))
        self.clock = FakeClock()
        self.model: dict[str, Job] = {}
        self.turns = 0
        self.engine: Engine

    @initialize()
    def start(self) -> None:
        self.engine = self.engines(work, clock=self.clock, workers=0, queues=",".join(QUEUES), priority_ageing=0)
        self.engine.readahead._idle_threads = 1  # the test is a worker that always wants more
        self.engine.jobs.claiming = True
        self.settle()

    # ------------------------------------------------------------------------------------------------------- the model

    def settle(self) -> None:
        """A group of the writer, and the same in the model: what is due moves. A millisecond passes between any two."""
        self.clock.advance(1)
        verb(self.engine, lambda tx: None)
        self.settle_model()

    def settle_model(self) -> None:
        now_ms = self.clock.now_ms()
        due = [
            j for j in self.model.values() if j.state in (State.SCHEDULED, State.RETRYING) and (j.run_at or 0) <= now_ms
        ]
        if due:
            self.make_ready(due)
        for job in self.model.values():
            over = job.expires_at is not None and job.expires_at <= now_ms
            if job.state is State.QUEUED and job.taken is None and job.attempt == 0 and over:
                job.state = State.EXPIRED
        while self.follow_ends():
            pass

    def follow_ends(self) -> bool:
        """What waits for jobs that have ended by now is cancelled or becomes ready; whether there was any."""
        states = {job.id: job.state for job in self.model.values()}
        lost, ready = list[Job](), list[Job]()
        for job in self.model.values():
            ends = [states[parent] for parent in job.parents]
            if job.state is not State.PENDING:
                continue
            if job.lost_with_them and any(end in TERMINAL and end is not State.COMPLETED for end in ends):
                lost.append(job)
            elif all(end in TERMINAL for end in ends):
                ready.append(job)
        for job in lost:
            job.state = State.CANCELLED
        self.turns += bool(ready)
        for job in ready:
            later = job.run_at is not None and job.run_at > self.clock.now_ms()
            job.state, job.turn = State.SCHEDULED if later else State.QUEUED, self.turns
        return bool(lost or ready)

    def make_ready(self, jobs: list[Job]) -> None:
        self.turns += 1
        for job in jobs:
            job.state, job.turn, job.run_at = State.QUEUED, self.turns, None

    def next_job(self) -> Job | None:
        ready = [job for job in self.model.values() if job.state is State.QUEUED and job.taken is None]
        return min(ready, key=lambda job: job.rank) if ready else None

    def running(self) -> list[Job]:
        return [job for job in self.model.values() if job.taken is not None]

    # --------------------------------------------------------------------------------------------------------- submits

    wish = st.fixed_dictionaries(
        {
            "queue": st.sampled_from(QUEUES),
            "priority": st.integers(-1, 1),
            "max_retries": st.integers(0, 2),
        },
        optional={
            "delay": st.sampled_from([5, 60]),
            "ttl": st.sampled_from([3, 30]),
            "idempotency_key": st.sampled_from(["a", "b", "c"]),
        },
    )

    @rule(wishes=st.lists(wish, min_size=1, max_size=4), n=st.integers(0, 1), data=st.data())
    def submit(self, wishes: list[dict[str, Any]], n: int, data: st.DataObject) -> None:
        """One job or a batch, some after others. All with a key have the same body but for ``n``, so that the same key can
        conflict."""
        wishes = [{"idempotency_key": w["idempotency_key"]} if "idempotency_key" in w else w for w in wishes]
        for wish in wishes if self.model else []:
            if "idempotency_key" not in wish and data.draw(st.booleans()):
                some = st.lists(st.sampled_from(sorted(self.model)), min_size=1, max_size=3, unique=True)
                wish["depends_on"] = data.draw(some)
                wish["on_dependency_failure"] = data.draw(st.sampled_from(["cancel", "run"]))
        made = [new_job(self.engine, "work", {"n": n}, **wish) for wish in wishes]
        keys = {job.key: job for job in self.model.values() if job.key is not None}
        self.clock.advance(1)
        if any(job.key in keys and keys[job.key].n != n for job in made):
            with pytest.raises(IdempotencyConflict):
                submit_all(self.engine, made)
            self.settle_model()
            return
        accepted = submit_all(self.engine, made)
        fresh = []
        for job, answer in zip(made, accepted, strict=True):
            first = keys.get(job.key) if job.key is not None else None
            assert (answer.id, answer.replayed) == (first.id if first else job.id, first is not None)
            if first is None:
                entry = Job(
                    job.id, job.queue, job.priority, job.state, job.run_at, job.expires_at, int(job.row[6]), job.key, n
                )
                entry.place = len(self.model)
                if job.waits is not None:
                    entry.parents, entry.lost_with_them = tuple(map(str, job.waits.jobs)), job.waits.kind == "after"
                self.model[job.id] = entry
                fresh.append(entry)
                if job.key is not None:
                    keys[job.key] = entry
        self.turns += 1
        for entry in fresh:
            entry.turn = self.turns
        self.settle_model()

    # -------------------------------------------------------------------------------------------------------- the worker

    @rule()
    def take(self) -> None:
        """The worker gets the best of all that is ready, whatever was claimed ahead."""
        self.settle()
        expected = self.next_job()
        attempt = self.engine.readahead.take("thread", lambda claimed: self.engine.begin(claimed, "the-test"))
        if expected is None:
            assert attempt is None, f"nothing is ready, and the worker got {attempt}"
            return
        assert attempt is not None, f"the worker got nothing, and {expected} is ready"
        assert attempt.claimed.id == expected.id
        expected.taken, expected.attempt = attempt, expected.attempt + 1
        assert attempt.number == expected.attempt
        self.engine.jobs.mark_begun(attempt, unproven=True)

    @precondition(lambda self: bool(self.running()))
    @rule(data=st.data(), how=st.sampled_from(["completes", "fails", "fails", "fails for good"]))
    def end(self, data: st.DataObject, how: str) -> None:
        job = data.draw(st.sampled_from(self.running()))
        attempt = job.taken
        assert attempt is not None
        assert attempt.finish()
        now_ms = self.clock.now_ms()
        again = how == "fails" and outcome.retries_left(attempt) > 0
        assert (outcome.retries_left(attempt) > 0) == (job.attempt - 1 - job.crashes < job.max_retries)
        if how == "completes":
            ending = Ending(attempt, State.COMPLETED, result="1")
        elif isinstance(attempt.pending, JobCancelled):
            ending = Ending(attempt, State.CANCELLED, outcome="cancelled", error="cancelled")
        else:
            ending = outcome.failure(attempt, outcome="failed", error_type="E", error="e", trace=None, now_ms=now_ms,
                                     delay_ms=RETRY_MS if again else None)  # fmt: skip
        self.write_end(ending)
        job.taken = None
        job.cancel_wanted = False
        job.state = ending.state
        job.run_at = ending.run_at
        if ending.outcome:
            job.history.append(ending.outcome)
        self.settle_model()

    def write_end(self, ending: Ending) -> None:
        self.clock.advance(1)
        operation, waiter = Operation("end", ending, keep=True), ThreadWaiter()
        operation.waiter = waiter
        self.engine.jobs.post_end(ending, operation)
        waiter.wait()
        assert operation.error is None

    # ----------------------------------------------------------------------------------------------------- other people

    def some_job(self, data: st.DataObject) -> Job:
        return data.draw(st.sampled_from(list(self.model.values())))

    @precondition(lambda self: bool(self.model))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.settle()
        job = self.some_job(data)
        if job.state in TERMINAL and job.state is not State.CANCELLED:
            with pytest.raises(TransitionRefused):
                verb(self.engine, self.engine.jobs.cancel(job.id))
            return
        answer = verb(self.engine, self.engine.jobs.cancel(job.id))
        if job.taken is not None:
            assert answer is State.RUNNING
            assert isinstance(job.taken.pending, JobCancelled)
            job.cancel_wanted = True
            return
        assert answer is State.CANCELLED
        row = self.row(job)
        if row.attempt > job.attempt:  # after a crash a claim is a beginning
            job.attempt = row.attempt
            job.history.append("cancelled")
        job.by_a_person = job.by_a_person or job.state is not State.CANCELLED
        job.state = State.CANCELLED
        self.settle_model()

    @precondition(lambda self: bool(self.model))
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        self.settle()
        job = self.some_job(data)
        if self.revivable(job):
            self.clock.advance(1)
            assert verb(self.engine, self.engine.jobs.retry(job.id)) is State.PENDING
            job.state = State.PENDING
            self.settle_model()
            return
        if job.state not in (State.DEAD_LETTER, State.RETRYING):
            with pytest.raises(TransitionRefused):
                verb(self.engine, self.engine.jobs.retry(job.id))
            return
        verb(self.engine, self.engine.jobs.retry(job.id))
        self.again(job)

    def revivable(self, job: Job) -> bool:
        """Cancelled because of another job, which has been replayed since."""
        if job.state is not State.CANCELLED or job.by_a_person or not job.parents or job.attempt:
            return False
        ends = [self.model[parent].state for parent in job.parents]
        return not (job.lost_with_them and any(end in TERMINAL and end is not State.COMPLETED for end in ends))

    @rule()
    def replay_all(self) -> None:
        self.settle()
        dead = [job for job in self.model.values() if job.state is State.DEAD_LETTER]
        seqs = [row.seq for row in rows(self.engines.path, "state = 'dead_letter'")]
        assert verb(self.engine, lambda tx: self.engine.jobs.replay(tx, seqs)) == len(dead)
        if dead:
            turn = self.turns + 1
            for job in dead:
                self.again(job)
                job.turn = turn
            self.turns = turn

    def again(self, job: Job) -> None:
        if job.state is State.DEAD_LETTER:
            job.attempt = job.crashes = 0
            job.expires_at = None
        self.make_ready([job])

    # ------------------------------------------------------------------------------------------------ time and bad luck

    @rule(seconds=st.sampled_from([1, 4, 20, 100]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds * 1000)
        self.settle()

    @rule()
    def crash_and_restart(self) -> None:
        """The process dies; what was begun has crashed once more, what was only claimed is as it was."""
        before = {job.id: self.row(job) for job in self.model.values()}
        attempts, dead = [job.taken for job in self.running()], self.engine
        self.engines.crash(self.engine)
        for job in self.model.values():
            row = before[job.id]
            begun = row.state == State.RUNNING
            assert not begun or job.taken is not None or row.attempt == job.attempt + 1
            job.attempt, job.taken = row.attempt, None
            if not begun:
                continue
            job.crashes += 1
            job.history.append("crashed")
            if job.cancel_wanted:
                job.state = State.CANCELLED
            else:
                job.state = State.QUEUED if job.crashes < CRASHES_MAX else State.DEAD_LETTER
        for job in self.model.values():
            job.cancel_wanted = False
        self.start()
        for attempt in attempts:  # a body that outlived its engine
            assert attempt is not None
            with pytest.raises(StoreClosed):
                dead.jobs.post_end(Ending(attempt, State.COMPLETED, result='"from the dead"'))
        self.settle_model()

    @rule(wait=st.booleans())
    def stop_and_restart(self, wait: bool) -> None:
        """A stop in order: nothing is claimed any more, and no attempt is counted for what was running."""
        for job in self.running():
            job.taken, job.state = None, State.QUEUED
            job.attempt -= 1
            job.cancel_wanted = False
        self.engines.stop(self.engine, 0)
        check_invariants(self.engines.path, stopped=True, replayed=True)
        self.start()

    # ----------------------------------------------------------------------------------------------------- what must hold

    def row(self, job: Job) -> Any:
        (found,) = rows(self.engines.path, "id = ?", job.id)
        return found

    @invariant()
    def the_file_is_as_the_model_says(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.settle()
        found = {row.id: row for row in rows(self.engines.path)}
        assert found.keys() == self.model.keys()
        for job in self.model.values():
            row = found[job.id]
            ahead = job.taken is None and row.state == State.RUNNING and row.attempt == job.attempt + 1  # after a crash
            shown = State.RUNNING if job.taken is not None or ahead else job.state
            assert row.state == shown, (job, row)
            assert (row.attempt - ahead, row.crashes) == (job.attempt, job.crashes), (job, row)
            if job.state in WAITING - {State.QUEUED}:
                assert row.run_at == job.run_at, (job, row)

    def teardown(self) -> None:
        try:
            if hasattr(self, "engine"):
                self.run_down()
        finally:
            self.engines.__exit__(None, None, None)
            self.folder.cleanup()

    def run_down(self) -> None:
        """Whatever has happened: all jobs come to an end, each once."""
        for job in self.running():
            assert job.taken is not None
            if job.taken.finish():
                self.write_end(Ending(job.taken, State.COMPLETED, result="1"))
            job.taken, job.state = None, State.COMPLETED
        for _ in range(4 * len(self.model) + 10):
            self.clock.advance(60_000)
            self.settle()
            attempt = self.engine.readahead.take("thread", lambda claimed: self.engine.begin(claimed, "the-test"))
            if attempt is not None and attempt.finish():
                self.write_end(Ending(attempt, State.COMPLETED, result="1"))
        self.engines.stop(self.engine, 0)
        check_invariants(self.engines.path, stopped=True, replayed=True)
        acknowledged_all_there(self.engines.path, self.model)
        all_ended(self.engines.path)


JobsMachine.TestCase.settings = settings(
    max_examples=examples(25, thorough=100),
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
TestJobsModel = JobsMachine.TestCase
