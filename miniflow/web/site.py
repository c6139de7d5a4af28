"""The Litestar application: routes, errors, the OpenAPI document."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, Response, route
from litestar.datastructures import State as AppState
from litestar.di import Provide
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from miniflow import __version__
from miniflow.web import (
    api,
    classic,
    definitions,
    described,
    docs,
    events,
    functions,
    jobs,
    logs,
    metrics,
    schedules,
    system,
    traces,
    workflows,
)
from miniflow.web.backend import Backend
from miniflow.web.cors import Cors
from miniflow.web.document import Document, operation_ids
from miniflow.web.door import Door, Site
from miniflow.web.problems import answer
from miniflow.web.wording import refuse_unknown_parameters

ROUTES: list[HTTPRouteHandler] = [
    *api.ROUTES,
    *jobs.ROUTES,
    *workflows.ROUTES,
    *definitions.ROUTES,
    *functions.ROUTES,
    *traces.ROUTES,
    *events.ROUTES,
    *schedules.ROUTES,
    *system.ROUTES,
    *logs.ROUTES,
    *classic.ROUTES,
    *metrics.ROUTES,
]


def build(backend: Backend) -> Site:
    """The whole HTTP side as one ASGI application."""
    settings = backend.settings
    document = Document(lambda: generated(backend), described.API, has_token=bool(settings.token))
    routes = [*ROUTES, *docs.routes(document.text)]
    door = Door(backend, _litestar(backend, [*_options(routes), *routes]))
    return Cors(door, settings.origins) if settings.origins else door


def generated(backend: Backend) -> dict[str, Any]:
    """Litestar's own OpenAPI document, out of an application that serves nobody: one that serves would publish it, in pages that
    load their scripts from elsewhere."""
    config = OpenAPIConfig(
        title="MiniFlow",
        version=__version__,
        use_handler_docstrings=True,
        operation_id_creator=operation_ids(),
        render_plugins=[JsonRenderPlugin()],
    )
    return _litestar(backend, ROUTES, config).openapi_schema.to_schema()


def _litestar(backend: Backend, routes: list[HTTPRouteHandler], openapi: OpenAPIConfig | None = None) -> Litestar:
    async def give_backend() -> Backend:
        return backend

    return Litestar(
        route_handlers=routes,
        dependencies={"backend": Provide(give_backend)},
        exception_handlers={Exception: answer},
        before_request=refuse_unknown_parameters,
        openapi_config=openapi,
        signature_types=[Backend],
        state=AppState({}),
        request_max_body_size=None,  # the Door limits bodies, and says by which setting
        logging_config=None,
        debug=False,
    )


def _options(routes: list[HTTPRouteHandler]) -> list[HTTPRouteHandler]:
    """What may be done at each path. Litestar's own answer names the methods of the first handler that it met there."""
    allowed: dict[str, set[str]] = {}
    for handler in routes:
        for path in handler.paths:
            allowed.setdefault(path, {"OPTIONS"}).update(handler.http_methods)
    paths: dict[str, list[str]] = {}  # by what is allowed there: each handler makes the start longer
    for path, methods in allowed.items():
        paths.setdefault(", ".join(sorted(methods)), []).append(path)
    return [_options_of(alike, allow) for allow, alike in paths.items()]


def _options_of(paths: list[str], allow: str) -> HTTPRouteHandler:
    @route(paths, http_method="OPTIONS", status_code=204, include_in_schema=False)
    async def options() -> Response[None]:
        return Response(None, headers={"allow": allow})

    return options
