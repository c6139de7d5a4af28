"""What can be asked about workflows, and the shape of the answers. Reads only."""

from __future__ import annotations

from typing import Any

import msgspec

from miniflow import definition_statements as definition_sql
from miniflow import expansion_statements as expansion_sql
from miniflow import function_statements as function_sql
from miniflow import references
from miniflow import subworkflow_statements as subworkflow_sql
from miniflow import workflow_statements as sql
from miniflow.clock import rfc3339
from miniflow.definitions import kept_of_row
from miniflow.errors import InvalidRequest, NotFound
from miniflow.function_queries import run_of_function
from miniflow.readers import Readers
from miniflow.references import BadReference, Known
from miniflow.starting import RUNNING, WORKFLOWS
from miniflow.states import State
from miniflow.step_shape import BadItem, Compensation, Items, ReceivedEvent, WorkflowStep
from miniflow.workflow_catalog import Kept
from miniflow.workflow_graph import Definition, Step, decode_definition, names_of, said_of_child
from miniflow.workflow_intake import NewWorkflow, about
from miniflow.workflows import CANCELLED, COMPLETED, STATES
from miniflow.writer import Writer, json_text

BEYOND = 1 << 62
BAD_SHOWN = 20
"""Items that did not end well, of one workflow."""
UNDOING_AT = -2
"""Its place in a row of ``WORKFLOW``."""
JOB, CHANGED, ROLE, KIND, ITEMS = -5, -4, -3, -2, -1
"""Their places in a row of ``STEPS_OF_WORKFLOW``."""
_decode = msgspec.json.Decoder().decode


class Workflow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A run of a workflow. ``current_step`` counts the steps that are done. In a list there are neither ``steps`` nor ``input``.
    That of a durable function has the ``kind`` function, an ``output``, the ``events`` that were sent to it, and a ``parent_id``
    if another run has spawned it; its steps are what it has asked for so far."""

    id: str
    name: str
    kind: str = "steps"
    definition: str | None = None
    version: int | None = None
    schedule: str | None = None
    scheduled_for: str | None = None
    parent_id: str | None = None
    parent_step: str | None = None
    status: str
    current_step: int
    total_steps: int
    paused: bool = False
    compensating: bool = False
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    output: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: str | None = None
    steps: list[WorkflowStep] | None = None
    compensations: list[Compensation] | None = None
    events: list[ReceivedEvent] | None = None
    job_id: str | None = None
    timeout: float | None = None
    deadline_at: str | None = None
    idempotency_key: str | None = None
    request_id: str | None = None
    rerun_of: str | None = None
    description: str | None = None
    meta: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    created_at: str
    updated_at: str
    completed_at: str | None = None
    cancel_requested_at: str | None = None
    change: int | None = None


class WorkflowPage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A page of workflows, newest first. ``next_cursor`` is left out where it is the last."""

    items: list[Workflow]
    next_cursor: str | None = None
    total: int | None = None


class WorkflowQueries:
    def __init__(self, readers: Readers, writer: Writer) -> None:
        self.readers, self._writer = readers, writer

    def workflow(self, workflow_id: str) -> Workflow:
        """With its steps. NotFound if there is none."""
        rows = self.readers.point(sql.WORKFLOW_BY_ID, workflow_id)
        if not rows:
            raise NotFound("workflow", workflow_id)
        *row, text = rows[0]
        found = _workflow_of_row(tuple(row))
        if found.kind == "function":
            run = run_of_function(self.readers, row[0], workflow_id, ended=found.status != RUNNING)
            found.steps, found.output, found.job_id = run.steps, run.output, run.job_id
            found.events = run.events or None
            found.change = max(row[-1], run.changed)
            return found
        definition = decode_definition(text)
        jobs = self.readers.point(sql.STEPS_OF_WORKFLOW, row[0])
        found.steps = _steps(definition, jobs, _decode(row[8]) if row[8] else {})
        undoing = sorted((job for job in jobs if job[ROLE] in ("undo", "on_failure")), key=lambda job: int(job[JOB]))
        found.compensations = [_compensation(job) for job in undoing] or None  # as they were made, so they run
        found.change = max([row[-1], *(job[CHANGED] for job in jobs)])
        if found.status == COMPLETED and not isinstance(definition.output, msgspec.UnsetType):
            try:
                found.output = self._output(definition.output, row)
            except BadReference as exc:
                found.error = f"its output cannot be made: {exc}"
        if any(job[ITEMS] is not None for job in jobs):
            self._add_items(found, row[0])
            self._add_children(found, row[0])
        return found

    def step(self, workflow_id: str, wanted: str) -> WorkflowStep:
        """One of its steps, by its index or its name, with all that is long. NotFound."""
        found = self.workflow(workflow_id)
        by = {step.name: step for step in reversed(found.steps or ())}  # of several of one name the first
        step = {**by, **{str(step.index): step for step in found.steps or ()}}.get(wanted)
        if step is None:
            raise NotFound("step", f"{wanted} of workflow {workflow_id}")
        if found.kind == "function":
            rows = self.readers.point(function_sql.LONG_OF_STEP, workflow_id, step.index) if step.output_bytes else []
            payload, output = None, rows[0][0] if rows else None
        else:
            left_out = step.payload_bytes or step.input_bytes or step.output_bytes
            rows = self.readers.point(sql.LONG_OF_STEP, workflow_id, step.index) if left_out else []
            payload, output = rows[0] if rows else (None, None)
        if step.payload_bytes:
            step.payload, step.payload_bytes = _raw(payload), None
        if step.input_bytes:
            step.input, step.input_bytes = _raw(payload), None
        if step.output_bytes:
            step.output, step.output_bytes = _raw(output), None
        return step

    def _output(self, wanted: msgspec.Raw, row: list[Any]) -> msgspec.Raw:
        """What one that has ended well returns, by its definition; BadReference if it refers to what is not there."""
        steps = _decode(row[8]) if row[8] else {}
        for name, result in self.readers.point(sql.OUTPUTS_OF_WORKFLOW, row[0]):
            steps[name] = None if result is None else _decode(result)
        known = Known(_decode(row[7]), about(row[1], row[2], row[24], row[25]), steps)
        return msgspec.Raw(msgspec.json.encode(references.fill(_decode(wanted), known)))

    def _add_items(self, found: Workflow, number: int) -> None:
        """How far the steps are that stand for others."""
        bad: dict[int, list[BadItem]] = {}
        for idx, name, job_id, state, error in self.readers.point(
            expansion_sql.BAD_ITEMS_OF_WORKFLOW, number, BAD_SHOWN
        ):
            place = int(name.rpartition("[")[2].rstrip("]"))
            bad.setdefault(idx, []).append(BadItem(index=place, job_id=job_id, status=state, error=error))
        by_idx = {step.index: step for step in found.steps or ()}
        for idx, ended, failed, begun, changed in self.readers.point(expansion_sql.ITEMS_OF_WORKFLOW, number):
            found.change = max(found.change or 0, changed)
            step = by_idx.get(idx)
            if step is not None and step.items is not None:
                step.items.done, step.items.failed, step.items.bad = ended - failed, failed, bad.get(idx)
                step.started_at = rfc3339(begun)
                if step.status == State.PENDING:
                    step.status = State.QUEUED if begun is None else State.RUNNING
                elif failed and step.status == State.CANCELLED and found.cancel_requested_at is None:
                    step.status = "failed"

    def _add_children(self, found: Workflow, number: int) -> None:
        """Which workflows the steps are that are such."""
        by_idx = {step.index: step for step in found.steps or ()}
        for idx, role, child_id, state, changed, begun, name, error in self.readers.point(
            subworkflow_sql.CHILDREN_OF_WORKFLOW, number
        ):
            found.change = max(found.change or 0, changed)
            step = by_idx.get(idx)
            if step is None or role != "step":
                continue
            step.workflow_id, step.started_at = child_id, rfc3339(begun)
            if state == RUNNING:  # also while it is being cancelled, when the job that stands for it has ended already
                step.status = RUNNING
            elif state == CANCELLED and found.cancel_requested_at is not None:
                continue
            elif state != COMPLETED and step.status == State.CANCELLED:
                step.status = "failed"
                # None: it was cancelled with the whole, while the other undid what it did.
                step.error = step.error or said_of_child(name, child_id, state, error)

    def kept(self, name: str, version: int | None = None) -> Kept:
        """A version of a kept definition, or its newest. NotFound."""
        if version is None:
            rows = self.readers.point(definition_sql.NEWEST_OF_NAME, name)
        else:
            rows = self.readers.point(definition_sql.VERSION_OF_NAME, name, version)
        if not rows:
            raise NotFound("definition", name if version is None else f"{name} of version {version}")
        return kept_of_row(rows[0])

    def versions(self, name: str, limit: int) -> list[Kept]:
        """Of a kept definition, the newest first. NotFound."""
        rows = self.readers.point(definition_sql.VERSIONS_OF_NAME, name, limit)
        if not rows:
            raise NotFound("definition", name)
        return [kept_of_row(row) for row in rows]

    def is_function(self, workflow_id: str) -> bool:
        """Whether it is a run of a durable function."""
        return self.readers.point(sql.IS_FUNCTION, workflow_id) == [(1,)]

    def change(self, workflow_id: str) -> tuple[int, bool] | None:
        """The number of its last change, and whether it has ended; None if there is none."""
        rows = self.readers.point(sql.CHANGE_OF_WORKFLOW, workflow_id)
        return (rows[0][1], rows[0][0] != RUNNING) if rows else None

    def origin(self, workflow_id: str) -> tuple[int, Workflow, str]:
        """Its number, the run without its steps, and what was kept of its start as JSON."""
        rows = self.readers.point(sql.WORKFLOW_BY_ID, workflow_id)
        if not rows:
            raise NotFound("workflow", workflow_id)
        *row, definition = rows[0]
        return row[0], _workflow_of_row(tuple(row)), definition

    def definition(self, workflow_id: str) -> tuple[Workflow, Definition, dict[str, Any]]:
        """What a rerun needs: the run without its steps, how it was defined, and the outputs of the steps that are done, and not
        undone."""
        rows = self.readers.point(sql.WORKFLOW_BY_ID, workflow_id)
        if not rows:
            raise NotFound("workflow", workflow_id)
        *row, definition = rows[0]
        outputs = _decode(row[8]) if row[8] else {}
        undone: set[str] = set()
        if row[UNDOING_AT] is not None:
            undone = {name for (name,) in self.readers.point(sql.UNDONE_STEPS, row[0])}
        for name, result in self.readers.point(sql.OUTPUTS_OF_WORKFLOW, row[0]):
            if name not in undone:
                outputs[name] = None if result is None else _decode(result)
        return _workflow_of_row(tuple(row)), decode_definition(definition), outputs

    async def page(
        self, *, name: str | None, status: str | None, nested: bool, limit: int, cursor: str | None
    ) -> WorkflowPage:
        """``nested``: those too that are steps of others. InvalidRequest for a status or a cursor that is none."""
        states = _states_of(status)
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
            raise InvalidRequest("cursor", "is none that a page had")
        below = BEYOND if cursor is None else int(cursor)
        which = [one for one in (name, states and json_text(states)) if one is not None]
        statement = {
            (False, False): sql.LIST_WORKFLOWS,
            (False, True): sql.LIST_WORKFLOWS_OF_STATES,
            (True, False): sql.LIST_WORKFLOWS_OF_NAME,
            (True, True): sql.LIST_WORKFLOWS_OF_NAME_AND_STATES,
        }[name is not None, states is not None]
        rows = await self.readers.fetch(statement, below, limit + 1, int(nested), *which)
        more = str(rows[limit - 1][0]) if len(rows) > limit else None
        counted = self._writer.counters.get(WORKFLOWS, {})
        total = None
        if name is None and nested:
            total = sum(counted.get(state, 0) for state in states or STATES)
        items = [_workflow_of_row(row) for row in rows[:limit]]
        for one in items:
            one.input = msgspec.UNSET  # it may be a megabyte
        return WorkflowPage(items=items, next_cursor=more, total=total)


def _states_of(status: str | None) -> list[str] | None:
    """Of a filter: one or more, separated by commas. InvalidRequest for one that is none."""
    if not status:
        return None
    found = dict.fromkeys(part.strip() for part in status.split(","))
    for name in found:
        if name not in STATES:
            raise InvalidRequest("status", f"{name!r} is none of {', '.join(STATES)}")
    return list(found)


def _workflow_of_row(row: tuple[Any, ...]) -> Workflow:
    (
        _number, workflow_id, name, state, total, _open, done, given, _kept, error, timeout_ms, deadline_at, created_at,
        updated_at, completed_at, cancel_at, paused_at, key, request_id, rerun_of, description, meta, of_definition, of_version,
        schedule, scheduled_for, kind, parent, undoing_at, changed,
    ) = row  # fmt: skip
    parent_id, parent_step = (None, None) if parent is None else _decode(parent)
    return Workflow(
        id=workflow_id,
        name=name,
        parent_id=parent_id,
        parent_step=parent_step,
        definition=of_definition,
        version=of_version,
        schedule=schedule,
        scheduled_for=rfc3339(scheduled_for),
        kind=kind,
        status=state,
        current_step=done,
        total_steps=total,
        paused=paused_at is not None,
        compensating=state == RUNNING and undoing_at is not None,
        input=msgspec.UNSET if given == "null" else msgspec.Raw(given.encode()),
        error=error,
        timeout=None if timeout_ms is None else timeout_ms / 1000,
        deadline_at=rfc3339(deadline_at) if state == RUNNING else None,
        idempotency_key=key,
        request_id=request_id,
        rerun_of=rerun_of,
        description=description,
        meta=_raw(meta),
        created_at=rfc3339(created_at) or "",
        updated_at=rfc3339(updated_at) or "",
        completed_at=rfc3339(completed_at),
        cancel_requested_at=rfc3339(cancel_at),
        change=changed,
    )


def workflow_of_new(new: NewWorkflow, now_ms: int) -> Workflow:
    """The shape of one that was just accepted, without reading it back."""
    now = rfc3339(now_ms) or ""
    given, durable = new.row[4], new.kind == "function"
    return Workflow(
        id=new.id,
        name=new.name,
        definition=new.row[15],
        version=new.row[16],
        schedule=new.row[17],
        scheduled_for=rfc3339(new.row[18]),
        kind=new.kind,
        status=RUNNING,
        current_step=new.row[13],
        total_steps=0 if durable else new.row[2],
        input=msgspec.UNSET if given == "null" else msgspec.Raw(given.encode()),
        timeout=None if new.timeout_ms is None else new.timeout_ms / 1000,
        idempotency_key=new.key,
        request_id=new.row[9],
        rerun_of=new.row[10],
        description=new.row[11],
        created_at=now,
        updated_at=now,
    )


def _steps(definition: Definition, jobs: list[Any], kept: dict[str, Any]) -> list[WorkflowStep]:
    """All steps in the order of the definition."""
    names = names_of(definition.steps)
    by_idx: dict[int, list[Any]] = {}
    for job in jobs:
        if job[ROLE] != "step":
            continue
        by_idx.setdefault(job[0], []).append(job)
    found = []
    for idx, (name, step) in enumerate(zip(names, definition.steps, strict=True)):
        task = step.task or step.type or ""
        if name in kept:
            found.append(
                WorkflowStep(
                    name=name,
                    index=idx,
                    task=task,
                    type=task,
                    workflow=step.workflow,
                    status="reused",
                    needs=step.needs,
                    output=msgspec.Raw(msgspec.json.encode(kept[name])),
                )
            )
            continue
        found += [_step(job, step) for job in by_idx.get(idx, [])]
    return found


def _step(row: tuple[Any, ...], step: Step) -> WorkflowStep:
    (
        idx, name, skipped, job_id, task, queue, state, attempt, max_retries, started_at, completed_at, last_error, progress,
        payload, payload_bytes, result, output_bytes, _job, _changed, _role, kind, items,
    ) = row  # fmt: skip
    given = kind == "workflow" and (items is not None or state != State.PENDING)
    return WorkflowStep(
        name=name,
        index=idx,
        job_id=job_id,
        task=task if kind is None else step.task or step.type or "",
        type=task if kind is None else step.task or step.type or "",
        workflow=step.workflow,
        status="skipped" if skipped and state == State.CANCELLED else state,
        needs=step.needs,
        when=step.when,
        queue=queue,
        executor=step.executor,
        attempt=attempt,
        max_retries=max_retries,
        payload=_raw(payload) if kind is None else msgspec.UNSET,
        payload_bytes=payload_bytes if kind is None else None,
        input=_raw(payload) if given else msgspec.UNSET,
        input_bytes=payload_bytes if given else None,
        items=None if items is None or kind != "for_each" else Items(total=items, done=0, failed=0),
        output=_raw("null" if result is None and output_bytes is None and state == State.COMPLETED else result),
        output_bytes=output_bytes,
        progress=_raw(progress),
        error=last_error if state != State.COMPLETED else None,
        started_at=rfc3339(started_at),
        completed_at=rfc3339(completed_at),
    )


def _compensation(row: tuple[Any, ...]) -> Compensation:
    step = _step(row, Step())
    return Compensation(
        name=step.name,
        index=step.index,
        job_id=step.job_id or "",
        task=step.task,
        status=step.status,
        attempt=step.attempt,
        payload=step.payload,
        payload_bytes=step.payload_bytes,
        output=step.output,
        output_bytes=step.output_bytes,
        error=step.error,
        started_at=step.started_at,
        completed_at=step.completed_at,
    )


def _raw(text: str | None) -> msgspec.Raw | msgspec.UnsetType:
    return msgspec.UNSET if text is None else msgspec.Raw(text.encode())
