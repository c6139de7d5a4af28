"""What the server answers about workflows, as Python objects; the rules are those of ``answers.py``."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec

from miniflow.answers import Answer, ClientError


class BadItem(Answer):
    """An item of ``for_each`` that did not end well, and the job that it is."""

    index: int
    job_id: str = ""
    status: str = ""
    error: str | None = None


class Items(Answer):
    """How far the items of a step with ``for_each`` are. ``bad`` are the first that did not end well."""

    total: int = 0
    done: int = 0
    failed: int = 0
    bad: list[BadItem] = msgspec.field(default_factory=list)


class WorkflowStep(Answer):
    """A step of a workflow, and the job that it is, or the workflow (``workflow_id``). ``status`` is that of the job, or
    skipped, or reused (of a rerun), or failed (items of it, or its workflow).

    Of a durable function it is what the function has asked for: ``kind`` is step, sleep, event, workflow or value, ``waits`` says
    what it waits for, ``key`` is the idempotency key of a step, ``workflow_id`` the run that it has spawned.

    What is over 64 KiB is None here, with its size in ``payload_bytes``, ``input_bytes`` and ``output_bytes``;
    ``client.workflows.step(workflow, step)`` has it."""

    name: str
    index: int = 0
    status: str = ""
    job_id: str | None = None
    task: str = ""
    workflow: str | None = None
    workflow_id: str | None = None
    queue: str | None = None
    executor: str | None = None
    needs: list[str] | None = None
    when: str | None = None
    attempt: int = 0
    max_retries: int | None = None
    payload: Any = None
    payload_bytes: int | None = None
    input: Any = None
    input_bytes: int | None = None
    output: Any = None
    output_bytes: int | None = None
    progress: Any = None
    items: Items | None = None
    error: str | None = None
    kind: str = ""
    key: str | None = None
    waits: str | None = None
    wake_at: dt.datetime | None = None
    started_at: dt.datetime | None = None
    completed_at: dt.datetime | None = None


class ReceivedEvent(Answer):
    """An event that was sent to a durable function."""

    name: str
    payload: Any = None
    payload_bytes: int | None = None
    received_at: dt.datetime | None = None


class Compensation(Answer):
    """What undoes a step, or the ``on_failure`` of a workflow (by that name), and the job that it is."""

    name: str
    index: int = 0
    job_id: str = ""
    task: str = ""
    status: str = ""
    attempt: int = 0
    payload: Any = None
    payload_bytes: int | None = None
    output: Any = None
    output_bytes: int | None = None
    error: str | None = None
    started_at: dt.datetime | None = None
    completed_at: dt.datetime | None = None


class Workflow(Answer):
    """A workflow as it was when the server answered. ``current_step`` counts the steps that are done. In a list there are no
    ``steps``."""

    id: str
    name: str = ""
    definition: str | None = None
    version: int | None = None
    schedule: str | None = None
    scheduled_for: dt.datetime | None = None
    kind: str = "steps"
    parent_id: str | None = None
    parent_step: str | None = None
    status: str = ""
    current_step: int = 0
    total_steps: int = 0
    paused: bool = False
    compensating: bool = False
    input: Any = None
    output: Any = None
    error: str | None = None
    job_id: str | None = None
    steps: list[WorkflowStep] = msgspec.field(default_factory=list)
    compensations: list[Compensation] = msgspec.field(default_factory=list)
    events: list[ReceivedEvent] = msgspec.field(default_factory=list)
    timeout: float | None = None
    deadline_at: dt.datetime | None = None
    idempotency_key: str | None = None
    request_id: str | None = None
    rerun_of: str | None = None
    description: str | None = None
    meta: dict[str, Any] = msgspec.field(default_factory=dict)
    created_at: dt.datetime | None = None
    updated_at: dt.datetime | None = None
    completed_at: dt.datetime | None = None
    cancel_requested_at: dt.datetime | None = None
    change: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing will happen to it any more by itself."""
        return self.status in ("completed", "failed", "cancelled")


class WorkflowDefinition(Answer):
    """A version of a kept definition. In a list there are no ``steps``. ``source`` is who defines it, ``api`` or ``file``;
    ``origin`` says which file."""

    name: str
    version: int = 0
    total_steps: int = 0
    steps: list[dict[str, Any]] = msgspec.field(default_factory=list)
    inputs: dict[str, Any] | None = None
    output: Any = None
    timeout: float | None = None
    on_failure: dict[str, Any] | None = None
    description: str | None = None
    source: str = ""
    origin: str | None = None
    created_at: dt.datetime | None = None


class WorkflowEvent(Answer):
    """An event that a run has."""

    workflow_id: str
    name: str
    payload: Any = None


class WorkflowPage(Answer):
    """A page of workflows. ``next_cursor`` is None on the last one; ``total`` is None where only counting rows could tell."""

    items: list[Workflow] = msgspec.field(default_factory=list)
    next_cursor: str | None = None
    total: int | None = None


class WorkflowNotEnded(ClientError, TimeoutError):
    """The workflow has not ended in the time given. ``workflow`` is as it was then."""

    def __init__(self, workflow: Workflow) -> None:
        super().__init__(f"workflow {workflow.id} has not ended yet, it is {workflow.status}")
        self.workflow = workflow
        self.args = (workflow,)  # what pickle makes it again of
