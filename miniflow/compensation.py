"""Undoing what a workflow did that did not end well.

When its last step has ended and the whole has failed, or was cancelled, or took too long, the compensations of the steps that had
ended well are made into jobs: in the transaction of that end, in the reverse order of completion, each waiting for the one before
whatever became of that, and ``on_failure`` after them. Until the last of them has ended the workflow is running still, and
*compensating*. One that does not end well keeps none of the others from running; the error of the workflow names it.

What is undone is not done any more, so such a workflow is not retried; a compensation that has failed can be, like any job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from miniflow import compensation_statements as sql
from miniflow import references
from miniflow import workflow_statements as workflow_sql
from miniflow.errors import MiniFlowError, TransitionRefused
from miniflow.model import Accepted, NewJob, Waits
from miniflow.references import Known
from miniflow.states import State
from miniflow.workflow_graph import Work, as_items, decode_definition, names_of
from miniflow.workflow_intake import about
from miniflow.writer import Transaction, json_text

if TYPE_CHECKING:
    from miniflow.jobs import Jobs
    from miniflow.workflow_intake import WorkflowIntake

SAID_OF_STEP = "step %s %s%s"
SAID_OF_COMPENSATION = "%s is %s%s"
ON_FAILURE = "on_failure"

_decode = msgspec.json.Decoder().decode


class _Failed(NamedTuple):
    """A row of ``compensation_statements.TO_UNDO``."""

    number: int
    id: str
    name: str
    input: str
    kept: str | None
    definition: str
    request_id: str | None
    error: str | None
    cancelled: int
    schedule: str | None
    scheduled_for: int | None
    step: str | None


class _Undo(NamedTuple):
    """Something to be run: what, as what, and what it can refer to of its own."""

    idx: int
    name: str
    role: str
    work: Work
    own: dict[str, Any]


class Compensation:
    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self.intake: WorkflowIntake | None = None
        self.wanted = False
        """Whether a workflow may have something to undo. One that has costs the others two statements when steps end."""

    def load(self, tx: Transaction) -> None:
        self.wanted = bool(tx.run(sql.ANY_TO_UNDO)[0][0])

    def begin(self, tx: Transaction, seqs: str) -> None:
        """Begin to undo those of the workflows of these rows that have come to a bad end."""
        for row in tx.run(sql.TO_UNDO, seqs, SAID_OF_STEP):
            self._begin(tx, _Failed(*row))

    def _begin(self, tx: Transaction, failed: _Failed) -> None:
        definition = decode_definition(failed.definition)
        names, outputs, plan = names_of(definition.steps), _decode(failed.kept) if failed.kept else {}, []
        for idx, name, role, kind, skipped, result, child in tx.run(sql.DONE_STEPS, failed.number):
            if child is not None:
                ((_, result, _),) = self._jobs.workflows.subworkflows.outcomes(tx, [child])
            output = None if result is None else _decode(result)
            if role == "step":
                outputs[names[idx]] = output
            work = definition.steps[idx].compensate
            if work is None or skipped or kind == "for_each":  # of that its items are undone
                continue
            own = {"output": output}
            if role == "item":
                own["index"] = int(name.rpartition("[")[2].rstrip("]"))
            plan.append(_Undo(idx, name, "undo", work, own))
        if definition.on_failure is not None:
            plan.append(_Undo(len(names), ON_FAILURE, ON_FAILURE, definition.on_failure, {}))
        if not plan:
            return
        step, said = _decode(failed.step) if failed.step else (None, None)
        cause = failed.error or (None if failed.cancelled else said)
        workflow = {
            **about(failed.id, failed.name, failed.schedule, failed.scheduled_for),
            "error": cause or "the workflow was cancelled",
            "status": "failed" if cause else "cancelled",
            "failed_step": step if cause and not failed.error else None,
        }
        given = _decode(failed.input)
        lists: dict[int, list[Any]] = {}
        jobs: list[NewJob] = []
        rows: list[list[Any]] = []
        for undo in plan:
            known = Known(given, workflow, outputs, undo.own)
            try:
                if "index" in undo.own:
                    if undo.idx not in lists:
                        lists[undo.idx] = as_items(references.fill(definition.steps[undo.idx].for_each, known))
                    undo.own["item"] = lists[undo.idx][undo.own["index"]]
                job = self._job(tx, undo, known, failed.request_id, jobs)
            except (
                MiniFlowError,
                RecursionError,
            ) as exc:  # its task is gone, or it refers to what is not there, or too deep
                what = undo.role if undo.role == ON_FAILURE else f"the compensation of step {undo.name}"
                cause = f"{cause or 'it was cancelled'}; {what} cannot begin: {exc}"
                continue
            jobs.append(job)
            rows.append([job.id, failed.id, undo.idx, undo.name, None, None, None, undo.role])
        tx.run(sql.BEGIN_UNDOING, failed.number, tx.now_ms, tx.number, cause, len(jobs))
        self._insert(tx, jobs, rows)

    def _job(self, tx: Transaction, undo: _Undo, known: Known, request_id: str | None, before: list[NewJob]) -> NewJob:
        assert self.intake is not None
        payload = references.fill(_decode(undo.work.payload), known)
        job = self.intake.work(undo.work, msgspec.Raw(json_text(payload).encode()), request_id)
        refusal = self._jobs.submitting.refusal(tx, [job], -1)  # what undoes is not refused for what waits
        if refusal is not None:
            raise refusal
        job.row[4] = State.PENDING
        waits = Waits((before[-1].id,), "all") if before else None
        return job._replace(state=State.PENDING, waits=waits)

    def _insert(self, tx: Transaction, jobs: list[NewJob], rows: list[list[Any]]) -> None:
        if not jobs:
            return
        first = self._jobs.submitting.add(tx, jobs)
        tx.run(workflow_sql.INSERT_STEPS, json_text(rows))
        accepted = [Accepted(job.id) for job in jobs]
        self._jobs.dependencies.insert(tx, [(job, accepted) for job in jobs[1:]])
        self._jobs.dependencies.release(tx, [first])

    def end(self, tx: Transaction, seqs: str) -> int:
        """End those of which all is undone; how many."""
        return tx.change(sql.END_UNDONE, seqs, tx.now_ms, tx.number, SAID_OF_COMPENSATION)

    def check_retry(self, tx: Transaction, seq: int, job_id: str, state: str) -> None:
        """TransitionRefused for a step that cannot run again by itself: those before it are undone, or on_failure has run."""
        for undone, of in tx.run(sql.WHY_UNDONE, seq) if self._jobs.workflows.any else ():
            remedy = "its workflow has undone what it did; retry or rerun that"
            if not undone:
                remedy = "the on_failure of its workflow has run; retry the workflow"
                if of == "running":
                    remedy = "the on_failure of its workflow runs; retry the workflow when that has ended"
            raise TransitionRefused(job_id, "retry", state, remedy)

    def forget(self, tx: Transaction, number: int, workflow_id: str, state: str) -> None:
        """Before a retry. TransitionRefused for a workflow with a step that is undone."""
        if tx.run(sql.HAS_UNDONE, number)[0][0]:
            raise TransitionRefused(workflow_id, "retry", state, "what its steps did is undone; rerun it", "workflow")
        tx.run(sql.FORGET_UNDOING, number)
