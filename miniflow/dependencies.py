"""Jobs that wait for other jobs.

A job with ``depends_on`` is in the table from its submit, as ``pending``, with an edge to each job that it waits for. When the
last of those ends, it becomes ready in the same transaction; so between the end of a job and what follows from it there is no
moment in which a crash could leave the one without the other. If one of them does not end well the child is cancelled with it,
and then what waits for the child, and so on; or it runs all the same, as its edge says (see ``sql/0003_dependencies.sql``).

Every end of a job is told here (``ended``), whatever ended it: its attempt, a person, its ttl, a crash. Whether anybody waits
for it is a look into a set in memory, so jobs that nobody waits for cost nothing. The set is read from the file at start,
when ends that a dead process did not come to resolve are found as well.

A transaction resolves EDGES_MAX edges at most; what is left of a great fan-out, or of a long cascade, goes on in the next. The
file says where it stands: an edge that is not done to a parent that has ended is still to be resolved.

A parent that runs again, because it was replayed, does not bring back the children that were cancelled with it: retry each of
them. Those that wait still, for another parent, wait for it again. Nor is it deleted while a child may want its result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from miniflow import dependency_statements as sql
from miniflow.errors import InvalidRequest, TransitionRefused
from miniflow.model import Accepted, NewJob
from miniflow.states import TERMINAL, State
from miniflow.writer import Transaction, json_text

if TYPE_CHECKING:
    from miniflow.jobs import Jobs

EDGES_MAX = 2000  # resolved in one transaction: what follows from an end must not hold up a submit
REASON = "not run: job %s (%s), which it depends on, is %s%s"
REASON_OF_STEP = "not run: step %s, which it depends on, failed: %s"


class _Edge(NamedTuple):
    """A row of ``OPEN_EDGES_OF_ENDED``."""

    child: int
    idx: int
    kind: str
    parent: int
    well: int


class _Ready(NamedTuple):
    """A row of ``READY_OF_PENDING``."""

    seq: int
    queue: str
    priority: int
    due: int | None
    expires_at: int | None
    to_fill: int | None


_decode_edges = msgspec.json.Decoder(list[_Edge]).decode
_decode_ready = msgspec.json.Decoder(list[_Ready]).decode
_decode_pending = msgspec.json.Decoder(list[tuple[int, str, str]]).decode
_decode_known = msgspec.json.Decoder(list[tuple[str, int, int]]).decode
_decode_parents = msgspec.json.Decoder(list[tuple[int, int]]).decode
_decode_seqs = msgspec.json.Decoder(list[int]).decode


class Dependencies:
    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self.waited_for: set[int] = set()
        """Rows with an edge that is not resolved. One too many costs a look, one too few a job that waits for ever."""
        self._ended: dict[int, None] = {}  # of those, the ones that have ended: to be resolved, in this order

    def __repr__(self) -> str:
        return f"<Dependencies [{len(self.waited_for)} waited for | {len(self._ended)} ended]>"

    # ---------------------------------------------------------------------------------------------------------- coming in

    def check(self, tx: Transaction, jobs: list[NewJob], accepted: list[Accepted]) -> InvalidRequest | None:
        """Whether what ``jobs`` wait for is there; what to refuse them with, if it is not."""
        wanted = {parent for job in jobs if job.waits for parent in job.waits.ids(accepted)}
        here = {one.id for one in accepted}
        known = {job_id for job_id, *_ in self._known(tx, wanted - here)}
        for job in jobs:
            if job.waits is None:
                continue
            for place, parent in enumerate(job.waits.ids(accepted)):
                if parent not in known and parent not in here:
                    return InvalidRequest(f"{job.waits.field}[{place}]", f"there is no job {parent}")
        return None

    def insert(self, tx: Transaction, waiting: list[tuple[NewJob, list[Accepted]]]) -> None:
        """Write the edges of rows that were just inserted; each with what its batch was answered."""
        rows = [
            (parent, job.id, job.waits.kind, place)
            for job, accepted in waiting
            if job.waits is not None
            for place, parent in enumerate(job.waits.ids(accepted))
        ]
        self.add_edges(tx, rows)

    def add_edges(self, tx: Transaction, rows: list[tuple[str, str, str, int]]) -> None:
        """Rows wait for others from now on: [(parent's id, child's id, kind, idx)]."""
        if not rows:
            return
        tx.run(sql.INSERT_EDGES, json_text(rows))
        known = self._known(tx, {parent for parent, *_ in rows})
        self.waited_for.update(seq for _, seq, _ in known)
        self.ended(tx, [seq for _, seq, ended in known if ended])

    def add_new_edges(self, tx: Transaction, rows: list[tuple[int, int, str, int]]) -> None:
        """As add_edges, between rows that were just inserted and have not ended: [(parent, child, kind, idx)], by their seqs."""
        if rows:
            tx.insert(sql.ADD_EDGES, rows)
            self.waited_for.update(parent for parent, *_ in rows)

    @staticmethod
    def _known(tx: Transaction, ids: set[str]) -> list[tuple[str, int, int]]:
        return _decode_known(tx.run(sql.JOBS_BY_ID, json_text(sorted(ids)))[0][0]) if ids else []

    # ------------------------------------------------------------------------------------------------------------- ending

    def ended(self, tx: Transaction, seqs: Iterable[int]) -> None:
        """These rows end in this transaction; what waits for them is resolved at its end."""
        if not self.waited_for:
            return
        new = [seq for seq in seqs if seq in self.waited_for and seq not in self._ended]
        if not new:
            return

        def undo() -> None:
            for seq in new:
                self._ended.pop(seq, None)

        tx.on_rollback(undo)
        self._ended.update(dict.fromkeys(new))

    @property
    def due(self) -> bool:
        """Whether there is something to resolve."""
        return bool(self._ended)

    def settle(self, tx: Transaction) -> None:
        """Resolve the edges of what has ended: children become ready, or are cancelled, and what waits for them in turn."""
        if not self._ended:
            return
        before = dict(self._ended)
        tx.on_rollback(lambda: self._ended.update(before))
        left = EDGES_MAX
        while self._ended and left > 0:
            parents = list(self._ended)
            edges = _decode_edges(tx.run(sql.OPEN_EDGES_OF_ENDED, json_text(parents), left)[0][0])
            left -= len(edges)
            if left > 0:  # that was all of theirs
                self._ended.clear()
                # At once, not after the commit: what ended and runs again in this transaction is waited for again by then.
                self.waited_for.difference_update(parents)
                tx.on_rollback(partial(self.waited_for.update, parents))
            if edges:
                self._resolve(tx, edges)

    def _resolve(self, tx: Transaction, edges: list[_Edge]) -> None:
        tx.run(sql.RESOLVE_EDGES, json_text([(edge.child, edge.idx) for edge in edges]))
        lost = {edge.child: (edge.parent, edge.kind) for edge in edges if not edge.well and edge.kind != "all"}
        if lost:
            self._cancel(tx, lost)
        self.release(tx, sorted({edge.child for edge in edges if edge.child not in lost}))

    def _cancel(self, tx: Transaction, lost: dict[int, tuple[int, str]]) -> None:
        rows = _decode_pending(tx.run(sql.STILL_PENDING, json_text(list(lost)))[0][0])
        if not rows:
            return
        reasons = [(seq, *lost[seq]) for seq, _, _ in rows]
        tx.run(sql.CANCEL_IF_PENDING, json_text(reasons), tx.now_ms, tx.number, REASON, REASON_OF_STEP)
        self._count_cancelled(tx, rows)

    def release(self, tx: Transaction, seqs: list[int]) -> None:
        """Those of these rows that are pending, and wait for nobody any more, become ready."""
        rows = _decode_ready(tx.run(sql.READY_OF_PENDING, json_text(seqs), tx.now_ms)[0][0]) if seqs else []
        to_fill = [row.seq for row in rows if row.to_fill]
        if to_fill:
            reasons, not_yet = self._jobs.workflows.prepare(tx, to_fill)
            if reasons:
                self._cancel_because(tx, reasons)
            if reasons or not_yet:
                rows = [row for row in rows if row.seq not in reasons and row.seq not in not_yet]
        if not rows:
            return
        tx.run(sql.READY_IF_PENDING, json_text([row.seq for row in rows]), tx.now_ms, self._jobs.turn(tx), tx.number)
        alike = Counter((row.queue, row.priority, row.due is not None) for row in rows)
        for (queue, priority, later), n in alike.items():
            tx.count(State.PENDING, queue, -n)
            tx.count(State.SCHEDULED if later else State.QUEUED, queue, n)
            if not later:
                self._jobs.ready(tx, queue, priority)
        for row in rows:
            if row.due is not None or row.expires_at is not None:
                self._jobs.timers.expect(row.due, row.expires_at)

    def _cancel_because(self, tx: Transaction, reasons: dict[int, str]) -> None:
        rows = _decode_pending(tx.run(sql.STILL_PENDING, json_text(list(reasons)))[0][0])
        tx.run(
            sql.CANCEL_IF_PENDING_BECAUSE, json_text([(seq, reasons[seq]) for seq, *_ in rows]), tx.now_ms, tx.number
        )
        self._count_cancelled(tx, rows)

    def _count_cancelled(self, tx: Transaction, rows: list[tuple[int, str, str]]) -> None:
        for queue, n in Counter(queue for *_, queue in rows).items():
            tx.count(State.PENDING, queue, -n)
            tx.count(State.CANCELLED, queue, n)
        self._jobs.publish(tx, lambda: [job_id for _, job_id, _ in rows])
        self._jobs.ended(tx, [seq for seq, *_ in rows])

    # ------------------------------------------------------------------------------------------------------ running again

    def replayed(self, tx: Transaction, seqs: list[int]) -> None:
        """These rows had ended and run again: what still waits, waits for them again."""
        back = [seq for seq in seqs if seq in self._ended]
        for seq in back:
            del self._ended[seq]
        if back:
            tx.on_rollback(lambda: self._ended.update(dict.fromkeys(back)))
        if not seqs or not tx.change(sql.REOPEN_EDGES_OF_PENDING, json_text(seqs)):
            return
        self.waited_for.update(seq for (seq,) in tx.run(sql.OPEN_PARENTS_OF, json_text(seqs)))

    def revive(self, tx: Transaction, seq: int, job_id: str, queue: str) -> None:
        """A row that was cancelled because of a parent waits again, and what waits still waits for it again. TransitionRefused
        where that is of no use, or not so."""
        parents = tx.run(sql.PARENTS_OF, seq)
        remedy = "submit it again"
        for kind, parent, state, _ in parents:
            if parent is None:
                remedy = "a job that it depends on is deleted; submit it again"
            elif kind != "all" and state in TERMINAL and state != State.COMPLETED:
                remedy = f"it depends on job {parent}, which is {state}; retry that one first"
            else:
                continue
            break
        else:
            if parents and tx.change(sql.REVIVE_IF_NEVER_BEGUN, seq, tx.now_ms, tx.number):
                remedy = ""
            elif tx.run(sql.IS_SKIPPED, seq):
                remedy = "its condition does not hold, so the step was skipped"
        if remedy:
            raise TransitionRefused(job_id, "retry", State.CANCELLED, remedy)
        tx.count(State.CANCELLED, queue, -1)
        tx.count(State.PENDING, queue)
        self.replayed(tx, [seq])
        tx.run(sql.REOPEN_EDGES_OF_CHILD, seq)
        self.waited_for.update(parent for *_, parent in parents)
        self.ended(tx, [parent for _, _, state, parent in parents if state in TERMINAL])
        self._jobs.workflows.recount(tx, [seq])

    def wait_again(self, tx: Transaction, seqs: list[int]) -> None:
        """These rows were cancelled and are pending again: each waits for its parents as at first."""
        if not seqs:
            return
        children = json_text(seqs)
        tx.run(sql.REOPEN_EDGES_OF_CHILDREN, children)
        parents = tx.run(sql.PARENTS_OF_CHILDREN, children)
        self.waited_for.update(seq for seq, _ in parents)
        self.ended(tx, [seq for seq, ended in parents if ended])
        self.release(tx, seqs)

    # -------------------------------------------------------------------------------------------------------------- start

    def load(self, tx: Transaction) -> None:
        """At start, after what a dead process left behind is recovered: who is waited for, and what is still to be resolved."""
        found = _decode_parents(tx.run(sql.UNRESOLVED_PARENTS)[0][0])
        self.waited_for.update(seq for seq, _ in found)
        self.ended(tx, [seq for seq, ended in found if ended])
        self.release(tx, _decode_seqs(tx.run(sql.PENDING_FOR_NOBODY)[0][0]))
        self.settle(tx)
