"""Tasks that stand in for work: they wait a little, count a little, and one of them fails on purpose."""

from __future__ import annotations

import random
import time
from typing import Annotated, Any

import msgspec

from miniflow import BaseJob, current_job, task


@task
def heavy_compute(payload: dict[str, Any]) -> dict[str, Any]:
    """Two seconds of expensive work that can be watched and cancelled."""
    job = current_job()
    for step in range(10):
        job.check_cancelled()
        job.progress(step, 10)
        time.sleep(0.2)
    job.progress(10, 10)
    return {"echo": payload, "summary": f"Processed keys: {list(payload.keys())}"}


@task
def default(payload: dict[str, Any]) -> None:
    """Wait 1 to 50 ms."""
    sleep_ms(1, 50)


@task
def compute(
    iterations: Annotated[int, msgspec.Meta(le=10_000_000, description="0 or less means 1000")] = 1000, **other: Any
) -> int:
    """Add up the numbers below "iterations", then wait 5 to 24 ms."""
    if iterations <= 0:
        iterations = 1000
    total = 0
    for number in range(iterations):
        total += number
    sleep_ms(5, 24)
    return total


@task
def notify(payload: dict[str, Any]) -> None:
    """Wait 2 to 11 ms, as long as sending a message takes."""
    sleep_ms(2, 11)


@task
def transform(payload: dict[str, Any]) -> None:
    """Wait 3 to 17 ms."""
    sleep_ms(3, 17)


@task
def flaky(failure_rate: Annotated[float, msgspec.Meta(le=1)] = 0.5, **other: Any) -> None:
    """Wait 1 to 5 ms, then fail with the probability "failure_rate"; 0 or less means one half."""
    sleep_ms(1, 5)
    if random.random() < (failure_rate if failure_rate > 0 else 0.5):
        raise RuntimeError("flaky: this attempt failed on purpose")


@task
def noop(payload: dict[str, Any]) -> None:
    """Nothing, as fast as it gets."""


class SlowQuery(BaseJob):
    """Take "duration" seconds."""

    duration: Annotated[float, msgspec.Meta(ge=0, le=300)] = 10

    def _perform(self) -> str:
        job = current_job()
        steps = max(1, round(self.duration * 5))
        for step in range(steps):
            job.check_cancelled()
            time.sleep(self.duration / steps)
            job.progress(step + 1, steps)
        return f"Slow query completed after {self.duration:g} seconds"


class Fibonacci(BaseJob):
    """The n-th Fibonacci number; the tenth is 55."""

    n: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 10

    def _perform(self) -> int:
        a, b = 0, 1
        for _ in range(self.n):
            a, b = b, a + b
        return a


class FailedJob(BaseJob):
    """Fail, each time."""

    def _perform(self) -> None:
        raise Exception("This is a custom exception")  # noqa: TRY002 - the text and the class are what this one shows


def sleep_ms(least: int, most: int) -> None:
    """Sleep a random whole number of milliseconds."""
    time.sleep(random.randint(least, most) / 1000)
