"""The verbs that only huey's own interface has: they move jobs by the rules of ``jobs``, each in one transaction."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from miniflow import huey_statements as sql
from miniflow import statements as core
from miniflow.attempts import Claimed
from miniflow.errors import MiniFlowError, TransitionRefused
from miniflow.jobs import Jobs
from miniflow.model import NewJob
from miniflow.operations import Operation
from miniflow.states import State
from miniflow.writer import Transaction, json_text

Parent = tuple[str, int, str, str]
"""[child's id, idx, parent's id, kind]"""


class HueyVerbs:
    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def take_due(self, until_ms: int) -> Callable[[Transaction], list[Claimed]]:
        """Claim what is due at ``until_ms``, the earliest first: huey's scheduler enqueues it, or a test runs it."""

        def verb(tx: Transaction) -> list[Claimed]:
            jobs, lease = self._jobs, self._jobs.claims.next_lease()
            due = tx.run(sql.DUE_UNTIL, until_ms)
            seqs = json_text([seq for seq, *_ in due])
            tx.run(sql.LEASE_IF_WAITING, seqs, lease, jobs.turn(tx), tx.now_ms, tx.number)
            for _, queue, state in due:
                tx.count(state, queue, -1)
                tx.count(State.QUEUED, queue)
            order = {seq: place for place, (seq, *_) in enumerate(due)}
            return sorted(jobs.claims.taken(tx, lease), key=lambda claimed: order[claimed.seq]) if due else []

        return verb

    def give_back(self, claimed: Claimed) -> Callable[[Transaction], None]:
        """A claimed row that nobody has begun is ready again, at the end of the queue."""

        def verb(tx: Transaction) -> None:
            self._jobs.rules.gates.let_go(tx, [claimed.seq])
            tx.run(sql.UNCLAIM_TO_THE_END, claimed.seq, claimed.lease, self._jobs.turn(tx))
            self._jobs.ready(tx, claimed.queue, claimed.priority)

        return verb

    def drop(self, claimed: Claimed) -> Callable[[Transaction], None]:
        """A claimed message of bytes is handed over, and is no job of ours any more."""

        def verb(tx: Transaction) -> None:
            if tx.change(sql.DELETE_IF_LEASED, claimed.seq, claimed.lease):
                self._jobs.rules.gates.let_go(tx, [claimed.seq])
                tx.count(State.QUEUED, claimed.queue, -1)

        return verb

    def flush(self, states: list[State]) -> Callable[[Transaction], None]:
        """Cancel all that waits in these states and is not claimed."""

        def verb(tx: Transaction) -> None:
            rows = tx.run(sql.FREE_IN_STATES, json_text(states))
            if not rows:
                return
            if State.QUEUED in states:
                self._jobs.give_back_all(tx)
                rows = tx.run(sql.FREE_IN_STATES, json_text(states))
            tx.run(sql.FLUSH_IF_FREE, json_text([seq for seq, *_ in rows]), tx.now_ms, tx.number)
            for _, _, queue, state in rows:
                tx.count(state, queue, -1)
                tx.count(State.CANCELLED, queue)
            self._jobs.publish(tx, lambda: [job_id for _, job_id, *_ in rows])

        return verb

    def insert(self, batch: list[NewJob], parents: list[tuple[Parent, list[NewJob]]]) -> Callable[[Transaction], None]:
        """Insert jobs of which some ids may be there already, and give jobs that wait another parent (``parents``, each with what
        to insert instead if the job does not wait any more).

        An id is one row: what has ended, or waits, under an id that is given again goes. TransitionRefused if it runs.
        """

        def verb(tx: Transaction) -> None:
            replaced: list[Parent] = []
            wanted = list(batch)
            for parent, rest in parents:
                rows = tx.run(core.STATE_BY_ID, parent[0])
                if rows and rows[0][1] == State.PENDING:
                    replaced.append(parent)
                else:
                    wanted += rest
            for job in wanted:
                self._make_room(tx, job.id)
            operation = Operation("insert", wanted)
            self._jobs.submitting.insert(tx, [operation])
            if operation.error is not None:
                assert isinstance(operation.error, MiniFlowError)
                raise operation.error
            if replaced:
                tx.run(sql.REPLACE_PARENTS, json_text(replaced))
                seqs = [seq for parent in replaced for seq, *_ in tx.run(core.STATE_BY_ID, parent[2])]
                self._jobs.dependencies.waited_for.update(seqs)

        return verb

    def _make_room(self, tx: Transaction, job_id: str) -> None:
        rows = tx.run(core.STATE_BY_ID, job_id)
        if not rows:
            return
        seq, state, queue, _, lease, _ = rows[0]
        if lease is not None and self._jobs.readahead.discard(seq) is None:
            raise TransitionRefused(job_id, "enqueue", State(state), "it runs; give the new call an id of its own")
        self._jobs.rules.gates.let_go(tx, [seq])
        tx.run(sql.DELETE_BY_SEQ, seq)
        tx.count(state, queue, -1)

    def after_end(
        self, seq: int, *, own: dict[str, Any] | None, now: bool, handlers: list[NewJob]
    ) -> Callable[[Transaction], None]:
        """What goes into the transaction that ends an attempt: the tasks to run on its error; what the options say for huey from
        now on; and the next attempt at once."""
        return functools.partial(self._after_end, seq=seq, own=own, now=now, handlers=handlers)

    def _after_end(
        self, tx: Transaction, *, seq: int, own: dict[str, Any] | None, now: bool, handlers: list[NewJob]
    ) -> None:
        if handlers:
            self._jobs.submitting.insert(tx, [Operation("insert", handlers)])
        if own is not None:
            tx.run(sql.SET_HUEY_OPTIONS, json_text([(seq, json_text(own))]))
        if now:
            self._jobs.run_now(tx, [seq])
