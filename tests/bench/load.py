"""A load generator that costs little: raw HTTP/1.1 over kept-alive connections, one request in flight on each.

It runs in a process of its own (``python -m tests.bench.load``) and shares the two cores with the server, so every microsecond
it spends is one that the server does not have: it looks at the status and the length of an answer and at nothing else.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any
from urllib.parse import urlsplit


class Connection(asyncio.Protocol):
    """Sends the next request as soon as the answer to the last one is complete."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._sent_at = 0.0
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._next()

    def _next(self) -> None:
        request = self._load.next_request()
        if request is None:
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = buffer
            return
        at = buffer.find(b"content-length: ", 0, end)
        length = int(buffer[at + 16 : buffer.find(b"\r", at)])
        if len(buffer) < end + 4 + length:
            self._buffer = buffer
            return
        self._buffer = b""
        self._load.answered(buffer[9:12], time.perf_counter() - self._sent_at)
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.gone()


class Load:
    """``requests`` times the same request over ``connections`` connections."""

    def __init__(self, request: bytes, requests: int, connections: int) -> None:
        self._request, self._left, self._open = request, requests, connections
        self._connections = connections
        self.statuses: dict[bytes, int] = {}
        self.latencies_s: list[float] = []
        self._over = asyncio.Event()

    def next_request(self) -> bytes | None:
        if self._left <= 0:
            return None
        self._left -= 1
        return self._request

    def answered(self, status: bytes, latency_s: float) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.latencies_s.append(latency_s)

    def gone(self) -> None:
        self._open -= 1
        if not self._open:
            self._over.set()

    async def run(self, host: str, port: int) -> float:
        """Seconds that all of it took."""
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        for _ in range(self._connections):
            await loop.create_connection(lambda: Connection(self), host, port)
        await self._over.wait()
        return time.perf_counter() - started


def http_request(method: str, url: str, body: bytes = b"", content_type: str = "application/json") -> bytes:
    target = urlsplit(url)
    path = target.path + (f"?{target.query}" if target.query else "")
    head = f"{method} {path} HTTP/1.1\r\nHost: {target.netloc}\r\n"
    if body:
        head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


async def measure(method: str, url: str, body: bytes, requests: int, connections: int) -> dict[str, Any]:
    target = urlsplit(url)
    load = Load(http_request(method, url, body), requests, connections)
    seconds = await load.run(target.hostname or "127.0.0.1", target.port or 80)
    ordered = sorted(load.latencies_s)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 3)

    return {
        "requests": requests,
        "seconds": seconds,
        "per_second": requests / seconds,
        "statuses": {status.decode(): n for status, n in load.statuses.items()},
        "p50_ms": at(0.5),
        "p95_ms": at(0.95),
        "p99_ms": at(0.99),
        "max_ms": round(ordered[-1] * 1000, 3),
    }


def main() -> None:
    """METHOD URL REQUESTS CONNECTIONS < body; the figures as JSON."""
    import uvloop

    method, url, requests, connections = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    body = sys.stdin.buffer.read()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(measure(method, url, body, requests, connections))))


if __name__ == "__main__":
    main()
