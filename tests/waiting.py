"""Waiting for something that happens in another thread or process: the only place in the tests that sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.005
"""Between two looks. Short: most of what is waited for takes a few milliseconds."""

PATIENCE = 3
"""How many times as long as a test thinks necessary is really waited: a machine that others use, too, is that slow at times, and
only a wait that is in vain takes longer for it."""


def wait_until(
    condition: Callable[[], T],
    timeout_s: float = 5.0,
    what: str = "the condition",
    *,
    until: Callable[[T], object] = bool,
) -> T:
    """The first value of ``condition()`` that ``until`` accepts (any true one, if not said otherwise).

    When the time is over it fails and shows the last value. So let ``condition`` return what there is to see, and ``until``
    judge it: ``wait_until(lambda: job().status, 5, "the job's end", until=TERMINAL.__contains__)`` fails with the status that
    the job was stuck in, where a comparison inside ``condition`` could only say False.
    """
    timeout_s *= PATIENCE
    deadline = time.monotonic() + timeout_s
    while True:
        over = time.monotonic() >= deadline  # taken before the look: the last look is never before the deadline
        value = condition()
        if until(value):
            return value
        if over:
            raise AssertionError(f"waited {timeout_s:g} s for {what}; last seen: {value!r}")
        time.sleep(POLL_S)
