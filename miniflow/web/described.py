"""What each operation takes and answers, for the OpenAPI document: types, examples, statuses. See ``document``.

A new route needs an entry in OPERATIONS; a test names the one that has none. The types that are made here are answers that the
handlers put together as they go.
"""

from __future__ import annotations

from types import GenericAlias
from typing import Any, NotRequired, TypedDict

from miniflow import intake
from miniflow.bulk import Outcome
from miniflow.control import PoolSizeChange, QueueChange, TaskChange
from miniflow.explain import Explanation
from miniflow.listing import Page
from miniflow.minutes import MinutesPage, Stats, Summary
from miniflow.queries import Attempt, Job, LogLine, QueueInfo
from miniflow.roster import EventLoop, Slots, Worker
from miniflow.web import classic, described_definitions, described_schedules, described_traces, described_workflows
from miniflow.web.describing import one, readable
from miniflow.web.document import EVENT_STREAM, Answer, Api, Body, Operation
from miniflow.web.examples import (
    AT,
    ATTEMPT,
    BRIEF,
    BULK,
    CANCELLED,
    EVENT,
    EXPLAINED,
    ID,
    JOB,
    JOB_EVENTS,
    LIMITS,
    LINE,
    LINES,
    LOG,
    NDJSON,
    NEW,
    PROMETHEUS,
    QUEUE,
    REQUEUED,
    RUNNING,
    SUBMITS,
    TASK,
    WORKERS,
)
from miniflow.web.fields import FIELDS
from miniflow.web.jobs import BulkRequest, ReplayFilter
from miniflow.web.system import TaskInfo

DESCRIPTION = """
Jobs are submitted, run by the workers of this server, and looked at by their ids. Names are snake_case, times RFC 3339 in UTC,
durations seconds.

**Errors** under `/api/v1` are problem details (RFC 9457): a `code` for programs, a `detail` for people, the wrong `field`.

**A search** (`q` with text in it) has two seconds. One that takes longer is given up: 422 with the code `search_too_expensive`,
from the list of jobs and from bulk verbs. Narrow it by status, queue, task or dates.

**`X-Request-ID`** may come with any request. It is answered, stored with the job that is submitted, and in its log. Most
answers say in `X-Process-Time-MS` how many milliseconds they took.
"""

TAGS = {
    "jobs": "Submit jobs, look at them, act on them.",
    "bulk": "Act on many jobs at once. With `dry_run` it is only counted. What changes first and is meant no more is `refused`.",
    "dead letters": "Jobs that failed for good.",
    "schedules": "Jobs by the clock.",
    "workflows": "Steps that follow one another, each of them a job.",
    "traces": "What took how long in a run, for OpenTelemetry too.",
    "logs": "What jobs logged.",
    "events": "Jobs as they change.",
    "system": "Queues, tasks and workers.",
    "figures": "Numbers for people, charts and Prometheus.",
    "health": "For whoever watches over the server.",
    "classic": "The routes of the services that MiniFlow grew out of, with their keys and names of states.",
}

# --------------------------------------------------------------------------------------- requests, and answers without a class


Submission = readable(intake.Submission)
Batch = GenericAlias(list, (Submission,))
ClassicSubmit = readable(classic.Submit)
ClassicSubmitJob = readable(classic.SubmitJob)

Ids = TypedDict(
    "Ids",
    {
        "ids": list[str], "count": int, "replayed": NotRequired[int], "existing": NotRequired[list[int]],
        "debounced": NotRequired[list[int]],
    },
)  # fmt: skip
Result = TypedDict("Result", {"id": str, "status": str, "result": Any})
NoResultYet = TypedDict("NoResultYet", {"id": str, "status": str, "detail": str})
NoResult = TypedDict("NoResult", {"id": str, "status": str, "error": str | None, "detail": str})
Attempts = TypedDict("Attempts", {"items": list[Attempt]})
Lines = TypedDict("Lines", {"items": list[LogLine], "next_after_id": int})
JobEvent = TypedDict("JobEvent", {"id": str, "job": Job})
JobEvents = TypedDict("JobEvents", {"items": list[JobEvent], "next_after": str, "reset": NotRequired[bool]})
Replayed = TypedDict("Replayed", {"replayed": int})
Queues = TypedDict("Queues", {"items": list[QueueInfo]})
Tasks = TypedDict("Tasks", {"items": list[TaskInfo]})
Workers = TypedDict(
    "Workers", {"items": list[Worker], "slots": Slots, "event_loop": EventLoop, "async_loop": EventLoop}
)
Alive = TypedDict("Alive", {"ok": bool, "status": str})
Health = TypedDict("Health", {"name": str, "status": str, "version": str, "databaseAvailable": bool})
Ready = TypedDict("Ready", {"ready": bool, "detail": NotRequired[str]})
ClassicId = TypedDict("ClassicId", {"job_id": str})
ClassicStatus = TypedDict("ClassicStatus", {"job_id": str, "status": str, "progress": Any, "updated_at": str})
ClassicResult = TypedDict("ClassicResult", {"job_id": str, "result": Any})
ClassicNoResult = TypedDict(
    "ClassicNoResult", {"detail": str, "status": NotRequired[str], "error": NotRequired[str | None]}
)
ClassicLog = TypedDict("ClassicLog", {"job_id": str, "logs": list[LogLine], "next_after_id": int})
ClassicSubmitted = TypedDict("ClassicSubmitted", {"job_id": str, "status": str, "submitted_at": str})
ClassicMeta = TypedDict(
    "ClassicMeta", {"job_id": str, "submitted_at": str, "payload": Any, "task_name": str, "tags": list[str]}
)
ClassicJob = TypedDict(
    "ClassicJob",
    {
        "job_id": str, "id": str, "status": str, "meta": ClassicMeta, "enqueued_at": str, "started_at": str | None,
        "ended_at": str | None, "result": Any, "exc_info": str | None, "error": str | None, "progress": Any, "created_at": str,
        "updated_at": str,
    },
)  # fmt: skip
ClassicReplayed = TypedDict("ClassicReplayed", {"success": int, "failed": int, "status": str})
ClassicReplayedOne = TypedDict("ClassicReplayedOne", {"success": bool, "task_id": str, "status": str})
ClassicMade = TypedDict("ClassicMade", {"job_id": str, "job": str})
ClassicCreated = TypedDict("ClassicCreated", {"job_id": str, "status": str, "jobs": list[ClassicMade]})

# -------------------------------------------------------------------------------------------------------------- operations

OF_A_JOB = ("get_job", "get_result", "get_attempts", "get_logs", "follow_job", "cancel_job", "retry_job", "delete_job")
SUBMIT_HEADERS = ("Idempotency-Key", "X-Request-ID", "traceparent")
PAGE = {"items": [BRIEF], "next_cursor": "s17", "total": 1200}
MAKES_LOG = Answer(
    "the log as text", headers=("Content-Disposition",), shape=Lines, example={"items": [LINE], "next_after_id": 17},
    texts={"text/plain": LOG, EVENT_STREAM: LINES}, events=("line", "end"),
)  # fmt: skip


def _bulk(done: str) -> Operation:
    body = Body(BulkRequest, BULK)
    return one("bulk", done, Outcome, {"matched": 12, "done": 11, "refused": 1, "dry_run": False}, body=body)


OPERATIONS: dict[str, Operation] = {
    "POST /api/v1/jobs": Operation(
        "jobs",
        {
            201: Answer(
                "accepted: it is on the disk", Job, NEW, ("Location", "Idempotency-Replayed", "Submit-Outcome"), links=OF_A_JOB
            )
        },
        Body(Submission, SUBMITS),
        refusals=(409, 429),
        headers=SUBMIT_HEADERS,
    ),
    "POST /api/v1/jobs/batch": Operation(
        "jobs",
        {201: Answer("all are accepted", Ids, {"ids": [ID], "count": 1})},
        Body(Batch, {"two jobs": [{"task": "noop"}, {"task": "noop", "priority": 5}]}, lines=NDJSON),
        refusals=(409, 429),
        headers=("X-Request-ID", "traceparent"),
    ),
    "GET /api/v1/jobs": one("jobs", "a page of jobs", Page, PAGE),
    "GET /api/v1/jobs/{job_id}": Operation(
        "jobs", {200: Answer("the job", Job, JOB, ("ETag",)), 304: Answer("it is as If-None-Match names it", headers=("ETag",))}
    ),
    "DELETE /api/v1/jobs/{job_id}": Operation("jobs", {204: Answer("it is gone")}, refusals=(409,)),
    "GET /api/v1/jobs/{job_id}/result": Operation(
        "jobs",
        {
            200: Answer("the result", Result, {"id": ID, "status": "completed", "result": ["Hello, Ada!"]}),
            202: Answer(
                "there is none yet",
                NoResultYet,
                {"id": ID, "status": "running", "detail": "no result yet, the job is running"},
                ("Retry-After",),
            ),
            409: Answer(
                "there will be none",
                NoResult,
                {"id": ID, "status": "dead_letter", "error": "no", "detail": "the job is dead_letter: no"},
            ),
        },
    ),
    "GET /api/v1/jobs/{job_id}/explain": one("jobs", "why it is where it is", Explanation, EXPLAINED),
    "GET /api/v1/jobs/{job_id}/attempts": one("jobs", "its attempts", Attempts, {"items": [ATTEMPT]}),
    "POST /api/v1/jobs/{job_id}/cancel": Operation(
        "jobs",
        {200: Answer("it is cancelled", Job, CANCELLED), 202: Answer("it runs, and was asked to stop", Job, RUNNING)},
        refusals=(409,),
    ),
    "POST /api/v1/jobs/{job_id}/retry": one("jobs", "it is queued", Job, REQUEUED, refusals=(409,)),
    "POST /api/v1/jobs/bulk/cancel": _bulk("how many were cancelled, or asked to stop"),
    "POST /api/v1/jobs/bulk/retry": _bulk("how many went back to their queues"),
    "POST /api/v1/jobs/bulk/delete": _bulk("how many were deleted"),
    "GET /api/v1/dead-letters": one(
        "dead letters", "a page of jobs", Page, {"items": [{**BRIEF, "status": "dead_letter", "last_error": "no such guest"}]}
    ),
    "POST /api/v1/dead-letters/replay": one(
        "dead letters",
        "how many went back to their queues",
        Replayed,
        {"replayed": 3},
        body=Body(ReplayFilter, {"those of a task": {"task": "greet"}, "all": {}}, required=False),
    ),
    "POST /api/v1/dead-letters/{job_id}/replay": one("dead letters", "it is queued", Job, REQUEUED, refusals=(409,)),
    "GET /api/v1/jobs/{job_id}/logs": Operation("logs", {200: MAKES_LOG._replace(description="the log, in what was asked for")}),
    "GET /api/v1/logs/{job_id}": Operation("logs", {200: MAKES_LOG}),
    "GET /api/v1/{job_id}/logs": Operation("logs", {200: MAKES_LOG}),
    "GET /api/v1/events": Operation(
        "events",
        {
            200: Answer(
                "the stream, or with `format=json` a page",
                JobEvents,
                {"items": [{"id": "4711-17", "job": BRIEF}], "next_after": "4711-17"},
                texts={EVENT_STREAM: f"retry: 1000\nid: 4711-17\n\n{EVENT}"},
                events=("job", "reset"),
            )
        },
    ),
    "GET /api/v1/jobs/{job_id}/events": Operation(
        "events", {200: Answer("the stream", texts={EVENT_STREAM: JOB_EVENTS}, events=("job", "end"))}
    ),
    **described_workflows.OPERATIONS,
    **described_definitions.OPERATIONS,
    **described_traces.OPERATIONS,
    "GET /api/v1/queues": one("system", "the queues", Queues, {"items": [QUEUE]}),
    "GET /api/v1/queues/{name}": one("system", "the queue", QueueInfo, QUEUE),
    "PATCH /api/v1/queues/{name}": one("system", "the queue as it is now", QueueInfo, QUEUE, body=Body(QueueChange, LIMITS)),
    "POST /api/v1/queues/{name}": one("system", "the queue as it is now", QueueInfo, QUEUE),
    "GET /api/v1/tasks": one("system", "the tasks", Tasks, {"items": [TASK]}),
    "GET /api/v1/tasks/{name}": one("system", "the task", TaskInfo, TASK),
    "PATCH /api/v1/tasks/{name}": one(
        "system", "the task as it is now", TaskInfo, TASK, body=Body(TaskChange, {"two at once": {"concurrency": 2}})
    ),
    "GET /api/v1/workers": one("system", "the workers", Workers, WORKERS),
    "PATCH /api/v1/workers": one(
        "system", "the workers as they are now", Workers, WORKERS, body=Body(PoolSizeChange, {"eight threads": {"workers": 8}})
    ),
    "GET /metrics": Operation(
        "figures",
        {200: Answer("the metrics", texts={"text/plain": PROMETHEUS, "application/openmetrics-text": PROMETHEUS + "# EOF\n"})},
    ),
    "GET /api/v1/metrics": one(
        "figures",
        "the figures",
        Summary,
        {
            "avgProcessingTimeSeconds": 0.12,
            "dashboardMetrics": {
                "totalTasks": 1214, "pending": 7, "inProgress": 4, "completed": 1200, "failed": 3, "dlqCounts": 3,
            },
            "systemHealth": {"messagesReady": 5, "workersOnline": 4},
        },
    ),
    "GET /api/v1/metrics/minutes": one(
        "figures",
        "the minutes in which something happened",
        MinutesPage,
        {"items": [{"minute": "2026-01-31T12:00:00Z", "enqueued": {"greet": 60}, "run_ms": {"greet": 720}}]},
    ),
    "GET /stats": (
        stats := one(
            "figures",
            "the queues, and the last 24 hours",
            Stats,
            {
                "queues": {"default": {"queued": 5, "completed": 1200}},
                "throughput_per_hour": [{"hour": "2026-01-31T12:00:00Z", "enqueued": 60, "finished": 58, "failed": 2}],
            },
        )
    ),
    "GET /api/v1/stats": stats,
    "GET /health": one("health", "it is", Alive, {"ok": True, "status": "ok"}, always=True),
    "GET /ready": Operation(
        "health",
        {
            200: Answer("it does", Ready, {"ready": True}),
            503: Answer("it does not", Ready, {"ready": False, "detail": "the server is stopping"}, ("Retry-After",)),
        },
        always=True,
    ),
    "GET /api/v1/health": Operation(
        "health",
        {
            200: Answer(
                "it is", Health, {"name": "MiniFlow", "status": "healthy", "version": "v0.1.0", "databaseAvailable": True}
            ),
            503: Answer(
                "it is not", Health, {"name": "MiniFlow", "status": "unhealthy", "version": "v0.1.0", "databaseAvailable": False}
            ),
        },
    ),
    **described_schedules.OPERATIONS,
    "POST /submit": one(
        "classic",
        "accepted",
        ClassicId,
        {"job_id": ID},
        body=Body(ClassicSubmit, {"a task": {"task": "example_task", "payload": {"text": "Hello mini workflow engine"}}}),
        refusals=(409, 429),
        headers=SUBMIT_HEADERS,
    ),
    "GET /status/{job_id}": one(
        "classic", "its status", ClassicStatus, {"job_id": ID, "status": "finished", "progress": None, "updated_at": AT}
    ),
    "GET /result/{job_id}": Operation(
        "classic",
        {
            200: Answer("the result", ClassicResult, {"job_id": ID, "result": ["Hello, Ada!"]}),
            404: Answer(
                "there is none: not yet, not ever, or not even the job",
                ClassicNoResult,
                {"detail": "Result not available yet", "status": "started"},
                ("Retry-After",),
            ),
        },
    ),
    "GET /logs/{job_id}": Operation(
        "classic",
        {
            200: Answer(
                "its log", ClassicLog, {"job_id": ID, "logs": [LINE], "next_after_id": 17},
                texts={EVENT_STREAM: LINES}, events=("line", "end"),
            )
        },
    ),
    "POST /submit-job": one(
        "classic",
        "accepted",
        ClassicSubmitted,
        {"job_id": f"JOB-{ID}", "status": "queued", "submitted_at": AT},
        body=Body(ClassicSubmitJob, {"a task": {"task": "heavy_compute", "payload": {"user_id": 101, "message": "hello"}}}),
        refusals=(409, 429),
        headers=SUBMIT_HEADERS,
    ),
    "GET /job-status/{job_id}": one(
        "classic",
        "everything about it",
        ClassicJob,
        {
            "job_id": ID, "id": ID, "status": "finished", "enqueued_at": AT, "started_at": AT, "ended_at": AT,
            "meta": {"job_id": ID, "submitted_at": AT, "payload": {"name": "Ada"}, "task_name": "greet", "tags": []},
            "result": ["Hello, Ada!"], "exc_info": None, "error": None, "progress": None, "created_at": AT, "updated_at": AT,
        },
    ),
    "POST /api/v1/jobs/action/retry": one(
        "classic",
        "how many went back to their queues",
        ClassicReplayed,
        {"success": 3, "failed": 0, "status": "Replay successful"},
        refusals=(404,),
    ),
    "POST /api/v1/jobs/action/{job_id}/retry": one(
        "classic",
        "it is queued",
        ClassicReplayedOne,
        {"success": True, "task_id": ID, "status": "Replay successful"},
        refusals=(409,),
    ),
    "POST /create-jobs": one(
        "classic",
        "accepted",
        ClassicCreated,
        {"job_id": ID, "status": "enqueued", "jobs": [{"job_id": ID, "job": "TruncateTable"}]},
        body=Body(
            dict[str, Any],
            {"one job": {"job": "TruncateTable", "schema": "public", "table_name": "users"}},
            required=False,
        ),
        refusals=(429,),
        headers=("X-Request-ID", "traceparent"),
    ),
}  # fmt: skip

API = Api(
    DESCRIPTION.strip(),
    TAGS,
    OPERATIONS,
    FIELDS
    | described_schedules.FIELDS
    | described_workflows.FIELDS
    | described_definitions.FIELDS
    | described_traces.FIELDS,
    omitting=(
        Job,
        Attempt,
        Page,
        Worker,
        *described_schedules.OMITTING,
        *described_workflows.OMITTING,
        *described_definitions.OMITTING,
        *described_traces.OMITTING,
    ),
)
