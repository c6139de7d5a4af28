"""What the operations on schedules take and answer, for the OpenAPI document; see ``described``."""

from __future__ import annotations

from typing import Any, TypedDict

from miniflow.queries import Job
from miniflow.schedule_queries import Fire, FirePage, LastRun, Preview, Run, Schedule, SchedulePage
from miniflow.schedules import Backfilled
from miniflow.web import schedules
from miniflow.web.describing import one, readable
from miniflow.web.document import Answer, Body, Operation
from miniflow.web.examples import AT, ID, NEW
from miniflow.workflow_queries import Workflow

TIME = {"format": "date-time"}
NEXT = "2026-02-01T01:00:00.000Z"

NewSchedule = readable(schedules.NewSchedule)
ScheduleChange = readable(schedules.ScheduleChange)
Runs = TypedDict("Runs", {"items": list[Run]})

CONTRACT: dict[str, Any] = {
    "name": "nightly", "sentence": "At 02:00 every day, Europe/Berlin time", "task": "greet", "payload": {"name": "Ada"},
    "workflow": None, "input": None,
    "cron": "0 2 * * *", "every": None, "anchor": None, "at": None, "timezone": "Europe/Berlin", "on_gap": "run_after",
    "on_overlap": "first", "catchup": "latest", "catchup_window": 31_622_400.0, "catchup_max": 100, "overlap": "skip",
    "pause_after_failures": 5, "jitter": 0.0, "queue": None, "priority": None, "timeout": None, "max_retries": None,
    "ttl": None, "tags": None, "meta": None, "description": None,
}  # fmt: skip
FIRE: dict[str, Any] = {"scheduled_for": AT, "fired_at": AT, "kind": "due", "outcome": "fired", "job_id": ID}
SCHEDULE: dict[str, Any] = {
    **CONTRACT, "status": "active", "source": "api", "origin": None, "next_run": NEXT, "last_run": FIRE,
    "running": 1, "waiting": 0, "failures": 0, "paused_at": None, "paused_reason": None, "missing_since": None,
    "created_at": AT, "updated_at": AT,
}  # fmt: skip
PAUSED = {**SCHEDULE, "status": "paused", "next_run": None, "paused_at": AT, "paused_reason": "the source is down"}
RUN = {"scheduled_for": NEXT, "local": "2026-02-01T02:00:00+01:00"}
NEW_ONES: dict[str, Any] = {
    "by the wall clock": {
        "name": "nightly", "task": "greet", "payload": {"name": "Ada"}, "cron": "0 2 * * *", "timezone": "Europe/Berlin",
        "pause_after_failures": 5,
    },
    "an interval": {"name": "often", "task": "greet", "payload": {"name": "Ada"}, "every": 300, "overlap": "queue_one"},
    "a workflow": {"name": "report", "workflow": "report", "input": {"rounds": 500}, "cron": "0 6 * * mon-fri"},
    "once": {"name": "new year", "task": "greet", "payload": {"name": "Ada"}, "at": "2100-01-01T00:00:00", "timezone": "UTC"},
}  # fmt: skip
SPAN = {"the count first": {"from": "2026-01-30T00:00:00", "to": "2026-01-31T00:00:00", "dry_run": True}}

FIELDS: dict[str, str | dict[str, Any]] = {
    **{
        f"{kind}.{field}": TIME
        for kind, fields in {
            "Schedule": ("anchor", "at", "next_run", "paused_at", "missing_since"),
            "Preview": ("anchor", "at"),
            "LastRun": ("scheduled_for", "fired_at"),
            "Fire": ("scheduled_for", "fired_at"),
            "Run": ("scheduled_for", "local"),
        }.items()
        for field in fields
    },
    **{
        f"{kind}.{field}": text
        for kind in ("NewSchedule", "ScheduleChange", "Schedule")
        for field, text in {
            "task": "The name of the task",
            "payload": "What each of its jobs is given",
            "workflow": "A workflow that is kept under this name, or a durable function, in place of a task",
            "input": "What each of its workflows is given",
            "cron": "Five fields, or six with the second first; or `@daily` and its like",
            "every": "Seconds from one time to the next, counted from `anchor`",
            "timezone": "Whose clocks `cron` means, such as `Europe/Berlin`; the setting `timezone` where it is left out",
            "on_gap": "A time that does not exist, where clocks go forward: `run_after` it, or `skip`",
            "on_overlap": "A time that exists twice, where clocks go back: `first`, `second` or `both`",
            "catchup": "What was missed while the server was off: the `latest`, `all` or `none` of it runs",
            "catchup_window": "Seconds; what is older is not made up for",
            "catchup_max": "How many are made up for at most, the newest ones",
            "overlap": "While a run before it goes on: `skip`, `allow`, `queue_one`, `queue_all`, `cancel_running`",
            "pause_after_failures": "So many failed runs in a row pause it; 0: none do",
            "jitter": "Each run is put off by a random time of up to so many seconds",
        }.items()
    },
}
OMITTING = (Fire, FirePage, LastRun, Run, SchedulePage)


def _verb(done: str, example: Any, **more: Any) -> Operation:
    return one("schedules", done, Schedule, example, **more)


OPERATIONS: dict[str, Operation] = {
    "POST /api/v1/schedules": Operation(
        "schedules",
        {
            201: Answer("it is made", Schedule, SCHEDULE, ("Location",)),
            200: Answer("with `dry_run`: what it would be", Preview, {**CONTRACT, "runs": [RUN]}),
        },
        Body(NewSchedule, NEW_ONES),
        refusals=(409,),
    ),
    "GET /api/v1/schedules": one("schedules", "a page of schedules", SchedulePage, {"items": [SCHEDULE], "total": 1}),
    "GET /api/v1/schedules/{name}": _verb("the schedule", SCHEDULE),
    "PATCH /api/v1/schedules/{name}": _verb(
        "it is changed",
        SCHEDULE,
        body=Body(ScheduleChange, {"other times": {"cron": "0 3 * * *"}, "another rule": {"overlap": "queue_one"}}),
        refusals=(409,),
    ),
    "DELETE /api/v1/schedules/{name}": Operation("schedules", {204: Answer("it is gone")}, refusals=(409,)),
    "POST /api/v1/schedules/{name}/pause": _verb(
        "it is paused",
        PAUSED,
        body=Body(schedules.PauseRequest, {"with a reason": {"reason": "the source is down"}, "without": {}}, required=False),
    ),
    "POST /api/v1/schedules/{name}/resume": _verb("it goes on", SCHEDULE),
    "POST /api/v1/schedules/{name}/run": Operation(
        "schedules",
        {201: Answer("its run", (Job, Workflow), {**NEW, "schedule": "nightly", "scheduled_for": AT}, ("Location",))},
        refusals=(422, 429),
    ),
    "GET /api/v1/schedules/{name}/next": one("schedules", "the times to come", Runs, {"items": [RUN]}),
    "GET /api/v1/schedules/{name}/history": one("schedules", "a page of times", FirePage, {"items": [FIRE]}),
    "POST /api/v1/schedules/{name}/backfill": one(
        "schedules",
        "how many, and whether they run",
        Backfilled,
        {"slots": 30, "already": 28, "done": 2, "dry_run": False},
        body=Body(schedules.BackfillRequest, SPAN),
        refusals=(409,),
    ),
}  # fmt: skip
