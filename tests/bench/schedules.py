"""Ten thousand schedules in one file: what a look at them costs, and how late they are when all are due at one moment."""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import msgspec

from miniflow import registry
from miniflow.contract import Definition
from miniflow.engine import Engine
from miniflow.settings import Settings
from miniflow.writer import Transaction
from tests.invariants import read

MANY = 10_000
EVERY_S = 15
LOOKS = 50


def fill(path: str, n: int = MANY) -> None:
    """``n`` schedules of a no-op, all due at the same moment, each with a zone and a payload of its own kind."""
    specs = registry.Registry()
    with registry.collecting(specs):

        @registry.task
        def noop(payload: dict[str, Any]) -> None: ...

    engine = Engine(Settings(db=path, workers=0), specs=specs)
    engine.start()
    zones = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")

    def make(tx: Transaction) -> None:
        for number in range(n):
            given = Definition(
                task="noop",
                payload=msgspec.Raw(b'{"number":%d}' % number),
                cron=f"*/{EVERY_S} * * * * *",
                timezone=zones[number % len(zones)],
                catchup="none",
                description=f"schedule number {number}",
            )
            engine.schedules.create(f"schedule {number:05}", engine.schedules.checked(given))(tx)

    engine.writer.call("verb", make)
    engine.stop(grace_s=0.1)


def look_ms(client: httpx.Client, path: str) -> float:
    """The median of some looks, a client's own work included."""
    took = []
    for _ in range(LOOKS):
        started = time.perf_counter()
        client.get(path).raise_for_status()
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


def late_ms(db: str | Path) -> tuple[int, float, float]:
    """Of the times at which all were due: how many fires there were, and how late half of them and all but one in a hundred."""
    with closing(read(db)) as connection:
        sql = "SELECT fired_at - slot FROM fires WHERE kind = 'due' AND outcome = 'fired' ORDER BY 1"
        late = [ms for (ms,) in connection.execute(sql)]
    return len(late), late[len(late) // 2], late[len(late) * 99 // 100]
