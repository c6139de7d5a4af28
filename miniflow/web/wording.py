"""What is wrong with a request, in words that name the fault and what would be right.

msgspec and Litestar say which field they cannot take and of which type it should be. Here their sentences become ours, with
what a person needs to go on: what there is instead of a name that nobody knows, and how a value is written.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec
from litestar import Request
from litestar.enums import ParamType
from litestar.exceptions import ValidationException
from litestar.handlers import BaseRouteHandler
from litestar.params import ParameterKwarg

from miniflow.errors import BadJson, InvalidRequest

NAME_CHARS_MAX = 100
"""Of a name from outside, before it is compared with others or sent back."""

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
    text = str(exc)
    if not isinstance(exc, msgspec.ValidationError):
        return BadJson(where.rstrip("."), f"the body is not JSON: {text}")
    reason, _, path = text.partition(" - at `")
    field = path.rstrip("`").removeprefix("$").removeprefix(".")
    if reason.startswith("Object contains unknown field"):
        name = _cut(reason.split("`")[1])
        hint = instead_of(name, _fields(kind, field))
        return InvalidRequest(_joined(where, field, name), f"is no field of this request{hint}")
    if reason.startswith("Object missing required field"):
        return InvalidRequest(_joined(where, field, reason.split("`")[1]), "is missing")
    how = HOW_IT_IS_WRITTEN.get(field)
    return InvalidRequest((where + field).rstrip("."), _lowered(reason) + (f"; {how}" if how else ""))


def _fields(kind: Any, path: str) -> tuple[str, ...]:
    """The names of the fields at ``path`` below a struct; none where nothing is known of them."""
    for name in path.split(".") if path else []:
        inside = {one.encode_name: one.type for one in msgspec.structs.fields(kind)} if _is_struct(kind) else {}
        kind = next((part for part in (inside.get(name), *typing.get_args(inside.get(name))) if _is_struct(part)), None)
    names: tuple[str, ...] = kind.__struct_encode_fields__ if _is_struct(kind) else ()
    return names


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _joined(where: str, field: str, name: str) -> str:
    return f"{where}{field}.{name}" if field else where + name


def _lowered(reason: str) -> str:
    reason = reason.replace("`", "")
    return reason[:1].lower() + reason[1:]


def instead_of(name: str, known: Iterable[str]) -> str:
    """What to offer to somebody who wrote ``name``: the one that it is close to, else all that there are."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(names)}" if names else ""


def _cut(name: str) -> str:
    return name if len(name) <= NAME_CHARS_MAX else name[:NAME_CHARS_MAX] + "…"


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
            name = _cut(name)
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
    return InvalidRequest(name, _lowered(reason) + hint)


def _choices(kind: Any) -> list[Any]:
    """The values of a Literal, also of one that may be left out."""
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind))
    return [value for part in typing.get_args(kind) for value in _choices(part)]
