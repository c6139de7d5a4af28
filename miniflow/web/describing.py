"""Shorthands for what is said of operations, see ``described``."""

from __future__ import annotations

from typing import Any

import msgspec

from miniflow.web.document import Answer, Operation


def readable(kind: type[msgspec.Struct], **types: Any) -> type[msgspec.Struct]:
    """The same with anything where it has a Raw: msgspec has no schema of one with a default. ``types``: others for fields."""
    fields = []
    for field in msgspec.structs.fields(kind):
        raw = isinstance(field.default, (msgspec.Raw, msgspec.UnsetType)) or field.type is msgspec.Raw
        empty: Any = {} if isinstance(field.default, msgspec.Raw) and bytes(field.default) == b"{}" else None
        of = types.get(field.name, (dict[str, Any] if empty == {} else Any) if raw else field.type)
        default = empty if raw else field.default
        fields.append((field.encode_name, of) if default is msgspec.NODEFAULT else (field.encode_name, of, default))
    return msgspec.defstruct(
        kind.__name__,
        fields,
        forbid_unknown_fields=kind.__struct_config__.forbid_unknown_fields,
        namespace={"__doc__": kind.__doc__},
        kw_only=True,
    )


def either(name: str, *kinds: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """One shape for what is one of several; which fields go together, the description of each says."""
    fields = {field.name: field for kind in reversed(kinds) for field in msgspec.structs.fields(kind)}
    made = []
    for field in fields.values():
        required = field.default is msgspec.NODEFAULT
        made.append((field.name, field.type | None if required else field.type, None if required else field.default))
    about = " Or: ".join((kind.__doc__ or "").strip() for kind in kinds)
    names = {field.name: field.encode_name for field in fields.values()}
    return msgspec.defstruct(
        name, made, forbid_unknown_fields=True, namespace={"__doc__": about}, kw_only=True, rename=names
    )


def one(tag: str, description: str, shape: Any, example: Any, *headers: str, **more: Any) -> Operation:
    """An operation that answers 200 in one way."""
    return Operation(tag, {200: Answer(description, shape, example, headers)}, **more)
