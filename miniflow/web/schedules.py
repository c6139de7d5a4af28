"""Schedules over HTTP. What is shown of one, its contract included, is the same in a list, after a change and on its own."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from litestar import Response, delete, get, patch, post
from litestar.params import Parameter

from miniflow import schedule_queries
from miniflow.clock import to_ms
from miniflow.contract import NAME_CHARS_MAX, Definition, Short, check_name, moment
from miniflow.errors import InvalidRequest
from miniflow.filters import read_time
from miniflow.schedule_queries import PAGE_MAX, Run, preview_of
from miniflow.web.api import AnyRequest, respond
from miniflow.web.backend import Backend
from miniflow.web.problems import decoded
from miniflow.workflow_intake import NewWorkflow

RUNS_MAX = 1000
"""Times to come that are told at once."""
RUNS_SHOWN = 5

Limit = Annotated[int, Parameter(ge=1, le=PAGE_MAX, description="how many on a page")]
Cursor = Annotated[str | None, Parameter(description="`next_cursor` of the page before")]
Status = Annotated[
    str | None,
    Parameter(
        description=f"one, or several separated by commas: {', '.join(schedule_queries.STATUSES)}",
    ),
]
TaskName = Annotated[str | None, Parameter(description="only schedules of this task")]
WorkflowName = Annotated[str | None, Parameter(description="only schedules of this kept workflow")]
Many = Annotated[int, Parameter(ge=1, le=RUNS_MAX, description="how many times to come")]
DryRun = Annotated[bool, Parameter(description="store nothing: say what it would mean")]
After = Annotated[
    str | None,
    Parameter(description="times later than this, in the schedule's zone where it has no offset; else than now"),
]


class NewSchedule(Definition, kw_only=True, forbid_unknown_fields=True):
    """A schedule to be: its name, and what it runs, when, and by which rules. Durations are seconds.

    It runs a ``task`` or a ``workflow`` that is kept under a name. One of ``cron``, ``every`` and ``at`` says when; times without
    an offset are in ``timezone``. The fields from ``queue`` on are for its jobs, as in a submit; of a workflow there are
    ``timeout``, ``meta`` and ``description``.
    """

    name: Short


def _changes() -> type[msgspec.Struct]:
    """Definition with each field left out unless it is given, and null where that is what it was before it was given."""
    fields = [
        (
            field.name,
            field.type | msgspec.UnsetType
            if field.required or field.type is msgspec.Raw
            else field.type | None | msgspec.UnsetType,
            msgspec.UNSET,
        )
        for field in msgspec.structs.fields(Definition)
    ]
    return msgspec.defstruct(
        "ScheduleChange", fields, kw_only=True, forbid_unknown_fields=True, namespace={"__doc__": "What is to change."}
    )


ScheduleChange = _changes()


class PauseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Why; it is shown with the schedule."""

    reason: Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)] | None = None


class BackfillRequest(msgspec.Struct, forbid_unknown_fields=True, rename={"start": "from", "end": "to"}):
    """The span, both ends included; times without an offset are in the schedule's zone, and ``to`` is now where it is left out.
    With ``dry_run`` it is only counted."""

    start: dt.datetime
    end: dt.datetime | None = None
    dry_run: bool = False


_new = msgspec.json.Decoder(NewSchedule).decode
_change = msgspec.json.Decoder(ScheduleChange).decode
_pause = msgspec.json.Decoder(PauseRequest).decode
_backfill = msgspec.json.Decoder(BackfillRequest).decode

# ------------------------------------------------------------------------------------------------------- making, changing


@post("/api/v1/schedules", summary="Make a schedule", status_code=201)
async def create_schedule(request: AnyRequest, backend: Backend, dry_run: DryRun = False) -> Response[bytes]:
    """It fires from now on: a time that is over is not made up for. What was left open is answered as it holds. With ``dry_run``
    nothing is stored: the answer (200) says what the schedule would mean, and its next times."""
    given = decoded(_new, await request.body())
    fields = {name: getattr(given, name) for name in Definition.__struct_fields__}
    definition = backend.schedules.checked(Definition(**fields))
    if dry_run:
        check_name(given.name)
        return respond(await asyncio.to_thread(preview_of, given.name, definition, RUNS_SHOWN, backend.clock.now_ms()))
    await backend.verb(backend.schedules.create(given.name, definition))
    path = f"/api/v1/schedules/{quote(given.name, safe='')}"
    return respond(backend.schedule_queries.schedule(given.name), 201, {"location": path})


@patch("/api/v1/schedules/{name:str}", summary="Change a schedule")
async def change_schedule(request: AnyRequest, name: str, backend: Backend) -> Response[bytes]:
    """The fields that are given change, null is as if the field had never been given, and the rest stays. What was due before the
    change runs as it was promised. A schedule in code or in miniflow.toml is changed there: 409."""
    body = await request.body()
    decoded(_change, body)
    await backend.verb(backend.schedules.change(name, msgspec.json.decode(body)))
    return respond(backend.schedule_queries.schedule(name))


@delete("/api/v1/schedules/{name:str}", summary="Delete a schedule")
async def delete_schedule(name: str, backend: Backend) -> None:
    """With its history; its jobs stay. One that stands in code or in miniflow.toml is taken out there: 409."""
    await backend.verb(backend.schedules.delete(name))


@post("/api/v1/schedules/{name:str}/pause", summary="Pause a schedule", status_code=200)
async def pause_schedule(request: AnyRequest, name: str, backend: Backend) -> Response[bytes]:
    """It fires no more until it is resumed; its jobs go on. To pause one that is paused changes nothing."""
    body = await request.body()
    wanted = decoded(_pause, body) if body.strip() else PauseRequest()
    await backend.verb(backend.schedules.pause(name, wanted.reason))
    return respond(backend.schedule_queries.schedule(name))


@post("/api/v1/schedules/{name:str}/resume", summary="Resume a schedule", status_code=200)
async def resume_schedule(name: str, backend: Backend) -> Response[bytes]:
    """It goes on with the next time. What lay in the pause is not made up for; a backfill can. Failures count anew."""
    await backend.verb(backend.schedules.resume(name))
    return respond(backend.schedule_queries.schedule(name))


@post("/api/v1/schedules/{name:str}/run", summary="Run a schedule now", status_code=201)
async def run_schedule(name: str, backend: Backend) -> Response[bytes]:
    """A job, or a workflow, now, beside the timetable, whatever else of it runs, and also if it is paused."""
    run = await backend.verb(backend.schedules.run_now(name))
    if isinstance(run, NewWorkflow):
        return respond(backend.workflow_queries.workflow(run.id), 201, {"location": f"/api/v1/workflows/{run.id}"})
    return respond(backend.queries.job(run.id), 201, {"location": f"/api/v1/jobs/{run.id}"})


@post("/api/v1/schedules/{name:str}/backfill", summary="Run what was missed", status_code=200)
async def backfill_schedule(request: AnyRequest, name: str, backend: Backend) -> Response[bytes]:
    """A job for each time in the span that has not had one, as many as ``done`` says; ask with ``dry_run`` first. They run one
    after the other, unless the schedule allows overlaps."""
    wanted = decoded(_backfill, await request.body())
    definition = backend.schedule_queries.definition(name)
    now_ms, zone = backend.clock.now_ms(), definition.timezone or "UTC"
    first_ms = _ms(wanted.start, zone, "from")
    last_ms = now_ms if wanted.end is None else min(_ms(wanted.end, zone, "to"), now_ms)
    if wanted.end is not None and first_ms > _ms(wanted.end, zone, "to"):
        raise InvalidRequest("to", "is before from")
    if first_ms > now_ms:
        raise InvalidRequest("from", "is still to come; a backfill is of what is over")
    meant = await asyncio.to_thread(backend.schedules.slots_between, definition, first_ms, last_ms)
    verb = backend.schedules.backfill(name, definition, meant, dry_run=wanted.dry_run)
    return respond(await backend.verb(verb))


def _ms(when: dt.datetime, zone: str, field: str) -> int:
    return to_ms(moment(when, zone, field))


# ----------------------------------------------------------------------------------------------------------------- looking


@get("/api/v1/schedules", summary="List schedules")
async def list_schedules(
    backend: Backend,
    status: Status = None,
    task: TaskName = None,
    workflow: WorkflowName = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response[bytes]:
    """By name, each with its contract, what came of its last time and when the next one is. ``waits`` is there while the
    machine's clock cannot be trusted, and says why no schedule fires."""
    page = backend.schedule_queries.page(status=status, task=task, workflow=workflow, limit=limit, cursor=cursor)
    return respond(await page)


@get("/api/v1/schedules/{name:str}", summary="One schedule")
async def get_schedule(name: str, backend: Backend) -> Response[bytes]:
    """As in the list."""
    return respond(backend.schedule_queries.schedule(name))


@get("/api/v1/schedules/{name:str}/next", summary="The next times of a schedule")
async def next_runs(name: str, backend: Backend, n: Many = 10, after: After = None) -> Response[bytes]:
    """The times that it means, whether or not it fires now, in UTC and as clocks in its zone show them. ``note`` says what is
    unusual about one: that it comes right after an hour that does not exist, or in one that exists twice."""
    definition = backend.schedule_queries.definition(name)
    zone = definition.timezone or "UTC"
    after_ms = _ms(read_time(after, "after"), zone, "after") if after else backend.clock.now_ms()
    found: list[Run] = await asyncio.to_thread(schedule_queries.runs_of, definition, n, after_ms)
    return respond({"items": found})


@get("/api/v1/schedules/{name:str}/history", summary="What became of a schedule's times")
async def schedule_history(name: str, backend: Backend, limit: Limit = 50, cursor: Cursor = None) -> Response[bytes]:
    """Newest first, with the job or the workflow of each: what ran, what waits for the run before it, what was skipped, missed or
    refused, and why. The last 1,000 are kept."""
    return respond(await backend.schedule_queries.history(name, limit=limit, cursor=cursor))


ROUTES: list[Any] = [
    create_schedule,
    list_schedules,
    get_schedule,
    change_schedule,
    delete_schedule,
    pause_schedule,
    resume_schedule,
    run_schedule,
    backfill_schedule,
    next_runs,
    schedule_history,
]
