"""Data of several pipes at once, in whichever way the system has."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest

from miniflow.executors.inbox import Inbox, PolledInbox, ThreadedInbox
from tests.waiting import PATIENCE, wait_until

Make = Callable[[Mapping[str, int]], Inbox]
KINDS: list[Make] = [ThreadedInbox, *([PolledInbox] if hasattr(select, "poll") else [])]


class Pipes:
    """Two pipes and an inbox of them."""

    def __init__(self, make: Make) -> None:
        ends = {name: os.pipe() for name in ("one", "two")}
        self._reading = {name: reading for name, (reading, _) in ends.items()}
        self._writing = {name: writing for name, (_, writing) in ends.items()}
        self.inbox = make(self._reading)

    def write(self, name: str, data: bytes) -> None:
        os.write(self._writing[name], data)

    def finish(self, name: str) -> None:
        os.close(self._writing.pop(name))

    def close(self) -> None:
        self.inbox.close()
        for name in list(self._writing):
            self.finish(name)
        # One that still read would read from whatever is opened next under the same number.
        threads = {f"miniflow-{name}" for name in self._reading}
        wait_until(
            lambda: threads & {thread.name for thread in threading.enumerate()}, 5, "its end", until=set().__eq__
        )
        for fd in self._reading.values():
            os.close(fd)


@pytest.fixture(params=KINDS, ids=["threads", "poll"][: len(KINDS)])
def pipes(request: pytest.FixtureRequest) -> Iterator[Pipes]:
    made = Pipes(request.param)
    yield made
    made.close()


def gathered(pipes: Pipes, size: int) -> dict[str, bytes]:
    found = {"one": b"", "two": b""}

    def look() -> int:
        for name, data in pipes.inbox.wait(0.01):
            found[name] += data
        return sum(map(len, found.values()))

    wait_until(look, 5, f"{size} bytes", until=lambda n: n >= size)
    return found


def test_data_come_by_the_name_of_their_pipe(pipes: Pipes) -> None:
    pipes.write("one", b"a")
    pipes.write("two", b"b" * 1_000)
    assert gathered(pipes, 1_001) == {"one": b"a", "two": b"b" * 1_000}


def test_the_end_of_a_pipe_is_told_once(pipes: Pipes) -> None:
    pipes.finish("one")
    assert pipes.inbox.wait(5 * PATIENCE) == [("one", b"")]
    assert pipes.inbox.wait(0.02) == []


def test_nothing_comes_until_the_time_is_over(pipes: Pipes) -> None:
    assert pipes.inbox.wait(0.01) == []


def test_it_can_be_woken_before_and_while_it_waits(pipes: Pipes) -> None:
    pipes.inbox.wake()
    assert pipes.inbox.wait(30) == []

    threading.Timer(0.05, pipes.inbox.wake).start()
    assert pipes.inbox.wait(30) == []


def test_waking_again_and_again_and_after_the_close_does_no_harm(pipes: Pipes) -> None:
    for _ in range(70_000):
        pipes.inbox.wake()
    pipes.inbox.close()
    pipes.inbox.wake()
    pipes.inbox.close()


@pytest.mark.skipif(not hasattr(select, "poll"), reason="its pipes can be polled")
def test_what_was_written_first_to_a_later_pipe_is_told_with_the_earlier() -> None:
    pipes = Pipes(PolledInbox)
    assert pipes.inbox.in_order
    pipes.write("two", b"before")
    pipes.write("one", b"after")
    assert pipes.inbox.wait(5 * PATIENCE) == [("one", b"after"), ("two", b"before")]
    pipes.close()
