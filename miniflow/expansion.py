"""Steps that are carried out as several jobs: ``for_each``.

The job of such a step only stands for them. When its turn comes, a job for each item of the list is made in that transaction, and
an edge from each to the one that stands for them; so it waits for them as any job waits for others. The transaction in which the
last of them ends is the one in which it is its turn again: then it is completed, without a worker, with what they returned, in
order; or it has failed with them, which for a row that never ran is ``cancelled``.

What is asked to run again are the items that did not end well, and the step waits for them again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from miniflow import expansion_statements as sql
from miniflow import references
from miniflow import workflow_statements as workflow_sql
from miniflow.cancelling import cancel_rows
from miniflow.model import Accepted, NewJob, Waits
from miniflow.references import Known
from miniflow.stand_ins import SUBWORKFLOW
from miniflow.states import State
from miniflow.workflow_graph import STEPS_MAX, Step, as_items, decode_step
from miniflow.writer import Transaction, json_text

if TYPE_CHECKING:
    from miniflow.jobs import Jobs
    from miniflow.workflow_intake import WorkflowIntake

SAID_OF_ITEM = "%s %s%s"
EDGES_FROM = STEPS_MAX
"""The edges of items come after those of the steps that are needed."""

_decode = msgspec.json.Decoder().decode
_decode_seqs = msgspec.json.Decoder(list[int]).decode


class Turn(NamedTuple):
    """The turn of a step has come: a row of ``workflow_statements.TO_PREPARE``."""

    seq: int
    id: str
    name: str
    idx: int
    kind: str | None
    items: int | None
    step: str | None
    template: str | None
    condition: str | None
    payload: str | None
    workflow: str
    workflow_name: str
    schedule: str | None
    scheduled_for: int | None
    request_id: str | None
    input: str
    kept: str | None
    outputs: str | None
    before: str | None


class Expanded(NamedTuple):
    """A step and the jobs that it stands for."""

    turn: Turn
    jobs: list[NewJob]


class Expansion:
    def __init__(self, jobs: Jobs, *, max_result_bytes: int) -> None:
        self._jobs, self._max_result_bytes = jobs, max_result_bytes
        self.intake: WorkflowIntake | None = None
        self.wanted = False
        """Whether there may be steps that stand for others."""

    def load(self, tx: Transaction) -> None:
        self.wanted = bool(tx.run(sql.ANY_EXPANDED)[0][0])

    def expand(self, turn: Turn, known: Known) -> Expanded:
        """The jobs for the items. BadReference, and what a submit raises, if that cannot be."""
        assert self.intake is not None
        step: Step = decode_step(turn.step or "{}")
        items = as_items(references.fill(step.for_each, known))
        payload = _decode(step.given)
        jobs: list[NewJob] = []
        for n, item in enumerate(items):
            filled = json_text(references.fill(payload, known._replace(own={"item": item, "index": n})))
            job = self.intake.item(step, msgspec.Raw(filled.encode()), turn.request_id)
            if step.max_parallel is not None and n >= step.max_parallel:  # in as many lanes
                job.row[4] = State.PENDING
                waits = Waits((jobs[n - step.max_parallel].id,), "all")
                job = job._replace(state=State.PENDING, waits=waits)
            jobs.append(job)
        return Expanded(turn, jobs)

    def insert(self, tx: Transaction, expanded: list[Expanded]) -> None:
        """Write what the steps stand for, and that they wait for it."""
        jobs = [job for one in expanded for job in one.jobs]
        tx.run(sql.SET_ITEMS, json_text([(one.turn.seq, len(one.jobs)) for one in expanded]))
        if not jobs:
            return
        seq = self._jobs.submitting.add(tx, jobs)
        rows, edges, beside = [], [], Counter[str]()
        for turn, made in expanded:
            beside[turn.workflow] += len(made)
            for n, job in enumerate(made):
                kind = "workflow" if job.task == SUBWORKFLOW else None
                rows.append([job.id, turn.workflow, turn.idx, f"{turn.name}[{n}]", None, None, None, "item", kind])
                edges.append((job.id, turn.id, "all", EDGES_FROM + n))
        tx.run(workflow_sql.INSERT_STEPS, json_text(rows))
        tx.run(sql.ADD_BESIDE, json_text(list(beside.items())), tx.now_ms, tx.number)
        accepted = [Accepted(job.id) for job in jobs]
        self._jobs.dependencies.insert(tx, [(job, accepted) for job in jobs if job.waits is not None])
        self._jobs.dependencies.add_edges(tx, edges)
        # Workflows: they wait for nothing but to be started.
        first = [seq + n for n, job in enumerate(jobs) if job.task == SUBWORKFLOW and job.waits is None]
        self._jobs.dependencies.release(tx, first)

    def collect(self, tx: Transaction, seqs: list[int]) -> dict[int, str]:
        """All items of these steps have ended, and so do they: completed, but for those that are answered, with the reason."""
        reasons: dict[int, str] = {}
        well = []
        for seq, name, job_id, queue, task, items, done, size, bad in tx.run(
            sql.ITEMS_OF, json_text(seqs), SAID_OF_ITEM
        ):
            limit = self._max_result_bytes
            if done < items:
                reasons[seq] = f"{items - done} of {items} items did not end well: {bad}"
            elif (size or 0) > limit:
                reasons[seq] = f"what the items of step {name} returned is over the limit max_result_bytes = {limit:,}"
            else:
                well.append((seq, job_id, queue, task))
        if not well:
            return reasons
        tx.run(sql.COLLECT_IF_PENDING, json_text([seq for seq, *_ in well]), tx.now_ms, tx.number)
        self.completed(tx, well)
        return reasons

    def completed(self, tx: Transaction, rows: list[tuple[int, str, str, str]]) -> None:
        """These pending rows, [(seq, id, queue, task)], were just completed without a worker."""
        for (queue, task), n in Counter((queue, task) for *_, queue, task in rows).items():
            tx.count(State.PENDING, queue, -n)
            tx.count(State.COMPLETED, queue, n)
            tx.count("finished", task, n)
        self._jobs.publish(tx, lambda: [job_id for _, job_id, *_ in rows])
        self._jobs.ended(tx, [seq for seq, *_ in rows])

    def cancel_alone(self, tx: Transaction, seqs: str) -> None:
        """With the job of a step that somebody cancelled go the items that it stands for."""
        left = _decode_seqs(tx.run(sql.LEFT_ALONE, seqs)[0][0])
        if left:
            cancel_rows(self._jobs, tx, left)

    def revive(self, tx: Transaction, seqs: list[int]) -> list[int]:
        """Items run again, so what stands for them waits again: the rows that this is true of."""
        rows = tx.run(sql.CANCELLED_STAND_INS, json_text(seqs)) if self.wanted else []
        if rows:
            tx.run(workflow_sql.REVIVE_STEPS, json_text([seq for seq, _ in rows]), tx.now_ms, tx.number)
        for _, queue in rows:
            tx.count(State.CANCELLED, queue, -1)
            tx.count(State.PENDING, queue)
        return [seq for seq, _ in rows]
