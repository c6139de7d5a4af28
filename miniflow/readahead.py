"""Jobs that are claimed and not begun: what makes the drain fast, kept honest.

One claim of a few hundred rows costs little more than a claim of one, so the writer claims ahead of the free workers. A row in
here is still `queued`, for everybody to see, and still obeys: ``discard`` takes a cancelled one out, ``take_back`` all that a
better arrival, a pause or a stop displaces. Taking a row out under the lock is the decision whether it was begun or not; a row
that was handed ahead to a process (``lend``) has to be taken back from there for it.

There is a lane for each way of running, so that coroutines waiting for a slot, or processes, do not keep jobs from free threads.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter
from collections.abc import Callable, Iterable

from miniflow.attempts import Attempt, Claimed, own_executor
from miniflow.loans import Loan

HELD_MAX = 4096
"""Rows claimed ahead in the worst case, when one lane is full and another is hungry."""

LANES = ("thread", "async", "process")
WAITED_FOR = ("thread", "process")
"""The lanes that threads wait for."""

Level = tuple[int, int]
"""Place of a job before its turn: (rank of its queue, minus priority); the smaller goes first."""


class ReadAhead:
    def __init__(self, *, lane_of: Callable[[str], str], rank_of: Callable[[str], int], target_max: int = 1024) -> None:
        """``lane_of(task)`` is one of LANES; ``rank_of(queue)`` the place of a queue in the order of service."""
        self._lane_of, self.rank_of = lane_of, rank_of
        self._lock = threading.Lock()
        self._ready = {lane: threading.Condition(self._lock) for lane in WAITED_FOR}
        self._held: dict[int, Claimed] = {}
        self._levels: Counter[Level] = Counter()
        self._lanes: dict[str, list[tuple[int, int, int, int]]] = {lane: [] for lane in LANES}
        self._idle = dict.fromkeys(WAITED_FOR, 0)
        self._lent: dict[int, Loan] = {}  # those of _held that are in no heap, since a process has them
        self.has_process_tasks = True  # False: that lane need not be filled
        self.sharers = 1  # workers of the process lane
        self.process_jobs = False  # a job had a process without its task saying so
        self.target_max = target_max
        self.target = target_max
        self.more = True  # the file may have ready rows that are not claimed
        self.on_async: Callable[[], None] | None = None  # called when the async lane got something
        self.on_room: Callable[[], None] | None = None  # called when it is time to claim more

    def __repr__(self) -> str:
        return f"<ReadAhead [{len(self._held)} held, {self.idle_threads} idle threads | target {self.target}]>"

    def __len__(self) -> int:
        return len(self._held)

    @property
    def idle_threads(self) -> int:
        """Threads that wait for a job right now."""
        return self._idle["thread"]

    def level(self, queue: str, priority: int) -> Level:
        return (self.rank_of(queue), -priority)

    def room(self) -> int:
        """How many more rows to claim; 0 while the buffer is more than half full and no thread stands idle beside it."""
        held = len(self._held)
        if held <= self.target // 2:
            return self.target - held
        if held < HELD_MAX and (self._hungry("thread") or (self.has_process_tasks and self._hungry("process"))):
            return min(self.target, HELD_MAX - held)
        return 0

    def has_plenty(self) -> bool:
        """Is there so much at hand that nobody waits for the next claim? Not even where one lane stands idle beside what
        another has to work off: otherwise each of its ends would be a commit of its own."""
        held = len(self._held)
        return held > 0 and (held > self.target_max // 4 or self.room() == 0)

    def _hungry(self, lane: str) -> bool:
        return self._idle[lane] > 0 and not self._lanes[lane]

    def lane_of(self, task: str, options: str | None) -> str:
        """Where a job of ``task`` with these options runs."""
        lane = self._lane_of(task)
        return _own_lane(lane, options) or lane

    def push(self, rows: Iterable[Claimed]) -> None:
        """Offer claimed rows to the workers."""
        counts = dict.fromkeys(LANES, 0)
        lanes: dict[str, str] = {}
        levels: dict[tuple[str, int], Level] = {}
        with self._lock:
            for row in rows:
                lane = lanes.get(row.task) or lanes.setdefault(row.task, self._lane_of(row.task))
                if row.options is not None and (own := _own_lane(lane, row.options)) is not None:
                    lane = own
                    if own == "process":
                        self.has_process_tasks = self.process_jobs = True
                place = (row.queue, row.priority)
                level = levels.get(place) or levels.setdefault(place, self.level(*place))
                self._held[row.seq] = row
                self._levels[level] += 1
                heapq.heappush(self._lanes[lane], (*level, row.turn, row.seq))
                counts[lane] += 1
            for lane, ready in self._ready.items():
                if counts[lane] and self._idle[lane]:
                    ready.notify(counts[lane])
        if counts["async"] and self.on_async is not None:
            self.on_async()

    def take(
        self,
        lane: str,
        begin: Callable[[Claimed], Attempt],
        *,
        timeout_s: float = 0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Attempt | None:
        """The best row of a lane, begun; None after ``timeout_s`` seconds without one, or when ``stopped``.

        ``begin`` is called under the lock: from then on the row is an attempt, and a cancel interrupts instead of discarding.
        """
        heap = self._lanes[lane]
        with self._lock:
            while not heap:
                if not timeout_s or stopped():
                    return None
                self._idle[lane] += 1
                if self.more and self.on_room is not None and self.room():
                    self.on_room()
                woken = self._ready[lane].wait(timeout_s)
                self._idle[lane] -= 1
                if not woken:
                    return None
            if stopped():
                return None
            rank, minus_priority, _, seq = heapq.heappop(heap)
            row = self._held.pop(seq)
            self._drop_level((rank, minus_priority))
            attempt = begin(row)
        self._ask_for_more()
        return attempt

    def _ask_for_more(self) -> None:
        if self.more and self.on_room is not None and len(self._held) <= self.target // 2:
            self.on_room()

    # -------------------------------------------------------------------------------------------------- handed ahead

    def lend(self, loan: Loan, most: int, may: Callable[[Claimed], bool]) -> list[Claimed]:
        """The next rows of the process lane for ``loan``, with their turns, up to the first that ``may`` refuses; the caller
        hands them on, in this order. No more than ``most``, and no more than a fair share of what is there.
        """
        heap = self._lanes["process"]
        lent: list[Claimed] = []
        with self._lock:
            holder = loan.holder
            if holder is None or holder.stale or loan.stopped():
                return lent
            most = min(most, len(heap) // max(self.sharers, 1))
            while len(lent) < most and may(row := self._held[heap[0][3]]):
                heapq.heappop(heap)
                self._lent[row.seq] = loan
                lent.append(row)
            if lent:
                loan.rows.extend(lent)
                holder.give(len(lent))
        return lent

    def next_of(self, loan: Loan) -> Attempt | None:
        """The next row that a process has begun by itself: it has answered what came before. None if it has none."""
        with self._lock:
            if loan.begun:
                return loan.begun.popleft()
            attempt = self._begin_lent(loan) if loan.rows else None
        self._ask_for_more()
        return attempt

    def recall(self, loan: Loan) -> None:
        """Take back what the process has not begun yet. What it has is known to be begun from now on: ``loan.begun``."""
        with self._lock:
            self._recall(loan)

    def part(self, loan: Loan) -> None:
        """Its process is of no use any more, or goes to others. All that it had not begun was taken back before."""
        with self._lock:
            loan.holder, loan.again = None, False

    def recall_all(self) -> None:
        """The same, from all processes."""
        with self._lock:
            for loan in set(self._lent.values()):
                self._recall(loan)

    def _recall(self, loan: Loan) -> None:
        if loan.holder is None:
            return
        begun = len(loan.rows) - loan.holder.take_back()
        if begun < 0:  # the one that is under way for us had not taken its turn yet
            loan.again = True
            loan.holder.wake()
        for _ in range(begun):
            loan.begun.append(self._begin_lent(loan))
        for row in loan.rows:
            del self._lent[row.seq]
            heapq.heappush(self._lanes["process"], (*self.level(row.queue, row.priority), row.turn, row.seq))
        if loan.rows and self._idle["process"]:
            self._ready["process"].notify(len(loan.rows))
        loan.rows.clear()

    def _begin_lent(self, loan: Loan) -> Attempt:
        row = loan.rows.popleft()
        del self._lent[row.seq], self._held[row.seq]
        self._drop_level(self.level(row.queue, row.priority))
        attempt = loan.begin(row)
        attempt.handed = True
        return attempt

    # ------------------------------------------------------------------------------------------------------- taken out

    def holds(self, seq: int) -> bool:
        """Whether the row is claimed and waits for a worker."""
        return seq in self._held

    def place(self, seq: int) -> tuple[str, int] | None:
        """The lane that a row waits in, and how many go before it there; None if it does not wait here. Linear: for those who
        ask about one row."""
        with self._lock:
            if (loan := self._lent.get(seq)) is not None:  # to that process: no other one's rows go before it
                return "process", next(n for n, row in enumerate(loan.rows) if row.seq == seq)
            for lane, heap in self._lanes.items():
                entry = next((entry for entry in heap if entry[3] == seq), None)
                if entry is not None:
                    lent = len(self._lent) if lane == "process" else 0
                    return lane, lent + sum(other < entry for other in heap)
        return None

    def discard(self, seq: int) -> Claimed | None:
        """Take one row out, if it was not begun."""
        with self._lock:
            if (loan := self._lent.get(seq)) is not None:
                self._recall(loan)
            row = self._held.pop(seq, None)
            if row is not None:
                self._drop_level(self.level(row.queue, row.priority))
                self._rebuild()
            return row

    def take_back(self, unwanted: Callable[[Claimed], bool]) -> list[Claimed]:
        """Take all rows out that are ``unwanted``."""
        with self._lock:
            for loan in {loan for seq, loan in self._lent.items() if unwanted(self._held[seq])}:
                self._recall(loan)
            rows = [row for row in self._held.values() if unwanted(row)]
            for row in rows:
                del self._held[row.seq]
                self._drop_level(self.level(row.queue, row.priority))
            if rows:
                self._rebuild()
            return rows

    def worse_than(self, level: Level) -> bool:
        """Is anything held that a row of ``level`` goes before?"""
        return max(self._levels, default=level) > level  # in one step: a worker may take the last one meanwhile

    def wake_all(self) -> None:
        with self._lock:
            for ready in self._ready.values():
                ready.notify_all()

    def _drop_level(self, level: Level) -> None:
        self._levels[level] -= 1
        if not self._levels[level]:
            del self._levels[level]

    def _rebuild(self) -> None:
        """The heaps hold no row that is not held; rare, so linear."""
        for heap in self._lanes.values():
            heap[:] = [entry for entry in heap if entry[3] in self._held]
            heapq.heapify(heap)


def _own_lane(lane: str, options: str | None) -> str | None:
    """That of a job which has an executor of its own, where ``lane`` is that of its task. Coroutines run as such."""
    return None if lane == "async" else own_executor(options)
