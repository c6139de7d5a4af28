"""Shorthands for what is said of operations, see ``described``."""

from __future__ import annotations

from typing import Any

import msgspec

from miniflow.web.document import Answer, Operation


def readable(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The same with the payload as an object: msgspec has no schema of a Raw with a default."""
    fields = [
        (
            field.name,
            dict[str, Any] if field.type is msgspec.Raw else field.type,
            {} if isinstance(field.default, msgspec.Raw) else field.default,
        )
        for field in msgspec.structs.fields(kind)
    ]
    config = kind.__struct_config__
    return msgspec.defstruct(
        kind.__name__,
        [field if field[2] is not msgspec.NODEFAULT else field[:2] for field in fields],
        forbid_unknown_fields=config.forbid_unknown_fields,
        namespace={"__doc__": kind.__doc__},
        kw_only=True,
    )


def one(tag: str, description: str, shape: Any, example: Any, *headers: str, **more: Any) -> Operation:
    """An operation that answers 200 in one way."""
    return Operation(tag, {200: Answer(description, shape, example, headers)}, **more)
