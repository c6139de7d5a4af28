"""What tasks there are.

A ``TaskSpec`` is all that MiniFlow knows of a task: its function, how a payload becomes its arguments, and its defaults. A
``Registry`` holds them by name. Decorators and job classes register into the *active* registry: the process-wide one, or,
while a file of tasks is being imported, the one that the loader is collecting. A reload therefore builds a whole new registry
beside the old one and swaps it in at the end; a broken file never leaves half of itself behind.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime as dt
import functools
import inspect
import re
import threading
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, ParamSpec, TypeVar, Unpack, overload

from miniflow import context
from miniflow import limits as limits_of
from miniflow.contract import Declared
from miniflow.errors import MiniFlowError, UnknownTask
from miniflow.limits import Limits
from miniflow.options import check_integer, exception_classes, retry_policy, seconds, source_file, submit_options
from miniflow.payload import Binding, bind_signature
from miniflow.programs import Program
from miniflow.retry import RetryPolicy
from miniflow.rule_options import NO_RULES, RuleOptions, TaskRules, task_rules

NAME_CHARS_MAX = 200
PRIORITY_MAX = 1000
"""Priorities go from minus this to plus this."""
MAX_RETRIES_MAX = 1000
CLOSE_MATCHES = 3
"""Names proposed for one that is not known."""

EXECUTORS = ("thread", "async", "process", "command")
ExecutorName = Literal["thread", "async", "process", "command"]
OnStall = Literal["warn", "retry", "fail"]
ON_STALL: tuple[OnStall, ...] = ("warn", "retry", "fail")
ON_STALL_DEFAULT: OnStall = "retry"
HEARTBEAT_S_MIN = 1.0
"""The supervisor looks a few times a second, and must not take a breath for the end."""
Seconds = float | dt.timedelta
LimitsOption = Limits | Mapping[str, Any]
RetryOption = RetryPolicy | Mapping[str, Any] | Sequence[float]

_QUEUE = re.compile(r"[A-Za-z0-9_.:/-]{1,100}")

P = ParamSpec("P")
R = TypeVar("R")


def valid_queue_name(name: object) -> bool:
    """1 to 100 ASCII letters, digits and ``_ . : / -``."""
    return isinstance(name, str) and _QUEUE.fullmatch(name) is not None


# ---------------------------------------------------------------------------------------------------- one task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One task. Durations are seconds; None means the server's default, and a timeout of 0 none at all.

    ``executor``, ``description`` and ``source`` are found from the function where they are left out: ``async def`` runs on the
    loop, the rest in threads. ``native`` is False for tasks made by huey's own decorators. ``as_text`` stores ``str(result)``.
    ``program`` is what a task with the executor "command" runs, in the words of ``miniflow.toml``.
    """

    name: str
    function: Callable[..., Any]
    binding: Binding
    queue: str = "default"
    priority: int = 0
    timeout_s: float | None = None
    max_retries: int | None = None
    retry: RetryPolicy | None = None
    no_retry_on: tuple[type[BaseException], ...] = ()
    ttl_s: float | None = None
    result_ttl_s: float | None = None
    failure_ttl_s: float | None = None
    heartbeat_s: float | None = None
    on_stall: OnStall | None = None
    rules: TaskRules = NO_RULES
    executor: ExecutorName = None  # type: ignore[assignment]  # never None after __post_init__
    description: str = ""
    source: str = ""
    native: bool = True
    as_text: bool = False
    limits: Limits | None = None
    program: Program | None = None
    durable: bool = False  # a workflow function: its jobs are runs, and it takes a WorkflowContext
    chosen: bool = field(default=False, compare=False)
    """Whether the executor was said, and not found."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        where = f"task {self.name!r}"
        _check_function(self.function, where)
        if not valid_queue_name(self.queue):
            raise ValueError(f"{where}: queue {self.queue!r} is not 1 to 100 letters, digits and _ . : / -")
        check_integer(f"{where}: priority", self.priority, -PRIORITY_MAX, PRIORITY_MAX)
        if self.max_retries is not None:
            check_integer(f"{where}: max_retries", self.max_retries, 0, MAX_RETRIES_MAX)
        for option in ("timeout", "ttl", "result_ttl", "failure_ttl", "heartbeat"):
            seconds(getattr(self, f"{option}_s"), f"{where}: {option}")
        _check_heartbeat(self.heartbeat_s, self.on_stall, where)
        exception_classes(self.no_retry_on, f"{where}: no_retry_on")
        object.__setattr__(self, "chosen", self.chosen or self.executor is not None)
        if self.program is None:
            object.__setattr__(self, "executor", _executor(self.executor, self.function, where))
        limits_of.check(self.limits, self.executor, f"{where}: limits")
        object.__setattr__(self, "description", self.description or self.binding.description.partition("\n")[0].strip())
        object.__setattr__(self, "source", self.source or source_file(self.function))

    def __repr__(self) -> str:
        return f"<TaskSpec {self.name} [{self.executor}, queue {self.queue}]>"


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"a task needs a name, got {name!r}")
    if len(name) > NAME_CHARS_MAX:
        raise ValueError(f"the task name {name[:40]!r}… has {len(name)} characters, {NAME_CHARS_MAX} are allowed")
    if not name.isprintable() or any(char.isspace() for char in name):
        raise ValueError(f"the task name {name!r} contains white space or control characters")


def _check_function(function: object, where: str) -> None:
    if isinstance(function, Task):
        raise TypeError(f"{where}: the function is the task {function.name!r} already; register a plain function")
    if isinstance(function, type):
        raise TypeError(
            f"{where}: {function.__name__} is a class; a task is a function, or a subclass of miniflow.BaseJob"
        )
    if not callable(function):
        raise TypeError(f"a task is a function, got {function!r}; options are named: @task(name=…)")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{where}: the function yields, so calling it runs nothing; return the result instead")


def _check_heartbeat(heartbeat_s: float | None, on_stall: object, where: str) -> None:
    if heartbeat_s and heartbeat_s < HEARTBEAT_S_MIN:
        raise ValueError(f"{where}: heartbeat is {HEARTBEAT_S_MIN:g} second or more, got {heartbeat_s:g}")
    if on_stall is not None and on_stall not in ON_STALL:
        raise ValueError(f"{where}: on_stall {on_stall!r} is none of {', '.join(ON_STALL)}")
    if on_stall is not None and not heartbeat_s:
        raise ValueError(f"{where}: on_stall needs a heartbeat: the seconds of silence after which the job is stalled")


def _executor(wanted: str | None, function: Callable[..., Any], where: str) -> ExecutorName:
    coroutine = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    if wanted is None:
        return "async" if coroutine else "thread"
    if wanted not in EXECUTORS:
        raise ValueError(f"{where}: executor {wanted!r} is none of {', '.join(EXECUTORS)}")
    if wanted == "command":
        raise TypeError(f"{where}: executor='command' is for programs, which are declared in miniflow.toml")
    if wanted == "async" and not coroutine:
        raise TypeError(
            f"{where}: executor='async' needs an async def: a plain function would hold up all others on the loop"
        )
    if wanted in ("thread", "process") and coroutine:
        raise TypeError(
            f"{where}: executor={wanted!r} cannot run an async def: a {wanted} has no event loop to await it on"
        )
    return typing.cast("ExecutorName", wanted)


# ---------------------------------------------------------------------------------------------------- all tasks


class Registry:
    """Tasks by name. Reading takes no lock: a change makes a new dict and puts it in the old one's place."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskSpec] = {}
        self._schedules: dict[str, Declared] = {}
        self._lock = threading.Lock()

    def add(self, spec: TaskSpec) -> None:
        """Register ``spec``. The same function again replaces itself; another one under the same name is an error."""
        with self._lock:
            other = self._tasks.get(spec.name)
            if other is not None and other.function is not spec.function:
                raise duplicate(spec, other)
            self._tasks = {**self._tasks, spec.name: spec}

    def discard(self, spec: TaskSpec) -> None:
        """Forget ``spec``, if it is what its name stands for."""
        with self._lock:
            if self._tasks.get(spec.name) is spec:
                self._tasks = {name: one for name, one in self._tasks.items() if one is not spec}

    @property
    def edition(self) -> object:
        """Another object after each change of the tasks."""
        return self._tasks

    def find(self, name: str) -> TaskSpec | None:
        return self._tasks.get(name)

    def get(self, name: str) -> TaskSpec:
        spec = self._tasks.get(name)
        if spec is None:
            raise self._unknown(name)
        return spec

    def _unknown(self, name: str) -> UnknownTask:
        import difflib  # here, because almost no process ever needs it

        # Cut first: the name comes from outside, and comparing takes time in proportion to its length.
        name = name if len(name) <= NAME_CHARS_MAX else name[:NAME_CHARS_MAX] + "…"
        return UnknownTask(name, difflib.get_close_matches(name, self._tasks, n=CLOSE_MATCHES))

    def declare(self, new: Declared) -> None:
        """Register a schedule that stands in code. The same again replaces itself; another of its name is an error."""
        with self._lock:
            other = self._schedules.get(new.name)
            if other is not None and other.definition.task != new.definition.task:
                raise ValueError(
                    f"the schedule {new.name!r} is defined for {other.definition.task!r} in {other.origin} and for "
                    f"{new.definition.task!r} in {new.origin}; give one of them another name with @schedule(name=…)"
                )
            self._schedules = {**self._schedules, new.name: new}

    @property
    def schedules(self) -> list[Declared]:
        """Those that stand in code, by name."""
        found = self._schedules
        return [found[name] for name in sorted(found)]

    def names(self) -> list[str]:
        return sorted(self._tasks)

    def replace_all(self, other: Registry) -> None:
        """Take over the tasks and schedules of ``other``, all at once; whoever reads meanwhile sees the old or the new."""
        with self._lock:
            self._tasks, self._schedules = dict(other._tasks), dict(other._schedules)

    def run_unsaid_in_processes(self) -> None:
        """Those tasks that would run in threads, and did not say so, run in processes from now on. Not workflow functions."""
        with self._lock:
            for name, spec in self._tasks.items():
                if spec.executor == "thread" and spec.native and not spec.chosen and not spec.durable:
                    self._tasks[name] = replace(spec, executor="process")

    def __iter__(self) -> Iterator[TaskSpec]:
        tasks = self._tasks
        return iter([tasks[name] for name in sorted(tasks)])

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __repr__(self) -> str:
        return f"<Registry [{len(self)} tasks]>"


def duplicate(spec: TaskSpec, other: TaskSpec) -> ValueError:
    """The error for two functions under one name; the loader raises it as well."""
    both = f"in {spec.source} and in {other.source}" if spec.source != other.source else f"twice in {spec.source}"
    return ValueError(
        f"the task {spec.name!r} is defined {both}; rename one, or give it another name with @task(name=…)"
    )


_process_wide = Registry()
_active: contextvars.ContextVar[Registry] = contextvars.ContextVar("miniflow_registry", default=_process_wide)


def active(otherwise: Registry | None = None) -> Registry:
    """Where decorators register now: where somebody collects them, else in ``otherwise`` or the process-wide registry."""
    found = _active.get()
    return otherwise if otherwise is not None and found is _process_wide else found


@contextlib.contextmanager
def collecting(registry: Registry) -> Iterator[Registry]:
    """Within the block, and in this thread only, decorators register into ``registry``."""
    token = _active.set(registry)
    try:
        yield registry
    finally:
        _active.reset(token)


# ---------------------------------------------------------------------------------------------------- submitting from Python

Submit = Callable[[TaskSpec, str, dict[str, Any]], str]
"""Takes the task, the payload as JSON text and the options that were given; gives the id of the job."""

_submit: Submit | None = None


def bind_submit(submit: Submit) -> None:
    """From now on ``Task.submit`` and ``BaseJob.dispatch`` go to ``submit``. Called by a MiniFlow that starts."""
    global _submit
    _submit = submit


def unbind_submit() -> None:
    """Called by a MiniFlow that stops."""
    global _submit
    _submit = None


def submit_call(spec: TaskSpec, options: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Make a job of a call. The options are checked by name here, by value where all submits are."""
    chosen = submit_options(options)
    payload = spec.binding.from_call(args, kwargs)
    submit = _submit  # read once: a server that stops meanwhile clears it
    if submit is None:
        raise MiniFlowError("no MiniFlow runs in this process; start one with `miniflow serve`, or submit over HTTP")
    return submit(spec, payload, chosen)


# ---------------------------------------------------------------------------------------------------- @task


class Task(Generic[P, R]):
    """A function that is a task. Calling it runs it here and now; ``submit`` makes a job of the call."""

    spec: TaskSpec

    def __init__(self, spec: TaskSpec) -> None:
        functools.update_wrapper(self, spec.function)
        self.spec = spec

    @property
    def name(self) -> str:
        return self.spec.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The plain call. A context that the caller leaves out is the current one, or a detached one outside a job."""
        spec = self.spec
        parameter = spec.binding.context_parameter
        if parameter is None or parameter in kwargs or any(isinstance(arg, context.JobContext) for arg in args):
            return typing.cast("R", spec.function(*args, **kwargs))
        positional, named = spec.binding.split(args, kwargs)
        return typing.cast("R", spec.function(*positional, **named, **{parameter: context.current()}))

    def submit(self, *args: Any, **kwargs: Any) -> str:
        """Make a job of the call ``task(*args, **kwargs)``; gives its id."""
        return submit_call(self.spec, {}, args, kwargs)

    def submit_with(self, options: Mapping[str, Any], /, *args: Any, **kwargs: Any) -> str:
        """``submit`` with options for this one job: ``task.submit_with({"delay": 60}, 1, b=2)``. See
        ``options.SUBMIT_OPTIONS``."""
        return submit_call(self.spec, options, args, kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(
    *,
    name: str | None = ...,
    queue: str = ...,
    priority: int = ...,
    timeout: Seconds | None = ...,
    max_retries: int | None = ...,
    retry: RetryOption | None = ...,
    no_retry_on: type[BaseException] | Sequence[type[BaseException]] = ...,
    ttl: Seconds | None = ...,
    result_ttl: Seconds | None = ...,
    failure_ttl: Seconds | None = ...,
    heartbeat: Seconds | None = ...,
    on_stall: OnStall | None = ...,
    executor: ExecutorName | None = ...,
    limits: LimitsOption | None = ...,
    **rules: Unpack[RuleOptions],
) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    queue: str = "default",
    priority: int = 0,
    timeout: Seconds | None = None,
    max_retries: int | None = None,
    retry: RetryOption | None = None,
    no_retry_on: type[BaseException] | Sequence[type[BaseException]] = (),
    ttl: Seconds | None = None,
    result_ttl: Seconds | None = None,
    failure_ttl: Seconds | None = None,
    heartbeat: Seconds | None = None,
    on_stall: OnStall | None = None,
    executor: ExecutorName | None = None,
    limits: LimitsOption | None = None,
    **rules: Unpack[RuleOptions],
) -> Any:
    """Make a task of a function: ``@task``, or ``@task(queue="mail", timeout=30)``. Durations are seconds or a timedelta.

    The task is called as the function is unless ``name`` says otherwise. What is left out is the server's default. ``rules``
    say how many of its jobs run at once, how many in a period, and which are the same: see ``rule_options.RuleOptions``.
    """

    def register(function: Callable[..., Any]) -> Task[Any, Any]:
        chosen = name if name is not None else str(getattr(function, "__name__", type(function).__name__))
        where = f"task {chosen!r}"
        _check_function(function, where)
        binding = bind_signature(function, name=chosen)
        spec = TaskSpec(
            name=chosen,
            function=function,
            binding=binding,
            rules=task_rules(rules, where, binding.json_schema, _OPTIONS),
            queue=queue,
            priority=priority,
            timeout_s=seconds(timeout, f"{where}: timeout"),
            max_retries=max_retries,
            retry=retry_policy(retry, f"{where}: retry"),
            no_retry_on=exception_classes(no_retry_on, f"{where}: no_retry_on"),
            ttl_s=seconds(ttl, f"{where}: ttl"),
            result_ttl_s=seconds(result_ttl, f"{where}: result_ttl"),
            failure_ttl_s=seconds(failure_ttl, f"{where}: failure_ttl"),
            heartbeat_s=seconds(heartbeat, f"{where}: heartbeat"),
            on_stall=on_stall,
            executor=typing.cast("ExecutorName", executor),
            limits=limits_of.limits(limits, f"{where}: limits"),
        )
        active().add(spec)
        return Task(spec)

    return register if function is None else register(function)


_OPTIONS: tuple[str, ...] = tuple(inspect.signature(task).parameters)
