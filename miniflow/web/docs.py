"""The API's two pages, /docs (Swagger UI) and /redoc (ReDoc), and the files that they are made of.

Everything comes from this server: a machine at the edge has no internet. ``static/docs`` is ours; ``static/vendor`` comes with
the installation (the build brings it in, see .build/assets.py) and is missing from a checkout that was never installed. None of
it says anything of a job, so none of it asks for the token, which a browser's address bar could not give.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from litestar import MediaType, Request, Response, get
from litestar.exceptions import NotFoundException, ServiceUnavailableException

AnyRequest = Request[Any, Any, Any]

STATIC = Path(__file__).with_name("static")
FILES = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()}
KINDS = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
}
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; "  # both libraries write their styles into the page
    "worker-src blob:; "  # ReDoc's search
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache"}
NOT_INSTALLED = (
    "the scripts of this page come with the installation, and this checkout was not installed: `pip install -e .` brings them; "
    "the document itself is /openapi.json"
)


@get("/docs", summary="The API, to read and to try", include_in_schema=False)
async def swagger_ui(request: AnyRequest) -> Response[bytes]:
    return await page(request, "docs/docs.html", needs="vendor/swagger-ui/swagger-ui-bundle.js")


@get("/redoc", summary="The API, to read", include_in_schema=False)
async def redoc(request: AnyRequest) -> Response[bytes]:
    return await page(request, "docs/redoc.html", needs="vendor/redoc/redoc.standalone.js")


@get("/static/{name:path}", include_in_schema=False)
async def static_file(request: AnyRequest, name: Path) -> Response[bytes]:
    """One of the files below ``static``, and of no others, whatever dots are in the path."""
    wanted = name.as_posix().lstrip("/")
    if wanted not in FILES:
        raise NotFoundException
    return await file(request, wanted)


async def page(request: AnyRequest, name: str, *, needs: str) -> Response[bytes]:
    if needs not in FILES:
        raise ServiceUnavailableException(NOT_INSTALLED)
    answer = await file(request, name)
    answer.headers["content-security-policy"] = POLICY
    return answer


async def file(request: AnyRequest, name: str) -> Response[bytes]:
    """The file, or 304 if the browser has it already."""
    path = FILES[name]
    stat = path.stat()
    headers = {**HEADERS, "etag": f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(b"", status_code=304, headers=headers)
    body = await asyncio.to_thread(path.read_bytes)
    return Response(body, headers=headers, media_type=KINDS.get(path.suffix, "text/plain"))


def routes(document: Callable[[], bytes]) -> list[Any]:
    """The two pages, their files, and ``document()`` as /openapi.json."""

    @get("/openapi.json", include_in_schema=False)
    async def openapi(request: AnyRequest) -> Response[bytes]:
        text = await asyncio.to_thread(document)  # the first time it takes a while
        headers = {**HEADERS, "etag": f'"{zlib.crc32(text):x}"'}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(b"", status_code=304, headers=headers)
        return Response(text, headers=headers, media_type=MediaType.JSON)

    return [swagger_ui, redoc, static_file, openapi]
