"""Kept definitions of workflows over HTTP: put, look, delete. A start names one, see ``workflows``."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from litestar import Response, delete, get, put
from litestar.params import Parameter

from miniflow.contract import check_name
from miniflow.definition_queries import DefinitionList, definition_shown
from miniflow.web.api import AnyRequest, respond
from miniflow.web.backend import Backend
from miniflow.web.problems import decoded
from miniflow.workflow_catalog import Kept
from miniflow.workflow_graph import decode_definition

Version = Annotated[int | None, Parameter(ge=1, description="this version; the newest where it is left out")]
VERSIONS_MAX = 100


@put("/api/v1/workflow-definitions/{name:str}", summary="Keep a definition", status_code=200)
async def put_definition(request: AnyRequest, name: str, backend: Backend) -> Response[bytes]:
    """Steps to be started by name, with an input. It is checked as a start is: 422 names the step and its field. Where it differs
    from the newest version it is a new one (201); runs of older ones go on as they were started."""
    definition = decoded(decode_definition, await request.body())
    kept, new = await backend.verb(backend.definitions.put(name, definition))
    headers = {"location": f"/api/v1/workflow-definitions/{quote(name, safe='')}"} if new else None
    return respond(definition_shown(kept), 201 if new else 200, headers)


@get("/api/v1/workflow-definitions", summary="List definitions")
async def list_definitions(backend: Backend) -> Response[bytes]:
    """The newest version of each, by name, without their steps."""
    return respond(DefinitionList(items=[_in_short(kept) for kept in backend.definitions.catalog.all()]))


@get("/api/v1/workflow-definitions/{name:str}", summary="One definition")
async def get_definition(name: str, backend: Backend, version: Version = None) -> Response[bytes]:
    """As it was put; the newest version, or an older one."""
    return respond(definition_shown(backend.workflow_queries.kept(check_name(name), version)))


@get("/api/v1/workflow-definitions/{name:str}/versions", summary="The versions of a definition")
async def definition_versions(name: str, backend: Backend) -> Response[bytes]:
    """The newest first, without their steps; 100 at most."""
    found = backend.workflow_queries.versions(check_name(name), VERSIONS_MAX)
    return respond(DefinitionList(items=[_in_short(kept) for kept in found]))


@delete("/api/v1/workflow-definitions/{name:str}", summary="Delete a definition", status_code=204)
async def delete_definition(name: str, backend: Backend) -> None:
    """With all its versions. Its runs stay. 409 for one that stands in a file: delete that."""
    await backend.verb(backend.definitions.delete(name))


def _in_short(kept: Kept) -> Any:
    return definition_shown(kept, steps=False)


ROUTES: list[Any] = [put_definition, list_definitions, get_definition, definition_versions, delete_definition]
