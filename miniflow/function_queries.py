"""The steps of a run of a durable function, as they are shown: what it has asked for so far, and what it waits for."""

from __future__ import annotations

from typing import Any

import msgspec

from miniflow import function_statements as sql
from miniflow.clock import rfc3339
from miniflow.errors import InvalidRequest, UnknownTask
from miniflow.function_intake import FunctionDefinition, decode_function_definition
from miniflow.readers import Readers
from miniflow.states import State
from miniflow.step_calls import key_of
from miniflow.step_shape import ReceivedEvent, WorkflowStep


class FunctionRun(msgspec.Struct):
    """What a workflow of the kind ``function`` has besides what all have."""

    job_id: str | None
    steps: list[WorkflowStep]
    events: list[ReceivedEvent]
    output: msgspec.Raw | msgspec.UnsetType
    changed: int


def run_of_function(readers: Readers, number: int, workflow_id: str, *, ended: bool) -> FunctionRun:
    """The steps and the output of the run ``number``."""
    jobs = readers.point(sql.JOB_OF_FUNCTION, number)
    job_id, state, result, changed, failed_of = jobs[0] if jobs else (None, "", None, 0, None)
    held = "cancelled" if ended else "queued" if state in (State.QUEUED, State.RETRYING) else None
    if failed_of == UnknownTask.__name__:  # the function was not there to go on: once it is, a retry waits for the same
        held = None
    steps = [_step(row, workflow_id, held) for row in readers.point(sql.STEPS_OF_FUNCTION, number)]
    done = state == State.COMPLETED
    output: msgspec.Raw | msgspec.UnsetType = msgspec.Raw((result or "null").encode()) if done else msgspec.UNSET
    events = [
        ReceivedEvent(
            name=name,
            payload=msgspec.UNSET if payload is None else msgspec.Raw(payload.encode()),
            payload_bytes=payload_bytes,
            received_at=rfc3339(received_at) or "",
        )
        for name, payload, payload_bytes, received_at in readers.point(sql.EVENTS_OF_RUN, number)
    ]
    return FunctionRun(job_id, steps, events, output, changed)


def _step(row: tuple[Any, ...], workflow_id: str, held: str | None) -> WorkflowStep:
    idx, kind, name, state, attempts, wake_at, child, output, output_bytes, error, started_at, ended_at = row
    status = state
    if state == "waiting" and held == "cancelled":
        status = "running" if kind == "workflow" and child is not None else held  # nobody waits for it, and it goes on
    elif state == "running":
        status = held or state
    waiting = status == "waiting"
    none_yet = output is None and state != "completed"
    return WorkflowStep(
        name=name,
        index=idx,
        kind=kind,
        status=status,
        attempt=attempts,
        key=key_of(workflow_id, idx) if kind == "step" else None,
        workflow_id=child,
        output=msgspec.UNSET if none_yet or output_bytes else msgspec.Raw((output or "null").encode()),
        output_bytes=output_bytes,
        error=error,
        waits=waits_for(kind, name, wake_at, child) if waiting else None,
        wake_at=rfc3339(wake_at) if waiting else None,
        started_at=rfc3339(started_at),
        completed_at=rfc3339(ended_at),
    )


def waits_for(kind: str, name: str, wake_at: int | None, child: str | None) -> str:
    """What a run waits for, in words."""
    until = "" if wake_at is None else f" until {rfc3339(wake_at)}"
    if kind == "event":
        return f"waits for the event {name}{until}"
    if kind == "workflow":
        return f"waits for the workflow {name} {child or ''}".rstrip()
    if kind == "step":
        return f"waits for the next attempt of {name}{until}"
    return f"sleeps{until}"


def definition_of_function(text: str) -> FunctionDefinition:
    """What the run was started with."""
    return decode_function_definition(text)


def place_of_step(readers: Readers, number: int, step: str) -> int:
    """Where a rerun begins that is to begin with ``step``, by its name (the first that has it) or its number."""
    idx = int(step) if step.isascii() and step.isdigit() and len(step) < 9 else -1
    ((grp,),) = readers.point(sql.PLACE_OF_STEP, number, step, idx)
    if grp is None:
        raise InvalidRequest("from", f"the run has recorded no step {step!r}; a step goes by its name or its number")
    if readers.point(sql.OPEN_BEFORE, number, grp)[0][0]:
        raise InvalidRequest("from", f"something before the step {step!r} is not over yet")
    return int(grp)
