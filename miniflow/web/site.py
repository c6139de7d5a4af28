"""The Litestar application: routes, errors, the OpenAPI document."""

from __future__ import annotations

from litestar import Litestar
from litestar.datastructures import State as AppState
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from miniflow import __version__
from miniflow.web import api, classic
from miniflow.web.backend import Backend
from miniflow.web.door import Door
from miniflow.web.problems import answer


def build(backend: Backend) -> Door:
    """The whole HTTP side as one ASGI application."""

    async def give_backend() -> Backend:
        return backend

    site = Litestar(
        route_handlers=[*api.ROUTES, *classic.ROUTES],
        dependencies={"backend": Provide(give_backend)},
        exception_handlers={Exception: answer},
        # Litestar's own pages load their scripts from elsewhere; the document itself is served by api.openapi_document.
        openapi_config=OpenAPIConfig(
            title="MiniFlow",
            version=__version__,
            path="/openapi",
            render_plugins=[JsonRenderPlugin(path="/document.json")],
        ),
        signature_types=[Backend],
        state=AppState({}),
        request_max_body_size=None,  # the Door limits bodies, and says by which setting
        logging_config=None,
        debug=False,
    )
    return Door(backend, site)
