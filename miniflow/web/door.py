"""The outermost ASGI application: who may come in, and the fast way for the commonest request.

Every request passes: the Host it is addressed to (a web page that rebinds its name to 127.0.0.1 is turned away), its Origin if
it changes anything (another site's page cannot submit jobs), its token if one is set; the request id is taken or made.

A plain ``POST /api/v1/jobs``, or ``/workflows``, is answered here, without Litestar's routing: at tens of thousands of submits a
second that is most of the cost. Whatever is not plain – a field that is wrong, a limit, a repeated key – goes to the typed route
of the same path with its body read already, and is answered there in full.
"""

from __future__ import annotations

import functools
import hmac
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

from miniflow.context import request_id as current_request_id
from miniflow.errors import TooLarge
from miniflow.ids import uuid7
from miniflow.intake import decode_submission
from miniflow.operations import Operation
from miniflow.queries import job_of_new
from miniflow.web.backend import Backend
from miniflow.web.problems import PROBLEM, Problem, problem_of, shaped
from miniflow.web.protocol import answer_whole
from miniflow.workflow_graph import decode_workflow
from miniflow.workflow_queries import workflow_of_new

LOOPBACK = ("localhost", "127.0.0.1", "::1")
WITHOUT_TOKEN = frozenset({"/health", "/ready", "/docs", "/redoc", "/openapi.json"})
"""What says nothing of any job: it is the same in each installation. A browser's address bar cannot send a token."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
REQUEST_ID_CHARS_MAX = 128
CREATED = b"HTTP/1.1 201 Created\r\ncontent-type: application/json\r\nlocation: %s\r\nx-request-id: %s\r\n"
IN_FULL = frozenset({b"idempotency-key", b"traceparent"})
"""Headers that a plain request does not have."""
JOBS, WORKFLOWS = "/api/v1/jobs", "/api/v1/workflows"
WITH_REFUSAL = {401: ((b"www-authenticate", b"Bearer"),)}

encode = msgspec.json.Encoder().encode
Headers = dict[bytes, bytes]
# ASGI's own terms (https://asgi.readthedocs.io), as loosely typed as it leaves them.
Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Site = Callable[[Any, Any, Any], Awaitable[None]]


class Plain(NamedTuple):
    """What a plain request asks for: the operation that writes it, its id, and what is answered when it is written."""

    operation: Operation
    id: str
    request_id: str
    answer: Callable[[int], msgspec.Struct]


class Door:
    def __init__(self, backend: Backend, site: Site) -> None:
        self._backend, self._site, self._requests = backend, site, backend.metrics.requests
        settings = backend.settings
        names = [settings.host, *settings.allowed_hosts.split(",")]
        self._hosts = frozenset(name.strip().lower() for name in (*LOOPBACK, *names) if name.strip())
        self._any_host = settings.insecure or bool(settings.token)  # there the token, or the user's word, is the guard
        self._authorization = f"Bearer {settings.token}".encode() if settings.token else None
        self._origins = frozenset(origin.encode() for origin in settings.origins)
        self._any_origin = b"*" in self._origins
        self._known_hosts: set[bytes] = set()  # Host headers that were found good
        self._plain: dict[str, Callable[[bytes, str | None], Plain | None]] = {
            JOBS: self._job,
            WORKFLOWS: self._workflow,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._site(scope, receive, send)
            return
        headers: Headers = dict(scope["headers"])
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            refusal.request_id = _request_id(headers) or uuid7()
            media_type, body = shaped(refusal, scope["path"])
            extra = ((b"x-request-id", refusal.request_id.encode()), *WITH_REFUSAL.get(refusal.status, ()))
            self._requests.answered(scope["method"], "", refusal.status, 0)
            await _respond(send, refusal.status, media_type, body, extra)
            return
        if scope["method"] == "POST" and (plain := self._plain.get(scope["path"])) is not None:
            await self._submit(scope, receive, send, headers, plain)
            return
        await self._in_full(scope, receive, send, headers)

    # ----------------------------------------------------------------------------------------------------- who may come in

    def _refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        host = headers.get(b"host", b"")
        if host not in self._known_hosts and not self._good_host(host):
            return _problem(
                421, "wrong_host", f"this server is not {host.decode('latin-1')!r}; if it is, name it in allowed_hosts"
            )
        origin = headers.get(b"origin")
        if origin is not None and scope["method"] not in SAFE_METHODS and not self._good_origin(origin, host):
            return _problem(
                403, "cross_site", "a page of another site may not do this; cors_origins names those that may"
            )
        if self._authorization is not None and not self._has_token(scope, headers):
            return _problem(401, "no_token", "give the server's token: Authorization: Bearer …")
        return None

    def _good_origin(self, origin: bytes, host: bytes) -> bool:
        """A page of this server, or of a site that the setting cors_origins lets in."""
        return origin.partition(b"://")[2] == host or self._any_origin or origin in self._origins

    def _good_host(self, host: bytes) -> bool:
        name = host.decode("latin-1").lower()
        name = name[1 : name.find("]")] if name.startswith("[") else name.rsplit(":", 1)[0]
        good = self._any_host or name in self._hosts
        if good and len(self._known_hosts) < 100:
            self._known_hosts.add(host)
        return good

    def _has_token(self, scope: Scope, headers: Headers) -> bool:
        path = scope["path"]
        if path in WITHOUT_TOKEN or path.startswith("/static/"):
            return True
        return hmac.compare_digest(headers.get(b"authorization", b""), self._authorization or b"")

    # -------------------------------------------------------------------------------------------------------- the fast way

    async def _submit(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: Headers,
        plain: Callable[[bytes, str | None], Plain | None],
    ) -> None:
        backend, began, path = self._backend, time.perf_counter(), scope["path"]
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, asked = message["body"], None
        if (
            not (message.get("more_body") or scope["query_string"] or not headers.keys().isdisjoint(IN_FULL))
            and len(body) <= backend.settings.max_payload_bytes
        ):
            try:
                asked = plain(body, _request_id(headers))
            except Exception:  # whatever it is, the route in full meets it again, and answers it
                asked = None
        if asked is None:
            await self._in_full(scope, replayed(message, receive), send, headers)
            return
        operation = asked.operation
        await backend.waiter.post(operation)
        location, request_id = f"{path}/{asked.id}".encode(), asked.request_id.encode()
        if operation.error is not None:
            problem, problem_headers = problem_of(
                operation.error if isinstance(operation.error, Exception) else RuntimeError(str(operation.error)),
                asked.request_id,
            )
            more = tuple((name.encode(), value.encode()) for name, value in problem_headers.items())
            await _respond(send, problem.status, PROBLEM, encode(problem), ((b"x-request-id", request_id), *more))
            self._requests.answered("POST", path, problem.status, time.perf_counter() - began)
            return
        body = encode(asked.answer(backend.clock.now_ms()))
        if not answer_whole(send, CREATED % (location, request_id), body):
            extra = ((b"location", location), (b"x-request-id", request_id))
            await _respond(send, 201, "application/json", body, extra)
        self._requests.accepted[path].observe(time.perf_counter() - began)

    def _job(self, body: bytes, request_id: str | None) -> Plain | None:
        new = self._backend.intake.job(decode_submission(body), request_id=request_id)
        if new.key is not None or new.waits is not None or new.same is not None:
            return None
        return Plain(Operation("insert", [new]), new.id, request_id or new.id, functools.partial(job_of_new, new))

    def _workflow(self, body: bytes, request_id: str | None) -> Plain | None:
        wanted = decode_workflow(body)
        if wanted.definition is not None or wanted.idempotency_key is not None:
            return None
        request_id = request_id or uuid7()
        new = self._backend.workflow_intake.workflow(wanted, request_id=request_id)
        if new.shape.loose:  # it may be further by the time that it is answered
            return None
        return Plain(Operation("workflow", new), new.id, request_id, functools.partial(workflow_of_new, new))

    async def _in_full(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        """Through Litestar's routes, with a request id and a limit on the body."""
        request_id = _request_id(headers) or uuid7()
        scope["miniflow_request_id"] = request_id
        current_request_id.set(request_id)
        began, method = time.perf_counter(), scope["method"]
        if method == "HEAD":
            scope, send = {**scope, "method": "GET"}, without_body(send)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                took_s = time.perf_counter() - began
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-process-time-ms", b"%.2f" % (took_s * 1000)),
                ]
                self._requests.answered(method, scope.get("path_template", ""), message["status"], took_s)
            await send(message)

        await self._site(scope, limited(receive, self._backend.settings.max_body_bytes), send_with_id)


def replayed(first: Message, receive: Receive) -> Receive:
    """``receive`` with its first message given back."""
    pending: list[Message] = [first]

    async def again() -> Any:
        return pending.pop() if pending else await receive()

    return again


def without_body(send: Send) -> Send:
    """``send`` for HEAD: the answer ends with its head, so that what would be streamed is not even begun."""

    async def head_alone(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b""})

    return head_alone


def limited(receive: Receive, limit: int) -> Receive:
    """``receive`` that raises TooLarge once the body is over ``limit`` bytes, however it is chunked."""
    seen = 0

    async def counted() -> Any:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message["body"])
            if seen > limit:
                raise TooLarge("the body", seen, "max_body_bytes", limit)
        return message

    return counted


def _request_id(headers: Headers) -> str | None:
    """The caller's id for this request, if it is one that can be stored and shown."""
    given = headers.get(b"x-request-id")
    if given is None or len(given) > REQUEST_ID_CHARS_MAX:
        return None
    text = given.decode("latin-1")
    return text if text.isascii() and text.isprintable() and text.strip() else None


def _problem(status: int, code: str, detail: str) -> Problem:
    return Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, code=code)


async def _respond(
    send: Callable[[Any], Any], status: int, media_type: str, body: bytes, extra: tuple[tuple[bytes, bytes], ...]
) -> None:
    headers = [(b"content-type", media_type.encode()), (b"content-length", b"%d" % len(body)), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
