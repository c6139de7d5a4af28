"""References in the payloads of workflow steps: ``${input}`` and ``${steps.NAME}``, and what is inside of them.

``${steps.extract}`` is what the step ``extract`` returned, ``${steps.extract.rows.0.name}`` something inside of it: keys of
objects and places in arrays, separated by dots. ``${input.day}`` is part of the input of the workflow, ``${workflow.id}`` its id;
in some places there is more to refer to (``OWN``).
A text that is one reference and nothing else becomes the value, whatever its type; in a longer text the value stands as text
(what is no text as JSON). ``$${`` is a ``${`` that is meant as it stands.

A condition is a reference that must be true (not null, false, 0 or empty), ``not`` one, or a comparison of it with JSON or with
another reference: ``${steps.check.rows} > 0``, ``${input.mode} == "full"``.
"""

from __future__ import annotations

import operator as operator_of
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from miniflow.errors import MiniFlowError

NAME = r"[A-Za-z0-9_-]{1,100}"
_REFERENCE = re.compile(r"\$\$\{|\$\{(?:([^{}]*)\})?")
"""One that is meant as it stands, one, or the beginning of one that does not end."""
_WHOLE = re.compile(r"\$\{([^{}]*)\}")
_CONDITION = re.compile(r"\s*(not\s+)?(\$\{[^{}]*\})(?:\s*(==|!=|<=|>=|<|>)\s*(.+?))?\s*", re.DOTALL)
_INDEX = re.compile(r"-?[0-9]{1,9}")
_ORDER = {"<": operator_of.lt, "<=": operator_of.le, ">": operator_of.gt, ">=": operator_of.ge}


class BadReference(MiniFlowError):
    """A reference that is none, or that leads nowhere."""


class Reference(NamedTuple):
    """``root`` is input, workflow or steps; ``step`` the name after steps; ``path`` the rest."""

    text: str
    root: str
    step: str | None
    path: tuple[str, ...]


OWN = {
    "output": "in the compensation of a step",
    "item": "in a step with for_each",
    "index": "in a step with for_each",
}
"""Roots of references that lead somewhere in some places only, and where."""


class Known(NamedTuple):
    """What references lead to when the turn of a step has come; ``own`` is by the roots of ``OWN``. ``nested`` is how many more
    steps of workflows that are steps are looked at, while a start is checked."""

    input: Any
    workflow: Mapping[str, Any]
    steps: Mapping[str, Any]
    own: Mapping[str, Any] = {}
    nested: list[int] | None = None


def parse(text: str) -> Reference:
    """The reference between the braces. BadReference if it is none."""
    root, *path = text.strip().split(".")
    if root == "steps" and path and all(path):
        return Reference(text, root, path[0], tuple(path[1:]))
    if (root in ("input", "workflow") or root in OWN) and all(path):
        return Reference(text, root, None, tuple(path))
    raise BadReference(f"${{{text}}} refers to nothing; there are ${{input…}}, ${{steps.NAME…}} and ${{workflow.id}}")


def find(value: Any) -> Iterator[Reference]:
    """The references in all texts of a JSON value."""
    if isinstance(value, str):
        if "${" in value:
            yield from (_parse_hit(hit, value) for hit in _REFERENCE.finditer(value) if not hit[0].startswith("$$"))
    elif isinstance(value, dict):
        for one in value.values():
            yield from find(one)
    elif isinstance(value, list):
        for one in value:
            yield from find(one)


def _parse_hit(hit: re.Match[str], text: str) -> Reference:
    if hit[1] is None:
        begins = text[hit.start() : hit.start() + 40]
        raise BadReference(f"{begins!r}: ${{ without a }}; a ${{ that is meant as it stands is $${{")
    return parse(hit[1])


def is_one(text: str) -> bool:
    """Whether a text is one reference and nothing else."""
    return _WHOLE.fullmatch(text) is not None


def fill(value: Any, known: Known) -> Any:
    """``value`` with its references replaced. BadReference for one that leads nowhere."""
    if isinstance(value, str):
        if "${" not in value:
            return value
        whole = _WHOLE.fullmatch(value)
        if whole is not None:
            return look_up(parse(whole[1]), known)
        return _REFERENCE.sub(lambda hit: _in_text(hit, known), value)
    if isinstance(value, dict):
        return {key: fill(one, known) for key, one in value.items()}
    if isinstance(value, list):
        return [fill(one, known) for one in value]
    return value


def _in_text(hit: re.Match[str], known: Known) -> str:
    if hit[0].startswith("$$"):
        return hit[0][1:]
    found = look_up(_parse_hit(hit, hit.string), known)
    return found if isinstance(found, str) else msgspec.json.encode(found).decode()


def look_up(reference: Reference, known: Known) -> Any:
    """What a reference leads to."""
    value: Any
    if reference.root == "steps":
        value, said = known.steps.get(reference.step or ""), f"steps.{reference.step}"
    elif reference.root in OWN:
        if reference.root not in known.own:
            raise BadReference(f"${{{reference.text}}} is known only {OWN[reference.root]}")
        value, said = known.own[reference.root], reference.root
    else:
        value, said = (known.input if reference.root == "input" else known.workflow), reference.root
    for key in reference.path:
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list) and _INDEX.fullmatch(key) and -len(value) <= int(key) < len(value):
            value = value[int(key)]
        else:
            raise BadReference(f"${{{reference.text}}}: {said} has no {key!r}, it is {in_short(value)}")
        said += f".{key}"
    return value


def in_short(value: Any) -> str:
    """What a value is, for an error."""
    if isinstance(value, Mapping):
        return f"an object with {', '.join(list(value)[:5]) or 'nothing'}{', …' if len(value) > 5 else ''}"
    if isinstance(value, list):
        return f"an array of {len(value):,}"
    return msgspec.json.encode(value).decode()[:100]


# ----------------------------------------------------------------------------------------------------------- conditions


class Condition(NamedTuple):
    """``left`` alone must be true (or with ``negated`` must not), or compare with ``right``."""

    negated: bool
    left: Reference
    operator: str | None
    right: Any


def parse_condition(text: str) -> Condition:
    """BadReference if it is none."""
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise BadReference(
            f"{text!r} is no condition; they look like ${{steps.check.ok}}, not ${{input.dry}}, ${{input.n}} > 3"
        )
    right: Any = None
    if found[4] is not None:
        other = _WHOLE.fullmatch(found[4])
        try:
            right = parse(other[1]) if other else msgspec.json.decode(found[4])
        except msgspec.DecodeError:
            raise BadReference(
                f"{found[4]!r} in {text!r} is neither JSON nor a reference; a text stands in quotes"
            ) from None
    return Condition(found[1] is not None, parse(found[2][2:-1]), found[3], right)


def references_of(condition: Condition) -> list[Reference]:
    return [condition.left, *([condition.right] if isinstance(condition.right, Reference) else [])]


def holds(condition: Condition, known: Known) -> bool:
    """BadReference where values cannot be compared."""
    left = look_up(condition.left, known)
    if condition.operator is None:
        met = bool(left)
    else:
        right = look_up(condition.right, known) if isinstance(condition.right, Reference) else condition.right
        try:
            met = _compare(left, condition.operator, right)
        except RecursionError:
            raise BadReference("what it compares is nested too deeply") from None
    return met != condition.negated


def _compare(left: Any, operator: str, right: Any) -> bool:
    match operator:
        case "==":
            return _are_equal(left, right)
        case "!=":
            return not _are_equal(left, right)
    numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in (left, right))
    if not numbers and not (isinstance(left, str) and isinstance(right, str)):
        raise BadReference(f"{in_short(left)} {operator} {in_short(right)}: only numbers, or texts, have an order")
    return bool(_ORDER[operator](left, right))


def _are_equal(left: Any, right: Any) -> bool:
    """As JSON, where true is not 1."""
    if left != right:
        return False
    pairs = [(left, right)]
    while pairs:
        one, other = pairs.pop()
        if isinstance(one, bool) != isinstance(other, bool):
            return False
        if isinstance(one, dict):
            pairs += [(one[key], other[key]) for key in one]
        elif isinstance(one, list):
            pairs += zip(one, other, strict=True)
    return True
