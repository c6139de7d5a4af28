"""The load generator against a server whose behaviour is known: what it sends when, and what it counts as what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from miniflow.bench import load
from miniflow.bench.load import Phase
from miniflow.bench.plan import LOST, NOT_SENT, Outcome, Plan, Progress

BODY = '{"task":"noop"}'
Answer = Callable[[int], Awaitable[bytes | None]]
"""To request number n: what is sent back; None closes the connection."""
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def http(status: int, body: str = '{"id":"job-1","task":"noop"}') -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


async def accept(_: int) -> bytes:
    return http(201)


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[str]:
    """A server on a free port; its URL. At the end all connections have been served and closed."""
    served: set[asyncio.Task[None]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(connection, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*served)


def run(answer: Answer, **settings: Any) -> tuple[Outcome, list[bytes]]:
    """Carry a plan out; the outcome, and the bodies as they came."""
    came: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
            came.append(await reader.readexactly(length))
            text = await answer(len(came) - 1)
            if text is None:
                return
            writer.write(text)

    async def carry_out() -> Outcome:
        async with listening(serve) as url:
            plan = Plan(**{"url": url, "bodies": [BODY], "connections": 2, **settings})
            return await asyncio.wait_for(Phase(plan, report=lambda _: None).run(), 20)

    return asyncio.run(carry_out()), came


def test_a_closed_loop_sends_each_request_once() -> None:
    outcome, came = run(accept, requests=200, connections=5)
    assert (outcome.sent, outcome.accepted, outcome.failures, outcome.latency.n) == (200, 200, 0, 200)
    assert came == [BODY.encode()] * 200
    assert outcome.connections == 5


def test_bodies_come_in_the_order_of_the_pattern_and_are_counted_apart() -> None:
    outcome, came = run(accept, bodies=["a", "b", "c"], pattern=[0, 1, 1, 2], requests=10, connections=1)
    assert b"".join(came) == b"abbcabbcab"
    assert outcome.good == [3, 5, 2]


def test_an_open_loop_keeps_to_its_schedule() -> None:
    """40 requests at 200 a second: the last is due after 195 ms, however fast the answers come."""
    outcome, _ = run(accept, requests=40, rate=200.0)
    assert outcome.accepted == 40
    assert 0.195 <= outcome.seconds < 1
    assert outcome.late.n == 40


def test_a_stall_is_counted_by_all_that_were_due_in_it() -> None:
    """The server sleeps once, for 300 ms, while 30 requests come due: half of them wait for 150 ms and more.

    A closed loop would have had one slow request, and a fine median.
    """

    async def stall_once(n: int) -> bytes:
        if n == 0:
            await asyncio.sleep(0.3)
        return http(201)

    outcome, _ = run(stall_once, requests=30, rate=100.0, connections=1)
    assert outcome.accepted == 30
    assert (outcome.latency.percentile_ms(100) or 0) >= 300
    assert (outcome.latency.percentile_ms(50) or 0) >= 140
    closed, _ = run(stall_once, requests=30, connections=1)
    assert (closed.latency.percentile_ms(50) or 0) < 140


def test_only_the_expected_status_is_a_success() -> None:
    async def some(n: int) -> bytes:
        return http([201, 200, 422, 201][n % 4])

    outcome, _ = run(some, requests=8, connections=1)
    assert outcome.accepted == 4
    assert outcome.failed == {"200": 2, "422": 2}
    assert outcome.latency.n == 4, "how fast something is refused is no latency"


def test_what_the_server_could_not_take_is_sent_again_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "REPEAT_S", 0.001)

    async def busy_at_first(n: int) -> bytes:
        return http([503, 429, 201][min(n, 2)])

    outcome, came = run(busy_at_first, requests=1)
    assert (outcome.accepted, outcome.repeats, outcome.failed, len(came)) == (1, 2, {}, 3)

    async def full(_: int) -> bytes:
        return http(429)

    outcome, came = run(full, requests=1)
    assert (outcome.accepted, outcome.repeats, outcome.failed, len(came)) == (0, 3, {"429": 1}, 4)


def test_a_repeated_request_is_as_slow_as_all_its_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "REPEAT_S", 0.05)

    async def busy_at_first(n: int) -> bytes:
        return http(503 if n == 0 else 201)

    outcome, _ = run(busy_at_first, requests=1)
    assert (outcome.latency.percentile_ms(50) or 0) >= 50


def test_a_lost_connection_is_a_request_without_an_answer_and_is_opened_again() -> None:
    async def close_the_third(n: int) -> bytes | None:
        return None if n == 2 else http(201)

    outcome, came = run(close_the_third, requests=10, connections=1)
    assert (outcome.accepted, outcome.failed, outcome.unanswered) == (9, {LOST: 1}, 1)
    assert len(came) == 10, "it may have been accepted: it is not sent again"


def test_an_answer_may_come_in_pieces() -> None:
    async def in_full(_: int) -> bytes:
        return http(201, f'{{"id":"job-1","payload":"{"x" * 300_000}"}}')

    outcome, _ = run(in_full, requests=3, connections=1, sample_every=1)
    assert (outcome.accepted, outcome.ids) == (3, ["job-1"] * 3)


def test_samples_are_taken_of_each_nth() -> None:
    async def numbered(n: int) -> bytes:
        return http(201, f'{{"id":"job-{n}"}}')

    outcome, _ = run(numbered, requests=10, connections=1, sample_every=4)
    assert outcome.ids == ["job-0", "job-4", "job-8"]


def test_nobody_there_is_said() -> None:
    async def carry_out() -> Outcome:
        return await Phase(Plan(url="http://127.0.0.1:1", requests=5, connections=2), report=lambda _: None).run()

    outcome = asyncio.run(carry_out())
    assert outcome.accepted == 0
    assert outcome.ended_early.startswith("cannot connect to 127.0.0.1:1")


def test_a_stop_sends_nothing_more_and_takes_the_answers_that_are_under_way() -> None:
    reports: list[Progress] = []

    async def carry_out() -> Outcome:
        arrived, go = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            arrived.set()
            await go.wait()
            writer.write(http(201))
            await reader.read()

        async with listening(serve) as url:
            phase = Phase(Plan(url=url, requests=1000, connections=1, rate=1000.0), reports.append)
            running = asyncio.create_task(phase.run())
            await arrived.wait()
            while len(phase._waiting) < 5:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.001)
            phase.stop("stopped")
            go.set()
            return await asyncio.wait_for(running, 10)

    outcome = asyncio.run(carry_out())
    assert (outcome.accepted, outcome.ended_early) == (1, "stopped")
    assert outcome.failed[NOT_SENT] == outcome.sent - 1 < 999
    assert reports
