"""From a workflow that somebody asks for to its rows: steps in an order in which they can run, references checked.

Without ``needs`` the steps run one after the other. With it, on any of them, they are a graph: a step begins when all that it
needs have ended well, and one that needs nothing begins at once. What can be filled in now is filled in now, and held against
the signature of the task: all that refers to the input. What refers to other steps waits for them. Nothing here touches the
database.
"""

from __future__ import annotations

import graphlib
import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from miniflow import references
from miniflow.errors import InvalidRequest
from miniflow.ids import uuid7
from miniflow.intake import EMPTY, Intake, Key, Seconds, Short, Submission
from miniflow.model import NewJob, Waits
from miniflow.references import BadReference, Known
from miniflow.retry import RetryPolicy
from miniflow.states import State

STEPS_MAX = 10_000
Name = Annotated[str, msgspec.Meta(pattern=f"^{references.NAME}$")]
NULL = msgspec.Raw(b"null")


class Step(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A step of a workflow: a job, and which steps it needs. Durations are seconds."""

    name: Name | None = None
    task: Short | None = None
    type: Short | None = None
    payload: msgspec.Raw = EMPTY
    needs: list[str] | None = None
    when: str | None = None
    queue: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] | Literal["low", "medium", "high"] | None = None
    timeout: Seconds | None = None
    max_retries: Annotated[int, msgspec.Meta(ge=0, le=1000)] | None = None
    retry: RetryPolicy | Annotated[list[Seconds], msgspec.Meta(min_length=1, max_length=100)] | None = None
    tags: list[Annotated[str, msgspec.Meta(min_length=1, max_length=100)]] | None = None
    meta: dict[str, Any] | None = None
    description: Annotated[str, msgspec.Meta(max_length=1000)] | None = None


class WorkflowSubmission(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A workflow to be run. ``timeout`` is for the whole, in seconds; ``input`` is what its steps can refer to."""

    name: Short
    steps: Annotated[list[Step], msgspec.Meta(min_length=1, max_length=STEPS_MAX)]
    input: msgspec.Raw = NULL
    timeout: Seconds | None = None
    idempotency_key: Key | None = None
    meta: dict[str, Any] | None = None
    description: Annotated[str, msgspec.Meta(max_length=1000)] | None = None


class NewWorkflow(NamedTuple):
    """A workflow to be inserted: its row, its jobs in an order in which each comes after those it waits for, and the rows of
    ``workflow_statements.INSERT_STEPS``."""

    id: str
    name: str
    row: list[Any]
    jobs: list[NewJob]
    steps: list[list[Any]]
    loose: list[str]
    """Ids of pending jobs that wait for nobody: they have something to be filled in, or a condition."""
    timeout_ms: int | None = None
    key: str | None = None
    fingerprint: str | None = None


class Definition(msgspec.Struct, omit_defaults=True):
    """What is kept of a submission, to run it again."""

    steps: list[Step]
    timeout: float | None = None


decode_workflow = msgspec.json.Decoder(WorkflowSubmission).decode
decode_definition = msgspec.json.Decoder(Definition).decode
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class WorkflowIntake:
    """Makes rows of workflows."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def workflow(
        self,
        s: WorkflowSubmission,
        *,
        request_id: str | None = None,
        kept: Mapping[str, Any] | None = None,
        rerun_of: str | None = None,
    ) -> NewWorkflow:
        """What ``s`` asks for. Of a rerun, ``kept`` are the outputs of the steps that are not to run again.

        Raises InvalidRequest naming the step and its field, UnknownTask, TooLarge.
        """
        new_id, kept = uuid7(), kept or {}
        names = names_of(s.steps)
        needs = _needs(s.steps, names)
        order = _order(names, needs)
        known = Known(_decode(s.input), {"id": new_id, "name": s.name}, kept)
        before = _before(names, needs, order)
        made = [self._step(s, n, before, known, request_id) for n in order if names[n] not in kept]
        places = {step.idx: place for place, step in enumerate(made)}
        jobs, rows, loose = [], [], []
        for step in made:
            parents = tuple(places[n] for n in needs[step.idx] if n in places)
            job, later = step.job, bool(step.template or step.condition)
            if parents or later:
                job.row[4] = State.PENDING
                job = job._replace(state=State.PENDING, waits=Waits(parents) if parents else None)
            jobs.append(job)
            rows.append([job.id, new_id, step.idx, names[step.idx], step.template, step.condition, step.refs])
            if later and not parents:
                loose.append(job.id)
        timeout_ms = max(round(s.timeout * 1000), 1) if s.timeout else None
        mark = _fingerprint(s) if s.idempotency_key is not None else None
        row = [
            new_id,
            s.name,
            len(s.steps),
            _encode(Definition(s.steps, s.timeout)).decode(),
            bytes(s.input).decode(),
            _json(kept),
            timeout_ms,
            s.idempotency_key,
            mark,
            request_id,
            rerun_of,
            s.description,
            _json(s.meta),
            len(kept),
        ]
        return NewWorkflow(new_id, s.name, row, jobs, rows, loose, timeout_ms, s.idempotency_key, mark)

    def _step(
        self,
        s: WorkflowSubmission,
        n: int,
        before: _Before,
        known: Known,
        request_id: str | None,
    ) -> _Made:
        step, where, kept = s.steps[n], f"steps[{n}].", known.steps
        template, payload, wanted = None, step.payload, set[str]()
        if b"${" in bytes(payload):
            value = _decode(payload)
            wanted = _steps_of(value, f"{where}payload") - kept.keys()
            if wanted:
                template = bytes(payload).decode()
            else:
                try:
                    payload = msgspec.Raw(_encode(references.fill(value, known)))
                except BadReference as exc:
                    raise InvalidRequest(f"{where}payload", str(exc)) from None
        if step.when is not None:
            wanted |= _steps_of_condition(step.when, f"{where}when") - kept.keys()
        refs = sorted(before.place(name, n, where) for name in wanted)
        asked = Submission(
            task=step.task, type=step.type, payload=payload, queue=step.queue, priority=step.priority, timeout=step.timeout,
            max_retries=step.max_retries, retry=step.retry, tags=step.tags, meta=step.meta, description=step.description,
        )  # fmt: skip
        job = self._intake.job(asked, request_id=request_id, where=where, checked=template is None)
        return _Made(n, job, template, step.when, _json(refs))


class _Made(NamedTuple):
    idx: int
    job: NewJob
    template: str | None
    condition: str | None
    refs: str | None


def names_of(steps: list[Step]) -> list[str]:
    """The name of each; a step without one goes by its task, if no other does."""
    names = [step.name or step.task or step.type or f"step-{n}" for n, step in enumerate(steps)]
    seen: dict[str, int] = {}
    for n, name in enumerate(names):
        if name in seen:
            raise InvalidRequest(
                f"steps[{n}].name", f"{name!r} is the name of steps[{seen[name]}] already; each has its own"
            )
        seen[name] = n
    return names


def _needs(steps: list[Step], names: list[str]) -> list[list[int]]:
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


def _order(names: list[str], needs: list[list[int]]) -> list[int]:
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


class _Before(NamedTuple):
    """Which steps come before which: ``sets`` has a bit for each, and costs little for ten thousand of them."""

    places: dict[str, int]
    sets: list[int]

    def place(self, name: str, n: int, where: str) -> int:
        """That of the step ``name``, which step ``n`` refers to."""
        if name not in self.places:
            raise InvalidRequest(where.rstrip("."), f"refers to the step {name!r}, and there is none")
        if not self.sets[n] >> self.places[name] & 1:
            raise InvalidRequest(
                f"{where}needs", f"does not lead to the step {name!r}, which the payload or the condition refers to"
            )
        return self.places[name]


def _before(names: list[str], needs: list[list[int]], order: list[int]) -> _Before:
    sets = [0] * len(names)
    for n in order:
        for need in needs[n]:
            sets[n] |= sets[need] | 1 << need
    return _Before({name: n for n, name in enumerate(names)}, sets)


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
    """The names of all steps, and of those that run again if ``name`` does."""
    names = names_of(definition.steps)
    if name not in names:
        raise InvalidRequest("from", f"there is no step {name!r}; there are {', '.join(names[:20])}")
    again = descendants(names.index(name), _needs(definition.steps, names))
    return names, {names[n] for n in again}


def _steps_of(value: Any, field: str) -> set[str]:
    """The names of the steps that a value refers to."""
    try:
        return {one.step for one in references.find(value) if one.step is not None}
    except BadReference as exc:
        raise InvalidRequest(field, str(exc)) from None


def _steps_of_condition(text: str, field: str) -> set[str]:
    try:
        found = references.references_of(references.parse_condition(text))
    except BadReference as exc:
        raise InvalidRequest(field, str(exc)) from None
    return {one.step for one in found if one.step is not None}


def _fingerprint(s: WorkflowSubmission) -> str:
    given = _decode(_encode(s))  # as a value: blanks in a payload, and the order of its keys, make no other one
    return hashlib.blake2b(msgspec.json.encode(given, order="sorted"), digest_size=16).hexdigest()


def _json(value: Any) -> str | None:
    return _encode(value).decode() if value else None
