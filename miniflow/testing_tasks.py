"""The tasks that a test knows, see ``testing``: they come while its jobs run, and go with it."""

from __future__ import annotations

from collections.abc import Iterable

from miniflow.contract import Declared
from miniflow.registry import Registry, TaskSpec


class TasksOfTest(Registry):
    """The tasks of one test: those of the process, of a folder, and those that the test itself defines, which end with it."""

    def __init__(self, outer: Registry) -> None:
        super().__init__()
        self._outer = outer
        self.changed = True
        self.limited = False  # one with limits of its own came that nobody has looked at
        self.replace_all(outer)

    def add(self, spec: TaskSpec) -> None:
        super().add(spec)
        self._came(spec)
        if "<locals>" not in getattr(spec.function, "__qualname__", ""):
            self._outer.add(spec)  # of a module that is imported just now, and never again

    def declare(self, new: Declared) -> None:
        if (new.definition.task or new.definition.workflow or "") in self._outer:  # of a module, as above
            self._outer.declare(new)

    @property
    def schedules(self) -> list[Declared]:
        """None: what a test submits is what runs, however far it moves the clock."""
        return []

    def take_up(self, specs: Iterable[TaskSpec]) -> None:
        for spec in specs:
            if self.find(spec.name) is not spec:
                self._tasks = {**self._tasks, spec.name: spec}
                self._came(spec)

    def _came(self, spec: TaskSpec) -> None:
        self.changed = True
        self.limited = self.limited or spec.rules.hold_up

    def take_up_new(self) -> None:
        """What was registered behind our back, by another thread."""
        self.take_up(spec for spec in self._outer if spec.name not in self)
