"""What a durable function is given: the context of its job, and what it can ask for.

All that is asked for here is recorded before the function goes on, and given again when it runs again; see ``replay``.
"""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from miniflow.clock import from_ms, to_ms
from miniflow.context import JobContext
from miniflow.errors import MiniFlowError
from miniflow.options import check_integer, retry_policy, seconds
from miniflow.replay import Replay
from miniflow.retry import DELAY_S_MAX, RetryPolicy
from miniflow.step_calls import EVENT_NAME_CHARS_MAX, Call, StepContext, call_of, current_step
from miniflow.workflow_functions import WorkflowFunction, input_text, name_of

R = TypeVar("R")
RetryOption = RetryPolicy | Mapping[str, Any] | Sequence[float]

AT_ONCE = 8


class Spawned:
    """A run that the function has begun. ``result()`` waits for its end."""

    __slots__ = ("_idx", "_replay", "id", "name")

    def __init__(self, replay: Replay[Any], idx: int, id: str, name: str) -> None:
        self._replay, self._idx, self.id, self.name = replay, idx, id, name

    def result(self) -> Any:
        """What it returned, when it has ended; no worker waits for it. WorkflowFailed if it did not end well."""
        return self._replay.result_of_child(self._idx)

    def __repr__(self) -> str:
        return f"<Spawned {self.name} {self.id}>"


class WorkflowContext(JobContext):
    """The context of a run. A function asks for the same things in the same order each time that it runs."""

    __slots__ = ("_replay",)

    def __init__(self, replay: Replay[Any], **fields: Any) -> None:
        super().__init__(**fields)
        self._replay = replay

    @property
    def workflow_id(self) -> str:
        """The id of the run."""
        return str(self._replay.record.workflow_id)

    @property
    def step_key(self) -> str:
        """Inside a step: its idempotency key, the same each time that this step of this run is tried."""
        step: StepContext | None = current_step()
        if step is None:
            raise MiniFlowError("ctx.step_key is for the inside of a step")
        return step.key

    def step(
        self,
        function: Callable[..., R],
        /,
        *args: Any,
        name: str | None = None,
        max_retries: int | None = None,
        retry: RetryOption | None = None,
        **kwargs: Any,
    ) -> R:
        """Call ``function(*args, **kwargs)`` here, once: what it returns is recorded as JSON, and given again when the workflow
        runs again. If it raises it is tried again after a while, as often as ``max_retries`` says (3; of a task, as it says);
        then StepFailed is raised. ``name`` is what the record knows it by, that of the function if left out."""
        return self._replay.step(self.defer(function, *args, name=name, max_retries=max_retries, retry=retry, **kwargs))  # type: ignore[no-any-return]

    def defer(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        name: str | None = None,
        max_retries: int | None = None,
        retry: RetryOption | None = None,
        **kwargs: Any,
    ) -> Call:
        """A step for ``gather``, with the options of ``step``."""
        if max_retries is not None:
            check_integer("max_retries", max_retries, 0, 1000)
        policy = retry_policy(retry, "retry")
        return call_of(function, args, kwargs, name=name, max_retries=max_retries, retry=policy)

    def gather(self, *items: Call | Spawned | Callable[[], Any], limit: int = AT_ONCE) -> list[Any]:
        """Carry out steps at once, ``limit`` of them at a time, in threads; each is recorded by itself. An item is
        ``ctx.defer(function, …)``, a function without arguments, or a run that was spawned. What they return, in order; if some
        failed, the first of them in order is raised when all have ended."""
        check_integer("limit", limit, 1, 1000)
        calls: list[Call | int] = []
        for item in items:
            if isinstance(item, Call):
                calls.append(item)
            elif isinstance(item, Spawned):
                calls.append(item._idx)
            else:
                calls.append(self.defer(item))
        return self._replay.gather(calls, limit) if calls else []

    def sleep(self, duration: float | dt.timedelta | dt.datetime) -> None:
        """Wait for so many seconds, or until that moment. More than a second is waited for without a worker, over restarts."""
        if isinstance(duration, dt.datetime):
            if duration.tzinfo is None:
                raise ValueError(f"ctx.sleep: the moment {duration} needs a time zone")
            self._replay.sleep(to_ms(duration), 0)
            return
        left_s = seconds(duration, "ctx.sleep: the duration") or 0
        self._replay.sleep(self._replay.record.now_ms() + round(min(left_s, DELAY_S_MAX) * 1000), 1)

    def wait_event(self, name: str, timeout: float | dt.timedelta | None = None) -> Any:
        """The payload of the event ``name``, which somebody sends to this run; it may have come before. No worker waits for it.
        EventTimeout after ``timeout``, which counts from the first time that it was asked for."""
        if not 0 < len(name) <= EVENT_NAME_CHARS_MAX:
            raise ValueError(f"the name of an event is a text of 1 to {EVENT_NAME_CHARS_MAX} characters, got {name!r}")
        limit_s = seconds(timeout, "ctx.wait_event: timeout")
        return self._replay.wait_event(name, None if limit_s is None else round(min(limit_s, DELAY_S_MAX) * 1000))

    def spawn(self, workflow: WorkflowFunction | str, input: Any = None) -> Spawned:
        """Begin a run of another workflow, once. If this run is cancelled, it is too."""
        name = name_of(workflow)
        one = self._replay.spawn(name, input_text(input))
        return Spawned(self._replay, one.idx, one.child or "", name)

    def now(self) -> dt.datetime:
        """The time in UTC when it was asked for first."""
        moment = self._replay.recorded("now", self._replay.record.now_ms)
        return from_ms(moment)

    def random(self) -> float:
        """A random number from 0 to 1, the same each time."""
        return float(self._replay.recorded("random", random.random))

    def uuid(self) -> uuid.UUID:
        """A random UUID, the same each time."""
        return uuid.UUID(self._replay.recorded("uuid", lambda: str(uuid.uuid4())))
