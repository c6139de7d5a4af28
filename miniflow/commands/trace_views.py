"""A trace as a tree with bars: how long after the begin of all a span began, how long it took, and where that was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from miniflow.commands import words
from miniflow.commands.tables import fitting
from miniflow.commands.workflow_views import MARKS, PLAIN_MARKS

if TYPE_CHECKING:
    from miniflow.trace_answers import Span, Trace

BAR_MIN, BAR_MAX = 10, 60
NAME_MAX = 48
ERRORS = ("failed", "timed_out", "crashed", "dead_letter", "expired")


def trace_tree(trace: Trace, width: int | None, *, plain: bool = False) -> list[Text]:
    """A line for each span; bars where there is a terminal to draw them in."""
    if not trace.spans:
        return []
    depths = _depths(trace.spans)
    begin = trace.spans[0].started_at
    end = max((span.ended_at or trace.at) for span in trace.spans)
    whole_s = max((end - begin).total_seconds(), 0.001)
    titles = [fitting(Text(f"{'  ' * depths[span.span_id]}{words.plain(span.name)}"), NAME_MAX) for span in trace.spans]
    widest = max(title.cell_len for title in titles)
    bar = 0 if width is None else min(max(width - widest - 38, BAR_MIN), BAR_MAX)
    lines = []
    for span, title in zip(trace.spans, titles, strict=True):
        began_s = max((span.started_at - begin).total_seconds(), 0)
        took_s = max(((span.ended_at or trace.at) - span.started_at).total_seconds(), 0)
        line = Text.assemble(
            (f"{(PLAIN_MARKS if plain else MARKS).get(span.status, ' ')} ", words.style_of(span.status))
        )
        line.append_text(title).append(" " * (widest - title.cell_len + 2))
        line.append_text(words.state(span.status)).append(" " * max(12 - len(span.status), 1))
        open_end = "" if span.ended_at is not None else " …"
        line.append(f"+{words.span(began_s)}".ljust(11)).append(f"{words.span(took_s)}{open_end}".ljust(11), "dim")
        if bar:
            line.append_text(_bar(began_s / whole_s, took_s / whole_s, bar, span.status, plain=plain))
        line.rstrip()
        lines.append(fitting(line, width))
        if span.error and span.status in ERRORS and span.kind in ("attempt", "step", "workflow"):
            lines.append(fitting(Text(f"    {'  ' * depths[span.span_id]}{words.one_line(span.error)}", "red"), width))
    return lines


def _bar(began: float, took: float, size: int, status: str, *, plain: bool) -> Text:
    """``began`` and ``took`` are fractions of the whole; a span takes a block at least."""
    before = min(int(began * size), size - 1)
    blocks = min(max(round(took * size), 1), size - before)
    return Text(" " * before).append(("#" if plain else "█") * blocks, words.style_of(status))


def _depths(spans: list[Span]) -> dict[str, int]:
    found: dict[str, int] = {}
    for span in spans:
        found[span.span_id] = found.get(span.parent_id or "", -1) + 1
    return found


def in_tree_order(spans: list[Span]) -> list[Span]:
    """Each span before what is below it, and all of that before the next one beside it."""
    below: dict[str | None, list[Span]] = {}
    known = {span.span_id for span in spans}
    for span in spans:
        below.setdefault(span.parent_id if span.parent_id in known else None, []).append(span)
    found: list[Span] = []
    ahead = below.get(None, [])[::-1]
    while ahead:
        span = ahead.pop()
        found.append(span)
        ahead += below.get(span.span_id, [])[::-1]
    return found
