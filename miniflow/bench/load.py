"""A load generator that costs little: raw HTTP/1.1 over kept-alive connections, one request in flight on each.

It is a process of its own and shares the machine with the server, so every microsecond it spends is one that the server does not
have: of an answer it looks at the status and the length, and at nothing else. It takes plans from standard input, one a line, and
answers with lines of JSON: how far it is, several times a second, and the outcome.

Closed loop: each connection sends as soon as its last answer is there, so a slow server is asked less, and what is measured is
the time of service. Open loop: requests are due at fixed times whatever the server does, and a latency counts from the moment
the request was due, even if no connection was free then; so a stall is seen by all who would have come during it.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from miniflow.bench.figures import Durations
from miniflow.bench.plan import LOST, NOT_SENT, TIMEOUT, Outcome, Plan, Progress, Said

HOUSEKEEPING_S = 0.2
ANSWER_S_MAX = 30.0
"""After this an answer is not waited for any more."""
SILENCE_S_MAX = 60.0
"""When no request ended for so long, the phase is over."""
GONE_S_MAX = 3.0
"""When nobody could be connected to for so long, the server is gone."""
LATE_S_MAX = 10.0
"""How long an open loop goes on sending what was due before its end."""
REPEATS_MAX = 3
REPEAT_S = 0.05
"""The wait before the first repeat; twice that before the second, and so on."""
TICK_S = 0.001
STOP = b"stop"


class Request(NamedTuple):
    due: float
    number: int
    tries: int


class Connection(asyncio.Protocol):
    """One request at a time. A lost connection is opened again."""

    def __init__(self, phase: Phase) -> None:
        self._phase = phase
        self._buffer = b""
        self._transport: Any = None
        self.request: Request | None = None
        self.sent_at = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport, self._buffer = transport, b""

    def send(self, request: Request, data: bytes) -> None:
        self.request = request
        self.sent_at = time.perf_counter()
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = buffer
            return
        at = buffer.find(b"content-length: ", 0, end)
        if at < 0:
            at = buffer[:end].lower().find(b"content-length: ")
        if at < 0:
            self._transport.abort()  # an answer whose end cannot be told: none
            return
        length = int(buffer[at + 16 : buffer.find(b"\r", at)])
        if len(buffer) < end + 4 + length:
            self._buffer = buffer
            return
        self._buffer = b""
        request, self.request = self.request, None
        if request is not None:
            self._phase.answered(self, request, buffer, end + 4)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        request, self.request = self.request, None
        self._phase.lost(self, request)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @property
    def open(self) -> bool:
        return self._transport is not None


class Phase:
    """Carries a plan out."""

    def __init__(self, plan: Plan, report: Callable[[Progress], None]) -> None:
        self._plan, self._report = plan, report
        target = urlsplit(plan.url)
        self._host, self._port = target.hostname or "127.0.0.1", target.port or 80
        bodies = [http_request(plan.method, plan.url + plan.path, body.encode(), plan.token) for body in plan.bodies]
        self._pattern = [(kind, bodies[kind]) for kind in plan.pattern]
        self._expect = str(plan.expect).encode()
        self._connections = [Connection(self) for _ in range(plan.connections)]
        self._idle: list[Connection] = []
        self._waiting: deque[Request] = deque()
        self._planned = plan.requests
        self._next = self._ended = 0
        self._latencies, self._late = array("d"), array("d")
        self.outcome = Outcome(good=[0] * len(plan.bodies), failed={}, ids=[])
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._began = self._last_end = self._connected = 0.0
        self._reconnecting: set[asyncio.Task[None]] = set()

    async def run(self) -> Outcome:
        cpu = time.process_time()
        results = await asyncio.gather(*(self._connect(one) for one in self._connections), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        self.outcome.connections = len(results) - len(errors)
        self._began = self._last_end = self._connected = time.perf_counter()
        if len(errors) == len(results):
            self.outcome.ended_early = f"cannot connect to {self._host}:{self._port}: {errors[0]}"
            return self.outcome
        for one in self._connections:
            if one.open:
                self._feed(one)
            else:
                self._reopen(one)
        if self._plan.rate is not None:
            self._tick()
        self._housekeeping()
        await self._over.wait()
        for task in self._reconnecting:
            task.cancel()
        for one in self._connections:
            one.abort()
        self._sum_up(cpu)
        return self.outcome

    def stop(self, why: str) -> None:
        """Send nothing more; what is in flight may end."""
        if not self.outcome.ended_early:
            self.outcome.ended_early = why
        self._planned = min(self._planned, self._next)
        self._give_up_waiting()

    # ------------------------------------------------------------------------------------------------------------- sending

    def _feed(self, connection: Connection) -> None:
        """The next request for a connection that is free."""
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        elif self._plan.rate is None and self._next < self._planned:
            number = self._next
            self._next += 1
            self._send(connection, Request(time.perf_counter(), number, 0))
        else:
            self._idle.append(connection)

    def _send(self, connection: Connection, request: Request) -> None:
        connection.send(request, self._pattern[request.number % len(self._pattern)][1])
        if self._plan.rate is not None and not request.tries:
            self._late.append(connection.sent_at - request.due)

    def _tick(self) -> None:
        """Open loop: send what has come due, and come again when the next one is."""
        rate = self._plan.rate or 1.0
        due = min(int((time.perf_counter() - self._began) * rate) + 1, self._planned)
        for number in range(self._next, due):
            self._offer(Request(self._began + number / rate, number, 0))
        self._next = max(self._next, due)
        if self._next < self._planned:
            wait = self._began + self._next / rate - time.perf_counter()
            self._loop.call_later(
                max(wait, TICK_S), self._tick
            )  # loops count milliseconds: less would be no wait at all

    def _offer(self, request: Request) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                self._send(connection, request)
                return
        self._waiting.append(request)

    # ----------------------------------------------------------------------------------------------------------- answers

    def answered(self, connection: Connection, request: Request, answer: bytes, body_at: int) -> None:
        now, status = time.perf_counter(), answer[9:12]
        if status == self._expect:
            outcome = self.outcome
            outcome.good[self._pattern[request.number % len(self._pattern)][0]] += 1
            self._latencies.append(now - request.due)
            every = self._plan.sample_every
            if every and not request.number % every:
                outcome.ids.append(id_in(answer, body_at))
            self._end(now)
        elif self._plan.repeat and request.tries < REPEATS_MAX and (status >= b"500" or status == b"429"):
            again = Request(request.due, request.number, request.tries + 1)
            self.outcome.repeats += 1
            self._loop.call_later(REPEAT_S * again.tries, self._offer, again)
        else:
            self._fail(status.decode("ascii", "replace"), now)
        self._feed(connection)

    def lost(self, connection: Connection, request: Request | None) -> None:
        if self._over.is_set():
            return
        if connection in self._idle:
            self._idle.remove(connection)
        if request is not None:
            late = time.perf_counter() - connection.sent_at >= ANSWER_S_MAX
            self._fail(TIMEOUT if late else LOST, time.perf_counter())
        self._reopen(connection)

    def _fail(self, kind: str, now: float) -> None:
        self.outcome.failed[kind] = self.outcome.failed.get(kind, 0) + 1
        self._end(now)

    def _end(self, now: float) -> None:
        self._ended += 1
        self._last_end = now
        if self._ended >= self._planned:
            self._over.set()

    # -------------------------------------------------------------------------------------------------------- connections

    async def _connect(self, connection: Connection) -> None:
        await self._loop.create_connection(lambda: connection, self._host, self._port)

    def _reopen(self, connection: Connection) -> None:
        task = self._loop.create_task(self._open_again(connection))
        self._reconnecting.add(task)
        task.add_done_callback(self._reconnecting.discard)

    async def _open_again(self, connection: Connection) -> None:
        while not self._over.is_set():
            try:
                await self._connect(connection)
            except OSError:
                await asyncio.sleep(HOUSEKEEPING_S)
            else:
                self._feed(connection)
                return

    # -------------------------------------------------------------------------------------------------------- housekeeping

    def _housekeeping(self) -> None:
        if self._over.is_set():
            return
        now = time.perf_counter()
        self._report(Progress(self._next, sum(self.outcome.good), sum(self.outcome.failed.values())))
        for one in self._connections:
            if one.request is not None and now - one.sent_at >= ANSWER_S_MAX:
                one.abort()
            if one.open:
                self._connected = now
        if now - self._connected > GONE_S_MAX:
            self.stop(f"the server is gone: nobody answers at {self._host}:{self._port}")
            self._over.set()
        elif now - self._last_end > SILENCE_S_MAX and self._ended < self._next:
            self.stop(f"no request ended for {SILENCE_S_MAX:g} s")
            self._over.set()
        elif self._waiting and now - self._began - self._planned / (self._plan.rate or math.inf) > LATE_S_MAX:
            self._give_up_waiting()
        if self._ended >= self._planned:
            self._over.set()
        self._loop.call_later(HOUSEKEEPING_S, self._housekeeping)

    def _give_up_waiting(self) -> None:
        for _ in range(len(self._waiting)):
            self._waiting.popleft()
            self._fail(NOT_SENT, self._last_end)

    def _sum_up(self, cpu: float) -> None:
        outcome = self.outcome
        outcome.sent = self._next
        outcome.seconds = self._last_end - self._began
        outcome.latency = Durations.of(s * 1e6 for s in self._latencies)
        outcome.late = Durations.of(s * 1e6 for s in self._late)
        outcome.cpu_s = time.process_time() - cpu


def http_request(method: str, url: str, body: bytes = b"", token: str = "") -> bytes:
    target = urlsplit(url)
    path = target.path + (f"?{target.query}" if target.query else "")
    head = f"{method} {path} HTTP/1.1\r\nHost: {target.netloc}\r\n"
    if token:
        head += f"Authorization: Bearer {token}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def id_in(answer: bytes, body_at: int) -> str:
    """The id in the answer to a submit."""
    at = answer.find(b'"id":"', body_at) + len(b'"id":"')
    return answer[at : answer.find(b'"', at)].decode()


# --------------------------------------------------------------------------------------------------------------- the process


def main() -> None:
    """Plans from standard input until it ends; "stop" ends the one under way."""
    gc.disable()  # nothing here is made in circles, and a collection in the middle of a phase would be measured
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_carry_out_plans())


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _carry_out_plans() -> None:
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes] = asyncio.Queue()
    current: list[Phase] = []

    def take(line: bytes) -> None:
        if line.strip() != STOP:
            lines.put_nowait(line)
            return
        for phase in current:
            phase.stop("stopped")

    def read() -> None:
        for line in iter(sys.stdin.buffer.readline, b""):
            loop.call_soon_threadsafe(take, line)
        os._exit(0)  # the bench has gone, and nobody is left to tell

    threading.Thread(target=read, daemon=True).start()
    while True:
        plan = msgspec.json.decode(await lines.get(), type=Plan)
        phase = Phase(plan, lambda progress: _say(Said(progress=progress)))
        current[:] = [phase]
        outcome = await phase.run()
        current.clear()
        _say(Said(outcome=outcome))


def _say(said: Said) -> None:
    print(msgspec.json.encode(said).decode(), flush=True)
