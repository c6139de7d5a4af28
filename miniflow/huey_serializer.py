"""JSON in place of huey's pickle: what is stored can be read with any tool, and reading it runs no code.

JSON has no word for some of what huey's users pass around, so a value may stand there under a tag, an object with one field:
``$tuple``, ``$datetime``, ``$seconds`` (a timedelta), ``$error``, ``$skipped``, ``$exception``, ``$message``; and ``$object``
is an object of the user's own that looks like one of these. Tags are written and read only between Python and Python: what
comes over HTTP is never looked through for them.

``SealingSerializer`` is for applications that move over with arguments that are no JSON. What does not come back from JSON as it
was goes through another serializer (huey's pickle, say) and stands there as ``$sealed``: base64 with a MAC under a key that only
this file's owner has. A pickle that somebody else made is never opened, whatever way it came in.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from huey.constants import EmptyData
from huey.registry import Message
from huey.utils import SKIPPED, Error

from miniflow.errors import InvalidRequest, MiniFlowError

REMEDY = 'make it JSON, or make the huey object with serializer="auto"'

_encode = msgspec.json.Encoder().encode
_decode: Callable[[str | bytes], Any] = msgspec.json.Decoder().decode
_PLAIN = (int, str, bool, float, type(None))
_TAGS = frozenset(
    ("$tuple", "$datetime", "$seconds", "$error", "$skipped", "$exception", "$message", "$object", "$sealed")
)


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
    """JSON with tags, as text. TypeError or ValueError where a value is no JSON."""

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
        if kind in _PLAIN:
            return value
        if kind is dict:
            tagged = {key: self._tag(item) for key, item in value.items()}
            return {"$object": tagged} if len(tagged) == 1 and next(iter(tagged)) in _TAGS else tagged
        if kind is list:
            return [self._tag(item) for item in value]
        if kind is Error:
            return {"$error": self._tag(dict(value.metadata))}
        if kind is Message:
            return {"$message": [self._tag(item) for item in value]}
        if isinstance(value, tuple):
            return {"$tuple": [self._tag(item) for item in value]}
        return self._tag_special(value)

    def _tag_special(self, value: Any) -> Any:
        if value is SKIPPED:
            return {"$skipped": True}
        if isinstance(value, dt.datetime):
            return {"$datetime": value.isoformat()}
        if isinstance(value, dt.timedelta):
            return {"$seconds": value.total_seconds()}
        if isinstance(value, BaseException):
            return {"$exception": repr(value)}
        return value  # what msgspec knows how to write; TypeError for the rest

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
                return dt.timedelta(seconds=inner)
            case "$exception":
                return Exception(inner)
        return self._unseal(inner)

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
        return list(one) == list(other) and all(
            type(key) is str and same(item, other[key]) for key, item in one.items()
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, BaseException):
        return False  # the tag keeps its words, not its class
    return bool(one == other)


def not_json(field: str, error: Exception) -> InvalidRequest:
    """The refusal of a value that cannot be written."""
    return InvalidRequest(field, f"cannot be written as JSON ({error}); {REMEDY}")
