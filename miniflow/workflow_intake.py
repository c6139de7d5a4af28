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
from miniflow.errors import InvalidRequest
from miniflow.ids import uuid7
from miniflow.intake import Intake, Submission
from miniflow.model import NewJob, Waits
from miniflow.references import BadReference, Known, Reference
from miniflow.registry import TaskSpec
from miniflow.states import State
from miniflow.workflow_graph import (
    Before,
    Definition,
    Step,
    Work,
    WorkflowSubmission,
    as_items,
    before_of,
    names_of,
    needs_of,
    order_of,
)


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
        needs = needs_of(s.steps, names)
        order = order_of(names, needs)
        known = Known(_decode(s.input), {"id": new_id, "name": s.name}, kept)
        before = before_of(names, needs, order)
        made = [self._step(s, n, before, known, request_id) for n in order if names[n] not in kept]
        places = {step.idx: place for place, step in enumerate(made)}
        definition = Definition(s.steps, s.timeout, s.on_failure)
        if definition.undoes:
            self._check_undoing(s, known, before)
        jobs, rows, loose = [], [], []
        for step in made:
            parents = tuple(places[n] for n in needs[step.idx] if n in places)
            job, later = step.job, bool(step.template or step.condition or step.kind)
            if parents or later:
                job.row[4] = State.PENDING
                job = job._replace(state=State.PENDING, waits=Waits(parents) if parents else None)
            jobs.append(job)
            rows.append(
                [job.id, new_id, step.idx, names[step.idx], step.template, step.condition, step.refs, None, step.kind]
            )
            if later and not parents:
                loose.append(job.id)
        timeout_ms = max(round(s.timeout * 1000), 1) if s.timeout else None
        mark = _fingerprint(s) if s.idempotency_key is not None else None
        row = [
            new_id,
            s.name,
            len(s.steps),
            _encode(definition).decode(),
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
            int(definition.undoes),
        ]
        return NewWorkflow(
            new_id,
            s.name,
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

    def _step(
        self,
        s: WorkflowSubmission,
        n: int,
        before: Before,
        known: Known,
        request_id: str | None,
    ) -> _Made:
        step, where, kept = s.steps[n], f"steps[{n}].", known.steps
        if step.for_each is not None:
            return self._for_each(step, n, before, known, request_id)
        if step.max_parallel is not None:
            raise InvalidRequest(f"{where}max_parallel", "is of the items of for_each, and there is none")
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
        job = self._job(step, payload, request_id, where, checked=template is None)
        return _Made(n, job, template, step.when, _json(refs))

    def _for_each(self, step: Step, n: int, before: Before, known: Known, request_id: str | None) -> _Made:
        """The job that stands for those of the items. Where the list is known already, each of them is looked at."""
        where = f"steps[{n}]."
        if isinstance(step.for_each, str) and not references.is_one(step.for_each):
            raise InvalidRequest(
                f"{where}for_each",
                f"{step.for_each!r} is neither a list nor one reference to a list, as ${{steps.list}}",
            )
        of_list = _steps_of(step.for_each, f"{where}for_each") - known.steps.keys()
        payload = _decode(step.payload)
        wanted = _steps_of(payload, f"{where}payload", ("item", "index")) - known.steps.keys()
        model = self._job(step, step.payload, request_id, where, checked=not list(references.find(payload)))
        if not of_list:
            try:
                items = as_items(references.fill(step.for_each, known))
            except BadReference as exc:
                raise InvalidRequest(f"{where}for_each", str(exc)) from None
            for place, item in enumerate(items if not wanted else ()):
                own = known._replace(own={"item": item, "index": place})
                try:
                    filled = msgspec.Raw(_encode(references.fill(payload, own)))
                except BadReference as exc:
                    raise InvalidRequest(f"{where}payload", f"for item {place}: {exc}") from None
                self._job(step, filled, request_id, where, checked=True)
        wanted |= of_list
        if step.when is not None:
            wanted |= _steps_of_condition(step.when, f"{where}when") - known.steps.keys()
        refs = sorted(before.place(name, n, where) for name in wanted)
        return _Made(n, stand_in(FOR_EACH, model, step, request_id), None, step.when, _json(refs), "for_each")

    def _check_undoing(self, s: WorkflowSubmission, known: Known, before: Before) -> None:
        """InvalidRequest and the like for a compensation, or an on_failure, that could not be run."""
        said = dict.fromkeys(("error", "status", "failed_step"))
        known = known._replace(workflow={**known.workflow, **said})
        for name, n in before.places.items():
            work = s.steps[n].compensate
            if work is not None:
                own = ("output",) if s.steps[n].for_each is None else ("output", "item", "index")
                for wanted in self._check_work(work, f"steps[{n}].compensate.", known, own) - {name}:
                    before.place(wanted, n, f"steps[{n}].")
        if s.on_failure is not None:
            for wanted in self._check_work(s.on_failure, "on_failure.", known, ()):
                if wanted not in before.places:
                    raise InvalidRequest("on_failure.payload", f"refers to the step {wanted!r}, and there is none")

    def _check_work(self, work: Work, where: str, known: Known, own: tuple[str, ...]) -> set[str]:
        """The names of the steps that it refers to."""
        whole, wanted = b"${" not in bytes(work.payload), set[str]()
        if not whole:
            value = _decode(work.payload)
            wanted = _steps_of(value, f"{where}payload", own)
            for one in references.find(value):
                if one.root in ("input", "workflow"):
                    try:
                        references.look_up(one, known)
                    except BadReference as exc:
                        raise InvalidRequest(f"{where}payload", str(exc)) from None
        self._job(work, work.payload, None, where, checked=whole)
        return wanted

    def work(self, work: Work, payload: msgspec.Raw, request_id: str | None) -> NewJob:
        """A job that is no step, its payload filled in; when it runs that is held against the task. UnknownTask, TooLarge."""
        return self._job(work, payload, request_id, "", checked=False)

    def _job(self, work: Work, payload: msgspec.Raw, request_id: str | None, where: str, *, checked: bool) -> NewJob:
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
        return self._intake.job(asked, request_id=request_id, where=where, checked=checked, own=own)


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


def _steps_of(value: Any, field: str, own: tuple[str, ...] = ()) -> set[str]:
    """The names of the steps that a value refers to; of the roots that are known in some places only, ``own`` are here."""
    try:
        return _names(list(references.find(value)), field, own)
    except BadReference as exc:
        raise InvalidRequest(field, str(exc)) from None


def _names(found: list[Reference], field: str, own: tuple[str, ...]) -> set[str]:
    for one in found:
        if one.root in references.OWN and one.root not in own:
            raise InvalidRequest(field, f"${{{one.text}}} is known only {references.OWN[one.root]}")
    return {one.step for one in found if one.step is not None}


def _steps_of_condition(text: str, field: str) -> set[str]:
    try:
        found = references.references_of(references.parse_condition(text))
    except BadReference as exc:
        raise InvalidRequest(field, str(exc)) from None
    return _names(found, field, ())


def _fingerprint(s: WorkflowSubmission) -> str:
    given = _decode(_encode(s))  # as a value: blanks in a payload, and the order of its keys, make no other one
    return hashlib.blake2b(msgspec.json.encode(given, order="sorted"), digest_size=16).hexdigest()


def _json(value: Any) -> str | None:
    return _encode(value).decode() if value else None
