"""Jobs, attempts and log lines as text."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence

from rich.text import Text

from miniflow.answers import Attempt, Job, LogLine, QueueInfo
from miniflow.commands import words
from miniflow.commands.tables import GAP, Column, fitting, pairs, table
from miniflow.commands.words import ago, as_json, count, local, one_line, plain, span, state, when
from miniflow.states import MEANING, State

NARROW = 76
"""Below this width a job takes two lines, so that its id stays whole."""
VALUE_LINES_MAX = 30
"""A payload or result that is longer is cut in ``show``; ``result`` and ``--json`` have all of it."""

STATES = frozenset(State)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

COLUMNS = (
    Column("ID"),
    Column("STATE"),
    Column("TASK", least=12),
    Column("QUEUE", least=7, rank=2),
    Column("TRY", rank=3, right=True),
    Column("SUBMITTED", right=True),
    Column("RAN", rank=1, right=True),
)


def job_list(jobs: Sequence[Job], width: int | None, at: dt.datetime) -> list[Text]:
    """A table; in a narrow terminal two lines for each job."""
    if width is not None and width < NARROW:
        return [line for job in jobs for line in _in_two_lines(job, width, at)]
    rows = [
        (
            job.id,
            state(job.status),
            plain(job.task),
            job.queue,
            f"{job.attempt}/{1 + job.max_retries}",
            ago(job.created_at, at),
            words.ran(job, at),
        )
        for job in jobs
    ]
    return table(COLUMNS, rows, width)


def _in_two_lines(job: Job, width: int, at: dt.datetime) -> list[Text]:
    took = words.ran(job, at)
    below = [plain(job.task), job.queue, ago(job.created_at, at), f"ran {took}" if took else ""]
    return [
        Text.assemble(job.id, " " * GAP, state(job.status)),
        fitting(Text(" " * GAP + " · ".join(filter(None, below)), "dim"), width),
    ]


def failed_list(jobs: Sequence[Job], width: int | None, at: dt.datetime) -> list[Text]:
    """Each with its error below it."""
    lines = []
    for job in jobs:
        below = [plain(job.task), count(job.attempt, "attempt"), ago(job.completed_at, at)]
        lines += [
            fitting(Text.assemble(job.id, " " * GAP, " · ".join(filter(None, below))), width),
            fitting(Text(" " * GAP + one_line(job.last_error or "no reason was given"), "red"), width),
        ]
    return lines


# ------------------------------------------------------------------------------------------------------------------- one job


def job_card(job: Job, queue: QueueInfo | None, width: int | None, at: dt.datetime) -> list[Text]:
    """Everything about a job, and what will happen next."""
    meaning = MEANING[State(job.status)] if job.status in STATES else ""
    took = words.ran(job, at)
    has_result = job.status == State.COMPLETED and job.result is not None
    rows: list[tuple[str, str | Text]] = [
        ("job", job.id),
        ("task", plain(job.task)),
        ("state", Text.assemble(state(job.status), f"  {meaning}" if meaning else "")),
        ("next", words.next_step(job, queue, at)),
        ("progress", words.progress(job)),
        ("stalled", Text(words.stalled(job, at), "yellow")),
        ("attempts", words.attempts(job)),
        ("crashes", f"{job.crashes:,}: so often the server died while it ran" if job.crashes else ""),
        ("error", Text(plain(job.last_error or ""), "red")),
        ("queue", f"{job.queue}, priority {job.priority}"),
        ("submitted", when(job.created_at, at)),
        ("after", ", ".join(job.depends_on)),
        (
            "schedule",
            f"{plain(job.schedule)}, for {local(job.scheduled_for)}" if job.schedule and job.scheduled_for else "",
        ),
        ("due", when(job.scheduled_at, at) if job.status in (State.SCHEDULED, State.RETRYING) else ""),
        ("started", when(job.started_at, at)),
        ("ended", when(job.completed_at, at)),
        ("ran", took if job.completed_at else ""),
        ("worker", job.worker_id or ""),
        ("about", plain(job.description or "")),
        ("tags", ", ".join(map(plain, job.tags))),
        ("meta", as_json(job.meta) if job.meta else ""),
        ("timeout", span(job.timeout) if job.timeout else ""),
        ("heartbeat", words.heartbeat(job.heartbeat, job.on_stall)),
        ("key", _given(job.idempotency_key)),
        ("request", _given(job.request_id)),
        ("payload", "" if job.payload is None else _value(job.payload)),
        ("result", _value(job.result) if has_result else ""),
    ]
    return pairs(rows, width)


def _given(name: str | None) -> str:
    """A key or a request id that somebody has thought of; the others say nothing to a person."""
    return "" if name is None or _UUID.fullmatch(name) else plain(name)


def _value(value: object) -> str:
    if isinstance(value, str):
        text = plain(value)
    else:
        text = as_json(value)
        text = plain(text if len(text) <= 60 else as_json(value, indent=2))
    lines = text.split("\n")
    left = len(lines) - VALUE_LINES_MAX
    return text if left <= 0 else "\n".join([*lines[:VALUE_LINES_MAX], f"… {count(left, 'line')} more: see --json"])


ATTEMPT_COLUMNS = (
    Column("TRY", right=True),
    Column("OUTCOME"),
    Column("STARTED", rank=1),
    Column("RAN", right=True),
    Column("WORKER", least=6, rank=2),
    Column("ERROR", least=12),
)


def attempt_list(attempts: Sequence[Attempt], width: int | None) -> list[Text]:
    """The attempts of a job, oldest first."""
    rows = [
        (
            str(one.attempt),
            one.outcome,
            local(one.started_at) if one.started_at else "",
            span((one.finished_at - one.started_at).total_seconds()) if one.finished_at and one.started_at else "",
            one.worker_id or "",
            Text(one_line(one.error or ""), "red"),
        )
        for one in attempts
    ]
    return table(ATTEMPT_COLUMNS, rows, width)


# ----------------------------------------------------------------------------------------------------------------- a log


def log_line(line: LogLine, *, to_terminal: bool) -> Text:
    """``12:00:05.123 INFO     message``; with the date where it goes to a file."""
    stamp = ""
    if line.ts is not None:
        at = line.ts.astimezone()
        stamp = f"{at:%H:%M:%S}.{at.microsecond // 1000:03d} "
        stamp = stamp if to_terminal else f"{at:%Y-%m-%d} {stamp}"
    style = words.LEVEL_STYLES.get(line.level, "")
    return Text.assemble((stamp, "dim"), (f"{line.level:<7} ", style), (plain(line.message), style))
