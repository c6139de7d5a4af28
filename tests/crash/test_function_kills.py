"""Durable functions through ``kill -9``: three hundred that run while the process is killed again and again come to their right
end, and what a step returned is recorded once."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from tests.api import everything_ended
from tests.invariants import all_ended, check_invariants, read
from tests.servers import Server

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]

RUNS = 300
ROUNDS = int(os.environ.get("CRASH_ROUNDS", "30")) // 3
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)

FUNCTIONS = '''
import os
import time
from typing import Any

from miniflow import NonRetryable, StepFailed, WorkflowContext, current_job, current_step, workflow


def note(journal: str, ms: int, fails: int = 0) -> dict[str, Any]:
    """One line for each time that a step has really run, in one write: a process that dies leaves whole lines."""
    step = current_step()
    time.sleep(ms / 1000)
    line = f"{step.key} {step.attempt} {os.getpid()}\\n".encode()
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, line)
    os.close(file)
    if fails < 0:
        raise NonRetryable("never")
    if step.attempt <= fails:
        raise RuntimeError("not yet")
    return {"attempt": step.attempt, "pid": os.getpid()}


@workflow
def chain(ctx: WorkflowContext, journal: str, ms: int) -> Any:
    return [ctx.step(note, journal, ms, name=f"s{n}") for n in range(4)]


@workflow
def fan(ctx: WorkflowContext, journal: str, ms: int) -> Any:
    found = ctx.gather(*[ctx.defer(note, journal, ms) for _ in range(4)], limit=2)
    return [*found, ctx.step(note, journal, 0, name="last")]


def book(journal: str, ms: int) -> dict[str, Any]:
    """As note, and a row in a table of its own."""
    with current_job().transaction() as db:
        db.execute("CREATE TABLE IF NOT EXISTS bookings (key TEXT)")
        db.execute("INSERT INTO bookings VALUES (?)", (current_step().key,))
    return note(journal, ms)


@workflow
def booked(ctx: WorkflowContext, journal: str, ms: int) -> Any:
    return [ctx.step(note, journal, ms), ctx.step(book, journal, ms // 10), ctx.step(note, journal, 0)]


@workflow
def flaky(ctx: WorkflowContext, journal: str, ms: int) -> Any:
    return [ctx.step(note, journal, ms, 2, max_retries=30, retry=[0.02]), ctx.step(note, journal, 0)]


@workflow
def nap(ctx: WorkflowContext, journal: str, ms: int) -> Any:
    first = [ctx.step(note, journal, 0), ctx.uuid().hex]
    ctx.sleep(ms / 30)
    return [*first, ctx.step(note, journal, ms)]


@workflow
def paid(ctx: WorkflowContext, journal: str, ms: int) -> Any:
    return [ctx.step(note, journal, ms), ctx.wait_event("paid"), ctx.step(note, journal, 0)]


@workflow
def parent(ctx: WorkflowContext, journal: str, ms: int) -> Any:
    given = {"journal": journal, "ms": ms}
    return ctx.gather(ctx.spawn(chain, given), ctx.spawn(fan, given), ctx.defer(note, journal, ms))


@workflow
def mixed(ctx: WorkflowContext, journal: str, ms: int) -> Any:
    return ctx.spawn("kept", {"journal": journal, "ms": ms}).result()


@workflow
def undone(ctx: WorkflowContext, journal: str, ms: int) -> Any:
    ctx.step(note, journal, ms)
    try:
        ctx.step(note, journal, 0, -1, name="bad")
    except StepFailed:
        ctx.step(note, journal, ms, name="undo")
        raise
'''
SHAPES = ("chain", "fan", "flaky", "booked", "nap", "paid", "parent", "mixed", "undone")


def test_durable_functions_reach_their_right_end_whenever_the_process_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    pause = threading.Event()  # never set: a wait that can be interrupted
    journal = tmp_path / "journal"
    runs: dict[str, str] = {}
    with Server(tmp_path, {"functions.py": FUNCTIONS}, workers=4) as server:
        with server.client() as http:
            inner = {"name": "inner", "workflow": "chain", "input": "${input}"}
            kept = {"steps": [inner], "output": "${steps.inner}"}
            assert http.put("/api/v1/workflow-definitions/kept", json=kept).status_code == 201
            for n in range(RUNS):
                shape = SHAPES[n % len(SHAPES)]
                given = {"journal": str(journal), "ms": rng.randrange(60)}
                body = {"workflow": shape, "input": given, "idempotency_key": f"r{n}"}
                answer = http.post("/api/v1/workflows", json=body)
                assert answer.status_code == 201, answer.text
                runs[answer.json()["id"]] = shape
        unpaid = [run for run, shape in runs.items() if shape == "paid"]
        rng.shuffle(unpaid)
        for left in range(ROUNDS, 0, -1):
            with server.client() as http:
                for run in [unpaid.pop() for _ in range(-(-len(unpaid) // left))]:
                    sent = http.post(f"/api/v1/workflows/{run}/events", json={"name": "paid", "payload": run})
                    assert sent.status_code == 201, sent.text
            pause.wait(rng.uniform(0.05, 0.5))
            server.kill9()
            check_invariants(server.db)
            server.start()
        with server.client() as http:
            everything_ended(http, stalled_s=30)
        assert server.terminate() == 0, server.output()

    check_invariants(server.db, stopped=True)
    all_ended(server.db)
    with closing(read(server.db)) as connection:
        ends = {
            run: (state, error, result, crashes)
            for run, state, error, result, crashes in connection.execute(
                "SELECT w.id, w.state, w.error, j.result, j.crashes FROM workflows w "
                "JOIN steps s ON s.workflow = w.number JOIN jobs j ON j.seq = s.job"
            )
        }
        recorded = {
            f"{run}-{idx}": (name, state, attempts, msgspec.json.decode(output) if output else None)
            for run, idx, name, state, attempts, output in connection.execute(
                "SELECT w.id, c.idx, c.name, c.state, c.attempts, c.output FROM checkpoints c "
                "JOIN workflows w ON w.number = c.workflow WHERE c.kind = 'step'"
            )
        }
        bookings = sorted(key for (key,) in connection.execute("SELECT key FROM bookings"))
    lines = [line.split() for line in journal.read_text("utf-8").splitlines()]
    last = {key: (int(attempt), int(pid)) for key, attempt, pid in lines}
    times = Counter(key for key, *_ in lines)
    given_up = [run for run, (_, error, _, _) in ends.items() if error is not None and "third time" in error]
    with capsys.disabled():
        crashed, again = sum(bool(crashes) for *_, crashes in ends.values()), sum(n > 1 for n in times.values())
        print(
            f"\nseed {SEED}: {len(ends)} runs, {ROUNDS} kills, {crashed} with a crash under them, {len(given_up)} given up after "
            f"three; {len(recorded)} steps recorded, {again} of them run more than once"
        )
    assert len(ends) == RUNS + 2 * sum(shape in ("parent", "mixed") for shape in runs.values()), (
        "a run was spawned twice, or not at all"
    )
    assert any(crashes for *_, crashes in ends.values()), "no kill came while a function ran"
    assert len(given_up) < RUNS / 20
    # Of one that was given up the last crash may have come between the begin of a step and its record.
    unsure = {key for key in recorded.keys() | last.keys() if key.rpartition("-")[0] in given_up}
    assert recorded.keys() - unsure == last.keys() - unsure
    for key, (name, state, attempts, output) in recorded.items():
        if state == "completed":
            assert (output["attempt"], output["pid"]) == last[key], f"{key} {name} ran again when it was recorded"
        assert key in unsure or attempts >= last[key][0], key
    assert bookings == sorted(
        key for key, (name, state, *_) in recorded.items() if (name, state) == ("book", "completed")
    )
    for run, shape in runs.items():
        state, error, result, _ = ends[run]
        if run in given_up:
            continue
        assert state == ("failed" if shape == "undone" else "completed"), (run, shape, error)
        if shape == "undone":
            assert error == "StepFailed: step bad failed: NonRetryable: never", run
            assert [recorded[f"{run}-{n}"][:2] for n in (0, 1, 2)] == [
                ("note", "completed"),
                ("bad", "failed"),
                ("undo", "completed"),
            ]
        elif shape == "chain":
            assert msgspec.json.decode(result) == [recorded[f"{run}-{n}"][3] for n in range(4)], run
        elif shape == "paid":
            assert msgspec.json.decode(result)[1] == run
