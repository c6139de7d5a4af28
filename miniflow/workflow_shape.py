"""What a new workflow brings to the file beside the rows of its jobs, by the places of those: steps, edges, what is counted.

None of it depends on an id, so it is the same each time that one of a shape is started, and is kept with its plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from miniflow.model import NewJob
from miniflow.states import State
from miniflow.tally import Tally


class StepRow(NamedTuple):
    """What the row of a step says beside its job and its workflow, see ``workflow_statements.ADD_STEPS``."""

    idx: int
    name: str
    template: str | None
    condition: str | None
    refs: str | None
    kind: str | None

    @property
    def later(self) -> bool:
        """Whether there is something to be done when its turn comes: something to be filled in, a condition, or others that it
        stands for."""
        return bool(self.template or self.condition or self.kind)


class Shape:
    """Of the jobs of one workflow, which come in an order in which each comes after those it waits for."""

    __slots__ = ("edges", "expands", "loose", "steps", "tally")

    def __init__(self, jobs: Sequence[NewJob], steps: Sequence[StepRow]) -> None:
        self.tally = Tally(jobs)
        self.steps: list[tuple[Any, ...]] = [
            (place, one.idx, one.name, one.template, one.condition, one.refs, None, one.kind)
            for place, one in enumerate(steps)
        ]
        self.edges = [
            (parent, place, job.waits.kind, idx)
            for place, job in enumerate(jobs)
            if job.waits is not None
            for idx, parent in enumerate(job.waits.jobs)
            if isinstance(parent, int)
        ]
        self.loose = [place for place, job in enumerate(jobs) if job.state is State.PENDING and job.waits is None]
        """The jobs that are pending, yet wait for nobody: they have something to be filled in, or a condition."""
        self.expands = any(one.kind for one in steps)

    def __repr__(self) -> str:
        return f"<Shape [{len(self.steps)} steps, {len(self.edges)} edges]>"
