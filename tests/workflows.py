"""Workflows in tests: started on an engine, and looked at in its file."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from miniflow.engine import Engine
from miniflow.model import Accepted
from miniflow.workflow_graph import decode_workflow
from miniflow.workflow_intake import NewWorkflow
from tests.engines import verb
from tests.invariants import read
from tests.waiting import wait_until


def new_workflow(engine: Engine, steps: list[dict[str, Any]], **fields: Any) -> NewWorkflow:
    body = msgspec.json.encode({"name": "flow", "steps": steps, **fields})
    return engine.workflow_intake.workflow(decode_workflow(body))


def start(engine: Engine, steps: list[dict[str, Any]], **fields: Any) -> str:
    """Its id, when it is in the file."""
    accepted: Accepted = engine.writer.call("workflow", new_workflow(engine, steps, **fields))
    return accepted.id


def act(engine: Engine, name: str, workflow_id: str) -> Any:
    """One of the verbs: cancel, retry, pause, resume, delete."""
    return verb(engine, getattr(engine.jobs.workflows, name)(workflow_id))


def state(path: str | Path, workflow_id: str) -> tuple[str, int, str | None]:
    """(state, steps that are done, error)"""
    with closing(read(path)) as connection:
        rows = list(connection.execute("SELECT state, done, error FROM workflows WHERE id = ?", (workflow_id,)))
    return rows[0]  # type: ignore[no-any-return]


def ended(path: str | Path, workflow_id: str, timeout_s: float = 10) -> tuple[str, int, str | None]:
    """The same, when it has ended."""
    return wait_until(
        lambda: state(path, workflow_id),
        timeout_s,
        f"workflow {workflow_id} to end",
        until=lambda found: found[0] != "running",
    )


def steps(path: str | Path, workflow_id: str) -> dict[str, tuple[str, Any]]:
    """State and result of the job of each step, by name."""
    sql = """
    SELECT s.name, iif(s.skipped AND j.state = 'cancelled', 'skipped', j.state), j.result FROM workflows w
    JOIN steps s ON s.workflow = w.number JOIN jobs j ON j.seq = s.job WHERE w.id = ? AND s.role = 'step' ORDER BY s.idx
    """
    with closing(read(path)) as connection:
        found = connection.execute(sql, (workflow_id,))
        return {name: (state, None if result is None else msgspec.json.decode(result)) for name, state, result in found}


def step_job(path: str | Path, workflow_id: str, name: str) -> str:
    """The id of the job that a step is."""
    sql = """
    SELECT j.id FROM workflows w JOIN steps s ON s.workflow = w.number JOIN jobs j ON j.seq = s.job
    WHERE w.id = ? AND s.name = ? AND s.role = 'step'
    """
    with closing(read(path)) as connection:
        ((job_id,),) = connection.execute(sql, (workflow_id, name))
    return str(job_id)
