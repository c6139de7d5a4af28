"""Ids sort as they were made, are told apart whoever makes them, and are what the standard calls version 7."""

from __future__ import annotations

import threading
import uuid
from itertools import pairwise
from types import SimpleNamespace

import pytest

from miniflow import ids
from miniflow.ids import uuid7

THREADS, EACH = 8, 5_000


class Wall:
    """The wall clock that ids see, and no other."""

    def __init__(self, ms: int) -> None:
        self.ms = ms

    def time_ns(self) -> int:
        return self.ms * 1_000_000


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    made = Wall(1_800_000_000_000)
    monkeypatch.setattr(ids, "time", SimpleNamespace(time_ns=made.time_ns))
    monkeypatch.setattr(ids, "_last_ms", 0)
    monkeypatch.setattr(ids, "_counter", 0)
    return made


def ms_of(text: str) -> int:
    return uuid.UUID(text).int >> 80


def counter_of(text: str) -> int:
    return (uuid.UUID(text).int >> 64) & 0xFFF


def in_order(made: list[str]) -> bool:
    return all(earlier < later for earlier, later in pairwise(made))


def test_an_id_is_a_uuid_of_version_7_in_its_usual_form() -> None:
    for text in [uuid7() for _ in range(1_000)]:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert str(parsed) == text


def test_an_id_carries_its_millisecond(wall: Wall) -> None:
    assert ms_of(uuid7()) == wall.ms


def test_ids_of_one_thread_sort_as_they_were_made() -> None:
    assert in_order([uuid7() for _ in range(20_000)])


def test_ids_of_many_threads_are_all_different_and_each_threads_are_in_order() -> None:
    made: list[list[str]] = [[] for _ in range(THREADS)]
    ready = threading.Barrier(THREADS)

    def make(mine: list[str]) -> None:
        ready.wait(10)
        mine.extend(uuid7() for _ in range(EACH))

    threads = [threading.Thread(target=make, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len({text for mine in made for text in mine}) == THREADS * EACH
    assert all(in_order(mine) for mine in made)


def test_ids_of_one_millisecond_are_counted(wall: Wall) -> None:
    made = [uuid7() for _ in range(100)]

    assert {ms_of(text) for text in made} == {wall.ms}
    assert [counter_of(text) - counter_of(made[0]) for text in made] == list(range(100))


def test_the_count_begins_in_its_lower_half(wall: Wall) -> None:
    """So that 2,048 ids fit into any millisecond."""
    begins = []
    for _ in range(200):
        wall.ms += 1
        begins.append(counter_of(uuid7()))

    assert max(begins) <= 0x7FF
    assert len(set(begins)) > 100


def test_a_count_that_runs_over_borrows_the_next_millisecond(wall: Wall) -> None:
    made = [uuid7() for _ in range(10_000)]

    assert in_order(made)
    assert wall.ms < ms_of(made[-1]) <= wall.ms + 5


def test_a_borrowed_millisecond_is_not_used_twice(wall: Wall) -> None:
    made = [uuid7() for _ in range(5_000)]
    wall.ms += 1
    made += [uuid7() for _ in range(5_000)]

    assert in_order(made)


def test_a_clock_set_back_does_not_disturb_the_order(wall: Wall) -> None:
    made = [uuid7()]
    for jump in (-1, -3_600_000, 5, -86_400_000):
        wall.ms += jump
        made += [uuid7() for _ in range(10)]

    assert in_order(made)


def test_time_is_followed_again_once_it_has_caught_up(wall: Wall) -> None:
    uuid7()
    wall.ms -= 1_000
    behind = uuid7()
    wall.ms += 2_000

    assert ms_of(behind) == wall.ms - 1_000
    assert ms_of(uuid7()) == wall.ms


def test_the_rest_is_left_to_chance(wall: Wall) -> None:
    """62 bits: two processes that begin in the same millisecond do not meet."""
    tails = [uuid.UUID(uuid7()).int & ((1 << 62) - 1) for _ in range(1_000)]

    assert len(set(tails)) == 1_000
    assert all(any(tail >> bit & 1 for tail in tails) for bit in range(62))
