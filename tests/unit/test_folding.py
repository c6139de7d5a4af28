"""A tree that is too long for a screen: what is in view, and what is folded."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as some

from miniflow.commands.folding import FOLDED, URGENT, Entry, folded, hidden_in_words


def entries(*parts: tuple[int, str]) -> list[Entry]:
    return [Entry(status) for count, status in parts for _ in range(count)]


def test_what_there_is_room_for_is_shown_whole() -> None:
    assert folded(entries((9, "completed"), (1, "running")), 10) == list(range(10))


def test_what_runs_is_in_view_with_its_neighbours_and_the_rest_is_a_line_on_either_side() -> None:
    found = folded(entries((40, "completed"), (1, "running"), (19, "pending")), 9)
    assert found == [Counter(completed=37), 37, 38, 39, 40, 41, 42, 43, Counter(pending=16)]


@pytest.mark.parametrize("status", URGENT)
def test_what_failed_or_waits_is_in_view_wherever_it_stands(status: str) -> None:
    found = folded(entries((20, "completed"), (1, status), (20, "completed"), (1, "running"), (20, "pending")), 10)
    assert {20, 41} <= {one for one in found if isinstance(one, int)}


def test_between_two_steps_what_comes_next_is_in_view() -> None:
    assert 30 in folded(entries((30, "completed"), (30, "pending")), 5)
    assert 59 in folded(entries((60, "completed")), 5)


def test_a_line_that_hides_one_line_is_that_line() -> None:
    assert folded(entries((2, "running"), (1, "completed"), (2, "running"), (9, "pending")), 6) == [
        *range(5),
        Counter(pending=9),
    ]


def test_where_not_even_what_runs_has_room_one_line_says_what_is_hidden() -> None:
    found = folded(entries((1, "waiting"), (30, "running"), (1, "failed"), (5, "completed")), 4)
    assert found == [1, 2, 3, Counter(running=27, waiting=1, failed=1, completed=5)]


def test_an_error_takes_a_line_of_its_own() -> None:
    failed = [Entry("failed", 2)] * 3
    found = folded([*entries((10, "completed")), *failed, *entries((10, "pending"))], 8)
    assert found == [Counter(completed=10), 10, 11, 12, Counter(pending=10)]


@given(
    some.lists(some.tuples(some.sampled_from((*FOLDED, *URGENT)), some.integers(1, 3)), max_size=80),
    some.integers(3, 40),
)
def test_it_never_takes_more_room_and_forgets_none(given: list[tuple[str, int]], room: int) -> None:
    every = [Entry(*one) for one in given]
    found = folded(every, room)
    shown = [one for one in found if isinstance(one, int)]
    hidden = sum((one for one in found if isinstance(one, Counter)), Counter[str]())
    assert shown == sorted(set(shown))
    assert sum(every[n].lines for n in shown) + (len(found) - len(shown)) <= room
    assert Counter(every[n].status for n in shown) + hidden == Counter(one.status for one in every)


def test_what_is_hidden_is_said_in_words() -> None:
    assert hidden_in_words(Counter(pending=1, completed=1_200, running=2)) == "2 running, 1,200 completed, 1 pending"
