"""Schedules for tests: making them on an engine, and reading what became of them in the file."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from miniflow.contract import Definition, from_text
from miniflow.engine import Engine
from tests.engines import settle, verb
from tests.invariants import read

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


def definition(task: str, **fields: Any) -> Definition:
    raw = msgspec.Raw(msgspec.json.encode(fields.pop("payload", {})))
    return msgspec.convert({**fields, "task": task, "payload": raw}, Definition)


def create(engine: Engine, name: str, task: str, **fields: Any) -> None:
    verb(engine, engine.schedules.create(name, engine.schedules.checked(definition(task, **fields))))


def change(engine: Engine, name: str, task: str, **fields: Any) -> None:
    verb(engine, engine.schedules.change(name, {**fields, "task": task}))


def backfill(engine: Engine, name: str, first_ms: int, last_ms: int, *, dry_run: bool = False) -> tuple[int, int, int]:
    """(slots, already, done)"""
    meant = from_text(column(engine.settings.db, name, "definition"))
    slots = engine.schedules.slots_between(meant, first_ms, last_ms)
    found = verb(engine, engine.schedules.backfill(name, meant, slots, dry_run=dry_run))
    return found.slots, found.already, found.done


def fires(path: str | Path, name: str) -> list[tuple[str, str, int]]:
    """(kind, outcome, slot) of each fire, by slot."""
    sql = """
    SELECT kind, outcome, slot FROM fires JOIN schedules s ON s.id = schedule_id WHERE name = ? ORDER BY slot, fires.id
    """
    with closing(read(path)) as connection:
        return list(connection.execute(sql, (name,)))


def runs(path: str | Path, name: str) -> list[int]:
    """The slots that have a job, oldest first."""
    return [slot for _, outcome, slot in fires(path, name) if outcome == "fired"]


def outcomes(path: str | Path, name: str) -> list[str]:
    return [outcome for _, outcome, _ in fires(path, name)]


def column(path: str | Path, name: str, what: str) -> Any:
    with closing(read(path)) as connection:
        return next(iter(connection.execute(f"SELECT {what} FROM schedules WHERE name = ?", (name,))))[0]


def after(engine: Engine, clock: Any, ms: int) -> None:
    """Time passes, and the writer has looked at it."""
    clock.advance(ms)
    for _ in range(3):  # one that was set is believed in, and gone by, in the groups after it was noticed
        settle(engine)


def to_the_minute(clock: Any, minutes: int = 1) -> int:
    """Move a clock to the next time that is a whole number of ``minutes``; that time."""
    step = minutes * MINUTE
    clock.advance(step - clock.now_ms() % step)
    now: int = clock.now_ms()
    return now


def iso(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).isoformat()


Step = Callable[[], None]
