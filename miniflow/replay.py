"""How a durable function runs again: what it asks for is numbered, held against what was recorded, and done if it was not.

The function's own code is ordinary; the only rule is that it asks for the same things in the same order each time. Everything it
asks for is a checkpoint, known by its number. One that has ended gives what it gave before; one that has not is carried out, and
recorded before the function goes on. What would wait for long is not waited for here: the function is unwound (``Suspended``),
and begins anew when it is over.

There is no database here and no worker: both are behind ``Record``.
"""

from __future__ import annotations

import contextvars
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from miniflow.errors import (
    BadResult,
    EventTimeout,
    InvalidRequest,
    LeaseLost,
    StepFailed,
    Suspended,
    TooLarge,
    TooManySteps,
    WorkflowChanged,
    WorkflowFailed,
    words_of,
)
from miniflow.recording import (
    COMPLETED,
    FAILED,
    NEW,
    RECORD_BYTES_MAX,
    RUNNING,
    TOO_LONG,
    WAITING,
    Checkpoint,
    Record,
    Suspension,
)
from miniflow.step_calls import Call, StepContext, current_step, digest_of, running_step

STEPS_MAX = 10_000
"""Of one run."""
SHORT_MS = 1000
"""What is over sooner is waited for in the worker's thread."""
SLICE_S = 0.05  # how soon one who waits there hears that he is to stop
ERROR_CHARS_MAX = 4_000

encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


R = TypeVar("R", bound=Record)


class Replay(Generic[R]):
    """One execution of a durable function; made in the thread that runs it."""

    def __init__(self, record: R) -> None:
        self.record = record
        self._known: dict[int, Checkpoint] | None = None
        self._next = 0
        self._bytes, self._lock = 0, threading.Lock()  # of the outputs; steps that are gathered end in several threads
        self._thread = threading.get_ident()
        self.suspension: Suspension | None = None
        self._broken: Exception | None = None

    def __repr__(self) -> str:
        return f"<Replay [{self._next} asked for | {len(self._known or ())} recorded]>"

    # ------------------------------------------------------------------------------------------------------------ asking

    def ask(self, kind: str, name: str, digest: str | None = None, grp: int | None = None) -> Checkpoint:
        """The next checkpoint, as it was recorded, or new. WorkflowChanged if another thing was recorded in its place."""
        self._go_on()
        if current_step() is not None:
            raise InvalidRequest(
                "", f"a step cannot ask for steps: {kind} {name!r} belongs into the workflow's function"
            )
        if threading.get_ident() != self._thread:
            raise InvalidRequest("", "only the function's own thread asks for steps; ctx.gather runs several at once")
        if self._next >= STEPS_MAX:
            raise self._break(
                TooManySteps(f"a run has {STEPS_MAX:,} steps at most; spawn others for parts of the work")
            )
        idx = self._next
        self._next += 1
        new = Checkpoint(idx, idx if grp is None else grp, kind, name, digest=digest)
        found = self._recorded().get(idx)
        if found is None:
            found = new
        elif (found.kind, found.name) != (kind, name):
            asked = f"the function now asks for the {kind} {name!r}"
            raise self._break(_changed(f"step {idx} was recorded as the {found.kind} {found.name!r}, and {asked}"))
        elif found.digest is not None and digest is not None and found.digest != digest:
            raise self._break(_changed(f"step {idx}, {name!r}, was recorded with other arguments"))
        if not found.ended and self.record.paused():
            self._suspend(Suspension((), None))
        return found

    def run(self, function: Callable[[], Any]) -> Any:
        """Call the function; what it returns. Suspended where it is to wait, WorkflowChanged where it is another one, whatever it
        makes of them on their way out."""
        try:
            value = function()
        except Exception:  # whatever became of what should have ended it: that comes first
            self._go_on()
            raise
        self._go_on()
        self._check_end()
        return value

    def _check_end(self) -> None:
        """It may have left out what it did before."""
        known = self._recorded()
        left = sorted(idx for idx in known if idx >= self._next)
        if left:
            one = known[left[0]]
            raise _changed(
                f"step {one.idx} was recorded as the {one.kind} {one.name!r}, and the function ends before it"
            )

    def _recorded(self) -> dict[int, Checkpoint]:
        if self._known is None:
            self._known = {one.idx: one for one in self.record.load()}
            self._bytes = sum(len(one.output or "") for one in self._known.values())
        return self._known

    def _go_on(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self.record.given_up():  # a thread that could not be stopped begins nothing more
            raise self._break(LeaseLost("the attempt was given up"))
        if self.suspension is not None:
            raise Suspended

    def _break(self, error: Exception) -> Exception:
        self._broken = error
        return error

    def _suspend(self, suspension: Suspension) -> None:
        self.suspension = suspension
        raise Suspended

    def sleep_for(self, waiting: Sequence[Checkpoint]) -> None:
        """Unwind the function until one of these is over."""
        times = [(one.wake_at, one.relative) for one in waiting if one.wake_at is not None]
        wake_at, relative = min(times, default=(None, 1))
        self._suspend(Suspension(tuple(one.idx for one in waiting), wake_at, relative))

    def value_of(self, one: Checkpoint) -> Any:
        """What an ended checkpoint gives: its output, or its failure raised."""
        if one.state == COMPLETED:
            return None if one.output is None else _decode(one.output)
        raise failure_of(one, (one.idx,), self._next)

    # ------------------------------------------------------------------------------------------------------------- steps

    def step(self, call: Call) -> Any:
        """Run a step, or take what it gave before."""
        one = self.ask("step", call.name, call.digest())
        if not one.ended:
            one = self.carry_out(one, call)
            if not one.ended:
                self.sleep_for([one])
        return self.value_of(one)

    def carry_out(self, one: Checkpoint, call: Call) -> Checkpoint:
        """Run a step until it has ended, or is to wait for long. Any thread may do it."""
        while True:
            if one.state == WAITING:
                left_ms = (one.wake_at or 0) - self.record.now_ms()
                if left_ms > SHORT_MS:
                    return one
                pause(left_ms)
                if self.record.given_up():  # meanwhile: the run was cancelled, or is executed again
                    raise LeaseLost("the attempt was given up")
            now_ms = self.record.now_ms()
            one = one._replace(
                state=RUNNING, attempts=one.attempts + 1, wake_at=None, started_at=one.started_at or now_ms
            )
            self.record.begin(one)
            step = StepContext(self.record.workflow_id, one.idx, one.name, one.attempts)
            try:
                output = self._run(step, call)
                ended = one._replace(
                    state=COMPLETED, output=output, error=None, error_type=None, ended_at=self.record.now_ms()
                )
                within = step.writes
                if within is not None:  # both are in the file now, or neither, and then the step has failed
                    self.record.put(ended, within)
            except LeaseLost:
                raise
            except BaseException as exc:  # whatever the step raises: it is recorded, and raised where it was asked for
                if step.lent is not None:
                    step.lent.undo()
                if not isinstance(exc, Exception):
                    raise
                one = self._failed(one, call, exc)
                self.record.put(one)
            else:
                one = ended
                if within is None:
                    self.record.put(one)
            if one.ended:
                return one

    def _run(self, step: StepContext, call: Call) -> str:
        token = running_step.set(step)
        try:
            value = call.function(*call.args, **call.kwargs)
            if inspect.iscoroutine(value):
                import asyncio  # here: `import miniflow` does not pay for it

                value = asyncio.run(value)
            return self.output_text(value)
        finally:
            running_step.reset(token)

    def output_text(self, value: Any) -> str:
        """An output as JSON text. BadResult for what is none, or too long."""
        try:
            data = encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise BadResult(f"the output is not JSON: {exc}") from exc
        limit = self.record.max_output_bytes
        if len(data) > limit:
            raise BadResult(str(TooLarge("the output", len(data), "max_result_bytes", limit)))
        with self._lock:
            if self._bytes + len(data) > RECORD_BYTES_MAX:
                raise BadResult(TOO_LONG)
            self._bytes += len(data)
        return data.decode()

    def _failed(self, one: Checkpoint, call: Call, exc: Exception) -> Checkpoint:
        error_type = type(exc).__name__
        text = words_of(exc).encode(errors="backslashreplace").decode()[:ERROR_CHARS_MAX]
        one = one._replace(failures=one.failures + 1, error_type=error_type, error=text)
        delay_ms = call.delay_ms(one.failures, exc)
        now_ms = self.record.now_ms()
        if delay_ms is None:
            return one._replace(state=FAILED, ended_at=now_ms)
        return one._replace(state=WAITING, wake_at=now_ms + delay_ms, relative=1)

    # ------------------------------------------------------------------------------------------------------- several at once

    def gather(self, items: Sequence[Call | int], limit: int) -> list[Any]:
        """Run steps at once, at most ``limit``; a number is that of a spawned run. Their outputs in order, or the first failure
        in order, when all have ended."""
        self._go_on()
        grp = self._next
        ones: list[Checkpoint] = []
        todo: deque[tuple[int, Call]] = deque()
        for place, item in enumerate(items):
            if isinstance(item, int):
                ones.append(self.record.look(item))
                continue
            one = self.ask("step", item.name, item.digest(), grp)
            ones.append(one)
            if not one.ended:
                todo.append((place, item))
        if todo:
            self._at_once(ones, todo, min(limit, len(todo)))
        waiting = [one for one in ones if not one.ended]
        if waiting:
            self.sleep_for(waiting)
        failed = tuple(one.idx for one in ones if one.state == FAILED)
        if failed:
            raise failure_of(next(one for one in ones if one.state == FAILED), failed, self._next)
        return [self.value_of(one) for one in ones]

    def _at_once(self, ones: list[Checkpoint], todo: deque[tuple[int, Call]], n: int) -> None:
        raised: list[BaseException] = []

        def work() -> None:
            while todo and not raised:
                try:
                    place, call = todo.popleft()
                except IndexError:  # another thread was faster
                    return
                try:
                    ones[place] = self.carry_out(ones[place], call)
                except BaseException as exc:  # no failure of the step, but the end of the run: its own thread raises it
                    raised.append(exc)

        # Daemons: a step that hangs must not keep a process from ending that was told to.
        threads = [
            threading.Thread(
                target=contextvars.copy_context().run, args=(work,), name=f"miniflow-gather-{k}", daemon=True
            )
            for k in range(n)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(SLICE_S)  # in slices: an interruption comes between two of them
        except BaseException:  # the run is to stop: no further step of them begins
            todo.clear()
            raise
        if raised:
            raise raised[0]

    # ------------------------------------------------------------------------------------------------------------ waiting

    def sleep(self, wake_at: int, relative: int) -> None:
        """Wait until then: here if it is soon, else without a worker. What was recorded counts, whatever is asked now."""
        one = self.ask("sleep", "sleep")
        if one.ended:
            return
        if one.state == NEW:
            now_ms = self.record.now_ms()
            one = one._replace(state=WAITING, wake_at=wake_at, relative=relative, started_at=now_ms)
            self.record.put(one)
        left_ms = (one.wake_at or 0) - self.record.now_ms()
        if left_ms > SHORT_MS:
            self.sleep_for([one._replace(relative=relative)])
        pause(left_ms)
        self.record.note(one._replace(state=COMPLETED, ended_at=max(self.record.now_ms(), one.wake_at or 0)))

    def wait_event(self, name: str, timeout_ms: int | None) -> Any:
        """The payload of the event. EventTimeout if it did not come in time."""
        one = self.ask("event", name)
        if not one.ended:
            if one.state == NEW:
                now_ms = self.record.now_ms()
                wake_at = None if timeout_ms is None else now_ms + timeout_ms
                one = one._replace(wake_at=wake_at, relative=1, started_at=now_ms)
            one = self.record.wait_for_event(one)
            if not one.ended:
                self.sleep_for([one])
        return self.value_of(one)

    def spawn(self, name: str, input: str) -> Checkpoint:
        """Another run, begun once."""
        one = self.ask("workflow", name, digest_of(msgspec.Raw(input.encode())))
        if one.state == NEW:
            one = self.record.spawn(one._replace(state=WAITING, started_at=self.record.now_ms()), input)
        return one

    def result_of_child(self, idx: int) -> Any:
        """What a run that was spawned returned, when it has ended."""
        self._go_on()
        one = self.record.look(idx)
        if not one.ended:
            if self.record.paused():
                self._suspend(Suspension((), None))
            self.sleep_for([one])
        return self.value_of(one)

    def recorded(self, name: str, make: Callable[[], Any]) -> Any:
        """A value that would be another one each time; the first one stays."""
        one = self.ask("value", name)
        if not one.ended:
            now_ms = self.record.now_ms()
            one = one._replace(state=COMPLETED, output=self.output_text(make()), started_at=now_ms, ended_at=now_ms)
            self.record.put(one)
        return self.value_of(one)


def failure_of(one: Checkpoint, failed: tuple[int, ...], asked: int) -> StepFailed:
    """The exception that a failed checkpoint raises: the same live and in a replay. ``failed`` are all that a retry is to do
    again, and ``asked`` is how far the function had come."""
    error_type, error = one.error_type or "", one.error or ""
    if one.kind == "event":
        failure: StepFailed = EventTimeout(one.name, one.idx, error_type, error, error)
    elif one.kind == "workflow":
        words = f"workflow {one.name} ({one.child or 'deleted'}) did not end well: {error}"
        failure = WorkflowFailed(one.name, one.idx, error_type, error, words)
    else:
        failure = StepFailed(one.name, one.idx, error_type, error)
    failure.failed, failure.asked = failed, asked
    return failure


def _changed(what: str) -> WorkflowChanged:
    return WorkflowChanged(f"{what}; give the changed function a new name, or rerun this run with it")


def pause(ms: int) -> None:
    """Wait in this thread. In slices: an interruption comes between two of them."""
    until = time.monotonic() + ms / 1000
    while (left_s := until - time.monotonic()) > 0:
        time.sleep(min(left_s, SLICE_S))
