"""Tasks written as classes: ``BaseJob`` and the function that a worker calls for one.

A job class is registered like any other task, as a function whose signature is the class's fields; nothing beyond this module
knows that there was a class.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar

from miniflow.limits import limits
from miniflow.options import retry_policy, seconds, source_file
from miniflow.payload import bind_signature
from miniflow.registry import (
    ExecutorName,
    LimitsOption,
    OnStall,
    RetryOption,
    Seconds,
    TaskSpec,
    active,
    submit_call,
)
from miniflow.retry import RetryPolicy
from miniflow.rule_options import RuleOptions, task_rules


@dataclass(frozen=True, slots=True)
class Dispatched:
    """What ``BaseJob.dispatch`` gives back: the job, known by its id."""

    id: str


class BaseJob:
    """A task written as a class: subclass it, write ``_perform`` (or ``handle``), and the class name is the task.

    Annotated attributes are the payload's fields, typed, with their defaults. A class without annotations takes any keywords.
    Either way they are attributes when ``_perform`` runs. ``queue``, ``priority``, ``timeout``, ``max_retries``, ``retry``,
    ``heartbeat``, ``on_stall``, ``executor`` and ``limits`` set on the class are its options, and so is ``rules``, a dict of
    ``rule_options.RuleOptions``. What ``_perform`` returns is stored as text.
    """

    queue: ClassVar[str] = "default"
    priority: ClassVar[int] = 0
    timeout: ClassVar[Seconds | None] = 300
    max_retries: ClassVar[int | None] = 3
    retry: ClassVar[RetryOption | None] = RetryPolicy(intervals=(60, 300, 900))
    heartbeat: ClassVar[Seconds | None] = None
    on_stall: ClassVar[OnStall | None] = None
    executor: ClassVar[ExecutorName | None] = None
    limits: ClassVar[LimitsOption | None] = None
    rules: ClassVar[RuleOptions] = {}

    spec: ClassVar[TaskSpec]

    def __init__(self, **fields: Any) -> None:
        for name, value in fields.items():
            # A field may not take the place of the machinery: the payload comes from outside.
            if name.startswith("_") or callable(getattr(type(self), name, None)):
                raise TypeError(f"{type(self).__name__}: {name!r} cannot be the name of a field")
            setattr(self, name, value)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        perform = getattr(cls, "_perform", None) or getattr(cls, "handle", None)
        if perform is None or getattr(perform, "__isabstractmethod__", False):
            return
        where = f"task {cls.__name__!r}"
        function = _runner(cls, perform)
        module_file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        binding = bind_signature(function, name=cls.__name__)
        cls.spec = TaskSpec(
            name=cls.__name__,
            function=function,
            binding=binding,
            rules=task_rules(cls.rules, where, binding.json_schema),
            queue=cls.queue,
            priority=cls.priority,
            timeout_s=seconds(cls.timeout, f"{where}: timeout"),
            max_retries=cls.max_retries,
            retry=retry_policy(cls.retry, f"{where}: retry"),
            heartbeat_s=seconds(cls.heartbeat, f"{where}: heartbeat"),
            on_stall=cls.on_stall,
            executor=typing.cast("ExecutorName", cls.executor),
            limits=limits(cls.limits, f"{where}: limits"),
            source=module_file or source_file(perform),
            as_text=True,
        )
        active().add(cls.spec)

    @classmethod
    def dispatch(cls, *, queue: str | None = None, **fields: Any) -> Dispatched:
        """Make a job of this class with these fields, on ``queue`` if given."""
        if "spec" not in cls.__dict__:
            raise TypeError(f"{cls.__name__} has neither _perform nor handle, so there is nothing to run")
        return Dispatched(submit_call(cls.spec, {} if queue is None else {"queue": queue}, (), fields))


_OPTION_NAMES = frozenset(
    {
        "queue", "priority", "timeout", "max_retries", "retry", "heartbeat", "on_stall", "executor", "limits",
        "rules", "spec",
    }
)  # fmt: skip


def _fields_of(cls: type[BaseJob]) -> list[inspect.Parameter]:
    """The annotated attributes of a job class as keyword parameters; ``**fields`` where there are none."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except Exception as error:  # an annotation is code of its author's: evaluating it may raise anything
        raise TypeError(f"task {cls.__name__!r}: an annotation of the class cannot be resolved: {error}") from error
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    fields = [
        inspect.Parameter(name, keyword_only, annotation=hint, default=getattr(cls, name, inspect.Parameter.empty))
        for name, hint in hints.items()
        if name not in _OPTION_NAMES and typing.get_origin(hint) is not ClassVar and hint is not ClassVar
    ]
    return fields or [inspect.Parameter("fields", inspect.Parameter.VAR_KEYWORD)]


def _runner(cls: type[BaseJob], perform: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a worker calls for a job class. Its signature is the class's fields, its identity the class's."""
    run: Any
    if inspect.iscoroutinefunction(perform):

        async def run_async(**fields: Any) -> Any:
            return await typing.cast("Coroutine[Any, Any, Any]", perform(cls(**fields)))

        run = run_async
    else:

        def run_sync(**fields: Any) -> Any:
            return perform(cls(**fields))

        run = run_sync
    run.__name__, run.__qualname__, run.__module__ = cls.__name__, cls.__qualname__, cls.__module__
    run.__doc__ = cls.__dict__.get("__doc__")
    run.__signature__ = inspect.Signature(_fields_of(cls))
    return typing.cast("Callable[..., Any]", run)
