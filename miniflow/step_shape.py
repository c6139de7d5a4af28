"""The shape of a step of a workflow, declared or asked for by a durable function, as it is answered."""

from __future__ import annotations

import msgspec


class BadItem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An item of ``for_each`` that did not end well, and the job that it is."""

    index: int
    job_id: str
    status: str
    error: str | None = None


class Items(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How far the items of a step with ``for_each`` are. ``bad`` are the first that did not end well."""

    total: int
    done: int
    failed: int
    bad: list[BadItem] | None = None


class WorkflowStep(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A step, and the job that it is; or the workflow, with its ``workflow_id``. ``status`` is that of the job, or ``skipped``
    (its condition did not hold), or ``reused`` (a rerun took over its output), or ``failed`` (items of it, or its workflow, did
    not end well). Payload, input and output are left out where they are over 64 KiB, with their size in ``payload_bytes``,
    ``input_bytes`` and ``output_bytes``; the step by its index has them.

    Of a durable function it is what the function has asked for, and no job: ``kind`` is step, sleep, event, workflow or value;
    ``status`` queued, running, waiting, completed, failed or cancelled. ``waits`` says in words what for, ``wake_at`` until when.
    A step has an idempotency ``key``, a run that was spawned its ``workflow_id``."""

    name: str
    index: int
    kind: str | None = None
    job_id: str | None = None
    task: str = ""
    type: str = ""
    workflow: str | None = None
    workflow_id: str | None = None
    status: str
    needs: list[str] | None = None
    when: str | None = None
    queue: str | None = None
    executor: str | None = None
    attempt: int = 0
    max_retries: int | None = None
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    payload_bytes: int | None = None
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    input_bytes: int | None = None
    output: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    output_bytes: int | None = None
    progress: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    items: Items | None = None
    error: str | None = None
    key: str | None = None
    waits: str | None = None
    wake_at: str | None = None
    started_at: str | None = None
    completed_at: str | None = None


class ReceivedEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An event that was sent to a durable function, whether it has asked for it or not. The payload is left out where it is over
    64 KiB, with its size in ``payload_bytes``."""

    name: str
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    payload_bytes: int | None = None
    received_at: str


class Compensation(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What undoes a step, or the ``on_failure`` of the workflow, and the job that it is. Payload and output are left out where
    they are over 64 KiB, with their size in ``payload_bytes`` and ``output_bytes``; the job has them."""

    name: str
    index: int
    job_id: str
    task: str
    status: str
    attempt: int = 0
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    payload_bytes: int | None = None
    output: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    output_bytes: int | None = None
    error: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
