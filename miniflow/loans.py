"""Rows of the read-ahead that were handed to a worker's process before their turn.

Such a row is still `queued`, for everybody to see. It is begun when the process takes its turn, which the worker hears of with
the answer to the job before, or when somebody wants the row back and finds the turn taken. Everything here happens under the
lock of the read-ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from miniflow.attempts import Attempt, Claimed


class Holder(Protocol):
    """A process that rows are handed to."""

    stale: bool
    """It may have rows that were taken back: it is handed no more before it has answered one that needs no turn."""

    def give(self, count: int) -> None:
        """Turns for so many rows more."""
        ...

    def take_back(self) -> int:
        """How many turns were not taken, and cannot be any more: those of the last rows. If there are any, it is ``stale``."""
        ...

    def wake(self) -> None:
        """Have the worker look at ``Loan.again``."""
        ...


class Loan:
    """What one worker has handed ahead, in the order of the turns."""

    def __init__(self, begin: Callable[[Claimed], Attempt], stopped: Callable[[], bool]) -> None:
        """``begin`` makes an attempt of a row, for this worker; once it is ``stopped`` nothing more is handed ahead."""
        self.begin, self.stopped = begin, stopped
        self.rows: deque[Claimed] = deque()  # begun or not: only the turns know
        self.begun: deque[Attempt] = deque()  # found to be begun, by somebody who wanted them back
        self.again = False  # the turn of the attempt under way was taken back as well: it has to be sent once more
        self.holder: Holder | None = None

    def __repr__(self) -> str:
        return f"<Loan [{len(self.rows)} rows, {len(self.begun)} begun]>"

    def __bool__(self) -> bool:
        return bool(self.rows or self.begun)
