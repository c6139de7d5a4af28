"""What a schedule is: what it runs, when, and by which rules. The rules are its contract, and are shown wherever it is shown.

One shape for all who make schedules: the API, ``miniflow.toml``, decorators. ``resolved`` fills in what was left open, so that
what is stored and shown is what holds; a default of a later version changes no schedule that is there.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from miniflow.clock import to_ms
from miniflow.errors import InvalidRequest
from miniflow.retry import DELAY_S_MAX
from miniflow.timetable import Cron, Interval, Once, OnGap, OnOverlap, Timetable, zone

CatchUp = Literal["none", "latest", "all"]
Overlap = Literal["allow", "skip", "queue_one", "queue_all", "cancel_running"]

EMPTY, NULL = msgspec.Raw(b"{}"), msgspec.Raw(b"null")
NAME_CHARS_MAX = 200
EVERY_S_MIN = 1.0
CATCHUP_WINDOW_S = 366 * 86_400.0
CATCHUP_MAX = 100
JITTER_S_MAX = 86_400.0
TIMINGS = ("cron", "every", "at")

Short = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=DELAY_S_MAX)]
Tag = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class Definition(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a schedule runs, when, and by which rules. Durations are seconds.

    It runs a ``task``, which is given ``payload``, or a ``workflow`` that is kept under that name, which is given ``input``. One
    of ``cron``, ``every`` and ``at`` says when; times without an offset are in ``timezone``. ``on_gap`` and ``on_overlap`` are
    None where there is no wall time to miss. The rest, from ``queue`` on, is for its jobs, as in a submit; of a workflow there
    are ``timeout``, ``meta`` and ``description``.
    """

    task: Short | None = None
    payload: msgspec.Raw = EMPTY
    workflow: Short | None = None
    input: msgspec.Raw = NULL
    cron: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    every: Annotated[float, msgspec.Meta(ge=EVERY_S_MIN, le=DELAY_S_MAX)] | None = None
    anchor: dt.datetime | None = None
    at: dt.datetime | None = None
    timezone: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None
    on_gap: OnGap | None = None
    on_overlap: OnOverlap | None = None
    catchup: CatchUp = "latest"
    catchup_window: Seconds = CATCHUP_WINDOW_S
    catchup_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = CATCHUP_MAX
    overlap: Overlap = "skip"
    pause_after_failures: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0
    jitter: Annotated[float, msgspec.Meta(ge=0, le=JITTER_S_MAX)] = 0
    queue: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] | Literal["low", "medium", "high"] | None = None
    timeout: Seconds | None = None
    max_retries: Annotated[int, msgspec.Meta(ge=0, le=1000)] | None = None
    ttl: Seconds | None = None
    tags: Annotated[list[Tag], msgspec.Meta(max_length=50)] | None = None
    meta: dict[str, Any] | None = None
    description: Annotated[str, msgspec.Meta(max_length=1000)] | None = None


class Declared(NamedTuple):
    """A definition that somebody gave: through the API, in code, in miniflow.toml. ``origin`` says where, of the latter two."""

    name: str
    definition: Definition
    source: str
    origin: str


API, CODE, FILE = "api", "code", "file"
"""The sources."""

OF_JOBS = ("queue", "priority", "timeout", "max_retries", "ttl", "tags", "meta", "description")
"""The fields that a schedule gives to its jobs."""
OF_WORKFLOWS = ("timeout", "meta", "description")
"""Those that it gives to workflows."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Definition).decode


def check_name(name: str) -> str:
    """A name is one line without a slash at its ends: it is part of an address. InvalidRequest."""
    if not name or len(name) > NAME_CHARS_MAX:
        raise InvalidRequest("name", f"is 1 to {NAME_CHARS_MAX} characters")
    if not name.isprintable() or name != name.strip() or "/" in name or name in (".", ".."):
        raise InvalidRequest("name", "is one line, without a slash, and without blanks at its ends")
    return name


def resolved(given: Definition, timezone: str) -> Definition:
    """``given`` with nothing left open; ``timezone`` is for the one that names none. InvalidRequest names the field."""
    _check_what(given)
    said = [name for name in TIMINGS if getattr(given, name) is not None]
    if len(said) != 1:
        raise InvalidRequest(
            said[1] if said else "cron",
            f"cannot be given together with {said[0]}; give one of the two"
            if said
            else "is missing; say when by one of cron, every and at",
        )
    found = msgspec.structs.replace(given, timezone=given.timezone or timezone)
    where = zone(found.timezone or "")
    if given.anchor is not None and given.every is None:
        raise InvalidRequest("anchor", "is the phase of every, and there is no every")
    if given.cron is None:
        for name in ("on_gap", "on_overlap"):
            if getattr(given, name) is not None:
                raise InvalidRequest(
                    name, f"is for cron; {said[0]} means moments, and no moment is left out or comes twice"
                )
    else:
        cron = Cron(given.cron, where.name, given.on_gap, given.on_overlap)
        found.on_gap, found.on_overlap = cron.on_gap, cron.on_overlap
        if cron.next_after(0) is None:
            raise InvalidRequest("cron", f"{given.cron!r} is never due")
    found.anchor = None if given.anchor is None else moment(given.anchor, where.name, "anchor")
    found.at = None if given.at is None else moment(given.at, where.name, "at")
    if given.every is not None and given.jitter >= given.every:
        raise InvalidRequest("jitter", f"is less than every, which is {given.every:g} s")
    return found


def _check_what(given: Definition) -> None:
    """A task or a workflow, and what is of the one not with the other. InvalidRequest."""
    if given.task is None and given.workflow is None:
        raise InvalidRequest("task", "is missing; say what to run: a task, or a workflow that is kept under a name")
    if given.workflow is None:
        if bytes(given.input) != bytes(NULL):
            raise InvalidRequest("input", "is of a workflow; what a task is given is its payload")
        return
    if given.task is not None:
        raise InvalidRequest("workflow", "cannot be given together with task; give one of the two")
    if bytes(given.payload) != bytes(EMPTY):
        raise InvalidRequest("payload", "is of a task; what a workflow is given is its input")
    for name in OF_JOBS:
        if name not in OF_WORKFLOWS and getattr(given, name) is not None:
            raise InvalidRequest(name, "is of the jobs of a task; the steps of a workflow say their own")


def moment(when: dt.datetime, timezone: str, field: str) -> dt.datetime:
    """In UTC; one without an offset is in ``timezone``. InvalidRequest names the field that it is of."""
    try:
        aware = when if when.tzinfo is not None else when.replace(tzinfo=zone(timezone).info)
        return aware.astimezone(dt.UTC)
    except OverflowError:
        raise InvalidRequest(field, "is too far away") from None


def changed(current: Definition, changes: Mapping[str, Any]) -> Definition:
    """``current`` with some fields changed, as JSON has them; None is as if the field had never been given. What says when, or
    what is run, replaces what said so before."""
    fields: dict[str, Any] = msgspec.json.decode(to_text(current))
    for name, others in (("task", ("workflow", "input")), ("workflow", ("task", "payload"))):
        if changes.get(name) is not None:
            for other in others:
                fields.pop(other)
    if any(changes.get(name) is not None for name in TIMINGS):
        for name in (*TIMINGS, "anchor"):
            fields.pop(name)
        if current.cron is not None:  # a policy that was left open stays open
            usual = Cron(current.cron, current.timezone or "UTC")
            for name in ("on_gap", "on_overlap"):
                if changes.get("cron") is None or fields[name] == getattr(usual, name):
                    fields.pop(name)
    fields = {name: value for name, value in {**fields, **changes}.items() if value is not None}
    return _decode(_encode(fields))


def timetable_of(definition: Definition) -> Timetable:
    """Of a definition that is resolved."""
    d = definition
    return _timetable(d.cron, d.every, d.anchor, d.at, d.timezone or "UTC", d.on_gap, d.on_overlap)


@functools.lru_cache(maxsize=16_384)
def _timetable(
    cron: str | None,
    every: float | None,
    anchor: dt.datetime | None,
    at: dt.datetime | None,
    timezone: str,
    on_gap: OnGap | None,
    on_overlap: OnOverlap | None,
) -> Timetable:
    if cron is not None:
        return Cron(cron, timezone, on_gap, on_overlap)
    if every is not None:
        return Interval(round(every * 1000), 0 if anchor is None else to_ms(anchor))
    assert at is not None
    return Once(to_ms(at))


def timing_of(definition: Definition) -> tuple[Any, ...]:
    """What a change of which makes other slots."""
    d = definition
    return d.cron, d.every, d.anchor, d.at, d.timezone, d.on_gap, d.on_overlap, d.jitter


def to_text(definition: Definition) -> str:
    """As JSON, for the file."""
    return _encode(definition).decode()


def from_text(text: str) -> Definition:
    return _decode(text)
