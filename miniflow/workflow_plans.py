"""What is the same each time that a workflow of one shape is started: the graph, and those of its jobs that depend on no input.

A program starts the same few shapes again and again. So what was found out about one is kept, under its text, until the tasks
change: then a start costs little more than its ids.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from miniflow.ids import uuid7
from miniflow.model import NewJob
from miniflow.registry import Registry
from miniflow.workflow_shape import Shape

PLANS_MAX = 256
TEXT_CHARS_MAX = 16_384
"""Of a definition whose plan is kept."""
REQUEST_ID = 11
"""Its place in the row of a job."""

Graph = TypeVar("Graph")
Made = TypeVar("Made")


class Plan(Generic[Graph, Made]):
    """``made`` are the steps that are the same each time, by their place in the definition; ``whole`` is the workflow, if all of
    them are. Its jobs may be on their way into the file: they are copied, and not written into."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.made: dict[int, Made] = {}
        self.whole: tuple[list[NewJob], Shape] | None = None

    def __repr__(self) -> str:
        return f"<Plan [{len(self.made)} steps the same each time]>"


class Plans(Generic[Graph, Made]):
    """The plans of the shapes that were started last."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._edition = registry.edition
        self._plans: OrderedDict[str, Plan[Graph, Made]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Plans [{len(self._plans)}]>"

    def find(self, text: str) -> Plan[Graph, Made] | None:
        if self._edition is not self._registry.edition:
            self._plans = OrderedDict()
            self._edition = self._registry.edition
        return self._plans.get(text)

    def keep(self, text: str, plan: Plan[Graph, Made]) -> None:
        """Called by whoever has asked in vain, once all of it was found right."""
        if len(text) > TEXT_CHARS_MAX:
            return
        plans = self._plans
        plans[text] = plan
        while len(plans) > PLANS_MAX:
            try:
                plans.popitem(last=False)
            except KeyError:  # another thread was faster
                return


def same_each_time(job: NewJob) -> bool:
    """Whether the job of a step does not depend on the time."""
    return job.run_at is None and job.expires_at is None


def another(job: NewJob, request_id: str | None) -> NewJob:
    """A job like that one, with an id of its own."""
    new_id, row = uuid7(), job.row.copy()
    row[0] = new_id
    if len(row) > REQUEST_ID:
        row[REQUEST_ID] = request_id
    elif request_id is not None:
        row += [None] * (REQUEST_ID - len(row))
        row.append(request_id)
    return NewJob(new_id, *job[1:7], row, *job[8:])
