"""From a durable function that somebody starts to its rows: a workflow of one job, which runs the function."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from miniflow.errors import InvalidRequest, UnknownTask
from miniflow.ids import uuid7
from miniflow.intake import EMPTY, Intake, Key, Seconds, Short, Submission, TraceParent, checked_traceparent
from miniflow.registry import TaskSpec
from miniflow.validation_errors import in_words
from miniflow.workflow_intake import NewWorkflow, Slot
from miniflow.workflow_shape import Shape, StepRow


class FunctionSubmission(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A run of a durable function. ``timeout`` is for the whole, sleeps included, in seconds; ``input`` is what the function
    takes."""

    workflow: Short
    input: msgspec.Raw = EMPTY
    timeout: Seconds | None = None
    queue: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] | Literal["low", "medium", "high"] | None = None
    idempotency_key: Key | None = None
    tags: (
        Annotated[list[Annotated[str, msgspec.Meta(min_length=1, max_length=100)]], msgspec.Meta(max_length=50)] | None
    ) = None
    meta: dict[str, Any] | None = None
    description: Annotated[str, msgspec.Meta(max_length=1000)] | None = None
    traceparent: TraceParent | None = None


class FunctionDefinition(msgspec.Struct, omit_defaults=True):
    """What is kept of a start, to run it again."""

    workflow: str
    timeout: float | None = None
    queue: str | None = None
    priority: int | str | None = None
    tags: list[str] | None = None


decode_function = msgspec.json.Decoder(FunctionSubmission).decode
decode_function_definition = msgspec.json.Decoder(FunctionDefinition).decode
_encode = msgspec.json.Encoder().encode


class FunctionIntake:
    """Makes rows of runs."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def knows(self, name: str) -> bool:
        """Whether there is a durable function of that name."""
        spec = self._intake.registry.find(name)
        return spec is not None and spec.durable

    def check(self, name: str, given: msgspec.Raw) -> None:
        """InvalidRequest for an input that the function does not take."""
        self.run(FunctionSubmission(workflow=name, input=given))

    def run(
        self,
        s: FunctionSubmission,
        *,
        request_id: str | None = None,
        rerun_of: str | None = None,
        slot: Slot | None = None,
        parent: int | None = None,
    ) -> NewWorkflow:
        """What ``s`` asks for; ``parent`` is the row of the step that it is. Raises UnknownTask, InvalidRequest naming the field,
        TooLarge."""
        spec = self._spec(s.workflow)
        asked = Submission(
            task=spec.name, payload=s.input, queue=s.queue, priority=s.priority, timeout=0, tags=s.tags, meta=s.meta,
            description=s.description,
        )  # fmt: skip
        try:
            own = None if slot is None else {"started_by": list(slot)}  # it is the workflow that is of the schedule
            job = self._intake.job(asked, request_id=request_id, own=own, durable=True)
        except InvalidRequest as exc:
            field = exc.field.replace("payload", "input", 1) if exc.field.startswith("payload") else exc.field
            reason = exc.reason.replace(f"of task {spec.name};", f"of workflow {spec.name};")
            raise InvalidRequest(field, reason) from None
        new_id = uuid7()
        timeout_s = s.timeout if s.timeout is not None else spec.timeout_s
        timeout_ms = max(round(timeout_s * 1000), 1) if timeout_s else None
        mark = _fingerprint(s) if s.idempotency_key is not None else None
        definition = FunctionDefinition(spec.name, s.timeout, s.queue, s.priority, s.tags)
        row = [
            new_id,
            spec.name,
            1,
            _encode(definition).decode(),
            bytes(s.input).decode(),
            None,
            timeout_ms,
            s.idempotency_key,
            mark,
            request_id,
            rerun_of,
            s.description,
            _encode(s.meta).decode() if s.meta else None,
            0,
            0,
            None,
            None,
            *(slot or (None, None)),
            parent,
        ]
        return NewWorkflow(
            new_id,
            spec.name,
            row,
            [job],
            Shape([job], [StepRow(0, spec.name, None, None, None, None)]),
            False,
            False,
            timeout_ms,
            s.idempotency_key,
            mark,
            "function",
            checked_traceparent(s.traceparent) if s.traceparent else None,
        )

    def _spec(self, name: str) -> TaskSpec:
        try:
            spec = self._intake.registry.get(name)
        except UnknownTask as exc:
            hint = f"; did you mean {', '.join(exc.known)}?" if exc.known else ""
            raise InvalidRequest("workflow", f"no workflow is registered as {name!r}{hint}") from None
        if not spec.durable:
            raise InvalidRequest("workflow", f"{name!r} is a task, and no workflow; submit it with POST /api/v1/jobs")
        return spec


def function_submission(name: str, input: str, options: Mapping[str, Any]) -> FunctionSubmission:
    """What a start in Python asks for. InvalidRequest for an option with a wrong type."""
    given = {key: value for key, value in options.items() if value is not None}
    if hasattr(given.get("timeout"), "total_seconds"):
        given["timeout"] = given["timeout"].total_seconds()
    try:
        return msgspec.convert({**given, "workflow": name, "input": msgspec.Raw(input.encode())}, FunctionSubmission)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(*in_words(exc, FunctionSubmission, unknown="is no option of a start")) from None


def _fingerprint(s: FunctionSubmission) -> str:
    given = msgspec.json.decode(
        _encode(s)
    )  # as a value: blanks in the input, and the order of its keys, make no other one
    given.pop("traceparent", None)  # a repeated start is a span of its own
    return hashlib.blake2b(msgspec.json.encode(given, order="sorted"), digest_size=16).hexdigest()
