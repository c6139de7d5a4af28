"""Every error that MiniFlow raises on purpose, in one tree.

The class is the code: callers catch classes, never texts. Each message says who, what and why, and names the remedy where
there is one. Errors of other libraries (apsw above all) are turned into these where they enter, in ``db.py``.
"""

from __future__ import annotations


class MiniFlowError(Exception):
    """Base of all errors raised on purpose."""


# ---------------------------------------------------------------------------------------------------- what was asked for


class NotFound(MiniFlowError):
    """Nothing is there under that name. ``kind`` is the noun ("job", "task", …), ``name`` what was asked for."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} not found: {name}")
        self.kind, self.name = kind, name


class InvalidRequest(MiniFlowError):
    """One field of a request cannot be taken. ``field`` is its path ("payload.text"), ``reason`` says why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field, self.reason = field, reason


class BadJson(InvalidRequest):
    """The body is no JSON at all."""


class UnknownTask(InvalidRequest):
    """No task is registered under that name. ``known`` are close matches, best first; ``where`` goes before the field's name."""

    def __init__(self, task: str, known: list[str], where: str = "") -> None:
        hint = f"; did you mean {', '.join(known)}?" if known else ""
        super().__init__(f"{where}task", f"no task is registered as {task!r}{hint}")
        self.task, self.known = task, known

    @property
    def of_a_job(self) -> str:
        """In words, of a job whose task was there when it was submitted."""
        return f"{self}; its file was not loaded, or has it no more: mend that and retry"


class SearchTooExpensive(MiniFlowError):
    """A search through texts was given up. Asked for again it would take as long again: it is for the caller to narrow it."""

    def __init__(self, budget_s: float) -> None:
        super().__init__(
            f"the search took longer than {budget_s:g} s and was given up; narrow it by status, queue, task or dates"
        )


class TooLarge(MiniFlowError):
    """A payload, body or result is over its limit. ``limit`` is the setting's name; sizes are in bytes."""

    def __init__(self, what: str, size: int, limit: str, limit_bytes: int) -> None:
        super().__init__(f"{what} has {size:,} bytes, over the limit {limit} = {limit_bytes:,}")
        self.what, self.size, self.limit, self.limit_bytes = what, size, limit, limit_bytes


class TransitionRefused(MiniFlowError):
    """A verb does not apply to the state that the job, or the workflow, is in."""

    def __init__(self, job_id: str, verb: str, state: str, remedy: str = "", kind: str = "job") -> None:
        super().__init__(f"{kind} {job_id}: cannot {verb}, it is {state}{'; ' + remedy if remedy else ''}")
        self.job_id, self.verb, self.state = job_id, verb, state


class ScheduleExists(MiniFlowError):
    """A schedule has that name already."""

    field = "name"

    def __init__(self, name: str) -> None:
        super().__init__(f"name: there is a schedule {name!r} already; change it, or take another name")
        self.name = name


class ScheduleRefused(MiniFlowError):
    """A verb does not apply to this schedule; ``why`` says so and names the remedy."""

    def __init__(self, name: str, verb: str, why: str) -> None:
        super().__init__(f"schedule {name}: cannot {verb}, {why}")
        self.name, self.verb = name, verb


class DefinitionRefused(MiniFlowError):
    """A verb does not apply to this kept definition of a workflow; ``why`` says so and names the remedy."""

    def __init__(self, name: str, verb: str, why: str) -> None:
        super().__init__(f"workflow definition {name}: cannot {verb}, {why}")
        self.name, self.verb = name, verb


class IdempotencyConflict(MiniFlowError):
    """The idempotency key belongs to a job, or a workflow, that was submitted with another body."""

    def __init__(self, key: str, job_id: str, kind: str = "job") -> None:
        super().__init__(f"idempotency key {key!r} was used for {kind} {job_id} with another body; use a new key")
        self.key, self.job_id = key, job_id


class NotUnique(MiniFlowError):
    """There is such a job already, and the submit asked to be rejected then. ``until``: when the rule's window is over, if it has
    one; then the job may have ended long ago, and nothing but the window is in the way."""

    def __init__(self, task: str, job_id: str, until: str | None = None) -> None:
        hint = "; wait for it, or cancel it" if until is None else f", which holds until {until} at the latest"
        super().__init__(f"job {job_id} of task {task} is the same by its `unique` rule{hint}")
        self.task, self.job_id = task, job_id


# ---------------------------------------------------------------------------------------------------- limits and the store


class QueueFull(MiniFlowError):
    """The number of waiting jobs is at its limit; ``retry_after_s`` is when to try again."""

    def __init__(self, waiting: int, limit: int, retry_after_s: int = 5) -> None:
        super().__init__(
            f"{waiting:,} jobs are waiting, the limit max_queue is {limit:,}; try again in {retry_after_s} s"
        )
        self.waiting, self.limit, self.retry_after_s = waiting, limit, retry_after_s


class TooManyQueues(InvalidRequest):
    """Queues are created on use; their number is bounded so that a typo in a loop cannot make a million of them."""

    def __init__(self, queue: str, limit: int) -> None:
        super().__init__("queue", f"{queue!r} would be a new queue, and there are {limit:,} already (max_queues)")


class ShuttingDown(MiniFlowError):
    """The server is stopping and takes no new work."""

    def __init__(self, retry_after_s: int = 5) -> None:
        super().__init__("the server is shutting down and takes no new jobs")
        self.retry_after_s = retry_after_s


class StoreError(MiniFlowError):
    """The database cannot be used as it is. Start-up ends with exit code 2 and this one line."""


class StoreBusy(StoreError):
    """Another MiniFlow has this file open."""


class StoreFull(StoreError):
    """The disk is full. Nothing already accepted is lost; reading goes on."""


class StoreLocked(StoreError):
    """Another program is writing to the file, and did not stop within the busy timeout."""

    retry_after_s = 5


class ReadTooSlow(StoreError):
    """A read that looks for no text was given up all the same: the disk or the machine is too busy."""

    retry_after_s = 5

    def __init__(self, budget_s: float) -> None:
        super().__init__(f"the database took longer than {budget_s:g} s to answer; try again later")


class StoreClosed(StoreError):
    """The writer or the readers have stopped: the process is on its way out."""


class TransactionRefused(MiniFlowError):
    """A job's transaction that was not begun, was undone, or was to do what is not allowed: its text says which."""


class SecondLibrary(StoreError):
    """Something tried to open a live database file around apsw, which destroys it (see ``guard.py``)."""


class SettingsError(MiniFlowError):
    """A setting has an unusable value; the message names the setting and where it came from."""


# ---------------------------------------------------------------------------------------------------- raised by and in tasks


class NonRetryable(MiniFlowError):
    """Raised by a task: this job has failed for good, whatever retries are left."""


class BadResult(NonRetryable):
    """What a task returned is no JSON, or over the limit: another attempt would return it again."""


class HeartbeatMissed(MiniFlowError):
    """What being interrupted with JobStalled becomes once the body has ended: a failure like others, with retries."""


class RetryAfter(MiniFlowError):
    """Raised by a task: run me again after ``delay_s`` seconds. Uses up one retry, as any other failure does."""

    def __init__(self, delay_s: float, message: str = "") -> None:
        super().__init__(message or f"the task asked to run again in {delay_s:g} s")
        self.delay_s = float(delay_s)


class JobInterrupted(BaseException):
    """Raised inside a running task from outside. A BaseException, so that ``except Exception`` does not swallow it."""


class JobCancelled(JobInterrupted):
    """The running job was cancelled."""


class JobReplaced(JobCancelled):
    """A newer job wants the running one's slot, and the rule of its task is that it gets it. The words say so."""


class JobTimeout(JobInterrupted):
    """The running job is over its ``timeout``."""


class JobStalled(JobInterrupted):
    """Nothing was heard of the running job for longer than its ``heartbeat``, and its policy is not to wait any more."""


class JobReturned(JobInterrupted):
    """The server stops and the grace period is over: the job goes back to the queue, without an attempt counted."""


class JobOverLimit(JobInterrupted):
    """The running job went over one of its task's limits; the text says which."""


class LimitExceeded(MiniFlowError):
    """The job was ended because it went over one of its task's limits; the text says which."""


class ProcessDied(MiniFlowError):
    """The process that ran the job ended before the job did."""


class StepFailed(MiniFlowError):
    """A step of a durable function has failed for good; raised where the function asked for it, each time that it runs. ``step``
    is its name, ``number`` its place, ``error_type`` and ``error`` what it raised, as text."""

    def __init__(self, step: str, number: int, error_type: str, error: str, text: str = "") -> None:
        super().__init__(text or f"step {step} failed: {error}")
        self.step, self.number, self.error_type, self.error = step, number, error_type, error
        self.failed: tuple[int, ...] = (number,)  # with those that were asked for together, and have failed too
        self.asked = number + 1  # how far the function had come


class EventTimeout(StepFailed, TimeoutError):
    """No event of that name came within the time."""


class WorkflowFailed(StepFailed):
    """A run that was spawned has failed, or was cancelled."""


class WorkflowChanged(NonRetryable):
    """The function does not ask for what was recorded when it ran before: it is another one, or not deterministic."""


class TooManyEvents(InvalidRequest):
    """A run has as many events as it can have."""

    def __init__(self, workflow_id: str, limit: int) -> None:
        super().__init__("name", f"workflow {workflow_id} has {limit:,} events, and takes no other")


class TooManySteps(NonRetryable):
    """A durable function has asked for more than the limit."""


class LeaseLost(MiniFlowError):
    """The attempt was given up, or replaced by another one: what it says is not written any more."""


class Suspended(BaseException):
    """Unwinds a durable function that waits for something without a worker. A BaseException, so that ``except Exception`` does
    not swallow it. Code in ``finally`` runs each time."""


class LateEvent(MiniFlowError):
    """There is an event of that name already, and the first one stays."""

    def __init__(self, workflow_id: str, name: str) -> None:
        super().__init__(f"workflow {workflow_id} has an event {name!r} already; the first one stays")
        self.workflow_id, self.name = workflow_id, name


class TaskFailed(MiniFlowError):
    """What a task raised in another process. ``error`` is its text with the name of its class, as a thread's would be."""

    def __init__(
        self, error_type: str, error: str, trace: str | None, *, final: bool = False, delay_s: float | None = None
    ) -> None:
        """``final``: no retry, whatever is left. ``delay_s``: it asked to run again after so long."""
        super().__init__(error)
        self.error_type, self.error, self.trace, self.final, self.delay_s = error_type, error, trace, final, delay_s


class TaskExit(MiniFlowError):
    """A task tried to end the process (``sys.exit``, ``KeyboardInterrupt``): taken as its failure."""


def words_of(exc: BaseException) -> str:
    """``ValueError: what it says``; also of an exception of somebody's own whose text raises in its turn."""
    kind = type(exc).__name__
    try:
        words = str(exc)
    except Exception as broken:  # whatever it is
        words = f"(no words: {type(broken).__name__})"
    return f"{kind}: {words}" if words else kind


def repr_of(exc: BaseException) -> str:
    """``ValueError('what it says')``, or else its words."""
    try:
        return repr(exc)
    except Exception:  # whatever it is
        return words_of(exc)
