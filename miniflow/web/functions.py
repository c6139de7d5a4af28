"""Durable functions over HTTP: what their runs have besides what all workflows have. Starting one is in ``workflows``."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import msgspec
from litestar import Response, post

from miniflow.clock import to_ms
from miniflow.errors import TooLarge
from miniflow.function_intake import FunctionSubmission, decode_function
from miniflow.function_queries import definition_of_function, place_of_step
from miniflow.intake import Key
from miniflow.step_calls import EVENT_NAME_CHARS_MAX
from miniflow.web.api import AnyRequest, idempotency_key, respond, traceparent
from miniflow.web.backend import Backend
from miniflow.web.problems import decoded
from miniflow.workflow_intake import NewWorkflow, Slot
from miniflow.workflow_queries import Workflow


class NewEvent(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An event for a run."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=EVENT_NAME_CHARS_MAX)]
    payload: msgspec.Raw = msgspec.Raw(b"null")
    idempotency_key: Key | None = None


class Event(msgspec.Struct, kw_only=True):
    """An event that a run has."""

    workflow_id: str
    name: str
    payload: msgspec.Raw


class _Peek(msgspec.Struct):
    workflow: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_event = msgspec.json.Decoder(NewEvent).decode
_decode_any = msgspec.json.Decoder().decode
_peek = msgspec.json.Decoder(_Peek).decode


def asks_for_function(body: bytes) -> bool:
    """Whether a start names a function, in place of declaring steps."""
    try:
        return _peek(body).workflow is not msgspec.UNSET
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # said by whoever reads the whole
        return False


def function_run(request: AnyRequest, backend: Backend, body: bytes, request_id: str | None) -> NewWorkflow:
    """The run that a start asks for."""
    wanted = decoded(decode_function, body)
    wanted.idempotency_key = idempotency_key(request, wanted.idempotency_key)
    wanted.traceparent = traceparent(request, wanted.traceparent)
    return backend.function_intake.run(wanted, request_id=request_id)


def slot_of(before: Workflow) -> Slot | None:
    """That of a run that a schedule started: one that repeats it is for the same time."""
    if before.schedule is None or before.scheduled_for is None:
        return None
    return Slot(before.schedule, to_ms(dt.datetime.fromisoformat(before.scheduled_for)))


async def rerun_function(
    backend: Backend,
    workflow_id: str,
    from_step: str | None,
    given: msgspec.Raw | msgspec.UnsetType,
    request_id: str | None,
    caller: str | None,
) -> NewWorkflow:
    """Start a function again, with what it had recorded before ``from_step``."""
    number, before, definition = backend.workflow_queries.origin(workflow_id)
    kept = definition_of_function(definition)
    wanted = before.input if given is msgspec.UNSET else given
    grp = 0 if from_step is None else place_of_step(backend.workflow_queries.readers, number, from_step)
    submission = FunctionSubmission(
        workflow=kept.workflow,
        traceparent=caller,
        input=msgspec.Raw(b"{}") if wanted is msgspec.UNSET else wanted,
        timeout=kept.timeout,
        queue=kept.queue,
        priority=kept.priority,  # type: ignore[arg-type]
        tags=kept.tags,
        meta=None if before.meta is msgspec.UNSET else msgspec.json.decode(before.meta),
        description=before.description,
    )
    new = backend.function_intake.run(submission, request_id=request_id, rerun_of=workflow_id, slot=slot_of(before))
    await backend.verb(backend.jobs.checkpoints.rerun(new, number, grp))
    return new


@post("/api/v1/workflows/{workflow_id:str}/events", summary="Send an event to a workflow", status_code=201)
async def send_event(workflow_id: str, request: AnyRequest, backend: Backend) -> Response[bytes]:
    """For `ctx.wait_event(name)` of a durable function, which takes it at once if it waits for it, or when it asks for it. The
    first of a name stays: another one is refused with 409, `late_event`; the same again, by its idempotency key, is answered as
    the first was."""
    wanted = decoded(_decode_event, await request.body())
    key = idempotency_key(request, wanted.idempotency_key)
    limit = backend.settings.max_payload_bytes
    if len(bytes(wanted.payload)) > limit:
        raise TooLarge("the payload", len(bytes(wanted.payload)), "max_payload_bytes", limit)
    decoded(_decode_any, bytes(wanted.payload), "payload.")  # what cannot be read would end the run that waits for it
    found = request.scope.get("miniflow_request_id")
    replayed = await backend.verb(
        backend.jobs.checkpoints.deliver(
            workflow_id,
            wanted.name,
            bytes(wanted.payload).decode(),
            key=key,
            request_id=found if isinstance(found, str) else None,
        )
    )
    event = Event(workflow_id=workflow_id, name=wanted.name, payload=wanted.payload)
    return respond(event, 201, {"idempotency-replayed": "true"} if replayed else {})


ROUTES: list[Any] = [send_event]
