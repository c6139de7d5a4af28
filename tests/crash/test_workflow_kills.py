"""Workflows through ``kill -9``: three hundred that run while the process is killed again and again come to their right end."""

from __future__ import annotations

import os
import random
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.api import everything_ended
from tests.crash import journal
from tests.invariants import all_ended, check_invariants, read
from tests.servers import Server

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]

WORKFLOWS = 300
ROUNDS = int(os.environ.get("CRASH_ROUNDS", "30")) // 3
GIVEN = {"journal": "${input.journal}", "ms": 20}
NESTED: dict[str, list[dict[str, Any]]] = {
    "good": [{"name": "a", "task": "plain", "payload": GIVEN}, {"name": "b", "task": "flaky", "payload": GIVEN}],
    "twice": [
        {"name": "x", "workflow": "good", "input": "${input}"},
        {"name": "y", "workflow": "good", "input": "${input}"},
    ],
    "bad": [{"name": "a", "task": "plain", "payload": GIVEN}, {"name": "b", "task": "hopeless", "payload": GIVEN}],
}
"""Kept definitions that are steps of others."""
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)


def steps_of(rng: random.Random, runs_file: Path) -> tuple[list[dict[str, Any]], str]:
    """Steps, and how the workflow must end."""

    def step(name: str, task: str = "plain", **fields: Any) -> dict[str, Any]:
        ms: Any = rng.randrange(60)
        return {"name": name, "task": task, "payload": {"journal": str(runs_file), "ms": ms}, **fields}

    def nested(name: str) -> dict[str, Any]:
        return {"name": name, "workflow": name, "input": {"journal": str(runs_file)}}

    shape = rng.randrange(8)
    if shape == 0:
        return [step(f"s{n}") for n in range(4)], "completed"
    if shape == 1:
        middle = [step(f"m{n}", needs=["first"]) for n in range(3)]
        last = step("last", needs=[one["name"] for one in middle])
        last["payload"]["ms"] = "${steps.first}"
        return [step("first", needs=[]), *middle, last], "completed"
    if shape == 2:
        return [step("first"), step("skipped", when="${steps.first} > 100"), step("flaky", "flaky")], "completed"
    if shape == 3:
        return [step("first"), step("bad", "hopeless"), step("never")], "failed"
    if shape == 4:
        each = step("each", for_each=[rng.randrange(60) for _ in range(4)], max_parallel=2)
        each["payload"]["ms"] = "${item}"
        return [each, step("last", when="${steps.each.3} >= 0")], "completed"
    if shape == 5:
        return [step("first"), nested("twice"), step("last")], "completed"
    if shape == 6:
        return [nested("bad"), step("never")], "failed"
    undo = {"task": "plain", "payload": {"journal": str(runs_file), "ms": "${output}"}}
    return [step("one", compensate=undo), step("two", compensate=undo), step("bad", "hopeless")], "failed"


def test_workflows_reach_their_right_end_whenever_the_process_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    pause = threading.Event()  # never set: a wait that can be interrupted
    runs_file = tmp_path / "journal"
    wanted: dict[str, str] = {}
    undoes: dict[str, int] = {}
    with Server(tmp_path, {"journal.py": journal.TASKS}, workers=4) as server:
        with server.client() as http:
            for name, kept in NESTED.items():
                answer = http.put(f"/api/v1/workflow-definitions/{name}", json={"steps": kept})
                assert answer.status_code == 201, answer.text
            for n in range(WORKFLOWS):
                steps, end = steps_of(rng, runs_file)
                answer = http.post(
                    "/api/v1/workflows", json={"name": "flow", "steps": steps, "idempotency_key": f"w{n}"}
                )
                assert answer.status_code == 201, answer.text
                wanted[answer.json()["id"]] = end
                undoes[answer.json()["id"]] = sum("compensate" in step for step in steps)
        for _ in range(ROUNDS):
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
        ended = dict(connection.execute("SELECT id, state FROM workflows"))
        crashes = dict(connection.execute(
            "WITH RECURSIVE inside (outermost, number) AS (SELECT id, number FROM workflows WHERE parent IS NULL UNION ALL "
            "SELECT i.outermost, c.number FROM inside i JOIN steps s ON s.workflow = i.number "
            "JOIN workflows c ON c.parent = s.job) "
            "SELECT i.outermost, max(j.crashes) FROM inside i JOIN steps s ON s.workflow = i.number JOIN jobs j ON j.seq = s.job "
            "GROUP BY 1"
        ))  # fmt: skip
        twice = list(
            connection.execute("SELECT workflow, idx, name, role FROM steps GROUP BY 1, 2, 3, 4 HAVING count(*) > 1")
        )
        undone = dict(connection.execute(
            "SELECT w.id, count(*) FROM steps u JOIN workflows w ON w.number = u.workflow JOIN jobs j ON j.seq = u.job "
            "WHERE u.role = 'undo' AND j.state = 'completed' GROUP BY 1"
        ))  # fmt: skip
        empty = list(connection.execute(
            "SELECT j.id FROM steps s JOIN jobs j ON j.seq = s.job WHERE j.state = 'completed' AND j.result IS NULL"
        ))  # fmt: skip
        started = list(connection.execute(
            "SELECT parent FROM workflows WHERE parent IS NOT NULL GROUP BY 1 HAVING count(*) > 1"
        ))  # fmt: skip
    with capsys.disabled():
        print(
            f"\nseed {SEED}: {WORKFLOWS} workflows, {ROUNDS} kills, {sum(map(bool, crashes.values()))} with a crash under them"
        )
    assert (twice, empty, started) == ([], [], [])
    assert any(crashes.values()), "no kill came while a step ran"
    for workflow, end in wanted.items():
        if crashes[workflow] < 3:
            assert ended[workflow] == end, workflow
            assert undone.get(workflow, 0) == undoes[workflow], workflow
