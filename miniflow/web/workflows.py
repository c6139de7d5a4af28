"""Workflows over HTTP: start, look, follow, act."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from litestar import Response, delete, get, post
from litestar.params import Parameter
from litestar.response import Stream

from miniflow.errors import InvalidRequest, NotFound
from miniflow.feed import parse_place
from miniflow.listing import PAGE_MAX
from miniflow.model import Accepted
from miniflow.starting import RUNNING
from miniflow.web import functions
from miniflow.web.api import WAIT_S_MAX, AnyRequest, idempotency_key, respond, traceparent
from miniflow.web.backend import Backend
from miniflow.web.events import HEADERS, RETRY_MS, After, LastEventId
from miniflow.web.problems import decoded
from miniflow.workflow_catalog import Kept
from miniflow.workflow_graph import WorkflowSubmission, decode_workflow, not_before
from miniflow.workflow_intake import NewWorkflow
from miniflow.workflow_queries import Workflow, workflow_of_new

Wait = Annotated[
    float | None, Parameter(ge=0, le=WAIT_S_MAX, description="seconds to wait for the workflow to end, at most 60")
]
Name = Annotated[str | None, Parameter(description="only workflows of this name")]
Status = Annotated[
    str | None, Parameter(description="only workflows in this state, or in one of these, separated by commas")
]
Nested = Annotated[bool, Parameter(description="`false`: without those that are steps of others, or were spawned")]
StepName = Annotated[str, Parameter(description="its `index`, or its name, which is the first that has it")]
Limit = Annotated[int, Parameter(ge=1, le=PAGE_MAX, description="workflows on a page")]
Cursor = Annotated[str | None, Parameter(description="`next_cursor` of the page before")]

SMALL_BYTES = 20_000
"""Up to here a workflow is told of each time that the feed looks; beyond, so seldom that a stream sends BYTES_S of it."""
BYTES_S = 1_000_000
PAUSE_S_MAX = 1.0

_encode = msgspec.json.Encoder().encode


class Rerun(msgspec.Struct, forbid_unknown_fields=True, rename={"from_step": "from"}):
    """``from`` is the step to begin with, the first if it is left out; ``input`` replaces that of the run before."""

    from_step: str | int | None = None
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_rerun = msgspec.json.Decoder(Rerun).decode


@post("/api/v1/workflows", summary="Start a workflow", status_code=201)
async def start_workflow(request: AnyRequest, backend: Backend) -> Response[bytes]:
    """Steps that follow one another, each a job; or, with `workflow` in place of `name` and `steps`, a run of a durable function
    of that name. A 201 says that all of it is on the disk.

    Without `needs` the steps run one after the other; with it they are a graph. A payload may refer to the input and to what
    steps before it returned: `"${input.day}"`, `"${steps.extract.rows}"`.
    """
    body = await request.body()
    if functions.asks_for_function(body):
        return await _start(backend, functions.function_run(request, backend, body, _request_id(request)))
    wanted = decoded(decode_workflow, body)
    wanted.idempotency_key = idempotency_key(request, wanted.idempotency_key)
    wanted.traceparent = traceparent(request, wanted.traceparent)
    of = None
    if wanted.definition is not None and wanted.version is not None:
        newest = backend.definitions.catalog.get(wanted.definition, "definition").version
        try:
            of = backend.workflow_queries.kept(wanted.definition, wanted.version)
        except NotFound:
            raise InvalidRequest(
                "version", f"there is no version {wanted.version} of {wanted.definition!r}; the newest is {newest}"
            ) from None
    new = backend.workflow_intake.workflow(wanted, request_id=_request_id(request), of=of)
    return await _start(backend, new)


async def _start(backend: Backend, new: NewWorkflow) -> Response[bytes]:
    accepted: Accepted = await backend.writer.call_async(backend.waiter, "workflow", new)
    headers = {"location": f"/api/v1/workflows/{accepted.id}"}
    if accepted.replayed:
        headers["idempotency-replayed"] = "true"
    if accepted.replayed or new.shape.loose:  # it may be further already
        found = backend.workflow_queries.workflow(accepted.id)
        found.steps = None
        return respond(found, 201, headers)
    return _accepted(backend, new, headers)


def _accepted(backend: Backend, new: NewWorkflow, headers: dict[str, str]) -> Response[bytes]:
    return respond(workflow_of_new(new, backend.clock.now_ms()), 201, headers)


@get("/api/v1/workflows", summary="List workflows")
async def list_workflows(
    backend: Backend,
    name: Name = None,
    status: Status = None,
    nested: Nested = True,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response[bytes]:
    """A page of them, newest first, without their steps."""
    return respond(
        await backend.workflow_queries.page(name=name, status=status, nested=nested, limit=limit, cursor=cursor)
    )


@get("/api/v1/workflows/{workflow_id:str}", summary="One workflow")
async def get_workflow(workflow_id: str, backend: Backend, wait: Wait = None) -> Response[bytes]:
    """With every step: its state, attempt, times, payload, output and error. With ``wait``, as soon as it has ended."""
    return respond(await find_workflow(backend, workflow_id, wait))


@get("/api/v1/workflows/{workflow_id:str}/steps/{step:str}", summary="One step of a workflow")
async def get_step(workflow_id: str, step: StepName, backend: Backend) -> Response[bytes]:
    """With a payload, an input and an output that are left out of the workflow, since they are long."""
    return respond(backend.workflow_queries.step(workflow_id, step))


async def find_workflow(backend: Backend, workflow_id: str, wait_s: float | None) -> Workflow:
    """At once, or when it has ended."""
    change = backend.workflow_queries.change(workflow_id)
    if wait_s and change is not None and not change[1]:
        await _end_within(backend, workflow_id, wait_s)
    return backend.workflow_queries.workflow(workflow_id)


async def _end_within(backend: Backend, workflow_id: str, seconds: float) -> None:
    """When it has ended, or after so long."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def listener(_: str) -> None:
        loop.call_soon_threadsafe(ended.set)

    backend.notices.listen(workflow_id, listener)
    try:
        change = backend.workflow_queries.change(workflow_id)  # it may have ended before we listened
        if change is not None and not change[1] and not backend.notices.over:
            await asyncio.wait_for(ended.wait(), seconds)
    except TimeoutError:
        pass
    finally:
        backend.notices.forget(workflow_id, listener)


@get("/api/v1/workflows/{workflow_id:str}/events", summary="Follow a workflow")
async def follow_workflow(
    workflow_id: str, backend: Backend, after: After = None, last_event_id: LastEventId = None
) -> Response[Any]:
    """``event: workflow`` with the workflow as it is, and after each change of one of its steps; ``event: end`` with its status
    when it has ended, and then the stream ends too. Of a large one not each change is told, but always the last."""
    backend.workflow_queries.workflow(workflow_id)  # 404 before the stream begins
    given, field = (last_event_id, "Last-Event-ID") if last_event_id else (after, "after")
    seen = parse_place(given, field).changed if given else None
    return Stream(_events(backend, workflow_id, seen), media_type="text/event-stream", headers=HEADERS)


async def _events(backend: Backend, workflow_id: str, seen: int | None) -> AsyncIterator[bytes]:
    yield b"retry: %d\n\n" % RETRY_MS
    async with aclosing(backend.feed.follow_change(lambda: backend.workflow_queries.change(workflow_id), seen)) as news:
        async for change in news:
            if change is None:
                yield b": nothing new\n\n"
                continue
            found = backend.workflow_queries.workflow(workflow_id)
            data = _encode(found)
            yield b"id: %d-0\nevent: workflow\ndata: %b\n\n" % (change, data)
            if found.status != RUNNING:
                yield b"event: end\ndata: %b\n\n" % _encode({"status": found.status})
                return
            if len(data) > SMALL_BYTES:  # what it takes to tell all of it is not taken from the steps
                await _end_within(backend, workflow_id, min(len(data) / BYTES_S, PAUSE_S_MAX))


@post("/api/v1/workflows/{workflow_id:str}/cancel", summary="Cancel a workflow", status_code=200)
async def cancel_workflow(workflow_id: str, backend: Backend) -> Response[bytes]:
    """What waits of it is cancelled at once; while a step runs, which is asked to stop, it is `running` still (202)."""
    state = await backend.verb(backend.jobs.workflows.cancel(workflow_id))
    return respond(backend.workflow_queries.workflow(workflow_id), 202 if state == RUNNING else 200)


@post("/api/v1/workflows/{workflow_id:str}/retry", summary="Run a workflow on", status_code=200)
async def retry_workflow(workflow_id: str, backend: Backend) -> Response[bytes]:
    """One that has failed, or was cancelled, goes on from there: failed steps run again with their attempts counted anew,
    cancelled ones wait again for those that they need. Steps that are done stay done."""
    await backend.verb(backend.jobs.workflows.retry(workflow_id))
    return respond(backend.workflow_queries.workflow(workflow_id))


@post("/api/v1/workflows/{workflow_id:str}/pause", summary="Pause a workflow", status_code=200)
async def pause_workflow(workflow_id: str, backend: Backend) -> Response[bytes]:
    """No further step becomes ready; what is queued or runs goes on."""
    await backend.verb(backend.jobs.workflows.pause(workflow_id))
    return respond(backend.workflow_queries.workflow(workflow_id))


@post("/api/v1/workflows/{workflow_id:str}/resume", summary="Resume a workflow", status_code=200)
async def resume_workflow(workflow_id: str, backend: Backend) -> Response[bytes]:
    """Steps whose turn came while it was paused become ready."""
    await backend.verb(backend.jobs.workflows.resume(workflow_id))
    return respond(backend.workflow_queries.workflow(workflow_id))


@post("/api/v1/workflows/{workflow_id:str}/rerun", summary="Run a workflow again", status_code=201)
async def rerun_workflow(workflow_id: str, request: AnyRequest, backend: Backend) -> Response[bytes]:
    """A new run of the same steps, from one of them on: that one, and all that need it. The outputs of the others are taken over.
    With another input, if one is given. ``rerun_of`` is the run before. Of a durable function, `from` is the name or the number
    of a step, and what was recorded before it is taken over."""
    wanted = decoded(_decode_rerun, await request.body() or b"{}")
    first = None if wanted.from_step is None else str(wanted.from_step)
    if backend.workflow_queries.is_function(workflow_id):
        made = await functions.rerun_function(
            backend, workflow_id, first, wanted.input, _request_id(request), traceparent(request)
        )
        return _accepted(backend, made, {"location": f"/api/v1/workflows/{made.id}"})
    before, definition, outputs = backend.workflow_queries.definition(workflow_id)
    kept: dict[str, Any] = {}
    if first is not None:
        names, again = not_before(definition, first)
        for name in names:
            if name not in again and name not in outputs:
                raise InvalidRequest(
                    "from", f"does not lead back to the step {name!r}, which is not done; begin with it"
                )
        kept = {name: outputs[name] for name in names if name not in again}
    given = before.input if wanted.input is msgspec.UNSET else wanted.input
    submission = WorkflowSubmission(
        name=before.name,
        input=msgspec.Raw(b"null") if given is msgspec.UNSET else given,
        description=before.description,
        meta=None if before.meta is msgspec.UNSET else msgspec.json.decode(before.meta),
        traceparent=traceparent(request),
    )
    new = backend.workflow_intake.workflow(
        submission,
        request_id=_request_id(request),
        of=Kept(before.definition, before.version, definition),
        kept=kept,
        rerun_of=before.id,
        slot=functions.slot_of(before),
    )
    return await _start(backend, new)


@delete("/api/v1/workflows/{workflow_id:str}", summary="Delete a workflow", status_code=204)
async def delete_workflow(workflow_id: str, backend: Backend) -> None:
    """Forget one that has ended, with its jobs. 409 for one that has not: cancel it first."""
    await backend.verb(backend.jobs.workflows.delete(workflow_id))


def _request_id(request: AnyRequest) -> str | None:
    found = request.scope.get("miniflow_request_id")
    return found if isinstance(found, str) else None


ROUTES: list[Any] = [
    start_workflow,
    list_workflows,
    get_workflow,
    get_step,
    follow_workflow,
    cancel_workflow,
    retry_workflow,
    pause_workflow,
    resume_workflow,
    rerun_workflow,
    delete_workflow,
]
