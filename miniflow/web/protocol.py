"""uvicorn's HTTP protocol with one write for each answer, and a short way for an answer that is known to be right.

uvicorn writes the head of an answer and its body apart, and each write is a system call: for an answer of a few hundred bytes
they are half of all that the server does. Here the head waits for the body that follows in the same turn of the loop. A head
with nothing after it (an event stream that has nothing to say yet) goes out at the end of the turn.

``answer_whole`` goes past what uvicorn does with each header. It uses uvicorn's own request cycle, so uvicorn is pinned.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


class JoinedWrites:
    """A transport whose first write of a turn waits for the next one."""

    __slots__ = ("_held", "_loop", "_transport", "get_extra_info", "is_closing", "pause_reading", "resume_reading")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: bytes | None = None
        self.is_closing, self.get_extra_info = transport.is_closing, transport.get_extra_info
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        held = self._held
        if held is not None:
            self._held = None
            self._transport.write(held + data)
        elif data.endswith(b"\r\n\r\n"):  # a head by itself
            self._held = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._transport.write(held)


class Protocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(JoinedWrites(transport, self.loop))  # type: ignore[arg-type]


def answer_whole(send: Any, head: bytes, body: bytes) -> bool:
    """Write a whole answer at once. ``head`` is the status line and headers, each with its line break; the server's own and the
    length are added. False, and nothing done, where ``send`` is not uvicorn's (the application is wrapped in another) or the
    connection wants more care: it is to be closed, is closed, or takes nothing now.
    """
    cycle = getattr(send, "__self__", None)
    if (
        type(cycle) is not RequestResponseCycle
        or cycle.response_started
        or cycle.disconnected
        or not cycle.keep_alive
        or cycle.flow.write_paused
    ):
        return False
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    for name, value in cycle.default_headers:
        head += name + b": " + value + b"\r\n"
    cycle.transport.write(b"%scontent-length: %d\r\n\r\n%s" % (head, len(body), body))
    cycle.message_event.set()
    cycle.on_response()
    return True
