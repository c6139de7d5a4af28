"""Options of tasks and jobs, from what users write to what the program works with."""

from __future__ import annotations

import datetime as dt
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from miniflow.errors import InvalidRequest
from miniflow.retry import RetryPolicy
from miniflow.validation_errors import sentence

SUBMIT_OPTIONS = (
    "queue", "priority", "delay", "run_at", "ttl", "timeout", "max_retries", "retry", "idempotency_key", "tags", "meta",
    "description", "depends_on", "on_dependency_failure", "heartbeat", "on_stall", "unique",
    "debounce", "concurrency_key", "traceparent",
)  # fmt: skip
_DURATIONS = ("delay", "ttl", "timeout", "heartbeat")


def seconds(value: object, what: str) -> float | None:
    """A duration, a number or a timedelta, as seconds; None stays None. ``what`` names it in the error."""
    if value is None:
        return None
    if isinstance(value, dt.timedelta):
        value = value.total_seconds()
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{what} is a number of seconds, 0 or more, or a timedelta; got {value!r}")
    return value


def retry_policy(value: object, what: str) -> RetryPolicy | None:
    """A retry policy from what users write: a ``RetryPolicy``, a dict of its fields, or a list of waits in seconds."""
    if value is None or isinstance(value, RetryPolicy):
        return value
    try:
        if isinstance(value, Mapping):
            return msgspec.convert(dict(value), RetryPolicy)
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            return msgspec.convert({"intervals": list(value)}, RetryPolicy)
    except msgspec.ValidationError as error:
        raise ValueError(f"{what}: {sentence(error, RetryPolicy)}") from error
    raise ValueError(f"{what} is a RetryPolicy, a dict of its fields or a list of seconds, got {value!r}")


def submit_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a submit in Python, checked by name; durations and retries as a submit takes them."""
    chosen = dict(options)
    for name in chosen:
        if name not in SUBMIT_OPTIONS:
            raise InvalidRequest(name, f"is no option of a submit; there are {', '.join(SUBMIT_OPTIONS)}")
    try:
        for name in _DURATIONS:
            if name in chosen:
                chosen[name] = seconds(chosen[name], name)
        if "retry" in chosen:
            chosen["retry"] = retry_policy(chosen["retry"], "retry")
    except ValueError as error:
        raise InvalidRequest("", str(error)) from error
    return chosen


def source_file(function: Callable[..., Any]) -> str:
    """The file that a function was written in, as well as that can be told."""
    inner: Any = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    return code.co_filename if code is not None else "<unknown>"


def check_integer(what: str, value: object, least: int, most: int) -> None:
    """ValueError, if ``value`` is no whole number in these bounds, which are allowed."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{what} is a whole number from {least} to {most}, got {value!r}")


def exception_classes(value: object, what: str) -> tuple[type[BaseException], ...]:
    """One class of exceptions, or several. TypeError, if one of them is none."""
    kinds = tuple(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes, type)) else (value,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise TypeError(f"{what} takes classes of exceptions, got {kind!r}")
    return kinds
