"""What is claimed and not begun: served best first, taken out once, and asked for again before it runs out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from miniflow import readahead
from miniflow.attempts import Attempt, Claimed
from miniflow.readahead import ReadAhead
from tests.waiting import PATIENCE, wait_until

RANKS = {"first": 0, "second": 1}


def make(target_max: int = 8) -> ReadAhead:
    """One in which tasks named a… are coroutines."""
    return ReadAhead(
        lane_of=lambda task: "async" if task.startswith("a") else "thread",
        rank_of=lambda queue: RANKS.get(queue, 2),
        target_max=target_max,
    )


def row(seq: int, *, task: str = "task", queue: str = "first", priority: int = 0, turn: int = 1) -> Claimed:
    return Claimed(
        seq,
        f"id-{seq}",
        task,
        queue,
        priority,
        turn,
        "{}",
        0,
        0,
        3,
        None,
        None,
        None,
        None,
        None,
        None,
        lease=1,
        created_at=0,
        ready_at=0,
    )


def begin(claimed: Claimed) -> Attempt:
    return Attempt(claimed, "worker", 0)


def take(ahead: ReadAhead, lane: str = "thread", **options: Any) -> int | None:
    """The seq of what was taken."""
    attempt = ahead.take(lane, begin, **options)
    return None if attempt is None else attempt.claimed.seq


def drain(ahead: ReadAhead, lane: str = "thread") -> list[int]:
    return list(iter(lambda: take(ahead, lane), None))


def place(claimed: Claimed) -> tuple[int, int, int, int]:
    return (RANKS.get(claimed.queue, 2), -claimed.priority, claimed.turn, claimed.seq)


def started(function: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def wait_for_idle(ahead: ReadAhead, n: int) -> None:
    wait_until(lambda: ahead.idle_threads, 5, f"{n} waiting threads", until=lambda idle: idle == n)


# ------------------------------------------------------------------------------------------------------------- the order


def test_of_nothing_nothing_is_taken() -> None:
    assert take(make()) is None


def test_a_better_queue_goes_before_priority_priority_before_turn_and_turn_before_seq() -> None:
    ahead = make()
    ahead.push([
        row(1, queue="second", priority=9),
        row(2, priority=1, turn=5),
        row(3, priority=2, turn=9),
        row(5, priority=2, turn=8),
        row(4, priority=2, turn=8),
        row(6, queue="another", priority=99),
    ])  # fmt: skip

    assert drain(ahead) == [4, 5, 3, 2, 1, 6]


def test_coroutines_and_threads_do_not_take_from_each_other() -> None:
    ahead = make()
    ahead.push([row(1, task="a1"), row(2), row(3, task="a2")])

    assert drain(ahead, "thread") == [2]
    assert drain(ahead, "async") == [1, 3]


rows = st.builds(
    row,
    st.integers(1, 1_000),
    task=st.sampled_from(["task", "a-task"]),
    queue=st.sampled_from(["first", "second", "x", "y"]),
    priority=st.integers(-2, 2),
    turn=st.integers(1, 3),
)
steps = st.one_of(
    st.tuples(st.just("push"), rows),
    st.tuples(st.just("take"), st.sampled_from(["thread", "async"])),
    st.tuples(st.just("discard"), st.integers(1, 1_000)),
    st.tuples(st.just("take back"), st.sampled_from(["first", "second", "x"])),
)


@given(st.lists(steps, max_size=60))
def test_whatever_happens_what_is_held_is_served_best_first(script: list[tuple[str, Any]]) -> None:
    ahead = make(target_max=100)
    held: dict[int, Claimed] = {}
    for verb, argument in script:
        if verb == "push":
            if argument.seq not in held:
                ahead.push([argument])
                held[argument.seq] = argument
        elif verb == "take":
            lane = [claimed for claimed in held.values() if claimed.task.startswith("a") == (argument == "async")]
            best = min(lane, key=place).seq if lane else None
            assert take(ahead, argument) == best
            held.pop(best or 0, None)
        elif verb == "discard":
            seq = next((seq for seq in held if seq >= argument), argument)
            assert ahead.discard(seq) == held.pop(seq, None)
        else:
            back = ahead.take_back(lambda claimed, queue=argument: claimed.queue == queue)
            assert sorted(back) == sorted(claimed for claimed in held.values() if claimed.queue == argument)
            held = {seq: claimed for seq, claimed in held.items() if claimed.queue != argument}
        assert len(ahead) == len(held)
        for queue, priority in [("first", 2), ("second", 0), ("x", -2)]:
            level = ahead.level(queue, priority)
            assert ahead.worse_than(level) == any(place(claimed)[:2] > level for claimed in held.values())


# ------------------------------------------------------------------------------------------------------------ taking out


def test_a_row_that_was_discarded_is_not_begun() -> None:
    ahead = make()
    ahead.push([row(1), row(2), row(3)])

    assert ahead.discard(2) == row(2)
    assert drain(ahead) == [1, 3]


def test_a_row_that_was_begun_cannot_be_discarded() -> None:
    ahead = make()
    ahead.push([row(1)])
    take(ahead)

    assert ahead.discard(1) is None


def test_a_row_is_discarded_once() -> None:
    ahead = make()
    ahead.push([row(1)])

    assert (ahead.discard(1), ahead.discard(1)) == (row(1), None)


def test_who_finds_a_row_gone_finds_its_attempt_already_there() -> None:
    """A cancel that comes while a worker begins waits, and then interrupts: it never finds neither row nor attempt."""
    ahead = make()
    ahead.push([row(1)])
    attempts: list[Attempt] = []
    seen: list[tuple[Claimed | None, int]] = []
    cancels: list[threading.Thread] = []

    def slowly(claimed: Claimed) -> Attempt:
        cancels.append(started(lambda: seen.append((ahead.discard(1), len(attempts)))))
        cancels[0].join(0.05)  # long enough for a discard that does not wait
        attempts.append(begin(claimed))
        return attempts[0]

    ahead.take("thread", slowly)
    cancels[0].join(5 * PATIENCE)
    assert seen == [(None, 1)]


def test_among_many_threads_each_row_goes_to_one() -> None:
    ahead = make(target_max=10_000)
    n = 4_000
    ahead.push([row(seq) for seq in range(n)])
    outs: list[list[int]] = [[], [], [], []]

    def discard(out: list[int]) -> None:
        out.extend(seq for seq in range(n - 1, n - 200, -1) if ahead.discard(seq) is not None)

    def back(out: list[int]) -> None:
        for rest in range(20):
            out.extend(claimed.seq for claimed in ahead.take_back(lambda claimed, rest=rest: claimed.seq % 41 == rest))

    jobs = [lambda: outs[0].extend(drain(ahead)), lambda: outs[1].extend(drain(ahead))]
    threads = [started(job) for job in [*jobs, lambda: discard(outs[2]), lambda: back(outs[3])]]
    for thread in threads:
        thread.join(30)

    assert sorted(seq for out in outs for seq in out) == list(range(n))
    assert len(ahead) == 0


def test_rows_that_were_taken_back_can_be_pushed_again() -> None:
    ahead = make()
    ahead.push([row(1), row(2, queue="second"), row(3)])
    back = ahead.take_back(lambda claimed: claimed.queue == "first")

    assert [claimed.seq for claimed in back] == [1, 3]
    ahead.push(back)
    assert drain(ahead) == [1, 3, 2]


def test_nothing_is_better_than_nothing() -> None:
    ahead = make()
    ahead.push([row(1, queue="second")])
    assert ahead.worse_than(ahead.level("first", 0))
    take(ahead)

    assert not ahead.worse_than(ahead.level("first", 0))


# --------------------------------------------------------------------------------------------------------------- waiting


def test_a_thread_that_waits_gets_what_is_pushed() -> None:
    ahead = make()
    got: list[int | None] = []
    threads = [started(lambda: got.append(take(ahead, timeout_s=10))) for _ in range(2)]
    wait_for_idle(ahead, 2)
    ahead.push([row(1), row(2)])
    for thread in threads:
        thread.join(5 * PATIENCE)

    assert sorted(got, key=str) == [1, 2]
    assert ahead.idle_threads == 0


def test_a_push_for_coroutines_wakes_no_thread() -> None:
    ahead = make()
    told: list[int] = []
    ahead.on_async = lambda: told.append(len(ahead))
    thread = started(lambda: take(ahead, timeout_s=10, stopped=lambda: bool(told) and len(ahead) == 0))
    wait_for_idle(ahead, 1)
    ahead.push([row(1, task="a")])

    assert (told, ahead.idle_threads) == ([1], 1)
    assert drain(ahead, "async") == [1]
    ahead.wake_all()
    thread.join(5 * PATIENCE)
    assert not thread.is_alive()


def test_coroutines_are_told_of_their_own_rows_only() -> None:
    ahead = make()
    told: list[None] = []
    ahead.on_async = lambda: told.append(None)
    ahead.push([row(1)])

    assert not told


def test_waiting_ends_with_its_time() -> None:
    assert take(make(), timeout_s=0.01) is None


def test_who_is_stopped_takes_nothing() -> None:
    ahead = make()
    ahead.push([row(1)])

    assert take(ahead, stopped=lambda: True) is None
    assert len(ahead) == 1


def test_a_stop_reaches_the_threads_that_wait() -> None:
    ahead, stop = make(), threading.Event()
    threads = [started(lambda: take(ahead, timeout_s=60, stopped=stop.is_set)) for _ in range(3)]
    wait_for_idle(ahead, 3)
    stop.set()
    ahead.wake_all()
    for thread in threads:
        thread.join(5 * PATIENCE)

    assert not any(thread.is_alive() for thread in threads)


# -------------------------------------------------------------------------------------------------------- asking for more


def test_there_is_room_while_it_is_half_empty_and_none_above() -> None:
    ahead = make(target_max=8)
    rooms = []
    for seq in range(9):
        rooms.append(ahead.room())
        ahead.push([row(seq)])

    assert rooms == [8, 7, 6, 5, 4, 0, 0, 0, 0]


def test_a_thread_without_work_beside_a_full_lane_of_coroutines_makes_room() -> None:
    ahead = make(target_max=8)
    ahead.push([row(seq, task="a") for seq in range(8)])
    assert ahead.room() == 0
    thread = started(lambda: take(ahead, timeout_s=60))
    wait_for_idle(ahead, 1)

    assert ahead.room() == 8
    ahead.push([row(99)])
    thread.join(5 * PATIENCE)


def test_there_is_plenty_for_one_lane_though_another_stands_idle() -> None:
    ahead = make(target_max=400)
    assert not ahead.has_plenty()
    thread = started(lambda: take(ahead, timeout_s=60))
    wait_for_idle(ahead, 1)
    ahead.push([row(seq, task="a") for seq in range(100)])
    assert (ahead.room() > 0, ahead.has_plenty()) == (True, False)
    ahead.push([row(100, task="a")])
    assert (ahead.room() > 0, ahead.has_plenty()) == (True, True)
    ahead.push([row(101)])
    thread.join(5 * PATIENCE)


def test_even_then_no_more_is_held_than_the_limit() -> None:
    ahead = make(target_max=readahead.HELD_MAX)
    ahead.push([row(seq, task="a") for seq in range(readahead.HELD_MAX - 5)])
    stop = threading.Event()
    thread = started(lambda: take(ahead, timeout_s=60, stopped=stop.is_set))
    wait_for_idle(ahead, 1)

    assert ahead.room() == 5
    ahead.push([row(seq, task="a") for seq in range(10_000, 10_005)])
    assert ahead.room() == 0
    stop.set()
    ahead.wake_all()
    thread.join(5 * PATIENCE)


def test_more_is_asked_for_when_half_is_gone_and_not_before() -> None:
    ahead = make(target_max=8)
    asked: list[int] = []
    ahead.on_room = lambda: asked.append(len(ahead))
    ahead.push([row(seq) for seq in range(8)])
    for _ in range(6):
        take(ahead)

    assert asked == [4, 3, 2]


def test_nobody_is_asked_when_there_is_no_more() -> None:
    ahead = make()
    asked: list[None] = []
    ahead.on_room, ahead.more = lambda: asked.append(None), False
    ahead.push([row(1)])
    take(ahead)
    take(ahead, timeout_s=0.01)

    assert not asked


def test_a_thread_that_begins_to_wait_asks_for_more() -> None:
    ahead = make()
    asked: list[None] = []
    ahead.on_room = lambda: asked.append(None)
    take(ahead, timeout_s=0.01)

    assert len(asked) == 1


def test_its_repr_says_how_it_stands() -> None:
    ahead = make()
    ahead.push([row(1), row(2, task="a")])

    assert repr(ahead) == "<ReadAhead [2 held, 0 idle threads | target 8]>"
