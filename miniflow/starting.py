"""How workflows come into the file: all that a group starts is a few statements, however many there are.

As with jobs (``submitting``), an idempotency key is looked up and taken in the same transaction, and limits are checked before a
row is written.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from miniflow import workflow_statements as sql
from miniflow.errors import IdempotencyConflict, ShuttingDown
from miniflow.model import Accepted
from miniflow.operations import Operation
from miniflow.trace_statements import SET_TRACEPARENTS
from miniflow.workflow_intake import NewWorkflow
from miniflow.writer import Transaction, Writer, json_text

if TYPE_CHECKING:
    from miniflow.jobs import Jobs
    from miniflow.workflows import Workflows

WORKFLOWS = "workflows"
"""The counter of workflows by state."""
RUNNING = "running"


class Starting:
    def __init__(self, jobs: Jobs, workflows: Workflows, writer: Writer) -> None:
        self._jobs, self._workflows = jobs, workflows
        writer.handle("workflow", self.insert)

    def insert(self, tx: Transaction, ops: list[Operation]) -> None:
        """Each operation has a NewWorkflow and gets an Accepted."""
        if not self._jobs.accepting:
            for op in ops:
                op.error = ShuttingDown()
            return
        keys = [op.argument.key for op in ops if op.argument.key is not None]
        in_use = (
            {key: (one, mark) for key, one, mark in tx.run(sql.WORKFLOW_KEYS_IN_USE, json_text(keys))} if keys else {}
        )
        waiting = self._jobs.submitting.waiting()
        fresh: list[NewWorkflow] = []
        for op in ops:
            new: NewWorkflow = op.argument
            first = in_use.get(new.key) if new.key is not None else None
            if first is not None:
                if first[1] == new.fingerprint:
                    op.value = Accepted(first[0], True)
                else:
                    op.error = IdempotencyConflict(new.key or "", first[0], "workflow")
                continue
            op.error = self._jobs.submitting.refusal(tx, new.jobs, waiting)
            if op.error is not None:
                continue
            op.value = Accepted(new.id, False)
            if new.key is not None:
                in_use[new.key] = (new.id, new.fingerprint)
            fresh.append(new)
            waiting += len(new.jobs)
        if fresh:
            self.add(tx, fresh)

    def add(self, tx: Transaction, fresh: list[NewWorkflow]) -> None:
        """Insert workflows that nothing speaks against: their keys, and the limits of their jobs, have been looked at."""
        tx.insert(sql.INSERT_WORKFLOWS, [new.row_at(tx.now_ms) for new in fresh], tx.now_ms, tx.number)
        number = tx.first_of(len(fresh))
        traced = [(new.id, new.traceparent) for new in fresh if new.traceparent is not None]
        if traced:
            tx.run(SET_TRACEPARENTS, json_text(traced))
        tx.count(WORKFLOWS, RUNNING, len(fresh))
        self._expect(tx, fresh)
        seq = self._jobs.submitting.write(tx, [job for new in fresh for job in new.jobs])
        steps: list[tuple[int | str | None, ...]] = []
        edges: list[tuple[int, int, str, int]] = []
        loose: list[int] = []
        for new in fresh:
            shape = new.shape
            steps += [(seq + place, number, *step) for place, *step in shape.steps]
            edges += [(seq + parent, seq + child, kind, idx) for parent, child, kind, idx in shape.edges]
            loose += [seq + place for place in shape.loose]
            seq += len(new.jobs)
            number += 1
        tx.insert(sql.ADD_STEPS, steps)
        self._jobs.dependencies.add_new_edges(tx, edges)
        self._jobs.dependencies.release(tx, loose)

    def _expect(self, tx: Transaction, fresh: list[NewWorkflow]) -> None:
        """New workflows are coming: what is counted of them, and what is to be looked at when."""
        for shape, times in Counter([new.shape for new in fresh]).items():
            self._jobs.submitting.expect(tx, shape.tally, times)
        for new in fresh:
            self._workflows.expect(new, tx.now_ms)
