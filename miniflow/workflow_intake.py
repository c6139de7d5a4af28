"""From a workflow that somebody asks for to its rows: steps in an order in which they can run, references checked.

What can be filled in now is filled in now, and held against the signature of the task: all that refers to the input. What refers
to other steps waits for them. Nothing here touches the database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from miniflow import references
from miniflow.clock import rfc3339
from miniflow.errors import InvalidRequest, UnknownTask
from miniflow.ids import uuid7
from miniflow.intake import EMPTY, Intake, Submission, checked_traceparent
from miniflow.model import NewJob, Waits
from miniflow.references import BadReference, Known
from miniflow.stand_ins import FOR_EACH, SUBWORKFLOW, stand_in
from miniflow.states import State
from miniflow.step_checks import check_executor, check_partly
from miniflow.workflow_catalog import Catalog, Kept, definition_asked_for
from miniflow.workflow_graph import (
    NULL,
    Definition,
    Step,
    Work,
    WorkflowSubmission,
    as_items,
    with_defaults,
)
from miniflow.workflow_plans import Plan, Plans, another, same_each_time
from miniflow.workflow_scope import Graph, Later, referred
from miniflow.workflow_shape import Shape, StepRow


class NewWorkflow(NamedTuple):
    """A workflow to be inserted: its row, its jobs in an order in which each comes after those it waits for, and what else of
    them is to be written."""

    id: str
    name: str
    row: list[Any]
    jobs: list[NewJob]
    shape: Shape
    undoes: bool
    nests: bool
    """Whether a step of it is a workflow."""
    timeout_ms: int | None = None
    key: str | None = None
    fingerprint: str | None = None
    kind: str = "steps"
    traceparent: str | None = None
    """That of the caller, if it named one."""

    def row_at(self, now_ms: int) -> list[Any]:
        """Its row, as ``workflow_statements.INSERT_WORKFLOWS`` takes it, of one that comes in now."""
        deadline = None if self.timeout_ms is None else now_ms + self.timeout_ms
        return [*self.row, self.kind, self.row[TOTAL] - self.row[DONE], deadline]


TOTAL, DONE = 2, 13
"""Places in the row of a workflow: how many steps it has, and how many of them are kept."""
NESTED_LOOKED_AT = 200
"""Steps of workflows that are steps are held against what these are given at a start, that many: it keeps the others waiting."""
OF_TASKS = ("task", "type", "payload", "queue", "priority", "max_retries", "retry", "executor", "tags")
"""What a step that is a workflow has not."""


class Slot(NamedTuple):
    """For what a schedule starts a workflow: its name, and the time that it means, in milliseconds since the epoch."""

    schedule: str
    at: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Functions(Protocol):
    """The durable functions, see ``function_intake.FunctionIntake``: a step can be one."""

    def knows(self, name: str) -> bool: ...
    def check(self, name: str, given: msgspec.Raw) -> None: ...


class WorkflowIntake:
    """Makes rows of workflows."""

    def __init__(self, intake: Intake, catalog: Catalog | None = None, functions: Functions | None = None) -> None:
        self._intake, self.catalog, self._functions = intake, catalog or Catalog(), functions
        self._plans: Plans[Graph, _Made] = Plans(intake.registry)

    def _is_function(self, name: str) -> bool:
        return self._functions is not None and self._functions.knows(name)

    def workflow(
        self,
        s: WorkflowSubmission,
        *,
        request_id: str | None = None,
        of: Kept | None = None,
        kept: Mapping[str, Any] | None = None,
        rerun_of: str | None = None,
        slot: Slot | None = None,
        parent: int | None = None,
    ) -> NewWorkflow:
        """What ``s`` asks for. ``of`` is the definition, where it is not the newest of its name. Of a rerun, ``kept`` are the
        outputs of the steps that are not to run again. ``parent`` is the row of the step that it is.

        Raises InvalidRequest naming the step and its field, UnknownTask, TooLarge.
        """
        new_id, kept = uuid7(), kept or {}
        mark = _fingerprint(s) if s.idempotency_key is not None else None
        if of is None and s.definition is not None:
            of = self.catalog.get(s.definition, "definition")
        definition, name = definition_asked_for(s, of), s.name or s.definition
        if name is None:
            raise InvalidRequest("name", "is missing")
        self._intake.check_size(s.input, "input")
        given = with_defaults(definition.inputs, _decode(s.input))
        known = Known(
            given, about(new_id, name, *(slot or (None, None))), kept, nested=None if parent else [NESTED_LOOKED_AT]
        )
        nests = self._check_nesting(None if of is None else of.name, definition)
        text = _encode(definition).decode()
        jobs, shape = self._planned(definition, text, known, request_id)
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
            parent,
        ]
        return NewWorkflow(
            new_id,
            name,
            row,
            jobs,
            shape,
            definition.undoes,
            nests,
            timeout_ms,
            s.idempotency_key,
            mark,
            traceparent=checked_traceparent(s.traceparent) if s.traceparent else None,
        )

    def check(self, name: str, definition: Definition) -> None:
        """Whether a definition could be run, whatever its input: raises as ``workflow`` does."""
        known = Known(Later(definition.inputs), about("", name, None, None), {}, nested=[NESTED_LOOKED_AT])
        graph = Graph.of(definition)
        self._check_nesting(name, definition)
        self._steps(graph, known, None, {})
        self._check_ends(graph, known)

    def _planned(
        self, definition: Definition, text: str, known: Known, request_id: str | None
    ) -> tuple[list[NewJob], Shape]:
        """The jobs of a start, and what else of them is to be written."""
        plan = self._plans.find(text) or Plan(Graph.of(definition))
        if plan.whole is not None and not known.steps:
            alike, shape = plan.whole
            jobs = [another(job, request_id) for job in alike]
        else:
            jobs, shape = _shaped(plan.graph, self._steps(plan.graph, known, request_id, plan.made))
        self._check_ends(plan.graph, known)
        if not known.steps:
            if len(plan.made) == len(jobs):
                plan.whole = plan.whole or (jobs, shape)
            self._plans.keep(text, plan)
        return jobs, shape

    def _steps(self, graph: Graph, known: Known, request_id: str | None, same: dict[int, _Made]) -> list[_Made]:
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
                if new.kind is None and new.fixed and not known.steps and same_each_time(new.job):
                    same[n] = new
            else:
                new = _Made(old[0], another(old[1], request_id), *old[2:])
            places[n] = len(made)
            made.append(new)
        return made

    def _check_nesting(self, name: str | None, definition: Definition) -> bool:
        """Whether steps of it are workflows. InvalidRequest if they lead back to it."""
        for step in definition.steps:
            if step.workflow is not None:
                self.catalog.check_nesting(name, definition)
                return True
        return False

    def _step(self, graph: Graph, n: int, known: Known, request_id: str | None, waits: Waits | None) -> _Made:
        step, where = graph.definition.steps[n], f"steps[{n}]."
        if step.for_each is not None:
            return self._for_each(graph, n, known, request_id, waits)
        if step.max_parallel is not None:
            raise InvalidRequest(f"{where}max_parallel", "is of the items of for_each, and there is none")
        field, template, given = self._given_field(step, where), None, step.given
        condition, known = graph.condition(n, known)
        wanted, fixed = condition.steps, condition.fixed
        if b"${" in bytes(given):
            value = _decode(given)
            found = referred(value, field, known)
            graph.check_names(found.steps, field, n)
            wanted, fixed = wanted | found.steps, fixed and found.fixed
            if not found.whole:
                template = bytes(given).decode()
            else:
                try:
                    given = msgspec.Raw(_encode(references.fill(value, known)))
                except BadReference as exc:
                    raise InvalidRequest(field, str(exc)) from None
        refs = graph.refs(n, wanted)
        if step.workflow is not None:
            self._check_input(step, given, where, known, whole=template is None)
            job = stand_in(SUBWORKFLOW, step, request_id, payload=bytes(given).decode() if template is None else "null")
            return _Made(n, job._replace(waits=waits), template, step.when, refs, "workflow")
        job = self._job(step, given, request_id, where, checked=template is None, known=known, waits=waits)
        return _Made(n, job, template, step.when, refs, fixed=fixed)

    def _given_field(self, step: Step, where: str) -> str:
        """The field with what the task or the workflow is given. InvalidRequest for what is of the one and given to the other."""
        if step.workflow is None:
            if bytes(step.input) != bytes(NULL):
                raise InvalidRequest(f"{where}input", "is of a workflow; what a task is given is its payload")
            return f"{where}payload"
        for name in OF_TASKS:
            if getattr(step, name) is not None and getattr(step, name) != EMPTY:
                raise InvalidRequest(
                    f"{where}{name}", "is of a task, and the step is a workflow, whose steps say their own"
                )
        if not self._is_function(step.workflow):
            self.catalog.get(step.workflow, f"{where}workflow")
        return f"{where}input"

    def _check_input(self, step: Step, given: msgspec.Raw, where: str, known: Known | None, *, whole: bool) -> None:
        """InvalidRequest for an input that the workflow of a step does not take, as far as that can be told."""
        name, value = step.workflow or "", _decode(given)
        try:
            if self._functions is not None and self._functions.knows(name):
                if whole:
                    self._functions.check(name, given)
            elif whole or isinstance(value, dict):
                of = self.catalog.get(name, "workflow")
                value = with_defaults(of.definition.inputs, value)
                if whole and known is not None:
                    self._check_nested(of, value, known)
        except InvalidRequest as exc:
            raise InvalidRequest(f"{where}{exc.field}", exc.reason) from None

    def _check_nested(self, of: Kept, given: Any, known: Known) -> None:
        """InvalidRequest for an input of a nested workflow that its steps would refuse; ``known`` is to the step that it is."""
        steps = of.definition.steps
        if known.nested is None or known.nested[0] < len(steps):  # it is found out when their turn comes
            return
        known.nested[0] -= len(steps)
        graph, inner = Graph.of(of.definition), Known(given, {**known.workflow, "name": of.name}, {})
        for n, step in enumerate(steps):
            if step.workflow is None and step.for_each is None and (step.when or b"${" in bytes(step.payload)):
                try:
                    self._step(graph, n, inner, None, None)
                except UnknownTask:  # it may be there by then
                    continue
                except InvalidRequest as exc:
                    raise InvalidRequest("input", f"{of.name} would refuse it: {exc}") from None

    def _for_each(self, graph: Graph, n: int, known: Known, request_id: str | None, waits: Waits | None) -> _Made:
        """The job that stands for those of the items. Where the list is known already, each of them is looked at."""
        step, where = graph.definition.steps[n], f"steps[{n}]."
        if isinstance(step.for_each, str) and not references.is_one(step.for_each):
            raise InvalidRequest(
                f"{where}for_each",
                f"{step.for_each!r} is neither a list nor one reference to a list, as ${{steps.list}}",
            )
        field = self._given_field(step, where)
        condition, known = graph.condition(n, known)
        of_list, listed, _ = referred(step.for_each, f"{where}for_each", known)
        graph.check_names(of_list, f"{where}for_each", n)
        given = _decode(step.given)
        wanted, whole, _ = referred(given, field, known, ("item", "index"))
        graph.check_names(wanted, field, n)
        plain = not list(references.find(given))
        model = self._item(step, step.given, request_id, where, checked=plain, known=known)
        if listed:
            try:
                items = as_items(references.fill(step.for_each, known))
            except BadReference as exc:
                raise InvalidRequest(f"{where}for_each", str(exc)) from None
            for place, item in enumerate(items if whole else ()):
                own = known._replace(own={"item": item, "index": place})
                try:
                    filled = msgspec.Raw(_encode(references.fill(given, own)))
                except BadReference as exc:
                    raise InvalidRequest(field, f"for item {place}: {exc}") from None
                self._item(step, filled, request_id, where, checked=True, known=own)
        job = stand_in(FOR_EACH, step, request_id, queue=model.queue, priority=model.priority)
        refs = graph.refs(n, wanted | of_list | condition.steps)
        return _Made(n, job._replace(waits=waits), None, step.when, refs, "for_each")

    def _item(
        self,
        step: Step,
        given: msgspec.Raw,
        request_id: str | None,
        where: str,
        *,
        checked: bool,
        known: Known | None = None,
    ) -> NewJob:
        if step.workflow is None:
            return self._job(step, given, request_id, where, checked=checked, known=known)
        self._check_input(step, given, where, known, whole=checked)
        return stand_in(SUBWORKFLOW, step, request_id, payload=bytes(given).decode())

    def item(self, step: Step, given: msgspec.Raw, request_id: str | None) -> NewJob:
        """The job of an item of for_each; of a workflow the one that stands for it. UnknownTask, TooLarge."""
        if step.workflow is None:
            return self.work(step, given, request_id)
        return stand_in(SUBWORKFLOW, step, request_id, payload=bytes(given).decode())

    def _check_ends(self, graph: Graph, known: Known) -> None:
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
                here = graph.condition(n, known)[1]
                graph.check_undoing(n, self._check_work(step.compensate, f"steps[{n}].compensate.", here, own))
        if definition.on_failure is not None:
            graph.check_names(self._check_work(definition.on_failure, "on_failure.", known, ()), "on_failure.payload")

    def _check_work(self, work: Work, where: str, known: Known, own: tuple[str, ...]) -> set[str]:
        """The names of the steps that it refers to."""
        whole, wanted = b"${" not in bytes(work.payload), set[str]()
        if not whole:
            value = _decode(work.payload)
            wanted = referred(value, f"{where}payload", known, own).steps
        self._job(work, work.payload, None, where, checked=whole, known=known)
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
        known: Known | None = None,
        waits: Waits | None = None,
    ) -> NewJob:
        """With ``known`` a payload that is not ``checked``, since it is not whole, is checked as far as it is."""
        asked = Submission(
            task=work.task, type=work.type, payload=payload, queue=work.queue, priority=work.priority, timeout=work.timeout,
            max_retries=work.max_retries, retry=work.retry, tags=work.tags, meta=work.meta, description=work.description,
        )  # fmt: skip
        spec, own = self._intake.registry.find(work.task or work.type or ""), None
        if work.executor is not None:
            if spec is not None:  # else it is refused for that
                check_executor(spec, work.executor, f"{where}executor")
            own = {"executor": work.executor}
        if spec is not None and known is not None and not checked:
            check_partly(spec, _decode(payload), known, where)
        return self._intake.job(asked, request_id=request_id, where=where, checked=checked, own=own, waits=waits)


class _Made(NamedTuple):
    idx: int
    job: NewJob
    template: str | None
    condition: str | None
    refs: str | None
    kind: str | None = None
    fixed: bool = False
    """Whether it is the same whatever the input is."""


def about(workflow: str, name: str, schedule: str | None, scheduled_for: int | None) -> dict[str, Any]:
    """What ``${workflow…}`` leads to: of one that a schedule started also that, and the time it is for."""
    return {"id": workflow, "name": name, "schedule": schedule, "scheduled_for": rfc3339(scheduled_for)}


def _shaped(graph: Graph, made: list[_Made]) -> tuple[list[NewJob], Shape]:
    """The jobs of a workflow, and what else of them is to be written."""
    jobs, steps = [], []
    for one in made:
        step = StepRow(one.idx, graph.names[one.idx], one.template, one.condition, one.refs, one.kind)
        job = one.job
        if step.later and job.waits is None:
            job.row[4] = State.PENDING
            job = job._replace(state=State.PENDING)
        jobs.append(job)
        steps.append(step)
    return jobs, Shape(jobs, steps)


def _fingerprint(s: WorkflowSubmission) -> str:
    given = _decode(_encode(s))  # as a value: blanks in a payload, and the order of its keys, make no other one
    given.pop("traceparent", None)  # a repeated start is a span of its own
    return hashlib.blake2b(msgspec.json.encode(given, order="sorted"), digest_size=16).hexdigest()


def _json(value: Any) -> str | None:
    return _encode(value).decode() if value else None
