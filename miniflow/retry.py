"""How long a failed job waits for its next attempt.

Exponential backoff with a ceiling and proportional jitter; or explicit intervals, the last of which repeats. All durations are
seconds, as users write them; the store keeps milliseconds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

DELAY_S_MAX = 10 * 366 * 86_400
"""The longest wait for anything: ten years. Beyond some thousand of them a time no longer fits into the file."""
FACTOR_MAX = 1000


class RetryPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The wait before retry number n (1, 2, …) is ``min(base * factor ** (n - 1), max_delay)``, give or take ``jitter``.

    ``jitter`` is a fraction: 0.1 spreads the wait evenly over ±10 %. ``intervals``, where given, replace the formula: the n-th
    retry waits ``intervals[n - 1]`` seconds, and retries beyond the list wait its last entry; jitter is not applied to them.
    """

    base: float = 1.0
    factor: float = 2.0
    max_delay: float = 60.0
    jitter: float = 0.1
    intervals: Sequence[float] | None = None

    def __post_init__(self) -> None:
        # Said as what must hold: a NaN compares false with everything, and so is refused by each of them.
        if not (self.base >= 0 and self.max_delay >= 0):
            raise ValueError("base and max_delay are seconds and cannot be negative")
        if self.intervals is not None and not (self.intervals and all(seconds >= 0 for seconds in self.intervals)):
            raise ValueError("intervals must be one or more seconds, none of them negative")
        if max(self.base, self.max_delay, *(self.intervals or ())) > DELAY_S_MAX:
            raise ValueError("a wait is at most ten years")
        if not self.factor >= 1:
            raise ValueError("factor must be 1 or more")
        if self.factor > FACTOR_MAX:
            raise ValueError(f"factor must be {FACTOR_MAX} or less")
        if not 0 <= self.jitter <= 1:
            raise ValueError("jitter is a fraction between 0 and 1")

    def delay_s(self, retry: int, rand: random.Random | None = None) -> float:
        """Seconds to wait before retry number ``retry`` (from 1)."""
        if self.intervals is not None:
            return float(self.intervals[min(retry, len(self.intervals)) - 1])
        try:
            wait = min(self.base * self.factor ** (retry - 1), self.max_delay)
        except OverflowError:  # beyond any number, so beyond the ceiling; nothing times that is still nothing
            wait = self.max_delay if self.base else 0.0
        return wait * (1 + self.jitter * (2 * (rand or random).random() - 1))


DEFAULT_RETRY = RetryPolicy()
DEFAULT_MAX_RETRIES = 3
