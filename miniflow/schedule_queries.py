"""What can be asked about schedules, and the shape of the answers. Reads only."""

from __future__ import annotations

from typing import Any

import msgspec

from miniflow import schedule_statements as sql
from miniflow.clock import rfc3339, to_ms
from miniflow.clocktrust import ClockTrust
from miniflow.contract import CatchUp, Definition, Overlap, from_text, timetable_of
from miniflow.errors import InvalidRequest, NotFound
from miniflow.readers import Readers
from miniflow.timetable import OnGap, OnOverlap
from miniflow.wording import local, sentence
from miniflow.writer import json_text

PAGE_MAX = 500
STATUSES = {
    "active": "fires when it is due",
    "paused": "fires no more until it is resumed",
    "missing": "its definition has vanished from the code or the settings; it does not fire",
    "finished": "is never due again",
    "waiting_for_clock": "waits until the machine's clock can be trusted",
}


OUTCOMES = ("fired", "waiting", "skipped", "missed", "refused")


class LastRun(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What became of the newest slot that was decided upon."""

    scheduled_for: str
    fired_at: str
    kind: str
    outcome: str
    job_id: str | None = None
    workflow_id: str | None = None
    status: str | None = None
    reason: str | None = None


class Contract(msgspec.Struct, kw_only=True):
    """What a schedule runs – a ``task`` or a ``workflow`` –, when – ``sentence`` says it in words –, and by which rules, with
    nothing left open. Durations are seconds, times RFC 3339 in UTC."""

    name: str
    sentence: str
    task: str | None
    payload: msgspec.Raw
    workflow: str | None
    input: msgspec.Raw
    cron: str | None
    every: float | None
    anchor: str | None
    at: str | None
    timezone: str
    on_gap: OnGap | None
    on_overlap: OnOverlap | None
    catchup: CatchUp
    catchup_window: float
    catchup_max: int
    overlap: Overlap
    pause_after_failures: int
    jitter: float
    queue: str | None
    priority: int | str | None
    timeout: float | None
    max_retries: int | None
    ttl: float | None
    tags: list[str] | None
    meta: dict[str, Any] | None
    description: str | None


class Schedule(Contract, kw_only=True):
    """A schedule: its contract, and how it stands.

    ``next_run`` is the next time that it means (null: none comes, or it does not fire), ``running`` how many of its runs have not
    ended, ``waiting`` how many runs wait for those. ``source`` is who defines it: ``api``, ``code`` or ``file``; ``origin`` says
    where.
    """

    status: str
    source: str
    origin: str | None
    next_run: str | None
    last_run: LastRun | None
    running: int
    waiting: int
    failures: int
    paused_at: str | None
    paused_reason: str | None
    missing_since: str | None
    created_at: str
    updated_at: str


class SchedulePage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Schedules by name. ``total`` is of all there are; ``waits`` says why none fires, if so."""

    items: list[Schedule]
    total: int
    next_cursor: str | None = None
    waits: str | None = None


class Run(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A time at which a schedule will run: in UTC, as clocks in its zone show it, and what is unusual about it."""

    scheduled_for: str
    local: str
    note: str | None = None


class Preview(Contract, kw_only=True):
    """A contract and the next times that it means."""

    runs: list[Run]


class Fire(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What became of one time that a schedule meant. ``kind``: ``due``, ``catchup`` (made up for), ``backfill`` or ``manual``.
    ``outcome``: ``fired`` (there is a job or a workflow, ``status`` is its state), ``waiting`` (for the run before it),
    ``skipped``, ``missed`` (one row for as many as ``missed`` says, up to this time; 1000 stands for that many or more) or
    ``refused``."""

    scheduled_for: str
    fired_at: str
    kind: str
    outcome: str
    job_id: str | None = None
    workflow_id: str | None = None
    status: str | None = None
    missed: int | None = None
    reason: str | None = None


class FirePage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Newest first."""

    items: list[Fire]
    next_cursor: str | None = None


class ScheduleQueries:
    def __init__(self, readers: Readers, trust: ClockTrust) -> None:
        self._readers, self._trust = readers, trust

    def schedule(self, name: str) -> Schedule:
        """NotFound if there is none."""
        rows = self._readers.point(sql.SHOWN_BY_NAME, self._untrusted, name)
        if not rows:
            raise NotFound("schedule", name)
        return schedule_of_row(rows[0])

    async def page(
        self, *, status: str | None, task: str | None, workflow: str | None, limit: int, cursor: str | None
    ) -> SchedulePage:
        wanted, after = None if not status else json_text(_statuses(status)), cursor or ""
        rows = await self._readers.fetch(sql.SHOWN_AFTER, self._untrusted, after, wanted, task, limit + 1, workflow)
        ((total,),) = await self._readers.fetch(sql.HOW_MANY)
        items = [schedule_of_row(row) for row in rows[:limit]]
        following = items[-1].name if len(rows) > limit else None
        return SchedulePage(items=items, total=total, next_cursor=following, waits=self._trust.reason or None)

    async def by_status(self) -> dict[str, int]:
        return dict(await self._readers.fetch(sql.COUNT_BY_STATUS, self._untrusted))

    def definition(self, name: str) -> Definition:
        """NotFound if there is none."""
        rows = self._readers.point(sql.SHOWN_BY_NAME, self._untrusted, name)
        if not rows:
            raise NotFound("schedule", name)
        return from_text(rows[0][1])

    async def history(self, name: str, *, limit: int, cursor: str | None) -> FirePage:
        self.schedule(name)
        before = 1 << 62
        if cursor is not None:
            if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
                raise InvalidRequest("cursor", "is none that a page gave as next_cursor")
            before = int(cursor)
        rows = await self._readers.fetch(sql.FIRES_BEFORE, name, before, limit + 1)
        following = str(rows[limit - 1][0]) if len(rows) > limit else None
        return FirePage(items=[_fire(row) for row in rows[:limit]], next_cursor=following)

    @property
    def _untrusted(self) -> int:
        return int(not self._trust.trusted)


def preview_of(name: str, definition: Definition, n: int, after_ms: int) -> Preview:
    """Of a definition that is resolved."""
    return Preview(
        name=name, sentence=sentence(definition), runs=runs_of(definition, n, after_ms), **_contract(definition)
    )


def runs_of(definition: Definition, n: int, after_ms: int) -> list[Run]:
    table, timezone = timetable_of(definition), definition.timezone or "UTC"
    found: list[Run] = []
    slot = table.next_after(after_ms)
    while slot is not None and len(found) < n:
        found.append(Run(scheduled_for=rfc3339(slot) or "", local=local(slot, timezone), note=table.note(slot)))
        slot = table.next_after(slot)
    return found


def schedule_of_row(row: tuple[Any, ...]) -> Schedule:
    """The shape of a row of ``schedule_statements.SHOWN``."""
    (
        name, text, source, origin, status, next_slot, fire_at, paused_at, paused_reason, missing_since, failures, last, is_open,
        created_at, updated_at,
    ) = row  # fmt: skip
    d = from_text(text)
    running, waiting = msgspec.json.decode(is_open)
    return Schedule(
        **_contract(d),
        name=name,
        status=status,
        sentence=sentence(d),
        source=source,
        origin=origin,
        next_run=None if fire_at is None else rfc3339(next_slot),
        last_run=None if last is None else _last(*msgspec.json.decode(last)),
        running=running,
        waiting=waiting,
        failures=failures,
        paused_at=rfc3339(paused_at),
        paused_reason=paused_reason,
        missing_since=rfc3339(missing_since),
        created_at=rfc3339(created_at) or "",
        updated_at=rfc3339(updated_at) or "",
    )


def _contract(d: Definition) -> dict[str, Any]:
    """All fields of a definition, as they are shown."""
    return {
        **{field: getattr(d, field) for field in d.__struct_fields__},
        "anchor": None if d.anchor is None else rfc3339(to_ms(d.anchor)),
        "at": None if d.at is None else rfc3339(to_ms(d.at)),
        "timezone": d.timezone or "UTC",
    }


def _last(
    slot: int,
    fired_at: int,
    kind: str,
    outcome: str,
    run_id: str | None,
    ended: str | None,
    reason: str | None,
    flow: int,
) -> LastRun:
    return LastRun(
        scheduled_for=rfc3339(slot) or "",
        fired_at=rfc3339(fired_at) or "",
        kind=kind,
        outcome=outcome,
        job_id=None if flow else run_id,
        workflow_id=run_id if flow else None,
        status=ended,
        reason=reason,
    )


def _fire(row: tuple[Any, ...]) -> Fire:
    _, slot, fired_at, kind, outcome, run_id, state, missed, reason, flow = row
    return Fire(
        scheduled_for=rfc3339(slot) or "",
        fired_at=rfc3339(fired_at) or "",
        kind=kind,
        outcome=outcome,
        job_id=None if flow else run_id,
        workflow_id=run_id if flow else None,
        status=state if run_id is not None else None,
        missed=missed,
        reason=reason,
    )


def _statuses(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in STATUSES:
            raise InvalidRequest("status", f"{name!r} is none of {', '.join(STATUSES)}")
    return names
