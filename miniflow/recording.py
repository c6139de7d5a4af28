"""The checkpoints of a durable function, and where they are kept: what passes between its replay and the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from miniflow.writer import Transaction

NEW, RUNNING, WAITING, COMPLETED, FAILED = "new", "running", "waiting", "completed", "failed"


RECORD_BYTES_MAX = 64 * 1024 * 1024
"""Of all that a run has recorded: it is read whenever the run goes on."""
TOO_LONG = (
    f"a run records {RECORD_BYTES_MAX // 1024 // 1024} MiB at most; keep what is long elsewhere, and return where"
)


class Checkpoint(NamedTuple):
    """One thing that the function asked for. The first fields are those of ``function_statements.CHECKPOINT``, in order."""

    idx: int
    grp: int
    kind: str
    name: str
    state: str = NEW
    digest: str | None = None
    attempts: int = 0
    failures: int = 0
    wake_at: int | None = None
    child: str | None = None
    output: str | None = None
    error_type: str | None = None
    error: str | None = None
    started_at: int | None = None
    ended_at: int | None = None
    relative: int = 0

    @property
    def ended(self) -> bool:
        return self.state in (COMPLETED, FAILED)


class Suspension(NamedTuple):
    """What a run goes to sleep for: the numbers of the checkpoints, and when the first is over by itself. None of either: it is
    paused."""

    awaited: tuple[int, ...]
    wake_at: int | None
    relative: int = 1


class OwnWrites(Protocol):
    """What a step has written to tables of its own in the file, not committed yet: see ``transactions.Lent``."""

    given_up: bool

    @property
    def asked_for(self) -> bool: ...
    def commit(self, apply: Callable[[Transaction], None], /) -> None: ...
    def undo(self) -> None: ...


class Record(Protocol):
    """Where the checkpoints of a run are kept. What is put is in the file when the call returns. LeaseLost where the attempt has
    been given up."""

    max_output_bytes: int

    @property
    def workflow_id(self) -> str: ...
    def now_ms(self) -> int: ...
    def load(self) -> list[Checkpoint]: ...
    def paused(self) -> bool: ...
    def given_up(self) -> bool: ...
    def begin(self, one: Checkpoint) -> None:
        """A step runs; written with the next group, at the latest with its end."""

    def put(self, one: Checkpoint, within: OwnWrites | None = None) -> None:
        """``within``: together with what the step has written. What that raises means that neither is there."""
        ...

    def note(self, one: Checkpoint) -> None:
        """As put, without waiting."""

    def wait_for_event(self, one: Checkpoint) -> Checkpoint:
        """With the event, if it is there; failed, if its time is over; else put as waiting."""
        ...

    def spawn(self, one: Checkpoint, input: str) -> Checkpoint:
        """Begin another run, and put that it was."""
        ...

    def look(self, idx: int) -> Checkpoint: ...
