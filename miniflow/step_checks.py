"""What a step asks of its task, held against it when the workflow is started."""

from __future__ import annotations

from typing import Any

from miniflow import limits
from miniflow.errors import InvalidRequest
from miniflow.references import Known
from miniflow.registry import TaskSpec
from miniflow.workflow_scope import partly


def check_executor(spec: TaskSpec, wanted: str, field: str) -> None:
    """InvalidRequest, if the task cannot be run so."""
    if spec.executor == "command":
        raise InvalidRequest(
            field, f"cannot be {wanted}: {spec.name} is a command, and runs as a process of its own anyway"
        )
    if spec.executor == "async":
        raise InvalidRequest(field, f"cannot be {wanted}: {spec.name} is an async def, which runs on the event loop")
    if wanted == "process" and not spec.native:
        raise InvalidRequest(field, f"cannot be process: {spec.name} is a task of huey's, which runs in a thread")
    try:
        limits.check(spec.limits, wanted, f"the task {spec.name}")
    except ValueError as exc:
        raise InvalidRequest(field, f"cannot be {wanted}: {exc}") from None


def check_partly(spec: TaskSpec, payload: Any, known: Known, where: str) -> None:
    """InvalidRequest for what the task does not take of a payload that is not whole yet."""
    if not isinstance(payload, dict):
        return
    try:
        spec.binding.check_partly(*partly(payload, known))
    except InvalidRequest as exc:
        raise InvalidRequest(f"{where}{exc.field}", exc.reason) from None
