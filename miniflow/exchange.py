"""How client and server talk, whatever about: a request, a request that is repeated, a stream that goes on where it was cut.

All of it is generators. They yield steps – ask the server, read the next event of a stream, pause, give an item to the caller –
and are sent what came of them; what httpx raises is thrown into them. They never do anything themselves: ``Client`` and
``AsyncClient`` carry the steps out, the one without and the other with ``await``, and so nothing is written twice.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import httpx
from httpx_sse import ServerSentEvent

from miniflow import __version__
from miniflow.answers import Busy, ClientError, Problem, ServerUnreachable, decoded, decoded_text, error_of, shown
from miniflow.errors import SettingsError
from miniflow.retry import RetryPolicy

log = logging.getLogger("miniflow.client")

S = TypeVar("S")
T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

SILENCE_S = 45.0  # a stream says something every 15 s; silent for three times that, it is dead
AWAY_S = 60.0  # how long a wait or a stream goes on without a server, where the caller has set no time
RETRY_AFTER_S_MAX = 30.0  # a submit that is told to come back later than this is not repeated
REPEATS = 5
BACKOFF = RetryPolicy(base=0.2, factor=2, max_delay=5, jitter=0.5)

# --------------------------------------------------------------------------------------------------------------- the steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request. The reply is an httpx.Response: read already, unless ``stream`` is set and it is a good one."""

    method: str = "GET"
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    slow_s: float = 0  # how long the server may take with good reason, beside the client's own timeout
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """The next event of the stream that the last Ask opened. The reply is a ServerSentEvent, None at its end."""


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class Give(Generic[T]):
    """The next item for the caller."""

    item: T


Step: TypeAlias = Ask | Read | Pause
Flow: TypeAlias = Generator[Step, Any, T]
"""A call with one answer."""
Items: TypeAlias = Generator[Step | Give[T], Any, None]
"""A call that gives one item after the other."""


class CarryOut(Protocol):
    """How ``Client`` carries a call out; below, how ``AsyncClient`` does, and both with items."""

    def __call__(self, flow: Flow[T], /) -> T: ...


class Iterate(Protocol):
    def __call__(self, flow: Items[T], /) -> Iterator[T]: ...


class AsyncCarryOut(Protocol):
    async def __call__(self, flow: Flow[T], /) -> T: ...


class AsyncIterate(Protocol):
    def __call__(self, flow: Items[T], /) -> AsyncGenerator[T, None]: ...


def resume(flow: Generator[S, Any, T], outcome: Any) -> S:
    """The next step of ``flow``, which is told what came of the last one. StopIteration at its end, with its value."""
    return flow.throw(outcome) if isinstance(outcome, httpx.TransportError) else flow.send(outcome)


# ------------------------------------------------------------------------------------------------------- for both clients


def http_options(url: str | None, token: str | None, timeout_s: float) -> dict[str, Any]:
    """The arguments of ``httpx.Client`` and ``httpx.AsyncClient``. SettingsError for an address that is none."""
    source = "url" if url else "MINIFLOW_URL"
    given = url or os.environ.get("MINIFLOW_URL") or DEFAULT_URL
    base = _base_url(given if "://" in given else f"http://{given}", source)
    secret = os.environ.get("MINIFLOW_TOKEN", "") if token is None else token
    headers = {"user-agent": f"miniflow/{__version__}", "accept": "application/json"}
    return {
        "base_url": base,
        "headers": {**headers, "authorization": f"Bearer {secret}"} if secret else headers,
        "timeout": timeout_s,
        "verify": certificates(base.scheme),
        "trust_env": base.host not in LOOPBACK,  # a proxy of the environment is not for this machine
    }


def certificates(scheme: str) -> ssl.SSLContext | bool:
    """httpx's ``verify``. It would load the certificates of all authorities for every client, which takes 20 ms and is of no use
    where plain HTTP is spoken; there a context that trusts none stands in: should it ever be asked, it lets nobody pass."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if scheme == "http" else True


def _base_url(text: str, source: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as exc:
        raise SettingsError(f"{source} {text!r} is no address: {exc}; it looks like {DEFAULT_URL}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise SettingsError(f"{source} {text!r} is no address of a server; it looks like {DEFAULT_URL}")
    return url


def request_options(ask: Ask, timeout_s: float) -> dict[str, Any]:
    """``ask`` as the arguments of httpx's ``build_request``."""
    headers = {**ask.headers, **({"content-type": "application/json"} if ask.body is not None else {})}
    read_s = SILENCE_S if ask.stream else timeout_s + ask.slow_s
    return {
        "method": ask.method,
        "url": ask.path,
        "params": {name: value for name, value in ask.params.items() if value is not None},
        "headers": headers,
        "content": ask.body,
        "timeout": httpx.Timeout(timeout_s, read=read_s),
    }


# ------------------------------------------------------------------------------------------------------------- one request


def carry_out(step: Step) -> Flow[Any]:
    """What comes of a step. ServerUnreachable if nothing came."""
    try:
        return (yield step)
    except httpx.PoolTimeout:
        raise ClientError(
            "all connections of this client are in use; ask for less at once, or use another client"
        ) from None
    except httpx.TransportError as exc:
        place = shown(exc.request.url.copy_with(raw_path=b"/")).rstrip("/")
        why = str(exc) or type(exc).__name__
        if isinstance(exc, httpx.TimeoutException):
            why = "it took too long"
        elif isinstance(exc, (httpx.RemoteProtocolError, httpx.ReadError)):
            why = "the connection was cut"
        raise ServerUnreachable(
            f"no answer from {place} ({why}); is `miniflow serve` running there? MINIFLOW_URL or url says where it is"
        ) from exc


def send(ask: Ask) -> Flow[httpx.Response]:
    """The answer to a request, if it is a good one; else its error raised."""
    answer: httpx.Response = yield from carry_out(ask)
    if not answer.is_success:
        raise error_of(answer)
    return answer


def one(kind: type[T], path: str, method: str = "GET", **more: Any) -> Flow[T]:
    """A request whose answer is one object."""
    return decoded((yield from send(Ask(method=method, path=path, **more))), kind)


# ------------------------------------------------------------------------------------------------- more than one request


def repeated(ask: Ask, repeats: int) -> Flow[httpx.Response]:
    """The answer to a request that can safely be made twice; made again where there was none, or the server was busy."""
    for tried in count(1):
        try:
            return (yield from send(ask))
        except (ServerUnreachable, Busy) as exc:
            wait_s = BACKOFF.delay_s(tried)
            if isinstance(exc, Busy) and exc.retry_after is not None:
                if exc.retry_after > RETRY_AFTER_S_MAX:
                    raise
                wait_s += (
                    exc.retry_after
                )  # and a little more, so that not all who were told the same come back together
            if tried > repeats:
                raise
            log.info("%s; asking again in %.1f s", exc, wait_s)
        yield Pause(wait_s)
    raise AssertionError("counting does not end")


class Away:
    """How long the server has been away, for calls that outlast a restart of it."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._tries = 0

    def answered(self) -> None:
        self._since, self._tries = None, 0

    def pause(self, error: ClientError, left_s: float | None = None) -> Pause:
        """Until the next try. Raises ``error`` if no time is left; where the caller has set none, after AWAY_S."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            log.info("%s; trying again", error)
        if left_s is None:
            left_s = self._since + AWAY_S - now
        if left_s <= 0:
            raise error
        self._tries += 1
        return Pause(min(BACKOFF.delay_s(self._tries), left_s))


def stream(
    path: str,
    params: Mapping[str, Any],
    start: Mapping[str, Any],
    item: Callable[[ServerSentEvent, httpx.Response], T],
) -> Items[T]:
    """The items of an event stream until the server says that it ends; one that was cut goes on after the last event seen.

    ``start`` are the parameters that say where to begin: those of the first request only.
    """
    away, last_id = Away(), ""
    while True:
        ask = Ask(
            path=path,
            params=params if last_id else {**params, **start},
            headers={"accept": "text/event-stream", **({"last-event-id": last_id} if last_id else {})},
            stream=True,
        )
        try:
            answer = yield from send(ask)
            if "text/event-stream" not in answer.headers.get("content-type", ""):
                raise ClientError(
                    f"{shown(answer.request.url)} is no event stream; is the url right, and the server new enough?"
                )
            while True:
                event: ServerSentEvent | None = yield from carry_out(Read())
                if event is None:
                    raise ServerUnreachable(f"the stream {path} was cut")
                away.answered()
                if event.event == "end":
                    return
                if event.event == "reset":
                    raise ClientError(decoded_text(event.data, Problem, answer).detail, code="reset")
                seen, last_id = (
                    last_id,
                    event.id or last_id,
                )  # an id may come alone: nothing up to there need be told again
                if event.data and (event.id != seen or not seen):
                    yield Give(item(event, answer))
        except (ServerUnreachable, Busy) as exc:
            yield away.pause(exc)
