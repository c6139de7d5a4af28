"""``@workflow``: a function whose run is a workflow that survives the process.

It is in the registry like a task, under its own name, and is known there as ``durable``: its jobs are runs, made by a start and
not by a submit. What it takes after its context is its input, as a task's parameters are its payload.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, overload

import msgspec

from miniflow.context import JobContext
from miniflow.errors import InvalidRequest, MiniFlowError
from miniflow.options import retry_policy, seconds
from miniflow.payload import bind_signature
from miniflow.registry import RetryOption, Seconds, Task, TaskSpec, active

Start = Callable[[TaskSpec, Any, Mapping[str, Any]], str]
"""Takes the function, its input and the options of the start; gives the id of the run."""

START_OPTIONS = ("idempotency_key", "timeout", "queue", "priority", "description", "meta", "tags", "traceparent")

_start: Start | None = None


def bind_start(start: Start | None) -> None:
    """From now on ``WorkflowFunction.start`` goes to ``start``. Called by a MiniFlow that starts; with None by one that stops."""
    global _start
    _start = start


class WorkflowFunction(Task[Any, Any]):
    """A durable function. ``start`` begins a run of it; called with a context of the caller's own it runs here and now."""

    def start(self, input: Any = None, /, **options: Any) -> str:
        """Begin a run; its id, when it is in the file. Options: ``idempotency_key``, ``timeout``, ``queue``, ``priority``,
        ``description``, ``meta``, ``tags``."""
        for name in options:
            if name not in START_OPTIONS:
                raise InvalidRequest(name, f"is no option of a start; there are {', '.join(START_OPTIONS)}")
        start = _start  # read once: a server that stops meanwhile clears it
        if start is None:
            raise MiniFlowError(
                "no MiniFlow runs in this process; start one with `miniflow serve`, or start it over HTTP"
            )
        return start(self.spec, input, options)

    def submit(self, *_: Any, **__: Any) -> str:
        raise TypeError(f"{self.name} is a workflow, and no task: begin a run with {self.name}.start(input)")

    def submit_with(self, *_: Any, **__: Any) -> str:
        return self.submit()

    def __repr__(self) -> str:
        return f"<WorkflowFunction {self.name}>"


@overload
def workflow(function: Callable[..., Any], /) -> WorkflowFunction: ...


@overload
def workflow(
    *,
    name: str | None = ...,
    queue: str = ...,
    priority: int = ...,
    timeout: Seconds | None = ...,
    max_retries: int = ...,
    retry: RetryOption | None = ...,
) -> Callable[[Callable[..., Any]], WorkflowFunction]: ...


def workflow(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    queue: str = "default",
    priority: int = 0,
    timeout: Seconds | None = None,
    max_retries: int = 0,
    retry: RetryOption | None = None,
) -> Any:
    """Make a workflow of a function: ``@workflow``, or ``@workflow(queue="orders", timeout=86400)``.

    Its first parameter is the context (``WorkflowContext``), whatever its name. ``timeout`` is for the whole run, sleeps
    included, in seconds or as a timedelta. ``max_retries`` is for the function as a whole, none by default: its steps have their
    own.
    """

    def register(function: Callable[..., Any]) -> WorkflowFunction:
        chosen = name if name is not None else chosen_name(function)
        where = f"workflow {chosen!r}"
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{where}: is a plain function, and no async def; its steps may be async")
        spec = TaskSpec(
            name=chosen,
            function=function,
            binding=bind_signature(_with_context(function, where), name=chosen),
            queue=queue,
            priority=priority,
            timeout_s=seconds(timeout, f"{where}: timeout"),
            max_retries=max_retries,
            retry=retry_policy(retry, f"{where}: retry"),
            executor="thread",
            durable=True,
        )
        active().add(spec)
        return WorkflowFunction(spec)

    return register if function is None else register(function)


def _with_context(function: Callable[..., Any], where: str) -> Callable[..., Any]:
    """The function with its first parameter marked as the context, for ``bind_signature``."""
    if isinstance(function, (type, Task)):
        raise TypeError(
            f"{where}: a workflow is a plain function, got {function!r}; options are named: @workflow(name=…)"
        )
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        raise TypeError(f"{where}: takes its context first: def {chosen_name(function)}(ctx, payload)")

    @functools.wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    marked.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameters[0].replace(annotation=JobContext), *parameters[1:]]
    )
    return marked


def chosen_name(function: Any) -> str:
    """What a function goes by where it was given no name."""
    return str(getattr(function, "__name__", type(function).__name__))


def input_text(value: Any) -> str:
    """The input of a run as JSON text; InvalidRequest for what is none."""
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest("input", f"cannot be written as JSON: {error}") from error


def name_of(function: WorkflowFunction | str) -> str:
    """The name that a run is started by."""
    return function if isinstance(function, str) else function.name
