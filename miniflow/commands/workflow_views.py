"""A workflow as a tree: each step below the last of those that it needs, with its state, its times and its error."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from miniflow.commands import words
from miniflow.commands.folding import Entry, Hidden, folded, hidden_in_words
from miniflow.commands.tables import Cell, fitting

if TYPE_CHECKING:
    from miniflow.workflow_answers import Compensation, Workflow, WorkflowStep

MARKS = {
    "completed": "✓",
    "dead_letter": "✗",
    "cancelled": "–",
    "expired": "✗",
    "failed": "✗",
    "skipped": "↷",
    "reused": "✓",
    "running": "▶",
    "retrying": "↻",
    "queued": "·",
    "scheduled": "·",
    "pending": " ",
    "waiting": "…",
}
"""Of a state. It stands beside the word."""
PLAIN_MARKS = {
    **dict.fromkeys(MARKS, " "),
    "completed": "+",
    "reused": "+",
    "dead_letter": "x",
    "expired": "x",
    "failed": "x",
    "running": ">",
}


def status_of(workflow: Workflow) -> str:
    """Its status, or what else there is to say of one that runs."""
    if workflow.ended:
        return workflow.status
    return "paused" if workflow.paused else "compensating" if workflow.compensating else workflow.status


SAYING_WHY = ("dead_letter", "failed", "retrying", "expired", "cancelled", "waiting")
"""The states in which the error of a step stands below it."""
DEPTH_MAX = 20
"""Beyond that a terminal has no columns left for runs in runs."""


class _Branch(NamedTuple):
    step: WorkflowStep
    depth: int


class _Row(NamedTuple):
    """A step, or what undoes one, as it stands in the tree."""

    step: WorkflowStep | Compensation
    depth: int
    name: str
    about: str
    more: str = ""
    """How to have what it returned, where that is long."""

    @property
    def error(self) -> str | None:
        return self.step.error if self.step.status in SAYING_WHY else None

    @property
    def lines(self) -> int:
        return 1 + bool(self.error) + bool(self.more)


def tree(
    workflow: Workflow,
    width: int | None,
    at: dt.datetime,
    *,
    runs: Mapping[str, Workflow] | None = None,
    plain: bool = False,
    room: int | None = None,
) -> list[Text]:
    """A line for the whole, one for each step, one below it for its error. Of a step that is one of ``runs``, by their ids, the
    steps of that run stand below it. With ``room`` it has that many lines at most: what is over, or has not begun, is folded."""
    status = status_of(workflow)
    whole = Text.assemble(
        (words.one_line(workflow.name), "bold"), f"  {workflow.id}  ", words.state(status),
        f"  {workflow.current_step} of {workflow.total_steps}",
    )  # fmt: skip
    took = _took(workflow.created_at, workflow.completed_at, at)
    whole.append(f"  {took}" if took else "", "dim")
    lines = [fitting(whole, width)]
    rows = list(_rows(workflow, 1, at, runs or {}))
    shown: list[int | Hidden] = list(range(len(rows)))
    if room is not None:
        shown = folded([Entry(row.step.status, row.lines) for row in rows], room - 1)
    for one in shown:
        lines += _lines(rows[one], width, plain=plain) if isinstance(one, int) else [_fold(one, width, plain=plain)]
    if workflow.kind == "function" and workflow.status == "completed":
        lines.append(fitting(Text.assemble("  returned ", words.one_line(words.as_json(workflow.output))), width))
    return lines


def _rows(workflow: Workflow, depth: int, at: dt.datetime, runs: Mapping[str, Workflow]) -> Iterator[_Row]:
    for step, below in _branches(workflow.steps):
        yield _Row(step, depth + below, step.name, _about(step, _what(step), at), _long(step, workflow.id))
        run = runs.get(step.workflow_id or "")
        if run is not None and depth < DEPTH_MAX:
            yield from _rows(run, depth + below + 1, at, runs)
    for undo in workflow.compensations:
        about = _about(undo, [] if undo.name == undo.task else [words.plain(undo.task)], at)
        yield _Row(
            undo,
            depth,
            undo.name if undo.name == "on_failure" else f"undo {undo.name}",
            about,
            _long(undo, workflow.id),
        )


def _lines(row: _Row, width: int | None, *, plain: bool) -> list[Text]:
    step, indent = row.step, "  " * row.depth
    mark = (PLAIN_MARKS if plain else MARKS).get(step.status, " ")
    line = Text.assemble(indent, (f"{mark} ", words.style_of(step.status)), words.plain(row.name), "  ")
    line.append_text(words.state(step.status)).append(row.about, "dim")
    lines = [fitting(line, width)]
    if row.error:
        style = "dim" if step.status == "cancelled" else "red"
        lines.append(fitting(Text(f"{indent}    {words.one_line(row.error)}", style), width))
    if row.more:
        lines.append(fitting(Text(f"{indent}    {row.more}", "dim"), width))
    return lines


def _fold(hidden: Hidden, width: int | None, *, plain: bool) -> Text:
    return fitting(Text(f"  {'...' if plain else '…'} {hidden_in_words(hidden)}", "dim"), width)


def _long(step: WorkflowStep | Compensation, workflow_id: str) -> str:
    if step.output_bytes is None:
        return ""
    command = (
        f"miniflow result {step.job_id}" if step.job_id else f"miniflow workflow result {workflow_id} {step.index}"
    )
    return f"output of {words.count(step.output_bytes, 'byte')}: {command}"


def _what(step: WorkflowStep) -> list[str]:
    """What it is, and how far."""
    if step.workflow is not None:
        parts = [f"workflow {step.workflow}", *([step.workflow_id] if step.workflow_id else [])]
    elif step.task:
        parts = [] if step.name == step.task else [step.task]
    else:  # of a durable function
        parts = [one for one in ("" if step.name == step.kind else step.kind, step.waits, step.workflow_id) if one]
    if step.items is not None:
        failed = f", {step.items.failed} failed" if step.items.failed else ""
        parts.append(f"{step.items.done} of {step.items.total}{failed}")
    return [words.plain(part) for part in parts]


def _about(step: WorkflowStep | Compensation, parts: list[str], at: dt.datetime) -> str:
    if step.started_at is not None and step.status in ("running", "completed", "dead_letter", "failed"):
        parts.append(_took(step.started_at, step.completed_at, at))
    if step.attempt > 1:
        parts.append(f"attempt {step.attempt}")
    return "".join(f"  {part}" for part in parts if part)


def _took(begun: dt.datetime | None, ended: dt.datetime | None, at: dt.datetime) -> str:
    return "" if begun is None else words.span(((ended or at) - begun).total_seconds())


def _branches(steps: list[WorkflowStep]) -> list[_Branch]:
    """Steps in order are one column; in a graph each stands below the last, in the workflow, of the steps that it needs."""
    if all(step.needs is None for step in steps):
        return [_Branch(step, 0) for step in steps]
    places = {step.name: n for n, step in enumerate(steps)}
    below: dict[int, list[int]] = {}
    roots: list[int] = []
    for n, step in enumerate(steps):
        needed = [places[name] for name in step.needs or () if name in places]
        below.setdefault(max(needed), []).append(n) if needed else roots.append(n)
    found: list[_Branch] = []
    ahead = [(n, 0) for n in reversed(roots)]
    while ahead:
        n, depth = ahead.pop()
        found.append(_Branch(steps[n], depth))
        ahead += [(child, depth + 1) for child in reversed(below.get(n, []))]
    return found


def summary(workflow: Workflow, at: dt.datetime) -> list[tuple[str, Cell]]:
    """What the tree does not say."""
    return [
        ("started", words.when(workflow.created_at, at)),
        ("ended", words.when(workflow.completed_at, at)),
        ("error", Text(words.plain(workflow.error or ""), "red")),
        ("rerun of", workflow.rerun_of or ""),
        (
            "step",
            f"{words.plain(workflow.parent_step or '')} of workflow {workflow.parent_id}" if workflow.parent_id else "",
        ),
        (
            "definition",
            f"{words.plain(workflow.definition)}, version {workflow.version}" if workflow.definition else "",
        ),
        (
            "schedule",
            f"{words.plain(workflow.schedule or '')}, for {words.local(workflow.scheduled_for)}"
            if workflow.scheduled_for
            else "",
        ),
        ("input", "" if workflow.input is None else words.as_json(workflow.input)),
        ("output", "" if workflow.output is None else words.as_json(workflow.output)),
    ]
