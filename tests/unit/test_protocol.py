"""The server's HTTP protocol: an answer is one write, and nothing waits longer than a turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn

from miniflow.web.protocol import JoinedWrites, Protocol, answer_whole

HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What reaches the socket, write by write."""
    seen: list[bytes] = []
    make = JoinedWrites.__init__

    def recorded(self: JoinedWrites, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        make(self, Recording(transport, seen), loop)  # type: ignore[arg-type]

    monkeypatch.setattr(JoinedWrites, "__init__", recorded)
    return seen


class Recording:
    def __init__(self, transport: asyncio.Transport, seen: list[bytes]) -> None:
        self._transport, self._seen = transport, seen

    def write(self, data: bytes) -> None:
        self._seen.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def answered(application: Callable[..., Any], enough: bytes, request: bytes = REQUEST) -> bytes:
    """What a client of a server with this application receives, until ``enough`` is in it."""
    config = uvicorn.Config(application, http=Protocol, lifespan="off", log_config=None, port=0)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn sets a flag, no event
        await asyncio.sleep(0)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    got = b""
    while enough not in got and (data := await asyncio.wait_for(reader.read(65_536), 5)):
        got += data
    writer.close()
    server.should_exit = True
    await serving
    return got


def test_head_and_body_of_an_answer_are_one_write(writes: list[bytes]) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({**HEAD, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})

    assert asyncio.run(answered(application, b"hello")).endswith(b"\r\n\r\nhello")
    assert len(writes) == 1


def test_a_head_goes_out_by_itself_when_the_body_takes_its_time() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(HEAD)
        await receive()
        await receive()  # until the client has gone

    assert b"200 OK" in asyncio.run(answered(application, b"\r\n\r\n"))


def test_an_answer_in_pieces_arrives_whole_and_in_order() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(HEAD)
        for n in range(3):
            await send({"type": "http.response.body", "body": f"piece {n}\n".encode(), "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    got = asyncio.run(answered(application, b"\r\n0\r\n\r\n"))
    places = [got.index(f"piece {n}\n".encode()) for n in range(3)]
    assert places == sorted(places)


def test_an_answer_that_closes_the_connection_is_sent_before_it_closes() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({**HEAD, "headers": [(b"content-length", b"0"), (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b""})

    assert b"connection: close" in asyncio.run(answered(application, b"never comes"))


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """The same answer whichever way it takes."""
    await receive()
    if not answer_whole(send, b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n", b"hello"):
        await send({**HEAD, "headers": [*HEAD["headers"], (b"content-length", b"5")]})  # type: ignore[misc]
        await send({"type": "http.response.body", "body": b"hello"})


def lines(answer: bytes) -> list[bytes]:
    """Status line, headers in any order and body, but for the time."""
    return sorted(line for line in answer.split(b"\r\n") if not line.startswith(b"date: "))


def test_an_answer_past_send_has_the_headers_of_one_through_it(writes: list[bytes]) -> None:
    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def other(message: Any) -> None:
            await send(message)

        await hello(scope, receive, other)

    short, long = asyncio.run(answered(hello, b"hello")), asyncio.run(answered(wrapped, b"hello"))
    assert lines(short) == lines(long)
    assert b"\r\ndate: " in short
    assert len(writes) == 2


def test_a_connection_that_answers_past_send_takes_the_next_request() -> None:
    got = asyncio.run(
        answered(hello, b"hello" * 2 + b"never comes", REQUEST * 2 + b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    )
    assert got.count(b"200 OK") == got.count(b"\r\n\r\nhello") == 3
    assert got.count(b"connection: close") == 1
