"""huey's periodic tasks as schedules: ``@huey.periodic_task(crontab(minute="*/5"))`` says when by a function.

huey's ``crontab`` keeps the values it was given in its closure, and a cron expression is made of them, so that the schedule can
say when it is due next. Any other function can only be asked: such a task is looked at each minute, as huey does.
"""

from __future__ import annotations

import datetime as dt
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

from huey.api import Huey

from miniflow import huey_statements as sql
from miniflow import registry
from miniflow.contract import CODE, Declared, Definition
from miniflow.registry import TaskSpec
from miniflow.writer import Transaction

log = logging.getLogger("miniflow.schedules")

EACH_MINUTE = "* * * * *"
_ALL = {"month": range(1, 13), "day": range(1, 32), "weekday": range(7), "hour": range(24), "minute": range(60)}
"""In the order in which huey's closure has them."""


class PeriodicHuey(Huey):
    """A huey whose periodic tasks are schedules."""

    def periodic_task(self, validate_datetime: Callable[[dt.datetime], bool], *args: Any, **options: Any) -> Any:
        """As huey's, and known as a schedule: overlaps are allowed and missed runs left out, as huey has it."""
        decorate = super().periodic_task(validate_datetime, *args, **options)

        def decorator(function: Any) -> Any:
            made = decorate(function)
            spec: TaskSpec = made.task_class.spec
            found = declare_periodic(spec, validate_datetime, "UTC" if self.utc else None, self.specs_here())
            made.task_class.validator = None if found else staticmethod(validate_datetime)
            return made

        return decorator

    def specs_here(self) -> registry.Registry:
        """Where a task registers that is made now."""
        return registry.active()

    def owner_of(self, task: str) -> PeriodicHuey:
        """The huey object that a task was made with."""
        return self

    def wants(self, task: str, slot_ms: int) -> bool:
        """Whether a periodic task that no cron expression can say is to run at this minute."""
        validate = getattr(self.owner_of(task)._registry._registry.get(task), "validator", None)
        if validate is None:
            return True
        when = dt.datetime.fromtimestamp(slot_ms / 1000, dt.UTC if self.utc else None).replace(tzinfo=None)
        try:
            return bool(validate(when))
        except Exception:  # a function of its author's: whatever it raises, the writer goes on
            log.exception("periodic task %s: its own test failed for %s, so it does not run", task, when)
            return False

    def revoked_for_good(self, tx: Transaction, task: str) -> bool:
        """Whether a task is revoked, and not for one run only: that one the worker must see, to restore it after."""
        owner = self.owner_of(task)
        cls = owner._registry._registry.get(task)
        key = None if cls is None else owner._task_key(cls, "rt")
        if key not in owner._jobs_storage.keys:
            return False
        rows = tx.run(sql.KV_GET, key, tx.now_ms)
        if not rows:
            return False
        until, once = owner.serializer.deserialize(rows[0][0])
        return not once and (until is None or until > self._get_timestamp())


def declare_periodic(
    spec: TaskSpec, validate: Callable[[dt.datetime], bool], timezone: str | None, specs: registry.Registry
) -> bool:
    """Register the schedule of a periodic task; False if its function has to be asked each minute."""
    cron = cron_of(validate)
    definition = Definition(
        task=spec.name, cron=cron or EACH_MINUTE, timezone=timezone, overlap="allow", catchup="none"
    )
    specs.declare(Declared(spec.name, definition, CODE, spec.source))
    return cron is not None


def cron_of(validate: Callable[[dt.datetime], bool]) -> str | None:
    """The expression that huey's ``crontab`` was called for; None for another function, or one that cron cannot say: huey wants
    both the day of the month and that of the week to fit, cron is content with one of the two."""
    if getattr(validate, "__module__", "") != "huey.api" or not inspect.isfunction(validate):
        return None
    values = inspect.getclosurevars(validate).nonlocals.get("cron_settings")
    if not isinstance(values, list) or len(values) != len(_ALL):
        return None
    fields = {
        name: _field(sorted({value % 7 for value in chosen} if name == "weekday" else chosen), everything)
        for chosen, (name, everything) in zip(values, _ALL.items(), strict=True)
    }
    if not fields["day"].startswith("*") and not fields["weekday"].startswith("*"):
        return None
    return " ".join(fields[name] for name in ("minute", "hour", "day", "month", "weekday"))


def _field(chosen: Sequence[int], everything: range) -> str:
    if list(chosen) == list(everything):
        return "*"
    for step in range(2, len(everything)):
        if len(chosen) > 1 and list(chosen) == list(everything[::step]):
            return f"*/{step}"
    if len(chosen) > 2 and list(chosen) == list(range(chosen[0], chosen[-1] + 1)):
        return f"{chosen[0]}-{chosen[-1]}"
    return ",".join(map(str, chosen))
