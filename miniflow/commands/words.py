"""Times, states and schemas in words, as people read them in a terminal."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.text import Text

from miniflow.answers import Job, QueueInfo, TaskInfo
from miniflow.clock import SystemClock
from miniflow.states import State

STYLES = {
    "pending": "dim",
    "scheduled": "magenta",
    "queued": "cyan",
    "running": "blue",
    "retrying": "yellow",
    "completed": "green",
    "dead_letter": "bold red",
    "cancelled": "dim",
    "expired": "dim yellow",
}
"""The colour of a state. It always stands with the word: not everybody sees colours, and not every terminal has them."""

WORKFLOW_STYLES = {
    "failed": "bold red",
    "paused": "yellow",
    "compensating": "yellow",
    "skipped": "dim",
    "reused": "green",
}
"""That of what workflows and their steps can be beside it."""

LEVEL_STYLES = {"DEBUG": "dim", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}

NAMED_MAX = 3
"""Jobs that are named where one waits for many."""

_SAME_MOMENT_S = 5.0  # the clocks of two machines differ by so much; what is a little in the future is now
_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Text of a job without what would move the cursor or recolour the terminal."""
    return _CONTROL.sub("�", _COLOURS.sub("", text.replace("\r\n", "\n")))


def one_line(text: str) -> str:
    return " ".join(plain(text).split())


def as_json(value: Any, *, indent: int | None = None) -> str:
    text = msgspec.json.encode(value)
    return (text if indent is None else msgspec.json.format(text, indent=indent)).decode()


def limits(concurrency: int | None, rate: str | None) -> str:
    """``5 at once, 10/minute``; nothing where there is no limit."""
    return ", ".join(filter(None, (f"{concurrency:,} at once" if concurrency else "", rate)))


def count(n: int, noun: str) -> str:
    """``1 job``, ``1,234 jobs``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def state(name: str) -> Text:
    return Text(name, style_of(name))


def style_of(state: str) -> str:
    return STYLES.get(state) or WORKFLOW_STYLES.get(state, "")


# ------------------------------------------------------------------------------------------------------------------- times


def now() -> dt.datetime:
    return dt.datetime.fromtimestamp(SystemClock().now_ms() / 1000, dt.UTC)


def span(seconds: float) -> str:
    """A duration: ``340 ms``, ``3.2 s``, ``2 min 5 s``, ``1 h 3 min``, ``2 d 4 h``."""
    seconds = max(seconds, 0.0)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, smaller, smaller_name in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size:,} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole} s"


def coarse(seconds: float) -> str:
    """The same in its largest unit alone: ``3 s``, ``2 min``, ``5 h``, ``12 d``."""
    whole = int(max(seconds, 0.0))
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // size:,} {name}"
    return f"{whole} s"


def ago(moment: dt.datetime | None, at: dt.datetime) -> str:
    """``3 s ago``, ``in 5 min``; empty for a moment that has not come about."""
    if moment is None:
        return ""
    seconds = (at - moment).total_seconds()
    if -_SAME_MOMENT_S < seconds < 1:
        return "now"
    return f"{coarse(seconds)} ago" if seconds > 0 else until(moment, at)


def until(moment: dt.datetime | None, at: dt.datetime) -> str:
    """``in 2 s``; ``now`` for a moment that is over already."""
    seconds = 0 if moment is None else math.ceil((moment - at).total_seconds())
    return "now" if seconds <= 0 else f"in {span(seconds) if seconds >= 60 else f'{seconds} s'}"


def local(moment: dt.datetime) -> str:
    """``2026-01-31 12:00:05``, in the time zone of this machine."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def when(moment: dt.datetime | None, at: dt.datetime) -> str:
    """Both: ``2026-01-31 12:00:05 (3 s ago)``."""
    return "" if moment is None else f"{local(moment)} ({ago(moment, at)})"


def ran(job: Job, at: dt.datetime) -> str:
    """How long its last attempt took, or has been running."""
    if job.started_at is None or job.status not in (State.RUNNING, State.COMPLETED, State.DEAD_LETTER):
        return ""
    return span(((job.completed_at or at) - job.started_at).total_seconds())


# ------------------------------------------------------------------------------------------------------------------- a job


def attempts(job: Job, number: int | None = None) -> str:
    """``2 of 4``; ``none of 4 yet``. ``number`` is another attempt than the last."""
    allowed = 1 + job.max_retries
    shown = job.attempt if number is None else number
    if shown == 0:
        return f"none of {allowed} yet"
    return f"{shown} of {allowed}" if shown <= allowed else str(shown)


def progress(job: Job) -> str:
    """``3 of 10, about 2 min left, reading`` or ``30 %, reading``; empty where the job reports none."""
    found = job.progress
    if not isinstance(found, Mapping) or not isinstance(found.get("done"), int | float):
        return ""
    done, total, message = found["done"], found.get("total"), found.get("message")
    parts = [f"{done:g} of {total:g}" if isinstance(total, int | float) else f"{done:.0%}".replace("%", " %")]
    if total == 1 and isinstance(found.get("percent"), int | float):
        parts = [f"{found['percent']:g} %"]
    left_s = found.get("remaining")
    if isinstance(left_s, int | float) and left_s > 0 and job.status == State.RUNNING:
        parts.append(f"about {coarse(max(left_s, 1))} left")
    return ", ".join([*parts, one_line(str(message))] if message else parts)


STALL_WORDS = {"warn": "it is only said", "retry": "it is tried again", "fail": "it fails for good"}


def heartbeat(seconds: float | None, on_stall: str | None) -> str:
    """``30 s; silent for longer it is stalled, and it is tried again``; empty where there is none."""
    if not seconds:
        return ""
    return f"{span(seconds)}; silent for longer it is stalled, and {STALL_WORDS.get(on_stall or '', on_stall)}"


def stalled(job: Job, at: dt.datetime) -> str:
    """Since when the running job is stalled; empty if it is not."""
    if job.stalled_at is None:
        return ""
    return f"since {when(job.stalled_at, at)}: nothing was heard of it for longer than its heartbeat"


def _parents(ids: Sequence[str]) -> str:
    named = ", ".join(ids[:NAMED_MAX])
    more = f" and {len(ids) - NAMED_MAX:,} more" if len(ids) > NAMED_MAX else ""
    return f"{'job' if len(ids) == 1 else 'jobs'} {named}{more}" if ids else "the jobs it depends on"


def next_step(job: Job, queue: QueueInfo | None, at: dt.datetime) -> str:
    """What will happen to the job, and what a person can do about it."""
    expires = f"; expires {until(job.expires_at, at)} if it has not begun by then" if job.expires_at else ""
    match job.status:
        case State.PENDING:
            return f"waits for the end of {_parents(job.depends_on)}{expires}"
        case State.SCHEDULED:
            return f"joins its queue {until(job.scheduled_at, at)}{expires}"
        case State.QUEUED:
            return f"{_waiting(job, queue)}{expires}"
        case State.RUNNING if job.cancel_requested_at is not None:
            return f"was asked to stop {ago(job.cancel_requested_at, at)}, and is cancelled when it has"
        case State.RUNNING if job.timeout and job.started_at:
            left_s = (job.started_at - at).total_seconds() + job.timeout
            return f"runs; would be stopped by its timeout in {coarse(left_s)}"
        case State.RUNNING:
            return "runs, without a timeout"
        case State.RETRYING:
            return f"tries again {until(job.scheduled_at, at)}; `miniflow retry {job.id}` does so now"
        case State.COMPLETED:
            return f"nothing; `miniflow result {job.id}` prints its result"
        case State.DEAD_LETTER:
            return f"nothing by itself; `miniflow retry {job.id}` runs it again"
        case State.EXPIRED:
            return "nothing; it waited longer than its ttl and never ran"
        case _:
            return "nothing"


def _waiting(job: Job, queue: QueueInfo | None) -> str:
    if queue is None:
        return "begins as soon as a worker is free"
    if not queue.served:
        return (
            f"waits for ever: no worker of this server serves the queue {queue.name} (see --queues, --workers of serve)"
        )
    others = max(queue.queued - 1, 0)
    return f"begins as soon as a worker is free; {count(others, 'other')} in the queue {job.queue}"


def completed(job: Job) -> str:
    """``completed in 4.0 s after 2 attempts``."""
    tries = f" after {count(job.attempt, 'attempt')}" if job.attempt > 1 else ""
    return f"completed in {ran(job, now())}{tries}"


# ---------------------------------------------------------------------------------------------------------------- a schema

_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
_FORMATS = {
    "date-time": "time, as 2026-01-31T12:00:00Z",
    "date": "date, as 2026-01-31",
    "uuid": "UUID",
    "byte": "base64",
}
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
    "minLength": "{} characters or more",
    "maxLength": "{} characters at most",
    "pattern": "matching {}",
    "minItems": "{} items or more",
    "maxItems": "{} items at most",
}
_DEPTH_MAX = 3
"""Objects within objects are described so far down."""

Schema = Mapping[str, Any]


def type_words(schema: Schema, defs: Schema | None = None, depth: int = 0) -> str:
    """A type of JSON Schema in words: ``list of text, 3 items at most``."""
    defs = schema.get("$defs", {}) if defs is None else defs
    if "$ref" in schema:
        found = defs.get(str(schema["$ref"]).rpartition("/")[2], {})
        return type_words({**found, **{k: v for k, v in schema.items() if k != "$ref"}}, defs, depth)
    if "enum" in schema:
        return f"one of {', '.join(as_json(value) for value in schema['enum'])}"
    if "const" in schema:
        return f"always {as_json(schema['const'])}"
    if "anyOf" in schema:
        return " or ".join(type_words(one, defs, depth) for one in schema["anyOf"])
    kind = schema.get("type")
    if isinstance(kind, list):
        return " or ".join(_TYPES.get(name, name) for name in map(str, kind))
    words = _kind_words(str(kind), schema, defs, depth) if kind else "any value"
    limits = [
        text.format(schema[name]) for name, text in _LIMITS.items() if name in schema and "prefixItems" not in schema
    ]
    return ", ".join([words, *limits])


def _kind_words(kind: str, schema: Schema, defs: Schema, depth: int) -> str:
    if kind == "array":
        if "prefixItems" in schema:
            return f"list of ({'; '.join(type_words(one, defs, depth + 1) for one in schema['prefixItems'])})"
        items = schema.get("items")
        return f"list of {type_words(items, defs, depth + 1)}" if items else "list"
    if kind == "object":
        if schema.get("properties") and depth < _DEPTH_MAX:
            return f"object with {'; '.join(_member(*one) for one in fields(schema, defs, depth + 1))}"
        rest = schema.get("additionalProperties")
        return f"object of {type_words(rest, defs, depth + 1)}" if isinstance(rest, Mapping) and rest else "object"
    return (
        _FORMATS.get(str(schema.get("format")), _TYPES.get(kind, kind)) if kind == "string" else _TYPES.get(kind, kind)
    )


def _member(name: str, words: str, need: str, _about: str) -> str:
    return f"{name} ({words}{'' if need == 'required' else ', ' + need})"


def fields(schema: Schema, defs: Schema | None = None, depth: int = 0) -> list[tuple[str, str, str, str]]:
    """The fields of an object: name, type, ``required`` or its default, description."""
    defs = schema.get("$defs", {}) if defs is None else defs
    required = set(schema.get("required", ()))
    found = []
    for name, one in schema.get("properties", {}).items():
        default = f"default {as_json(one['default'])}" if "default" in one else "may be left out"
        need = "required" if name in required else default
        found.append((name, type_words(one, defs, depth), need, one_line(str(one.get("description", "")))))
    return found


def signature(schema: Schema) -> str:
    """The fields in short: ``a, b=2, …``."""
    required = set(schema.get("required", ()))
    parts = [
        name if name in required else f"{name}={as_json(one.get('default'))}"
        for name, one in schema.get("properties", {}).items()
    ]
    if not parts:
        return "any object" if takes_anything(schema) else "nothing"
    return ", ".join(parts + (["…"] if schema.get("additionalProperties") else []))


def takes_anything(schema: Schema) -> bool:
    return not schema.get("properties") and schema.get("additionalProperties", True) is not False


def example(task: TaskInfo) -> str:
    """A command that submits the task, or starts the workflow, with values for the fields that it must have."""
    required = set(task.schema.get("required", ()))
    defs = task.schema.get("$defs", {})
    if task.durable:
        fields = {
            name: _sample(one, defs, name).strip("'")
            for name, one in task.schema.get("properties", {}).items()
            if name in required
        }
        given = ", ".join(f'"{name}": {value if _is_json(value) else as_json(value)}' for name, value in fields.items())
        return f"miniflow workflow start {task.name}" + (f" --input '{{{given}}}'" if given else "")
    values = [
        f"{name}={_sample(one, defs, name)}"
        for name, one in task.schema.get("properties", {}).items()
        if name in required
    ]
    return " ".join(["miniflow submit", task.name, *values])


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True


def _sample(schema: Schema, defs: Schema, name: str) -> str:
    if "$ref" in schema:
        return _sample(defs.get(str(schema["$ref"]).rpartition("/")[2], {}), defs, name)
    if "default" in schema or "enum" in schema:
        value = schema["default"] if "default" in schema else schema["enum"][0]
        return value if isinstance(value, str) and value.isidentifier() else f"'{as_json(value)}'"
    if "anyOf" in schema:
        return _sample(schema["anyOf"][0], defs, name)
    samples = {"integer": "1", "number": "1.5", "boolean": "true", "array": "'[]'", "object": "'{}'"}
    formats = {"date": "2026-01-31", "date-time": "2026-01-31T12:00:00Z"}
    return samples.get(str(schema.get("type")), formats.get(str(schema.get("format")), name.upper()))
