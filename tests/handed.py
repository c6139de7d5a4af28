"""Short jobs in processes, of which some are not short, or misbehave: all that is handed to a child ahead of its turn.

Each job notes its begin in a journal, as an appended line; so what ran is known, whatever became of the server or the child.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from miniflow.control import QueueChange, change_queue
from miniflow.engine import Engine
from miniflow.huey_adapter import JobsHuey
from miniflow.settings import Settings
from miniflow.states import State
from tests.engines import cancel, new_job, rows, submit_all, verb, wait_for_ends
from tests.invariants import check_invariants, read

TASKS = """
import os
import subprocess
import sys
import threading
import time

from miniflow import current_job, task


@task(executor="process", max_retries=0)
def short(n: int, kind: str, journal: str) -> int:
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{n} {time.time_ns()} {os.getpid()}\\n".encode())
    os.close(file)
    if kind == "raw":
        os.write(1, f"raw {n}\\n".encode())
    elif kind == "says":
        print("says", n)
    elif kind == "raises":
        raise ValueError(f"no {n}")
    elif kind == "exits":
        os._exit(3)
    elif kind == "slow":
        time.sleep(0.05)
    elif kind == "hangs":
        time.sleep(600)
    elif kind == "leaves":
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    elif kind == "submits":
        short.submit(n=-n, kind="plain", journal=journal)
    elif kind == "lingers":
        job = current_job()

        def talk(until=time.monotonic() + 0.2) -> None:
            while time.monotonic() < until:
                job.progress(1, 2, f"{n} " * 1_000)

        for _ in range(2):
            threading.Thread(target=talk, daemon=True).start()
        time.sleep(0.01)
        os.write(1, f"raw {n}\\n".encode() * 1_000)
    elif kind == "argues":
        current_job().progress(1, 2, f"half of {n}")
    return n


@task
def noop() -> None:
    pass
"""

ENDS = {"raises": State.DEAD_LETTER, "exits": State.DEAD_LETTER, "hangs": State.DEAD_LETTER}
"""What becomes of a kind that does not complete."""


class Began(NamedTuple):
    n: int
    at_ns: int
    pid: int


def make(folder: Path, **more: Any) -> Engine:
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / "jobs.py").write_text(TASKS)
    values: dict[str, Any] = {"workers": 1, "processes": 2, "stop_grace": 0.4} | more
    return Engine(Settings(db=str(folder / "jobs.db"), tasks=str(tasks), **values), huey=JobsHuey())


def put(engine: Engine, folder: Path, kinds: list[str], *, first: int = 1) -> list[str]:
    """One job of each kind, numbered from ``first``; their ids."""
    journal = str(folder / "journal")
    jobs = [
        new_job(
            engine,
            "short",
            {"n": first + i, "kind": kind, "journal": journal},
            **({"timeout": 0.3} if kind == "hangs" else {}),
        )
        for i, kind in enumerate(kinds)
    ]
    return [accepted.id for accepted in submit_all(engine, jobs)]


def journal(folder: Path) -> list[Began]:
    path = folder / "journal"
    if not path.exists():
        return []
    return [Began(*map(int, line.split())) for line in path.read_text().splitlines()]


def raw_lines(engine: Engine) -> list[tuple[int, str]]:
    """(number of the job in whose log it is, line) of what was written past Python."""
    sql = """
    SELECT payload ->> '$.n', message FROM logs JOIN jobs ON jobs.seq = job_seq
    WHERE message LIKE 'raw %' OR message LIKE 'says %' ORDER BY logs.id
    """
    with closing(read(engine.database.path)) as connection:
        return [(int(n), message) for n, message in connection.execute(sql)]


def stress(folder: Path, count: int, seed: int, kinds: dict[str, float], *, meddle: bool) -> None:
    """Run ``count`` jobs of which so large a part is of each kind, and check that each got what was its own. With ``meddle``
    jobs are cancelled and the queue is paused and resumed meanwhile."""
    dice = random.Random(seed)
    wanted = dice.choices([*kinds, "plain"], [*kinds.values(), 1 - sum(kinds.values())], k=count)
    engine = make(folder)
    engine.start()
    cancelled: set[str] = set()
    pauses: list[tuple[int, int]] = []
    put(engine, folder, ["plain"] * 8, first=1_000_000)  # the task is known to be short
    wait_for_ends(engine.database.path, 30)
    ids = put(engine, folder, wanted)
    if meddle:
        _meddle(engine, dice, ids, cancelled, pauses)
    wait_for_ends(engine.database.path, 120)
    engine.stop(5)
    check_invariants(engine.database.path, stopped=True, replayed=True)

    began = Counter(entry.n for entry in journal(folder))
    found = {row.id: row for row in rows(engine.database.path)}
    for n, (job_id, kind) in enumerate(zip(ids, wanted, strict=True), 1):
        row = found[job_id]
        if row.state == State.CANCELLED:
            assert job_id in cancelled
            # it may have been taken by a worker and not have got as far as its first line
            assert began[n] <= row.attempt, f"{n} ({kind}) was cancelled after {began[n]} begins of {row.attempt}"
            continue
        assert row.state == ENDS.get(kind, State.COMPLETED), f"{n} ({kind}): {row}"
        least = 0 if kind == "hangs" else 1  # its time may be over before its first line
        assert least <= began[n] <= row.attempt == 1, f"{n} ({kind}) began {began[n]} times, {row.attempt} are counted"
        if row.state == State.COMPLETED:
            assert row.result is not None
            assert json.loads(row.result) == n, "its own result"
    for owner, line in raw_lines(engine):
        assert line in (f"raw {owner}", f"says {owner}"), f"{line!r} is in the log of {owner}"
    said = {owner for owner, _ in raw_lines(engine)}
    for n, (job_id, kind) in enumerate(zip(ids, wanted, strict=True), 1):
        assert (n in said) == (kind in ("raw", "says")) or job_id in cancelled
    for since, until in pauses:  # one in each process may have been begun just before, and say so just after
        late = Counter(entry.pid for entry in journal(folder) if since < entry.at_ns < until)
        assert set(late.values()) <= {1}, f"jobs of a paused queue began: {late}"


def _meddle(
    engine: Engine, dice: random.Random, ids: list[str], cancelled: set[str], pauses: list[tuple[int, int]]
) -> None:
    for turn in range(len(ids) // 60):
        for job_id in dice.sample(ids, 5):
            cancelled.add(job_id)
            try:
                cancel(engine, job_id)
            except Exception:  # it has ended already; the states are looked at in the end
                cancelled.discard(job_id)
        if turn % 4 == 0:
            verb(engine, change_queue(engine.jobs, "default", QueueChange(paused=True)))
            since = time.time_ns()
            for _ in range(20):
                verb(engine, lambda tx: None)
            pauses.append((since, time.time_ns()))
            verb(engine, change_queue(engine.jobs, "default", QueueChange(paused=False)))
