"""Definitions of workflows in files beside the tasks: each ``NAME.toml`` with ``steps`` is one. Others are none of ours.

::

    description = "every morning"
    timeout = 3600
    [inputs.day]
    [[steps]]
    name = "load"
    task = "load"
    payload = { day = "${input.day}" }
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from miniflow.definitions import Declared
from miniflow.errors import InvalidRequest
from miniflow.loader import LoadFailure
from miniflow.workflow_graph import definition_of


def load_definitions(directory: Path) -> tuple[list[Declared], list[LoadFailure]]:
    """The definitions in the files of ``directory``, and those files that are wrong."""
    found: dict[str, Declared] = {}
    failures = []
    for path in sorted(directory.glob("*.toml")):
        if path.name.startswith(("_", ".")):
            continue
        try:
            table = tomllib.loads(path.read_text("utf-8"))
            if "steps" in table:
                new = _declared(table, path)
                if new.name in found:
                    raise InvalidRequest("name", f"{new.name!r} stands in {found[new.name].origin} already")
                found[new.name] = new
        except (OSError, InvalidRequest, tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            failures.append(LoadFailure(path, str(exc), ""))
    return list(found.values()), failures


def _declared(table: dict[str, Any], path: Path) -> Declared:
    """InvalidRequest that names the field."""
    name = table.pop("name", path.stem)
    if not isinstance(name, str):
        raise InvalidRequest("name", "is a text")
    return Declared(name, definition_of(msgspec.json.encode(table)), str(path))
