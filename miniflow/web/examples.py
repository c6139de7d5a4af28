"""Examples for the OpenAPI document: what requests and answers look like. A test holds each against its type."""

from __future__ import annotations

from typing import Any

import msgspec

ID = "0199e0c4-7d3e-7a41-9c1f-2b6e5d8a4f10"
AT = "2026-01-31T12:00:00.000Z"
NEW: dict[str, Any] = {
    "id": ID, "task": "greet", "type": "greet", "queue": "default", "priority": 0, "status": "queued",
    "payload": {"name": "Ada"}, "attempt": 0, "max_retries": 3, "idempotency_key": ID, "request_id": ID, "step_index": 0,
    "timeout": 900.0, "created_at": AT, "updated_at": AT,
}  # fmt: skip
BRIEF: dict[str, Any] = {
    **NEW, "status": "completed", "attempt": 1, "worker_id": "thread-1", "started_at": "2026-01-31T12:00:00.002Z",
    "completed_at": "2026-01-31T12:00:00.004Z", "updated_at": "2026-01-31T12:00:00.004Z", "change": 4711,
}  # fmt: skip
JOB = {**BRIEF, "result": ["Hello, Ada!"]}
RUNNING = {
    **NEW, "status": "running", "attempt": 1, "cancel_requested_at": AT, "change": 4711,
    "progress": {"done": 3.0, "total": 10.0, "percent": 30.0, "message": "reading", "remaining": 7.1, "at": AT},
}  # fmt: skip
CANCELLED = {**NEW, "status": "cancelled", "completed_at": AT, "change": 4711}
REQUEUED = {**NEW, "change": 4712}
ATTEMPT = {
    "attempt": 1, "outcome": "failed", "worker_id": "thread-1", "started_at": AT, "finished_at": "2026-01-31T12:00:01.000Z",
    "error_type": "ValueError", "error": "no such guest", "traceback": "Traceback (most recent call last): …",
}  # fmt: skip
LINE = {"id": 17, "level": "INFO", "message": "attempt 1: greeting Ada", "ts": AT, "attempt": 1}
LOG = f"{AT} INFO  attempt 1: greeting Ada\n"
QUEUE = {
    "name": "default", "pending": 0, "scheduled": 2, "queued": 5, "running": 4, "retrying": 0, "completed": 1200,
    "dead_letter": 3, "cancelled": 0, "expired": 0, "oldest_queued_age": 0.4, "served": True,
    "paused_at": None, "concurrency": 5, "rate": "10/minute",
}  # fmt: skip
TASK = {
    "name": "greet", "description": "Greet somebody, more than once if need be.", "queue": "default", "priority": 0,
    "executor": "thread", "max_retries": 5, "timeout": 900.0, "ttl": None, "heartbeat": None, "on_stall": None,
    "limits": None,
    "retry": {"base": 1.0, "factor": 2.0, "max_delay": 60.0, "jitter": 0.1}, "module": "greet", "file": "tasks/greet.py",
    "concurrency": 2, "rate": None, "concurrency_key": ["name"], "concurrency_per_key": 1, "on_conflict": "wait", "unique": None,
    "debounce": None,
    "schema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
}  # fmt: skip
LIMITS: dict[str, Any] = {
    "pause it": {"paused": True},
    "five at once": {"concurrency": 5},
    "no limit any more": {"concurrency": None, "rate": None},
}
WORKERS = {
    "items": [
        {"id": "thread-1", "executor": "thread", "busy": True, "job_id": ID, "task": "greet", "queue": "default",
         "attempt": 1, "started_at": AT, "running_for": 0.2},
        {"id": "thread-2", "executor": "thread", "busy": False},
    ],
    "slots": {"thread": 4, "async": 100},
    "event_loop": {"lag": 0.001, "lag_max": 0.31, "held_by": {"crunch": 12.5}},
    "async_loop": {"lag": 0.0, "lag_max": 2.5, "held_by": {"fetch": 3.0}},
}  # fmt: skip
EXPLAINED = {
    "id": ID,
    "status": "queued",
    "reasons": [
        {
            "code": "slots_taken",
            "text": f"1 of 1 slot of task greet is held by {ID}; it is the next",
            "jobs": [ID],
        }
    ],
    "next": "It begins when that is over",
    "text": f"1 of 1 slot of task greet is held by {ID}; it is the next. It begins when that is over.",
}
SUBMITS: dict[str, Any] = {
    "the task and its payload": {"task": "greet", "payload": {"name": "Ada"}},
    "with everything": {
        "task": "greet", "payload": {"name": "Ada", "times": 2}, "queue": "default", "priority": "high", "timeout": 60,
        "max_retries": 3, "retry": {"base": 1, "factor": 2, "max_delay": 60, "jitter": 0.1}, "ttl": 3600,
        "heartbeat": 30, "on_stall": "retry",
        "idempotency_key": "order-4711", "tags": ["readme"], "meta": {"customer": 17}, "description": "a greeting",
    },
    "once at a time for each name": {"task": "greet", "payload": {"name": "Ada"}, "unique": {"fields": ["name"]}},
    "when nothing has come for 5 s": {"task": "greet", "payload": {"name": "Ada"}, "debounce": {"wait": 5, "max_wait": 60}},
    "in an hour": {"task": "greet", "payload": {"name": "Ada"}, "delay": 3600},
}  # fmt: skip
BULK: dict[str, Any] = {
    "those of a filter": {"filter": {"status": "dead_letter", "task": "greet"}, "dry_run": True},
    "these": {"ids": [ID]},
    "every one": {"all": True, "dry_run": True},
}
_json = msgspec.json.encode
EVENT = f"id: 4711-17\nevent: job\ndata: {_json(BRIEF).decode()}\n\n"
JOB_EVENTS = f'retry: 1000\n\n{EVENT}event: end\ndata: {{"status": "completed"}}\n\n'
LINES = f'retry: 1000\n\nid: 17\nevent: line\ndata: {_json(LINE).decode()}\n\nevent: end\ndata: {{"status": "completed"}}\n\n'
PROMETHEUS = (
    '# HELP miniflow_jobs Jobs in the file, by state.\n# TYPE miniflow_jobs gauge\nminiflow_jobs{state="queued"} 5.0\n'
)
NDJSON = '{"task": "noop"}\n{"task": "noop", "priority": 5}\n'
