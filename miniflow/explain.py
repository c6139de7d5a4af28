"""Why a job does not run yet, or what ended it and what happens next: in words.

It is asked in a transaction of the writer, where nothing moves meanwhile, and of the same objects that decide a claim: the
gates, the order of service, the pauses, the edges to other jobs. So it cannot say other than what happens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from miniflow import rule_statements as sql
from miniflow import subworkflow_statements as subworkflow_sql
from miniflow import workflow_statements as workflow_sql
from miniflow.clock import Clock, rfc3339
from miniflow.errors import JobReplaced, NotFound
from miniflow.function_queries import waits_for
from miniflow.function_statements import AWAITED_BY_JOB
from miniflow.gates import Gate
from miniflow.jobs import Jobs
from miniflow.roster import Roster
from miniflow.rules import gate_in_words
from miniflow.starting import RUNNING
from miniflow.states import State
from miniflow.writer import Transaction, json_text

NAMED_MAX = 10
"""Jobs that an answer names; of more it says how many there are."""
COUNTED_MAX = 10_000
"""Jobs before this one are counted up to here."""


class _Lane(NamedTuple):
    """How one way of running is spoken of."""

    one: str
    many: str
    busy: str
    busy_with: str
    setting: str
    command: str


_LANES = {
    "thread": _Lane("worker", "workers", "busy", "busy with", "workers", "miniflow scale N"),
    "process": _Lane("process", "processes", "busy", "busy with", "processes", "miniflow scale --processes N"),
    "async": _Lane("async slot", "async slots", "taken", "taken by", "async_slots", "miniflow scale --async-slots N"),
}


class Reason(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One thing that keeps a job waiting, or that became of it. ``code`` is a stable word for programs, ``text`` a sentence;
    ``jobs`` are ids of those that it waits for, at most ten; ``at`` is when it is over, where that can be told."""

    code: str
    text: str
    jobs: list[str] = []
    at: str | None = None


class Explanation(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Why a job is where it is. ``reasons`` are in the order in which they count; ``next`` is what happens when they are gone, or
    what can be done; ``text`` is all of it."""

    id: str
    status: str
    reasons: list[Reason]
    next: str
    text: str


class _Row(NamedTuple):
    """A row of ``EXPLAINED``."""

    seq: int
    id: str
    task: str
    queue: str
    priority: int
    state: str
    turn: int
    lease: int | None
    attempt: int
    max_retries: int
    run_at: int | None
    expires_at: int | None
    updated_at: int
    completed_at: int | None
    cancel_requested_at: int | None
    last_error: str | None
    key: str | None
    blocked: str | None
    worker_id: str | None
    started_at: int | None
    timeout_ms: int | None
    stalled_at: int | None
    options: str | None


def explain(jobs: Jobs, roster: Roster, clock: Clock, job_id: str) -> Callable[[Transaction], Explanation]:
    """A verb that changes nothing. NotFound if there is no such job."""

    def verb(tx: Transaction) -> Explanation:
        rows = tx.run(sql.EXPLAINED, job_id)
        if not rows:
            raise NotFound("job", job_id)
        row = _Row(*rows[0])
        reasons, after = _Explaining(jobs, roster, clock, tx, row).of_state()
        said = ". ".join(reason.text[:1].upper() + reason.text[1:] for reason in reasons)
        text = ". ".join(part for part in (said, after) if part) + "."
        return Explanation(id=row.id, status=row.state, reasons=reasons, next=after, text=text)

    return verb


class _Explaining:
    def __init__(self, jobs: Jobs, roster: Roster, clock: Clock, tx: Transaction, row: _Row) -> None:
        self._jobs, self._roster, self._clock, self._tx, self._row = jobs, roster, clock, tx, row

    def of_state(self) -> tuple[list[Reason], str]:
        """The reasons, and what is next."""
        row = self._row
        state = State(row.state)
        if state is State.PENDING:
            return self._asleep() or self._pending()
        if state in (State.SCHEDULED, State.RETRYING):
            return (self._asleep() if state is State.SCHEDULED else None) or self._later()
        if state is State.QUEUED:
            return self._queued()
        if state is State.RUNNING:
            return self._running()
        return self._ended()

    # ------------------------------------------------------------------------------------------------------- not ready yet

    def _asleep(self) -> tuple[list[Reason], str] | None:
        """Of a durable function that waits for something."""
        rows = self._tx.run(AWAITED_BY_JOB, self._row.seq)
        if not rows:
            return None
        codes = {"event": "waits_for_event", "workflow": "waits_for_workflow", "step": "retry_due", "sleep": "sleeps"}
        reasons = [
            Reason(code=codes[kind], text=f"it {waits_for(kind, name, wake_at, child)}", at=rfc3339(wake_at))
            for kind, name, wake_at, child in rows[:NAMED_MAX]
        ]
        return [*reasons, *self._service()], "Then the function goes on where it was"

    def _pending(self) -> tuple[list[Reason], str]:
        reasons = []
        for workflow, paused_at in self._tx.run(sql.PAUSED_WORKFLOW_OF, self._row.seq):
            text = f"its workflow is paused since {rfc3339(paused_at)}; `miniflow workflow resume {workflow}` lets it go on"
            reasons.append(Reason(code="workflow_paused", text=text))
        for child_id, name in self._tx.run(subworkflow_sql.RUNNING_CHILD_OF_JOB, self._row.seq):
            text = f"it stands for workflow {child_id} ({name}), which has not ended"
            return [*reasons, Reason(code="waits_for_workflow", text=text)], "When that has ended, so has it"
        parents = self._tx.run(sql.OPEN_PARENTS, self._row.seq, NAMED_MAX)
        n = parents[0][3] if parents else 0
        named = ", ".join(f"{job_id} ({task}, {state})" for job_id, task, state, _ in parents)
        more = f" and {n - len(parents):,} more" if n > len(parents) else ""
        text = (
            f"it waits for {_n(n, 'job')} to end: {named}{more}"
            if n
            else "the last of the jobs it waits for has just ended"
        )
        if parents or not reasons:
            reasons.append(Reason(code="waits_for_jobs", text=text, jobs=[parent[0] for parent in parents]))
        if self._row.run_at is not None and self._row.run_at > self._tx.now_ms:
            reasons.append(self._due("not_due", "it is due"))
        return [*reasons, *self._service()], f"When that is over it goes to queue {self._row.queue}"

    def _later(self) -> tuple[list[Reason], str]:
        row = self._row
        if row.state == State.RETRYING:
            reason = self._due(
                "retry_due", f"attempt {row.attempt} failed ({_brief(row.last_error)}); the next one is due"
            )
            after = f"Then it is attempt {row.attempt + 1} of {row.attempt + self._retries_left()}"
        else:
            reason, after = self._due("not_due", "it is due"), f"Then it goes to queue {row.queue}"
        return [reason, *self._service()], after

    def _retries_left(self) -> int:
        return max(self._row.max_retries - self._row.attempt + 1, 1)

    def _due(self, code: str, words: str) -> Reason:
        at_ms = self._row.run_at or self._tx.now_ms
        return Reason(code=code, text=f"{words} at {rfc3339(at_ms)}, {_in(at_ms - self._tx.now_ms)}", at=rfc3339(at_ms))

    # ---------------------------------------------------------------------------------------------------------------- ready

    def _service(self) -> list[Reason]:
        """What is in the way of its queue as a whole."""
        jobs, queue = self._jobs, self._row.queue
        reasons = []
        paused_at = jobs.rules.of("queue", queue).paused_at
        if paused_at is not None:
            text = f"queue {queue} is paused since {rfc3339(paused_at)}; `miniflow resume {queue}` lets its jobs run"
            reasons.append(Reason(code="queue_paused", text=text))
        if not jobs.claims.is_named(queue):
            served = ", ".join(jobs.claims.queues)
            text = f"no worker serves queue {queue}: the setting queues is {served}"
            reasons.append(Reason(code="queue_not_served", text=text))
        if not jobs.accepting:
            reasons.append(Reason(code="stopping", text="the server is stopping; it runs after the next start"))
        elif not jobs.claiming:
            text = "this server runs no jobs: it has 0 workers; `miniflow scale N` starts some"
            reasons.append(Reason(code="no_workers", text=text))
        return reasons

    def _queued(self) -> tuple[list[Reason], str]:
        row, jobs = self._row, self._jobs
        reasons = self._service()
        if jobs.quarantine.holds(row.seq):
            text = (
                "a process died while it ran; such jobs run one after the other, and others before it are being watched"
            )
            reasons.append(Reason(code="set_aside", text=text))
        elif (place := jobs.readahead.place(row.seq)) is not None:
            reasons.append(self._claimed(*place))
        elif row.lease is not None:
            reasons.append(Reason(code="beginning", text="a worker has just taken it"))
        else:
            full = self._full_gates()
            reasons += full
            if not reasons:
                reasons.append(self._in_line())
        after = "It begins when that is over" if reasons else ""
        if row.expires_at is not None and row.attempt == 0:
            left_ms = row.expires_at - self._tx.now_ms
            after += f", and expires if it has not begun by {rfc3339(row.expires_at)}, {_in(left_ms)}"
        return reasons, after

    def _full_gates(self) -> list[Reason]:
        row, rules = self._row, self._jobs.rules
        if rules.quiet:
            return []
        boot_ms = self._clock.boot_ms()
        gates = [rules.gates.find(name) for name in rules.gates_of(row.queue, row.task, row.key)]
        reasons = []
        for gate in gates:
            if gate.slots() <= 0:
                reasons.append(self._slots_taken(gate))
            elif gate.free(boot_ms) <= 0:
                reasons.append(self._rate_used(gate, boot_ms))
        return reasons

    def _slots_taken(self, gate: Gate) -> Reason:
        holders = sorted(seq for seq, gates in self._jobs.rules.gates.holds.items() if gate in gates)
        ids = [job_id for job_id, _ in self._tx.run(sql.JOBS_BY_SEQ, json_text(holders[:NAMED_MAX]))]
        more = f" and {len(holders) - len(ids):,} more" if len(holders) > len(ids) else ""
        asked = len(self._jobs.asked_to_stop().intersection(holders))
        stopping = f", {'which' if len(holders) == 1 else f'{asked:,} of which'} {'was' if asked == 1 else 'were'} asked to stop"
        text = (
            f"{gate.held:,} of {gate.at_once:,} {'slot' if gate.at_once == 1 else 'slots'} of {gate_in_words(gate.id)} "
            f"{'is' if gate.held == 1 else 'are'} held by {', '.join(ids)}{more}{stopping if asked else ''}"
            f"{self._before_it_at(gate)}"
        )
        return Reason(code="slots_taken", text=text, jobs=ids)

    def _rate_used(self, gate: Gate, boot_ms: int) -> Reason:
        assert gate.window is not None
        begun, opens_at = gate.window.begun(boot_ms), gate.opens_at(boot_ms)
        claimed = f", {_n(gate.unbegun, 'job')} claimed and about to begin" if gate.unbegun else ""
        text = f"the rate {gate.window.rate.text} of {gate_in_words(gate.id)} is used up: {begun:,} began{claimed}"
        if opens_at is math.inf:
            return Reason(code="rate_used", text=text + self._before_it_at(gate))
        at_ms = round(opens_at) + self._clock.offset_ms()
        text += f"; it frees at {rfc3339(at_ms)}, {_in(at_ms - self._tx.now_ms)}{self._before_it_at(gate)}"
        return Reason(code="rate_used", text=text, at=rfc3339(at_ms))

    def _before_it_at(self, gate: Gate) -> str:
        """How many wait there before it, if it waits there."""
        row = self._row
        if row.blocked != gate.id:
            return ""
        n = self._tx.run(sql.AHEAD_AT_GATE, gate.id, row.priority, row.turn, row.seq, COUNTED_MAX)[0][0]
        return f"; {_counted(n)} {'waits' if n == 1 else 'wait'} for one before it" if n else "; it is the next"

    def _in_line(self) -> Reason:
        row = self._row
        if row.blocked is not None:
            return Reason(
                code="claiming", text=f"it waited for {gate_in_words(row.blocked)}, which has a free slot now"
            )
        n = self._tx.run(sql.AHEAD_IN_QUEUE, row.queue, row.priority, row.turn, row.seq, COUNTED_MAX)[0][0]
        before = (
            f"{_counted(n)} in queue {row.queue} {'is' if n == 1 else 'are'} before it"
            if n
            else f"it is the next in queue {row.queue} to be claimed"
        )
        text, busy = self._lane(self._jobs.readahead.lane_of(row.task, row.options))
        return Reason(code="in_line", text=f"{before}; {text}", jobs=busy)

    def _claimed(self, lane: str, n: int) -> Reason:
        """``n`` go before it in its lane."""
        one = _LANES[lane].one
        article = "an" if one[0] in "aeiou" else "a"
        before = f", and {_n(n, 'job')} {'is' if n == 1 else 'are'} before it" if n else " and next"
        text, busy = self._lane(lane)
        return Reason(code="claimed", text=f"it is claimed{before} in line for {article} {one}; {text}", jobs=busy)

    def _lane(self, lane: str) -> tuple[str, list[str]]:
        """How much of what it would run in is taken, and the jobs that it waits for where that is all."""
        words, slots = _LANES[lane], self._roster.slots
        most = {"thread": slots.thread, "process": slots.process, "async": slots.coroutine}[lane]
        ids = [one.job_id for one in self._roster.workers() if one.executor == lane and one.job_id is not None]
        busy = len(ids)
        there = f"{most:,} {words.one if most == 1 else words.many}"
        are = "is" if busy == 1 else "are"
        if busy < most:
            return f"{busy:,} of {there} {are} {words.busy}", []
        named = ids[:NAMED_MAX]
        holders = ", ".join(named) + (f" and {busy - NAMED_MAX:,} more" if busy > NAMED_MAX else "")
        text = f"{busy:,} of {there} {are} {words.busy_with} {holders}"
        if busy > most:  # there were more when those began
            now = f"there {'is' if most == 1 else 'are'} {there} now"
            text = f"{busy:,} jobs run ({holders}), and {most:,} at a time may when they have ended: {now}"
        return f"{text}; `{words.command}`, or the setting {words.setting}, lets more run at once", named

    # ------------------------------------------------------------------------------------------------------ running, ended

    def _running(self) -> tuple[list[Reason], str]:
        row = self._row
        attempt = f"attempt {row.attempt} runs since {rfc3339(row.started_at)} in {row.worker_id}"
        reasons = [Reason(code="running", text=attempt)]
        if row.stalled_at is not None:
            text = f"it is stalled since {rfc3339(row.stalled_at)}: silent for longer than its heartbeat"
            reasons.append(Reason(code="stalled", text=text))
        if row.cancel_requested_at is not None:
            asked = self._jobs.running.find(row.seq)
            pending = None if asked is None else asked.pending
            why = f" ({pending})" if isinstance(pending, JobReplaced) else ""
            text = f"it was asked to stop at {rfc3339(row.cancel_requested_at)}{why} and has not ended yet"
            reasons.append(Reason(code="cancelling", text=text))
            return reasons, "It is cancelled when it has stopped"
        if row.timeout_ms:
            ends_ms = (row.started_at or self._tx.now_ms) + row.timeout_ms
            if ends_ms > self._tx.now_ms:
                return reasons, f"It is stopped if it has not ended by {rfc3339(ends_ms)}"
            text = f"it is over its timeout since {rfc3339(ends_ms)}, was asked to stop, and has not ended yet"
            reasons.append(Reason(code="timed_out", text=text))
            return (
                reasons,
                "The attempt has failed when it has stopped; when stop_grace is over it is killed, or given up as a thread",
            )
        return reasons, "It has no timeout"

    def _ended(self) -> tuple[list[Reason], str]:
        row = self._row
        at = rfc3339(row.completed_at)
        if row.state == State.COMPLETED:
            return [
                Reason(code="completed", text=f"it completed at {at}, in attempt {row.attempt}")
            ], "Nothing happens to it any more"
        skipped, remedy = self._as_step()
        if skipped:
            why = (row.last_error or "its condition does not hold").removeprefix("skipped: ")
            return [Reason(code="skipped", text=f"it was skipped at {at}: {why}")], "That is as good as done"
        if row.state == State.EXPIRED:
            text = f"its ttl was over at {rfc3339(row.expires_at)}, and it had not begun"
            return [Reason(code="expired", text=text)], f"It will not run; {remedy or 'submit it again'}"
        if row.state == State.CANCELLED:
            by_person = row.cancel_requested_at is not None and not (row.last_error or "").startswith("replaced: ")
            why = f": {_brief(row.last_error)}" if row.last_error and not by_person else ""
            asked = " because it was asked for" if by_person else ""
            return [
                Reason(code="cancelled", text=f"it was cancelled at {at}{asked}{why}")
            ], f"It will not run; {remedy or 'submit it again'}"
        tries = f"all {_n(row.attempt, 'attempt')} failed" if row.attempt > 1 else "its attempt failed"
        text = f"{tries}, the last at {at}: {_brief(row.last_error)}"
        return [
            Reason(code="failed", text=text)
        ], f"It does not run again by itself; {remedy or f'`miniflow retry {row.id}` runs it again'}"

    def _as_step(self) -> tuple[bool, str | None]:
        """Of a job that is a step of a workflow: whether it was skipped, and what can be done about its end."""
        for skipped, workflow_id, name, state in self._tx.run(workflow_sql.WORKFLOW_OF_STEP, self._row.seq):
            does = f"`miniflow workflow retry {workflow_id}` runs workflow {name} on from there"
            return bool(skipped), does if state != RUNNING else f"when the rest of it has ended, {does}"
        return False, None


def _n(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _counted(n: int) -> str:
    return f"{n:,} jobs or more" if n >= COUNTED_MAX else _n(n, "job")


def _in(ms: int) -> str:
    """How long that is from now."""
    seconds = ms / 1000
    if seconds <= 0:
        return "which is now"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"in {seconds / size:.0f} {unit}"
    return f"in {seconds:.1f} s" if seconds < 10 else f"in {seconds:.0f} s"


def _brief(error: str | None) -> str:
    lines = (error or "").strip().splitlines() or ["no error was kept"]
    return lines[0][:300]
