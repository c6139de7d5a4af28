"""The record of durable functions in the file, and their sleep.

A run is a workflow with one job. What its function asks for is put here step by step, each in a transaction that is committed
before the function goes on, and only while the attempt has its lease. A run that waits has no worker and no lease: its job is
``scheduled`` for the time when the first thing that it waits for is over, or ``pending`` if only something from outside can wake
it: an event, the end of a run that it has spawned. Whatever comes first, between the last look of the function and its sleep, is
found in the transaction that puts it to sleep; so no run sleeps through what it waits for. Ten thousand that sleep are ten
thousand rows, and nobody looks at them before their time.

An attempt that goes to sleep is not counted, and a run that has got on since is not charged with crashes before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from miniflow import function_statements as sql
from miniflow.attempts import Attempt
from miniflow.clock import SettledClock
from miniflow.errors import LateEvent, LeaseLost, StepFailed, TooManyEvents, TooManySteps, TransitionRefused
from miniflow.model import Ending
from miniflow.operations import Operation
from miniflow.recording import COMPLETED, FAILED, RECORD_BYTES_MAX, TOO_LONG, WAITING, Checkpoint, Suspension
from miniflow.states import State
from miniflow.workflow_intake import NewWorkflow
from miniflow.writer import Singly, Transaction, Undone, Writer, json_text

if TYPE_CHECKING:
    from miniflow.jobs import Jobs

EVENTS_MAX = 1000
"""Of one run."""
DEPTH_MAX = 50
"""Of runs that were spawned by runs that were spawned …"""

decode_checkpoints = msgspec.json.Decoder(list[Checkpoint]).decode
_decode_seqs = msgspec.json.Decoder(list[int]).decode


class Run(NamedTuple):
    """A run while its function is executed."""

    attempt: Attempt
    number: int
    id: str


class Put(NamedTuple):
    """A checkpoint to be written."""

    run: Run
    one: Checkpoint

    def row(self) -> list[Any]:
        claimed, one = self.run.attempt.claimed, self.one
        return [
            claimed.seq, claimed.lease, self.run.number, one.idx, one.grp, one.kind, one.name, one.state, one.digest,
            one.attempts, one.failures, one.wake_at, one.relative, one.output, one.error_type, one.error, one.started_at,
            one.ended_at,
        ]  # fmt: skip


class Asleep(NamedTuple):
    """A run that is to sleep."""

    run: Run
    suspension: Suspension


class Checkpoints:
    def __init__(self, jobs: Jobs, writer: Writer, clock: SettledClock) -> None:
        self._jobs, self._writer, self.clock = jobs, writer, clock
        self._begun: dict[tuple[int, int], Put] = {}  # steps that have begun, not written yet
        self.paused: set[int] = set()  # numbers of runs that are paused
        self.children: set[int] = set()  # numbers of runs that another one has spawned, and that have not ended
        writer.every_group(self._mark, before=True)
        writer.handle("checkpoint", self._put)
        writer.handle("suspend", self._suspend)

    def __repr__(self) -> str:
        return f"<Checkpoints [{len(self.children)} spawned runs | {len(self.paused)} paused]>"

    def load(self, tx: Transaction) -> None:
        """At start."""
        self.paused.update(number for (number,) in tx.run(sql.PAUSED_FUNCTIONS))
        self.children.update(number for (number,) in tx.run(sql.WAITING_CHILDREN))

    # ---------------------------------------------------------------------------------------------------------- recording

    def begin(self, run: Run, one: Checkpoint) -> None:
        """A step has begun: it rides in the next group, and in none if its end is in that one already."""
        self._begun[run.number, one.idx] = Put(run, one)
        self._writer.nudge(now=False)

    def operation(self, run: Run, one: Checkpoint) -> Operation:
        """Of the kind "checkpoint"."""
        self._begun.pop((run.number, one.idx), None)
        return Operation("checkpoint", Put(run, one))

    def putting(self, run: Run, one: Checkpoint) -> Callable[[Transaction], None]:
        """The same, as a part of a transaction. Undone if the lease is gone."""
        self._begun.pop((run.number, one.idx), None)

        def put(tx: Transaction) -> None:
            if not self._write(tx, [Put(run, one)]):
                raise Undone("the attempt was given up; what it has done since is not recorded")

        return put

    def _mark(self, tx: Transaction) -> None:
        if not self._begun:
            return
        puts = {key: put for key, put in list(self._begun.items()) if self._begun.pop(key, None) is put}
        tx.on_rollback(
            lambda: self._begun.update({key: put for key, put in puts.items() if not put.run.attempt.finished})
        )
        self._write(tx, list(puts.values()))

    def _put(self, tx: Transaction, ops: list[Operation]) -> None:
        if self._write(tx, [op.argument for op in ops]) < len(ops):
            if len(ops) > 1:
                raise Singly
            ops[0].error = LeaseLost("the attempt was given up; what it has done since is not recorded")

    def _write(self, tx: Transaction, puts: list[Put]) -> int:
        n = tx.change(sql.PUT_CHECKPOINTS_IF_LEASED, json_text([put.row() for put in puts]))
        if n:
            tx.run(sql.TOUCH_WORKFLOWS, json_text([put.run.number for put in puts]), tx.now_ms, tx.number)
            # Of what has only begun the next thing may be another crash.
            crashed = [put.run.attempt.claimed.seq for put in puts if put.one.ended and put.run.attempt.claimed.crashes]
            if crashed:
                tx.run(sql.FORGIVE, json_text(crashed))
        return n

    def run_of(self, attempt: Attempt) -> Callable[[Transaction], tuple[Run, list[Checkpoint]]]:
        """The run whose job this is, and its checkpoints. TooManySteps where they are too long to be read."""

        def verb(tx: Transaction) -> tuple[Run, list[Checkpoint]]:
            number, workflow_id = tx.run(sql.RUN_OF_JOB, attempt.claimed.seq)[0]
            if tx.run(sql.BYTES_OF_RUN, number)[0][0] > RECORD_BYTES_MAX:
                raise TooManySteps(TOO_LONG)
            found = decode_checkpoints(tx.run(sql.CHECKPOINTS_OF_RUN, number)[0][0])
            return Run(attempt, number, workflow_id), found

        return verb

    def look(self, run: Run, idx: int) -> Callable[[Transaction], Checkpoint]:
        """A checkpoint as it is now."""
        return lambda tx: decode_checkpoints(tx.run(sql.CHECKPOINT_OF_RUN, run.number, idx)[0][0])[0]

    def wait_for_event(self, run: Run, one: Checkpoint) -> Callable[[Transaction], Checkpoint]:
        """With the event if it is there, failed if its time is over, else as waiting."""

        def verb(tx: Transaction) -> Checkpoint:
            rows = tx.run(sql.EVENT, run.number, one.name)
            if rows:
                put = one._replace(state=COMPLETED, output=rows[0][0], ended_at=tx.now_ms)
            elif one.wake_at is not None and one.wake_at <= tx.now_ms:
                put = one._replace(
                    state=FAILED,
                    error_type="EventTimeout",
                    error=f"no event {one.name!r} came in time",
                    ended_at=tx.now_ms,
                )
            else:
                put = one._replace(state=WAITING)
            if not self._write(tx, [Put(run, put)]):
                raise LeaseLost("the attempt was given up")
            return put

        return verb

    def spawn(self, run: Run, one: Checkpoint, new: NewWorkflow) -> Callable[[Transaction], Checkpoint]:
        """Insert a run that this one waits for. It is not refused for what waits already: the one that asks for it, which was
        accepted, could not end without it. TooManySteps where runs spawn runs without end."""

        def verb(tx: Transaction) -> Checkpoint:
            jobs = self._jobs
            if tx.run(sql.DEPTH_OF_RUN, run.number, DEPTH_MAX)[0][0] >= DEPTH_MAX:
                raise TooManySteps(f"runs spawn runs {DEPTH_MAX} deep at most")
            refused = jobs.submitting.refusal(tx, new.jobs, -1)
            if refused is not None:
                raise refused
            if not self._write(tx, [Put(run, one)]):
                raise LeaseLost("the attempt was given up")
            jobs.workflows.starting.add(tx, [new])
            ((number,),) = tx.run(sql.SET_CHILD, run.number, one.idx, new.id)
            self.children.add(number)
            tx.on_rollback(lambda: self.children.discard(number))
            return one._replace(child=new.id)

        return verb

    # ------------------------------------------------------------------------------------------------------------ sleeping

    def post_suspension(self, run: Run, suspension: Suspension) -> None:
        """Put a run to sleep, without waiting. The caller has won ``attempt.finish()``."""
        self._jobs.forget(run.attempt, Operation("suspend", Asleep(run, suspension), keep=True))

    def _suspend(self, tx: Transaction, ops: list[Operation]) -> None:
        asleep: list[Asleep] = [op.argument for op in ops]
        rows = []
        for run, suspension in asleep:
            claimed = run.attempt.claimed
            state = State.PENDING if suspension.wake_at is None else State.SCHEDULED
            begun = int(run.attempt.marked)
            rows.append([claimed.seq, claimed.lease, state, begun, suspension.wake_at, suspension.relative])
        if tx.change(sql.SUSPEND_IF_LEASED, json_text(rows), tx.now_ms, tx.number) < len(ops):
            if len(ops) > 1:
                raise Singly
            self._cancel_instead(tx, asleep[0].run.attempt)
            return
        seqs = [row[0] for row in rows]
        self._jobs.left(tx, [one.run.attempt for one in asleep])
        for run, suspension in asleep:
            queue = run.attempt.claimed.queue
            tx.count(State.RUNNING if run.attempt.marked else State.QUEUED, queue, -1)
            tx.count(State.PENDING if suspension.wake_at is None else State.SCHEDULED, queue)
            if suspension.wake_at is not None:
                self._jobs.timers.expect(suspension.wake_at, None)
        # One that is paused sleeps for nothing: it is ready as soon as its workflow goes on.
        tx.run(
            sql.SET_ASLEEP,
            json_text([(one.run.attempt.claimed.seq, int(bool(one.suspension.awaited))) for one in asleep]),
        )
        tx.run(sql.FORGET_AWAITED, json_text([one.run.number for one in asleep]))
        awaited = [(one.run.number, idx) for one in asleep for idx in one.suspension.awaited]
        tx.run(sql.SET_AWAITED, json_text(awaited))
        awake = _decode_seqs(tx.run(sql.AWAKE_ALREADY, json_text(seqs))[0][0])
        resumed = [one.run.attempt.claimed.seq for one in asleep if not one.suspension.awaited]
        if resumed:  # it may go on again since
            self._jobs.dependencies.release(tx, resumed)
        self.wake(tx, awake)

    def _cancel_instead(self, tx: Transaction, attempt: Attempt) -> None:
        """It could not be put to sleep: it was cancelled meanwhile, or its lease is gone."""
        claimed = attempt.claimed
        rows = tx.run(sql.CANCEL_REQUESTED_OF_LEASED, claimed.seq, claimed.lease)
        if rows and rows[0][0] is not None:
            ending = Ending(attempt, State.CANCELLED, outcome="cancelled", error=str(State.CANCELLED))
            self._jobs.end(tx, ending)

    def wake(self, tx: Transaction, seqs: list[int]) -> None:
        """Those of these jobs that sleep become ready."""
        if not seqs:
            return
        text = json_text(seqs)
        tx.run(sql.WAKE, text)
        for (queue, priority), n in Counter(
            (queue, priority)
            for queue, priority in tx.run(sql.WAKE_IF_SCHEDULED, text, self._jobs.turn(tx), tx.now_ms, tx.number)
        ).items():
            tx.count(State.SCHEDULED, queue, -n)
            tx.count(State.QUEUED, queue, n)
            self._jobs.ready(tx, queue, priority)
        self._jobs.dependencies.release(tx, seqs)

    # ------------------------------------------------------------------------------------------------- events and children

    def deliver(
        self, workflow_id: str, name: str, payload: str, *, key: str | None, request_id: str | None
    ) -> Callable[[Transaction], bool]:
        """Give a run an event. True if it was there already, from a request with the same idempotency key. LateEvent if another
        one was first, TransitionRefused for a workflow that takes none."""

        def verb(tx: Transaction) -> bool:
            number, state, kind = self._jobs.workflows.standing(tx, workflow_id)
            if kind != "function":
                remedy = "its steps are declared, and wait for no event"
                raise TransitionRefused(workflow_id, "send an event", state, remedy, kind="workflow")
            rows = tx.run(sql.EVENT, number, name)
            if rows and key is not None and rows[0][2] == key and rows[0][0] == payload:
                return True
            if rows:
                raise LateEvent(workflow_id, name)
            if state != "running":
                raise TransitionRefused(workflow_id, "send an event", state, kind="workflow")
            if tx.run(sql.COUNT_EVENTS, number)[0][0] >= EVENTS_MAX:
                raise TooManyEvents(workflow_id, EVENTS_MAX)
            tx.run(sql.INSERT_EVENT, number, name, payload, key, request_id, tx.now_ms)
            tx.run(sql.TOUCH_WORKFLOWS, json_text([number]), tx.now_ms, tx.number)
            if any(awaited for (awaited,) in tx.run(sql.GIVE_EVENT, number, name, payload, tx.now_ms)):
                self.wake(tx, _decode_seqs(tx.run(sql.SLEEPERS, json_text([number]))[0][0]))
            return False

        return verb

    def ended(self, tx: Transaction, numbers: Iterable[int]) -> None:
        """These workflows have ended in this transaction: who has spawned them is told."""
        mine = self.children.intersection(numbers)
        if not mine:
            return
        self.children -= mine
        tx.on_rollback(lambda: self.children.update(mine))
        told = tx.run(sql.END_OF_CHILDREN, json_text(sorted(mine)), tx.now_ms)
        if told:
            declared = [child for _, _, child, is_declared in told if is_declared]
            if declared:
                outcomes = self._jobs.workflows.subworkflows.outcomes(tx, declared)
                tx.run(sql.SET_RETURNED, json_text(outcomes))
            parents = sorted({parent for parent, *_ in told})
            tx.run(sql.TOUCH_WORKFLOWS, json_text(parents), tx.now_ms, tx.number)
            woken = sorted({parent for parent, awaited, *_ in told if awaited})
            self.wake(tx, _decode_seqs(tx.run(sql.SLEEPERS, json_text(woken))[0][0]))

    def open_children(self, tx: Transaction, numbers: list[int]) -> list[int]:
        """The runs that these have spawned, and that have not ended."""
        return _decode_seqs(tx.run(sql.OPEN_CHILDREN, json_text(numbers))[0][0]) if self.children else []

    # -------------------------------------------------------------------------------------------------------- running again

    def run_again(self, tx: Transaction, seqs: list[int]) -> None:
        """Jobs that had ended, or have failed, run again. Of functions the failure is forgotten, and what came after it; a run
        that was spawned and has failed is retried."""
        text = json_text(seqs)
        for number, failed, asked in tx.run(sql.FAILED_FUNCTIONS, text):
            self._retry_children(tx, number, tx.run(sql.FAILED_CHILDREN, number, failed))
            tx.run(sql.FORGET_FAILURES, number, failed, asked)
        tx.run(sql.WAKE_AS_NEW, text)

    def _retry_children(self, tx: Transaction, number: int, children: list[tuple[int, str, str]]) -> None:
        """The run waits for these again; for one that has ended well since, it has waited already. In place of one that has
        undone what it did, and cannot run on, another is spawned."""
        numbers: set[int] = set()
        gone: list[int] = []
        for one, child, state in children:
            if state in ("failed", "cancelled"):
                try:
                    self._jobs.workflows.retry(child)(tx)
                except TransitionRefused:
                    gone.append(one)
                    continue
            numbers.add(one)
        if gone:
            tx.run(sql.FORGET_CHILDREN, number, json_text(gone))
        if not numbers:
            return
        tx.run(sql.WAIT_FOR_AGAIN, number, json_text(sorted(numbers)))
        back = numbers - self.children
        tx.on_rollback(lambda: self.children.difference_update(back))
        self.children |= back
        self.ended(tx, [one for one, _, state in children if state == "completed"])

    def failed(self, seq: int, failure: StepFailed | None) -> Callable[[Transaction], None]:
        """To be done with the end of an attempt that has failed; ``failure`` is that of what it asked for, if that was why."""

        def after(tx: Transaction) -> None:
            failed = None if failure is None else json_text(failure.failed)
            tx.run(sql.SET_FAILED, seq, failed, None if failure is None else failure.asked)
            if tx.run(sql.IS_RETRYING, seq):
                self.run_again(tx, [seq])

        return after

    def revive(self, tx: Transaction, number: int, seqs: list[int]) -> None:
        """A run that has ended runs again, and with it those of which it has not seen that they did not end well: those that were
        cancelled because of it, above all."""
        self._retry_children(tx, number, tx.run(sql.UNSEEN_CHILDREN, number))
        tx.run(sql.DUE_AT_ONCE, json_text(seqs))

    def rerun(self, new: NewWorkflow, before: int, grp: int) -> Callable[[Transaction], None]:
        """Insert a run that takes over what the run number ``before`` has recorded below ``grp``."""

        def verb(tx: Transaction) -> None:
            jobs = self._jobs
            refused = jobs.submitting.refusal(tx, new.jobs, jobs.submitting.waiting())
            if refused is not None:
                raise refused
            jobs.workflows.starting.add(tx, [new])
            tx.run(sql.COPY_CHECKPOINTS, new.id, before, grp)

        return verb

    def shift(self, tx: Transaction, jump_ms: int) -> None:
        """The clock was set."""
        tx.run(sql.SHIFT_CHECKPOINTS, jump_ms)
