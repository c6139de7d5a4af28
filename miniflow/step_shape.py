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
    not end well). Payload and output are left out where they are over 64 KiB; the job has them.

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
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    output: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
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
    64 KiB."""

    name: str
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    received_at: str


class Compensation(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What undoes a step, or the ``on_failure`` of the workflow, and the job that it is."""

    name: str
    index: int
    job_id: str
    task: str
    status: str
    attempt: int = 0
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    output: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
