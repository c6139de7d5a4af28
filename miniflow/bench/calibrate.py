"""What this machine can do at all: the figures that those of a benchmark are divided by.

SQLite alone with the same schema – one connection, one thread, the program's own pragmas (synchronous=FULL), nothing but apsw and
JSON – and an HTTP route that does nothing, served by uvicorn as it comes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from miniflow import db, statements
from miniflow.bench.plan import Plan
from miniflow.bench.processes import EMPTY_ROUTE, LoadProcess, empty_route_server
from miniflow.ids import uuid7
from miniflow.inserting import insert

encode = msgspec.json.Encoder().encode
decode: Callable[[Any], list[list[object]]] = msgspec.json.Decoder(list[list[object]]).decode


NOTHING = [None] * (statements.PLAIN_JOB_COLUMNS - 8)
BODY = '{"task":"noop","payload":{"i":1}}'


class Calibration(msgspec.Struct):
    empty_route_per_s: float
    bulk_insert_per_s: float
    claim_and_complete_per_s: float
    commit_ms: float


def measure(folder: Path, load: LoadProcess, *, connections: int, requests: int, rows: int) -> Calibration:
    """Some seconds: ``requests`` to the empty route over ``connections``, and ``rows`` jobs through raw SQLite."""
    path = str(fresh(folder))
    insert = insert_rows(path, rows)
    claim = claim_and_complete(path)
    with empty_route_server(folder) as server:
        plan = Plan(url=server.url, path=EMPTY_ROUTE, bodies=[BODY], requests=requests // 10, connections=connections)
        load.run(plan)  # to warm up
        empty = load.run(msgspec.structs.replace(plan, requests=requests)).per_second
    return Calibration(empty, insert, claim, commit_ms(str(fresh(folder))))


def fresh(folder: str | os.PathLike[str]) -> Path:
    """A path for a database of its own."""
    return Path(folder) / f"{uuid7()}.db"


def insert_rows(path: str, rows: int, batch: int = 1000) -> float:
    """Rows a second, inserted in batches of ``batch``; the file is left with them queued."""
    database = db.open_writer(path)
    try:
        run = database.connection.execute
        seconds = 0.0
        for _ in range(0, rows, batch):
            jobs = [[uuid7(), "noop", "default", 0, "queued", '{"i":1}', 3, 900_000, *NOTHING] for _ in range(batch)]
            started = time.perf_counter()
            run("BEGIN IMMEDIATE")
            insert(database.connection, statements.INSERT_PLAIN_JOBS, jobs, 1, 1, 1)
            run("COMMIT")
            seconds += time.perf_counter() - started
        return rows / seconds
    finally:
        database.close()


def claim_and_complete(path: str, group: int = 256) -> float:
    """Jobs a second, claimed and completed with a result, a transaction for each group."""
    database = db.open_writer(path)
    try:
        run, done, lease = database.connection.execute, 0, 0
        started = time.perf_counter()
        while True:
            lease += 1
            run("BEGIN IMMEDIATE")
            run(statements.CLAIM_QUEUED_OF_ONE_QUEUE, (lease, "default", group))
            claimed = decode(run(statements.CLAIMED_BY_LEASE, (lease,)).fetchall()[0][0])
            if not claimed:
                run("COMMIT")
                return done / (time.perf_counter() - started)
            ends = [(row[0], lease, "completed", 0, 1, "raw", '{"ok":true}', None, None, None) for row in claimed]
            run(statements.END_IF_LEASED, (encode(ends).decode(), 1, 1))
            run("COMMIT")
            done += len(claimed)
    finally:
        database.close()


def commit_ms(path: str, commits: int = 200) -> float:
    """Milliseconds of one small durable commit."""
    database = db.open_writer(path)
    try:
        started = time.perf_counter()
        for n in range(commits):
            database.connection.execute(statements.META_PUT, (f"bench-{n}", n))
        return (time.perf_counter() - started) * 1000 / commits
    finally:
        database.close()
