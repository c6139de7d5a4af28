"""Definitions of workflows in files beside the tasks: each ``NAME.toml``, ``.yaml`` or ``.yml`` with ``steps`` is one. Others are
none of ours.

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
from miniflow.yaml_text import BadYaml, has_key, read_yaml

SUFFIXES = (".toml", ".yaml", ".yml")


def load_definitions(directory: Path) -> tuple[list[Declared], list[LoadFailure]]:
    """The definitions in the files of ``directory``, and those files that are wrong."""
    found: dict[str, Declared] = {}
    failures = []
    for path in sorted(path for suffix in SUFFIXES for path in directory.glob(f"*{suffix}")):
        if path.name.startswith(("_", ".")):
            continue
        try:
            table = _table(path)
            if "steps" in table:
                new = _declared(table, path)
                if new.name in found:
                    raise InvalidRequest("name", f"{new.name!r} stands in {found[new.name].origin} already")
                found[new.name] = new
        except (OSError, InvalidRequest, tomllib.TOMLDecodeError, BadYaml, UnicodeDecodeError) as exc:
            failures.append(LoadFailure(path, str(exc), ""))
    return list(found.values()), failures


def _table(path: Path) -> dict[str, Any]:
    """What stands in the file; of one in YAML that is none of ours nothing."""
    text = path.read_text("utf-8")
    if path.suffix == ".toml":
        return tomllib.loads(text)
    found = read_yaml(text) if has_key(text, "steps") else {}
    return found if isinstance(found, dict) else {}


def _declared(table: dict[str, Any], path: Path) -> Declared:
    """InvalidRequest that names the field."""
    name = table.pop("name", path.stem)
    if not isinstance(name, str):
        raise InvalidRequest("name", "is a text")
    return Declared(name, definition_of(msgspec.json.encode(table)), str(path))
