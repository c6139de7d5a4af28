"""The verbs that move a job from state to state.

How jobs come in is in ``submitting``; what time and a dead process do to them, in ``timers`` and ``recovery``.

Each verb is one function that runs inside one transaction of the writer, guarded in SQL by state and, where only its holder
may act, by lease; it says why it refused. The verbs of the hot path (submit, claim, begin, end) take all that a group has and
make one statement of it. Counters change in the same transaction.

What lives in memory only follows the file: the read-ahead is filled after the commit that claimed, and emptied before the
commit that takes back (and filled again should that commit fail).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable

from miniflow import rule_statements as ruled
from miniflow import statements as sql
from miniflow.attempts import Attempt, Claimed, Running
from miniflow.cancelling import not_again_if_asked
from miniflow.checkpoints import Checkpoints
from miniflow.claiming import Claiming
from miniflow.clock import SettledClock
from miniflow.dependencies import Dependencies
from miniflow.errors import JobCancelled, MiniFlowError, NotFound, TransitionRefused
from miniflow.histogram import JobTimes
from miniflow.model import Ending
from miniflow.notices import Notices
from miniflow.operations import Operation, ThreadWaiter
from miniflow.progress import ProgressBoard
from miniflow.quarantine import Quarantine
from miniflow.readahead import ReadAhead
from miniflow.rules import Rules
from miniflow.states import TERMINAL, State
from miniflow.submitting import Submitting
from miniflow.timers import Timers
from miniflow.workflows import Workflows
from miniflow.writer import Singly, Transaction, Writer, json_text

log = logging.getLogger("miniflow.jobs")

STOPPED = "cancelled; the server stopped before the job did"
UNWRITABLE = "Unwritable"


class Jobs:
    def __init__(
        self,
        writer: Writer,
        readahead: ReadAhead,
        running: Running,
        notices: Notices,
        clock: SettledClock,
        *,
        queues: list[str],
        max_queue: int,
        max_queues: int,
        max_payload_bytes: int,
        max_result_bytes: int,
        cancel_grace_ms: int,
        rules: Rules,
        ageing_ms: int = 0,
    ) -> None:
        self.writer, self.readahead, self.running, self.notices, self._clock = (
            writer,
            readahead,
            running,
            notices,
            clock,
        )
        self._cancel_grace_ms, self.rules = cancel_grace_ms, rules
        self._marks: dict[int, Attempt] = {}
        self.suspects: set[int] = set()  # rows that were leased when the last process died
        self.claiming = False
        self.accepting = True
        self.times = JobTimes()
        self.heard: Callable[[list[str]], None] | None = None  # is told, in the writer's thread, which jobs have ended

        writer.every_group(self._begin, before=True)
        self.progress = ProgressBoard(writer, clock)  # after the marks, before the ends: those take the lease away
        self.submitting = Submitting(self, writer, max_queue=max_queue, max_queues=max_queues)
        self.workflows = Workflows(
            self, writer, clock, max_payload_bytes=max_payload_bytes, max_result_bytes=max_result_bytes
        )
        self.checkpoints = Checkpoints(self, writer, clock)  # before the ends too
        writer.handle("end", self._end, instead=_plain_end)
        writer.handle("verb", self._verbs)
        self.timers = Timers(self, writer, clock)
        self.dependencies = Dependencies(self)
        writer.every_group(self.workflows.stop_overdue, due_in_s=self.workflows.due_in_s)
        writer.every_group(self.dependencies.settle, due_in_s=lambda: 0 if self.dependencies.due else math.inf)
        writer.every_group(self.workflows.settle)
        self.quarantine = Quarantine(writer, readahead, clock)
        self.claims = Claiming(self, writer, readahead, rules, clock, queues=queues, ageing_ms=ageing_ms)
        writer.may_linger = readahead.has_plenty
        readahead.on_room = writer.nudge

    # ------------------------------------------------------------------------------------------------------- becoming ready

    def ready(self, tx: Transaction, queue: str, priority: int) -> None:
        """Rows become ready in this transaction; what is held and comes after them goes back."""
        level = self.readahead.level(queue, priority)
        self.readahead.more = True
        if self.readahead.worse_than(level):
            self.give_back(tx, lambda row: self.readahead.level(row.queue, row.priority) > level)

    def turn(self, tx: Transaction) -> int:
        """The next place in the queue; all rows of one statement share it and are told apart by seq."""
        tx.count("turn", "")
        return self.writer.counter("turn", "") + tx.deltas["turn", ""]

    def give_back(self, tx: Transaction, unwanted: Callable[[Claimed], bool]) -> int:
        """Return what is held and ``unwanted`` to the queue; how many rows."""
        return self.claims.give_back(tx, unwanted)

    # ---------------------------------------------------------------------------------------------- running and ending

    def mark_begun(
        self, attempt: Attempt, *, unproven: bool = False, waiter: Callable[[], ThreadWaiter] = ThreadWaiter
    ) -> None:
        """The body of ``attempt`` begins: the mark rides in the next group, or in none if the end is in that one already.

        Two kinds of job wait here until the mark is in the file, so that one that kills the process is known by it and not
        hidden among the innocent: those of a task that has not ended once in this process (``unproven``), and those that were
        leased when the last process died.
        """
        self._marks[attempt.claimed.seq] = attempt
        self.quarantine.began(attempt.claimed.seq)
        if unproven or attempt.claimed.seq in self.suspects:
            self.suspects.discard(attempt.claimed.seq)
            self.writer.call("verb", lambda _: None, keep=True, waiter=waiter())  # marks are written before verbs
        else:
            self.writer.nudge(now=False)

    def post_end(self, ending: Ending, operation: Operation | None = None) -> None:
        """Write how an attempt ended, without waiting. The caller has won ``attempt.finish()``."""
        self.forget(ending.attempt, operation or Operation("end", ending, keep=True))

    def forget(self, attempt: Attempt, last: Operation | None = None) -> None:
        """It runs no more. ``last`` is what is still to be written of it, and is posted here: a stop waits until it is."""
        self._marks.pop(attempt.claimed.seq, None)
        if attempt.log is not None:
            attempt.log.end()
        try:
            if last is not None:
                self.writer.post(last)
        finally:
            self.running.remove(attempt)

    def _begin(self, tx: Transaction) -> None:
        if not self._marks:
            return
        # Not swapped for a new dict: a worker may hold the old one in its hands.
        attempts = {seq: attempt for seq, attempt in list(self._marks.items()) if self._marks.pop(seq, None) is attempt}
        # One that has ended meanwhile counts itself with its end.
        tx.on_rollback(lambda: self._marks.update({seq: a for seq, a in attempts.items() if not a.finished}))
        rows = [(seq, a.claimed.lease, a.started_at, a.worker_id) for seq, a in attempts.items()]
        begun = list(attempts.values())
        if tx.change(sql.BEGIN_IF_LEASED, json_text(rows), tx.number) < len(rows):
            holding = {seq for (seq,) in tx.run(sql.HOLDING, json_text([row[:2] for row in rows]))}
            begun = [attempt for seq, attempt in attempts.items() if seq in holding]
        if self.rules.gates.holds:
            self.rules.gates.began(tx, [attempt.claimed.seq for attempt in begun])
        for attempt in begun:
            tx.count(State.QUEUED, attempt.claimed.queue, -1)
            tx.count(State.RUNNING, attempt.claimed.queue)
            attempt.marked = True  # at once: an end or a return in this same transaction builds on it

        def undo() -> None:
            for attempt in begun:
                attempt.marked = False

        tx.on_rollback(undo)

    def _end(self, tx: Transaction, ops: list[Operation]) -> None:
        self._ended(tx, [op.argument for op in ops])

    def _ended(self, tx: Transaction, endings: list[Ending]) -> bool:
        """False if it was one, and refused."""
        endings = not_again_if_asked(tx, endings)
        rows = [e.end_row(tx.offset_ms) for e in endings]
        if tx.change(sql.END_IF_LEASED, json_text(rows), tx.now_ms, tx.number) < len(rows):
            if len(endings) > 1:
                raise Singly
            attempt = endings[0].attempt
            log.warning(
                "refused the late end of attempt %d of job %s: its lease is gone", attempt.number, attempt.claimed.id
            )
            return False
        self.left(tx, [e.attempt for e in endings])
        self._count_ends(tx, endings)
        if self.dependencies.waited_for or self.workflows.active(tx):
            self.ended(tx, [e.attempt.claimed.seq for e in endings if e.state in TERMINAL])
        tx.on_commit(lambda: self.times.ended(endings, tx.now_ms))
        failed = [e for e in endings if e.outcome is not None]
        if failed:
            tx.run(sql.INSERT_ATTEMPTS, json_text([e.attempt_row() for e in failed]), tx.now_ms)
        for ending in endings:
            if ending.after is not None:
                ending.after(tx)
        self.publish(tx, lambda: [e.attempt.claimed.id for e in endings if e.state in TERMINAL])
        return True

    def end(self, tx: Transaction, ending: Ending) -> bool:
        """Write an end in a transaction under way; False if it is refused, since the lease is gone."""
        return self._ended(tx, [ending])

    def left(self, tx: Transaction, attempts: list[Attempt]) -> None:
        """The leases of these are gone in this transaction: what they held is free."""
        if self.rules.gates.holds:
            charged = [attempt.claimed.seq for attempt in attempts if attempt.charged]
            self.rules.gates.let_go(tx, charged, begun=True)
            if len(charged) < len(attempts):
                self.rules.gates.let_go(tx, [attempt.claimed.seq for attempt in attempts])
        current = self.quarantine.current
        if current is not None and any(attempt.claimed.seq == current for attempt in attempts):
            tx.on_commit(lambda: self.quarantine.ended(current))

    def _count_ends(self, tx: Transaction, endings: list[Ending]) -> None:
        alike = Counter(
            (e.attempt.marked, e.attempt.claimed.queue, e.attempt.claimed.task, e.state, e.outcome) for e in endings
        )
        for (marked, queue, task, state, outcome), n in alike.items():
            tx.count(State.RUNNING if marked else State.QUEUED, queue, -n)
            tx.count(state, queue, n)
            if state is State.COMPLETED:
                tx.count("finished", task, n)
            elif state is State.DEAD_LETTER:
                tx.count("failed", task, n)
            if outcome in ("failed", "timed_out"):
                tx.count("attempts_failed", task, n)
        for e in endings:
            if e.run_at is not None:
                self.timers.expect(e.run_at_by(tx.offset_ms), None)

    def ended(self, tx: Transaction, seqs: list[int]) -> None:
        """Every end of jobs is told here, whatever ended them: others may wait for them, and they may be steps."""
        self.dependencies.ended(tx, seqs)
        self.workflows.ended(tx, seqs)

    def publish(self, tx: Transaction, job_ids: Callable[[], list[str]]) -> None:
        # Whether anybody waits is asked after the commit: one who begins to wait before it would still read the old state.
        tx.on_commit(lambda: self._tell(job_ids) if self.notices.wanted or self.heard else None)

    def _tell(self, job_ids: Callable[[], list[str]]) -> None:
        ended = job_ids()
        if self.notices.wanted:
            self.notices.publish(ended)
        if self.heard is not None:
            self.heard(ended)

    # ------------------------------------------------------------------------------------- verbs of people and programs

    def _verbs(self, tx: Transaction, ops: list[Operation]) -> None:
        """Rare verbs come as functions of a transaction; a refusal is an error of that operation alone."""
        for op in ops:
            self.workflows.settle(tx)  # a verb sees which workflows have ended before it in this group
            try:
                op.value = op.argument(tx)
            except MiniFlowError as refusal:
                op.error = refusal

    def cancel(self, job_id: str) -> Callable[[Transaction], State]:
        """Waiting: cancelled at once. Running: asked to stop; it is `running` until it has. Returns the state it is in now.

        Raises NotFound, or TransitionRefused for a job that has ended (cancelling twice is fine).
        """

        def verb(tx: Transaction) -> State:
            seq, state, queue, lease = find(tx, job_id)
            if state is State.CANCELLED:
                return state
            if state in TERMINAL:
                raise TransitionRefused(job_id, "cancel", state)
            held = self.readahead.discard(seq) if lease is not None else None
            aside = self.quarantine.holds(seq)
            if held is not None:
                tx.on_rollback(lambda: self.readahead.push([held]))
            if lease is not None and held is None and not aside:
                self.ask_to_stop(tx, [seq])
                return State.RUNNING
            tx.on_commit(lambda: self.quarantine.ended(seq))
            self.rules.gates.let_go(tx, [seq])
            tx.run(sql.CANCEL_IF_WAITING, json_text([seq]), tx.now_ms, tx.number)
            tx.count(state, queue, -1)
            tx.count(State.CANCELLED, queue)
            self.ended(tx, [seq])
            self.publish(tx, lambda: [job_id])
            return State.CANCELLED

        return verb

    def ask_to_stop(self, tx: Transaction, seqs: list[int], reason: JobCancelled | None = None) -> None:
        """Cancel what runs: it is interrupted after the commit, and cancelled when it has stopped."""
        tx.run(sql.REQUEST_CANCEL_IF_LEASED, json_text(seqs), tx.now_ms, tx.number)

        def ask() -> None:
            asked = set(seqs)
            for attempt in self.running.all():
                if attempt.claimed.seq in asked:
                    why = reason or JobCancelled("the job was cancelled")
                    attempt.interrupt(why, self._clock.boot_ms() + self._cancel_grace_ms)

        tx.on_commit(ask)

    def asked_to_stop(self) -> set[int]:
        """The rows whose attempts are being interrupted."""
        return {attempt.claimed.seq for attempt in self.running.all() if attempt.pending is not None}

    def cancel_by_rule(self, tx: Transaction, rows: list[tuple[int, str]]) -> None:
        """Cancel queued rows that nobody holds, because a rule says so: [(seq, why)]."""
        gone = tx.run(ruled.CANCEL_BY_RULE, json_text(rows), tx.now_ms, tx.number)
        for _, _, queue in gone:
            tx.count(State.QUEUED, queue, -1)
            tx.count(State.CANCELLED, queue)
        tx.on_commit(lambda: self.quarantine.ended(*(seq for seq, _, _ in gone)))
        self.ended(tx, [seq for seq, _, _ in gone])
        self.dependencies.settle(tx)  # a claim comes after the steps of its group that would
        self.workflows.settle(tx)
        self.publish(tx, lambda: [job_id for _, job_id, _ in gone])

    def retry(self, job_id: str) -> Callable[[Transaction], State]:
        """A dead letter is replayed with its attempts counted anew; a job that waits for its next attempt gets it now; one that
        was cancelled because of a job that it depends on waits for it again."""

        def verb(tx: Transaction) -> State:
            seq, state, queue, _ = find(tx, job_id)
            if state in (State.DEAD_LETTER, State.CANCELLED):
                self.workflows.compensation.check_retry(tx, seq, job_id, state)
                self.workflows.check_retry(tx, seq, job_id, state)
                self.workflows.subworkflows.check_retry(tx, seq, job_id, state)
            if state is State.DEAD_LETTER:
                self.replay(tx, [seq])
            elif state is State.RETRYING:
                self.run_now(tx, [seq])
            elif state is State.CANCELLED:
                self.dependencies.revive(tx, seq, job_id, queue)
                return State.PENDING
            else:
                remedy = (
                    "submit it again"
                    if state in TERMINAL
                    else "only a dead letter, or a job that waits for its next attempt, can be retried"
                )
                raise TransitionRefused(job_id, "retry", state, remedy)
            return State.QUEUED

        return verb

    def replay(self, tx: Transaction, seqs: list[int]) -> int:
        """Those of these rows that are dead letters go back to their queues; how many."""
        rows = tx.run(sql.REPLAY_IF_DEAD, json_text(seqs), self.turn(tx), tx.now_ms, tx.number) if seqs else []
        for _, queue, priority, _ in rows:
            tx.count(State.DEAD_LETTER, queue, -1)
            tx.count(State.QUEUED, queue)
            self.ready(tx, queue, priority)
        if rows:
            self.dependencies.replayed(tx, [seq for seq, *_ in rows])
            self.workflows.recount(tx, [seq for seq, *_ in rows])
        return len(rows)

    def run_now(self, tx: Transaction, seqs: list[int]) -> int:
        """Those of these rows that wait for their next attempt get it now; how many."""
        rows = tx.run(sql.RUN_NOW_IF_RETRYING, json_text(seqs), self.turn(tx), tx.now_ms, tx.number)
        for _, queue, priority in rows:
            tx.count(State.RETRYING, queue, -1)
            tx.count(State.QUEUED, queue)
            self.ready(tx, queue, priority)
        return len(rows)

    # ----------------------------------------------------------------------------------------------------------- stopping

    def give_back_all(self, tx: Transaction) -> int:
        """At stop: what was claimed ahead goes back to the queue; returns how many rows."""
        self.quarantine.release_all(tx)
        return self.give_back(tx, lambda _: True)

    def return_running(self, attempts: list[Attempt]) -> Callable[[Transaction], int]:
        """At stop: what did not end within the grace goes back to the queue, its attempt not counted; how many. What was asked
        to stop has: it is cancelled."""
        for a in attempts:  # now, and not in the verb: marks and logs are written before verbs
            self._marks.pop(a.claimed.seq, None)
            if a.log is not None:
                a.log.end()

        def verb(tx: Transaction) -> int:
            asked = {seq for (seq,) in tx.run(sql.ASKED_TO_STOP, json_text([a.claimed.seq for a in attempts]))}
            for a in attempts:
                if a.claimed.seq in asked:
                    self.end(tx, Ending(a, State.CANCELLED, outcome="cancelled", error=STOPPED))
            back = [a for a in attempts if a.claimed.seq not in asked]
            rows = json_text([(a.claimed.seq, a.claimed.lease, int(a.marked)) for a in back])
            tx.run(sql.RELEASE_IF_LEASED, rows, tx.now_ms, tx.number)
            self.rules.gates.let_go(tx, [a.claimed.seq for a in back])
            for a in back:
                if a.marked:
                    tx.count(State.RUNNING, a.claimed.queue, -1)
                    tx.count(State.QUEUED, a.claimed.queue)
            return len(back)

        return verb


def _plain_end(op: Operation) -> Operation | None:
    """An end that the file would not take becomes a dead letter that says so: a job is never left with a lease nobody holds."""
    ending: Ending = op.argument
    if ending.error_type == UNWRITABLE:
        return None
    words = f"the end of the attempt could not be written ({type(op.error).__name__}); the server's log has the reason"
    plain = Ending(ending.attempt, State.DEAD_LETTER, outcome="failed", error_type=UNWRITABLE, error=words)
    return Operation("end", plain, keep=True)


def find(tx: Transaction, job_id: str) -> tuple[int, State, str, int | None]:
    """(seq, state, queue, lease) of a job. NotFound if there is none."""
    rows = tx.run(sql.STATE_BY_ID, job_id)
    if not rows:
        raise NotFound("job", job_id)
    seq, state, queue, _, lease, _ = rows[0]
    return seq, State(state), queue, lease
