"""Messages come out of a pipe as they went in, in whatever pieces."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniflow.executors.messages import (
    Done,
    Failed,
    Frames,
    FromChild,
    Hello,
    Progress,
    Run,
    Said,
    Submitted,
    ToChild,
    frame,
)

MESSAGES = st.lists(
    st.one_of(
        st.builds(Said, st.sampled_from(["INFO", "WARNING"]), st.text(max_size=300)),
        st.builds(Done, st.none() | st.text(max_size=50), st.booleans()),
        st.builds(Progress, st.floats(allow_nan=False), st.none(), st.none()),
        st.builds(Failed, st.text(max_size=5), st.text(max_size=5), delay_s=st.none() | st.floats(0, 9)),
    ),
    max_size=8,
)


@given(MESSAGES, st.lists(st.integers(1, 400), min_size=1))
def test_pieces_of_any_size_make_the_same_messages(messages: list[object], sizes: list[int]) -> None:
    data = b"".join(frame(message) for message in messages)
    frames, found, at, turn = Frames(FromChild), [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        found += frames.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert found == messages


def test_a_large_message_in_many_pieces() -> None:
    message = Said("INFO", "x" * 3_000_000)
    data = frame(message) + frame(Done("1"))
    frames, found = Frames(FromChild), []
    for at in range(0, len(data), 65_536):
        found += frames.feed(data[at : at + 65_536])
    assert found == [message, Done("1")]


def test_what_goes_to_a_child_goes_the_same_way() -> None:
    messages = [
        Hello("tasks", ["/a", "/b"], None, True),
        Run("id", "task", "default", 1, 3, "{}", None, "max_result_bytes", 100, None, "request", None, None),
        Submitted(None, "payload.a", "is missing"),
    ]
    assert Frames(ToChild).feed(b"".join(map(frame, messages))) == messages


def test_what_is_no_message_is_an_error() -> None:
    with pytest.raises(msgspec.DecodeError):
        Frames(FromChild).feed(b"\0\0\0\4junk")
