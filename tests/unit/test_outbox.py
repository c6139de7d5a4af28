"""What is sent to a child arrives whole and in order, however long it takes to read."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from miniflow.executors.outbox import AT_ONCE_BYTES_MAX, Outbox
from tests.waiting import wait_until


@pytest.fixture
def pipe() -> Iterator[tuple[Outbox, int]]:
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as file:
        yield Outbox(file), reading
    os.close(reading)


def read(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += os.read(fd, count - len(data))
    return data


def test_a_small_one_does_not_overtake_a_large_one_that_is_half_written(pipe: tuple[Outbox, int]) -> None:
    outbox, reading = pipe
    messages = [b"a" * 1_000_000, b"b" * 10, b"c" * (AT_ONCE_BYTES_MAX + 1), b"d"]
    for message in messages:  # none waits, though nobody reads
        outbox.send(message)
    together = b"".join(messages)
    assert read(reading, len(together)) == together


def test_what_comes_when_all_is_written_is_written_at_once(pipe: tuple[Outbox, int]) -> None:
    outbox, reading = pipe
    outbox.send(b"a" * 100_000)
    assert read(reading, 100_000) == b"a" * 100_000
    wait_until(lambda: "[0 " in repr(outbox), 10, "the thread to end")
    outbox.send(b"b")
    os.set_blocking(reading, False)
    assert os.read(reading, 10) == b"b"


def test_one_that_reads_no_more_is_no_error() -> None:
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as file:
        outbox = Outbox(file)
        os.close(reading)
        outbox.send(b"a")
        outbox.send(b"a" * 100_000)
        wait_until(lambda: "[0 " in repr(outbox), 10, "the thread to end")
