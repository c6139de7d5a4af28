"""Pages of other sites that may use the API (CORS): those whose origins the setting ``cors_origins`` names.

It stands around the Door and not inside, so that a server that lets nobody in pays nothing for it, and so that the Door's own
answers (a fast submit, a refusal) can be read by the page as well. A preflight is answered here: browsers send it without the
token. Cookies play no part, so credentials are not allowed.
"""

from __future__ import annotations

from miniflow.web.door import Message, Receive, Scope, Send, Site

PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
    (
        b"access-control-allow-headers",
        b"Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, X-Request-ID",
    ),
    (b"access-control-max-age", b"600"),
]
EXPOSED = (
    b"access-control-expose-headers",
    b"ETag, Idempotency-Replayed, Location, Retry-After, X-Process-Time-MS, X-Request-ID",
)
VARY = (b"vary", b"Origin")


class Cors:
    """An ASGI application around another one."""

    def __init__(self, site: Site, origins: frozenset[str]) -> None:
        self._site = site
        self._origins = frozenset(origin.encode() for origin in origins)
        self._any = b"*" in self._origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._site(scope, receive, send)
            return
        headers = dict(scope["headers"])
        origin: bytes | None = headers.get(b"origin")
        extra = [VARY]  # also where nothing is allowed: a cache must not give that answer to an origin that is
        if origin is not None and (self._any or origin in self._origins):
            extra += [(b"access-control-allow-origin", origin), EXPOSED]
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await send({"type": "http.response.start", "status": 204, "headers": [*extra, *PREFLIGHT]})
                await send({"type": "http.response.body", "body": b""})
                return

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        await self._site(scope, receive, send_with_cors)
