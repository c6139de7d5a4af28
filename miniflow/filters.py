"""Which jobs are meant: the filters of a list, of a bulk verb and of a stream of events, and the search text ``q``.

A filter is a list of conditions, all of which a job must meet. They are named here and spelled in
``list_statements.NARROWED_BY``; no text from outside comes into the SQL.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from miniflow.clock import to_ms
from miniflow.errors import InvalidRequest
from miniflow.intake import PRIORITIES
from miniflow.states import State

Q_CHARS_MAX = 1000
TERMS_MAX = 20

SEED_NAMES: dict[str, tuple[State, ...]] = {
    "waiting": (State.PENDING, State.SCHEDULED, State.QUEUED, State.RETRYING),
    "deferred": (State.PENDING,),
    "in_progress": (State.RUNNING,),
    "started": (State.RUNNING,),
    "finished": (State.COMPLETED,),
    "failed": (State.DEAD_LETTER,),
    "canceled": (State.CANCELLED,),
}
"""Names that the states go by elsewhere, taken in filters."""

_STATES = frozenset(state.value for state in State)

KEYS = {
    "status": "status", "queue": "queue", "task": "task", "type": "task", "tag": "tag", "id": "id", "key": "key",
    "request_id": "request_id", "worker": "worker", "error": "error", "priority": "priority",
}  # fmt: skip
"""The keys of a ``key:value`` term, and the condition that each stands for."""

# A key is a word before a colon; what goes on with // is a URL, and text. A value may be quoted, as may a whole term.
_TERM = re.compile(
    r"""\s*+(?:(?P<key>[a-z_]+):(?!//))?(?:"(?P<quoted>(?:[^"\\]|\\.)*)"(?=\s|$)|(?P<plain>[^\s"]\S*)|(?P<nothing>(?=\s|$)))"""
)


class Condition(msgspec.Struct, frozen=True):
    """One thing that must be so: its name in ``list_statements.NARROWED_BY``, and the values that it takes, in their order."""

    name: str
    values: tuple[Any, ...]


class Filter(msgspec.Struct, frozen=True):
    """All of it must be so; without anything it means every job.

    ``states`` is None for any. ``ids`` and ``keys`` (of idempotency) are looked up rather than looked for. Times are milliseconds
    since the epoch: not before ``created_from``, and before ``created_to``.
    """

    states: tuple[State, ...] | None = None
    queues: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    others: tuple[Condition, ...] = ()
    created_from: int | None = None
    created_to: int | None = None

    def narrowing(self, *, states: bool = False, names: bool = False) -> tuple[tuple[str, ...], list[Any]]:
        """Names in ``list_statements.NARROWED_BY`` and the values that they take: all that a row must be held against. State
        (unless ``states`` is wanted), id and key (unless ``names`` are) are found by their indexes instead."""
        made = [Condition("queue", (queue,)) for queue in self.queues]
        made += self.others
        if names:
            made += [Condition("id", (one,)) for one in self.ids]
            made += [Condition("key", (key, key)) for key in self.keys]
        if states and self.states is not None:
            made.append(Condition("state", (json.dumps(self.states),)))
        if self.created_from is not None:
            made.append(Condition("created_from", (self.created_from,)))
        if self.created_to is not None:
            made.append(Condition("created_to", (self.created_to,)))
        return tuple(one.name for one in made), [value for one in made for value in one.values]

    @property
    def means_all(self) -> bool:
        """Whether it narrows nothing."""
        return self == Filter()

    @property
    def is_counted(self) -> bool:
        """Whether the counters know how many jobs it means: by state and queue, they do."""
        dated = self.created_from is not None or self.created_to is not None
        return not (self.ids or self.keys or self.others or dated) and len(self.queues) <= 1


def parse(
    *,
    status: str | None = None,
    queue: str | None = None,
    task: str | None = None,
    tag: str | None = None,
    q: str | None = None,
    created_after: str | None = None,
    created_before: str | None = None,
) -> Filter:
    """The filter that a request describes; what is None or empty says nothing. InvalidRequest names the field that is wrong."""
    terms = [("status", status), ("queue", queue), ("task", task), ("tag", tag)]
    found = [(key, value) for key, value in terms if value]
    states = parse_status(status)
    for key, value in _terms(q or ""):
        if key == "status":
            more = _status_in_q(value)
            states = more if states is None else [state for state in states if state in more]
        else:
            found.append((key, value))
    return Filter(
        states=None if states is None else tuple(states),
        queues=tuple(dict.fromkeys(value for key, value in found if key == "queue")),
        ids=tuple(value for key, value in found if key == "id"),
        keys=tuple(value for key, value in found if key == "key"),
        others=tuple(_condition(key, value) for key, value in found if key not in ("status", "queue", "id", "key")),
        created_from=parse_time(created_after, "created_after"),
        created_to=parse_time(created_before, "created_before"),
    )


def parse_status(status: str | None) -> list[State] | None:
    """States of a filter: names separated by commas, ours or those of other systems."""
    if not status:
        return None
    found: list[State] = []
    for name in (part.strip() for part in status.split(",")):
        if name in _STATES:
            found.append(State(name))
        elif name in SEED_NAMES:
            found += SEED_NAMES[name]
        else:
            raise InvalidRequest(
                "status", f"{name!r} is no state; there are {', '.join(State)}, and {', '.join(SEED_NAMES)}"
            )
    return list(dict.fromkeys(found))


def parse_time(text: str | None, field: str) -> int | None:
    """RFC 3339 as milliseconds since the epoch. The + of a zone is a space where somebody put it into a URL as it is."""
    if not text:
        return None
    when = read_time(text, field)
    if when.tzinfo is None:
        raise InvalidRequest(field, "needs a time zone, such as 2026-01-31T12:00:00Z or …+01:00")
    return to_ms(when)


def read_time(text: str, field: str) -> dt.datetime:
    """The same as a datetime, which has no zone where the text has none."""
    try:
        return msgspec.convert(re.sub(r"(:\d\d(?:\.\d+)?) (\d\d:\d\d)$", r"\1+\2", text), dt.datetime)
    except msgspec.ValidationError:
        raise InvalidRequest(field, f"{text[:40]!r} is no time; write it as 2026-01-31T12:00:00Z") from None


# -------------------------------------------------------------------------------------------------------- the search text


def _terms(q: str) -> Iterator[tuple[str, str]]:
    """(condition, value) of each term, "text" for those without a key."""
    if len(q) > Q_CHARS_MAX:
        raise InvalidRequest("q", f"has {len(q):,} characters, {Q_CHARS_MAX:,} are allowed")
    if "\0" in q:  # a pattern ends there for SQLite: what was to narrow would find everything
        raise InvalidRequest("q", "has a NUL character, which cannot be searched for")
    q, place, count = q.strip(), 0, 0
    while place < len(q):
        found = _TERM.match(q, place)
        if found is None:
            raise InvalidRequest(
                "q", f'has a quote out of place at {q[place : place + 40]!r}; a term is "in quotes" or without'
            )
        place, count = found.end(), count + 1
        if count > TERMS_MAX:
            raise InvalidRequest("q", f"has more than {TERMS_MAX} terms")
        key, quoted, plain = found["key"], found["quoted"], found["plain"]
        value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain or ""
        if key is None:
            if not value:  # said nothing, and so meant every job
                raise InvalidRequest("q", 'has an empty term ""; put text between the quotes, or leave it out')
            yield "text", value
        elif key not in KEYS:
            keys = ", ".join(f"{name}:" for name in KEYS)
            raise InvalidRequest(
                "q", f'has no key {key + ":"!r}; there are {keys}. To search for it as text, put it "in quotes"'
            )
        elif not value:
            raise InvalidRequest("q", f"has nothing after {key + ':'!r}")
        else:
            yield KEYS[key], value


def _status_in_q(value: str) -> list[State]:
    try:
        return parse_status(value) or []
    except InvalidRequest as exc:
        raise InvalidRequest("q", exc.reason) from None


def _condition(name: str, value: str) -> Condition:
    if name == "priority":
        return Condition("priority", (_priority(value),))
    if name == "error":
        return Condition("error", (_containing(value),))
    if name == "text":
        return _text(value)
    return Condition(name, (value,))


def _priority(value: str) -> int:
    if value in PRIORITIES:
        return PRIORITIES[value]
    if not re.fullmatch(r"[+-]?[0-9]{1,6}", value):
        raise InvalidRequest("q", f"priority: is a whole number or one of {', '.join(PRIORITIES)}, not {value[:40]!r}")
    return int(value)


def _text(value: str) -> Condition:
    """Somewhere in the texts of a job. Payload and tags are JSON, and what is not ASCII may be written there in two ways."""
    plain = _containing(value)
    as_json = _containing(json.dumps(value, ensure_ascii=False)[1:-1])
    if value.isascii():
        return Condition("text", (plain, plain, plain, plain, as_json, as_json))
    escaped = _containing(json.dumps(value)[1:-1])
    return Condition("text_beyond_ascii", (plain, plain, plain, plain, as_json, escaped, as_json, escaped))


def _containing(value: str) -> str:
    """The pattern of LIKE for a text with ``value`` in it."""
    return "%" + re.sub(r"([\\%_])", r"\\\1", value) + "%"
