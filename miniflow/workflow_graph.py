"""What a workflow is: its steps as they are asked for and kept, and the graph that they are.

Without ``needs`` the steps run one after the other. With it, on any of them, they are a graph: a step begins when all that it
needs have ended well, and one that needs nothing begins at once.
"""

from __future__ import annotations

import graphlib
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from miniflow import references
from miniflow.errors import InvalidRequest
from miniflow.intake import EMPTY, Key, Seconds, Short, TraceParent
from miniflow.references import BadReference
from miniflow.retry import RetryPolicy
from miniflow.validation_errors import in_words

STEPS_MAX = 10_000
ITEMS_MAX = 10_000
"""Of one list of for_each."""
Name = Annotated[str, msgspec.Meta(pattern=f"^{references.NAME}$")]
NULL = msgspec.Raw(b"null")


class Work(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task to be run for a workflow, and how. Durations are seconds."""

    task: Short | None = None
    type: Short | None = None
    payload: msgspec.Raw = EMPTY
    queue: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] | Literal["low", "medium", "high"] | None = None
    timeout: Seconds | None = None
    max_retries: Annotated[int, msgspec.Meta(ge=0, le=1000)] | None = None
    retry: RetryPolicy | Annotated[list[Seconds], msgspec.Meta(min_length=1, max_length=100)] | None = None
    executor: Literal["thread", "process"] | None = None
    tags: list[Annotated[str, msgspec.Meta(min_length=1, max_length=100)]] | None = None
    meta: dict[str, Any] | None = None
    description: Annotated[str, msgspec.Meta(max_length=1000)] | None = None


class Step(Work):
    """A step of a workflow: a job, or a workflow that is kept under a name, and which steps it needs. Durations are seconds."""

    name: Name | None = None
    workflow: Short | None = None
    input: msgspec.Raw = NULL
    needs: list[str] | None = None
    when: str | None = None
    for_each: str | list[Any] | None = None
    max_parallel: Annotated[int, msgspec.Meta(ge=1, le=ITEMS_MAX)] | None = None
    compensate: Work | None = None

    @property
    def given(self) -> msgspec.Raw:
        """What its task, or its workflow, is given."""
        return self.payload if self.workflow is None else self.input


Steps = Annotated[list[Step], msgspec.Meta(min_length=1, max_length=STEPS_MAX)]


class WorkflowSubmission(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A workflow to be run: its steps, or the definition that has them. ``timeout`` is for the whole, in seconds; ``input`` is
    what its steps can refer to."""

    name: Short | None = None
    steps: Steps | None = None
    definition: Short | None = None
    version: Annotated[int, msgspec.Meta(ge=1)] | None = None
    input: msgspec.Raw = NULL
    output: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    timeout: Seconds | None = None
    on_failure: Work | None = None
    idempotency_key: Key | None = None
    meta: dict[str, Any] | None = None
    description: Annotated[str, msgspec.Meta(max_length=1000)] | None = None
    traceparent: TraceParent | None = None


class Input(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A field of the input. It is required where there is no ``default``."""

    default: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    description: Annotated[str, msgspec.Meta(max_length=1000)] | None = None


class Definition(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What can be run again and again: of a run, and kept under a name. With ``inputs`` the input is an object of those fields;
    ``output`` may refer to steps, and is what the whole returns."""

    steps: Steps
    inputs: dict[Name, Input] | None = None
    output: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    timeout: Seconds | None = None
    on_failure: Work | None = None
    description: Annotated[str, msgspec.Meta(max_length=1000)] | None = None

    @property
    def undoes(self) -> bool:
        """Whether there is something to do when it does not end well."""
        if self.on_failure is not None:
            return True
        for step in self.steps:  # noqa: SIM110 - asked at each start, where a generator costs more than the question
            if step.compensate is not None:
                return True
        return False


def as_items(found: Any) -> list[Any]:
    """What for_each leads to, if it is a list that is not too long. BadReference."""
    if not isinstance(found, list):
        hint = "; where a step may be skipped, give this one the same when" if found is None else ""
        raise BadReference(f"for_each leads to no list, but to {references.in_short(found)}{hint}")
    if len(found) > ITEMS_MAX:
        raise BadReference(f"for_each leads to a list of {len(found):,}, and {ITEMS_MAX:,} are the most; go in parts")
    return found


def definition_of(body: bytes) -> Definition:
    """InvalidRequest that names the field, of one that is none."""
    try:
        return decode_definition(body)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(*in_words(exc, Definition, unknown="is no field of a workflow")) from None


def with_defaults(inputs: dict[str, Input] | None, given: Any) -> Any:
    """The input with what was left out of it; InvalidRequest for one that is missing, or that there is none of."""
    if inputs is None:
        return given
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise InvalidRequest("input", f"is an object with {', '.join(inputs) or 'nothing'}")
    for name in given:
        if name not in inputs:
            raise InvalidRequest(f"input.{name}", f"is no input of it; there are {', '.join(inputs) or 'none'}")
    found = {}
    for name, one in inputs.items():
        if name in given:
            found[name] = given[name]
        elif isinstance(one.default, msgspec.UnsetType):
            raise InvalidRequest(f"input.{name}", "is missing" + (f": {one.description}" if one.description else ""))
        else:
            found[name] = msgspec.json.decode(one.default)
    return found


decode_step = msgspec.json.Decoder(Step).decode
decode_workflow = msgspec.json.Decoder(WorkflowSubmission).decode
decode_definition = msgspec.json.Decoder(Definition).decode


def names_of(steps: list[Step]) -> list[str]:
    """The name of each; a step without one goes by its task, if no other does."""
    names = [step.name or step.task or step.type or step.workflow or f"step-{n}" for n, step in enumerate(steps)]
    seen: dict[str, int] = {}
    for n, name in enumerate(names):
        if name in seen:
            raise InvalidRequest(
                f"steps[{n}].name", f"{name!r} is the name of steps[{seen[name]}] already; each has its own"
            )
        seen[name] = n
    return names


def needs_of(steps: list[Step], names: list[str]) -> list[list[int]]:
    """The places of the steps that each needs."""
    if all(step.needs is None for step in steps):
        return [[n - 1] if n else [] for n in range(len(steps))]
    places = {name: n for n, name in enumerate(names)}
    needs = []
    for n, step in enumerate(steps):
        for place, name in enumerate(step.needs or ()):
            if name not in places:
                raise InvalidRequest(f"steps[{n}].needs[{place}]", f"there is no step {name!r}")
        needs.append(sorted({places[name] for name in step.needs or ()}))
    return needs


def order_of(names: list[str], needs: list[list[int]]) -> list[int]:
    """The places of the steps, each after those that it needs."""
    if all(need < n for n, some in enumerate(needs) for need in some):
        return list(range(len(needs)))
    try:
        return list(graphlib.TopologicalSorter(dict(enumerate(needs))).static_order())
    except graphlib.CycleError as exc:
        cycle = exc.args[1]
        raise InvalidRequest(
            f"steps[{cycle[0]}].needs", f"is a circle: {' needs '.join(names[n] for n in reversed(cycle))}"
        ) from None


class Before(NamedTuple):
    """Which steps come before which: ``sets`` has a bit for each, and costs little for ten thousand of them."""

    places: dict[str, int]
    sets: list[int]

    def place(self, name: str, n: int, where: str) -> int:
        """That of the step ``name``, which there is, and which step ``n`` refers to."""
        if not self.sets[n] >> self.places[name] & 1:
            raise InvalidRequest(
                f"{where}needs", f"does not lead to the step {name!r}, which the payload or the condition refers to"
            )
        return self.places[name]


def before_of(names: list[str], needs: list[list[int]], order: list[int]) -> Before:
    sets = [0] * len(names)
    for n in order:
        for need in needs[n]:
            sets[n] |= sets[need] | 1 << need
    return Before({name: n for n, name in enumerate(names)}, sets)


def descendants(first: int, needs: list[list[int]]) -> set[int]:
    """``first`` and all that need it, directly or through others."""
    children: dict[int, list[int]] = {}
    for n, some in enumerate(needs):
        for need in some:
            children.setdefault(need, []).append(n)
    found, ahead = {first}, [first]
    while ahead:
        for n in children.get(ahead.pop(), ()):
            if n not in found:
                found.add(n)
                ahead.append(n)
    return found


def not_before(definition: Definition, name: str) -> tuple[list[str], set[str]]:
    """The names of all steps, and of those that run again if ``name`` does, which may be the number of a step."""
    names = names_of(definition.steps)
    if name not in names and name.isascii() and name.isdigit() and len(name) < 9 and int(name) < len(names):
        name = names[int(name)]
    if name not in names:
        raise InvalidRequest("from", f"there is no step {name!r}; there are {', '.join(names[:20])}")
    again = descendants(names.index(name), needs_of(definition.steps, names))
    return names, {names[n] for n in again}


def said_of_child(name: str, child_id: str, state: str, error: str | None) -> str:
    """How a workflow ended that is a step."""
    return (
        f"workflow {name} {child_id} {'failed' if state == 'failed' else f'was {state}'}{f': {error}' if error else ''}"
    )
