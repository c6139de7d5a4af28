"""Workflows: steps that follow one another, each of them a job.

All steps are in the table from the start, ``pending`` but for those that need nothing, with edges between them: what makes the
next step ready is what makes any job ready that waits for others (``dependencies``). What is added here is what a workflow has
and a job has not. When the turn of a step comes, the outputs that its payload refers to are filled in and its condition is
looked at (``prepare``): a step whose condition does not hold is skipped, which is as good as done for those that need it. When
steps have ended they are counted in the row of their workflow, and with the last one it has ended too (``settle``): completed if
all ended well, else failed (or cancelled, if somebody asked for that), with the first step that did not.

All of it is in the transaction that ends the step, so a workflow is never between two steps: nor is one that is itself a step
(``subworkflows``), since what it is a step of is looked at in turn. While no workflow runs it costs a look at a counter.

A paused workflow makes no further step ready; what is queued or runs goes on, and what stands for others ends with them. An end
ends the pause too. Retry lets dead steps run again and those that were cancelled wait again. A rerun is a new workflow, which
takes over the outputs of the steps before the one that it begins with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from miniflow import references
from miniflow import statements as job_sql
from miniflow import workflow_statements as sql
from miniflow.cancelling import cancel_rows
from miniflow.clock import Clock
from miniflow.compensation import SAID_OF_STEP, Compensation
from miniflow.errors import MiniFlowError, NotFound, TransitionRefused
from miniflow.expansion import Expanded, Expansion, Turn
from miniflow.references import BadReference, Known
from miniflow.starting import RUNNING, WORKFLOWS, Starting
from miniflow.states import WORKFLOW_MEANING, State
from miniflow.subworkflows import Begun, Subworkflows
from miniflow.workflow_graph import decode_definition, names_of
from miniflow.workflow_intake import NewWorkflow, about
from miniflow.writer import Transaction, Writer, json_text

if TYPE_CHECKING:
    from miniflow.jobs import Jobs

COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
STATES = tuple(WORKFLOW_MEANING)
OVERDUE_MAX = 100  # in one transaction

_decode_seqs = msgspec.json.Decoder(list[int]).decode
_decode_ended = msgspec.json.Decoder(list[tuple[str, str, int, int, int | None]]).decode
_decode = msgspec.json.Decoder().decode


class _Standing(NamedTuple):
    """A row of ``WORKFLOW_STATE``."""

    number: int
    state: str
    cancel_requested_at: int | None
    paused_at: int | None
    undoing_at: int | None
    kind: str


class Workflows:
    def __init__(
        self, jobs: Jobs, writer: Writer, clock: Clock, *, max_payload_bytes: int, max_result_bytes: int
    ) -> None:
        self._jobs, self._writer, self._clock, self._max_payload_bytes = jobs, writer, clock, max_payload_bytes
        self.compensation = Compensation(jobs)
        self.expansion = Expansion(jobs, max_result_bytes=max_result_bytes)
        self.subworkflows = Subworkflows(jobs, max_payload_bytes=max_payload_bytes, max_result_bytes=max_result_bytes)
        self._ended: list[int] = []  # rows that end in the transaction under way
        self._outer: list[int] = []  # rows that stand for workflows that do
        self._next_deadline_ms = math.inf
        self.starting = Starting(jobs, self, writer)

    def __repr__(self) -> str:
        return f"<Workflows [{self._writer.counter(WORKFLOWS, RUNNING)} running]>"

    # ---------------------------------------------------------------------------------------------------------- advancing

    @property
    def any(self) -> bool:
        """Whether there is a workflow, ended or not."""
        return any(self._writer.counters.get(WORKFLOWS, {}).values())

    def active(self, tx: Transaction) -> bool:
        """Whether there is a workflow that has not ended."""
        return self._writer.counter(WORKFLOWS, RUNNING) + tx.deltas.get((WORKFLOWS, RUNNING), 0) > 0

    def ended(self, tx: Transaction, seqs: Iterable[int]) -> None:
        """These rows end in this transaction; those that are steps are counted at its end."""
        if not self.active(tx):
            return
        if not self._ended:
            tx.on_rollback(self._ended.clear)
        self._ended += seqs

    def settle(self, tx: Transaction) -> None:
        """Count the steps that have ended; a workflow whose last one that was, has ended too."""
        while self._ended or self._outer:
            counted = looked_at = json_text(self._ended)
            if self._outer:
                looked_at = json_text([*self._ended, *self._outer])
            self._ended.clear()
            self._outer.clear()
            self._settle(tx, counted, looked_at)

    def _settle(self, tx: Transaction, counted: str, looked_at: str) -> None:
        """Rows that have ended, and those of whose workflows it is to be seen whether they have."""
        if not tx.change(sql.COUNT_ENDED_STEPS, counted, tx.now_ms, tx.number) and counted is looked_at:
            return
        if self.expansion.wanted:
            self.expansion.cancel_alone(tx, counted)
        if self.subworkflows.wanted:
            for number in self.subworkflows.left_alone(tx, counted):
                self._stop(tx, number, None)
        undone = 0
        if self.compensation.wanted:
            self.compensation.begin(tx, looked_at)
            undone = self.compensation.end(tx, looked_at)
        n = undone + tx.change(sql.END_IF_NOTHING_IS_OPEN, looked_at, tx.now_ms, tx.number, SAID_OF_STEP)
        if not n:
            return
        tx.count(WORKFLOWS, RUNNING, -n)
        ended = _decode_ended(tx.run(sql.ENDED_BY, looked_at, tx.number)[0][0])
        for _, state, *_ in ended:
            tx.count(WORKFLOWS, state)
        self._jobs.publish(tx, lambda: [one for one, *_ in ended])
        parents = [parent for *_, parent in ended if parent is not None]
        if parents:
            self.subworkflows.ended(tx, parents)
            tx.on_rollback(self._outer.clear)
            self._outer += parents
        checkpoints, numbers = self._jobs.checkpoints, [number for _, _, number, *_ in ended]
        tx.on_commit(lambda: checkpoints.paused.difference_update(numbers))
        checkpoints.ended(tx, numbers)
        stopped = [number for _, _, number, asked, _ in ended if asked]
        for child in checkpoints.open_children(tx, stopped) if stopped else ():
            self._stop(tx, child, None)

    def prepare(self, tx: Transaction, seqs: list[int]) -> tuple[dict[int, str], set[int]]:
        """The turn of these steps has come: fill in what they refer to. Answers those that are not to run, with the reason, and
        those that do not run themselves: others do in their place."""
        payloads: list[tuple[int, str]] = []
        skipped: list[int] = []
        reasons: dict[int, str] = {}
        expanded: list[Expanded] = []
        begun: list[Begun] = []
        whole: list[int] = []
        children: list[int] = []
        for row in tx.run(sql.TO_PREPARE, json_text(seqs)):
            turn = Turn(*row)
            seq, template, condition = turn.seq, turn.template, turn.condition
            if turn.items is not None:
                (whole if turn.kind == "for_each" else children).append(seq)
                continue
            said = about(turn.workflow, turn.workflow_name, turn.schedule, turn.scheduled_for)
            try:
                steps = {**(_decode(turn.kept) if turn.kept else {}), **_decode(turn.outputs or "{}")}
                known = Known(_decode(turn.input), said, steps)
                if condition is not None and not references.holds(references.parse_condition(condition), known):
                    skipped.append(seq)
                    reasons[seq] = f"skipped: {condition} does not hold"
                elif turn.kind == "workflow":
                    begun.append(self.subworkflows.begin(tx, turn, known))
                elif turn.kind is not None:
                    expanded.append(self.expansion.expand(turn, known))
                    if not expanded[-1].jobs:
                        whole.append(seq)
                elif template is not None:
                    payload = json_text(references.fill(_decode(template), known))
                    if len(payload.encode()) > self._max_payload_bytes:
                        raise BadReference(
                            f"the payload would be over the limit max_payload_bytes = {self._max_payload_bytes:,}"
                        )
                    payloads.append((seq, payload))
            except (MiniFlowError, RecursionError) as exc:  # outputs may be nested as deeply as JSON can be
                reasons[seq] = f"step {turn.name} cannot begin: {exc}"
        if payloads:
            tx.run(sql.SET_PAYLOAD_IF_PENDING, json_text(payloads))
        if skipped:
            tx.run(sql.MARK_SKIPPED, json_text(skipped))
        if expanded:
            self.expansion.insert(tx, expanded)
        if begun:
            self.subworkflows.insert(tx, begun)
        if whole:
            reasons |= self.expansion.collect(tx, whole)
        if children:
            reasons |= self.subworkflows.collect(tx, children)
        return reasons, {one.turn.seq for one in expanded}.union((one.turn.seq for one in begun), whole, children)

    # ------------------------------------------------------------------------------------------------------------- verbs

    def cancel(self, workflow_id: str) -> Callable[[Transaction], str]:
        """Its steps are cancelled: those that wait at once, those that run when they have stopped, and with the last of them the
        workflow. TransitionRefused if it has ended otherwise. Returns the state it is in then."""

        def verb(tx: Transaction) -> str:
            found = self._find(tx, workflow_id)
            number, state = found.number, found.state
            if state == CANCELLED or (found.undoing_at is not None and found.cancel_requested_at is not None):
                return state
            if state != RUNNING:
                raise TransitionRefused(workflow_id, "cancel", state, kind="workflow")
            if found.undoing_at is not None:
                remedy = "what it did is being undone; a job of that can be cancelled by itself"
                raise TransitionRefused(workflow_id, "cancel", "compensating", remedy, "workflow")
            self._stop(tx, number, None)
            self._jobs.dependencies.settle(tx)
            self.settle(tx)
            return str(tx.run(sql.WORKFLOW_STATE, workflow_id)[0][1])

        return verb

    def _stop(self, tx: Transaction, number: int, error: str | None) -> None:
        tx.on_commit(lambda: self._jobs.checkpoints.paused.discard(number))
        if error is None:
            tx.run(sql.REQUEST_CANCEL, number, tx.now_ms, tx.number)
        else:
            tx.run(sql.REQUEST_CANCEL_BECAUSE, number, tx.now_ms, tx.number, error)
        cancel_rows(self._jobs, tx, _decode_seqs(tx.run(sql.OPEN_STEPS, number)[0][0]))

    def retry(self, workflow_id: str) -> Callable[[Transaction], str]:
        """Run it on from where it failed: dead steps run again, cancelled ones wait again for those they need."""

        def verb(tx: Transaction) -> str:
            number, state, _, _, undoing_at, _ = self._find(tx, workflow_id)
            # All that may refuse comes before the first change.
            if state not in (FAILED, CANCELLED):
                remedy = "rerun it" if state == COMPLETED else "it has not failed yet"
                raise TransitionRefused(workflow_id, "retry", state, remedy, kind="workflow")
            self.subworkflows.check_alone(tx, number, workflow_id, state)
            lost = self._lost(tx, tx.run(sql.RUN_ON_WITH, number)[0][0])
            if lost is not None:
                whose = "" if lost[0] == number else f" of workflow {lost[1]}, which is a step of it,"
                raise TransitionRefused(
                    workflow_id, "retry", state, f"{lost[2]}{whose} is deleted; rerun it", "workflow"
                )
            if undoing_at is not None:
                self.compensation.forget(tx, number, workflow_id, state)
            # Some of it may end at once, so what waits is told when all of it runs again.
            self._jobs.dependencies.wait_again(tx, self._retry(tx, number))
            return RUNNING

        return verb

    def check_retry(self, tx: Transaction, seq: int, job_id: str, state: str) -> None:
        """TransitionRefused for a step of a workflow that could not end well any more: the job of another one is deleted."""
        lost = self._lost(tx, tx.run(sql.AROUND_STEP, seq)[0][0]) if self.any else None
        if lost is not None:
            raise TransitionRefused(job_id, "retry", state, f"{lost[2]} of workflow {lost[1]} is deleted; rerun that")

    @staticmethod
    def _lost(tx: Transaction, numbers: str) -> tuple[int, str, str] | None:
        """Of these workflows one of which a job is deleted: (number, id, what is deleted)."""
        for number, one, kind, definition, kept, here, less, _ in tx.run(sql.WITH_LOST_STEP, numbers):
            if kind == "function":
                return number, one, "the job"
            names = names_of(decode_definition(definition).steps)
            known = {*(_decode(kept) if kept else ()), *(names[idx] for idx in _decode(here))}
            gone = [name for name in names if name not in known]
            return (
                number,
                one,
                f"the job of the step {gone[0]}" if gone else f"the job of an item of the step {names[less]}",
            )
        return None

    def _retry(self, tx: Transaction, number: int) -> list[int]:
        """Answers the rows that are to wait again."""
        waiting: list[int] = []
        if self.subworkflows.wanted:
            for child in self.subworkflows.to_retry(tx, number):  # with them the steps that they are wait again
                waiting += self._retry(tx, child)
        rows = tx.run(sql.FAILED_STEPS, number)
        self._jobs.checkpoints.revive(tx, number, [seq for seq, *_ in rows])
        lost = [(seq, queue) for seq, of, queue in rows if of == State.CANCELLED]
        seqs = json_text([seq for seq, _ in lost])
        tx.run(sql.REVIVE_STEPS, seqs, tx.now_ms, tx.number)
        for _, queue in lost:
            tx.count(State.CANCELLED, queue, -1)
            tx.count(State.PENDING, queue)
        self._jobs.dependencies.replayed(tx, [seq for seq, _ in lost])
        self._jobs.replay(tx, [seq for seq, of, _ in rows if of == State.DEAD_LETTER])
        self.recount(tx, [seq for seq, *_ in rows])
        return waiting + [seq for seq, _ in lost]

    def pause(self, workflow_id: str) -> Callable[[Transaction], None]:
        """No further step becomes ready, nor one of a workflow that is a step of it; what is queued or runs goes on."""

        def verb(tx: Transaction) -> None:
            number, state, cancelled_at, *_ = self._find(tx, workflow_id)
            if state != RUNNING:
                raise TransitionRefused(workflow_id, "pause", state, kind="workflow")
            if cancelled_at is not None:
                raise TransitionRefused(workflow_id, "pause", state, "it is being cancelled", "workflow")
            numbers = [one for one, _ in self.subworkflows.whole(tx, number)]
            paused = [one for (one,) in tx.run(sql.PAUSE, json_text(numbers), tx.now_ms, tx.number)]
            tx.on_commit(lambda: self._jobs.checkpoints.paused.update(paused))

        return verb

    def resume(self, workflow_id: str) -> Callable[[Transaction], None]:
        """Steps whose turn came meanwhile become ready."""

        def verb(tx: Transaction) -> None:
            number, state, *_ = self._find(tx, workflow_id)
            if state != RUNNING:
                raise TransitionRefused(workflow_id, "resume", state, kind="workflow")
            whole = [one for one, _ in self.subworkflows.whole(tx, number)]
            numbers = json_text(whole)
            if tx.change(sql.RESUME, numbers, tx.now_ms, tx.number):
                tx.on_commit(lambda: self._jobs.checkpoints.paused.difference_update(whole))
                self._jobs.dependencies.release(tx, _decode_seqs(tx.run(sql.PENDING_STEPS, numbers)[0][0]))

        return verb

    def delete(self, workflow_id: str) -> Callable[[Transaction], None]:
        """Forget one that has ended, with its jobs and the workflows that are steps of it. TransitionRefused for one that has not
        ended, or that another job depends on."""

        def verb(tx: Transaction) -> None:
            number, state, *_ = self._find(tx, workflow_id)
            if state == RUNNING:
                raise TransitionRefused(workflow_id, "delete", state, "cancel it first", kind="workflow")
            self.subworkflows.check_delete(tx, number, workflow_id, state)
            whole = self.subworkflows.whole(tx, number)
            gone = [one for one, _ in whole]
            numbers = json_text(gone)
            seqs = tx.run(sql.ALL_STEPS, numbers)[0][0]
            counted = tx.run(job_sql.COUNT_ENDED, seqs)
            if sum(n for *_, n in counted) < len(_decode_seqs(seqs)):
                raise TransitionRefused(workflow_id, "delete", state, "another job depends on a step of it", "workflow")
            for of, queue, n in counted:
                tx.count(of, queue, -n)
            tx.change(job_sql.DELETE_IF_ENDED, seqs)
            tx.run(sql.DELETE_WORKFLOWS, numbers)
            tx.on_commit(lambda: self._jobs.checkpoints.paused.difference_update(gone))
            for _, of in whole:
                tx.count(WORKFLOWS, of, -1)

        return verb

    def recount(self, tx: Transaction, seqs: list[int]) -> None:
        """These rows had ended and run again: their workflows run again too."""
        if not seqs or not self.any:
            return
        self.settle(tx)
        rows = tx.run(sql.WORKFLOWS_OF, json_text(seqs))
        if not rows:
            return
        again = self.expansion.revive(tx, seqs)
        self._jobs.dependencies.replayed(tx, again)
        counted = tx.run(sql.RECOUNT, json_text([number for number, *_ in rows]), tx.now_ms, tx.number)
        paused = [number for number, paused_at in counted if paused_at is not None]
        tx.on_commit(lambda: self._jobs.checkpoints.paused.update(paused))
        self._jobs.checkpoints.run_again(tx, seqs)
        for _, state, undo, _ in rows:
            self.compensation.wanted |= bool(undo)
            tx.count(WORKFLOWS, state, -1)
            tx.count(WORKFLOWS, RUNNING)
        self._next_deadline_ms = 0  # one may have a new one
        # A step that was started anew has several: each step once.
        outer = sorted({parent for _, state, _, parent in rows if parent is not None and state != RUNNING})
        if outer:
            revived = self.subworkflows.revive(tx, outer)
            self._jobs.dependencies.replayed(tx, revived)  # before anything may end again in this transaction
            self.recount(tx, outer)
            again += revived
        self._jobs.dependencies.wait_again(tx, again)

    @staticmethod
    def _find(tx: Transaction, workflow_id: str) -> _Standing:
        """NotFound if there is none."""
        rows = tx.run(sql.WORKFLOW_STATE, workflow_id)
        if not rows:
            raise NotFound("workflow", workflow_id)
        return _Standing(*rows[0])

    def standing(self, tx: Transaction, workflow_id: str) -> tuple[int, str, str]:
        """(number, state, kind). NotFound if there is none."""
        found = self._find(tx, workflow_id)
        return found.number, found.state, found.kind

    # ---------------------------------------------------------------------------------------------------------- deadlines

    def expect(self, new: NewWorkflow, now_ms: int) -> None:
        """A new one is coming: what is to be looked at because of it."""
        self.compensation.wanted |= new.undoes
        self.expansion.wanted |= new.shape.expands
        self.subworkflows.wanted |= new.nests
        if new.timeout_ms is not None:
            self._next_deadline_ms = min(self._next_deadline_ms, now_ms + new.timeout_ms)

    def due_in_s(self) -> float:
        return (self._next_deadline_ms - self._clock.now_ms()) / 1000

    def load(self, tx: Transaction, ended: list[int]) -> None:
        """At start; ``ended`` are the rows that a dead process left running, and that have ended with it."""
        self.compensation.load(tx)
        self.expansion.load(tx)
        self._jobs.checkpoints.load(tx)
        self.subworkflows.load(tx)
        self.ended(tx, ended)
        self.settle(tx)
        self.look(tx)

    def look(self, tx: Transaction) -> None:
        """Read from the file when the next one is over."""
        next_ms = tx.run(sql.NEXT_DEADLINE)[0][0]
        self._next_deadline_ms = math.inf if next_ms is None else next_ms

    def shift(self, tx: Transaction, jump_ms: int) -> None:
        """The clock was set: a timeout is a length of time, and goes on as long as it was meant to."""
        tx.run(sql.SHIFT_DEADLINES, jump_ms)
        self.look(tx)

    def stop_overdue(self, tx: Transaction) -> None:
        """Those whose time is over have failed; what is left of them is cancelled."""
        if self._next_deadline_ms > tx.now_ms:
            return
        tx.on_rollback(lambda: setattr(self, "_next_deadline_ms", 0))
        # What has ended in this transaction has ended, and with it what stands for it.
        self._jobs.dependencies.settle(tx)
        self.settle(tx)
        for number, timeout_ms in tx.run(sql.OVERDUE, tx.now_ms, OVERDUE_MAX):
            self._stop(tx, number, f"it took longer than its timeout of {timeout_ms / 1000:g} s")
            tx.run(sql.FORGET_DEADLINE, number)
        self.look(tx)
