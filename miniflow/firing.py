"""The writer's step that fires schedules.

It knows in memory when the next one is due, so nobody polls: the writer sleeps until then. When it comes, one transaction holds
the fire (a row that is unique by schedule and slot), its job or its workflow, and the schedule's cursor. A crash before the
commit has done nothing, one after it all; a clock that is set back meets rows that are there.

Of the slots that are due at once – the machine was off, asleep, or its clock was set forward – the newest is on time if it is
no older than LATE_MS, and those before it were *missed*: the contract says which of them run. Runs that are made up for with
``catchup="all"``, and those of a backfill, are not dropped where they would overlap: they wait for each other.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from miniflow import schedule_statements as sql
from miniflow import statements
from miniflow.clock import CLOCK_JUMP_MS, SettledClock
from miniflow.clocktrust import MADE_MS, ClockTrust
from miniflow.contract import Definition, from_text, timetable_of
from miniflow.errors import MiniFlowError
from miniflow.histogram import Histogram
from miniflow.jobs import Jobs
from miniflow.model import NewJob
from miniflow.openruns import OpenRuns
from miniflow.timetable import Timetable, count, newest
from miniflow.workflow_intake import NewWorkflow
from miniflow.writer import Transaction, Writer, json_text

log = logging.getLogger("miniflow.schedules")

LATE_MS = 60_000
"""A run that begins by then is on time, and not made up for: a restart may take so long."""
FIRES_MAX = 200  # schedules in one group: ten thousand at one moment must not hold up a submit
WAITING_MAX = 10_000  # runs of one schedule that may wait for each other
COUNTED_MAX = 1000  # missed slots are counted so far
KEPT_FIRES = 1000  # of each schedule's history
PRUNE_EVERY = 100  # fires
AHEAD_MS = 86_400_000  # a cursor that lies further in the future was set by a wrong clock
LAST_WALL_EVERY_MS = 60_000

NewRun: TypeAlias = NewJob | NewWorkflow
MakeRun = Callable[[str, Definition, int], NewRun]
"""Makes the job, or the workflow, of a schedule (by its name) for a slot. This is where a schedule is bound to what it starts."""


class Due(NamedTuple):
    """A row of schedules, as far as firing needs it."""

    id: int
    name: str
    definition: str
    cursor: int
    next_slot: int | None


class Planned(NamedTuple):
    """What becomes of one slot."""

    schedule: Due
    slot: int
    kind: str
    outcome: str
    run: NewRun | None = None
    missed: int | None = None
    reason: str | None = None

    @property
    def row(self) -> list[Any]:
        is_open = int(self.outcome in ("fired", "waiting"))
        run_id, flow = None if self.run is None else self.run.id, int(isinstance(self.run, NewWorkflow))
        return [self.schedule.id, self.slot, self.kind, self.outcome, is_open, run_id, self.missed, self.reason, flow]

    @property
    def jobs(self) -> list[NewJob]:
        """What it adds to the queue."""
        if self.run is None:
            return []
        return self.run.jobs if isinstance(self.run, NewWorkflow) else [self.run]


class Plan:
    """What one group does for schedules; written by a few statements, however many there are."""

    def __init__(self) -> None:
        self.fires: list[Planned] = []
        self.cursors: list[tuple[int, int, int | None, int | None]] = []


class Firing:
    def __init__(self, jobs: Jobs, writer: Writer, clock: SettledClock, trust: ClockTrust, make_run: MakeRun) -> None:
        self._jobs, self._writer, self._clock, self.trust, self._make_run = jobs, writer, clock, trust, make_run
        self.runs = OpenRuns(jobs, self._start_waiting)
        self._next_ms: float = math.inf
        self._offset_ms = clock.offset_ms()
        self._wall_written_ms = 0
        self.lateness = Histogram()  # milliseconds from a slot (and its jitter) to its run
        self.revoked: Callable[[Transaction, str], bool] = lambda _tx, _task: False
        self.wanted: Callable[[str, int], bool] = lambda _task, _slot: True
        # Before the operations and the claim: a job that is fired is claimed in the same group.
        writer.every_group(self.runs.close, before=True, due_in_s=self.runs.due_in_s)
        writer.every_group(self._fire, before=True, due_in_s=self._due_in_s)

    def __repr__(self) -> str:
        return f"<Firing [next {self._next_ms}, {self.trust!r}]>"

    # ----------------------------------------------------------------------------------------------------- when it is time

    def begin(self, tx: Transaction) -> None:
        """At start, after the definitions are in the file."""
        self.trust.begin(tx.run(sql.LAST_WALL_TIME)[0][0])
        self.runs.load(tx)
        if self.trust.trusted:
            self._mend_cursors(tx)
        self.look(tx)

    def look(self, tx: Transaction) -> None:
        """Read from the file what is next."""
        tx.on_rollback(self._look_again)
        self._next_ms = _or_never(tx.run(sql.NEXT_FIRE))

    def _look_again(self) -> None:
        self._next_ms = 0

    def _due_in_s(self) -> float:
        if not self._jobs.accepting:
            return math.inf
        if not self.trust.trusted:
            return self.trust.due_in_s()
        if abs(self._clock.offset_ms() - self._offset_ms) > CLOCK_JUMP_MS:
            return 0
        return (self._next_ms - self._clock.now_ms()) / 1000

    def _fire(self, tx: Transaction) -> None:
        if not self._jobs.accepting or self._clock.jump_ms():  # a clock that was just set: the next group goes by it
            return
        if not self.trust.trusted:
            if self.trust.look():
                self._mend_cursors(tx)
                self.look(tx)
            return
        jump_ms = tx.offset_ms - self._offset_ms
        if abs(jump_ms) > CLOCK_JUMP_MS:
            before = self._offset_ms
            tx.on_rollback(lambda: setattr(self, "_offset_ms", before))
            self._offset_ms += jump_ms
            self._mend_cursors(tx)
            self.look(tx)
        if self._next_ms > tx.now_ms:
            return
        plan = Plan()
        for row in tx.run(sql.DUE_SCHEDULES, tx.now_ms, FIRES_MAX):
            self._settle(tx, plan, Due(*row))
        self.write(tx, plan)
        if tx.now_ms - self._wall_written_ms > LAST_WALL_EVERY_MS:
            self._wall_written_ms = tx.now_ms
            tx.run(statements.META_PUT, "last_wall_ms", tx.now_ms)
        self.look(tx)

    def _mend_cursors(self, tx: Transaction) -> None:
        """A wrong clock may have left cursors far away. What ran in the future is in the history and does not run again; what was
        made in 1970 begins now."""
        moves = []
        for row in tx.run(sql.CURSORS_ASTRAY, MADE_MS, tx.now_ms + AHEAD_MS):
            due = Due(*row)
            table, definition = _read(due)
            moves.append((due.id, tx.now_ms, *following(table, definition, due.name, tx.now_ms)))
        if moves:
            tx.run(sql.MOVE_CURSORS, json_text(moves))

    # ------------------------------------------------------------------------------------------------ what becomes of slots

    def settle(self, tx: Transaction, schedule_id: int) -> None:
        """Decide upon all that is due of one schedule, by its definition as it is: it is about to change."""
        rows = tx.run(sql.DUE_IF_ALIVE, schedule_id, tx.now_ms) if self.trust.trusted and self.accepting else []
        plan = Plan()
        for row in rows:
            self._settle(tx, plan, Due(*row))
        self.write(tx, plan)

    def _settle(self, tx: Transaction, plan: Plan, due: Due) -> None:
        table, definition = _read(due)
        slots = self._slots(table, definition, due, tx.now_ms)
        if not slots:  # its jitter is not over
            plan.cursors.append((due.id, due.cursor, *following(table, definition, due.name, due.cursor)))
            return
        last = slots[-1]
        late_ms = tx.now_ms - last - jitter_ms(definition, due.name, last)
        on_time = late_ms <= LATE_MS
        oldest_ms = tx.now_ms - round(definition.catchup_window * 1000)
        if definition.catchup == "all":
            runs = [slot for slot in slots if slot >= oldest_ms]
        elif definition.catchup == "latest":
            runs = [last] if last >= oldest_ms else []
        else:
            runs = []
        if on_time and not runs:
            runs = [last]
        self._note_missed(plan, table, due, runs, last)
        runs = [slot for slot in runs if definition.task is None or self.wanted(definition.task, slot)]
        for slot in runs:
            is_due = on_time and slot == last
            plan.fires.append(self.decide(tx, due, definition, slot, "due" if is_due else "catchup"))
        if on_time:
            tx.on_commit(lambda: self.lateness.observe(late_ms))
        plan.cursors.append((due.id, last, *following(table, definition, due.name, last)))

    @staticmethod
    def _slots(table: Timetable, definition: Definition, due: Due, now_ms: int) -> list[int]:
        """The slots that are due, oldest first: of many the newest, one more than can be made up for."""
        first = due.next_slot
        if first is None or first > now_ms:
            return []
        second = table.next_after(first)
        if second is None or second > now_ms:
            slots = [first]
        else:
            wanted = definition.catchup_max if definition.catchup == "all" else 1
            slots = newest(table, due.cursor, now_ms, wanted + 1)
        while slots and slots[-1] + jitter_ms(definition, due.name, slots[-1]) > now_ms:
            slots.pop()
        return slots[-definition.catchup_max :] if definition.catchup == "all" else slots[-1:]

    @staticmethod
    def _note_missed(plan: Plan, table: Timetable, due: Due, runs: list[int], last: int) -> None:
        """One row for all that is not made up for; it lies on the newest of them."""
        until = runs[0] - 1 if runs else last
        if due.next_slot is None or due.next_slot > until:
            return
        at = newest(table, due.cursor, until, 1)[-1]
        n = count(table, due.cursor, until, COUNTED_MAX)
        plan.fires.append(Planned(due, at, "due", "missed", missed=n))

    def decide(self, tx: Transaction, due: Due, definition: Definition, slot: int, kind: str) -> Planned:
        """What becomes of one slot; what has not ended of this schedule is known in memory."""
        policy = definition.overlap
        if policy != "allow" and (kind == "backfill" or (kind == "catchup" and definition.catchup == "all")):
            policy = "queue_all"
        if definition.task is not None and self.revoked(tx, definition.task):
            return Planned(due, slot, kind, "skipped", reason=f"the task {definition.task} is revoked")
        if kind == "manual" or policy == "allow" or not self.runs.busy(due.id):
            return self._with_run(due, definition, slot, kind)
        waiting = self.runs.waiting(due.id)
        if policy == "skip":
            what = "job" if definition.workflow is None else "workflow"
            return Planned(due, slot, kind, "skipped", reason=f"its {what} {self.runs.first(due.id)} had not ended")
        if policy == "queue_one" and waiting:
            return Planned(due, slot, kind, "skipped", reason="a run waits already for the one before it")
        if policy == "queue_all" and waiting >= WAITING_MAX:
            return Planned(due, slot, kind, "skipped", reason=f"{WAITING_MAX:,} runs wait already")
        if policy == "cancel_running":
            self.runs.cancel_all(tx, due.id)
        self.runs.add_waiting(due.id)
        return Planned(due, slot, kind, "waiting")

    def _with_run(self, due: Due, definition: Definition, slot: int, kind: str) -> Planned:
        try:
            run = self._make_run(due.name, definition, slot)
        except MiniFlowError as refusal:  # the task, or the workflow, is gone, or takes something else now
            return Planned(due, slot, kind, "refused", reason=str(refusal))
        except Exception as exc:  # whatever it is, it must not stop the writer
            log.exception("schedule %s: no run could be made for its slot", due.name)
            return Planned(due, slot, kind, "refused", reason=f"{type(exc).__name__}: {exc}")
        self.runs.add(due.id, run.id)
        return Planned(due, slot, kind, "fired", run)

    # --------------------------------------------------------------------------------------------------------- writing it

    @property
    def accepting(self) -> bool:
        return self._jobs.accepting

    def refusal(self, tx: Transaction, one: Planned) -> MiniFlowError | None:
        """Why this cannot be taken."""
        return self._jobs.submitting.refusal(tx, one.jobs, self._jobs.submitting.waiting())

    def write(self, tx: Transaction, plan: Plan, *, asked_for: bool = False) -> list[Planned]:
        """What was planned and had not been decided upon before. ``asked_for``: slots that came to nothing may run after all."""
        tx.on_rollback(self.runs.forget)
        waiting, fires = self._jobs.submitting.waiting(), []
        for one in plan.fires:
            fires.append(self._within_limits(tx, one, waiting))
            waiting += len(fires[-1].jobs)
        done: list[Planned] = []
        if fires:
            rows = tx.run(sql.INSERT_FIRES, json_text([one.row for one in fires]), tx.now_ms, int(asked_for))
            written = {tuple(row) for row in rows}
            for one in fires:
                if (one.schedule.id, one.slot) in written:
                    done.append(one)
                else:  # it ran when the clock had been there before
                    self._take_back(one)
        self._insert(tx, done)
        if plan.cursors:
            tx.run(sql.MOVE_CURSORS, json_text(plan.cursors))
        self._count(tx, done)
        return done

    def _insert(self, tx: Transaction, done: list[Planned]) -> None:
        """The jobs and the workflows."""
        jobs = [one.run for one in done if isinstance(one.run, NewJob)]
        flows = [one.run for one in done if isinstance(one.run, NewWorkflow)]
        if jobs:
            self._jobs.submitting.add(tx, jobs)
        if flows:
            self._jobs.workflows.starting.add(tx, flows)

    def _within_limits(self, tx: Transaction, one: Planned, waiting: int) -> Planned:
        if one.run is None:
            return one
        refusal = self._jobs.submitting.refusal(tx, one.jobs, waiting)
        if refusal is None:
            return one
        self._take_back(one)
        return one._replace(outcome="refused", run=None, reason=str(refusal))

    def _take_back(self, one: Planned) -> None:
        if one.run is not None:
            self.runs.remove(one.run.id)
        elif one.outcome == "waiting":
            self.runs.add_waiting(one.schedule.id, -1)

    def _count(self, tx: Transaction, done: list[Planned]) -> None:
        failed: dict[int, int] = {}
        for one in done:
            tx.count(f"schedule_{one.outcome}", one.schedule.name, one.missed or 1)
            tx.count("fires", str(one.schedule.id))
            n = self._writer.counter("fires", str(one.schedule.id)) + tx.deltas["fires", str(one.schedule.id)]
            if n % PRUNE_EVERY == 0:
                tx.run(sql.PRUNE_FIRES, one.schedule.id, KEPT_FIRES)
            if one.outcome == "refused":
                failed[one.schedule.id] = failed.get(one.schedule.id, 0) + 1
                log.warning("schedule %s: the run for %d was refused: %s", one.schedule.name, one.slot, one.reason)
        if failed:
            self.runs.count_failures(tx, [(schedule, 0, n) for schedule, n in failed.items()])

    def _start_waiting(self, tx: Transaction, schedule_id: int) -> None:
        """The run that waits longest begins, if the schedule may."""
        rows = tx.run(sql.DUE_BY_ID, schedule_id)
        while rows and self.runs.waiting(schedule_id) and not self.runs.running(schedule_id):
            found = tx.run(sql.FIRST_WAITING, schedule_id)
            if not found:  # it is paused: they begin when it goes on
                return
            (fire_id, slot), due = found[0], Due(*rows[0])
            self.runs.add_waiting(schedule_id, -1)
            made = self._with_run(due, from_text(due.definition), slot, "due")
            one = self._within_limits(tx, made, self._jobs.submitting.waiting())
            if one.run is not None:
                tx.run(sql.START_WAITING, fire_id, one.run.id, tx.now_ms, int(isinstance(one.run, NewWorkflow)))
                self._insert(tx, [one])
                tx.count("schedule_fired", due.name)
            else:
                tx.run(sql.DROP_WAITING, fire_id, "refused", one.reason)
                self._count(tx, [one])


def _read(due: Due) -> tuple[Timetable, Definition]:
    definition = from_text(due.definition)
    return timetable_of(definition), definition


def following(table: Timetable, definition: Definition, name: str, after: int) -> tuple[int | None, int | None]:
    """The next slot and when it fires."""
    slot = table.next_after(after)
    return slot, None if slot is None else slot + jitter_ms(definition, name, slot)


def jitter_ms(definition: Definition, name: str, slot: int) -> int:
    """By how much this slot is put off: by chance, and the same chance after a restart."""
    if not definition.jitter:
        return 0
    digest = hashlib.blake2b(f"{name}\0{slot}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % round(definition.jitter * 1000 + 1)


def _or_never(rows: list[Any]) -> float:
    return math.inf if rows[0][0] is None else rows[0][0]
