"""Rules about when jobs run, as people write them: how many at once, how many in a period, which are the same.

What is written here is checked where it is written – at the decorator, or in the submit – so that a rule which cannot be kept
is an error then and not a surprise later. Keeping them is for ``gates`` and ``claiming``, and for ``uniqueness``.
"""

from __future__ import annotations

import datetime as dt
import difflib
import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec

from miniflow.retry import DELAY_S_MAX
from miniflow.states import State
from miniflow.validation_errors import sentence

OnConflict = Literal["wait", "skip", "cancel_running", "keep_newest"]
"""What becomes of a job whose turn comes while all slots of its key are taken: it waits; it is cancelled; an older job that has a
slot is asked to stop, and it waits for that; or it waits, and those that waited before it are cancelled."""
ON_CONFLICT: tuple[OnConflict, ...] = ("wait", "skip", "cancel_running", "keep_newest")

UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_UNIT_WORDS = {
    "millisecond": "ms", "milliseconds": "ms", "sec": "s", "second": "s", "seconds": "s", "min": "m", "minute": "m",
    "minutes": "m", "hour": "h", "hours": "h", "day": "d", "days": "d",
}  # fmt: skip
_RATE = re.compile(r"\s*(\d{1,9})\s*(?:/|\bper\b)\s*(\d{1,9})?\s*([a-z]+)\s*")
PERIOD_MS_MAX = 31 * UNITS_MS["d"]
LIMIT_MAX = 1_000_000

KEY_CHARS_MAX = 200
"""A concurrency key longer than this is kept as its digest."""


class Rate(NamedTuple):
    """At most ``n`` begin in any ``period_ms``. ``text`` is as it was written."""

    n: int
    period_ms: int
    text: str


def parse_rate(text: object, what: str) -> Rate:
    """``10/minute``, ``5/30s``, ``100 per hour``. ValueError that begins with ``what``."""
    found = _RATE.fullmatch(text.lower()) if isinstance(text, str) else None
    unit = _UNIT_WORDS.get(found[3], found[3]) if found else ""
    if found is None or unit not in UNITS_MS:
        raise ValueError(f"{what} is a number per period, such as 10/minute, 5/30s or 100/h; got {text!r}")
    n, period_ms = int(found[1]), int(found[2] or 1) * UNITS_MS[unit]
    if not 1 <= n <= LIMIT_MAX or not 1 <= period_ms <= PERIOD_MS_MAX:
        raise ValueError(f"{what} is 1 to {LIMIT_MAX:,} in at most 31 days, got {text!r}")
    return Rate(n, period_ms, text.strip() if isinstance(text, str) else "")


# ------------------------------------------------------------------------------------------------- which jobs are the same

Fields = Annotated[list[Annotated[str, msgspec.Meta(min_length=1, max_length=200)]], msgspec.Meta(max_length=20)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=DELAY_S_MAX)]
StateName = Literal[
    "pending", "scheduled", "queued", "running", "retrying", "completed", "dead_letter", "cancelled", "expired"
]
NOT_ENDED: tuple[StateName, ...] = ("pending", "scheduled", "queued", "running", "retrying")


class Unique(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """There is one such job at a time. ``fields`` of the payload say which jobs are the same (left out: the whole payload;
    empty: the task alone), among those in ``states`` (left out: all that have not ended) that were submitted ``within`` so many
    seconds (left out: ever). ``on_conflict``: answer with the job that is there, or reject the submit."""

    fields: Fields | None = None
    states: Annotated[list[StateName], msgspec.Meta(min_length=1)] | None = None
    within: Seconds | None = None
    on_conflict: Literal["existing", "reject"] = "existing"


class Debounce(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The job begins when no such submit has come for ``wait`` seconds, ``max_wait`` seconds after the first one at the latest,
    with the payload of the last. ``fields`` as in ``unique``; where they are left out, all jobs of the task are the same."""

    wait: Seconds
    max_wait: Seconds | None = None
    fields: Fields | None = None

    def never_waits(self) -> str | None:
        """What is wrong with ``max_wait``; None if nothing is."""
        if self.max_wait is None or self.max_wait >= self.wait:
            return None
        return f"is {self.max_wait:g}, less than wait, which is {self.wait:g}: no job would wait for another submit so long"


class SameJob(NamedTuple):
    """What a submit with ``unique`` or ``debounce`` asks of the file. ``wait_ms`` is None for unique ones."""

    key: str
    states: tuple[str, ...]
    within_ms: int | None = None
    reject: bool = False
    wait_ms: int | None = None
    max_wait_ms: int | None = None
    ttl_ms: int | None = None


def same_job(
    task: str, payload: Mapping[str, Any], unique: Unique | None, debounce: Debounce | None, ttl_ms: int | None
) -> SameJob | None:
    """The question that a submit has for the file; None for none."""
    if debounce is not None:
        key = _digest("debounce", task, _chosen(payload, [] if debounce.fields is None else debounce.fields))
        longest = None if debounce.max_wait is None else round(debounce.max_wait * 1000)
        return SameJob(key, (State.SCHEDULED,), wait_ms=round(debounce.wait * 1000), max_wait_ms=longest, ttl_ms=ttl_ms)
    if unique is not None:
        key = _digest("unique", task, _chosen(payload, unique.fields))
        within = None if unique.within is None else round(unique.within * 1000)
        return SameJob(key, tuple(unique.states or NOT_ENDED), within, unique.on_conflict == "reject")
    return None


def concurrency_key(payload: Mapping[str, Any], fields: Sequence[str]) -> str | None:
    """The key of a job by the fields of its payload; None where all of them are missing or null: such a job has no key."""
    values = [field_of(payload, field) for field in fields]
    if all(value is None for value in values):
        return None
    only = values[0] if len(values) == 1 else values
    return short_key(only if isinstance(only, str) else msgspec.json.encode(only, order="sorted").decode())


def short_key(key: str) -> str:
    """A key as it is kept: of one that is long, the digest."""
    if len(key) <= KEY_CHARS_MAX:
        return key
    return "digest-" + hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def field_of(payload: Mapping[str, Any], path: str) -> Any:
    """The value at ``customer.id``; None where there is none."""
    value: Any = payload
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _chosen(payload: Mapping[str, Any], fields: Sequence[str] | None) -> Any:
    return payload if fields is None else [[field, field_of(payload, field)] for field in sorted(set(fields))]


def _digest(kind: str, task: str, value: Any) -> str:
    return hashlib.blake2b(msgspec.json.encode([kind, task, value], order="sorted"), digest_size=16).hexdigest()


# ----------------------------------------------------------------------------------------------------- the rules of a task


class RuleOptions(TypedDict, total=False):
    """What ``@task`` takes of rules.

    ``concurrency``: how many jobs of the task run at once. ``rate``: how many begin in a period ("10/minute").
    ``concurrency_key``: the field of the payload (or several) by which at most ``concurrency_per_key`` (1) run at once, with what
    is done ``on_conflict``. ``unique``: True, a field, several, or the fields of Unique. ``debounce``: seconds, or the fields of
    Debounce. Each of these seconds may be a timedelta.
    """

    concurrency: int | None
    rate: str | None
    concurrency_key: str | Sequence[str] | None
    concurrency_per_key: int
    on_conflict: OnConflict
    unique: Unique | bool | str | Sequence[str] | Mapping[str, Any] | None
    debounce: Debounce | float | dt.timedelta | Mapping[str, Any] | None


RULE_OPTIONS = tuple(RuleOptions.__annotations__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRules:
    """The rules of a task, checked."""

    concurrency: int | None = None
    rate: Rate | None = None
    key_fields: tuple[str, ...] = ()
    per_key: int = 1
    on_conflict: OnConflict = "wait"
    unique: Unique | None = None
    debounce: Debounce | None = None

    @property
    def hold_up(self) -> bool:
        """Whether they can keep a ready job from a free worker."""
        return self.concurrency is not None or self.rate is not None or bool(self.key_fields)


NO_RULES = TaskRules()


def task_rules(
    options: RuleOptions, where: str, schema: Callable[[], Mapping[str, Any]], others: Sequence[str] = ()
) -> TaskRules:
    """The rules that ``options`` spell. ValueError naming the option; ``schema`` gives that of the payload, so that a field which
    the task does not take is noticed. ``others`` are the options that are no rules: one of those may have been meant."""
    if not options:
        return NO_RULES
    for name in options:
        if name not in RULE_OPTIONS:
            close = difflib.get_close_matches(name, [*RULE_OPTIONS, *others], n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise TypeError(f"{where}: {name} is no option of a task{hint}")
    unique, debounce = _unique(options.get("unique"), where), _debounce(options.get("debounce"), where)
    conflict = options.get("on_conflict", "wait")
    if conflict not in ON_CONFLICT:
        raise ValueError(f"{where}: on_conflict is one of {', '.join(ON_CONFLICT)}; got {conflict!r}")
    if unique is not None and debounce is not None:
        raise ValueError(f"{where}: unique and debounce exclude each other; give one of the two")
    rate = options.get("rate")
    rules = TaskRules(
        concurrency=count(options.get("concurrency"), f"{where}: concurrency"),
        rate=None if rate is None else parse_rate(rate, f"{where}: rate"),
        key_fields=_key_fields(options.get("concurrency_key"), f"{where}: concurrency_key"),
        per_key=count(options.get("concurrency_per_key"), f"{where}: concurrency_per_key") or 1,
        on_conflict=conflict,
        unique=unique,
        debounce=debounce,
    )
    named = {"concurrency_key": rules.key_fields, "unique": (unique and unique.fields) or (),
             "debounce": (debounce and debounce.fields) or ()}  # fmt: skip
    if any(named.values()):
        taken = schema()
        for option, fields in named.items():
            _check_fields(fields, f"{where}: {option}", taken)
    return rules


def count(value: object, what: str) -> int | None:
    """How many at once; None is no limit."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LIMIT_MAX:
        raise ValueError(f"{what} is a whole number from 1 to {LIMIT_MAX:,}, got {value!r}")
    return value


def _check_fields(fields: Sequence[object], what: str, schema: Mapping[str, Any]) -> None:
    known = schema.get("properties", {})
    for field in fields:
        if not isinstance(field, str) or not field:
            raise ValueError(f"{what} names fields of the payload, got {field!r}")
        if schema.get("additionalProperties") is False and (reason := misnamed(field, known)):
            raise ValueError(f"{what}: {reason}")


def misnamed(field: str, taken: Collection[str]) -> str | None:
    """Why ``field`` (``customer.id``) is none of a payload that has the fields ``taken`` and no others; None if it is one."""
    name = field.partition(".")[0]
    return None if name in taken else f"the task takes no {name!r}; it takes {', '.join(taken) or 'no fields'}"


def _key_fields(value: Any, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, bytes) or not isinstance(value, Sequence):
        raise ValueError(f"{what} is the name of a field of the payload, or several of them; got {value!r}")
    return (value,) if isinstance(value, str) else tuple(value)


def _unique(value: Any, where: str) -> Unique | None:
    if value is None or value is False:
        return None
    if value is True:
        return Unique()
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        value = {"fields": list(value)}
    takes = "True, the name of a field of the payload or several, or a dict of fields, states, within and on_conflict"
    found: Unique = _converted(value, Unique, f"{where}: unique", takes)
    return found


def _debounce(value: Any, where: str) -> Debounce | None:
    if value is None:
        return None
    plain = in_seconds(value)
    given = {"wait": plain} if isinstance(plain, (int, float)) and not isinstance(plain, bool) else plain
    takes = "a number of seconds, a timedelta, or a dict of wait, max_wait and fields"
    found: Debounce = _converted(given, Debounce, f"{where}: debounce", takes)
    if reason := found.never_waits():
        raise ValueError(f"{where}: debounce: max_wait {reason}")
    return found


def _converted(value: Any, kind: Any, what: str, takes: str) -> Any:
    """Also one that is of that kind: what it was made of was not looked at then."""
    fields = in_seconds(value)
    if not isinstance(fields, Mapping):
        raise ValueError(f"{what} is {takes}; got {value!r}")
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{what}: {sentence(error, kind)}") from error


def in_seconds(value: Any) -> Any:
    """A rule as it is written in Python, with seconds in place of timedeltas."""
    if isinstance(value, (Unique, Debounce)):
        value = msgspec.structs.asdict(value)
    if isinstance(value, Mapping):
        return {name: in_seconds(one) for name, one in value.items()}
    return value.total_seconds() if isinstance(value, dt.timedelta) else value
