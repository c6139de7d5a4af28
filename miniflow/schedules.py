"""What can be done to schedules: make, change, pause, resume, run, delete, backfill; and take up the definitions of the code.

As with jobs, each verb is one function that runs inside one transaction of the writer and says why it refused. What is due of a
schedule is decided upon before it changes, by the definition that it was promised under; the new one counts from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from miniflow import schedule_statements as sql
from miniflow.clock import to_ms
from miniflow.contract import (
    API,
    OF_JOBS,
    OF_WORKFLOWS,
    Declared,
    Definition,
    changed,
    check_name,
    from_text,
    resolved,
    timetable_of,
    timing_of,
    to_text,
)
from miniflow.errors import InvalidRequest, MiniFlowError, NotFound, ScheduleExists, ScheduleRefused, ShuttingDown
from miniflow.firing import Due, Firing, NewRun, Plan, Planned, following
from miniflow.function_intake import FunctionIntake, FunctionSubmission
from miniflow.intake import Intake, Submission
from miniflow.model import NewJob
from miniflow.timetable import slots
from miniflow.workflow_graph import WorkflowSubmission
from miniflow.workflow_intake import Slot, WorkflowIntake
from miniflow.writer import Transaction, json_text

log = logging.getLogger("miniflow.schedules")

BACKFILL_SLOTS_MAX = 20_000  # that are looked at for one backfill


class Row(NamedTuple):
    """A row of schedules, as far as the verbs need it."""

    id: int
    name: str
    definition: str
    source: str
    origin: str | None
    cursor: int
    next_slot: int | None
    paused_at: int | None
    missing_since: int | None


class Backfilled(msgspec.Struct):
    """``slots`` lie in the span; ``already`` of them have run or are about to; ``done`` is how many runs were made for the
    others, or in a dry run would be."""

    slots: int
    already: int
    done: int
    dry_run: bool


class Schedules:
    def __init__(
        self,
        firing: Firing,
        make_run: Callable[[str, Definition, int], NewRun],
        *,
        timezone: str,
        max_schedules: int,
        max_batch: int,
    ) -> None:
        self.firing, self._make_run = firing, make_run
        self.timezone, self._max_schedules, self._max_batch = timezone, max_schedules, max_batch

    def checked(self, given: Definition) -> Definition:
        """``given`` with nothing left open, its task and payload, or its workflow and input, held against each other. Raises as
        a submit does."""
        definition = resolved(given, self.timezone)
        self._make_run("", definition, 0)
        return definition

    # --------------------------------------------------------------------------------------------------------------- verbs

    def create(self, name: str, definition: Definition) -> Callable[[Transaction], None]:
        check_name(name)

        def verb(tx: Transaction) -> None:
            if tx.run(sql.BY_NAME, name):
                raise ScheduleExists(name)
            if definition.at is not None and to_ms(definition.at) <= tx.now_ms:
                raise InvalidRequest("at", "is over; give a time to come")
            self._insert(tx, Declared(name, definition, API, ""))

        return verb

    def _insert(self, tx: Transaction, new: Declared) -> None:
        ((n,),) = tx.run(sql.HOW_MANY)
        if n >= self._max_schedules:
            raise InvalidRequest(
                "name", f"would be schedule {n + 1:,}, the limit max_schedules is {self._max_schedules:,}"
            )
        slot, fire_at = following(timetable_of(new.definition), new.definition, new.name, tx.now_ms)
        text = to_text(new.definition)
        origin = new.origin or None
        tx.run(
            sql.INSERT_SCHEDULE, new.name, new.definition.task or "", text, new.source, origin, tx.now_ms, slot, fire_at
        )
        self.firing.look(tx)

    def change(self, name: str, changes: Mapping[str, Any]) -> Callable[[Transaction], None]:
        """Another definition, from now on: the present one with ``changes``, see ``contract.changed``."""

        def verb(tx: Transaction) -> None:
            row = _find(tx, name)
            if row.source != API:
                raise ScheduleRefused(name, "change", f"it is defined in {row.origin}; change it there")
            current = from_text(row.definition)
            definition = self.checked(changed(current, changes))
            moved = timing_of(definition) != timing_of(current)
            if moved and definition.at is not None and to_ms(definition.at) <= tx.now_ms:
                raise InvalidRequest("at", "is over; give a time to come")
            self._change(tx, row, definition, row.origin)

        return verb

    def _change(self, tx: Transaction, row: Row, definition: Definition, origin: str | None) -> None:
        self.firing.settle(tx, row.id)
        row = _find(tx, row.name)
        cursor = row.cursor
        if timing_of(definition) != timing_of(from_text(row.definition)) or row.missing_since is not None:
            cursor = max(cursor, tx.now_ms)
        slot, fire_at = following(timetable_of(definition), definition, row.name, cursor)
        text = to_text(definition)
        tx.run(sql.CHANGE_SCHEDULE, row.id, definition.task or "", text, origin, tx.now_ms, cursor, slot, fire_at)
        if row.missing_since is not None:
            self.firing.runs.wake(row.id)
        self.firing.look(tx)

    def pause(self, name: str, reason: str | None = None) -> Callable[[Transaction], None]:
        """It fires no more. Its jobs go on; runs that wait for them wait until it is resumed. Pausing twice is fine."""

        def verb(tx: Transaction) -> None:
            row = _find(tx, name)
            self.firing.settle(tx, row.id)
            tx.run(sql.PAUSE_IF_NOT, row.id, tx.now_ms, reason)

        return verb

    def resume(self, name: str) -> Callable[[Transaction], None]:
        """It goes on with the next slot: what lies in the pause is not made up for (a backfill can). Failures count anew."""

        def verb(tx: Transaction) -> None:
            row = _find(tx, name)
            definition = from_text(row.definition)
            cursor = max(row.cursor, tx.now_ms)
            slot, fire_at = following(timetable_of(definition), definition, row.name, cursor)
            if tx.change(sql.RESUME_IF_PAUSED, row.id, cursor, slot, fire_at, tx.now_ms):
                self.firing.runs.wake(row.id)
                self.firing.look(tx)

        return verb

    def run_now(self, name: str) -> Callable[[Transaction], NewRun]:
        """A run beside the timetable, whatever else runs; its job, or its workflow."""

        def verb(tx: Transaction) -> NewRun:
            self._check_accepting()
            row = _find(tx, name)
            run = self._make_run(row.name, from_text(row.definition), tx.now_ms)
            due = Due(row.id, row.name, row.definition, row.cursor, row.next_slot)
            planned = Planned(due, tx.now_ms, "manual", "fired", run)
            refusal = self.firing.refusal(tx, planned)
            if refusal is not None:
                raise refusal
            plan = Plan()
            plan.fires.append(planned)
            self.firing.runs.add(row.id, run.id)
            self.firing.write(tx, plan)
            return run

        return verb

    def delete(self, name: str) -> Callable[[Transaction], None]:
        """With its history; its jobs stay."""

        def verb(tx: Transaction) -> None:
            row = _find(tx, name)
            if row.source != API and row.missing_since is None:
                raise ScheduleRefused(name, "delete", f"it is defined in {row.origin}; take it out there, or pause it")
            tx.run(sql.DELETE_SCHEDULE, row.id)
            tx.on_rollback(self.firing.runs.forget)
            self.firing.runs.drop(row.id)
            self.firing.look(tx)

        return verb

    @staticmethod
    def slots_between(definition: Definition, first_ms: int, last_ms: int) -> list[int]:
        """The slots of a span, both ends included, for a backfill. InvalidRequest if they are too many. It may take a second, so
        not in a transaction."""
        if first_ms > last_ms:
            raise InvalidRequest("to", "is before from")
        meant = []
        for slot in slots(timetable_of(definition), first_ms - 1, last_ms):
            meant.append(slot)
            if len(meant) > BACKFILL_SLOTS_MAX:
                raise InvalidRequest(
                    "from", f"more than {BACKFILL_SLOTS_MAX:,} slots lie in between; backfill in parts"
                )
        return meant

    def backfill(
        self, name: str, definition: Definition, meant: Sequence[int], *, dry_run: bool
    ) -> Callable[[Transaction], Backfilled]:
        """Runs for those of ``meant``, slots of ``definition``, that have not had one; never for a time to come."""

        def verb(tx: Transaction) -> Backfilled:
            if not dry_run:
                self._check_accepting()
            row = _find(tx, name)
            if timing_of(from_text(row.definition)) != timing_of(definition):
                raise ScheduleRefused(name, "backfill", "its times were changed just now; ask again")
            until = tx.now_ms
            if row.paused_at is None and row.missing_since is None and row.next_slot is not None:
                until = min(until, row.next_slot - 1)  # what is due and not decided upon is left to its own firing
            over = [slot for slot in meant if slot <= until]
            ran = {slot for (slot,) in tx.run(sql.SLOTS_THAT_RAN, row.id, json_text(over))} if over else set()
            missing = [slot for slot in over if slot not in ran]
            if len(missing) > self._max_batch:
                why = f"{len(missing):,} runs are missing there, the limit max_batch is {self._max_batch:,}; backfill in parts"
                raise InvalidRequest("from", why)
            due = Due(row.id, row.name, row.definition, row.cursor, row.next_slot)
            done = len(missing) if dry_run else self._run(tx, due, from_text(row.definition), missing)
            return Backfilled(len(over), len(ran), done, dry_run)

        return verb

    def _run(self, tx: Transaction, due: Due, definition: Definition, missing: list[int]) -> int:
        plan = Plan()
        plan.fires = [self.firing.decide(tx, due, definition, slot, "backfill") for slot in missing]
        done = self.firing.write(tx, plan, asked_for=True)
        return sum(one.outcome in ("fired", "waiting") for one in done)

    def _check_accepting(self) -> None:
        if not self.firing.accepting:
            raise ShuttingDown

    # ------------------------------------------------------------------------------------------ definitions in code and file

    def take_up(self, tx: Transaction, declared: Iterable[Declared]) -> None:
        """Make the file follow the definitions: new ones are made, changed ones changed, and those that have vanished stay,
        marked, and do not fire. One whose name a person has given already is left out, and said."""
        known = {row.name: row for row in (Row(*found) for found in tx.run(sql.DECLARED))}
        present: set[str] = set()
        for new in declared:
            try:
                self._take_up(tx, known, new)
                present.add(new.name)
            except MiniFlowError as exc:
                log.warning("the schedule %s in %s was not taken up: %s", new.name, new.origin, exc)
        gone = [row for name, row in known.items() if name not in present and row.missing_since is None]
        if gone:
            log.warning(
                "definitions of schedules have vanished, they do not fire: %s", ", ".join(row.name for row in gone)
            )
            tx.run(sql.MARK_MISSING, json_text([row.id for row in gone]), tx.now_ms)

    def _take_up(self, tx: Transaction, known: dict[str, Row], new: Declared) -> None:
        check_name(new.name)
        definition = self.checked(new.definition)
        new = new._replace(definition=definition)
        row = known.get(new.name)
        if row is None:
            if tx.run(sql.BY_NAME, new.name):
                raise ScheduleExists(new.name)
            self._insert(tx, new)
        elif row.definition != to_text(definition) or row.origin != new.origin or row.missing_since is not None:
            self._change(tx, row, definition, new.origin)


def _find(tx: Transaction, name: str) -> Row:
    rows = tx.run(sql.BY_NAME, name)
    if not rows:
        raise NotFound("schedule", name)
    return Row(*rows[0])


def run_of(
    intake: Intake, flows: WorkflowIntake, functions: FunctionIntake, name: str, definition: Definition, slot: int
) -> NewRun:
    """The job, or the workflow, for a slot. It knows its schedule and its slot. Raises as a submit does."""
    if definition.workflow is None:
        return job_of(intake, name, definition, slot)
    given: dict[str, Any] = {field: getattr(definition, field) for field in OF_WORKFLOWS}
    if functions.knows(definition.workflow):
        return functions.run(
            FunctionSubmission(workflow=definition.workflow, input=definition.input, **given), slot=Slot(name, slot)
        )
    wanted = WorkflowSubmission(definition=definition.workflow, input=definition.input, **given)
    try:
        return flows.workflow(wanted, slot=Slot(name, slot))
    except InvalidRequest as exc:
        field = "workflow" if exc.field == "definition" else exc.field
        raise InvalidRequest(field, exc.reason) from None


def job_of(intake: Intake, name: str, definition: Definition, slot: int) -> NewJob:
    """The job for a slot. It knows its schedule and its slot: they are in its options. Raises as a submit does."""
    given: dict[str, Any] = {field: getattr(definition, field) for field in OF_JOBS}
    job = intake.job(Submission(task=definition.task, payload=definition.payload, **given))
    row = [*job.row, *[None] * (OPTIONS + 1 - len(job.row))]
    options = msgspec.json.decode(row[OPTIONS]) if row[OPTIONS] else {}
    row[OPTIONS] = json_text({**options, "schedule": name, "scheduled_for": slot})
    return job._replace(row=row)


OPTIONS = 12
"""The place of the options in a row of ``statements.INSERT_JOBS``."""
