"""Jobs that are interrupted wherever they are on their way into a transaction, in it, and out of it: the writer is never lost."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from miniflow import current_job
from miniflow.errors import JobCancelled
from tests.engines import Engines, submit, verb
from tests.waiting import wait_until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

ROUNDS = 2_000


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns as often as they can: an interruption comes anywhere."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class GivenUp(Exception):
    pass


def over_and_over() -> None:
    while True:
        try:
            with current_job().transaction() as db:
                db.execute("CREATE TABLE IF NOT EXISTS numbers (n)")
                db.execute("INSERT INTO numbers VALUES (1)")
                raise GivenUp
        except GivenUp:
            pass


@pytest.mark.usefixtures("often")
def test_the_writer_goes_on_wherever_a_job_is_interrupted(tmp_path: Path) -> None:
    dice = random.Random(1)
    with Engines(tmp_path) as engines:
        engine = engines([over_and_over], transaction_limit=1)
        for _ in range(ROUNDS):
            submit(engine, "over_and_over", max_retries=0)
            wait_until(lambda: len(engine.running), 10, "the job to begin")
            until = time.monotonic() + dice.random() * 0.003
            while time.monotonic() < until:
                pass
            for attempt in engine.running.all():
                attempt.interrupt(JobCancelled("it was cancelled"), engine.clock.boot_ms() + 60_000)
            verb(engine, lambda tx: None)
            wait_until(lambda: not len(engine.running), 10, "the job to end")
        engines.stop(engine)
