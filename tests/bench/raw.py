"""What SQLite alone does with the same schema: the calibration that the figures are divided by.

One connection, one thread, the program's own pragmas (synchronous=FULL), nothing but apsw and JSON.
"""

from __future__ import annotations

import time

import msgspec

from miniflow import db, statements
from miniflow.ids import uuid7

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(list[list[object]]).decode


def insert_rows(path: str, rows: int, batch: int = 1000) -> float:
    """Rows a second, inserted in batches of ``batch``; the file is left with them queued."""
    database = db.open_writer(path)
    try:
        run = database.connection.execute
        seconds = 0.0
        for _ in range(0, rows, batch):
            text = encode(
                [[uuid7(), "noop", "default", 0, "queued", '{"i":1}', 3, 900_000] for _ in range(batch)]
            ).decode()
            started = time.perf_counter()
            run("BEGIN IMMEDIATE")
            run(statements.INSERT_JOBS, (text, 1, 1, 1))
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


def fsync_ms(path: str, commits: int = 200) -> float:
    """Milliseconds of one small durable commit."""
    database = db.open_writer(path)
    try:
        started = time.perf_counter()
        for n in range(commits):
            database.connection.execute(statements.META_PUT, (f"bench-{n}", n))
        return (time.perf_counter() - started) * 1000 / commits
    finally:
        database.close()
