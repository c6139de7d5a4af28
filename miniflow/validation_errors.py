"""What msgspec says of a value that does not fit, in words that name the field, the fault and what there is instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import inspect

_UNKNOWN_FIELD = "is not a known field"
QUOTE_MAX = 100
"""Characters of a client's own field name repeated to it in a message."""

_AT = re.compile(r"(?P<text>.*) - at `(?P<key>key` in `)?\$(?P<path>[^`]*)`", re.DOTALL)
_BELOW = re.compile(r"\.([^.\[]+)|\[[^\]]*\]")  # a field, or an item
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


def read_validation_error(text: str) -> tuple[str, str, str | None]:
    """A text of ``msgspec.ValidationError`` as (path below the payload, reason, name of an unknown field of the payload).

    msgspec offers no other form of it; this is the one place that knows its wording, and the tests go through all of it.
    """
    path = ""
    if at := _AT.fullmatch(text):
        text, path = at["text"], at["path"]
        if at["key"]:
            return path, f"{plain(text)}, in a key", None
    if missing := _MISSING.fullmatch(text):
        return f"{path}.{missing[1]}", "is missing", None
    if unknown := _UNKNOWN.fullmatch(text):
        return f"{path}.{quoted(unknown[1])}", _UNKNOWN_FIELD, unknown[1] if not path else None
    return path, plain(text), None


def in_words(
    error: msgspec.ValidationError, kind: Any, *, unknown: str = "is no field of this request"
) -> tuple[str, str]:
    """The field that does not fit, and why. ``kind`` is the type that the value should have been of; the field is a path below
    it, ``steps[0].queue``, and empty for the whole. ``unknown`` is said of a field that there is none of."""
    path, reason, _ = read_validation_error(str(error))
    field = path.removeprefix(".")
    if reason == _UNKNOWN_FIELD:
        above, _, name = path.rpartition(".")
        return field, unknown + instead_of(name, fields_at(kind, above))
    return field, reason + choices(kind, path, reason)


def sentence(error: msgspec.ValidationError, kind: Any, *, unknown: str = "is not known") -> str:
    """The same in one piece."""
    field, reason = in_words(error, kind, unknown=unknown)
    if not field:
        return reason
    return f"{field} {reason}" if reason.startswith(("is ", unknown)) else f"{field}: {reason}"


def fields_at(kind: Any, path: str) -> list[str]:
    """The names of the fields of what stands at ``path`` below a value of type ``kind``; none where nothing is known of them."""
    return [field.encode_name for one in _types_at(kind, path) for field in getattr(one, "fields", ())]


def instead_of(name: str, known: Iterable[str]) -> str:
    """What to offer to somebody who wrote ``name``: the one that it is close to, else all that there are."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(names)}" if names else ""


def choices(kind: Any, path: str, reason: str) -> str:
    """What there is to choose from at ``path``, if it is a choice that something else was given for."""
    if not reason.startswith(("invalid enum value", "expected")):
        return ""
    names: list[str] = []
    numbers = False
    for one in _types_at(kind, path):
        if isinstance(one, inspect.LiteralType):
            names += map(str, one.values)
        elif isinstance(one, inspect.EnumType):
            names += [str(member.value) for member in one.cls]
        numbers = numbers or isinstance(one, inspect.IntType)
    return f"; there are {', '.join(names)}{' and numbers' if numbers else ''}" if names else ""


def _types_at(kind: Any, path: str) -> list[inspect.Type]:
    """Those that a value there may be of."""
    found = _members(inspect.type_info(kind))
    for part in _BELOW.finditer(path if path[:1] in ("", ".", "[") else "." + path):
        found = [one for above in found for below in _below(above, part[1]) for one in _members(below)]
    return found


def _members(kind: inspect.Type) -> list[inspect.Type]:
    if isinstance(kind, inspect.UnionType):
        return [one for member in kind.types for one in _members(member)]
    return _members(kind.type) if isinstance(kind, inspect.Metadata) else [kind]


def _below(kind: inspect.Type, field: str | None) -> list[inspect.Type]:
    """The types of a field; of an item where there is no name."""
    if field is not None:
        return [one.type for one in getattr(kind, "fields", ()) if one.encode_name == field]
    if isinstance(kind, inspect.TupleType):
        return list(kind.item_types)
    return [below for name in ("item_type", "value_type") if (below := getattr(kind, name, None)) is not None]


def plain(text: str) -> str:
    """Without the backquotes, and fit to follow a colon: a first word is lowered, an abbreviation stays."""
    text = text.replace("`", "")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def quoted(name: str) -> str:
    return name if len(name) <= QUOTE_MAX else name[:QUOTE_MAX] + "…"
