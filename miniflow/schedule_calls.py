"""What a client can ask about schedules, said once for ``Client`` and ``AsyncClient``; see ``calls``."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

import msgspec

from miniflow.answers import Job, decoded
from miniflow.calls import PAGE, named
from miniflow.exchange import Ask, Flow, Give, Items, one, send
from miniflow.schedule_answers import Backfilled, Fire, FirePage, Preview, Run, Schedule, SchedulePage
from miniflow.workflow_answers import Workflow
from miniflow.workflow_calls import PATH as WORKFLOWS

PATH = "/api/v1/schedules"

Span: TypeAlias = float | dt.timedelta
When: TypeAlias = dt.datetime | str


class ScheduleOptions(TypedDict, total=False):
    """When a schedule runs, and by which rules. Durations are seconds or timedeltas; what is left out is the default.

    One of ``cron``, ``every`` (from ``anchor`` on) and ``at`` says when; times without an offset are in ``timezone``. What
    follows ``jitter`` is for its jobs, as in a submit. ``workflow`` is one that is kept under that name, in place of a task, and
    ``input`` what it is given. In ``change`` None is as if the option had never been given.
    """

    workflow: str | None
    input: Any
    cron: str | None
    every: Span | None
    anchor: When | None
    at: When | None
    timezone: str | None
    on_gap: Literal["run_after", "skip"] | None
    on_overlap: Literal["first", "second", "both"] | None
    catchup: Literal["none", "latest", "all"] | None
    catchup_window: Span | None
    catchup_max: int | None
    overlap: Literal["allow", "skip", "queue_one", "queue_all", "cancel_running"] | None
    pause_after_failures: int | None
    jitter: Span | None
    queue: str | None
    priority: int | Literal["low", "medium", "high"] | None
    timeout: Span | None
    max_retries: int | None
    ttl: Span | None
    tags: Sequence[str] | None
    meta: Mapping[str, Any] | None
    description: str | None


ScheduleRef: TypeAlias = str | Schedule
"""A schedule's name, or a Schedule that was given before."""

# --------------------------------------------------------------------------------------------------------- making, changing


def create(name: str, task: str | None, payload: Any, options: Mapping[str, Any]) -> Flow[Schedule]:
    return one(Schedule, PATH, "POST", body=_new(name, task, payload, options))


def preview(name: str, task: str | None, payload: Any, options: Mapping[str, Any]) -> Flow[Preview]:
    return one(Preview, PATH, "POST", params={"dry_run": True}, body=_new(name, task, payload, options))


def _new(name: str, task: str | None, payload: Any, options: Mapping[str, Any]) -> bytes:
    given = {"task": task, "payload": payload, **options}
    return _json({"name": name, **{key: value for key, value in given.items() if value is not None}})


def change(schedule: ScheduleRef, changes: Mapping[str, Any]) -> Flow[Schedule]:
    return one(Schedule, path_of(schedule), "PATCH", body=_json(changes))


def verb(name: str, schedule: ScheduleRef, body: Mapping[str, Any] | None = None) -> Flow[Schedule]:
    return one(Schedule, path_of(schedule, f"/{name}"), "POST", body=None if body is None else _json(body))


def run_now(schedule: ScheduleRef) -> Flow[Job | Workflow]:
    answer = yield from send(Ask(method="POST", path=path_of(schedule, "/run")))
    of_workflow = answer.headers.get("location", "").startswith(WORKFLOWS)
    return decoded(answer, Workflow) if of_workflow else decoded(answer, Job)


def delete(schedule: ScheduleRef) -> Flow[None]:
    yield from send(Ask(method="DELETE", path=path_of(schedule)))


def backfill(schedule: ScheduleRef, start: When, end: When | None, dry_run: bool) -> Flow[Backfilled]:
    wanted = {"from": start, "dry_run": dry_run, **({} if end is None else {"to": end})}
    return one(Backfilled, path_of(schedule, "/backfill"), "POST", body=_json(wanted))


def _json(value: Mapping[str, Any]) -> bytes:
    plain = {key: one.total_seconds() if isinstance(one, dt.timedelta) else one for key, one in value.items()}
    return msgspec.json.encode(plain)


# ----------------------------------------------------------------------------------------------------------------- looking


def get(schedule: ScheduleRef) -> Flow[Schedule]:
    return one(Schedule, path_of(schedule))


def page(
    *, status: str | None, task: str | None, workflow: str | None, limit: int, cursor: str | None = None
) -> Flow[SchedulePage]:
    asked = {"status": status, "task": task, "workflow": workflow, "limit": limit, "cursor": cursor}
    return one(SchedulePage, PATH, params=asked)


def all_pages(*, status: str | None, task: str | None, workflow: str | None, limit: int | None) -> Items[Schedule]:
    """The schedules of all pages, each page asked for when it is needed."""
    cursor, left = None, limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        found = yield from page(status=status, task=task, workflow=workflow, limit=size, cursor=cursor)
        for schedule in found.items:
            yield Give(schedule)
        cursor = found.next_cursor
        if cursor is None:
            return
        left = None if left is None else left - len(found.items)


class _Runs(msgspec.Struct):
    items: list[Run]


def next_runs(schedule: ScheduleRef, n: int, after: When | None) -> Flow[list[Run]]:
    moment = after.astimezone().isoformat() if isinstance(after, dt.datetime) else after
    found = yield from one(_Runs, path_of(schedule, "/next"), params={"n": n, "after": moment})
    return found.items


def history(schedule: ScheduleRef, limit: int | None) -> Items[Fire]:
    cursor, left = None, limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        found = yield from one(FirePage, path_of(schedule, "/history"), params={"limit": size, "cursor": cursor})
        for fire in found.items:
            yield Give(fire)
        cursor = found.next_cursor
        if cursor is None:
            return
        left = None if left is None else left - len(found.items)


def path_of(schedule: ScheduleRef, rest: str = "") -> str:
    return named(PATH, schedule if isinstance(schedule, str) else schedule.name, rest)
