"""Tasks that do what no task should, each in its own way."""

# ruff: noqa: ASYNC240, ASYNC251, SIM115 - that is what they are here for

import asyncio
import datetime as dt
import math
import os
import pathlib
import shutil
import sqlite3
import sys
import threading
import time
from typing import Any

from miniflow import RetryAfter, current_job, errors, task

once = task(max_retries=0)


class OfItsOwn(BaseException):
    pass


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("broken")

    def __repr__(self) -> str:
        raise RuntimeError("broken, too")


def deep(levels: int) -> list[Any]:
    inside: list[Any] = []
    for _ in range(levels):
        inside = [inside]
    return inside


def circular() -> list[Any]:
    own: list[Any] = []
    own.append(own)
    return own


def endless(n: int) -> int:
    return endless(n + 1) + 1


def circular_cause() -> Exception:
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    return a


RAISED: dict[str, Any] = {
    "value_error": lambda: ValueError("plain"),
    "no_text": lambda: ValueError(),
    "half_a_surrogate": lambda: ValueError("name \ud800 of a file"),
    "nul": lambda: ValueError("a\0b"),
    "ten_megabytes": lambda: ValueError("x" * 10_000_000),
    "no_str": lambda: Silent(),
    "a_group": lambda: ExceptionGroup("several", [ValueError("one"), TypeError("two")]),
    "circular_cause": circular_cause,
    "stop_iteration": lambda: StopIteration(5),
    "memory_error": lambda: MemoryError(),
    "sys_exit": lambda: SystemExit(0),
    "sys_exit_with_text": lambda: SystemExit("good bye"),
    "keyboard_interrupt": lambda: KeyboardInterrupt(),
    "generator_exit": lambda: GeneratorExit(),
    "of_its_own": lambda: OfItsOwn("mine"),
    "a_base_group": lambda: BaseExceptionGroup("several", [KeyboardInterrupt()]),
    "cancelled_error": lambda: asyncio.CancelledError(),
    "our_timeout": lambda: errors.JobTimeout("as if"),
    "our_return": lambda: errors.JobReturned("as if"),
    "our_store_closed": lambda: errors.StoreClosed("as if"),
    "retry_in_nan": lambda: RetryAfter(math.nan),
    "retry_in_infinity": lambda: RetryAfter(math.inf),
    "retry_in_the_past": lambda: RetryAfter(-5),
}

RETURNED: dict[str, Any] = {
    "object": lambda: object(),
    "function": lambda: len,
    "generator": lambda: (n for n in range(3)),
    "circular": circular,
    "deep": lambda: deep(100_000),
    "half_a_surrogate": lambda: "\ud800",
    "key_of_two": lambda: {(1, 2): 3},
    "twelve_megabytes": lambda: "x" * 12_000_000,
    "context": lambda: current_job(),
    "exception": lambda: ValueError("not raised"),
    "set": lambda: {5},
    "nan": lambda: [math.nan, math.inf, -math.inf],
    "bytes": lambda: b"abc",
    "big": lambda: 2**100,
    "date": lambda: dt.date(2026, 1, 31),
    "nul": lambda: "a\0b",
    "ten_megabytes": lambda: "x" * 10_000_000,
}


@once
def raising(what: str) -> None:
    raise RAISED[what]()


@once
async def raising_async(what: str) -> None:
    await asyncio.sleep(0)
    raise RAISED[what]()


@once
def returning(what: str) -> Any:
    return RETURNED[what]()


@once
async def returning_async(what: str) -> Any:
    return RETURNED[what]()


@once
def recursing() -> int:
    return endless(0)


@once
def exiting() -> None:
    sys.exit(3)


@once
def printing(megabytes: int, gate: str) -> int:
    """So much, and more until the file ``gate`` is there."""
    line = "x" * 1023
    for _ in range(megabytes * 1024):
        print(line)
    while not pathlib.Path(gate).exists():
        print(line)
    return megabytes


@once
def logging_much(lines: int) -> int:
    job, line = current_job(), "x" * 1000
    for _ in range(lines):
        job.log(line)
    return lines


@once
def logging_strange() -> str:
    job = current_job()
    job.log("half \ud800 a pair")
    job.log("nul \0 inside")
    job.log("x" * 1_000_000)
    job.progress(1, 2, "half \ud800 a pair")
    return "logged"


@once
def progressing_strange() -> str:
    job = current_job()
    for done, total in ((math.inf, 1), (-math.inf, None), (1e308, 1e-308), (0, 0), (5, None)):
        job.progress(done, total)
    return "progressed"


# ------------------------------------------------------------------------------------------------- past their time


@once
def spinning(started: str = "") -> None:
    if started:
        pathlib.Path(started).touch()
    while True:
        pass


@once
def deaf(gate: str, started: str = "") -> str:
    """Swallows whatever tells it to stop, until the file ``gate`` is there."""
    if started:
        pathlib.Path(started).touch()
    while not pathlib.Path(gate).exists():
        try:
            time.sleep(0.01)
        except BaseException:  # what a bare except in a library does
            pass
    return "too late"


@once
def deaf_in_c(seconds: float) -> str:
    time.sleep(seconds)
    return "too late"


@once
async def deaf_async(gate: str) -> str:
    while not pathlib.Path(gate).exists():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            pass
    return "too late"


@once
async def blocking_the_loop(seconds: float) -> str:
    time.sleep(seconds)
    return "too late"


@once
async def waiting_for_ever() -> None:
    await asyncio.Event().wait()


@once
async def stopping_the_loop() -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    return "stopped"


@once
async def leaving_a_task_behind() -> str:
    async def left_behind() -> None:
        await asyncio.sleep(3600)

    leaving_a_task_behind.kept = asyncio.get_running_loop().create_task(left_behind())  # type: ignore[attr-defined]
    return "left"


# ---------------------------------------------------------------------------------------------- arguments, threads, tasks


@task(max_retries=1, retry=[0])
def spoiling(payload: dict[str, Any]) -> dict[str, Any]:
    """Fails after it has spoilt its payload; the second attempt must see it as it was sent."""
    if current_job().attempt == 2:
        return payload
    payload["list"].clear()
    payload.clear()
    del payload
    raise ValueError("spoilt")


@once
def starting_a_thread(gate: str, daemon: bool) -> str:
    job = current_job()

    def outlives() -> None:
        while not pathlib.Path(gate).exists():
            time.sleep(0.01)
        job.log("said after the end")
        job.progress(1, 2)

    threading.Thread(target=outlives, daemon=daemon).start()
    return "the thread goes on"


@once
def printing_without_end(started: str) -> None:
    pathlib.Path(started).touch()
    while True:
        try:
            while True:
                print("x" * 1000)
        except BaseException:  # does not want to stop
            pass


@task
def child(n: int) -> int:
    return n * 10


@task
def parent(n: int) -> list[str]:
    return [child.submit(n=m) for m in range(n)]


@task
async def parent_async(n: int) -> list[str]:
    return [child.submit(n=m) for m in range(n)]


@once
def calling_wrongly() -> Any:
    return child.submit(m=1)


# ------------------------------------------------------------------------------------------------------- the live file

OPENED: dict[str, Any] = {
    "sqlite3": lambda db, _: sqlite3.connect(db).execute("SELECT 1").fetchall(),
    "sqlite3_uri": lambda db, _: sqlite3.connect(f"file:{db}?mode=ro", uri=True).execute("SELECT 1").fetchall(),
    "open": lambda db, _: open(db, "rb").read(1),
    "open_to_write": lambda db, _: open(db, "wb"),
    "open_bytes": lambda db, _: open(os.fsencode(db), "rb").read(1),
    "os_open": lambda db, _: os.open(db, os.O_RDONLY),
    "path": lambda db, _: pathlib.Path(db).read_bytes(),
    "copy": lambda db, folder: shutil.copy(db, os.path.join(folder, "copy.db")),
    "wal": lambda db, _: open(db + "-wal", "rb").read(1),
    "shm": lambda db, _: open(db + "-shm", "rb").read(1),
    "relative": lambda db, _: open(os.path.relpath(db), "rb").read(1),
    "link": lambda db, folder: open(linked(db, folder), "rb").read(1),
    "sqlite3_link": lambda db, folder: sqlite3.connect(linked(db, folder)),
    "around": lambda db, _: open(os.path.join(os.path.dirname(db), "logs", "..", os.path.basename(db)), "rb").read(1),
}


def linked(db: str, folder: str) -> str:
    link = os.path.join(folder, "link")
    if not os.path.islink(link):
        os.symlink(db, link)
    return link


@once
def opening(how: str, db: str, folder: str) -> str:
    OPENED[how](db, folder)
    return "opened"


@task
def quick(n: int = 0) -> int:
    return n


@task
async def quick_async(n: int = 0) -> int:
    return n
