"""Steps that are workflows themselves: each starts a definition that is kept under a name, or a durable function.

The job of such a step only stands for the workflow, as that of ``for_each`` does for its items. When its turn comes the workflow
is started in that transaction, and counted beside the steps of the one that it is a step of, so that one does not end before it.
The transaction in which it ends is the one in which the step ends: completed, with what the workflow returns, or not, with the
reason. Who stops the whole stops it too: when the job that stands for it is cancelled, for whatever reason, it is cancelled.

A retry of the whole retries it; where it has undone what it did, it is started anew, as it was defined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from miniflow import references
from miniflow import subworkflow_statements as sql
from miniflow import workflow_statements as workflow_sql
from miniflow.errors import InvalidRequest, TransitionRefused
from miniflow.expansion import Turn
from miniflow.expansion_statements import ADD_BESIDE, SET_ITEMS
from miniflow.function_intake import FunctionSubmission
from miniflow.references import BadReference, Known
from miniflow.states import State
from miniflow.workflow_catalog import Kept
from miniflow.workflow_graph import Step, WorkflowSubmission, decode_definition, decode_step, said_of_child
from miniflow.workflow_intake import NewWorkflow, Slot, about
from miniflow.writer import Transaction, json_text

if TYPE_CHECKING:
    from miniflow.function_intake import FunctionIntake
    from miniflow.jobs import Jobs
    from miniflow.workflow_intake import WorkflowIntake

WHATEVER_WAITS = -1
"""For ``Submitting.refusal``: what belongs to a workflow that was accepted is not refused for what waits."""

_decode = msgspec.json.Decoder().decode
_decode_before = msgspec.json.Decoder(tuple[int | None, msgspec.Raw]).decode


class Child(NamedTuple):
    """A step and its workflow: a row of ``subworkflow_statements.CHILDREN``. ``seq``, ``job``, ``queue`` and ``task`` are of the
    job that stands for it; the rest is None if the workflow is deleted."""

    seq: int
    job: str
    queue: str
    task: str
    id: str | None
    name: str
    state: str
    error: str | None
    output: str | None
    input: str
    kept: str | None
    schedule: str | None
    scheduled_for: int | None
    outputs: str | None


class Begun(NamedTuple):
    """A step whose workflow begins."""

    turn: Turn
    new: NewWorkflow
    input: str


class Subworkflows:
    def __init__(self, jobs: Jobs, *, max_payload_bytes: int, max_result_bytes: int) -> None:
        self._jobs, self._max_payload_bytes, self._max_result_bytes = jobs, max_payload_bytes, max_result_bytes
        self.intake: WorkflowIntake | None = None
        self.functions: FunctionIntake | None = None
        self.wanted = False
        """Whether there may be such steps. While there are none they cost nothing."""

    def load(self, tx: Transaction) -> None:
        self.wanted = bool(tx.run(sql.ANY_SUBWORKFLOW)[0][0])

    # ------------------------------------------------------------------------------------------------------------ beginning

    def begin(self, tx: Transaction, turn: Turn, known: Known) -> Begun:
        """The workflow of a step whose turn has come. BadReference, and what a start raises, if that cannot be."""
        assert self.intake is not None
        step: Step = decode_step(turn.step or "{}")
        given = turn.payload or "null"
        if turn.template is not None:
            given = json_text(references.fill(_decode(turn.template), known))
        if len(given.encode()) > self._max_payload_bytes:
            raise BadReference(f"the input would be over the limit max_payload_bytes = {self._max_payload_bytes:,}")
        wanted = WorkflowSubmission(
            definition=step.workflow,
            input=msgspec.Raw(given.encode()),
            timeout=step.timeout,
            meta=step.meta,
            description=step.description,
        )
        slot = None
        if turn.schedule is not None and turn.scheduled_for is not None:
            slot = Slot(turn.schedule, turn.scheduled_for)
        try:
            new = self._new(turn, wanted, slot)
        except InvalidRequest as exc:  # its path is one of that workflow
            raise BadReference(f"workflow {step.workflow}: {exc}") from None
        refusal = self._jobs.submitting.refusal(tx, new.jobs, WHATEVER_WAITS)
        if refusal is not None:
            raise refusal
        return Begun(turn, new, given)

    def _new(self, turn: Turn, wanted: WorkflowSubmission, slot: Slot | None) -> NewWorkflow:
        assert self.intake is not None
        name = wanted.definition or ""
        if turn.before is not None:  # it is started anew, as it was defined then
            version, text = _decode_before(turn.before)
            of = Kept(name, version, decode_definition(bytes(text).decode()))
            return self.intake.workflow(wanted, request_id=turn.request_id, of=of, slot=slot, parent=turn.seq)
        if self.functions is not None and self.functions.knows(name):
            asked = FunctionSubmission(
                workflow=name,
                input=wanted.input,
                timeout=wanted.timeout,
                meta=wanted.meta,
                description=wanted.description,
            )
            return self.functions.run(asked, request_id=turn.request_id, slot=slot, parent=turn.seq)
        return self.intake.workflow(wanted, request_id=turn.request_id, slot=slot, parent=turn.seq)

    def insert(self, tx: Transaction, begun: list[Begun]) -> None:
        """Write the workflows, and which steps they are."""
        tx.run(workflow_sql.SET_PAYLOAD_IF_PENDING, json_text([(one.turn.seq, one.input) for one in begun]))
        tx.run(SET_ITEMS, json_text([(one.turn.seq, 1) for one in begun]))
        beside: dict[str, int] = {}
        for one in begun:
            beside[one.turn.workflow] = beside.get(one.turn.workflow, 0) + 1
        tx.run(ADD_BESIDE, json_text(list(beside.items())), tx.now_ms, tx.number)
        self._jobs.workflows.starting.add(tx, [one.new for one in begun])

    # --------------------------------------------------------------------------------------------------------------- ending

    def ended(self, tx: Transaction, parents: list[int]) -> None:
        """The workflows of these steps have ended, and so do the steps."""
        tx.run(sql.COUNT_ENDED_CHILDREN, json_text(parents), tx.now_ms, tx.number)
        self._jobs.dependencies.release(tx, parents)
        self._jobs.dependencies.settle(tx)

    def collect(self, tx: Transaction, seqs: list[int]) -> dict[int, str]:
        """Of these steps those whose workflows have ended: completed with what it returns, but for those that are answered, with
        the reason."""
        reasons: dict[int, str] = {}
        well: list[tuple[Child, str]] = []
        for row in tx.run(sql.CHILDREN, json_text(seqs)):
            child = Child(*row)
            if child.id is None:
                reasons[child.seq] = "its workflow is deleted"
            elif child.state == "completed":
                try:
                    well.append((child, self._output(child)))
                except BadReference as exc:
                    reasons[child.seq] = f"the output of workflow {child.name} {child.id} cannot be made: {exc}"
            elif child.state != "running":
                reasons[child.seq] = said_of_child(child.name, child.id, child.state, child.error)
        if well:
            rows = json_text([(child.seq, output) for child, output in well])
            tx.run(sql.RETURN_IF_PENDING, rows, tx.now_ms, tx.number)
            self._jobs.workflows.expansion.completed(tx, [child[:4] for child, _ in well])
        return reasons

    def outcomes(self, tx: Transaction, numbers: list[int]) -> list[tuple[int, str | None, str | None]]:
        """Of workflows that have ended well, and are no steps: [(number, what it returns, or else why it returns nothing)]."""
        found: list[tuple[int, str | None, str | None]] = []
        for row in tx.run(sql.OUTCOMES, json_text(numbers)):
            child = Child(*row)
            try:
                found.append((child.seq, self._output(child), None))
            except BadReference as exc:
                found.append((child.seq, None, f"its output cannot be made: {exc}"))
        return found

    def _output(self, child: Child) -> str:
        """What it returns: its output, or else those of all its steps by their names. BadReference if that cannot be made."""
        steps = {**(_decode(child.kept) if child.kept else {}), **_decode(child.outputs or "{}")}
        value = steps
        if child.output is not None:
            said = about(child.id or "", child.name, child.schedule, child.scheduled_for)
            value = references.fill(_decode(child.output), Known(_decode(child.input), said, steps))
        output = json_text(value)
        if len(output.encode()) > self._max_result_bytes:
            raise BadReference(f"it is over the limit max_result_bytes = {self._max_result_bytes:,}")
        return output

    def left_alone(self, tx: Transaction, seqs: str) -> list[int]:
        """The numbers of the workflows that go on though the job that stood for them has ended."""
        return [number for (number,) in tx.run(sql.LEFT_ALONE, seqs)]

    # ---------------------------------------------------------------------------------------------------------- running again

    def revive(self, tx: Transaction, parents: list[int]) -> list[int]:
        """The workflows of these steps run again: what was cancelled of the steps waits again, and is answered."""
        rows = tx.run(sql.CANCELLED_OF, json_text(parents))
        tx.run(workflow_sql.REVIVE_STEPS, json_text([seq for seq, _ in rows]), tx.now_ms, tx.number)
        for _, queue in rows:
            tx.count(State.CANCELLED, queue, -1)
            tx.count(State.PENDING, queue)
        return [seq for seq, _ in rows]

    def to_retry(self, tx: Transaction, number: int) -> list[int]:
        """The numbers of the workflows that run again with the one whose steps they are. Those that cannot, since they are
        deleted or have undone what they did, are started anew when the turn of their steps comes."""
        again, anew = [], []
        for seq, child, child_id, undoing_at, undone in tx.run(sql.FAILED_CHILDREN, number):
            if child is None or undone:
                anew.append(seq)
                continue
            if undoing_at is not None:
                self._jobs.workflows.compensation.forget(tx, child, child_id, "failed")
            again.append(child)
        if anew:
            tx.run(sql.BEGIN_ANEW, json_text(anew))
        return again

    def check_retry(self, tx: Transaction, seq: int, job_id: str, state: str) -> None:
        """TransitionRefused for a job that stands for a workflow: that is what may run again."""
        if self.wanted and (rows := tx.run(sql.BEGUN_STEP, seq)):
            raise TransitionRefused(job_id, "retry", state, f"it stands for a workflow; retry workflow {rows[0][0]}")

    def check_alone(self, tx: Transaction, number: int, workflow_id: str, state: str) -> None:
        """TransitionRefused for the retry of a workflow that is a step of another one."""
        if self.wanted and (rows := tx.run(sql.PARENT_OF, number)):
            outer, _, name = rows[0]
            remedy = f"it is the step {name} of workflow {outer}; retry that"
            raise TransitionRefused(workflow_id, "retry", state, remedy, "workflow")

    def check_delete(self, tx: Transaction, number: int, workflow_id: str, state: str) -> None:
        """TransitionRefused while the one that it is a step of has not ended: what it returned may be wanted."""
        if self.wanted and (rows := tx.run(sql.PARENT_OF, number)) and rows[0][1] == "running":
            outer, _, name = rows[0]
            remedy = f"it is the step {name} of workflow {outer}, which has not ended"
            raise TransitionRefused(workflow_id, "delete", state, remedy, "workflow")

    def whole(self, tx: Transaction, number: int) -> list[tuple[int, str]]:
        """[(number, state)] of a workflow, and of all those that its steps are, and so on."""
        return [(one, state) for one, state in tx.run(sql.WITH_ALL, number)]
