"""What the steps of a definition may refer to: the input, and the steps before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from miniflow import references
from miniflow.errors import InvalidRequest
from miniflow.references import BadReference, Known, Reference
from miniflow.workflow_graph import Before, Definition, Input, before_of, names_of, needs_of, order_of
from miniflow.writer import json_text


class Later(NamedTuple):
    """An input that is not known yet, and perhaps which fields it will have."""

    inputs: Mapping[str, Input] | None


class Referred(NamedTuple):
    """``steps`` are the names of those that a value refers to; it is ``whole`` if all that it refers to is known."""

    steps: set[str]
    whole: bool


def referred(value: Any, field: str, known: Known, own: tuple[str, ...] = ()) -> Referred:
    """What a value refers to; of the roots that are known in some places only, ``own`` are here. InvalidRequest."""
    try:
        return _referred(list(references.find(value)), field, known, own)
    except BadReference as exc:
        raise InvalidRequest(field, str(exc)) from None


def _referred(found: list[Reference], field: str, known: Known, own: tuple[str, ...] = ()) -> Referred:
    later = isinstance(known.input, Later) and any(one.root == "input" for one in found)
    for one in found:
        if one.root in references.OWN and one.root not in own:
            raise InvalidRequest(field, f"${{{one.text}}} is known only {references.OWN[one.root]}")
        if later and one.root == "input" and one.path and known.input.inputs is not None:
            names = known.input.inputs
            if one.path[0] not in names:
                raise InvalidRequest(
                    field, f"${{{one.text}}} refers to no input; there are {', '.join(names) or 'none'}"
                )
    steps = {one.step for one in found if one.step is not None} - known.steps.keys()
    return Referred(steps, not steps and not later)


class Graph(NamedTuple):
    """A definition, the names of its steps, which of them each needs, and an order in which they can run."""

    definition: Definition
    names: list[str]
    needs: list[list[int]]
    order: list[int]
    before: Before

    @classmethod
    def of(cls, definition: Definition) -> Graph:
        names = names_of(definition.steps)
        needs = needs_of(definition.steps, names)
        order = order_of(names, needs)
        return cls(definition, names, needs, order, before_of(names, needs, order))

    def refs(self, n: int, wanted: set[str], known: Known, *, with_condition: bool = True) -> str | None:
        """The places, as JSON, of the steps that step ``n`` refers to; its condition may name more than ``wanted``."""
        where, when = f"steps[{n}].", self.definition.steps[n].when
        if when is not None and with_condition:
            try:
                found = references.references_of(references.parse_condition(when))
            except BadReference as exc:
                raise InvalidRequest(f"{where}when", str(exc)) from None
            wanted = wanted | _referred(found, f"{where}when", known).steps
        places = sorted(self.before.place(name, n, where) for name in wanted)
        return json_text(places) if places else None

    def check_names(self, wanted: set[str], field: str) -> None:
        """InvalidRequest if one of these is no step."""
        for name in wanted:
            if name not in self.before.places:
                raise InvalidRequest(field, f"refers to the step {name!r}, and there is none")
