"""Workflows of workflows while somebody cancels, pauses, resumes and retries whatever is there, and the process dies.

Each seed keeps four definitions, of which each starts those before it or a durable function that spawns them, and starts six
workflows of all that: lists, conditions, compensations, retries and bad luck. What each of them returns is known beforehand: one
that has completed has returned that, whatever happened on the way. In the end nothing fails any more, and what is retried
completes.

``NESTED_SEEDS`` is how many seeds are tried, ``NESTED_FIRST`` the first of them.
"""

from __future__ import annotations

import os
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from miniflow import current_job
from miniflow.engine import Engine
from miniflow.errors import MiniFlowError, TransitionRefused
from miniflow.registry import Registry
from miniflow.states import State
from miniflow.workflow_context import WorkflowContext
from miniflow.workflow_graph import definition_of
from tests.engines import Engines, registry_of, settle, verb
from tests.functions import functions
from tests.invariants import all_ended, check_invariants, read
from tests.waiting import wait_until
from tests.workflows import act, start

pytestmark = pytest.mark.fault

SEEDS = int(os.environ.get("NESTED_SEEDS", "28"))
FIRST = int(os.environ.get("NESTED_FIRST", "1"))
LEVELS = 4
WORKFLOWS = 6
DEEDS = 120
INPUT = {"yes": True, "no": False}

Steps = list[dict[str, Any]]


def mark_of(value: Any) -> int:
    """A short value that another one leads to."""
    return zlib.crc32(msgspec.json.encode(value, order="sorted"))


class Luck:
    """Whether what may fail does. The threads have it, so it is not the seed's."""

    def __init__(self) -> None:
        self.bad = 0.3

    def strike(self) -> None:
        if random.random() < self.bad:
            raise ValueError("bad luck")


def tasks(luck: Luck) -> Registry:
    def plain(value: Any = None, ms: int = 0) -> int:
        job = current_job()
        for _ in range(ms):
            job.check_cancelled()
            time.sleep(0.001)
        return mark_of(value)

    def fickle(value: Any = None) -> int:
        luck.strike()
        return mark_of(value)

    def around(ctx: WorkflowContext, level: int) -> int:
        before = ctx.step(fickle, level, max_retries=0)
        spawned = [ctx.spawn(f"d{one}", INPUT) for one in range(level)]
        ctx.sleep(0.002)
        return mark_of([before, ctx.gather(*spawned)])

    known = registry_of([plain, fickle])
    for spec in functions(around):
        known.add(spec)
    return known


@dataclass
class Plan:
    """What is started, and what it returns if it completes."""

    rng: random.Random
    undo: bool = field(init=False)
    kept: list[dict[str, Any]] = field(init=False)
    """The definitions d0, d1, …"""
    returns: list[Any] = field(init=False)
    """What each of them returns."""

    def __post_init__(self) -> None:
        self.undo = self.rng.random() < 0.4
        self.kept, self.returns = [], []
        for level in range(LEVELS):
            definition: dict[str, Any] = {"steps": self.steps(level)}
            outputs = self.outputs(definition["steps"])
            last = definition["steps"][-1]["name"]
            if self.rng.random() < 0.5:
                definition["output"] = f"${{steps.{last}}}"
            self.kept.append(definition)
            self.returns.append(outputs[last] if "output" in definition else outputs)

    def steps(self, level: int) -> Steps:
        """Some steps, in order or as a graph; those that are workflows are of lower levels."""
        rng, made, graph = self.rng, Steps(), self.rng.random() < 0.5
        for n in range(rng.randrange(1, 5)):
            before = [f"s{i}" for i in range(n) if not graph or rng.random() < 0.5]
            value = [n, *[f"${{steps.{name}}}" for name in before]]
            shape = rng.random()
            step: dict[str, Any] = {"name": f"s{n}"}
            if level and shape < 0.15:
                step |= {"workflow": "around", "input": {"level": rng.randrange(min(level, 2) + 1)}}
            elif level and shape < 0.45:
                step |= {"workflow": f"d{rng.randrange(level)}", "input": "${input}"}
            elif shape < 0.7:
                step |= {"task": "plain", "payload": {"value": value, "ms": rng.randrange(40)}}
            else:
                step |= {
                    "task": "fickle",
                    "payload": {"value": value},
                    "max_retries": rng.randrange(2),
                    "retry": [0.01],
                }
            if rng.random() < 0.2:
                step["for_each"] = list(range(rng.randrange(4)))
                if rng.random() < 0.5:
                    step["max_parallel"] = 1
            if rng.random() < 0.2:
                step["when"] = rng.choice(["${input.yes}", "${input.no}"])
            if self.undo and rng.random() < 0.4:
                step["compensate"] = {
                    "task": rng.choice(["plain", "fickle"]),
                    "payload": {"value": "${output}"},
                    "max_retries": 0,
                }
            if graph:
                step["needs"] = before
            made.append(step)
        return made

    def outputs(self, steps: Steps) -> dict[str, Any]:
        """What each step returns, by name."""
        found: dict[str, Any] = {}
        for n, step in enumerate(steps):
            if step.get("when") == "${input.no}":
                found[step["name"]] = None
                continue
            if step.get("workflow") == "around":
                output: Any = self.around(**step["input"])
            elif "workflow" in step:
                output = self.returns[int(step["workflow"][1:])]
            else:
                before = [found[other["name"]] for other in steps[:n] if other["name"] in step.get("needs", found)]
                output = mark_of([n, *before])
            found[step["name"]] = [output for _ in step["for_each"]] if "for_each" in step else output
        return found

    def around(self, level: int) -> int:
        """What the function returns."""
        return mark_of([mark_of(level), self.returns[:level]])


class Workflow(NamedTuple):
    """A row of workflows."""

    id: str
    state: str
    error: str | None
    paused: bool
    asked_to_stop: bool
    of: str
    """Its definition, its function, or else its name."""
    input: str


class Job(NamedTuple):
    seq: int
    id: str
    state: str


def workflows(path: Path) -> list[Workflow]:
    sql = """
    SELECT id, state, error, paused_at IS NOT NULL, cancel_requested_at IS NOT NULL, coalesce(of_definition, name), input
    FROM workflows ORDER BY number
    """
    with closing(read(path)) as connection:
        return [Workflow(*row) for row in connection.execute(sql)]


def jobs(path: Path) -> list[Job]:
    with closing(read(path)) as connection:
        return [Job(*row) for row in connection.execute("SELECT seq, id, state FROM jobs ORDER BY seq")]


class Trouble:
    """Somebody who does things to workflows and jobs; notes what was done, and to what."""

    def __init__(self, engines: Engines, known: Registry, rng: random.Random) -> None:
        self.engines, self.known, self.rng = engines, known, rng
        self.engine: Engine = engines(known, workers=3)
        self.done: list[tuple[str, str]] = []

    def some(self, deeds: int) -> None:
        deed = {
            "cancel": self.cancel, "pause": self.pause, "resume": self.resume, "retry": self.retry,
            "cancel a job": self.cancel_job, "retry a job": self.retry_job, "replay all": self.replay_all, "wait": self.wait,
        }  # fmt: skip
        often = [1, 2, 4, 4, 1, 2, 2, 2]
        for _ in range(deeds):
            (name,) = self.rng.choices(list(deed), often)
            with suppress(TransitionRefused):  # what it was meant for has gone on since
                deed[name]()
            if self.rng.random() < 0.03:
                self.crash()

    def _act(self, what: str, states: set[str], among: Callable[[Workflow], bool] = lambda _: True) -> None:
        found = [one for one in workflows(self.engines.path) if one.state in states and among(one)]
        if found:
            one = self.rng.choice(found)
            self.done.append((what, one.id))
            act(self.engine, what, one.id)

    def cancel(self) -> None:
        if self.rng.random() < 0.5:
            self._act("cancel", {"running"})

    def pause(self) -> None:
        self._act("pause", {"running"})

    def resume(self) -> None:
        self._act("resume", {"running"}, lambda one: one.paused)

    def retry(self) -> None:
        self._act("retry", {"failed", "cancelled"})

    def _verb(self, what: str, found: list[Job]) -> None:
        if found:
            one = self.rng.choice(found)
            self.done.append((f"{what} a job", one.id))
            verb(self.engine, getattr(self.engine.jobs, what)(one.id))

    def cancel_job(self) -> None:
        if self.rng.random() < 0.5:
            self._verb("cancel", jobs(self.engines.path))

    def retry_job(self) -> None:
        self._verb("retry", [one for one in jobs(self.engines.path) if one.state in ("dead_letter", "cancelled")])

    def replay_all(self) -> None:
        dead = [one.seq for one in jobs(self.engines.path) if one.state == State.DEAD_LETTER]
        self.done.append(("replay", f"{len(dead)} dead letters"))
        verb(self.engine, lambda tx: self.engine.jobs.replay(tx, dead))

    def wait(self) -> None:
        """Until something has changed, if anything does at all."""
        threading.Event().wait(0.02)

    def crash(self) -> None:
        self.done.append(("crash", ""))
        self.engines.crash(self.engine)
        self.engine = self.engines(self.known, workers=3)

    # ---------------------------------------------------------------------------------------------------------- the end

    def retry_all(self, tops: Iterable[str]) -> set[str]:
        """Those of these workflows that have not completed run on, unless they have undone what they did."""
        retried, refused = set(), []
        for one in workflows(self.engines.path):
            if one.id in tops and one.state in ("failed", "cancelled"):
                try:
                    act(self.engine, "retry", one.id)
                except TransitionRefused as refusal:
                    refused.append(str(refusal))
                else:
                    retried.add(one.id)
        assert all("is undone" in reason for reason in refused), refused
        return retried

    def let_go_on(self) -> list[Workflow]:
        """Resume what is paused; what has not ended."""
        left = [one for one in workflows(self.engines.path) if one.state == "running"]
        for one in left:
            if one.paused:
                with suppress(TransitionRefused):  # it ended meanwhile
                    act(self.engine, "resume", one.id)
        return left

    def end(self) -> list[Workflow]:
        """All workflows, when all have ended."""
        wait_until(self.let_go_on, 10, "all workflows to end", until=lambda left: not left)
        settle(self.engine)
        return workflows(self.engines.path)


def check_ends(path: Path, plan: Plan, tops: dict[str, Steps]) -> None:
    """Each workflow has ended as its steps did, and what has completed has returned what it should."""
    for one in workflows(path):
        if one.state == "completed":
            assert one.error is None
            if one.of == "around":
                assert list(outputs_of(path, one.id).values()) == [plan.around(**msgspec.json.decode(one.input))]
                continue
            steps = tops[one.id] if one.id in tops else plan.kept[int(one.of[1:])]["steps"]
            assert outputs_of(path, one.id) == plan.outputs(steps), one
        elif one.state == "failed":
            assert one.error, one
        else:
            assert one.asked_to_stop, one


def outputs_of(path: Path, workflow_id: str) -> dict[str, Any]:
    sql = """
    SELECT s.name, j.result FROM workflows w JOIN steps s ON s.workflow = w.number JOIN jobs j ON j.seq = s.job
    WHERE w.id = ? AND s.role = 'step'
    """
    with closing(read(path)) as connection:
        found = connection.execute(sql, (workflow_id,))
        return {name: None if result is None else msgspec.json.decode(result) for name, result in found}


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_workflows_of_workflows_end_as_their_steps_do_whatever_is_done_to_them(tmp_path: Path, seed: int) -> None:
    rng, luck = random.Random(seed), Luck()
    plan = Plan(rng)
    with Engines(tmp_path) as engines:
        trouble = Trouble(engines, tasks(luck), rng)
        for level, definition in enumerate(plan.kept):
            kept = definition_of(msgspec.json.encode(definition))
            verb(trouble.engine, trouble.engine.definitions.put(f"d{level}", kept))
        wanted = [plan.steps(LEVELS) for _ in range(WORKFLOWS)]
        tops = {start(trouble.engine, steps, input=INPUT): steps for steps in wanted}
        try:
            trouble.some(DEEDS)
            trouble.end()
            check_invariants(engines.path, replayed=True)
            check_ends(engines.path, plan, tops)

            luck.bad = 0
            retried = trouble.retry_all(tops)
            trouble.end()
            all_ended(engines.path)
            check_invariants(engines.path, replayed=True)
            check_ends(engines.path, plan, tops)
            assert [one for one in workflows(engines.path) if one.id in retried and one.state != "completed"] == []
        except (AssertionError, MiniFlowError):
            print(f"seed {seed}; what was done:", *trouble.done, sep="\n")
            raise
        engines.stop(trouble.engine)
