"""``--assert "p95<50ms,lost=0"``: what a script wants to hold, in words that a person can read.

A figure is compared with a number and a unit. Times and rates need theirs, so that nobody means seconds where milliseconds are
taken. Known figures stand in FIGURES, which the errors are made from.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from miniflow.errors import MiniFlowError

UNITS: dict[str, dict[str, float]] = {
    "time": {"us": 0.001, "ms": 1.0, "s": 1000.0, "min": 60_000.0},  # milliseconds
    "rate": {"/s": 1.0, "/min": 1 / 60},  # a second
    "share": {"%": 1.0},  # percent
    "size": {"kB": 0.001, "MB": 1.0, "GB": 1000.0},  # megabytes
    "growth": {"MB/h": 1.0},
    "number": {"": 1.0},
}
"""The units of each dimension, and what they are of the one that figures are kept in."""

KEPT_IN = {dimension: next(unit for unit, n in units.items() if n == 1) for dimension, units in UNITS.items()}
"""The unit that figures of each dimension are kept in."""

FIGURES: dict[str, tuple[str, str]] = {
    "p50": ("time", "latency of a submit, median"),
    "p95": ("time", "latency of a submit, 95 % are faster"),
    "p99": ("time", "latency of a submit, 99 % are faster"),
    "max": ("time", "the slowest submit"),
    "avg": ("time", "the mean latency of a submit"),
    "err": ("share", "submits that were not accepted"),
    "failed": ("number", "submits that were not accepted"),
    "retries": ("number", "submits sent again after a 429 or 5xx"),
    "lost": ("number", "jobs that were accepted and are not in the file"),
    "throughput": ("rate", "jobs accepted"),
    "processed": ("rate", "jobs that came to their end"),
    "terminal": ("time", "from the first submit until all jobs had ended"),
    "wait_p50": ("time", "from accepted to begun, median"),
    "wait_p95": ("time", "from accepted to begun, 95 % are faster"),
    "workflows": ("rate", "workflow: whole workflows that came to their end"),
    "workflow_p50": ("time", "workflow: from accepted to the end of its last step, median"),
    "workflow_p95": ("time", "workflow: the same, 95 % are faster"),
    "workflow_p99": ("time", "workflow: the same, 99 % are faster"),
    "dead": ("number", "dead letters"),
    "sigma": ("number", "flaky: standard deviations between the dead letters and what is expected"),
    "recovery": ("time", "spike: from its end until the backlog was as before"),
    "sustained": ("rate", "stress: the highest rate that was sustained"),
    "memory": ("size", "the server's largest resident memory"),
    "memory_growth": ("growth", "soak: how fast it grows"),
    "cpu": ("share", "processor of the server; 100 % is one core"),
    "file": ("size", "the database file at the end"),
    "wal": ("size", "its write-ahead log at its largest"),
    "of_empty_route": ("share", "submits a second, as a share of an empty route's"),
    "of_bulk_insert": ("share", "throughput, as a share of raw bulk insert"),
    "of_raw_claims": ("share", "processed, as a share of raw claim-and-complete"),
    "commit": ("time", "one small durable commit"),
}
"""The dimension of each figure, and what it is."""

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_SHAPE = re.compile(r"\s*([a-z_0-9]+)\s*(<=|>=|!=|==|<|>|=)\s*(-?\d[\d_]*(?:\.\d+)?)\s*(%|[a-zA-Zµ/]+)?\s*", re.ASCII)


class BadAssertion(MiniFlowError):
    """An assertion that cannot be read, or cannot be checked in this run."""


class Assertion(NamedTuple):
    text: str
    figure: str
    comparison: str
    value: float
    """In the unit that figures are kept in."""

    def holds(self, measured: float | None) -> bool:
        """False where nothing was measured."""
        return measured is not None and COMPARISONS[self.comparison](measured, self.value)


class Verdict(NamedTuple):
    """An assertion, and what was measured."""

    assertion: Assertion
    measured: float | None
    holds: bool

    def __str__(self) -> str:
        state = "holds" if self.holds else "does not hold"
        return f"{self.assertion.text} {state}: {in_words(self.assertion.figure, self.measured)}"


def parse(text: str) -> list[Assertion]:
    """The assertions in ``text``, separated by commas. BadAssertion says which one is wrong, and what there is."""
    parts = [part for part in text.split(",") if part.strip()]
    if not parts:
        raise BadAssertion('--assert is empty; give for example "p95<50ms,lost=0,err<1%"')
    return [_one(part.strip()) for part in parts]


def _one(text: str) -> Assertion:
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise BadAssertion(f'--assert: {text!r} is no comparison; write for example "p95<50ms" or "lost=0"')
    figure, comparison, number, unit = match[1], match[2], match[3], match[4] or ""
    if figure not in FIGURES:
        raise BadAssertion(f"--assert: {figure!r} is no figure; there are {', '.join(FIGURES)}")
    units = UNITS[FIGURES[figure][0]]
    if unit not in units:
        wanted = f"takes {' or '.join(units)}" if "" not in units else "is a plain number"
        raise BadAssertion(f"--assert: {text!r}: {figure} {wanted}{f', not {unit!r}' if unit else ''}")
    return Assertion(text, figure, comparison, float(number) * units[unit])


def check_measured(assertions: list[Assertion], available: Collection[str], why: str) -> None:
    """BadAssertion if one asks for a figure that this run does not measure; ``why`` says what run it is."""
    for assertion in assertions:
        if assertion.figure not in available:
            raise BadAssertion(f"--assert: {assertion.figure} is not measured {why}; there are {', '.join(available)}")


def judge(assertions: list[Assertion], figures: Mapping[str, float | None]) -> list[Verdict]:
    found = []
    for assertion in assertions:
        measured = figures.get(assertion.figure)
        found.append(Verdict(assertion, measured, assertion.holds(measured)))
    return found


def in_words(figure: str, value: float | None) -> str:
    """A figure's value with its unit."""
    if value is None:
        return f"{figure} was not measured"
    dimension = FIGURES[figure][0]
    unit = KEPT_IN[dimension]
    digits = 3 if value and abs(value) < 1 else 2 if value != int(value) else 0
    return f"{figure} is {value:,.{digits}f}{' ' if unit[:1].isalpha() or unit == '%' else ''}{unit}"
