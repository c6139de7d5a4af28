"""From a huey task to a row of the jobs table and back.

A call goes into the payload by the names of the function's parameters, as every payload does, so the API shows it and anybody can
submit the like. Where that is not possible – the link of a chain whose first argument is still to come, ``*args``, a value that
would not come back as it was – the payload is the call itself, ``{"args": […], "kwargs": {…}}`` in the serializer's JSON; then
the row's options say so, and those are not for clients to set.

The options also carry, under ``huey``, what huey knows of a task and MiniFlow does not: its eta, how far its retry delay has
grown, the task to run on an error, and what the last error was.
"""

from __future__ import annotations

import datetime as dt
import math
import sys
from typing import Any

from huey.api import Task

from miniflow.clock import to_ms
from miniflow.errors import InvalidRequest
from miniflow.huey_serializer import JsonSerializer, not_json, same
from miniflow.payload import Binding
from miniflow.retry import RetryPolicy

RETRY_DELAY_S_MAX = 7 * 86_400
NO_JSON = "cannot be written as JSON"
"""In the refusals of values, other than of calls."""


class Times:
    """huey's datetimes have no zone: they are in UTC, or local where the huey object was made with ``utc=False``."""

    def __init__(self, utc: bool) -> None:
        self.utc = utc

    def to_ms(self, naive: dt.datetime) -> int:
        return to_ms(naive.replace(tzinfo=dt.UTC) if self.utc else naive.astimezone())

    def from_ms(self, ms: int) -> dt.datetime:
        zone = dt.UTC if self.utc else None
        return dt.datetime.fromtimestamp(ms / 1000, zone).replace(tzinfo=None)

    def round(self, naive: dt.datetime) -> dt.datetime:
        """To the milliseconds that the file has; a task is compared with itself by its eta."""
        return naive.replace(microsecond=naive.microsecond // 1000 * 1000)


FLOAT_MAX = sys.float_info.max


def encode_call(
    binding: Binding, args: Any, kwargs: dict[str, Any], serializer: JsonSerializer, *, partial: bool, checked: bool
) -> tuple[str, dict[str, Any]]:
    """The payload of a call, and what the options must say of it. ``partial``: more arguments are still to come. ``checked``: the
    function's signature says all that it takes, and a call that does not fit is refused.

    InvalidRequest for such a call, and for arguments that the serializer cannot write.
    """
    if not partial and isinstance(args, tuple):
        try:
            payload = binding.from_call(args, kwargs)
            names = binding.names[: len(args)]
            if _comes_back(binding, payload, dict(zip(names, args, strict=True)) | kwargs):
                return payload, {"args": len(args)} if args else {}
        except InvalidRequest as refusal:
            if checked and NO_JSON not in refusal.reason:
                _check_with_numbers(binding, args, kwargs)
        except (TypeError, ValueError):  # more arguments than names; a set of what JSON has as lists
            pass
    try:
        given = list(args) if isinstance(args, tuple) else args
        return serializer.serialize({"args": given, "kwargs": kwargs}), {"call": True}
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise not_json("payload", error) from None


def _check_with_numbers(binding: Binding, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise what speaks against a call, also where each nan and infinity is a number: JSON has null for these, which a parameter
    that is a number refuses. No bound holds, or speaks, against nan: any number may stand for it."""
    first: InvalidRequest | None = None
    for nan in (0.0, 1.0, -1.0, FLOAT_MAX, -FLOAT_MAX):
        try:
            binding.from_call(*_with_numbers([args, kwargs], nan))
            return
        except InvalidRequest as refusal:
            if NO_JSON in refusal.reason:
                return
            first = first or refusal
        except TypeError:  # a set of what JSON has as lists
            return
    assert first is not None
    raise first


def _with_numbers(value: Any, nan: float) -> Any:
    """``value`` with ``nan`` in the place of each nan, and the largest number there is in that of an infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return nan if math.isnan(value) else math.copysign(FLOAT_MAX, value)
    if type(value) is dict:
        return {key: _with_numbers(item, nan) for key, item in value.items()}
    if type(value) is list or type(value) is tuple:
        return type(value)(_with_numbers(item, nan) for item in value)
    return value


def _comes_back(binding: Binding, payload: str, given: dict[str, Any]) -> bool:
    args, kwargs = binding.arguments(payload)
    back = dict(zip(binding.names, args, strict=False)) | kwargs
    return all(name in back and same(value, back[name]) for name, value in given.items())


def decode_call(
    binding: Binding, payload: str, own: dict[str, Any], serializer: JsonSerializer
) -> tuple[Any, dict[str, Any]]:
    """The arguments as they were given."""
    if own.get("call"):
        call = serializer.from_json(payload)
        args = call["args"]
        return tuple(args) if isinstance(args, list) else args, call["kwargs"]
    args, kwargs = binding.arguments(payload)
    by_place = own.get("args", 0) - len(args)
    if by_place > 0:
        names = binding.names[len(args) : len(args) + by_place]
        args = (*args, *(kwargs.pop(name) for name in names))
    return args, kwargs


def settings_of(task: Task, times: Times) -> dict[str, Any]:
    """What ``options.huey`` says of a task: only what is not its class's default."""
    own: dict[str, Any] = {}
    if task.eta is not None:
        own["eta"] = times.to_ms(task.eta)
    if task.retry_delay != task.default_retry_delay:
        own["retry_delay"] = task.retry_delay
    if task.retry_backoff != task.default_retry_backoff:
        own["retry_backoff"] = task.retry_backoff
    if task.timeout is not None:
        own["timeout"] = task.timeout
    if task.priority is not None and task.priority != task.default_priority:
        own["priority"] = task.priority
    expires = task.expires
    if isinstance(expires, dt.datetime):
        own["expires"] = {"at": expires.isoformat()}
    elif isinstance(expires, dt.timedelta):
        own["expires"] = {"after": expires.total_seconds()}
    elif expires:
        own["expires"] = expires
    return own


def expires_of(own: dict[str, Any]) -> Any:
    """A task's ``expires`` as it was given: seconds, a timedelta or a datetime."""
    expires = own.get("expires")
    if not isinstance(expires, dict):
        return expires
    if "at" in expires:
        return dt.datetime.fromisoformat(expires["at"])
    return dt.timedelta(seconds=expires["after"])


def policy(delay_s: float, backoff: float) -> RetryPolicy:
    """huey's retry settings as a policy, for whoever shows it or must go by it without huey."""
    return RetryPolicy(base=delay_s, factor=max(backoff, 1), max_delay=RETRY_DELAY_S_MAX, jitter=0)
