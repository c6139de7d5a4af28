"""What the server answers about schedules, as Python objects; see ``answers``."""

from __future__ import annotations

import datetime as dt
from typing import Any

from miniflow.answers import Answer


class LastRun(Answer):
    """What became of the newest time that was decided upon. ``status`` is the state that its job or its
    workflow ended in."""

    scheduled_for: dt.datetime
    outcome: str = ""
    kind: str = ""
    fired_at: dt.datetime | None = None
    job_id: str | None = None
    workflow_id: str | None = None
    status: str | None = None
    reason: str | None = None


class Fire(LastRun):
    """What became of one time that a schedule meant. ``kind``: ``due``, ``catchup``, ``backfill`` or ``manual``; ``outcome``:
    ``fired`` (``status`` is the state of the job or the workflow), ``waiting``, ``skipped``, ``missed`` or ``refused``. One that
    was missed stands for as many as ``missed`` says, 1000 for that many or more."""

    missed: int | None = None


class Run(Answer):
    """A time to come: in UTC, as clocks in the schedule's zone show it, and what is unusual about it."""

    scheduled_for: dt.datetime
    local: str = ""
    note: str | None = None


class Contract(Answer):
    """What a schedule runs, when – ``sentence`` says it in words –, and by which rules. Durations are seconds."""

    name: str = ""
    sentence: str = ""
    task: str | None = None
    payload: Any = None
    workflow: str | None = None
    input: Any = None
    cron: str | None = None
    every: float | None = None
    anchor: dt.datetime | None = None
    at: dt.datetime | None = None
    timezone: str = "UTC"
    on_gap: str | None = None
    on_overlap: str | None = None
    catchup: str = ""
    catchup_window: float = 0
    catchup_max: int = 0
    overlap: str = ""
    pause_after_failures: int = 0
    jitter: float = 0
    queue: str | None = None
    priority: int | str | None = None
    timeout: float | None = None
    max_retries: int | None = None
    ttl: float | None = None
    tags: list[str] | None = None
    meta: dict[str, Any] | None = None
    description: str | None = None


class Schedule(Contract):
    """A schedule as it was when the server answered: its contract, and how it stands.

    ``next_run`` is the next time that it means, None if it does not fire. ``running`` is how many of its runs have not ended,
    ``waiting`` how many runs wait for those. ``source`` is who defines it: ``api``, ``code`` or ``file``.
    """

    status: str = ""
    source: str = ""
    origin: str | None = None
    next_run: dt.datetime | None = None
    last_run: LastRun | None = None
    running: int = 0
    waiting: int = 0
    failures: int = 0
    paused_at: dt.datetime | None = None
    paused_reason: str | None = None
    missing_since: dt.datetime | None = None
    created_at: dt.datetime | None = None
    updated_at: dt.datetime | None = None


class Preview(Contract):
    """What a schedule would be, and its next times."""

    runs: tuple[Run, ...] = ()


class SchedulePage(Answer):
    """A page of schedules. ``waits`` says why none fires, while the machine's clock cannot be trusted."""

    items: tuple[Schedule, ...] = ()
    next_cursor: str | None = None
    total: int | None = None
    waits: str | None = None


class FirePage(Answer):
    """A page of a schedule's history, newest first."""

    items: tuple[Fire, ...] = ()
    next_cursor: str | None = None


class Backfilled(Answer):
    """``slots`` times lie in the span, ``already`` of them have run or are about to; ``done`` runs were made for the others, or
    in a dry run would be."""

    slots: int
    already: int = 0
    done: int = 0
    dry_run: bool = False
