"""Lists of jobs: a page by what narrows it and in which order, and all that a bulk verb is meant for.

Where an index leads to the rows, a list reads what it shows and nothing else: by state, by the time of submit (``seq`` grows with
it) and by the last change. Whatever else it is narrowed by, rows must be looked at. One request looks at SCAN_MAX of them and
answers what it has found, with a cursor from where the next goes on: such a page may be short, even empty, and not be the last.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, NamedTuple

import msgspec

from miniflow import list_statements as lists
from miniflow import statements as sql
from miniflow.errors import InvalidRequest
from miniflow.filters import Filter
from miniflow.queries import Job, job_of_row
from miniflow.readers import Readers
from miniflow.states import State
from miniflow.writer import Writer, json_text

SCAN_MAX = 20_000
PAGE_MAX = 500
BEYOND = 1 << 62
CLOCK_SLACK_MS = 60_000
"""Rows are in the order of ``created_at`` but for a clock that was set back; by so much it may have been, and none is missed."""

Place = tuple[int, int]
"""Of a job in the order of changes: its ``changed`` and its seq."""

Ref = tuple[int, str]
"""Seq and id of a row: where it is, and who."""


class Page(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A page of jobs. ``total`` is left out where only counting rows could tell; ``next_cursor`` where this is the last page."""

    items: list[Job]
    next_cursor: str | None = None
    total: int | None = None


class Found(NamedTuple):
    """Rows that a bulk verb is meant for: how many, those in a state that it applies to, and what they were found by."""

    matched: int
    rows: list[Ref]
    which: Filter


class _Order(NamedTuple):
    letter: str  # what its cursors begin with
    by_change: bool
    down: bool

    @property
    def direction(self) -> str:
        return "DESC" if self.down else "ASC"


ORDERS = {
    "-created_at": _Order("s", False, True),
    "created_at": _Order("a", False, False),
    "-updated_at": _Order("c", True, True),
    "updated_at": _Order("u", True, False),
}

_decode_refs = msgspec.json.Decoder(list[Ref]).decode


class Listing:
    def __init__(self, readers: Readers, writer: Writer) -> None:
        self._readers, self._writer = readers, writer

    async def page(
        self, which: Filter, *, limit: int = 50, cursor: str | None = None, sort: str = "-created_at"
    ) -> Page:
        """The jobs of ``which``. InvalidRequest for an order that is none, or a cursor of another one."""
        order = ORDERS.get(sort)
        if order is None:
            raise InvalidRequest("sort", f"{sort!r} is none of {', '.join(ORDERS)}")
        after = parse_cursor(cursor, order)
        total = self._total(which)
        span = self._span(which)
        if span is None or which.states == ():
            return Page(items=[], total=total)
        if order.by_change and span[0] < span[1]:
            page = await self._by_change(which, span, order, limit, after)
        else:
            page = await self._by_seq(which, span, order, limit, after)
        page.total = total
        return page

    def _total(self, which: Filter) -> int | None:
        if not which.is_counted:
            return None
        counters = self._writer.counters
        wanted = list(State) if which.states is None else which.states
        return sum(
            n
            for state in wanted
            for label, n in counters.get(state, {}).items()
            if not which.queues or label in which.queues
        )

    # ------------------------------------------------------------------------------------------------------------- in order

    async def _by_seq(self, which: Filter, span: Place, order: _Order, limit: int, after: Place | None) -> Page:
        low, high = span
        if after is not None:
            low, high = (low, min(high, after[1] - 1)) if order.down else (max(low, after[1] + 1), high)
        narrowed_by, values = which.narrowing()
        edge: int | None = None
        if which.states is not None:
            states = json_text(which.states)
            if narrowed_by:
                statement = sql.EDGE_OF_STATES_DOWN if order.down else sql.EDGE_OF_STATES_UP
                ((edge,),) = await self._readers.fetch(statement, states, low, high, SCAN_MAX // len(which.states))
            start, end = _cut(low, high, edge, order)
            list_by_state = lists.list_by_state(narrowed_by, order.direction)
            rows = await self._readers.fetch(list_by_state, states, start, end, *values, limit + 1, limit + 1)
        else:
            if narrowed_by and high - low >= SCAN_MAX:
                edge = high - SCAN_MAX + 1 if order.down else low + SCAN_MAX - 1
            start, end = _cut(low, high, edge, order)
            list_by_seq = lists.list_by_seq(narrowed_by, order.direction)
            rows = await self._readers.fetch(list_by_seq, start, end, *values, limit + 1)
        last = rows[limit - 1][0] if len(rows) > limit else None
        if last is None and edge is not None:  # over what was deleted the next page need not walk
            beyond = self._readers.point(*((sql.LAST_TO, edge - 1) if order.down else (sql.FIRST_FROM, edge + 1)))
            if beyond and low <= beyond[0][0] <= high:
                last = beyond[0][0] + (1 if order.down else -1)
        next_cursor = None if last is None else f"{order.letter}{last}"
        return Page(items=[job_of_row(row, listed=True) for row in rows[:limit]], next_cursor=next_cursor)

    async def _by_change(self, which: Filter, span: Place, order: _Order, limit: int, after: Place | None) -> Page:
        narrowed_by, values = which.narrowing(states=True)
        if which.created_from is not None or which.created_to is not None:
            narrowed_by, values = (*narrowed_by, "seq"), [*values, *span]
        start, end = (0, 0), (BEYOND, BEYOND)
        if after is not None:
            start, end = (start, (after[0], after[1] - 1)) if order.down else ((after[0], after[1] + 1), end)
        edge: Place | None = None
        if narrowed_by:
            statement, place = (sql.EDGE_OF_CHANGES_DOWN, end) if order.down else (sql.EDGE_OF_CHANGES_UP, start)
            edges = await self._readers.fetch(statement, *place, SCAN_MAX)
            edge = edges[0] if edges else None
        if edge is not None:
            start, end = (edge, end) if order.down else (start, edge)
        list_by_change = lists.list_by_change(narrowed_by, order.direction)
        rows = await self._readers.fetch(list_by_change, *start, *end, *values, limit + 1)
        last = (rows[limit - 1][1], rows[limit - 1][0]) if len(rows) > limit else edge
        next_cursor = None if last is None else f"{order.letter}{last[0]}-{last[1]}"
        return Page(items=[job_of_row(row, listed=True) for row in rows[:limit]], next_cursor=next_cursor)

    # ------------------------------------------------------------------------------------------------------ for bulk verbs

    async def find(self, which: Filter, applies: Iterable[State]) -> AsyncIterator[Found]:
        """All rows of ``which`` that are there now, in parts of at most SCAN_MAX, by seq. What comes later is not among them."""
        span = self._span(which)
        if span is None or which.states == ():
            return
        low, high = span
        wanted = json_text(sorted(applies))
        narrowed_by, values = which.narrowing()
        states = tuple(State) if which.states is None and not narrowed_by else which.states
        while low <= high:
            parameters: tuple[Any, ...]
            if states is not None:
                statement, among = lists.find_by_state(narrowed_by), json_text(states)
                ((edge,),) = await self._readers.fetch(sql.EDGE_OF_STATES_UP, among, low, high, SCAN_MAX // len(states))
                upto = high if edge is None else edge
                parameters = (wanted, among, low, upto)
            else:
                there = self._readers.point(sql.FIRST_FROM, low)
                low = there[0][0] if there else high
                upto = min(high, low + SCAN_MAX - 1)
                statement, parameters = lists.find_by_seq(narrowed_by), (wanted, low, upto)
            ((matched, rows),) = await self._readers.fetch(statement, *parameters, *values)
            yield Found(matched, sorted(_decode_refs(rows)), which)
            low = upto + 1

    async def find_ids(self, ids: list[str], applies: Iterable[State]) -> AsyncIterator[Found]:
        """Those of the jobs with these ids that are there."""
        ((matched, rows),) = await self._readers.fetch(sql.FIND_BY_ID, json_text(ids), json_text(sorted(applies)))
        yield Found(matched, sorted(_decode_refs(rows)), Filter())

    # --------------------------------------------------------------------------------------------------------------- spans

    def _span(self, which: Filter) -> Place | None:
        """The first and the last seq between which all of ``which`` lies; None if there is nothing."""
        first, last = self._readers.point(sql.FIRST_FROM, 0), self._readers.point(sql.LAST_TO, BEYOND)
        if not first or not last:
            return None
        low, high = first[0][0], last[0][0]
        for statement, names in ((sql.SEQ_BY_ID, which.ids), (sql.SEQ_BY_KEY, which.keys)):
            for name in names:
                rows = self._readers.point(statement, name)
                if not rows:
                    return None
                low, high = max(low, rows[0][0]), min(high, rows[0][0])
        if which.created_from is not None:
            low = self._first_since(which.created_from - CLOCK_SLACK_MS, low, high + 1)
        if which.created_to is not None:
            high = self._first_since(which.created_to + CLOCK_SLACK_MS, low, high + 1) - 1
        return (low, high) if low <= high else None

    def _first_since(self, ms: int, low: int, high: int) -> int:
        """The first seq from ``low`` on, and before ``high``, that was created at ``ms`` or later; ``high`` if none was. There is
        no index of ``created_at``: a search by halves takes twenty looks at a million rows."""
        while low < high:
            middle = (low + high) // 2
            rows = self._readers.point(sql.FIRST_FROM, middle)
            if rows and rows[0][1] < ms:
                low = rows[0][0] + 1
            else:
                high = middle
        return low


def _cut(low: int, high: int, edge: int | None, order: _Order) -> Place:
    if edge is None:
        return low, high
    return (edge, high) if order.down else (low, edge)


def parse_cursor(cursor: str | None, order: _Order) -> Place | None:
    """The place after which a page begins: a seq, or a change and a seq. None at the beginning."""
    if not cursor:
        return None
    parts = cursor[1:].split("-")
    wrong = cursor[0] != order.letter or len(parts) != 1 + order.by_change
    if wrong or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        raise InvalidRequest("cursor", "is none that a page of this order has given; without one the list begins")
    numbers = [int(part) for part in parts]
    return (numbers[0], numbers[-1]) if order.by_change else (0, numbers[0])
