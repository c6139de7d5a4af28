"""The arithmetic of a benchmark: percentiles of what was measured, and how far chance may lead from what is expected."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

DIGITS = 3
"""Significant digits that are kept of a duration: an error of at most half a percent, and a few thousand different values."""

SIGMAS_MAX = 3.0
"""Beyond so many standard deviations it is no accident: by chance that happens once in 370 runs."""

GROWTH_S_MIN = 60.0


class Durations(msgspec.Struct):
    """Any number of durations in little room: how many there were of each length."""

    counts: dict[int, int] = {}
    """Microseconds, to three digits, and how often."""
    total_us: int = 0
    max_us: int = 0

    @classmethod
    def of(cls, microseconds: Iterable[float]) -> Durations:
        whole = [max(round(value), 0) for value in microseconds]
        return cls(dict(Counter(map(rounded, whole))), sum(whole), max(whole, default=0))

    @classmethod
    def of_counts(cls, counts: Iterable[tuple[int, int]]) -> Durations:
        """Of (microseconds, how often)."""
        made = cls(counts={})
        for us, n in counts:
            whole = max(us, 0)
            made.counts[rounded(whole)] = made.counts.get(rounded(whole), 0) + n
            made.total_us += whole * n
            made.max_us = max(made.max_us, whole)
        return made

    @property
    def n(self) -> int:
        return sum(self.counts.values())

    @property
    def max_ms(self) -> float | None:
        return self.max_us / 1000 if self.counts else None

    @property
    def mean_ms(self) -> float | None:
        return self.total_us / self.n / 1000 if self.counts else None

    def percentile_ms(self, percent: float) -> float | None:
        """The shortest duration that ``percent`` of all do not exceed; None where there are none."""
        found = percentile(self.counts, percent)
        return None if found is None else min(found, self.max_us) / 1000

    def __add__(self, other: Durations) -> Durations:
        return Durations(
            dict(Counter(self.counts) + Counter(other.counts)),
            self.total_us + other.total_us,
            max(self.max_us, other.max_us),
        )


def rounded(value: int) -> int:
    """``value`` to three significant digits."""
    return value if value < 10**DIGITS else round(value, DIGITS - len(str(value)))


def percentile(counts: Mapping[int, int], percent: float) -> int | None:
    """By the nearest rank: the smallest value with at least ``percent`` of all at or below it."""
    rank = max(math.ceil(sum(counts.values()) * percent / 100), 1)
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= rank:
            return value
    return None


class Chance(msgspec.Struct):
    """What should happen to each of ``n`` with the same probability, and to how many it did."""

    n: int
    probability: float
    found: int

    @property
    def expected(self) -> float:
        return self.n * self.probability

    @property
    def sigma(self) -> float:
        """The standard deviation of the binomial distribution."""
        return math.sqrt(self.n * self.probability * (1 - self.probability))

    @property
    def sigmas(self) -> float:
        """How many standard deviations ``found`` lies above (or below) what is expected."""
        return (self.found - self.expected) / self.sigma if self.sigma else 0.0

    @property
    def plausible(self) -> bool:
        return abs(self.sigmas) <= SIGMAS_MAX


def growth_per_hour(samples: list[tuple[float, float]]) -> float | None:
    """The slope of a line through (seconds, value), as a change per hour; None for less than a minute of them.

    The first fifth is left out: that is a server which warms up.
    """
    settled = samples[len(samples) // 5 :]
    if len(settled) < 3 or settled[-1][0] - settled[0][0] < GROWTH_S_MIN:
        return None
    n = len(settled)
    mean_t, mean_v = sum(t for t, _ in settled) / n, sum(v for _, v in settled) / n
    spread = sum((t - mean_t) ** 2 for t, _ in settled)
    return sum((t - mean_t) * (v - mean_v) for t, v in settled) / spread * 3600
