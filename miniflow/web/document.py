"""The OpenAPI document: what Litestar knows of the routes, and what ``described.OPERATIONS`` says of them.

Litestar sees paths and parameters. Handlers read bodies and write answers as bytes, so what these look like is said by hand, in
``described``: a type that msgspec knows, and an example of it. What an operation can be refused with follows from its kind, and
is put together here.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.types import Method

from miniflow.traceparent import TRACEPARENT_CHARS_MAX
from miniflow.web.problems import PROBLEM, Problem

Json = dict[str, Any]

SCHEMAS = "#/components/schemas/{name}"
JSON = "application/json"
EVENT_STREAM = "text/event-stream"
NULL = {"type": "null"}


class Body(NamedTuple):
    """What a request carries. ``examples`` are by their titles; ``lines`` is the same as NDJSON, where that is taken too."""

    shape: Any
    examples: dict[str, Any]
    required: bool = True
    lines: str | None = None


class Answer(NamedTuple):
    """One status. Without ``shape`` there is no JSON, a tuple of them is one or the other; ``texts`` are examples by media type
    of what else it can be."""

    description: str
    shape: Any = None
    example: Any = None
    headers: tuple[str, ...] = ()
    texts: Mapping[str, str] = {}
    events: tuple[str, ...] = ()
    """The names of its events, where one of the texts is an event stream."""
    links: tuple[str, ...] = ()
    """Names of operations on the job that was answered."""


class Operation(NamedTuple):
    """What Litestar cannot know of an operation. ``refusals`` are statuses besides those that follow from its kind."""

    tag: str
    answers: dict[int, Answer]
    body: Body | None = None
    refusals: tuple[int, ...] = ()
    headers: tuple[str, ...] = ()
    always: bool = False
    """It answers whatever state the server is in, and without the token."""


class Api(NamedTuple):
    """All that is said by hand."""

    description: str
    tags: Mapping[str, str]
    operations: Mapping[str, Operation]
    """By "METHOD /path"."""
    fields: Mapping[str, str | Json]
    """What fields mean, or more of their schema; by "Type.field", "*" for any type."""
    omitting: tuple[type, ...]
    """Types of answers that leave out what does not apply; other types say null."""


REFUSALS: dict[int, tuple[str, str, str | None, str]] = {
    400: (
        "bad_json",
        "the body is not JSON: JSON is malformed: expected ',' (byte 18)",
        None,
        "The body cannot be read.",
    ),
    401: (
        "no_token",
        "give the server's token: Authorization: Bearer …",
        None,
        "The server has a token, and it was not given.",
    ),
    403: (
        "cross_site",
        "a page of another site may not do this; cors_origins names those that may",
        None,
        "A page of another site asked for it.",
    ),
    404: ("not_found", "job not found: 17", None, "There is none by this name."),
    409: (
        "transition_refused",
        "job 0199e0c4: cannot retry, it is completed",
        None,
        "As things are this cannot be done.",
    ),
    413: (
        "too_large",
        "the payload has 1,048,600 bytes, over the limit max_payload_bytes = 1,048,576",
        None,
        "Body or payload are too large.",
    ),
    421: (
        "wrong_host",
        "this server is not 'jobs.example'; if it is, name it in allowed_hosts",
        None,
        "Addressed to another host than this.",
    ),
    422: (
        "invalid_request",
        "payload.name: expected str, got int",
        "payload.name",
        "What `field` names cannot be taken.",
    ),
    429: (
        "queue_full",
        "10,000,000 jobs are waiting, the limit max_queue is 10,000,000; try again in 5 s",
        None,
        "Too many jobs wait; try again later.",
    ),
    503: (
        "shutting_down",
        "the server is shutting down and takes no new jobs",
        None,
        "The server stops, or its database is locked; try again later.",
    ),
    507: ("disk_full", "the disk is full", None, "The disk is full. What was accepted is kept."),
}
"""By status: the code, detail and field of an example, and what the status says."""

HEADERS: dict[str, str] = {
    "X-Request-ID": "the id of this request: the one that came with it, or a new one",
    "Location": "where the job is",
    "Idempotency-Replayed": "`true` if the job is that of an earlier submit with this key",
    "Submit-Outcome": "`existing` or `debounced` if the job was there already, by its rule `unique` or `debounce`",
    "Retry-After": "seconds after which it is worth asking again",
    "ETag": "names this state of the answer, for If-None-Match",
    "Content-Disposition": "a name for the file",
    "WWW-Authenticate": "`Bearer`",
}
HEADERS_OF_REFUSALS = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}

HEADER_PARAMETERS: dict[str, tuple[str, Json]] = {
    "Idempotency-Key": (
        "repeats of a submit with the same key and body name one job; as `idempotency_key` in the body",
        {"type": "string", "minLength": 1, "maxLength": 255},
    ),
    "X-Request-ID": (
        "an id of yours for this request: stored with the job, and in its log",
        {"type": "string", "maxLength": 128},
    ),
    "traceparent": (
        "W3C Trace Context: the trace that the run is to be in, and the caller's span. One that cannot be read is passed over",
        {"type": "string", "maxLength": TRACEPARENT_CHARS_MAX},
    ),
}
PARAMETERS = {
    "job_id": "the id of a job, as its submit answered it",
    "workflow_id": "the id of a workflow, as its start answered it",
    "name": "a name",
    "queue": "only jobs of this queue",
    "task": "only jobs of this task",
    "wait": "seconds to wait for the job to end, at most 60",
    "max_messages": "how many at most",
}
"""What parameters mean where the handler does not say."""


class Document:
    """Made when it is first asked for, and then kept."""

    def __init__(self, generate: Callable[[], Json], api: Api, *, has_token: bool) -> None:
        """``generate()`` is Litestar's document."""
        self._generate, self._api, self._has_token = generate, api, has_token
        self._lock = threading.Lock()
        self._text: bytes | None = None

    def text(self) -> bytes:
        with self._lock:
            if self._text is None:
                self._text = msgspec.json.encode(self.made())
            return self._text

    def made(self) -> Json:
        document = self._generate()
        document["info"]["description"] = self._api.description
        document["tags"] = [{"name": name, "description": text} for name, text in self._api.tags.items()]
        del document["servers"]  # the one that it comes from
        document["paths"] = self._in_order(document["paths"])
        for path, item in document["paths"].items():
            for method, operation in item.items():
                said = self._api.operations.get(f"{method.upper()} {path}")
                if said is not None:
                    _complete(operation, said, method, path)
        document["components"] = _components(self._api)
        if self._has_token:
            document["components"]["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer", "description": "The server's setting `token`."}
            }
            document["security"] = [{"token": []}]
        return document

    def _in_order(self, paths: Json) -> Json:
        """As they are described, not as they are registered; what is not described comes last."""
        order = {name: place for place, name in enumerate(self._api.operations)}

        def place(name: str) -> int:
            return order.get(name, len(order))

        found = sorted((place(f"{method.upper()} {path}"), path, method) for path in paths for method in paths[path])
        ordered: Json = {}
        for _, path, method in found:
            ordered.setdefault(path, {})[method] = paths[path][method]
        return ordered


def _components(api: Api) -> Json:
    responses = {f"{kind}{status}": _refusal(status, kind) for kind in ("Problem", "Classic") for status in REFUSALS}
    headers = {
        name: {"description": text, "schema": {"type": "string"}, "required": name == "X-Request-ID"}
        for name, text in HEADERS.items()
    }
    parameters = {
        name: {"name": name, "in": "header", "description": text, "schema": schema}
        for name, (text, schema) in HEADER_PARAMETERS.items()
    }
    return {"schemas": _schemas(api), "responses": responses, "headers": headers, "parameters": parameters}


def _schemas(api: Api) -> Json:
    shapes: list[Any] = [Problem, ClassicProblem]
    for said in api.operations.values():
        for answer in said.answers.values():
            shapes += (
                answer.shape if isinstance(answer.shape, tuple) else [answer.shape] if answer.shape is not None else []
            )
        shapes += [said.body.shape] if said.body is not None else []
    _, schemas = msgspec.json.schema_components(shapes, ref_template=SCHEMAS)
    omitting = {kind.__name__ for kind in (*api.omitting, Problem, ClassicProblem)}
    for name, schema in schemas.items():
        schema["description"] = _prose(schema.get("description", ""))
        for field, about in schema.get("properties", {}).items():
            if about.get("default", "") is None:
                del about["default"]
                if name in omitting and "anyOf" in about:  # else it is anything
                    about.update(_without_null(about.pop("anyOf"), "anyOf"))
            said_of = api.fields.get(f"{name}.{field}", api.fields.get(f"*.{field}", {}))
            about.update({"description": said_of} if isinstance(said_of, str) else said_of)
    return schemas


def _prose(docstring: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", inspect.cleandoc(docstring))


class ClassicProblem(msgspec.Struct, omit_defaults=True):
    """Why a request to a classic route was not done."""

    detail: str
    field: str | None = None


def operation_ids() -> Callable[[HTTPRouteHandler, Method, list[Any]], str]:
    """Names for client generators: the handler's, those of the classic routes marked, a second path of one counted."""
    given: set[str] = set()

    def name_of(handler: HTTPRouteHandler, _method: Method, _path: list[Any]) -> str:
        classic = handler.fn.__module__.endswith(".classic")
        base = name = f"classic_{handler.handler_name}" if classic else handler.handler_name
        n = 1
        while name in given:
            n += 1
            name = f"{base}_{n}"
        given.add(name)
        return name

    return name_of


# ------------------------------------------------------------------------------------------------------------ one operation


def _complete(operation: Json, said: Operation, method: str, path: str) -> None:
    operation["tags"] = [said.tag]
    operation["description"] = _prose(operation.get("description", ""))
    operation.pop("deprecated", None)
    parameters = [_parameter(one) for one in operation.get("parameters", [])]
    parameters += [{"$ref": f"#/components/parameters/{name}"} for name in said.headers]
    if parameters:
        operation["parameters"] = parameters
    if said.body is not None:
        operation["requestBody"] = _request_body(said.body)
    if said.always:
        operation["security"] = []
    kind = "Problem" if path.startswith("/api/") else "Classic"
    answers = {status: _answer(answer) for status, answer in said.answers.items()}
    refusals = {
        status: {"$ref": f"#/components/responses/{kind}{status}"}
        for status in _refusals(said, method, path, operation.get("parameters", []))
    }
    operation["responses"] = {str(status): answer for status, answer in sorted({**refusals, **answers}.items())}


def _refusals(said: Operation, method: str, path: str, parameters: list[Json]) -> set[int]:
    """What an operation of this kind can be refused with."""
    found = {421, *said.refusals}
    if not said.always:
        found |= {401, 503}
    if "{" in path:
        found.add(404)
    if path.startswith("/api/") or any(one.get("in") in ("query", "header") for one in parameters):
        found.add(422)  # there also for a parameter that the operation does not have
    if said.body is not None:
        found |= {400, 413, 422}
    if method != "get":
        found |= {403, 507}
    return found


def _parameter(given: Json) -> Json:
    """Litestar's, less what says nothing. That a parameter may be left out is said by ``required``; it cannot be null."""
    schema = {key: _whole(value) for key, value in given["schema"].items() if key != "description"}
    if given["in"] == "path":
        schema.pop("format", None)  # one that may have slashes in it is an URI to Litestar
    if "oneOf" in schema:
        schema = {**_without_null(schema.pop("oneOf"), "oneOf"), **schema}
    if schema.get("default", "") is None:
        del schema["default"]
    return {
        "name": given["name"],
        "in": given["in"],
        "description": given.get("description") or PARAMETERS.get(given["name"], ""),
        "required": given["required"],
        "schema": schema,
    }


def _without_null(kinds: list[Json], word: str) -> Json:
    left = [kind for kind in kinds if kind != NULL]
    return left[0] if len(left) == 1 else {word: left}


def _whole(value: Any) -> Any:
    """500, not 500.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _request_body(body: Body) -> Json:
    examples = {title: {"value": value} for title, value in body.examples.items()}
    content: Json = {JSON: {"schema": _schema(body.shape), "examples": examples}}
    if body.lines is not None:
        about = (
            f"One of them a line:\n\n```\n{body.lines}```"  # not an example: generators of requests cannot write NDJSON
        )
        content["application/x-ndjson"] = {"schema": {"type": "string", "description": about}}
    return {"required": body.required, "content": content}


def _answer(answer: Answer) -> Json:
    content: Json = {}
    if answer.shape is not None:
        content[JSON] = {"schema": _schema(answer.shape), "example": answer.example}
    for media_type, text in answer.texts.items():
        schema = _event(answer.events) if media_type == EVENT_STREAM else {"type": "string"}
        content[media_type] = {"schema": schema, "example": text}
    made: Json = {"description": answer.description, "headers": _headers(answer.headers)}
    if content:
        made["content"] = content
    if answer.links:
        job_id = {"job_id": "$response.body#/id"}
        made["links"] = {name: {"operationId": name, "parameters": job_id} for name in answer.links}
    return made


def _event(names: tuple[str, ...]) -> Json:
    text = {"type": "string"}
    properties = {"id": text, "event": {**text, "enum": [*names]}, "data": {**text, "contentMediaType": JSON}}
    return {"type": "object", "description": "One event of the stream", "properties": properties}


def _refusal(status: int, kind: str) -> Json:
    code, detail, field, description = REFUSALS[status]
    example: Problem | ClassicProblem = ClassicProblem(detail=detail, field=field)
    if kind == "Problem":
        title, request_id = HTTPStatus(status).phrase, "0199e0c4-7d3e-7a41-9c1f-2b6e5d8a4f10"
        example = Problem(title=title, status=status, detail=detail, code=code, field=field, request_id=request_id)
    content = {"schema": _schema(type(example)), "example": msgspec.to_builtins(example)}
    return {
        "description": description,
        "headers": _headers(HEADERS_OF_REFUSALS.get(status, ())),
        "content": {PROBLEM if kind == "Problem" else JSON: content},
    }


def _headers(names: tuple[str, ...]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *names)}


def _schema(shape: Any) -> Json:
    if isinstance(shape, tuple):
        return {"anyOf": [_schema(one) for one in shape]}
    ((schema,), _) = msgspec.json.schema_components([shape], ref_template=SCHEMAS)
    return schema
