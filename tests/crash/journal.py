"""Tasks that write each of their runs into a file beside the database: what really happened, whatever the database says."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

TASKS = '''
import asyncio
import os
import pathlib
import signal
import time

from miniflow import current_job, task


def note(journal: str, what: str) -> None:
    """One line, in one write: a process that dies leaves whole lines."""
    line = f"{what} {os.getpid()} {current_job().job_id}\\n".encode()
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, line)
    os.close(file)


@task
def plain(journal: str, ms: int = 0) -> int:
    note(journal, "begin")
    time.sleep(ms / 1000)
    note(journal, "end")
    return ms


@task
async def coroutine(journal: str, ms: int = 0) -> int:
    note(journal, "begin")
    await asyncio.sleep(ms / 1000)
    note(journal, "end")
    return ms


@task(max_retries=8, retry=[0.02])
def flaky(journal: str, ms: int = 0) -> int:
    note(journal, "begin")
    time.sleep(ms / 1000)
    if current_job().attempt < 3:
        raise RuntimeError("not yet")
    note(journal, "end")
    return ms


@task(max_retries=1, retry=[0.02])
def hopeless(journal: str, ms: int = 0) -> None:
    note(journal, "begin")
    time.sleep(ms / 1000)
    raise RuntimeError("never")


@task
def hold(journal: str, gate: str) -> str:
    note(journal, "begin")
    while not pathlib.Path(gate).exists():
        current_job().check_cancelled()
        time.sleep(0.01)
    note(journal, "end")
    return "let go"


@task
def deaf(journal: str, gate: str) -> str:
    note(journal, "begin")
    while not pathlib.Path(gate).exists():
        try:
            time.sleep(0.01)
        except BaseException:  # what a bare except in a library does
            pass
    note(journal, "end")
    return "let go"


@task
async def hold_async(journal: str, gate: str) -> str:
    note(journal, "begin")
    while not pathlib.Path(gate).exists():
        await asyncio.sleep(0.01)
    note(journal, "end")
    return "let go"


@task
def poison(journal: str, how: str) -> None:
    note(journal, "begin")
    if how == "exit":
        os._exit(0)
    if how == "abort":
        os.abort()
    os.kill(os.getpid(), signal.SIGKILL)


@task
async def poison_async(journal: str) -> None:
    note(journal, "begin")
    os.kill(os.getpid(), signal.SIGKILL)
'''


class Run(NamedTuple):
    what: str  # begin or end
    pid: int
    job_id: str


def read(journal: Path) -> list[Run]:
    """The runs in their order."""
    if not journal.exists():
        return []
    found = (line.split() for line in journal.read_text("utf-8").splitlines())
    return [Run(what, int(pid), job_id) for what, pid, job_id in found]


def begins(runs: list[Run]) -> Counter[str]:
    """How often each job was begun."""
    return Counter(run.job_id for run in runs if run.what == "begin")


def pids_of(runs: list[Run]) -> dict[str, list[int]]:
    """The processes that began each job, in order."""
    found: dict[str, list[int]] = defaultdict(list)
    for run in runs:
        if run.what == "begin":
            found[run.job_id].append(run.pid)
    return found
