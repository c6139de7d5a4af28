"""The rules against a model: jobs with keys, limits and rates under any sequence of submits, ends, cancels, pauses and crashes.

What must hold is said of the rows, after every step: no gate lets more through than it may; none that could begin is left
waiting (nothing stalls); at each gate it is first come, first served; what the ledger in memory counts is what the file has.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from miniflow import control, outcome, registry
from miniflow.attempts import Attempt
from miniflow.control import QueueChange
from miniflow.engine import Engine
from miniflow.errors import TransitionRefused
from miniflow.model import Ending
from miniflow.states import TERMINAL, State
from miniflow.writer import Operation, ThreadWaiter
from tests.effort import examples
from tests.engines import Engines, FakeClock, new_job, submit_all, verb
from tests.invariants import all_ended, check_invariants, read

QUEUES = ["first", "second", "third"]
SERVED = "first,*"
TASKS = ["keyed", "two_a_key", "limited", "both", "rated", "skipping", "newest", "replacing", "free"]
RATE_PERIOD_MS = 10_000
RATE_N = 2
RETRY_MS = 5_000


def tasks() -> registry.Registry:
    """Never called: the test says how attempts end."""
    own = registry.Registry()
    with registry.collecting(own):

        @registry.task(concurrency_key="key")
        def keyed(key: int) -> None: ...

        @registry.task(concurrency_key="key", concurrency_per_key=2)
        def two_a_key(key: int) -> None: ...

        @registry.task(concurrency=2)
        def limited(key: int) -> None: ...

        @registry.task(concurrency=2, concurrency_key="key")
        def both(key: int) -> None: ...

        @registry.task(rate=f"{RATE_N}/{RATE_PERIOD_MS}ms")
        def rated(key: int) -> None: ...

        @registry.task(concurrency_key="key", on_conflict="skip")
        def skipping(key: int) -> None: ...

        @registry.task(concurrency_key="key", on_conflict="keep_newest")
        def newest(key: int) -> None: ...

        @registry.task(concurrency_key="key", on_conflict="cancel_running")
        def replacing(key: int) -> None: ...

        @registry.task
        def free(key: int) -> None: ...

    return own


AT_ONCE = {"limited": 2, "both": 2}
PER_KEY = {"keyed": 1, "two_a_key": 2, "both": 1, "skipping": 1, "newest": 1, "replacing": 1}
WAITS = frozenset(TASKS) - {"skipping", "newest", "replacing"}


class Row(NamedTuple):
    seq: int
    id: str
    task: str
    queue: str
    priority: int
    turn: int
    state: str
    lease: int | None
    key: str | None
    blocked: str | None

    @property
    def order(self) -> tuple[int, int, int]:
        return (-self.priority, self.turn, self.seq)

    @property
    def held(self) -> bool:
        return self.lease is not None and self.lease > 0


def table(path: Path) -> list[Row]:
    sql = "SELECT seq, id, task, queue, priority, turn, state, lease, concurrency_key, blocked FROM jobs ORDER BY seq"
    with closing(read(path)) as connection:
        return [Row(*row) for row in connection.execute(sql)]


class RulesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.engines = Engines(Path(self.folder.name))
        self.clock = FakeClock()
        self.taken: list[Attempt] = []
        self.begun_at: list[int] = []  # of the task with a rate, by the boot clock
        self.paused: set[str] = set()
        self.queue_limits: dict[str, int] = {}
        self.excused: Counter[str] = Counter()  # how many held a gate when its limit was lowered
        self.engine: Engine

    @initialize(tasks=st.lists(st.sampled_from(TASKS), min_size=1, max_size=3, unique=True))
    def begin(self, tasks: list[str]) -> None:
        """Few kinds of job in a run, so that they meet."""
        self.tasks = tasks
        self.start()

    def start(self) -> None:
        self.engine = self.engines(
            tasks(), clock=self.clock, workers=0, queues=SERVED, priority_ageing=0, durability="relaxed"
        )
        self.engine.readahead._idle_threads = 1  # the test is a worker that always wants more
        self.engine.jobs.claiming = True
        self.engine.jobs.quarantine.open = True
        self.settle()

    def settle(self) -> None:
        for _ in range(3):  # what a claim cancels or finds at another gate is for the next group
            self.clock.advance(1)
            verb(self.engine, lambda tx: None)

    # ----------------------------------------------------------------------------------------------------------- steps

    wish = st.fixed_dictionaries(
        {"task": st.integers(0, 2), "key": st.integers(1, 2), "queue": st.sampled_from(QUEUES), "priority": st.integers(0, 1)},
        optional={"delay": st.sampled_from([3, 30]), "ttl": st.sampled_from([3, 30])},
    )  # fmt: skip

    @rule(wishes=st.lists(wish, min_size=1, max_size=6))
    def submit(self, wishes: list[dict[str, Any]]) -> None:
        made = []
        for wish in wishes:
            options = {name: value for name, value in wish.items() if name not in ("task", "key")}
            task = self.tasks[wish["task"] % len(self.tasks)]
            made.append(new_job(self.engine, task, {"key": wish["key"]}, max_retries=1, **options))
        submit_all(self.engine, made)

    @rule(n=st.integers(1, 6))
    def take(self, n: int = 1) -> None:
        self.settle()
        for _ in range(n):
            attempt = self.engine.readahead.take("thread", lambda claimed: self.engine.begin(claimed, "the-test"))
            if attempt is None:
                return
            self.taken.append(attempt)
            if attempt.claimed.task == "rated":
                self.begun_at.append(self.clock.boot_ms())
            self.engine.jobs.mark_begun(attempt, unproven=True)

    @precondition(lambda self: bool(self.taken))
    @rule(data=st.data(), hows=st.lists(st.sampled_from(["completes", "completes", "fails"]), min_size=1, max_size=4))
    def end(self, data: st.DataObject, hows: list[str]) -> None:
        for how in hows[: len(self.taken)]:
            self.write_end(self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1))), how)

    def write_end(self, attempt: Attempt, how: str) -> None:
        assert attempt.finish()
        again = outcome.retries_left(attempt) > 0
        if attempt.pending is not None:
            ending = Ending(attempt, State.CANCELLED, outcome="cancelled", error="cancelled")
        elif how == "completes":
            ending = Ending(attempt, State.COMPLETED, result="1")
        else:
            ending = outcome.failure(attempt, outcome="failed", error_type="E", error="e", trace=None,
                                     now_ms=self.clock.now_ms(), delay_ms=RETRY_MS if again else None)  # fmt: skip
        operation, waiter = Operation("end", ending, keep=True), ThreadWaiter()
        operation.waiter = waiter
        self.engine.jobs.post_end(ending, operation)
        waiter.wait()

    @rule(data=st.data())
    def cancel_or_retry(self, data: st.DataObject) -> None:
        rows = table(self.engines.path)
        if not rows:
            return
        row = data.draw(st.sampled_from(rows))
        call = data.draw(st.sampled_from([self.engine.jobs.cancel, self.engine.jobs.retry]))
        try:
            verb(self.engine, call(row.id))
        except TransitionRefused:
            pass

    @rule(queue=st.sampled_from(QUEUES), paused=st.booleans())
    def pause_or_resume(self, queue: str, paused: bool) -> None:
        verb(self.engine, control.change_queue(self.engine.jobs, queue, QueueChange(paused=paused)))
        (self.paused.add if paused else self.paused.discard)(queue)

    @rule(queue=st.sampled_from(QUEUES), n=st.sampled_from([None, 1, 3]))
    def limit_a_queue(self, queue: str, n: int | None) -> None:
        verb(self.engine, control.change_queue(self.engine.jobs, queue, QueueChange(concurrency=n)))
        self.queue_limits.pop(queue, None)
        if n is not None:
            self.queue_limits[queue] = n
            self.excused[f"queue:{queue}"] = sum(row.held and row.queue == queue for row in table(self.engines.path))

    @rule(seconds=st.sampled_from([1, 4, 11, 40]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds * 1000)
        self.settle()

    @rule()
    def the_disk_refuses_a_group(self) -> None:
        """A group is rolled back after the claim: what memory followed must be taken back, too."""

        def fail(tx: Any) -> None:
            raise RuntimeError("refused")

        self.engine.writer._after.append(fail)
        try:
            with pytest.raises(RuntimeError):
                verb(self.engine, lambda tx: None)
        finally:
            self.engine.writer._after.remove(fail)

    @rule()
    def crash_and_restart(self) -> None:
        self.engines.crash(self.engine)
        self.taken.clear()
        self.begun_at = self.begun_at[-RATE_N:]
        self.start()

    @rule()
    def stop_and_restart(self) -> None:
        self.taken.clear()
        self.engines.stop(self.engine, 0)
        self.start()

    # --------------------------------------------------------------------------------------------------- what must hold

    def gates(self, row: Row) -> list[tuple[str, int]]:
        """The gates of a row and how many they let through at once."""
        found = []
        if row.queue in self.queue_limits:
            found.append((f"queue:{row.queue}", self.queue_limits[row.queue]))
        if row.task in AT_ONCE:
            found.append((f"task:{row.task}", AT_ONCE[row.task]))
        if row.task in PER_KEY:
            assert row.key is not None
            found.append((f"key:{row.task} {row.key}", PER_KEY[row.task]))
        return found

    @invariant()
    def the_rules_are_kept(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.settle()
        verb(self.engine, lambda tx: self.look())

    def look(self) -> None:
        """In a transaction, so that the writer does not claim meanwhile."""
        rows = table(self.engines.path)
        held: Counter[str] = Counter()
        for row in rows:
            if row.held:
                held.update(name for name, _ in self.gates(row))
        self.no_gate_lets_too_many_through(rows, held)
        self.nothing_stalls(rows, held)
        self.first_come_first_served(rows)
        self.the_ledger_is_right(rows)
        recent = [at for at in self.begun_at if at > self.clock.boot_ms() - RATE_PERIOD_MS]
        assert len(recent) <= RATE_N, f"{len(recent)} began within a period"

    def no_gate_lets_too_many_through(self, rows: list[Row], held: Counter[str]) -> None:
        limits = dict(gate for row in rows for gate in self.gates(row))
        for name, n in held.items():
            assert n <= max(limits[name], self.excused[name]), f"{n} hold {name}"
            self.excused[name] = min(self.excused[name], n)
        for row in rows:
            assert not (row.held and row.state == State.QUEUED and row.queue in self.paused), f"{row} is paused"

    def nothing_stalls(self, rows: list[Row], held: Counter[str]) -> None:
        for row in rows:
            if row.state != State.QUEUED or row.lease is not None or row.queue in self.paused or row.task == "rated":
                continue
            full = [name for name, limit in self.gates(row) if held[name] >= limit]
            assert full, f"{row} could begin: {held}, {self.engine.jobs.rules.gates.opened}"

    def first_come_first_served(self, rows: list[Row]) -> None:
        for task in WAITS - {"rated"}:
            for queue in QUEUES:
                alike = [row for row in rows if (row.task, row.queue, row.state) == (task, queue, State.QUEUED)]
                for key in {row.key for row in alike}:
                    same = [row for row in alike if row.key == key]
                    ahead = max((row.order for row in same if row.held), default=None)
                    waiting = min((row.order for row in same if row.lease is None), default=None)
                    assert ahead is None or waiting is None or ahead < waiting, same

    def the_ledger_is_right(self, rows: list[Row]) -> None:
        gates = self.engine.jobs.rules.gates
        counted = {gate.id: gate.held for gate in gates._gates.values() if gate.held}
        if not self.engine.jobs.rules.quiet:
            names = [self.engine.jobs.rules.gates_of(row.queue, row.task, row.key) for row in rows if row.held]
            assert counted == dict(Counter(name for group in names for name in group))
        for gate in gates._gates.values():
            unbegun = [seq for seq, held in gates.holds.items() if gate in held and seq not in gates._begun]
            assert gate.unbegun == len(unbegun), gate

    def teardown(self) -> None:
        try:
            if hasattr(self, "engine"):
                self.run_down()
        finally:
            self.engines.__exit__(None, None, None)
            self.folder.cleanup()

    def run_down(self) -> None:
        """Whatever has happened: with nothing paused, all jobs come to an end."""
        for queue in self.paused:
            verb(self.engine, control.change_queue(self.engine.jobs, queue, QueueChange(paused=False)))
        self.paused.clear()
        while self.taken:
            self.write_end(self.taken.pop(), "completes")
        for _ in range(5 * len(table(self.engines.path)) + 20):
            self.clock.advance(20_000)
            self.settle()
            self.take()
            while self.taken:
                self.write_end(self.taken.pop(), "completes")
            if all(row.state in TERMINAL for row in table(self.engines.path)):
                break
        self.engines.stop(self.engine, 0)
        check_invariants(self.engines.path, stopped=True, replayed=True)
        all_ended(self.engines.path)


RulesMachine.TestCase.settings = settings(
    max_examples=examples(6, thorough=60),
    stateful_step_count=30,
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
TestRules = RulesMachine.TestCase
