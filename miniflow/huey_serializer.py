"""JSON in place of huey's pickle: what is stored can be read with any tool, and reading it runs no code.

JSON has no word for some of what huey's users pass around, so a value may stand there under a tag, an object with one field:
``$tuple``, ``$datetime``, ``$seconds`` (a timedelta), ``$error``, ``$skipped``, ``$exception``, ``$message``, and ``$python`` for
others of Python's own: ``["date", "2026-01-31"]``, ``["set", […]]``. ``$object`` is an object of the user's own that looks like
one of these. The kinds are a short list: nothing is imported or called by a name in the data. Tags are written and read only
between Python and Python: what comes over HTTP is never looked through for them.

A value of any other class is refused, also where there is a way to write it as JSON (a dataclass as an object, say): it would
come back as something else, and only the task that gets it would find out.

``SealingSerializer`` is for applications that move over with arguments that are no JSON. What does not come back from JSON as it
was goes through another serializer (huey's pickle, say) and stands there as ``$sealed``: base64 with a MAC under a key that only
this file's owner has. A pickle that somebody else made is never opened, whatever way it came in.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import math
import secrets
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from huey.constants import EmptyData
from huey.registry import Message
from huey.utils import SKIPPED, Error

from miniflow.errors import InvalidRequest, MiniFlowError

REMEDY = 'make it JSON, or make the huey object with serializer="auto"'

_encode = msgspec.json.Encoder().encode
_decode: Callable[[str | bytes], Any] = msgspec.json.Decoder().decode
_PLAIN = (int, str, bool, type(None))
_TAGS = frozenset(
    ("$tuple", "$datetime", "$seconds", "$error", "$skipped", "$exception", "$message", "$python", "$object", "$sealed")
)
_AS_TEXT: dict[type, tuple[str, Callable[[Any], str]]] = {
    bytes: ("bytes", lambda value: base64.b64encode(value).decode()),
    dt.date: ("date", dt.date.isoformat),
    dt.time: ("time", dt.time.isoformat),
    Decimal: ("decimal", str),
    UUID: ("uuid", str),
    float: ("float", str),  # those that JSON has no number for
}
"""What is written under ``$python`` as a text: the word for its kind, and how."""
_OF_TEXT: dict[str, Callable[[str], Any]] = {
    "bytes": base64.b64decode,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "decimal": Decimal,
    "uuid": UUID,
    "float": float,
}


class ComesBackOtherwise(TypeError):
    """A value that JSON does not bring back as it was."""

    def __init__(self, value: Any, why: str = "would not come back as it was") -> None:
        super().__init__(f"a value of {type(value).__module__}.{type(value).__qualname__} {why}; {REMEDY}")


class OtherSerializer(Protocol):
    """huey's own idea of a serializer."""

    def serialize(self, data: Any) -> bytes: ...

    def deserialize(self, data: bytes) -> Any: ...


class StoredResult:
    """A result as a read of the jobs table finds it. ``tagged``: a huey task's, so tags in it are ours."""

    __slots__ = ("tagged", "text")

    def __init__(self, text: str, tagged: bool) -> None:
        self.text, self.tagged = text, tagged


class FailedResult:
    """What a read of a failed job's result finds: its error, for huey's TaskException."""

    __slots__ = ("metadata",)

    def __init__(self, metadata: dict[str, Any]) -> None:
        self.metadata = metadata


class JsonSerializer:
    """JSON with tags, as text. TypeError or ValueError where a value would not come back as it was."""

    def serialize(self, data: Any) -> str:
        return (_encode(data) if type(data) in _PLAIN else _encode(self._tag(data))).decode()

    def deserialize(self, data: Any) -> Any:
        if isinstance(data, FailedResult):
            return Error(data.metadata)
        if isinstance(data, StoredResult):
            return self.from_json(data.text) if data.tagged else _decode(data.text)
        if data is EmptyData or isinstance(data, int):
            return data
        return self.from_json(data)

    def from_json(self, text: str | bytes) -> Any:
        if isinstance(text, bytes):
            text = text.decode()
        value = _decode(text)
        return self._untag(value) if '"$' in text else value

    def _tag(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN or (kind is float and math.isfinite(value)):
            return value
        if kind is dict:
            if any(type(key) is not str for key in value):
                return {"$python": ["dict", [[self._tag(key), self._tag(item)] for key, item in value.items()]]}
            tagged = {key: self._tag(item) for key, item in value.items()}
            return {"$object": tagged} if len(tagged) == 1 and next(iter(tagged)) in _TAGS else tagged
        if kind is list:
            return [self._tag(item) for item in value]
        if kind is Error:
            return {"$error": self._tag(dict(value.metadata))}
        if kind is Message:
            return {"$message": [self._tag(item) for item in value]}
        if kind is tuple:
            return {"$tuple": [self._tag(item) for item in value]}
        if kind is set or kind is frozenset:
            return {"$python": [kind.__name__, [self._tag(item) for item in value]]}
        return self._tag_special(value)

    def _tag_special(self, value: Any) -> Any:
        kind = type(value)
        if value is SKIPPED:
            return {"$skipped": True}
        if kind in (dt.datetime, dt.time) and value.tzinfo is not None and value.utcoffset() is None:
            raise ComesBackOtherwise(value, "whose zone has no offset for it would lose it")
        if kind in (dt.datetime, dt.time) and value.fold:
            return {"$python": ["fold", self._tag(value.replace(fold=0))]}
        if kind is dt.datetime and isinstance(value.tzinfo, ZoneInfo) and value.tzinfo.key:
            return {"$python": ["zoned", [value.replace(tzinfo=None).isoformat(), value.tzinfo.key]]}
        if kind is dt.datetime:
            return {"$datetime": value.isoformat()}
        if kind is dt.timedelta:
            seconds = value.total_seconds()
            exact = dt.timedelta(seconds=seconds) == value  # of centuries a float does not have the microseconds
            return {"$seconds": seconds if exact else [value.days, value.seconds, value.microseconds]}
        if kind in _AS_TEXT:
            word, text_of = _AS_TEXT[kind]
            return {"$python": [word, text_of(value)]}
        if isinstance(value, BaseException):  # huey hands these to on_error; who asks for more has "auto"
            return {"$exception": repr(value)}
        raise ComesBackOtherwise(value)

    def _untag(self, value: Any) -> Any:
        if type(value) is list:
            return [self._untag(item) for item in value]
        if type(value) is not dict:
            return value
        if len(value) == 1:
            ((tag, inner),) = value.items()
            if tag in _TAGS:
                return self._open(tag, inner)
        return {key: self._untag(item) for key, item in value.items()}

    def _open(self, tag: str, inner: Any) -> Any:
        match tag:
            case "$tuple":
                return tuple(self._untag(item) for item in inner)
            case "$object":
                return {key: self._untag(item) for key, item in inner.items()}
            case "$error":
                return Error(self._untag(inner))
            case "$message":
                return Message(*(self._untag(item) for item in inner))
            case "$skipped":
                return SKIPPED
            case "$datetime":
                return dt.datetime.fromisoformat(inner)
            case "$seconds":
                return dt.timedelta(*inner) if isinstance(inner, list) else dt.timedelta(seconds=inner)
            case "$python":
                return self._open_python(inner)
            case "$exception":
                return Exception(inner)
        return self._unseal(inner)

    def _open_python(self, inner: Any) -> Any:
        try:
            match inner:
                case ["set", list(items)]:
                    return {self._untag(item) for item in items}
                case ["frozenset", list(items)]:
                    return frozenset(self._untag(item) for item in items)
                case ["dict", list(pairs)]:
                    return {self._untag(key): self._untag(item) for key, item in pairs}
                case ["fold", moment]:
                    return self._untag(moment).replace(fold=1)
                case ["zoned", [str(text), str(key)]]:
                    return dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(key))
                case [str(word), str(text)] if word in _OF_TEXT:
                    return _OF_TEXT[word](text)
        except (ValueError, TypeError, ArithmeticError, AttributeError):
            pass
        return {"$python": self._untag(inner)}  # an object of somebody's own, from before there was this tag

    def _unseal(self, inner: Any) -> Any:
        raise MiniFlowError(
            f'a sealed value cannot be read here; make the huey object with serializer="auto" ({inner:.20}…)'
        )


class SealingSerializer(JsonSerializer):
    """JSON where it brings back what was given, ``other`` under a seal where it does not."""

    def __init__(self, other: OtherSerializer) -> None:
        self._other = other
        self.key = secrets.token_bytes(32)  # of this process, until the file's own is known

    def serialize(self, data: Any) -> str:
        try:
            text = super().serialize(data)
            if type(data) in (int, str, bool, type(None)) or same(data, self.from_json(text)):
                return text
        except (TypeError, ValueError, OverflowError, RecursionError):  # no JSON
            pass
        sealed = base64.b64encode(self._other.serialize(data)).decode()
        return _encode({"$sealed": f"{self._mac(sealed)}.{sealed}"}).decode()

    def _mac(self, sealed: str) -> str:
        return hmac.new(self.key, sealed.encode(), hashlib.sha256).hexdigest()

    def _unseal(self, inner: Any) -> Any:
        mac, _, sealed = str(inner).partition(".")
        if not hmac.compare_digest(mac, self._mac(sealed)):
            raise MiniFlowError("a sealed value was not made with this database's key, and is not opened")
        return self._other.deserialize(base64.b64decode(sealed))


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down: 1 is not True, and a tuple is no list."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset):
        others = {item: item for item in other}
        return len(one) == len(other) and all(item in others and same(item, others[item]) for item in one)
    if isinstance(one, dt.datetime | dt.time):  # a zone is more than the offset that it has then
        return one == other and one.fold == other.fold and same_zone(one.tzinfo, other.tzinfo)
    if isinstance(one, float | Decimal):
        return repr(one) == repr(other)  # nan is nan, 0.0 is not -0.0, and a price of 1.50 is not one of 1.5
    if isinstance(one, BaseException):
        return False  # the tag keeps its words, not its class
    return bool(one == other)


def same_zone(one: dt.tzinfo | None, other: dt.tzinfo | None) -> bool:
    return one is other or (type(one) is type(other) and one == other and repr(one) == repr(other))


def not_json(field: str, error: Exception) -> InvalidRequest:
    """The refusal of a value that cannot be written."""
    if isinstance(error, ComesBackOtherwise):
        return InvalidRequest(field, f"cannot be written as JSON: {error}")
    return InvalidRequest(field, f"cannot be written as JSON ({error}); {REMEDY}")
