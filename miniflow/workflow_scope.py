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
    """``steps`` are the names of those that a value refers to; it is ``whole`` if all that it refers to is known, and
    ``fixed`` if nothing of it depends on the start, neither on its input nor on what else is known of it."""

    steps: set[str]
    whole: bool
    fixed: bool


def referred(value: Any, field: str, known: Known, own: tuple[str, ...] = ()) -> Referred:
    """What a value refers to; of the roots that are known in some places only, ``own`` are here. InvalidRequest for what is no
    reference, or leads nowhere as far as that is known."""
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
        elif one.root == "workflow" or (one.root == "input" and not isinstance(known.input, Later)):
            references.look_up(one, known)
    steps = {one.step for one in found if one.step is not None} - known.steps.keys()
    fixed = not any(one.root in ("input", "workflow") for one in found)
    return Referred(steps, not steps and not later, fixed)


def partly(value: dict[str, Any], known: Known) -> tuple[dict[str, Any], set[str]]:
    """The fields of a payload, those filled in of which all is known, and the names of the others."""
    given: dict[str, Any] = {}
    later: set[str] = set()
    for name, one in value.items():
        roots = {hit.root for hit in references.find(one)}
        if roots <= {"input"} and not (roots and isinstance(known.input, Later)):
            given[name] = references.fill(one, known)
        else:
            given[name] = one
            later.add(name)
    return given, later


UNCONDITIONAL = Referred(set(), True, True)


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

    def refs(self, n: int, wanted: set[str]) -> str | None:
        """The places, as JSON, of the steps that step ``n`` refers to."""
        places = sorted(self.before.place(name, n, f"steps[{n}].") for name in wanted)
        return json_text(places) if places else None

    def condition(self, n: int, known: Known) -> tuple[Referred, Known]:
        """What the condition of step ``n`` refers to, and what is known to the rest of the step: where the condition is known not
        to hold, nothing of the input, which may not be fit for it. InvalidRequest for one that cannot be decided, as far as that
        is known."""
        field, when = f"steps[{n}].when", self.definition.steps[n].when
        if when is None:
            return UNCONDITIONAL, known
        try:
            condition = references.parse_condition(when)
            found = _referred(references.references_of(condition), field, known)
            is_skipped = found.whole and not references.holds(condition, known)
        except BadReference as exc:
            raise InvalidRequest(field, str(exc)) from None
        self.check_names(found.steps, field, n)
        return found, known._replace(input=Later(self.definition.inputs)) if is_skipped else known

    def check_undoing(self, n: int, wanted: set[str]) -> None:
        """InvalidRequest if what undoes step ``n`` refers to a step of ``wanted`` that may not have ended when that had."""
        field = f"steps[{n}].compensate.payload"
        self.check_names(wanted, field, n)
        for name in sorted(wanted - {self.names[n]}):
            if not self.before.sets[n] >> self.before.places[name] & 1:
                raise InvalidRequest(
                    field,
                    f"refers to the step {name!r}; what undoes a step may refer to its own output, as ${{output}}, and to "
                    "steps before it",
                )

    def check_names(self, wanted: set[str], field: str, n: int | None = None) -> None:
        """InvalidRequest if one of these, which a field of step ``n`` refers to, is no step."""
        for name in sorted(wanted):
            if name not in self.before.places:
                who = "" if n is None else f"the step {self.names[n]!r} "
                raise InvalidRequest(field, f"{who}refers to the step {name!r}, and there is none")
