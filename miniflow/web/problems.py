"""Errors as HTTP: one table from the class of an error to its status, one shape of body (RFC 9457, problem details).

``code`` is a stable word for programs, ``detail`` a sentence for people; ``field`` names the part of the request that is wrong.
The classic routes answer ``{"detail": …}`` alone, as their seeds do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from litestar import MediaType, Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException, ValidationException

from miniflow import errors
from miniflow.web import wording

log = logging.getLogger("miniflow.http")

PROBLEM = "application/problem+json"

T = TypeVar("T")

STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (errors.NotFound, 404, "not_found"),
    (errors.BadJson, 400, "bad_json"),
    (errors.UnknownTask, 422, "unknown_task"),
    (errors.TooManyQueues, 422, "too_many_queues"),
    (errors.InvalidRequest, 422, "invalid_request"),
    (errors.SearchTooExpensive, 422, "search_too_expensive"),
    (errors.TooLarge, 413, "too_large"),
    (errors.TransitionRefused, 409, "transition_refused"),
    (errors.LateEvent, 409, "late_event"),
    (errors.IdempotencyConflict, 409, "idempotency_conflict"),
    (errors.ScheduleExists, 409, "schedule_exists"),
    (errors.ScheduleRefused, 409, "schedule_refused"),
    (errors.DefinitionRefused, 409, "definition_refused"),
    (errors.NotUnique, 409, "not_unique"),
    (errors.QueueFull, 429, "queue_full"),
    (errors.ShuttingDown, 503, "shutting_down"),
    (errors.StoreFull, 507, "disk_full"),
    (errors.StoreLocked, 503, "database_locked"),
    (errors.ReadTooSlow, 503, "database_slow"),
    (errors.StoreClosed, 503, "shutting_down"),
)


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Why a request was not done (RFC 9457)."""

    title: str
    status: int
    detail: str
    code: str
    field: str | None = None
    job_id: str | None = None
    request_id: str | None = None


def problem_of(exc: Exception, request_id: str | None = None) -> tuple[Problem, dict[str, str]]:
    """The problem and its headers. What nobody foresaw is a 500 without its inner details, which go to the log."""
    headers: dict[str, str] = {}
    status, code = _status(exc)
    detail = str(exc)
    if isinstance(exc, HTTPException):
        detail = exc.detail
        headers.update(exc.headers or {})
    elif status == 500:
        log.error("request %s failed", request_id, exc_info=exc)
        detail = "something went wrong inside the server; its log has the details under this request_id"
    retry_after = getattr(exc, "retry_after_s", None)
    if retry_after is not None:
        headers["retry-after"] = str(retry_after)
    field = getattr(exc, "field", None) or None
    return Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        field=field,
        job_id=exc.job_id if isinstance(exc, errors.NotUnique) else None,
        request_id=request_id,
    ), headers


def _status(exc: Exception) -> tuple[int, str]:
    for kind, status, code in STATUS:
        if isinstance(exc, kind):
            return status, code
    if isinstance(exc, NotFoundException):
        return 404, "no_such_route"
    if isinstance(exc, MethodNotAllowedException):
        return 405, "method_not_allowed"
    if isinstance(exc, HTTPException):
        return exc.status_code, "bad_request" if exc.status_code < 500 else "server_error"
    return 500, "server_error"


def answer(request: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    """Litestar's exception handler."""
    request_id = request.scope.get("miniflow_request_id")
    problem, headers = problem_of(_in_our_words(request, exc), request_id if isinstance(request_id, str) else None)
    media_type, body = shaped(problem, request.scope["path"])
    return Response(body, status_code=problem.status, headers=headers, media_type=media_type)


def shaped(problem: Problem, path: str) -> tuple[str, bytes]:
    """Media type and body: problem details under ``/api/``, the classic shape for the classic routes."""
    if path.startswith("/api/"):
        return PROBLEM, msgspec.json.encode(problem)
    return MediaType.JSON, msgspec.json.encode(
        {"detail": problem.detail, **({"field": problem.field} if problem.field else {})}
    )


def _in_our_words(request: Request[Any, Any, Any], exc: Exception) -> Exception:
    """Litestar's refusals with what was asked for in them, and what could be asked for instead."""
    if isinstance(exc, NotFoundException):
        return NotFoundException(f"there is no {request.scope['path']} here; /openapi.json lists what there is")
    if isinstance(exc, MethodNotAllowedException):
        allowed = (exc.headers or {}).get("allow", "")
        return MethodNotAllowedException(
            f"{request.method} is not allowed here; allowed: {allowed}", headers=exc.headers
        )
    if isinstance(exc, ValidationException):
        return wording.parameter_error(request, exc)
    return exc


def decoded(decode: Callable[[bytes], T], body: bytes, where: str = "") -> T:
    """What ``decode`` makes of a body. InvalidRequest that names the field, or BadJson; ``where`` goes before its name."""
    try:
        return decode(body)
    except msgspec.DecodeError as exc:
        if not body.strip():
            raise errors.BadJson(where.rstrip("."), "the body is empty, and so is not JSON; send an object") from None
        raise wording.decode_error(exc, where, getattr(getattr(decode, "__self__", None), "type", None)) from None
    except UnicodeDecodeError:
        raise errors.BadJson(where.rstrip("."), "the body is not UTF-8") from None
    except RecursionError:
        raise errors.BadJson(where.rstrip("."), "the body is nested too deeply") from None
