"""YAML as far as JSON goes: what it has besides – dates, sets, keys that are no texts, times taken for numbers – is refused.

Nothing of it is run, nor made into an object of Python.
"""

from __future__ import annotations

import math
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

TAG = "tag:yaml.org,2002:"
VALUES_MAX = 1_000_000
"""What aliases make of a few lines may be more than a machine holds."""
DEPTH_MAX = 100
IN_WORDS = {
    "timestamp": "a date",
    "binary": "binary data",
    "set": "a set",
    "omap": "an ordered map",
    "pairs": "a list of pairs",
}


class BadYaml(ValueError):
    """In words, with the line."""


def read_yaml(text: str) -> Any:
    """The value that a text with one document is; None of an empty one. BadYaml."""
    nodes = _documents(text)
    if len(nodes) > 1:
        raise BadYaml(f"line {_line(nodes[1])}: a second document begins; a file has one")
    return _Values().of(nodes[0], 0) if nodes else None


def has_key(text: str, key: str) -> bool:
    """Whether a document of the text is a mapping with that key, whatever else is in it. BadYaml."""
    return any(
        isinstance(node, yaml.MappingNode) and any(name.value == key for name, _ in node.value)
        for node in _documents(text)
    )


def _documents(text: str) -> list[Any]:
    try:
        return [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.MarkedYAMLError as exc:
        said = " ".join(filter(None, (exc.context, exc.problem)))
        mark = exc.problem_mark or exc.context_mark
        raise BadYaml(f"line {mark.line + 1}: {said}" if mark else said) from None
    except yaml.YAMLError as exc:
        raise BadYaml(" ".join(str(exc).split())) from None
    except RecursionError:
        raise BadYaml("it is nested too deep") from None


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


class _Values:
    def __init__(self) -> None:
        self._scalars, self._left = SafeConstructor(), VALUES_MAX

    def of(self, node: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > DEPTH_MAX:
            raise BadYaml(
                f"line {_line(node)}: it is nested too deep, or in itself, or its aliases make too much of it"
            )
        kind = node.tag.removeprefix(TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.of(one, depth + 1) for one in node.value]
        if isinstance(node, yaml.ScalarNode) and kind in ("str", "int", "float", "bool", "null"):
            return self._scalar(node, kind)
        what = IN_WORDS.get(kind, f"{node.tag!r}")
        quotes = "; put it in quotes for the text" if isinstance(node, yaml.ScalarNode) else ""
        raise BadYaml(f"line {_line(node)}: {what}, which JSON does not have{quotes}")

    def _mapping(self, node: Any, depth: int) -> dict[str, Any]:
        seen = set[str]()
        for name, _ in node.value:
            if name.tag == f"{TAG}merge":
                continue
            if name.tag != f"{TAG}str":
                raise BadYaml(
                    f"line {_line(name)}: the key {getattr(name, 'value', '')!r} is no text; put it in quotes"
                )
            if name.value in seen:
                raise BadYaml(f"line {_line(name)}: the key {name.value!r} stands here already")
            seen.add(name.value)
        try:
            self._scalars.flatten_mapping(node)
        except yaml.MarkedYAMLError as exc:
            raise BadYaml(f"line {_line(node)}: {exc.problem}") from None
        except RecursionError:
            raise BadYaml(f"line {_line(node)}: it is merged into itself") from None
        return {name.value: self.of(value, depth + 1) for name, value in node.value}

    def _scalar(self, node: Any, kind: str) -> Any:
        if kind in ("int", "float") and ":" in node.value:
            raise BadYaml(f"line {_line(node)}: {node.value} is a number to the base of 60 in YAML; put it in quotes")
        try:
            found = self._scalars.construct_object(node)
        except (ValueError, yaml.YAMLError):
            raise BadYaml(f"line {_line(node)}: {node.value!r} is no {kind}") from None
        if isinstance(found, float) and not math.isfinite(found):
            raise BadYaml(f"line {_line(node)}: {node.value}, which JSON does not have")
        if isinstance(found, int) and not -(1 << 63) <= found < 1 << 64:
            raise BadYaml(f"line {_line(node)}: {node.value} has more than 64 bits; put it in quotes")
        return found
