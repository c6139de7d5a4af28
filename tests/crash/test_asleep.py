"""Ten thousand workflows asleep: they hold no worker, no lease and no memory, and an idle server does not look at them."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from miniflow.engine import Engine
from miniflow.function_intake import FunctionIntake, function_submission
from miniflow.operations import Operation
from miniflow.workflow_context import WorkflowContext
from tests.engines import Engines
from tests.functions import functions, output, send
from tests.invariants import check_invariants, read
from tests.servers import Server
from tests.waiting import wait_until

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

SLEEPERS = 10_000
IDLE_S = 3.0
STEPS_MAX = SLEEPERS // 2
"""Steps of SQLite's machine: a look at each sleeper would take more than one for each."""
TASKS = """
from miniflow import WorkflowContext, workflow


@workflow
def paid(ctx: WorkflowContext) -> str:
    return ctx.wait_event("paid")


@workflow
def nap(ctx: WorkflowContext) -> None:
    ctx.sleep(7 * 86400)
"""


def paid(ctx: WorkflowContext) -> Any:
    return ctx.wait_event("paid")


def nap(ctx: WorkflowContext) -> None:
    ctx.sleep(7 * 86400)


def put_to_sleep(engine: Engine, path: Path) -> list[str]:
    """Start them, half of each kind, and wait until all sleep; the ids of those that wait for an event."""
    intake = FunctionIntake(engine.intake)
    runs = []
    for n in range(SLEEPERS):
        new = intake.run(function_submission("paid" if n % 2 else "nap", "{}", {}))
        engine.writer.post(Operation("workflow", new))
        runs.append(new.id)

    def states() -> dict[str, int]:
        with closing(read(path)) as connection:
            return dict(connection.execute("SELECT state, count(*) FROM jobs GROUP BY 1"))

    half = SLEEPERS // 2
    wait_until(states, 60, "all to sleep", until={"pending": half, "scheduled": half}.__eq__)
    return runs[1::2]


class Watched:
    """What the writer's connection runs meanwhile."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection, self.statements, self.steps = connection, list[str](), 0

    def __enter__(self) -> Watched:
        self.connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, self._add)
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.trace_v2(0)

    def _add(self, event: dict[str, Any]) -> None:
        self.statements.append(event["sql"])
        self.steps += event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]


def cpu_s(pid: int) -> float:
    """Seconds that a process has computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100  # in ticks of USER_HZ, which is 100


def idle_cpu_s(server: Server, pause: threading.Event) -> float:
    """What a server computes in ``IDLE_S`` seconds in which nobody asks it for anything."""
    pause.wait(1)  # what it does once, after its start
    before = cpu_s(server.pid)
    pause.wait(IDLE_S)
    return cpu_s(server.pid) - before


def test_ten_thousand_workflows_asleep_cost_an_idle_server_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pause = threading.Event()  # never set: a wait that can be interrupted
    with Server(tmp_path / "empty", {"sleepers.py": TASKS}) as server:
        nothing_s = idle_cpu_s(server, pause)
        assert server.terminate() == 0, server.output()

    with Engines(tmp_path) as engines:
        engine = engines(functions(paid, nap), workers=32)
        begun = time.monotonic()
        waiting = put_to_sleep(engine, engines.path)
        took_s = time.monotonic() - begun
        wait_until(lambda: len(engine.running), 5, "nothing to run", until=lambda n: n == 0)
        with closing(read(engines.path)) as connection:
            assert connection.execute("SELECT count(*) FROM jobs WHERE lease IS NOT NULL").fetchone() == (0,)
        with Watched(engine.database.connection) as idle:
            pause.wait(IDLE_S)
        with Watched(engine.database.connection) as waking:
            send(engine, waiting[0], "paid", "hello")
            assert output(engines.path, waiting[0]) == "hello"
        engines.stop(engine)

    (tmp_path / "sleeping").mkdir()
    engines.path.rename(tmp_path / "sleeping" / "miniflow.db")
    begun = time.monotonic()
    with Server(tmp_path / "sleeping", {"sleepers.py": TASKS}) as server:
        start_s = time.monotonic() - begun
        asleep_s = idle_cpu_s(server, pause)
        with server.client() as http:
            sent = http.post(f"/api/v1/workflows/{waiting[1]}/events", json={"name": "paid", "payload": "over HTTP"})
            assert sent.status_code == 201, sent.text
            woken = http.get(f"/api/v1/workflows/{waiting[1]}", params={"wait": 10}).json()
            assert woken["output"] == "over HTTP", woken
        assert server.terminate() == 0, server.output()
    check_invariants(server.db, stopped=True)
    with capsys.disabled():
        print(
            f"\n{SLEEPERS:,} asleep after {took_s:.1f} s; idle for {IDLE_S:g} s: {len(idle.statements)} statements of the "
            f"writer, {idle.steps} steps of them; the server computed {asleep_s * 1000:.0f} ms ({nothing_s * 1000:.0f} ms with "
            f"an empty file), and was ready after {start_s:.1f} s; to wake one took {len(waking.statements)} statements, "
            f"{waking.steps} steps"
        )
    assert idle.steps < STEPS_MAX, idle.statements
    assert waking.steps < STEPS_MAX, waking.statements
    assert asleep_s <= nothing_s + 0.05 * IDLE_S
