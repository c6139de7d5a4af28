"""What the fields of requests and answers mean, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from miniflow.states import State

TIME = {"format": "date-time"}
FIELDS: dict[str, str | dict[str, Any]] = {
    **{
        f"*.{name}": TIME
        for name in (
            "created_at",
            "updated_at",
            "scheduled_at",
            "started_at",
            "completed_at",
            "ts",
            "minute",
            "stalled_at",
        )
    },
    "Job.id": "Given by the server; sorts by the time of the submit",
    "Job.type": "The same as `task`",
    "Job.workflow_id": "The workflow that it is a step of",
    "Job.step": "The name of that step",
    "Job.step_index": "Its place in the workflow, from 0",
    "Job.priority": "The higher, the earlier among those of its queue",
    "Job.status": {"enum": [*State]},
    "Job.payload": "Left out of lists where it is long",
    "Job.result": "What the task returned; once it is completed, and not in lists",
    "Job.progress": "What the task said last of how far it is: `done` of `total`, in `percent`, with a `message`; `remaining` is "
    "how many seconds it will still take, estimated `at` that time, and left out where that cannot be told",
    "Job.heartbeat": "Silent for so many seconds it is stalled; left out where it may be as silent as it likes",
    "Job.on_stall": "What happens then: `warn`, `retry` or `fail`",
    "Job.stalled_at": {"description": "It runs, and has been stalled since then", **TIME},
    "Job.attempt": "The attempt that runs, or the last one; 0 before the first",
    "Job.max_retries": "How many attempts may follow the first",
    "Job.crashes": "How often the process died under it",
    "Job.last_error": "Of the last attempt that failed",
    "Job.idempotency_key": "The job's id where none was given",
    "Job.request_id": "The `X-Request-ID` of its submit; the job's id where none was given",
    "Job.tags": {"type": "array", "items": {"type": "string"}},
    "Job.meta": {"type": "object"},
    "Job.timeout": "Seconds that an attempt may run",
    "Job.scheduled_at": {"description": "Not to be run before then", **TIME},
    "Job.expires_at": {"description": "Not to be begun after then", **TIME},
    "Job.depends_on": {
        "type": "array",
        "items": {"type": "string"},
        "description": "Jobs that must end before it begins; not in lists",
    },
    "Job.schedule": "The schedule that made it",
    "Job.scheduled_for": {"description": "The time that the schedule meant", **TIME},
    "Job.cancel_requested_at": {"description": "It was asked to stop then", **TIME},
    "Job.submit_outcome": {
        "description": "Of the answer to a submit that made no new job: why",
        "enum": ["replayed", "existing", "debounced", None],
    },
    "Submission.unique": "There is one such job at a time: `true` (by the whole payload), or what makes them the same",
    "Submission.debounce": "Begin when no such submit has come for so many seconds, with the payload of the last",
    "Submission.concurrency_key": "Jobs of a task with the same key run one at a time, or as many as the task says",
    "Submission.traceparent": "As the header; empty is none, also where a job submits another one",
    "Submission.task": "The name of the task",
    "Submission.type": "Another name for `task`; one of the two is needed",
    "Submission.payload": "What the task takes; `GET /api/v1/tasks` has the schema",
    "Submission.queue": "That of the task where it is left out",
    "Submission.priority": "-1000 to 1000, the highest first: `low` is 1, `medium` 6, `high` 10; else that of the task, or 0",
    "Submission.delay": "Seconds from now before which it is not run; or `run_at`",
    "Submission.run_at": {"description": "When to run it, with a time zone; or `delay`", **TIME},
    "Submission.ttl": "Seconds that it may wait to be begun; after that it is `expired`",
    "Submission.timeout": "Seconds that an attempt may run; 0 is no limit",
    "Submission.max_retries": "Attempts after the first; 3 where neither this nor the task says",
    "Submission.retry": "The wait before a retry: a formula, or a list of seconds",
    "Submission.idempotency_key": "As the header `Idempotency-Key`",
    "Submission.tags": "Words to find it by",
    "Submission.meta": "Anything of yours; kept as it is",
    "Submission.result_ttl": "Stored, and not acted upon yet",
    "Submission.failure_ttl": "Stored, and not acted upon yet",
    "Submission.depends_on": "Jobs that must end before it begins: their ids, or in a batch the places of jobs before it",
    "Submission.on_dependency_failure": "If one of those does not end well: `cancel` it too (the default), or `run` it",
    "Submission.heartbeat": "Seconds; silent for longer while it runs it is stalled. 0: it may be as silent as it likes",
    "Submission.on_stall": "What happens then: `warn` says so, `retry` interrupts it and runs it again, `fail` has it fail",
}
"""What fields mean whose name does not say it; "*" stands for any type."""
