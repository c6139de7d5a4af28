"""What the operations on workflows take and answer, for the OpenAPI document; see ``described``."""

from __future__ import annotations

from typing import Any

import msgspec

from miniflow import workflow_graph
from miniflow.function_intake import FunctionSubmission
from miniflow.step_shape import BadItem, Compensation, Items, ReceivedEvent, WorkflowStep
from miniflow.web import functions, workflows
from miniflow.web.describing import either, readable
from miniflow.web.document import EVENT_STREAM, Answer, Body, Operation
from miniflow.web.examples import AT, ID
from miniflow.workflow_queries import Workflow, WorkflowPage

JOB_ID = "0199e0c4-7d3e-7a41-9c1f-2b6e5d8a4f11"
NEW: dict[str, Any] = {
    "id": ID, "name": "report", "status": "running", "current_step": 0, "total_steps": 2, "created_at": AT, "updated_at": AT,
}  # fmt: skip
STEPS: list[dict[str, Any]] = [
    {"name": "greet", "index": 0, "job_id": JOB_ID, "task": "greet", "type": "greet", "status": "completed", "queue": "default",
     "attempt": 1, "max_retries": 5, "payload": {"name": "Ada"}, "output": ["Hello, Ada!"], "started_at": AT, "completed_at": AT},
    {"name": "again", "index": 1, "job_id": JOB_ID, "task": "greet", "type": "greet", "status": "completed", "queue": "default",
     "attempt": 1, "max_retries": 5, "payload": {"name": "Hello, Ada!"}, "output": ["Hello, Hello, Ada!!"]},
]  # fmt: skip
RUN = {**NEW, "status": "completed", "current_step": 2, "completed_at": AT, "steps": STEPS, "change": 4711}
RUNNING = {**NEW, "cancel_requested_at": AT, "steps": STEPS, "change": 4711}
CANCELLED = {**NEW, "status": "cancelled", "completed_at": AT, "steps": STEPS, "change": 4711}
STARTS: dict[str, Any] = {
    "one after the other": {
        "name": "report",
        "input": {"name": "Ada"},
        "steps": [
            {"name": "greet", "task": "greet", "payload": {"name": "${input.name}"}},
            {"name": "again", "task": "greet", "payload": {"name": "${steps.greet.0}"}},
        ],
    },
    "a kept definition": {"definition": "report", "input": {"rounds": 500}},
    "with a workflow as a step": {
        "name": "week",
        "steps": [
            {"name": "monday", "workflow": "report", "input": {"rounds": 500}},
            {"name": "tell", "task": "greet", "payload": {"name": "Ada"}},
        ],
    },
    "undone if it fails": {
        "name": "trip",
        "steps": [
            {
                "name": "book",
                "task": "greet",
                "payload": {"name": "Ada"},
                "compensate": {"task": "greet", "payload": {"name": "${output.0}"}},
            },
            {"name": "pay", "task": "noop"},
        ],
        "on_failure": {"task": "greet", "payload": {"name": "${workflow.error}"}},
    },
    "a job for each item": {
        "name": "many",
        "input": {"names": ["Ada", "Grace"]},
        "steps": [
            {
                "name": "all",
                "task": "greet",
                "for_each": "${input.names}",
                "payload": {"name": "${item}"},
                "max_parallel": 10,
            }
        ],
    },
    "a graph": {
        "name": "numbers",
        "timeout": 3600,
        "steps": [
            {"name": "one", "task": "noop"},
            {"name": "other", "task": "noop", "queue": "slow", "max_retries": 5},
            {"name": "both", "task": "noop", "needs": ["one", "other"], "when": "${steps.one} == null"},
        ],
    },
}
STARTS["a durable function"] = {"workflow": "order", "input": {"cents": 1200}, "idempotency_key": "order-4711"}
SENT: dict[str, Any] = {"workflow_id": ID, "name": "paid", "payload": {"cents": 1200}}
_NEWS = f"id: 4711-0\nevent: workflow\ndata: {msgspec.json.encode(RUN).decode()}\n\n"
EVENTS = f'retry: 1000\n\n{_NEWS}event: end\ndata: {{"status": "completed"}}\n\n'

COMPENSATED = {
    **NEW, "status": "failed", "current_step": 1, "completed_at": AT, "error": "step again is dead_letter: ValueError: no",
    "compensations": [
        {"name": "greet", "index": 0, "job_id": JOB_ID, "task": "noop", "status": "completed", "attempt": 1, "payload": {}}
    ],
}  # fmt: skip

FIELDS: dict[str, str | dict[str, Any]] = {
    "Workflow.current_step": "How many steps are done",
    "Workflow.status": {"enum": ["running", "completed", "failed", "cancelled"]},
    "Workflow.error": "The first step that did not end well, and why; and each compensation that did not",
    "Workflow.definition": "The kept definition that it was started from",
    "Workflow.version": "Of that definition",
    "Workflow.schedule": "The schedule that started it",
    "Workflow.scheduled_for": "The time of that schedule that it is for",
    "Workflow.parent_id": "The workflow that it is a step of, or the run that has spawned it",
    "Workflow.parent_step": "The step of that workflow that it is",
    "WorkflowStep.workflow": "The kept definition that it runs",
    "WorkflowStep.workflow_id": "The workflow that it is, once its turn has come; or the run that it has spawned",
    "WorkflowStep.input": "What that is given, with its references filled in",
    "Step.workflow": "A workflow that is kept under this name, or a durable function, in place of a task; the output is "
    "what that returns",
    "Step.input": "What that is given; may refer to what a payload may",
    "Workflow.output": "What it returns: of a definition with an `output`, or what the durable function returned",
    "WorkflowSubmission.name": "What it is called; the name of its definition where it is left out",
    "WorkflowSubmission.steps": "The steps; or name a `definition`",
    "WorkflowSubmission.definition": "A kept definition, in place of `steps`",
    "WorkflowSubmission.version": "Of the definition; the newest where it is left out",
    "WorkflowSubmission.output": "What the whole returns; may refer to `${steps.NAME…}` and `${input…}`",
    "Workflow.compensating": "It runs still, since what its steps did is being undone",
    "Workflow.compensations": "What undoes its steps, the last first, and its `on_failure`",
    "Compensation.name": "The step that it undoes, or `on_failure`",
    "Compensation.index": "The place of that step",
    "Workflow.rerun_of": "The run that this one repeats",
    "Workflow.deadline_at": "When it fails if it has not ended",
    "WorkflowStep.needs": "The steps that it needs, where the workflow is a graph",
    "WorkflowStep.when": "Its condition",
    "WorkflowStep.executor": "How it is run, where that is not as its task says",
    "WorkflowStep.payload": "With its references filled in, once its turn has come; left out where it is long",
    "WorkflowStep.payload_bytes": "The size of the payload, where it is left out for that; the step by its `index` has it",
    "WorkflowStep.input_bytes": "The same of the input",
    "WorkflowStep.output_bytes": "The same of the output",
    "Compensation.payload_bytes": "The size of the payload, where it is left out for that; the job has it",
    "Compensation.output_bytes": "The same of the output; it is the result of the job",
    "ReceivedEvent.payload_bytes": "The size of the payload, where it is left out for that; it is what `ctx.wait_event` returns",
    "Step.name": "What others refer to it by; that of its task where it is left out",
    "Step.task": "The name of the task",
    "Step.type": "Another name for `task`; one of the two is needed",
    "Step.payload": "What the task takes; may refer to `${input…}`, `${steps.NAME…}` and `${workflow.id}`, with `for_each` to "
    "`${item}` and `${index}` too",
    "WorkflowStep.items": "How far the items of `for_each` are, once its turn has come",
    "Items.total": "How many there are",
    "Items.done": "Of those, how many have ended well",
    "Items.bad": "The first that did not end well",
    "BadItem.index": "Its place in the list, from 0",
    "Step.for_each": "A list, or one reference to a list: a job for each item; the output is the list of theirs, in order",
    "Step.max_parallel": "How many of the items may run at once",
    "Step.compensate": "What undoes it, when it has ended well and the workflow does not; may refer to `${output}`",
    "Work.task": "The name of the task",
    "Work.type": "Another name for `task`; one of the two is needed",
    "Work.payload": "What the task takes; may refer to `${workflow.error}`, `${workflow.status}` and `${workflow.failed_step}`",
    "Work.executor": "Run it in a thread, or in a process of its own, whatever the task says",
    "Start.on_failure": "What is run when it does not end well, after all compensations",
    "Step.executor": "Run it in a thread, or in a process of its own, whatever the task says",
    "Step.needs": "Names of steps that must have ended well before; where no step has it, they run in order",
    "Step.when": "Skipped unless this holds: `${steps.check.rows} > 0`, `not ${input.dry}`",
    "Workflow.kind": {"enum": ["steps", "function"], "description": "Steps that were declared, or a durable function"},
    "Workflow.job_id": "The job that runs the durable function",
    "Workflow.events": "What was sent to the durable function, whether it has asked for it or not",
    "ReceivedEvent.name": "The first of a name stays",
    "WorkflowStep.kind": "Of a durable function: step, sleep, event, workflow or value",
    "WorkflowStep.key": "The same each time that it is tried: for systems that take an idempotency key",
    "WorkflowStep.waits": "What for, in words",
    "WorkflowStep.output": "What the task or the step returned, or the payload of the event; left out where it is long",
    "Start.traceparent": "As the header; empty is none",
    "Start.workflow": "The durable function to run, in place of `name` and `steps`",
    "Start.input": "What steps refer to as `${input}`; what the durable function takes",
    "Start.timeout": "Seconds for the whole, sleeps included, after which it has failed",
    "Start.name": "What the workflow is called; with `steps`",
    "Start.steps": "With `name`",
    "Start.queue": "Of a durable function: the queue of its job",
    "Start.priority": "Of a durable function: the priority of its job",
    "Start.tags": "Of a durable function: the tags of its job",
    "NewEvent.name": "What `ctx.wait_event` is given",
    "NewEvent.payload": "What `ctx.wait_event` returns",
    "Rerun.from": "The step to begin with; the first where it is left out",
    "Rerun.input": "Another input than that of the run before",
}

OMITTING = (Workflow, WorkflowPage, WorkflowStep, Items, BadItem, Compensation, ReceivedEvent)

Work: Any = readable(workflow_graph.Work)
Step: Any = readable(workflow_graph.Step, compensate=Work | None)
Start = either(
    "Start",
    readable(workflow_graph.WorkflowSubmission, steps=list[Step] | None, on_failure=Work | None),
    readable(FunctionSubmission),
)
NewEvent = readable(functions.NewEvent)
Rerun = readable(workflows.Rerun)


def _one(description: str, example: Any, **more: Any) -> Operation:
    return Operation("workflows", {200: Answer(description, Workflow, example)}, **more)


OPERATIONS: dict[str, Operation] = {
    "POST /api/v1/workflows": Operation(
        "workflows",
        {201: Answer("accepted: all of it is on the disk", Workflow, NEW, ("Location", "Idempotency-Replayed"))},
        Body(Start, STARTS),
        refusals=(409, 429),
        headers=("Idempotency-Key", "X-Request-ID", "traceparent"),
    ),
    "GET /api/v1/workflows": Operation(
        "workflows", {200: Answer("a page of workflows", WorkflowPage, {"items": [NEW], "next_cursor": "17", "total": 120})}
    ),
    "GET /api/v1/workflows/{workflow_id}": _one("the workflow and its steps", RUN),
    "GET /api/v1/workflows/{workflow_id}/steps/{step}": Operation(
        "workflows", {200: Answer("the step, whole", WorkflowStep, STEPS[0])}
    ),
    "DELETE /api/v1/workflows/{workflow_id}": Operation("workflows", {204: Answer("it is gone")}, refusals=(409,)),
    "GET /api/v1/workflows/{workflow_id}/events": Operation(
        "workflows", {200: Answer("the stream", texts={EVENT_STREAM: EVENTS}, events=("workflow", "end"))}
    ),
    "POST /api/v1/workflows/{workflow_id}/events": Operation(
        "workflows",
        {201: Answer("the run has it", functions.Event, SENT, ("Idempotency-Replayed",))},
        Body(NewEvent, {"a payment": {"name": "paid", "payload": {"cents": 1200}}}),
        refusals=(409,),
        headers=("Idempotency-Key",),
    ),
    "POST /api/v1/workflows/{workflow_id}/cancel": Operation(
        "workflows",
        {
            200: Answer("it is cancelled", Workflow, CANCELLED),
            202: Answer("a step runs, and was asked to stop", Workflow, RUNNING),
        },
        refusals=(409,),
    ),
    "POST /api/v1/workflows/{workflow_id}/retry": _one("it runs on", RUNNING, refusals=(409,)),
    "POST /api/v1/workflows/{workflow_id}/pause": _one("no further step begins", {**RUNNING, "paused": True}, refusals=(409,)),
    "POST /api/v1/workflows/{workflow_id}/resume": _one("it goes on", RUNNING, refusals=(409,)),
    "POST /api/v1/workflows/{workflow_id}/rerun": Operation(
        "workflows",
        {201: Answer("a new run, accepted", Workflow, {**NEW, "rerun_of": ID}, ("Location",))},
        Body(Rerun, {"from a step": {"from": "again"}, "all of it": {"input": {"name": "Grace"}}}, required=False),
        refusals=(429,),
        headers=("X-Request-ID", "traceparent"),
    ),
}  # fmt: skip
