"""Whether the clock can be believed. A board without a battery for its clock begins in the past, until the network tells it.

Fired by such a clock, schedules would run at wrong times now, and all that lie between when it jumps. So they wait while both
is so: the clock is behind a time that has certainly been (the last one in the file, and the making of this program), and the
system does not say that it is synchronised. They begin as soon as one of the two is over.
"""

from __future__ import annotations

import ctypes
import logging
import math
import sys
from collections.abc import Callable

from miniflow.clock import Clock, rfc3339

log = logging.getLogger("miniflow.schedules")

MADE_MS = 1_764_000_000_000
"""A time before which no copy of this program existed (24 November 2025)."""
BEHIND_MS = 60_000
"""A clock that is behind by less was slewed, or a little off when it was looked at last."""
ASKED_EVERY_S = 1.0
_ERROR = 5  # TIME_ERROR of adjtimex: the clock is not synchronised
_TIMEX_BYTES = 512  # more than struct timex has anywhere


def synchronised() -> bool | None:
    """Whether something keeps the clock right; None where the system cannot tell."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        # With modes = 0, as here, it only looks, and anybody may.
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _ERROR


class ClockTrust:
    """Asked once at the start, and then until the answer is yes: a clock that is set later was set by somebody who knows."""

    def __init__(self, clock: Clock, *, anyway: bool = False, ask: Callable[[], bool | None] | None = None) -> None:
        """``anyway``: the setting that believes every clock. ``ask`` stands in for the system."""
        self._clock, self._anyway, self._ask = clock, anyway, ask or synchronised
        self._floor_ms = 0
        self.reason = ""
        """Why schedules wait; empty: they do not."""

    def __repr__(self) -> str:
        return f"<ClockTrust {self.reason or 'trusted'}>"

    def begin(self, last_seen_ms: int) -> None:
        """``last_seen_ms``: the latest time in the file."""
        self._floor_ms = max(last_seen_ms, MADE_MS)
        if self._anyway or self._believable():
            return
        self.reason = (
            f"the clock says {rfc3339(self._clock.now_ms())}, which is before {rfc3339(self._floor_ms)}, and is not "
            "synchronised: schedules wait until it is right (or start with --trust-clock)"
        )
        log.warning(self.reason)

    @property
    def trusted(self) -> bool:
        return not self.reason

    def look(self) -> bool:
        """Ask again; whether the clock has come to be trusted just now."""
        if self.trusted or not self._believable():
            return False
        self.reason = ""
        log.warning("the clock is right now (%s): schedules go on", rfc3339(self._clock.now_ms()))
        return True

    def due_in_s(self) -> float:
        return math.inf if self.trusted else ASKED_EVERY_S

    def _believable(self) -> bool:
        return self._clock.now_ms() >= self._floor_ms - BEHIND_MS or self._ask() is True
