"""A server to compare with: uvicorn as it comes, and one ASGI route that does nothing."""

from __future__ import annotations

import socket

import uvicorn
from litestar import Litestar, asgi
from litestar.types import Receive, Scope, Send

from miniflow.bench.processes import EMPTY_ROUTE


@asgi(EMPTY_ROUTE, copy_scope=False)
async def empty(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - asked for by name
    """What an answer costs when nothing is done for it."""
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}", "more_body": False})


def main() -> None:
    """Serve on a free port until SIGTERM."""
    site = Litestar(route_handlers=[empty], openapi_config=None, logging_config=None)
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"MiniFlow calibration is ready: http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(site, http="httptools", lifespan="off", access_log=False, log_config=None)
    uvicorn.Server(config).run(sockets=[listener])
