"""The definitions of workflows that are kept under a name, as they are now: in memory, since this process is the only writer.

Each change of a definition is a new version. A run keeps the definition that it was started with, and says which that was.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from miniflow.errors import InvalidRequest
from miniflow.workflow_graph import Definition, WorkflowSubmission

API, FILE = "api", "file"
"""Who defines it."""
SHOWN = 20
NESTED_MAX = 20
"""Workflows in workflows."""


class Kept(NamedTuple):
    """A version of a definition. Of one that is not kept ``name`` and ``version`` are None."""

    name: str | None
    version: int | None
    definition: Definition
    source: str = API
    origin: str | None = None
    created_at: int = 0


class Catalog:
    """The newest version of each."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}

    def __repr__(self) -> str:
        return f"<Catalog [{len(self._kept)} definitions]>"

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, name: str) -> Kept | None:
        return self._kept.get(name)

    def get(self, name: str, field: str) -> Kept:
        """InvalidRequest that names ``field``, and says what there is."""
        found = self._kept.get(name)
        if found is None:
            names = sorted(self._kept)[:SHOWN]
            there = f"there are {', '.join(names)}" if names else "none is kept"
            raise InvalidRequest(field, f"there is no definition {name!r}; {there}")
        return found

    def check_nesting(self, name: str | None, definition: Definition) -> None:
        """InvalidRequest for steps that are workflows and lead back to it, or too deep. ``name`` is its own, if it has one."""
        known: dict[str, int] = {}
        for n, step in enumerate(definition.steps):
            if step.workflow is not None:
                path = () if name is None else (name,)
                self._depth(step.workflow, path, known, f"steps[{n}].workflow")

    def _depth(self, name: str, path: tuple[str, ...], known: dict[str, int], field: str) -> int:
        """How many workflows are in one another below this one."""
        if name in path:
            raise InvalidRequest(field, f"is a circle: {' runs '.join((*path, name))}")
        if name not in known:
            inner = self._kept.get(name)
            steps = inner.definition.steps if inner is not None else []
            names = sorted({step.workflow for step in steps if step.workflow is not None})
            depths = [self._depth(one, (*path, name), known, field) for one in names]
            known[name] = max(depths, default=0) + 1
        if len(path) + known[name] > NESTED_MAX:
            raise InvalidRequest(field, f"would be more than {NESTED_MAX} workflows in one another")
        return known[name]

    def put(self, kept: Kept) -> None:
        if kept.name is not None:
            self._kept[kept.name] = kept

    def remove(self, name: str) -> None:
        self._kept.pop(name, None)

    def all(self) -> list[Kept]:
        """By name."""
        return [self._kept[name] for name in sorted(self._kept)]


def definition_asked_for(s: WorkflowSubmission, of: Kept | None) -> Definition:
    """The steps that are asked for, or those of the definition with what is asked for instead."""
    if of is None:
        if s.version is not None:
            raise InvalidRequest("version", "is of a definition, and none is named")
        if s.steps is None:
            raise InvalidRequest("steps", "is missing; give them, or a definition that is kept")
        return Definition(steps=s.steps, output=s.output, timeout=s.timeout, on_failure=s.on_failure)
    for field in ("steps", "output"):
        if getattr(s, field) not in (None, msgspec.UNSET):
            raise InvalidRequest(field, "cannot be given together with definition, which has it; give one of the two")
    changed = {name: getattr(s, name) for name in ("timeout", "on_failure") if getattr(s, name) is not None}
    return msgspec.structs.replace(of.definition, **changed)
