"""Jobs that stand for others: for the items of ``for_each``, for a workflow. They never run, and end with what they stand for."""

from __future__ import annotations

from miniflow.ids import uuid7
from miniflow.model import NewJob
from miniflow.states import State
from miniflow.workflow_graph import Step
from miniflow.writer import json_text

FOR_EACH = "miniflow.for_each"
"""The task of a job that stands for those of items. There is none of that name: it never runs."""
SUBWORKFLOW = "miniflow.workflow"
"""The task of a job that stands for a workflow; it never runs either."""


def stand_in(
    task: str, step: Step, request_id: str | None, *, queue: str = "default", priority: int = 0, payload: str = "{}"
) -> NewJob:
    """A job that stands for others, in the queue that they would be in."""
    new_id = uuid7()
    row = [new_id, task, queue, priority, State.PENDING, payload, 0, None, None, 0, None, request_id]
    row += [None, _text(step.tags), _text(step.meta), step.description]
    return NewJob(new_id, task, queue, priority, State.PENDING, None, None, row)


def _text(value: object) -> str | None:
    return json_text(value) if value else None
