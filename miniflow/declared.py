"""Schedules that stand in code, as ``@schedule``, or in ``miniflow.toml``.

Beside cron expressions there are keywords: ``hour=2``, ``day_of_week="mon-fri", hour=1``, ``minutes=5``. In the singular they are
the fields of a cron expression, where a field that is finer than the finest one given is its first value; in the plural they are
an interval.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from miniflow.contract import CODE, FILE, TIMINGS, Declared, Definition, check_name, resolved
from miniflow.errors import InvalidRequest, SettingsError
from miniflow.registry import Task, TaskSpec, active, task
from miniflow.validation_errors import in_words

FIELDS = ("second", "minute", "hour", "day", "month", "day_of_week")
"""As in a cron expression of six fields."""
COARSEST_FIRST = ("month", "day", "day_of_week", "hour", "minute", "second")
FIRST_VALUES = {"day": "1", "hour": "0", "minute": "0", "second": "0"}
UNITS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86_400, "weeks": 604_800}
TRIGGERS = ("cron", "interval", "date")
_DAYS = re.compile(r"[a-z]{3}(?:-[a-z]{3})?(?:#[1-5])?(?:,[a-z]{3}(?:-[a-z]{3})?(?:#[1-5])?)*|\*", re.IGNORECASE)


def schedule(when: str | None = None, /, *, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
    """Have a task run by the clock: ``@schedule("0 2 * * *", timezone="Europe/Berlin")``, ``@schedule(hour=2)``,
    ``@schedule(day_of_week="mon-fri", hour=1)``, ``@schedule(minutes=5)``, ``@schedule(at="2030-01-31T12:00")``.

    Over a plain function it makes a task of it; over ``@task``, ``@workflow`` or a job class it takes that one. ``payload`` is
    what the task is given, ``input`` what the workflow is. The other options are those of the API (``overlap``, ``catchup``,
    ``queue`` …). A schedule is called as its task is, unless ``name`` says otherwise: a task with several schedules needs that.
    """
    if "task" in options or "workflow" in options:
        raise TypeError("@schedule: the task, or the workflow, is what it stands above")

    def register(target: Any) -> Any:
        made = target if _spec_of(target) is not None else task(target)
        spec = _spec_of(made)
        assert spec is not None
        chosen = name if name is not None else spec.name
        try:
            definition = definition_of({**options, "workflow" if spec.durable else "task": spec.name}, when)
            resolved(definition, "UTC")
            check_name(chosen)
        except InvalidRequest as exc:
            raise ValueError(f"@schedule of task {spec.name!r}: {exc}") from None
        active().declare(Declared(chosen, definition, CODE, spec.source))
        return made

    return register


def _spec_of(target: Any) -> TaskSpec | None:
    """Of a task, a job class, or what huey's decorators make."""
    if isinstance(target, Task):
        return target.spec
    spec = getattr(target, "spec", None) or getattr(getattr(target, "task_class", None), "spec", None)
    return spec if isinstance(spec, TaskSpec) else None


def from_table(table: Mapping[str, Any], origin: str) -> list[Declared]:
    """The tables ``[schedules.NAME]`` of a settings file. SettingsError names the one that is wrong."""
    found = []
    for name, fields in table.items():
        where = f"{origin}: schedules.{name}"
        if not isinstance(fields, Mapping):
            raise SettingsError(f"{where} is no table; write [schedules.{name}] and below it task, cron and the like")
        try:
            definition = definition_of(fields, None)
            resolved(definition, "UTC")
            found.append(Declared(check_name(name), definition, FILE, origin))
        except InvalidRequest as exc:
            raise SettingsError(f"{where}.{exc}" if exc.field else f"{where}: {exc}") from None
    return found


def definition_of(options: Mapping[str, Any], when: str | None) -> Definition:
    """What the keywords of a decorator, or the fields of a table, say. InvalidRequest names the one that is wrong."""
    given = {key: value for key, value in options.items() if value is not None}
    if when is not None and when not in TRIGGERS:
        if any(key in given for key in (*TIMINGS, *FIELDS, *UNITS)):
            raise InvalidRequest("cron", "is given twice: as an expression and by keywords")
        given["cron"] = when
    if "run_date" in given:  # as APScheduler calls it
        given["at"] = given.pop("run_date")
    fields = {key: given.pop(key) for key in FIELDS if key in given}
    units = {key: given.pop(key) for key in UNITS if key in given}
    if fields:
        _alone(given, units, next(iter(fields)))
        given["cron"] = cron_of(fields)
    elif units:
        _alone(given, {}, next(iter(units)))
        given["every"] = _seconds(units)
    return _converted(given)


def _alone(given: Mapping[str, Any], units: Mapping[str, Any], field: str) -> None:
    other = next((key for key in (*TIMINGS, *UNITS) if key in given or key in units), None)
    if other is not None:
        raise InvalidRequest(other, f"cannot be given together with {field}; give one of the two")


def cron_of(fields: Mapping[str, Any]) -> str:
    """The cron expression that keywords mean."""
    finest = max(COARSEST_FIRST.index(name) for name in fields)
    values = {}
    for place, name in enumerate(COARSEST_FIRST):
        value = fields.get(name, FIRST_VALUES.get(name, "*") if place > finest else "*")
        values[name] = str(value).replace(" ", "")
    if not _DAYS.fullmatch(values["day_of_week"]):
        raise InvalidRequest(
            "day_of_week",
            "takes names, such as mon-fri or sat,sun: by number, days begin on Monday for some and Sunday for others",
        )
    values["day_of_week"] = values["day_of_week"].lower().replace("-sun", "-7")
    order = FIELDS if values["second"] != "0" else FIELDS[1:]
    return " ".join(values[name] for name in order)


def _seconds(units: Mapping[str, Any]) -> float:
    total = 0.0
    for name, n in units.items():
        if not isinstance(n, (int, float)) or isinstance(n, bool):
            raise InvalidRequest(name, f"is a number, got {n!r}")
        total += n * UNITS[name]
    return total


def _converted(given: dict[str, Any]) -> Definition:
    for key in ("every", "catchup_window", "jitter", "timeout", "ttl"):
        if isinstance(given.get(key), dt.timedelta):
            given[key] = given[key].total_seconds()
    for key in ("at", "anchor"):
        if isinstance(given.get(key), dt.datetime):
            given[key] = given[key].isoformat()
    if isinstance(given.get("tags"), tuple):
        given["tags"] = list(given["tags"])
    try:
        for name in ("payload", "input"):
            if name in given:
                given[name] = msgspec.Raw(msgspec.json.encode(given[name]))
        return msgspec.convert(given, Definition)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(*in_words(exc, Definition, unknown="is no option of a schedule")) from None
    except (TypeError, OverflowError, UnicodeEncodeError) as exc:
        raise InvalidRequest("payload", f"is not JSON: {exc}") from None
