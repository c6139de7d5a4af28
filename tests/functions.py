"""Durable functions in tests: started on an engine, and looked at in its file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from miniflow import registry
from miniflow.engine import Engine
from miniflow.function_intake import FunctionIntake, function_submission
from miniflow.model import Accepted
from miniflow.registry import Registry
from miniflow.workflow_functions import input_text, workflow
from tests.engines import row, verb
from tests.invariants import read
from tests.waiting import wait_until
from tests.workflows import ended


def functions(*given: Callable[..., Any], **options: Any) -> Registry:
    """A registry of workflow functions, each with these options."""
    own = Registry()
    with registry.collecting(own):
        for one in given:
            workflow(**options)(one)
    return own


def begin(engine: Engine, name: str, input: Any = None, **options: Any) -> str:
    """Start a run; its id, when it is in the file."""
    new = FunctionIntake(engine.intake).run(function_submission(name, input_text(input), options))
    accepted: Accepted = engine.writer.call("workflow", new)
    return accepted.id


def send(engine: Engine, run: str, name: str, payload: Any = None, key: str | None = None) -> bool:
    """Deliver an event; whether the same was there already."""
    text = msgspec.json.encode(payload).decode()
    return bool(verb(engine, engine.jobs.checkpoints.deliver(run, name, text, key=key, request_id=None)))


def job_of(path: str | Path, run: str) -> Any:
    """The row of its job."""
    with closing(read(path)) as connection:
        ((job_id,),) = connection.execute(
            "SELECT j.id FROM workflows w JOIN steps s ON s.workflow = w.number JOIN jobs j ON j.seq = s.job WHERE w.id = ?",
            (run,),
        )
    return row(path, job_id)


def asleep(path: str | Path, run: str, timeout_s: float = 5) -> Any:
    """The row of its job, once it waits without a worker."""
    return wait_until(
        lambda: job_of(path, run),
        timeout_s,
        f"run {run} to sleep",
        until=lambda job: job.state in ("scheduled", "pending") and job.lease is None,
    )


def output(path: str | Path, run: str, timeout_s: float = 10) -> Any:
    """What it returned, once it has ended well."""
    state, _, error = ended(path, run, timeout_s)
    assert state == "completed", (state, error)
    result = job_of(path, run).result
    return None if result is None else msgspec.json.decode(result)


def recorded(path: str | Path, run: str) -> list[tuple[str, str, str, Any]]:
    """(kind, name, state, output) of its checkpoints, in order."""
    with closing(read(path)) as connection:
        found = connection.execute(
            "SELECT c.kind, c.name, c.state, c.output FROM checkpoints c JOIN workflows w ON w.number = c.workflow "
            "WHERE w.id = ? ORDER BY c.idx",
            (run,),
        )
        return [(*rest, None if out is None else msgspec.json.decode(out)) for *rest, out in found]  # type: ignore[misc]
