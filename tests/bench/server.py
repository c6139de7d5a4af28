"""A server for benchmarks: MiniFlow as it is, with an empty raw ASGI route mounted in front of it to compare with.

``python -m tests.bench.server DB TASKS WORKERS``; prints its URL when it is ready.
"""

from __future__ import annotations

import sys
import tempfile

from litestar import Litestar, asgi
from litestar.types import ASGIApp, Receive, Scope, Send

from miniflow import logs
from miniflow.app import Application
from miniflow.settings import Settings


@asgi("/empty", copy_scope=False)
async def empty(scope: Scope, receive: Receive, send: Send) -> None:
    """What an answer costs when nothing is done for it."""
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


def mount(miniflow: ASGIApp) -> ASGIApp:
    raw = Litestar(route_handlers=[empty], openapi_config=None, logging_config=None)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await (raw if scope["type"] == "http" and scope["path"] == "/empty" else miniflow)(scope, receive, send)

    return application


async def say_ready(application: Application) -> None:
    print(application.url, flush=True)


def main() -> None:
    db, tasks, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with tempfile.TemporaryDirectory() as folder:
        logs.set_up(folder, "warning")
        Application(Settings(db=db, tasks=tasks, port=0, workers=workers, log_dir=folder, grace=0.1), around=mount).run(
            say_ready
        )


if __name__ == "__main__":
    main()
