"""What a child process and the server say to each other, and how it goes through a pipe.

A message is a msgspec struct as MessagePack, after four bytes with its length (big-endian). Both ends are the same program, so
there is no version in it. Fields go by their place: a no-op job is a hundred bytes each way.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

_LENGTH = struct.Struct(">I")


class Hello(msgspec.Struct, tag=0, array_like=True):
    """The first message to a child: what it needs before it can take jobs."""

    tasks: str
    """The folder of task files."""
    path: list[str]
    """``sys.path`` of the server."""
    pythonpath: str | None
    """The environment variable as the server has it; it was used to start the child."""
    debug: bool
    """Whether the debug lines of ``logging`` are wanted."""
    turns: int | None = None
    """The file descriptor of its end of the turns; None where there are none."""


class Run(msgspec.Struct, tag=1, array_like=True):
    """A job to run. ``deadline_ms`` is on the boot clock, which all processes of a machine share.

    One that was handed ``ahead`` is begun only with a turn, and its ``deadline_ms`` counts from its begin.
    """

    id: str
    task: str
    queue: str
    attempt: int
    max_retries: int
    payload: str
    deadline_ms: int | None
    result_limit: str
    """The name of the limit that follows."""
    result_bytes: int
    open_files: int | None = None
    request_id: str | None = None
    tags: str | None = None
    meta: str | None = None
    ahead: bool = False


class Submitted(msgspec.Struct, tag=2, array_like=True):
    """The answer to Submit: the id of the job, or the field and the reason of a refusal."""

    job_id: str | None
    field: str = ""
    reason: str = ""


class Done(msgspec.Struct, tag=10, array_like=True):
    """The job has ended well, with this result as JSON text."""

    result: str | None
    leaves: bool = False
    """Processes that it started are still there."""
    wrote: bool = False
    """It has written to the pipe of standard error, and not all was read yet: no job that was handed ahead follows."""
    took_us: int = 0
    """How long the body ran."""


class Failed(msgspec.Struct, tag=11, array_like=True):
    """The job has raised."""

    error_type: str
    error: str
    trace: str | None = None
    leaves: bool = False
    wrote: bool = False
    final: bool = False
    """No retry, whatever is left."""
    bad_result: bool = False
    delay_s: float | None = None
    """It asked to run again after so long."""


class Said(msgspec.Struct, tag=12, array_like=True):
    """A line for the job's log."""

    level: str
    message: str


class Progress(msgspec.Struct, tag=13, array_like=True):
    """As ``JobContext.progress`` has it."""

    done: float
    total: float | None
    message: str | None


class Submit(msgspec.Struct, tag=14, array_like=True):
    """The job submits another one: a ``Submission`` as JSON. It waits for Submitted."""

    submission: bytes


class Beat(msgspec.Struct, tag=15, array_like=True):
    """The job is alive. Also said by a child as soon as it can take jobs."""


class AskTrace(msgspec.Struct, tag=16, array_like=True):
    """The job asks for what it passes on as ``traceparent``. It waits for Traced."""


class Traced(msgspec.Struct, tag=3, array_like=True):
    """The answer to AskTrace."""

    traceparent: str | None


ToChild = Hello | Run | Submitted | Traced
FromChild = Done | Failed | Said | Progress | Submit | Beat | AskTrace

_encode = msgspec.msgpack.Encoder().encode


def frame(message: Any) -> bytes:
    """``message`` as it goes into the pipe."""
    body = _encode(message)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Cuts what comes out of a pipe into messages of the types in ``kinds``."""

    def __init__(self, kinds: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(kinds).decode
        self._rest = b""
        self._pieces: list[bytes] = []  # of a message that is not all there yet
        self._missing = 0

    def __repr__(self) -> str:
        return f"<Frames [{self._missing} bytes to come]>"

    def feed(self, data: bytes) -> list[Any]:
        """The messages that ``data`` completes. msgspec's DecodeError for what is none."""
        if self._missing > len(data):  # a large one: put together once, when the last piece is there
            self._pieces.append(data)
            self._missing -= len(data)
            return []
        if self._pieces:
            data = b"".join([*self._pieces, data])
            self._pieces.clear()
            self._missing = 0
        elif self._rest:
            data = self._rest + data
        self._rest = b""
        at, end = 0, len(data)
        found: list[Any] = []
        view = memoryview(data)
        while end - at >= 4:
            (length,) = _LENGTH.unpack_from(data, at)
            if end - at - 4 < length:
                self._missing = length - (end - at - 4)
                self._pieces.append(data[at:])
                return found
            found.append(self._decode(view[at + 4 : at + 4 + length]))
            at += 4 + length
        self._rest = data[at:]
        return found
