"""From a workflow that somebody asks for to its rows: steps in an order in which they can run, references checked.

What can be filled in now is filled in now, and held against the signature of the task: all that refers to the input. What refers
to other steps waits for them. Nothing here touches the database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from miniflow import limits, references
from miniflow.clock import rfc3339
from miniflow.errors import InvalidRequest
from miniflow.ids import uuid7
from miniflow.intake import Intake, Submission
from miniflow.model import NewJob, Waits
from miniflow.references import BadReference, Known, Reference
from miniflow.registry import TaskSpec
from miniflow.states import State
from miniflow.workflow_catalog import Catalog, Kept
from miniflow.workflow_graph import (
    Before,
    Definition,
    Input,
    Step,
    Work,
    WorkflowSubmission,
    as_items,
    before_of,
    names_of,
    needs_of,
    order_of,
    with_defaults,
)
from miniflow.workflow_plans import Plan, Plans, another, same_each_time


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
    undoes: bool
    expands: bool
    """Whether a step of it stands for others."""
    timeout_ms: int | None = None
    key: str | None = None
    fingerprint: str | None = None
    kind: str = "steps"


class Slot(NamedTuple):
    """For what a schedule starts a workflow: its name, and the time that it means, in milliseconds since the epoch."""

    schedule: str
    at: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class WorkflowIntake:
    """Makes rows of workflows."""

    def __init__(self, intake: Intake, catalog: Catalog | None = None) -> None:
        self._intake, self.catalog = intake, catalog or Catalog()
        self._plans: Plans[_Graph, _Made] = Plans(intake.registry)

    def workflow(
        self,
        s: WorkflowSubmission,
        *,
        request_id: str | None = None,
        of: Kept | None = None,
        kept: Mapping[str, Any] | None = None,
        rerun_of: str | None = None,
        slot: Slot | None = None,
    ) -> NewWorkflow:
        """What ``s`` asks for. ``of`` is the definition, where it is not the newest of its name. Of a rerun, ``kept`` are the
        outputs of the steps that are not to run again.

        Raises InvalidRequest naming the step and its field, UnknownTask, TooLarge.
        """
        new_id, kept = uuid7(), kept or {}
        mark = _fingerprint(s) if s.idempotency_key is not None else None
        if of is None and s.definition is not None:
            of = self.catalog.get(s.definition, "definition")
        definition = _definition(s, of)
        name = s.name or s.definition
        if name is None:
            raise InvalidRequest("name", "is missing")
        given = with_defaults(definition.inputs, _decode(s.input))
        known = Known(given, about(new_id, name, *(slot or (None, None))), kept)
        text = _encode(definition).decode()
        plan = self._plans.find(text)
        if plan is None:
            plan = Plan(_Graph.of(definition))
        graph = plan.graph
        made = self._steps(graph, known, request_id, plan.made)
        self._check_ends(graph, known)
        if not kept:
            self._plans.keep(text, plan)
        jobs, rows, loose = _rows(graph, made, new_id)
        timeout_ms = max(round(definition.timeout * 1000), 1) if definition.timeout else None
        row = [
            new_id,
            name,
            len(definition.steps),
            text,
            _encode(given).decode() if definition.inputs is not None else bytes(s.input).decode(),
            _json(kept),
            timeout_ms,
            s.idempotency_key,
            mark,
            request_id,
            rerun_of,
            s.description or (definition.description if of is not None else None),
            _json(s.meta),
            len(kept),
            int(definition.undoes),
            None if of is None else of.name,
            None if of is None else of.version,
            *(slot or (None, None)),
        ]
        return NewWorkflow(
            new_id,
            name,
            row,
            jobs,
            rows,
            loose,
            definition.undoes,
            any(step.kind for step in made),
            timeout_ms,
            s.idempotency_key,
            mark,
        )

    def check(self, name: str, definition: Definition) -> None:
        """Whether a definition could be run, whatever its input: raises as ``workflow`` does."""
        known = Known(Later(definition.inputs), about("", name, None, None), {})
        graph = _Graph.of(definition)
        self._steps(graph, known, None, {})
        self._check_ends(graph, known)

    def _steps(self, graph: _Graph, known: Known, request_id: str | None, same: dict[int, _Made]) -> list[_Made]:
        """In an order in which they can run, those that are not kept. ``same`` has, and gets, those that do not change."""
        places: dict[int, int] = {}
        made: list[_Made] = []
        for n in graph.order:
            if graph.names[n] in known.steps:
                continue
            old = None if known.steps else same.get(n)
            if old is None:
                parents = tuple(places[one] for one in graph.needs[n] if one in places)
                new = self._step(graph, n, known, request_id, Waits(parents) if parents else None)
                if (
                    new.kind is None
                    and not known.steps
                    and same_each_time(new.job, bytes(graph.definition.steps[n].payload))
                ):
                    same[n] = new
            else:
                new = old._replace(job=another(old.job, request_id))
            places[n] = len(made)
            made.append(new)
        return made

    def _step(self, graph: _Graph, n: int, known: Known, request_id: str | None, waits: Waits | None) -> _Made:
        step, where = graph.definition.steps[n], f"steps[{n}]."
        if step.for_each is not None:
            return self._for_each(graph, n, known, request_id, waits)
        if step.max_parallel is not None:
            raise InvalidRequest(f"{where}max_parallel", "is of the items of for_each, and there is none")
        template, payload, wanted = None, step.payload, set[str]()
        if b"${" in bytes(payload):
            value = _decode(payload)
            wanted, whole = referred(value, f"{where}payload", known)
            if not whole:
                template = bytes(payload).decode()
            else:
                try:
                    payload = msgspec.Raw(_encode(references.fill(value, known)))
                except BadReference as exc:
                    raise InvalidRequest(f"{where}payload", str(exc)) from None
        job = self._job(step, payload, request_id, where, checked=template is None, waits=waits)
        return _Made(n, job, template, step.when, graph.refs(n, wanted, known))

    def _for_each(self, graph: _Graph, n: int, known: Known, request_id: str | None, waits: Waits | None) -> _Made:
        """The job that stands for those of the items. Where the list is known already, each of them is looked at."""
        step, where = graph.definition.steps[n], f"steps[{n}]."
        if isinstance(step.for_each, str) and not references.is_one(step.for_each):
            raise InvalidRequest(
                f"{where}for_each",
                f"{step.for_each!r} is neither a list nor one reference to a list, as ${{steps.list}}",
            )
        of_list, listed = referred(step.for_each, f"{where}for_each", known)
        payload = _decode(step.payload)
        wanted, whole = referred(payload, f"{where}payload", known, ("item", "index"))
        model = self._job(step, step.payload, request_id, where, checked=not list(references.find(payload)))
        if listed:
            try:
                items = as_items(references.fill(step.for_each, known))
            except BadReference as exc:
                raise InvalidRequest(f"{where}for_each", str(exc)) from None
            for place, item in enumerate(items if whole else ()):
                own = known._replace(own={"item": item, "index": place})
                try:
                    filled = msgspec.Raw(_encode(references.fill(payload, own)))
                except BadReference as exc:
                    raise InvalidRequest(f"{where}payload", f"for item {place}: {exc}") from None
                self._job(step, filled, request_id, where, checked=True)
        refs = graph.refs(n, wanted | of_list, known)
        job = stand_in(FOR_EACH, model, step, request_id)._replace(waits=waits)
        return _Made(n, job, None, step.when, refs, "for_each")

    def _check_ends(self, graph: _Graph, known: Known) -> None:
        """InvalidRequest and the like for a compensation, an on_failure, or an output, that could not be made."""
        definition = graph.definition
        if not isinstance(definition.output, msgspec.UnsetType):
            graph.check_names(*referred(_decode(definition.output), "output", known)[:1], "output")
        if not definition.undoes:
            return
        said = dict.fromkeys(("error", "status", "failed_step"))
        known = known._replace(workflow={**known.workflow, **said})
        for n, step in enumerate(definition.steps):
            if step.compensate is not None:
                own = ("output",) if step.for_each is None else ("output", "item", "index")
                wanted = self._check_work(step.compensate, f"steps[{n}].compensate.", known, own)
                graph.refs(n, wanted - {graph.names[n]}, known, with_condition=False)
        if definition.on_failure is not None:
            graph.check_names(self._check_work(definition.on_failure, "on_failure.", known, ()), "on_failure.payload")

    def _check_work(self, work: Work, where: str, known: Known, own: tuple[str, ...]) -> set[str]:
        """The names of the steps that it refers to."""
        whole, wanted = b"${" not in bytes(work.payload), set[str]()
        if not whole:
            value = _decode(work.payload)
            wanted, _ = referred(value, f"{where}payload", known, own)
            for one in references.find(value):
                if one.root == "workflow" or (one.root == "input" and not isinstance(known.input, Later)):
                    try:
                        references.look_up(one, known)
                    except BadReference as exc:
                        raise InvalidRequest(f"{where}payload", str(exc)) from None
        self._job(work, work.payload, None, where, checked=whole)
        return wanted

    def work(self, work: Work, payload: msgspec.Raw, request_id: str | None) -> NewJob:
        """A job that is no step, its payload filled in; when it runs that is held against the task. UnknownTask, TooLarge."""
        return self._job(work, payload, request_id, "", checked=False)

    def _job(
        self,
        work: Work,
        payload: msgspec.Raw,
        request_id: str | None,
        where: str,
        *,
        checked: bool,
        waits: Waits | None = None,
    ) -> NewJob:
        asked = Submission(
            task=work.task, type=work.type, payload=payload, queue=work.queue, priority=work.priority, timeout=work.timeout,
            max_retries=work.max_retries, retry=work.retry, tags=work.tags, meta=work.meta, description=work.description,
        )  # fmt: skip
        own = None
        if work.executor is not None:
            spec = self._intake.registry.find(work.task or work.type or "")
            if spec is not None:  # else it is refused for that
                _check_executor(spec, work.executor, f"{where}executor")
            own = {"executor": work.executor}
        return self._intake.job(asked, request_id=request_id, where=where, checked=checked, own=own, waits=waits)


def _check_executor(spec: TaskSpec, wanted: str, field: str) -> None:
    """InvalidRequest, if the task cannot be run so."""
    if spec.executor == "command":
        raise InvalidRequest(
            field, f"cannot be {wanted}: {spec.name} is a command, and runs as a process of its own anyway"
        )
    if spec.executor == "async":
        raise InvalidRequest(field, f"cannot be {wanted}: {spec.name} is an async def, which runs on the event loop")
    if wanted == "process" and not spec.native:
        raise InvalidRequest(field, f"cannot be process: {spec.name} is a task of huey's, which runs in a thread")
    try:
        limits.check(spec.limits, wanted, f"the task {spec.name}")
    except ValueError as exc:
        raise InvalidRequest(field, f"cannot be {wanted}: {exc}") from None


class _Made(NamedTuple):
    idx: int
    job: NewJob
    template: str | None
    condition: str | None
    refs: str | None
    kind: str | None = None


FOR_EACH = "miniflow.for_each"
"""The task of a job that stands for those of items. There is none of that name: it never runs."""


def stand_in(task: str, model: NewJob, step: Step, request_id: str | None) -> NewJob:
    """A job that stands for others, in the queue that they would be in."""
    new_id = uuid7()
    row = [new_id, task, model.queue, model.priority, State.PENDING, "{}", 0, None, None, 0, None, request_id]
    row += [None, _json(step.tags), _json(step.meta), step.description]
    return NewJob(new_id, task, model.queue, model.priority, State.PENDING, None, None, row)


def about(workflow: str, name: str, schedule: str | None, scheduled_for: int | None) -> dict[str, Any]:
    """What ``${workflow…}`` leads to: of one that a schedule started also that, and the time it is for."""
    return {"id": workflow, "name": name, "schedule": schedule, "scheduled_for": rfc3339(scheduled_for)}


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


class _Graph(NamedTuple):
    """A definition, the names of its steps, which of them each needs, and an order in which they can run."""

    definition: Definition
    names: list[str]
    needs: list[list[int]]
    order: list[int]
    before: Before

    @classmethod
    def of(cls, definition: Definition) -> _Graph:
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
        return _json(sorted(self.before.place(name, n, where) for name in wanted))

    def check_names(self, wanted: set[str], field: str) -> None:
        """InvalidRequest if one of these is no step."""
        for name in wanted:
            if name not in self.before.places:
                raise InvalidRequest(field, f"refers to the step {name!r}, and there is none")


def _rows(graph: _Graph, made: list[_Made], new_id: str) -> tuple[list[NewJob], list[list[Any]], list[str]]:
    """The jobs of a workflow, the rows of its steps, and the ids of those jobs that wait for nothing but their turn."""
    jobs, rows, loose = [], [], []
    for step in made:
        job, later = step.job, bool(step.template or step.condition or step.kind)
        if later and job.waits is None:
            job.row[4] = State.PENDING
            job = job._replace(state=State.PENDING)
            loose.append(job.id)
        jobs.append(job)
        name = graph.names[step.idx]
        rows.append([job.id, new_id, step.idx, name, step.template, step.condition, step.refs, None, step.kind])
    return jobs, rows, loose


def _definition(s: WorkflowSubmission, of: Kept | None) -> Definition:
    """The steps that are asked for, or those of the definition with what is asked for instead."""
    if of is None:
        if s.version is not None:
            raise InvalidRequest("version", "is of a definition, and none is named")
        if s.steps is None:
            raise InvalidRequest("steps", "is missing; give them, or a definition that is kept")
        return Definition(steps=s.steps, output=s.output, timeout=s.timeout, on_failure=s.on_failure)
    for field in ("steps", "output"):
        if getattr(s, field) not in (None, msgspec.UNSET):
            raise InvalidRequest(field, "cannot be given together with definition, which has it; give one of the two")
    changed = {name: getattr(s, name) for name in ("timeout", "on_failure") if getattr(s, name) is not None}
    return msgspec.structs.replace(of.definition, **changed)


def _fingerprint(s: WorkflowSubmission) -> str:
    given = _decode(_encode(s))  # as a value: blanks in a payload, and the order of its keys, make no other one
    return hashlib.blake2b(msgspec.json.encode(given, order="sorted"), digest_size=16).hexdigest()


def _json(value: Any) -> str | None:
    return _encode(value).decode() if value else None
