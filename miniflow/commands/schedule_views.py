"""Schedules, their rules and what became of their times, as text."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence

from rich.text import Text

from miniflow.commands.tables import Column, pairs, table
from miniflow.commands.words import ago, as_json, coarse, count, local, one_line, plain, span, state, when
from miniflow.schedule_answers import Contract, Fire, LastRun, Run, Schedule

STATUS_STYLES = {
    "active": "green",
    "paused": "yellow",
    "missing": "red",
    "finished": "dim",
    "waiting_for_clock": "bold yellow",
}
OUTCOME_STYLES = {"waiting": "cyan", "skipped": "yellow", "missed": "yellow", "refused": "red"}

CATCHUP = {"none": "none of them runs", "latest": "the latest of them runs", "all": "all of them run"}
OVERLAP = {
    "allow": "the next one runs beside it",
    "skip": "the next one is skipped",
    "queue_one": "one waits for it, others are skipped",
    "queue_all": "all wait for it, one after the other",
    "cancel_running": "it is cancelled for the next one",
}
ON_GAP = {"run_after": "runs right after", "skip": "is skipped"}
ON_OVERLAP = {"first": "the first time counts", "second": "the second time counts", "both": "both times count"}

COLUMNS = (
    Column("NAME", least=12),
    Column("STATE"),
    Column("WHEN", least=20),
    Column("NEXT", right=True),
    Column("LAST", least=10, rank=2),
    Column("RUNS", least=10, rank=1),
    Column("RULES", least=16, rank=3),
)


def schedule_list(found: Sequence[Schedule], width: int | None, at: dt.datetime) -> list[Text]:
    rows = [
        (
            plain(one.name),
            status(one.status),
            one.sentence,
            ago(one.next_run, at),
            last_in_words(one.last_run, at),
            plain(one.task or f"workflow {one.workflow}"),
            _in_short(one),
        )
        for one in found
    ]
    return table(COLUMNS, rows, width)


def status(name: str) -> Text:
    return Text(name, STATUS_STYLES.get(name, ""))


def last_in_words(last: LastRun | None, at: dt.datetime) -> str:
    """``completed 3 h ago``."""
    if last is None:
        return ""
    return f"{last.status or last.outcome} {ago(last.scheduled_for, at)}"


def _in_short(one: Contract) -> str:
    rules = [f"overlap {one.overlap}", f"catchup {one.catchup}"]
    if one.on_gap and one.on_overlap:
        rules += [f"gap {one.on_gap}", f"twice {one.on_overlap}"]
    return ", ".join(rules)


# ------------------------------------------------------------------------------------------------------------ one schedule


def schedule_card(one: Schedule, width: int | None, at: dt.datetime) -> list[Text]:
    """Everything about a schedule, its rules in words."""
    running = [count(one.running, "job" if one.task else "workflow")] if one.running else []
    waiting = [f"{count(one.waiting, 'run')} wait{'s' if one.waiting == 1 else ''}"] if one.waiting else []
    why = plain(one.paused_reason or "") or (f"since {local(one.missing_since)}" if one.missing_since else "")
    rows: list[tuple[str, str | Text]] = [
        ("schedule", plain(one.name)),
        ("state", Text.assemble(status(one.status), f"  {why}" if why else "")),
        *contract_rows(one),
        ("next", when(one.next_run, at)),
        ("last", last_in_words(one.last_run, at)),
        ("running", ", ".join(running + waiting)),
        ("failures", f"{one.failures:,} in a row" if one.failures else ""),
        ("paused", when(one.paused_at, at)),
        ("defined", f"in {plain(one.origin)}" if one.origin else "over the API"),
        ("made", when(one.created_at, at)),
        ("changed", when(one.updated_at, at) if one.updated_at != one.created_at else ""),
    ]
    return pairs(rows, width)


def contract_rows(one: Contract) -> list[tuple[str, str | Text]]:
    """What it runs, when, and each of its rules."""
    return [
        ("when", one.sentence),
        ("cron", f"{one.cron}  ({one.timezone})" if one.cron else ""),
        ("task", plain(one.task or "")),
        ("payload", as_json(one.payload) if one.payload else ""),
        ("workflow", plain(one.workflow or "")),
        ("input", "" if one.input is None else as_json(one.input)),
        ("missed", _missed(one)),
        ("overlap", f"while one runs, {OVERLAP.get(one.overlap, one.overlap)} ({one.overlap})"),
        (
            "gap",
            f"a time that does not exist {ON_GAP.get(one.on_gap, one.on_gap)} ({one.on_gap})" if one.on_gap else "",
        ),
        (
            "twice",
            f"of a time that comes twice {ON_OVERLAP.get(one.on_overlap, one.on_overlap)} ({one.on_overlap})"
            if one.on_overlap
            else "",
        ),
        (
            "failing",
            f"{one.pause_after_failures:,} failed runs in a row pause it"
            if one.pause_after_failures
            else "never pauses it",
        ),
        ("jitter", f"up to {span(one.jitter)}" if one.jitter else ""),
        ("jobs" if one.task else "runs", _of_jobs(one)),
        ("about", plain(one.description or "")),
    ]


def _missed(one: Contract) -> str:
    text = CATCHUP.get(one.catchup, one.catchup)
    if one.catchup == "none":
        return f"{text} ({one.catchup})"
    most = f", {one.catchup_max:,} at most" if one.catchup == "all" else ""
    return f"{text}{most}, none older than {coarse(one.catchup_window)} ({one.catchup})"


def _of_jobs(one: Contract) -> str:
    said = {
        "queue": one.queue,
        "priority": one.priority,
        "timeout": None if one.timeout is None else span(one.timeout),
        "max_retries": one.max_retries,
        "ttl": None if one.ttl is None else span(one.ttl),
        "tags": ", ".join(map(plain, one.tags)) if one.tags else None,
        "meta": as_json(one.meta) if one.meta else None,
    }
    return "; ".join(f"{name} {value}" for name, value in said.items() if value is not None)


RUN_COLUMNS = (Column("TIME"), Column("IN", right=True), Column("NOTE", least=12))


def run_list(runs: Iterable[Run], width: int | None, at: dt.datetime) -> list[Text]:
    """As clocks in the schedule's zone show them."""
    rows = [(one.local.replace("T", " "), ago(one.scheduled_for, at), one.note or "") for one in runs]
    return table(RUN_COLUMNS, rows, width)


FIRE_COLUMNS = (
    Column("FOR"),
    Column("KIND", rank=2),
    Column("OUTCOME"),
    Column("STATE"),
    Column("RUN", rank=1),
    Column("WHY", least=12),
)


def fire_list(fires: Iterable[Fire], width: int | None) -> list[Text]:
    """In this machine's time zone."""
    rows = [
        (
            local(one.scheduled_for),
            one.kind,
            Text(one.outcome, OUTCOME_STYLES.get(one.outcome, "")),
            state(one.status or ""),
            one.job_id or one.workflow_id or "",
            _why(one),
        )
        for one in fires
    ]
    return table(FIRE_COLUMNS, rows, width)


def _why(one: Fire) -> str:
    if one.missed:
        return f"{one.missed:,}{' or more' if one.missed >= 1000 else ''} up to this time"
    return one_line(one.reason or "")
