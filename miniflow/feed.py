"""What changed since: the jobs as those who follow them see them change.

Each transaction that changes jobs has a number, the rows that it changed carry it, and an index leads from a number to the rows
changed after it. So a follower needs no buffer and no session: what it has seen is said by the place of its last event, the pair
(number, seq), and wherever it was cut off it goes on from there. A job that changes again while nobody has looked moves on to its
new number: every job appears in its latest state, not in each that it passed through.

The writer's commits wake the followers, all at once and at most LOOKS_S a second. Those that have seen everything stand at the
same place, and share one look into the file, whether they are one or fifty.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from miniflow import list_statements as lists
from miniflow import statements as sql
from miniflow.errors import InvalidRequest
from miniflow.filters import Filter
from miniflow.listing import SCAN_MAX
from miniflow.queries import Job, job_of_row
from miniflow.readers import Readers
from miniflow.states import TERMINAL, State
from miniflow.writer import CHANGES, Writer

PAGE = 500  # changes in one look
LOOKS_S = 20.0
BEAT_S = 15.0

_encode = msgspec.json.Encoder().encode


class Place(NamedTuple):
    """Of an event among all: what has a higher one changed later. As text it is the event's id."""

    changed: int
    seq: int

    def __str__(self) -> str:
        return f"{self.changed}-{self.seq}"


def parse_place(text: str, field: str) -> Place:
    """InvalidRequest if it is no id of an event."""
    changed, dash, seq = text.partition("-")
    if not dash or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in (changed, seq)):
        raise InvalidRequest(field, "is none that an event had")
    return Place(int(changed), int(seq))


class Change(NamedTuple):
    """A job as of a change, without payload and result; ``data`` is the job as JSON."""

    place: Place
    job: Job
    data: bytes


class Feed:
    """Made and used on the event loop; only ``_committed`` runs in the writer's thread."""

    def __init__(self, readers: Readers, writer: Writer) -> None:
        self._readers, self._writer = readers, writer
        self._loop = asyncio.get_running_loop()
        self._followers = 0
        self._armed = False  # the next commit calls; until it is looked at, those after it need not
        self._news = asyncio.Event()  # set, and replaced by another, when there may be something to see
        self._looked_at = 0.0
        self._pages: dict[Place, asyncio.Task[list[Change]]] = {}  # read since the last wake
        self.closed = False

    def __repr__(self) -> str:
        return f"<Feed {'closed' if self.closed else 'open'} [{self._followers} followers | at {self.now()}]>"

    def now(self) -> Place:
        """Before all that changes from now on."""
        return Place(self._writer.counter(*CHANGES) + 1, 0)

    def knows(self, place: Place) -> bool:
        """Whether ``place`` can be one of this file. One of another file may lie beyond, or one of this file if it lost its
        last moments in a power cut."""
        return place.changed <= self._writer.counter(*CHANGES) + 1

    def close(self) -> None:
        """The server stops: who follows gets what there is, and then the end."""
        self.closed = True
        self._wake()

    # ------------------------------------------------------------------------------------------------------------- looking

    async def page(self, place: Place, which: Filter, limit: int) -> tuple[list[Change], Place]:
        """Up to ``limit`` changes after ``place`` that ``which`` wants, and the place to go on from. SCAN_MAX rows are looked
        at to find them: nothing found is the end only if the place is that of before."""
        narrowed_by, values = which.narrowing(states=True)
        after = (place.changed, place.seq + 1)
        edge = await self._readers.fetch(sql.EDGE_OF_CHANGES_UP, *after, SCAN_MAX) if narrowed_by else []
        edge = edge or await self._readers.fetch(sql.LAST_CHANGE)
        if not edge or edge[0] <= place:
            return [], place
        rows = await self._readers.fetch(lists.list_by_change(narrowed_by, "ASC"), *after, *edge[0], *values, limit)
        changes = [_change(row) for row in rows]
        return changes, changes[-1].place if len(changes) == limit else Place(*edge[0])

    async def follow(self, place: Place) -> AsyncGenerator[list[Change], None]:
        """Pages of what changed after ``place``, as it happens; an empty one after BEAT_S without any. Ends with the server."""
        with self._following():
            while True:
                news, closed = self._news, self.closed  # before the look: whatever is committed after it wakes
                changes = await self._shared(place)
                if changes:
                    place = changes[-1].place
                    yield changes
                if closed:
                    return
                if len(changes) == PAGE:  # behind: not at the cost of everybody else
                    await asyncio.sleep(1 / LOOKS_S)
                elif not await _set_within(news, BEAT_S):
                    yield []

    async def follow_job(self, job_id: str, place: Place | None) -> AsyncGenerator[Change | State | None, None]:
        """The job as it is, unless that was seen at ``place``, and after each change; None after BEAT_S without any; at last the
        state that it has ended in. Ends there, or without it where the server stops or the job is deleted."""
        quiet_at = self._loop.time()
        with self._following():
            while True:
                news, closed = self._news, self.closed
                rows = self._readers.point(sql.CHANGE_OF_JOB, job_id)
                if not rows:
                    return
                seq, changed, state = rows[0][0], rows[0][1], rows[0][6]
                if place != (changed, seq):
                    place, quiet_at = Place(changed, seq), self._loop.time()
                    yield _change(rows[0])
                elif self._loop.time() >= quiet_at + BEAT_S:  # it is woken by the changes of others too
                    quiet_at = self._loop.time()
                    yield None
                if state in TERMINAL:
                    yield State(state)
                if state in TERMINAL or closed:
                    return
                await _set_within(news, BEAT_S)

    async def follow_change(
        self, look: Callable[[], tuple[int, bool] | None], seen: int | None
    ) -> AsyncGenerator[int | None, None]:
        """The number of the last change of what ``look`` looks at, unless that is ``seen``, and of each after it; None after
        BEAT_S without any. ``look`` says also whether it has ended (then this ends too), or that it is gone."""
        quiet_at, over = self._loop.time(), False
        with self._following():
            while not over:
                news, closed = self._news, self.closed
                found = look()
                if found is None:
                    return
                change, over = found[0], found[1] or closed
                if change != seen or found[1]:
                    seen, quiet_at = change, self._loop.time()
                    yield change
                elif self._loop.time() >= quiet_at + BEAT_S:
                    quiet_at = self._loop.time()
                    yield None
                if not over:
                    await _set_within(news, BEAT_S)

    async def _shared(self, place: Place) -> list[Change]:
        task = self._pages.get(place)
        if task is None:
            task = self._pages[place] = self._loop.create_task(self._after(place))
        changes = await asyncio.shield(task)  # one that leaves does not take it from the others
        if len(changes) == PAGE:  # one that catches up goes through many of these, and mostly alone
            self._pages.pop(place, None)
        return changes

    async def _after(self, place: Place) -> list[Change]:
        try:
            return [_change(row) for row in await self._readers.fetch(sql.CHANGED_AFTER, *place, PAGE)]
        except BaseException:  # kept until the next commit, it would be the answer to all who come to this place
            self._pages.pop(place, None)
            raise

    # -------------------------------------------------------------------------------------------------------------- waking

    @contextmanager
    def _following(self) -> Iterator[None]:
        if not self._followers:
            self._armed = True
            self._pages.clear()
            self._writer.changes.listen(self._committed)
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1
            if not self._followers:
                self._writer.changes.forget(self._committed)

    def _committed(self) -> None:
        if self._armed:
            self._armed = False
            try:
                self._loop.call_soon_threadsafe(self._wake_soon)
            except RuntimeError:  # the loop is closed: nobody follows any more
                pass

    def _wake_soon(self) -> None:
        self._loop.call_at(max(self._looked_at + 1 / LOOKS_S, self._loop.time()), self._wake)

    def _wake(self) -> None:
        self._looked_at = self._loop.time()
        self._armed = True  # before they look
        self._pages.clear()
        news, self._news = self._news, asyncio.Event()
        news.set()


def wants(which: Filter, job: Job) -> bool:
    """Whether a filter by state, queue and task means the job."""
    if which.states is not None and job.status not in which.states:
        return False
    tasks = [value for one in which.others if one.name == "task" for value in one.values]
    return all(job.queue == queue for queue in which.queues) and all(job.task == task for task in tasks)


def _change(row: tuple[int, ...]) -> Change:
    job = job_of_row(row, listed=True)
    job.payload = msgspec.UNSET
    return Change(Place(row[1], row[0]), job, _encode(job))


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
