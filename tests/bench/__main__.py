"""``python -m tests.bench [NAME …]``: the figures that the README quotes, on this machine.

Each is a ratio to a calibration measured in the same run, A and B in turn, medians of three: these machines have two noisy
cores, and the load generator is on them too. What a figure is to reach stands beside it; nothing here passes or fails.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from rich.console import Console
from rich.table import Table

from miniflow import db, statements
from miniflow.ids import uuid7
from tests.bench import raw

ROOT = Path(__file__).resolve().parents[2]
SINGLE = b'{"task":"noop","payload":{"i":1}}'
BATCH = b"[" + b",".join([SINGLE] * 1000) + b"]"
ROUNDS = 3

Row = tuple[str, str, str, str]


def python(*args: str, data: bytes = b"") -> str:
    done = subprocess.run(
        [sys.executable, "-m", *args], input=data, capture_output=True, cwd=ROOT, timeout=600, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(args)} failed:\n{done.stderr.decode()}")
    return done.stdout.decode()


def load(method: str, url: str, requests: int, connections: int, body: bytes = b"") -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(
        python("tests.bench.load", method, url, str(requests), str(connections), data=body)
    )
    bad = {status: n for status, n in figures["statuses"].items() if not status.startswith("2")}
    if bad:
        raise SystemExit(f"{method} {url}: answers {bad}")
    return figures


@contextlib.contextmanager
def server(path: str, *, workers: int) -> Iterator[tuple[str, psutil.Process, float]]:
    """A server on ``path``: its URL, its process, and the seconds until it was ready."""
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.server", path, str(ROOT / "tasks"), str(workers)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    try:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        if not url:
            raise SystemExit("the server did not start")
        yield url, psutil.Process(child.pid), time.perf_counter() - started
    finally:
        child.terminate()
        child.wait(30)


def fresh(folder: str) -> str:
    return os.path.join(folder, f"{uuid7()}.db")


def pairs(a: Callable[[], float], b: Callable[[], float]) -> tuple[float, float, float]:
    """Medians of A and B, and the median of A/B pair by pair."""
    found = [(a(), b()) for _ in range(ROUNDS)]
    return (
        statistics.median(x for x, _ in found),
        statistics.median(y for _, y in found),
        statistics.median(x / y for x, y in found),
    )


def single_submits(folder: str) -> list[Row]:
    with server(fresh(folder), workers=0) as (url, _, _):
        load("POST", f"{url}/api/v1/jobs", 5_000, 64, SINGLE)
        a, b, ratio = pairs(
            lambda: load("POST", f"{url}/api/v1/jobs", 30_000, 64, SINGLE)["per_second"],
            lambda: load("POST", f"{url}/empty", 40_000, 64, SINGLE)["per_second"],
        )
    return [
        (
            "single submits over HTTP, 64 connections",
            f"{a:,.0f}/s",
            f"{ratio:.2f} of an empty ASGI route ({b:,.0f}/s)",
            "0.55",
        )
    ]


def batch_submits(folder: str) -> list[Row]:
    with server(fresh(folder), workers=0) as (url, _, _):
        load("POST", f"{url}/api/v1/jobs/batch", 10, 4, BATCH)
        a, b, ratio = pairs(
            lambda: load("POST", f"{url}/api/v1/jobs/batch", 100, 4, BATCH)["per_second"] * 1000,
            lambda: raw.insert_rows(fresh(folder), 100_000),
        )
    return [
        ("batch submits of 1,000 over HTTP", f"{a:,.0f} jobs/s", f"{ratio:.2f} of raw bulk insert ({b:,.0f}/s)", "0.40")
    ]


def drain(folder: str) -> list[Row]:
    def raw_drain() -> float:
        path = fresh(folder)
        raw.insert_rows(path, 100_000)
        return raw.claim_and_complete(path)

    a, b, ratio = pairs(lambda: float(python("tests.bench.drain", fresh(folder), "100000", "4")), raw_drain)
    return [
        (
            "draining 100,000 no-op jobs, results stored",
            f"{a:,.0f} jobs/s",
            f"{ratio:.2f} of raw claim-and-complete ({b:,.0f}/s)",
            "0.35",
        )
    ]


def latency(folder: str) -> list[Row]:
    samples = []
    with server(fresh(folder), workers=4) as (url, _, _):
        target = urlsplit(url)
        client = http.client.HTTPConnection(target.hostname or "", target.port)
        for _ in range(1_000):
            started = time.perf_counter()
            client.request("POST", "/api/v1/jobs", SINGLE)
            job = json.loads(client.getresponse().read())
            client.request("GET", f"/api/v1/jobs/{job['id']}?wait=5")
            assert json.loads(client.getresponse().read())["status"] == "completed"
            samples.append((time.perf_counter() - started) * 1000)
            time.sleep(0.005)  # an idle server, not one under load
    samples = sorted(samples[100:])
    p50, p99 = samples[len(samples) // 2], samples[int(len(samples) * 0.99)]
    return [
        (
            "submit to completed, idle server",
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms",
            "two requests of a client included",
            "5 and 20 ms",
        )
    ]


def history(folder: str) -> list[Row]:
    """Claim, get and first list page: with 1,000 finished jobs in the file, and with 1,000,000."""
    found = {n: _costs(folder, n) for n in (1_000, 1_000_000)}
    rows: list[Row] = []
    for name in ("claim", "get", "first list page"):
        small, large = found[1_000][name], found[1_000_000][name]
        rows.append(
            (
                f"{name} with 1,000,000 finished jobs",
                f"{large:.3f} ms",
                f"{large / small:.2f} of that with 1,000 ({small:.3f} ms)",
                "2",
            )
        )
    return rows


def _costs(folder: str, finished: int) -> dict[str, float]:
    path = fresh(folder)
    _fill(path, finished)
    database = db.open_writer(path)
    claims = []
    run = database.connection.execute
    for lease in range(1, 301):
        started = time.perf_counter()
        run("BEGIN IMMEDIATE")
        run(statements.CLAIM_QUEUED_OF_ONE_QUEUE, (lease, "default", 1))
        run(statements.CLAIMED_BY_LEASE, (lease,)).fetchall()
        run("COMMIT")
        claims.append((time.perf_counter() - started) * 1000)
    some = run("SELECT id FROM jobs WHERE state = 'completed' ORDER BY seq LIMIT 1 OFFSET 500").fetchall()[0][0]
    database.close()
    with server(path, workers=0) as (url, _, _):
        load("GET", f"{url}/api/v1/jobs/{some}", 200, 1)
        get = load("GET", f"{url}/api/v1/jobs/{some}", 2_000, 1)["p50_ms"]
        page = load("GET", f"{url}/api/v1/jobs?status=completed", 500, 1)["p50_ms"]
    return {"claim": statistics.median(claims), "get": get, "first list page": page}


def _fill(path: str, finished: int) -> None:
    """``finished`` completed jobs and 1,000 queued ones, through the same statements as the program's."""
    raw.insert_rows(path, finished, batch=1_000)
    raw.claim_and_complete(path, group=5_000)
    raw.insert_rows(path, 1_000)


def idle(folder: str) -> list[Row]:
    with server(fresh(folder), workers=4) as (_, process, ready_s):
        time.sleep(2)
        process.cpu_percent()
        time.sleep(10)
        cpu, memory = process.cpu_percent(), process.memory_info().rss / 1e6
    return [
        ("idle: processor", f"{cpu:.2f} % of a core", "over 10 s", "1 %"),
        ("idle: memory", f"{memory:.0f} MB", "resident", "90 MB"),
        ("ready after the start", f"{ready_s:.2f} s", "Python's own start included", "2 s"),
    ]


FIGURES = {f.__name__: f for f in (single_submits, batch_submits, drain, latency, history, idle)}


def main() -> None:
    names = sys.argv[1:] or list(FIGURES)
    console = Console(width=150)
    table = Table("what", "figure", "against", "to reach")
    with tempfile.TemporaryDirectory() as folder:
        console.print(
            f"one durable commit: {raw.fsync_ms(fresh(folder)):.2f} ms · {os.cpu_count()} cores · Python {sys.version.split()[0]}"
        )
        for name in names:
            with console.status(name):
                for row in FIGURES[name](folder):
                    table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
