"""What is wrong with a request, in words that name the fault and what would be right.

msgspec and Litestar say which field they cannot take and of which type it should be. Here their sentences become ours, with
what a person needs to go on: what there is instead of a name that nobody knows, and how a value is written.
"""

from __future__ import annotations

import typing
from functools import lru_cache
from typing import Any

import msgspec
from litestar import Request
from litestar.enums import ParamType
from litestar.exceptions import ValidationException
from litestar.handlers import BaseRouteHandler
from litestar.params import ParameterKwarg

from miniflow.errors import BadJson, InvalidRequest
from miniflow.validation_errors import in_words, instead_of, plain, quoted

AS_SECONDS = "it is a number of seconds"
AS_TIME = "write it as 2026-01-31T12:00:00Z"
HOW_IT_IS_WRITTEN = {
    "priority": "it is -1000 to 1000, or low, medium or high",
    "run_at": AS_TIME,
    "retry": 'it is {"base": 1, "factor": 2, "max_delay": 60, "jitter": 0.1}, or a list of seconds',
    **dict.fromkeys(("delay", "ttl", "timeout", "result_ttl", "failure_ttl"), AS_SECONDS),
}
"""Fields whose type alone does not say it."""


def decode_error(exc: msgspec.DecodeError, where: str = "", kind: Any = None) -> InvalidRequest:
    """What msgspec says of a body, as an error that names the field; ``where`` goes before it. ``kind`` is the type that the body
    should have been of."""
    if not isinstance(exc, msgspec.ValidationError):
        return BadJson(where.rstrip("."), f"the body is not JSON: {exc}")
    field, reason = in_words(exc, kind)
    how = HOW_IT_IS_WRITTEN.get(field.rpartition(".")[2])
    if how and reason.startswith(("expected", "invalid")):
        reason = f"{reason.partition('; there are ')[0]}; {how}"
    return InvalidRequest((where + field).rstrip("."), reason)


# -------------------------------------------------------------------------------------------------------- query parameters


@lru_cache(512)
def _parameters(handler: BaseRouteHandler) -> dict[str, Any]:
    """The query parameters that an operation has, and the type of each."""
    found: dict[str, Any] = {}
    for name, field in handler.parsed_fn_signature.parameters.items():
        kwarg = field.kwarg_definition
        if name in RESERVED or name in handler.resolve_dependencies():
            continue
        if kwarg is None:
            found[name] = field.annotation
        elif isinstance(kwarg, ParameterKwarg) and kwarg.param_type == ParamType.QUERY:
            found[kwarg.name or name] = field.annotation
    return found


RESERVED = frozenset({"request", "scope", "state", "headers", "cookies", "query", "body", "data", "socket"})
"""Litestar's own."""


async def refuse_unknown_parameters(request: Request[Any, Any, Any]) -> None:
    """InvalidRequest for a parameter that the operation does not have: a list that a typo leaves unnarrowed would answer with
    everything. The classic routes pass over what they do not know, as their seeds did."""
    if not request.scope["query_string"] or not request.scope["path"].startswith("/api/"):
        return
    known = [name for name in _parameters(request.route_handler) if name not in request.path_params]
    for name in request.query_params:
        if name not in known:
            name = quoted(name)
            hint = instead_of(name, known) if known else "; it takes none"
            raise InvalidRequest(name, f"is no parameter of this request{hint}")


def parameter_error(request: Request[Any, Any, Any], exc: ValidationException) -> Exception:
    """A parameter that Litestar cannot take, named; of one that is a choice, what there is to choose from."""
    if not (isinstance(exc.extra, list) and exc.extra):
        return exc
    first: dict[str, Any] = exc.extra[0]
    name, reason = str(first.get("key", "")), str(first.get("message", "cannot be taken"))
    choices = [one for one in _choices(_parameters(request.route_handler).get(name)) if one is not None]
    hint = f"; there are {', '.join(map(str, choices))}" if choices and "enum value" in reason else ""
    return InvalidRequest(name, plain(reason) + hint)


def _choices(kind: Any) -> list[Any]:
    """The values of a Literal, also of one that may be left out."""
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind))
    return [value for part in typing.get_args(kind) for value in _choices(part)]
