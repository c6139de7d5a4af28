"""What a client can ask about workflows, said once for both clients, as ``calls.py`` does for jobs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import httpx
import msgspec
from httpx_sse import ServerSentEvent

from miniflow import answers
from miniflow.calls import named, until_ended
from miniflow.exchange import Ask, Flow, Give, Items, one, repeated, send, stream
from miniflow.ids import uuid7
from miniflow.trace_answers import Export, Trace
from miniflow.workflow_answers import (
    Workflow,
    WorkflowDefinition,
    WorkflowEvent,
    WorkflowNotEnded,
    WorkflowPage,
    WorkflowStep,
)

PAGE = 100  # workflows in one request of list
PATH = "/api/v1/workflows"
DEFINITIONS = "/api/v1/workflow-definitions"


class WorkflowOptions(TypedDict, total=False):
    """``timeout`` is for the whole, in seconds or as a timedelta; ``on_failure`` is run when it does not end well. None is the
    same as left out."""

    input: Any
    timeout: float | dt.timedelta | None
    on_failure: Mapping[str, Any] | None
    idempotency_key: str | None
    meta: Mapping[str, Any] | None
    description: str | None
    traceparent: str | None


class DefinitionOptions(TypedDict, total=False):
    """With ``inputs`` the input is an object of those fields, each ``{"default": …}`` or required; ``output`` may refer to
    steps."""

    inputs: Mapping[str, Mapping[str, Any]] | None
    output: Any
    timeout: float | dt.timedelta | None
    on_failure: Mapping[str, Any] | None
    description: str | None


WorkflowRef: TypeAlias = str | Workflow
"""A workflow's id, or a Workflow that was given before."""


def start(name: str, steps: Sequence[Mapping[str, Any]], options: Mapping[str, Any], *, repeats: int) -> Flow[Workflow]:
    return _started({"name": name, "steps": steps}, options, repeats)


def run(definition: str, version: int | None, options: Mapping[str, Any], *, repeats: int) -> Flow[Workflow]:
    return _started({"definition": definition, **({} if version is None else {"version": version})}, options, repeats)


def _started(what: Mapping[str, Any], options: Mapping[str, Any], repeats: int) -> Flow[Workflow]:
    wanted = {key: _plain(value) for key, value in options.items() if value is not None}
    if repeats > 0:
        wanted.setdefault("idempotency_key", uuid7())
    body = msgspec.json.encode({**what, **wanted})
    answer = yield from repeated(Ask(method="POST", path=PATH, body=body), repeats)
    return answers.decoded(answer, Workflow)


class FunctionOptions(TypedDict, total=False):
    """``timeout`` is for the whole run, sleeps included, in seconds or as a timedelta; None is the same as left out."""

    timeout: float | dt.timedelta | None
    queue: str | None
    priority: int | str | None
    idempotency_key: str | None
    tags: Sequence[str] | None
    meta: Mapping[str, Any] | None
    description: str | None
    traceparent: str | None


def start_function(workflow: str, input: Any, options: Mapping[str, Any], *, repeats: int) -> Flow[Workflow]:
    wanted = {key: _plain(value) for key, value in options.items() if value is not None}
    if repeats > 0:
        wanted.setdefault("idempotency_key", uuid7())
    given = {} if input is None else {"input": input}
    body = msgspec.json.encode({"workflow": workflow, **given, **wanted})
    answer = yield from repeated(Ask(method="POST", path=PATH, body=body), repeats)
    return answers.decoded(answer, Workflow)


def send_event(
    workflow: WorkflowRef, name: str, payload: Any, idempotency_key: str | None, *, repeats: int
) -> Flow[WorkflowEvent]:
    key = idempotency_key if idempotency_key is not None or repeats == 0 else uuid7()
    body = {"name": name, "payload": payload, **({} if key is None else {"idempotency_key": key})}
    ask = Ask(method="POST", path=path_of(workflow, "/events"), body=msgspec.json.encode(body))
    answer = yield from repeated(ask, repeats)
    return answers.decoded(answer, WorkflowEvent)


def _plain(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, dt.timedelta) else value


def get(workflow: WorkflowRef, wait_s: float = 0) -> Flow[Workflow]:
    params = {"wait": round(wait_s, 3)} if wait_s > 0 else {}
    return one(Workflow, path_of(workflow), params=params, slow_s=wait_s)


def wait(workflow: WorkflowRef, timeout_s: float | None) -> Flow[Workflow]:
    return until_ended(lambda wait_s: get(workflow, wait_s), timeout_s, WorkflowNotEnded)


def step(workflow: WorkflowRef, step: int | str) -> Flow[WorkflowStep]:
    return one(WorkflowStep, named(path_of(workflow, "/steps"), str(step)))


def trace(workflow: WorkflowRef) -> Flow[Trace]:
    return one(Trace, path_of(workflow, "/trace"))


def otlp(workflow: WorkflowRef) -> Flow[Export]:
    return one(Export, path_of(workflow, "/trace"), params={"format": "otlp"})


def page(*, name: str | None, status: str | None, nested: bool, limit: int, cursor: str | None) -> Flow[WorkflowPage]:
    which = {"name": name, "status": status, "nested": None if nested else "false"}
    return one(WorkflowPage, PATH, params={**which, "limit": limit, "cursor": cursor})


def all_pages(*, name: str | None, status: str | None, nested: bool, limit: int | None) -> Items[Workflow]:
    cursor, left = None, limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        found = yield from page(name=name, status=status, nested=nested, limit=size, cursor=cursor)
        for workflow in found.items:
            yield Give(workflow)
        cursor = found.next_cursor
        if cursor is None:
            return
        left = None if left is None else left - len(found.items)


def verb(name: str, workflow: WorkflowRef) -> Flow[Workflow]:
    return one(Workflow, path_of(workflow, f"/{name}"), "POST")


def rerun(workflow: WorkflowRef, from_step: str | None, changed: Mapping[str, Any]) -> Flow[Workflow]:
    wanted = {**({} if from_step is None else {"from": from_step}), **changed}
    return one(Workflow, path_of(workflow, "/rerun"), "POST", body=msgspec.json.encode(wanted))


def delete(workflow: WorkflowRef) -> Flow[None]:
    yield from send(Ask(method="DELETE", path=path_of(workflow)))


def events(workflow: WorkflowRef) -> Items[Workflow]:
    return stream(path_of(workflow, "/events"), {}, {}, _event)


def _event(event: ServerSentEvent, answer: httpx.Response) -> Workflow:
    return answers.decoded_text(event.data, Workflow, answer)


# ------------------------------------------------------------------------------------------------------------ definitions


def define(name: str, steps: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Flow[WorkflowDefinition]:
    wanted = {key: _plain(value) for key, value in options.items() if value is not None}
    return one(WorkflowDefinition, _definition(name), "PUT", body=msgspec.json.encode({"steps": steps, **wanted}))


def definition(name: str, version: int | None) -> Flow[WorkflowDefinition]:
    return one(WorkflowDefinition, _definition(name), params={"version": version})


class _Definitions(msgspec.Struct):
    items: list[WorkflowDefinition]


def definitions(name: str | None) -> Flow[list[WorkflowDefinition]]:
    found = yield from one(_Definitions, DEFINITIONS if name is None else _definition(name, "/versions"))
    return found.items


def undefine(name: str) -> Flow[None]:
    yield from send(Ask(method="DELETE", path=_definition(name)))


def _definition(name: str, rest: str = "") -> str:
    return named(DEFINITIONS, name, rest)


def path_of(workflow: WorkflowRef, rest: str = "") -> str:
    return named(PATH, workflow if isinstance(workflow, str) else workflow.id, rest)
