"""A step of a durable function: what is called, under what name, how often it is tried; and what it knows of itself."""

from __future__ import annotations

import contextvars
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from miniflow.errors import NonRetryable, RetryAfter
from miniflow.recording import OwnWrites
from miniflow.registry import NAME_CHARS_MAX, Task
from miniflow.retry import DEFAULT_MAX_RETRIES, DEFAULT_RETRY, DELAY_S_MAX, RetryPolicy

EVENT_NAME_CHARS_MAX = 200


class Call(NamedTuple):
    """A step to be carried out."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    name: str
    max_retries: int
    retry: RetryPolicy
    final: tuple[type[BaseException], ...]

    def delay_ms(self, failures: int, error: Exception) -> int | None:
        """How long after its failure number ``failures`` it runs again; None: never."""
        if failures > self.max_retries or isinstance(error, (NonRetryable, *self.final)):
            return None
        delay_s = error.delay_s if isinstance(error, RetryAfter) else self.retry.delay_s(failures)
        return round(min(delay_s, DELAY_S_MAX) * 1000)

    def digest(self) -> str | None:
        return digest_of([self.args, self.kwargs])


def call_of(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    name: str | None,
    max_retries: int | None,
    retry: RetryPolicy | None,
) -> Call:
    """A call with its name and its retries: what is left out is that of the task, or the default of all jobs."""
    if not callable(function):
        raise TypeError(f"a step is a function and its arguments, got {function!r}")
    spec = function.spec if isinstance(function, Task) else None
    if spec is not None and (spec.durable or spec.executor not in ("thread", "async")):
        how = (
            "spawn it: ctx.spawn" if spec.durable else f"its executor is {spec.executor!r}, and a step runs in a thread"
        )
        raise TypeError(f"the task {spec.name} cannot be a step: {how}")
    chosen = name or (spec.name if spec is not None else getattr(function, "__name__", type(function).__name__))
    if not isinstance(chosen, str) or not 0 < len(chosen) <= NAME_CHARS_MAX:
        raise ValueError(f"the name of a step is a text of 1 to {NAME_CHARS_MAX} characters, got {chosen!r}")
    if max_retries is None:
        max_retries = spec.max_retries if spec is not None and spec.max_retries is not None else DEFAULT_MAX_RETRIES
    policy = retry or (spec.retry if spec is not None else None) or DEFAULT_RETRY
    return Call(function, tuple(args), kwargs, chosen, max_retries, policy, () if spec is None else spec.no_retry_on)


def digest_of(value: Any) -> str | None:
    """A short mark of arguments; None for what has no JSON, which is not compared."""
    try:
        data = msgspec.json.encode(value, order="sorted")
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    return hashlib.blake2b(data, digest_size=8).hexdigest()


class StepContext:
    """The step that runs here."""

    __slots__ = ("attempt", "lent", "name", "number", "workflow_id")

    def __init__(self, workflow_id: str, number: int, name: str, attempt: int) -> None:
        self.workflow_id, self.number, self.name, self.attempt = workflow_id, number, name, attempt
        self.lent: OwnWrites | None = (
            None  # the transaction of what it writes to tables of its own; see transactions.Lent
        )

    @property
    def writes(self) -> OwnWrites | None:
        """What is to be committed with its completion."""
        return None if self.lent is None or not self.lent.asked_for else self.lent

    @property
    def key(self) -> str:
        """The same each time that this step of this run is tried: for systems that take an idempotency key."""
        return key_of(self.workflow_id, self.number)

    def __repr__(self) -> str:
        return f"<StepContext {self.name} {self.key} [attempt {self.attempt}]>"


def key_of(workflow_id: str, number: int) -> str:
    """The idempotency key of a step."""
    return f"{workflow_id}-{number}"


running_step: contextvars.ContextVar[StepContext | None] = contextvars.ContextVar("miniflow_step", default=None)
current_step = running_step.get
"""The step that runs here; None outside of one."""
