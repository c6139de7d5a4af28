"""``python -m tests.bench [NAME …]``: the figures that the README quotes, on this machine.

Each is a ratio to a calibration measured in the same run, A and B in turn, medians of three: these machines have two noisy
cores, and the load generator is on them too. What a figure is to reach stands beside it; nothing here passes or fails.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.table import Table

from miniflow import db, statements
from miniflow.bench import calibrate
from miniflow.bench.plan import Outcome, Plan
from miniflow.bench.processes import LoadProcess, ServerProcess, empty_route_server, server_with
from tests.bench import logs, processes, schedules

ROOT = Path(__file__).resolve().parents[2]
SINGLE = calibrate.BODY
BATCH = "[" + ",".join([SINGLE] * 1000) + "]"
THREE = json.dumps({"name": "three", "steps": [{"name": name, "task": "noop"} for name in ("a", "b", "c")]})
ROUNDS = 3

Row = tuple[str, str, str, str]


def load(url: str, requests: int, connections: int, *, method: str = "POST", body: str = "") -> Outcome:
    with LoadProcess(Path.cwd()) as generator:
        expect = 200 if method == "GET" else 201
        path = url[url.index("/", len("http://")) :]
        outcome = generator.run(
            Plan(
                url=url.removesuffix(path),
                path=path,
                method=method,
                bodies=[body],
                requests=requests,
                connections=connections,
                expect=expect,
                repeat=False,
            )
        )
    if outcome.failed or outcome.ended_early:
        raise SystemExit(f"{method} {url}: {outcome.failed} {outcome.ended_early}")
    return outcome


def p50_ms(outcome: Outcome) -> float:
    return outcome.latency.percentile_ms(50) or 0.0


@contextlib.contextmanager
def server(path: str, *, workers: int, tasks: Path = ROOT / "tasks", **more: Any) -> Iterator[ServerProcess]:
    """A server on ``path`` with the sample tasks. ``more`` are further settings."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"db": path, "tasks": str(tasks), "log_dir": folder, "log_level": "warning", "port": 0}
        with server_with(Path(folder), settings | {"workers": workers, "grace": 0.1} | more) as running:
            yield running


def fresh(folder: str) -> str:
    return str(calibrate.fresh(folder))


def pairs(a: Callable[[], float], b: Callable[[], float]) -> tuple[float, float, float]:
    """Medians of A and B, and the median of A/B pair by pair."""
    found = [(a(), b()) for _ in range(ROUNDS)]
    return (
        statistics.median(x for x, _ in found),
        statistics.median(y for _, y in found),
        statistics.median(x / y for x, y in found),
    )


def single_submits(folder: str) -> list[Row]:
    with server(fresh(folder), workers=0) as running, empty_route_server(Path(folder)) as beside:
        load(f"{running.url}/api/v1/jobs", 5_000, 64, body=SINGLE)
        load(f"{beside.url}/empty", 5_000, 64, body=SINGLE)
        a, b, ratio = pairs(
            lambda: load(f"{running.url}/api/v1/jobs", 30_000, 64, body=SINGLE).per_second,
            lambda: load(f"{beside.url}/empty", 40_000, 64, body=SINGLE).per_second,
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
    with server(fresh(folder), workers=0) as running:
        batches = f"{running.url}/api/v1/jobs/batch"
        load(batches, 10, 4, body=BATCH)
        a, b, ratio = pairs(
            lambda: load(batches, 100, 4, body=BATCH).per_second * 1000,
            lambda: calibrate.insert_rows(fresh(folder), 100_000),
        )
    return [
        ("batch submits of 1,000 over HTTP", f"{a:,.0f} jobs/s", f"{ratio:.2f} of raw bulk insert ({b:,.0f}/s)", "0.40")
    ]


def drained(path: str, jobs: int, workers: int = 4, executor: str = "thread") -> float:
    """Jobs a second, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.drain", path, str(jobs), str(workers), executor]
    return float(subprocess.run(command, cwd=ROOT, timeout=600, check=True, capture_output=True).stdout)


def drain(folder: str) -> list[Row]:
    def raw_drain() -> float:
        path = fresh(folder)
        calibrate.insert_rows(path, 100_000)
        return calibrate.claim_and_complete(path)

    a, b, ratio = pairs(lambda: drained(fresh(folder), 100_000), raw_drain)
    return [
        (
            "draining 100,000 no-op jobs, results stored",
            f"{a:,.0f} jobs/s",
            f"{ratio:.2f} of raw claim-and-complete ({b:,.0f}/s)",
            "0.35",
        )
    ]


def warm_children(folder: str) -> list[Row]:
    """The same, through children instead of threads."""
    a, b, ratio = pairs(
        lambda: drained(fresh(folder), 20_000, 2, "process"), lambda: drained(fresh(folder), 20_000, 4, "thread")
    )
    return [
        (
            "draining 20,000 no-op jobs through two warm children",
            f"{a:,.0f} jobs/s",
            f"{ratio:.2f} of the thread executor ({b:,.0f}/s)",
            "0.5",
        )
    ]


def workflow_submits(folder: str) -> list[Row]:
    """Whole workflows of three steps, against single jobs."""
    with server(fresh(folder), workers=0) as running:
        load(f"{running.url}/api/v1/workflows", 1_000, 64, body=THREE)
        load(f"{running.url}/api/v1/jobs", 5_000, 64, body=SINGLE)
        a, b, ratio = pairs(
            lambda: load(f"{running.url}/api/v1/workflows", 10_000, 64, body=THREE).per_second,
            lambda: load(f"{running.url}/api/v1/jobs", 30_000, 64, body=SINGLE).per_second,
        )
    return [
        (
            "submits of workflows of three steps, 64 connections",
            f"{a:,.0f}/s",
            f"{ratio:.2f} of single jobs ({b:,.0f}/s)",
            "0.5",
        )
    ]


def steps_run(path: str, shape: str, count: int) -> float:
    """Steps a second, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.workflows", path, shape, str(count)]
    return float(subprocess.run(command, cwd=ROOT, timeout=600, check=True, capture_output=True).stdout)


def workflow_steps(folder: str) -> list[Row]:
    """The steps of 10,000 workflows, against as many plain jobs; and what a step costs in workflows that grow."""
    a, b, ratio = pairs(lambda: steps_run(fresh(folder), "three", 10_000), lambda: drained(fresh(folder), 30_000))
    against = f"{ratio:.2f} of the drain of plain jobs ({b:,.0f}/s)"
    found = [("the steps of 10,000 workflows of three no-ops", f"{a:,.0f} steps/s", against, "0.5")]
    for shape, what in (("wide", "steps at once, and one that waits for all"), ("chain", "steps in a chain")):
        costs = []
        for count in (125, 250, 500, 1_000):
            rates = [steps_run(fresh(folder), shape, count) for _ in range(ROUNDS)]
            costs.append(1_000_000 / statistics.median(rates))
        curve = " · ".join(f"{cost:,.0f}" for cost in costs)
        found.append(
            (
                f"125, 250, 500, 1,000 {what}",
                f"{curve} µs a step",
                f"the last {costs[-1] / costs[0]:.2f} of the first",
                "2",
            )
        )
    return found


def keyed_claims(folder: str) -> list[Row]:
    """A claim of 256 jobs that have one of 1,000 concurrency keys each, and of as many without any rule."""

    def claim_us(keys: int) -> float:
        command = [sys.executable, "-m", "tests.bench.claims", fresh(folder), str(keys)]
        return float(subprocess.run(command, cwd=ROOT, timeout=600, check=True, capture_output=True).stdout)

    a, b, ratio = pairs(lambda: claim_us(1_000), lambda: claim_us(0))
    return [
        (
            "a claim with 1,000 concurrency keys",
            f"{a:.1f} µs of processor a job",
            f"{ratio:.2f} of one without rules ({b:.1f} µs)",
            "2",
        )
    ]


def processes_apart(folder: str) -> list[Row]:
    """Jobs in processes: the slot of a killed one, and reads beside four that compute."""
    tasks = processes.write_tasks(folder)
    grace = processes.GRACE_S
    with server(fresh(folder), workers=1, processes=1, stop_grace=grace, tasks=tasks) as running:
        bench = processes.Processes(running.url)
        bench.slot_free_ms(folder)
        free = sorted(bench.slot_free_ms(folder) - grace * 1000 for _ in range(11))
    with server(fresh(folder), workers=4, processes=4, tasks=tasks) as running:
        bench = processes.Processes(running.url)
        read = bench.submit("begun")
        bench.reads_ms(read)
        found = []
        for turn in range(ROUNDS):
            idle99 = bench.reads_ms(read)[1]
            gate = Path(folder) / f"gate-{turn}"
            bench.compute(gate, 4)
            found.append((bench.reads_ms(read)[1], idle99))
            gate.touch()
            time.sleep(0.5)  # they see the gate and end: the next turn begins with an idle server
    busy99, idle99 = (statistics.median(pair[i] for pair in found) for i in (0, 1))
    ratio = statistics.median(busy / idle for busy, idle in found)
    return [
        (
            "the slot of a job that is killed is free",
            f"{free[len(free) // 2]:.0f} ms after the grace",
            f"at worst {free[-1]:.0f} ms of {len(free)}",
            "200 ms",
        ),
        (
            "reads of a job beside four processes that compute",
            f"p99 {busy99:.1f} ms",
            f"{ratio:.2f} of that of an idle server ({idle99:.1f} ms)",
            "3",
        ),
    ]


def latency(folder: str) -> list[Row]:
    samples = []
    with server(fresh(folder), workers=4) as running:
        target = urlsplit(running.url)
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


def flood(folder: str) -> list[Row]:
    """A job that prints as fast as it can, and what single submits cost meanwhile."""
    with server(fresh(folder), workers=2, tasks=logs.write_tasks(folder), **logs.SETTINGS) as running:
        bench = logs.Bench(running.url)
        bench.submits_ms()
        idle50, idle99 = bench.submits_ms()
        quiet50, quiet99, _ = bench.beside("computing")
        flood50, flood99, beside = bench.beside("flooding")
        alone = statistics.median(bench.alone(3) for _ in range(ROUNDS))
    return [
        (
            "log lines of one job that prints",
            f"{alone:,.0f}/s",
            f"{beside:,.0f}/s while jobs are submitted",
            "50,000/s",
        ),
        (
            "single submits beside it",
            f"p50 {flood50:.1f} ms, p99 {flood99:.1f} ms",
            f"beside one that computes: {quiet50:.1f} and {quiet99:.1f} ms; idle: {idle50:.1f} and {idle99:.1f} ms",
            "the same",
        ),
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
    with server(path, workers=0) as running:
        jobs = f"{running.url}/api/v1/jobs"
        load(f"{jobs}/{some}", 200, 1, method="GET")
        get = p50_ms(load(f"{jobs}/{some}", 2_000, 1, method="GET"))
        page = p50_ms(load(f"{jobs}?status=completed", 500, 1, method="GET"))
    return {"claim": statistics.median(claims), "get": get, "first list page": page}


def _fill(path: str, finished: int) -> None:
    """``finished`` completed jobs and 1,000 queued ones, through the same statements as the program's."""
    calibrate.insert_rows(path, finished, batch=1_000)
    calibrate.claim_and_complete(path, group=5_000)
    calibrate.insert_rows(path, 1_000)


def idle(folder: str) -> list[Row]:
    with server(fresh(folder), workers=4) as running:
        process = running.watched
        time.sleep(2)  # its start is not to be measured
        process.cpu_percent()
        time.sleep(10)  # what is measured: doing nothing
        cpu, memory = process.cpu_percent(), process.memory_info().rss / 1e6
    return [
        ("idle: processor", f"{cpu:.2f} % of a core", "over 10 s", "1 %"),
        ("idle: memory", f"{memory:.0f} MB", "resident", "90 MB"),
        ("ready after the start", f"{running.ready_s:.2f} s", "Python's own start included", "2 s"),
    ]


def ten_thousand_schedules(folder: str) -> list[Row]:
    """All due at the same moments, while they are looked at."""
    path = fresh(folder)
    schedules.fill(path)
    with server(path, workers=4) as running, httpx.Client(base_url=running.url, trust_env=False) as client:
        time.sleep(2 * schedules.EVERY_S - time.time() % schedules.EVERY_S + 5)  # until they have fired once or twice
        looks = {
            name: schedules.look_ms(client, f"/api/v1/schedules{path}")
            for name, path in {
                "a page of 50": "?limit=50",
                "a page of 500": "?limit=500",
                "those that are paused: none": "?status=paused",
                "one": "/schedule 05000",
            }.items()
        }
    fires, p50, p99 = schedules.late_ms(path)
    return [
        *(
            (f"10,000 schedules, {name}", f"{ms:.1f} ms", "p50, a client's work included", "50 ms")
            for name, ms in looks.items()
        ),
        ("10,000 schedules due at one moment", f"p50 {p50:,.0f} ms, p99 {p99:,.0f} ms late", f"{fires:,} fires", "2 s"),
    ]


FIGURES = {
    figure.__name__: figure
    for figure in (
        single_submits, batch_submits, drain, keyed_claims, warm_children, processes_apart, latency, flood, history, idle,
        ten_thousand_schedules, workflow_submits, workflow_steps,
    )
}  # fmt: skip


def main() -> None:
    names = sys.argv[1:] or list(FIGURES)
    console = Console(width=150)
    table = Table("what", "figure", "against", "to reach")
    with tempfile.TemporaryDirectory() as folder:
        commit_ms = calibrate.commit_ms(fresh(folder))
        console.print(
            f"one durable commit: {commit_ms:.2f} ms · {os.cpu_count()} cores · Python {platform.python_version()}"
        )
        for name in names:
            with console.status(name):
                for row in FIGURES[name](folder):
                    table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
