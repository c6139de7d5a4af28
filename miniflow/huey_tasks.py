"""Tasks as huey sees them, and what its own decorators make."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from huey.api import Task, TaskWrapper
from huey.registry import Registry as HueyRegistry

from miniflow import context
from miniflow.huey_messages import policy
from miniflow.payload import bind_signature
from miniflow.registry import TaskSpec

if TYPE_CHECKING:
    from miniflow.huey_adapter import JobsHuey


class JobTask(Task):
    """A claimed job of a native task as huey sees it. Each registered task has a subclass that carries its spec."""

    spec: TaskSpec
    checked = True

    def execute(self) -> Any:
        return call(self.spec, *self.data)


def call(spec: TaskSpec, args: Any, kwargs: dict[str, Any]) -> Any:
    """Call a task's function, with its context where it takes one; for ``async def``, the coroutine."""
    if spec.binding.context_parameter is not None:
        kwargs = {**kwargs, spec.binding.context_parameter: context.current()}
    return spec.function(*args, **kwargs)


class JobsRegistry(HueyRegistry):
    """huey's registry, by the plain names that jobs have."""

    def task_to_string(self, task_class: type[Task]) -> str:
        return task_class.__name__

    def clear(self) -> None:
        self._registry.clear()
        self._periodic_tasks.clear()


class HueyTask(TaskWrapper):
    """What huey's own decorators make: a huey task that is known to MiniFlow too, so that HTTP can submit it."""

    def __init__(self, huey: JobsHuey, func: Callable[..., Any], **settings: Any) -> None:
        name = settings.get("name") or func.__name__
        if inspect.iscoroutinefunction(func):
            super().__init__(huey, func, **settings)  # says no
        shown = _without_task(func) if settings.get("context", False) else func
        spec = TaskSpec(
            name=name,
            function=func,
            binding=bind_signature(shown, name=name),
            priority=int(settings.get("default_priority") or 0),
            timeout_s=settings.get("default_timeout"),
            max_retries=settings.get("default_retries") or 0,
            retry=policy(settings.get("default_retry_delay") or 0, settings.get("default_retry_backoff") or 0),
            executor="thread",
            native=False,
        )
        huey.forget_former(name)
        super().__init__(huey, func, **settings)
        self.task_class.spec = spec
        # A signature without *args, and without a parameter that takes whatever comes, says all that the task takes.
        self.task_class.checked = spec.binding.whole is None and not any(
            p.kind is p.VAR_POSITIONAL for p in inspect.signature(func).parameters.values()
        )
        self._specs = huey.specs_here()
        self._specs.add(spec)

    def unregister(self) -> Any:
        self._specs.discard(self.task_class.spec)
        return super().unregister()


def _without_task(func: Callable[..., Any]) -> Callable[..., Any]:
    """``func`` without the parameter ``task`` that huey's ``context=True`` fills in."""
    signature = inspect.signature(func)

    def shown(**_: Any) -> None: ...

    shown.__wrapped__ = func  # type: ignore[attr-defined]  # where annotations that are strings are looked up
    shown.__name__, shown.__doc__, shown.__module__ = func.__name__, func.__doc__, func.__module__
    shown.__signature__ = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "task"])  # type: ignore[attr-defined]
    shown.__annotations__ = {name: hint for name, hint in func.__annotations__.items() if name != "task"}
    return shown
