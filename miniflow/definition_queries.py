"""The shape in which kept definitions of workflows are shown."""

from __future__ import annotations

from typing import Any

import msgspec

from miniflow.clock import rfc3339
from miniflow.workflow_catalog import Kept
from miniflow.workflow_graph import Input, Step, Work


class KeptDefinition(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A version of a definition. In a list there are no ``steps``. ``source`` is who defines it: ``api`` or ``file``; ``origin``
    says which file."""

    name: str
    version: int
    total_steps: int
    steps: list[Step] | None = None
    inputs: dict[str, Input] | None = None
    output: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    timeout: float | None = None
    on_failure: Work | None = None
    description: str | None = None
    source: str
    origin: str | None = None
    created_at: str


class DefinitionList(msgspec.Struct, kw_only=True):
    items: list[KeptDefinition]


def definition_shown(kept: Kept, *, steps: bool = True) -> KeptDefinition:
    definition = kept.definition
    inside: dict[str, Any] = {"steps": definition.steps, "on_failure": definition.on_failure} if steps else {}
    return KeptDefinition(
        name=kept.name or "",
        version=kept.version or 0,
        total_steps=len(definition.steps),
        inputs=definition.inputs,
        output=definition.output,
        timeout=definition.timeout,
        description=definition.description,
        source=kept.source,
        origin=kept.origin,
        created_at=rfc3339(kept.created_at) or "",
        **inside,
    )
