"""Pipelines, chords and tasks for errors of huey's interface under ``kill -9``: nothing is there by half, nothing is forgotten.

A round starts the server, has tasks enqueue pipelines, chords and failures, and kills it at a random moment: between two steps,
between the last member of a chord and its callback, between an error and what is to be done about it. A look into the file after
each kill must show the same as at the end.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.api import everything_ended, submit
from tests.invariants import all_ended, check_invariants, read
from tests.servers import Server

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "8"))
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
MEMBERS = 4
TASKS = f"""
import random
import time

from huey.api import chord
from miniflow import huey


def work():
    time.sleep(random.uniform(0, 0.01))


@huey.task()
def first(n):
    work()
    return n


@huey.task()
def second(n):
    work()
    return n, 10


@huey.task()
def third(n, more):
    work()
    return n + more


@huey.task()
def member(n):
    work()
    return n


@huey.task()
def total(values):
    work()
    return sum(value for value in values if isinstance(value, int))


@huey.task()
def fail():
    work()
    raise ValueError("no")


@huey.task()
def after_failure():
    work()


@huey.task()
def note(error):
    work()
    return repr(error)


@huey.task(retries=3)
def launch():
    for n in range(4):
        huey.enqueue(first.s(n).then(second).then(third))
        huey.enqueue(chord([member.s(n + i) for i in range({MEMBERS})], total.s()))
        failing = fail.s()
        failing.error(note.s())
        huey.enqueue(failing.then(after_failure))
"""


def check(db: Path, *, ended: bool = False) -> Counter[tuple[str, str]]:
    """What is in the file is there as it was enqueued, and has ended as what was before it did. How many by task and state."""
    check_invariants(db)
    with closing(read(db)) as connection:
        found = list(connection.execute("SELECT task, state, result FROM jobs"))
        edges = list(
            connection.execute(
                """SELECT e.kind, p.id, p.state, c.id, c.state, c.attempt
                FROM edges e JOIN jobs p ON p.seq = e.parent JOIN jobs c ON c.seq = e.child"""
            )
        )
        callbacks = list(
            connection.execute(
                """SELECT c.result, json_group_array(p.result) FROM edges e JOIN jobs p ON p.seq = e.parent
                JOIN jobs c ON c.seq = e.child WHERE c.task = 'total' AND c.state = 'completed' GROUP BY c.seq"""
            )
        )
        pipelines = list(
            connection.execute(
                """SELECT c.result, b.payload, a.result FROM jobs c
                JOIN edges y ON y.child = c.seq JOIN jobs b ON b.seq = y.parent
                JOIN edges x ON x.child = b.seq JOIN jobs a ON a.seq = x.parent
                WHERE c.task = 'third' AND c.state = 'completed'"""
            )
        )
    tasks = Counter(task for task, *_ in found)
    assert tasks["first"] == tasks["second"] == tasks["third"], tasks
    assert tasks["member"] == MEMBERS * tasks["total"], tasks
    assert tasks["fail"] == tasks["after_failure"], tasks
    states = Counter((task, state) for task, state, _ in found)
    assert tasks["note"] == states["fail", "dead_letter"] - failed_by_crashes(db), states

    for kind, parent, parent_state, child, child_state, child_attempt in edges:
        if kind == "then" and child_attempt:
            assert parent_state == "completed", f"{child} began after {parent}, which is {parent_state}"
        if kind == "then" and ended:
            assert (parent_state == "completed") or child_state == "cancelled", (
                parent,
                parent_state,
                child,
                child_state,
            )
    for result, members in callbacks:
        assert json.loads(result) == sum(json.loads(n) for n in json.loads(members) if n is not None)
    for result, _, began_with in pipelines:
        assert json.loads(result) == json.loads(began_with) + 10
    return states


def failed_by_crashes(db: Path) -> int:
    """Dead letters of ``fail`` that three crashes of the process made: nobody was there to enqueue a task for the error."""
    with closing(read(db)) as connection:
        ((n,),) = connection.execute(
            "SELECT count(*) FROM jobs WHERE task = 'fail' AND state = 'dead_letter' AND crashes >= 3"
        )
        return int(n)


def test_what_was_enqueued_together_ends_together_whenever_the_process_is_killed(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    print("seed", SEED)
    pause = threading.Event()  # never set: a wait that can be interrupted
    cut_off = 0
    with Server(tmp_path, {"steps.py": TASKS}, workers=3) as server:
        for number in range(ROUNDS):
            if number:
                server.start()
            with server.client() as client:
                for _ in range(3):
                    submit(client, "launch")
            pause.wait(rng.uniform(0.02, 0.4))
            server.kill9()
            cut_off += sum(n for (_, state), n in check(server.db).items() if state in ("pending", "queued", "running"))
        assert cut_off > ROUNDS, "the kills came when all was done"
        server.start()
        with server.client() as client:
            everything_ended(client)
        assert server.terminate() == 0
    all_ended(server.db)
    states = check(server.db, ended=True)
    assert states["third", "completed"] > 0
    assert states["total", "completed"] > 0
    assert states["note", "completed"] > 0
