"""Rows that a process was handed before their turn: still held, taken back where they were not begun, and begun once."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from miniflow.executors import turns
from miniflow.executors.turns import ChildTurns, Turns
from miniflow.loans import Loan
from miniflow.readahead import ReadAhead
from tests.unit.test_readahead import begin, row


class Process:
    """One that is handed rows, and begins them when the test says so."""

    def __init__(self, ahead: ReadAhead) -> None:
        self.stopped = self.stale = False
        self.loan = Loan(begin, lambda: self.stopped)
        self.loan.holder = self
        self.ahead = ahead
        self.turns = 0
        self.rows: deque[int] = deque()
        self.ran: list[int] = [0]
        self.under_way = 0

    def give(self, count: int) -> None:
        self.turns += count

    def take_back(self) -> int:
        count, self.turns = self.turns, 0
        self.stale = self.stale or count > 0
        return count

    def wake(self) -> None:
        pass

    def lend(self, most: int = 16, may: Any = lambda claimed: True) -> list[int]:
        lent = [claimed.seq for claimed in self.ahead.lend(self.loan, most, may)]
        self.rows.extend(lent)
        return lent

    def run_directly(self, seq: int) -> None:
        """A row that needs no turn: what was taken back is dropped on the way to it."""
        self.rows.clear()
        self.stale = False
        self.ran.append(seq)

    def begin_next(self) -> None:
        if self.turns:
            self.turns -= 1
            self.ran.append(self.rows.popleft())

    def catch_up(self) -> None:
        """Have run what was under way."""
        if self.loan.again:
            self.loan.again = False
            assert self.under_way not in self.ran
            self.run_directly(self.under_way)
        elif self.under_way not in self.ran:
            self.begin_next()
            assert self.ran[-1] == self.under_way

    def next(self) -> int | None:
        attempt = self.ahead.next_of(self.loan)
        assert attempt is None or attempt.handed
        return None if attempt is None else attempt.claimed.seq


def make() -> ReadAhead:
    return ReadAhead(lane_of=lambda task: "process", rank_of=lambda queue: 0, target_max=100)


def take(ahead: ReadAhead) -> int | None:
    attempt = ahead.take("process", begin)
    return None if attempt is None else attempt.claimed.seq


def filled(count: int) -> tuple[ReadAhead, Process]:
    ahead = make()
    ahead.push([row(seq) for seq in range(1, count + 1)])
    return ahead, Process(ahead)


def test_rows_that_were_handed_ahead_go_before_those_that_were_not() -> None:
    ahead, process = filled(5)
    assert take(ahead) == 1
    assert process.lend(2) == [2, 3]
    assert [ahead.place(seq) for seq in range(1, 6)] == [None, *(("process", n) for n in range(4))]


def test_what_is_handed_ahead_is_held_and_nobody_else_takes_it() -> None:
    ahead, process = filled(3)
    assert process.lend(2) == [1, 2]
    assert ahead.holds(1)
    assert len(ahead) == 3
    assert take(ahead) == 3
    assert take(ahead) is None
    assert [process.next(), process.next(), process.next()] == [1, 2, None]
    assert len(ahead) == 0


def test_no_worker_is_handed_more_than_its_share() -> None:
    ahead, process = filled(7)
    ahead.sharers = 2
    assert process.lend() == [1, 2, 3]


def test_nothing_is_handed_past_a_row_that_may_not_be() -> None:
    _, process = filled(4)
    assert process.lend(may=lambda claimed: claimed.seq != 3) == [1, 2]


def test_one_that_is_stopped_is_handed_nothing() -> None:
    _, process = filled(4)
    process.stopped = True
    assert process.lend() == []


def test_what_was_not_begun_comes_back_to_its_place_and_what_was_is_an_attempt() -> None:
    ahead, process = filled(5)
    process.lend(4)
    process.begin_next()
    ahead.recall(process.loan)
    assert [attempt.claimed.seq for attempt in process.loan.begun] == [1]
    assert [take(ahead) for _ in range(5)] == [2, 3, 4, 5, None]
    assert [process.next(), process.next()] == [1, None]


def test_a_row_that_was_begun_cannot_be_discarded_and_one_that_was_not_can() -> None:
    ahead, process = filled(3)
    process.lend(3)
    process.begin_next()
    assert ahead.discard(1) is None
    assert ahead.discard(2) == row(2)
    assert process.next() == 1
    assert [take(ahead), take(ahead)] == [3, None]


def test_what_is_displaced_is_taken_back_from_the_process_as_well() -> None:
    ahead, process = filled(3)
    ahead.push([row(4, queue="paused")])
    process.lend(4)
    process.begin_next()
    assert ahead.take_back(lambda claimed: claimed.queue == "paused") == [row(4, queue="paused")]
    assert process.next() == 1
    assert [take(ahead) for _ in range(3)] == [2, 3, None]


moves = st.one_of(
    st.tuples(st.just("push"), st.integers(1, 4)),
    st.tuples(st.sampled_from(["lend", "begin", "next"]), st.integers(0, 1)),
    st.tuples(st.sampled_from(["take", "recall all"]), st.just(0)),
    st.tuples(st.sampled_from(["discard", "take back"]), st.integers(1, 30)),
)


@given(st.lists(moves, max_size=60))
def test_whatever_happens_each_row_is_begun_once_or_taken_out(script: list[tuple[str, int]]) -> None:
    ahead = make()
    ahead.sharers = 2
    processes = [Process(ahead), Process(ahead)]
    pushed, begun, out = 0, [], []  # type: int, list[int], list[int]

    def hear(process: Process) -> None:
        """The one before is answered, and the next is under way: it takes its turn now or later, or is sent once more."""
        process.catch_up()
        if (seq := process.next()) is not None:
            process.under_way = seq
            begun.append(seq)

    for verb, n in script:
        if verb == "push":
            ahead.push([row(pushed + i) for i in range(1, n + 1)])
            pushed += n
        elif verb == "lend":
            processes[n].lend()
        elif verb == "begin":
            processes[n].begin_next()
        elif verb == "next":
            hear(processes[n])
        elif verb == "take":
            begun += [seq for seq in [take(ahead)] if seq is not None]
        elif verb == "recall all":
            ahead.recall_all()
        elif verb == "discard":
            out += [found.seq for found in [ahead.discard(n)] if found is not None]
        else:
            unwanted = {seq for seq in range(pushed + 1) if seq % 7 == n % 7}
            out += [found.seq for found in ahead.take_back(lambda claimed, seqs=unwanted: claimed.seq in seqs)]  # type: ignore[misc]
    for process in processes:
        while process.loan:
            hear(process)
        process.catch_up()
        assert len(process.ran) == len(set(process.ran))
        assert set(process.ran) <= {0, *begun}, "what a process has begun is known"
    begun += iter(lambda: take(ahead), None)
    assert sorted(begun + out) == list(range(1, pushed + 1))
    assert not ahead.worse_than((-1, 0))


@pytest.mark.skipif(not turns.POSSIBLE, reason="there are no turns here")
def test_a_turn_is_taken_by_one_of_both_sides() -> None:
    server = Turns()
    child = ChildTurns(os.dup(server.reading))
    assert child.take() is False
    for _ in range(3):
        server.give(8)
        assert [child.take(), child.take()] == [True, True]
        assert server.take_back() == 6
        assert (child.take(), server.take_back()) == (False, 0)
    server.close()
