"""What the operations on kept definitions of workflows take and answer, for the OpenAPI document; see ``described``."""

from __future__ import annotations

from typing import Any

from miniflow import definition_queries, workflow_graph
from miniflow.web.described_workflows import Step, Work
from miniflow.web.describing import readable
from miniflow.web.document import Answer, Body, Operation
from miniflow.web.examples import AT

STEPS: list[dict[str, Any]] = [
    {"name": "greet", "task": "greet", "payload": {"name": "${input.name}"}},
    {"name": "again", "task": "greet", "payload": {"name": "${steps.greet.0}"}},
]
INPUTS = {"name": {"description": "whom to greet"}, "times": {"default": 1}}
GIVEN: dict[str, Any] = {"steps": STEPS, "inputs": INPUTS, "output": "${steps.again}", "timeout": 3600.0}
SHORT: dict[str, Any] = {
    "name": "hello", "version": 3, "total_steps": 2, "inputs": INPUTS, "output": "${steps.again}", "timeout": 3600.0,
    "source": "api", "created_at": AT,
}  # fmt: skip
SHOWN = {**SHORT, "steps": STEPS}

FIELDS: dict[str, str | dict[str, Any]] = {
    "Definition.inputs": "The fields of the input; one without a `default` is required. Left out: any input",
    "Definition.output": "What the whole returns; may refer to `${steps.NAME…}` and `${input…}`",
    "Definition.timeout": "Seconds for the whole, after which it has failed",
    "Definition.on_failure": "What is run when it does not end well, after all compensations",
    "Input.default": "What it is where it is left out; without it the field is required",
    "KeptDefinition.version": "From 1; one more with each change",
    "KeptDefinition.source": {"enum": ["api", "file"]},
    "KeptDefinition.origin": "The file that it stands in",
}

Input: Any = readable(workflow_graph.Input)
Definition = readable(
    workflow_graph.Definition,
    steps=list[Step],
    inputs=dict[str, Input] | None,
    on_failure=Work | None,
)
Shown: Any = readable(
    definition_queries.KeptDefinition, steps=list[Step] | None, inputs=dict[str, Input] | None, on_failure=Work | None
)
List: Any = readable(definition_queries.DefinitionList, items=list[Shown])

OMITTING = (Shown,)

OPERATIONS: dict[str, Operation] = {
    "PUT /api/v1/workflow-definitions/{name}": Operation(
        "workflows",
        {
            200: Answer("it was so already", Shown, SHOWN),
            201: Answer("a new version", Shown, SHOWN, ("Location",)),
        },
        Body(Definition, {"with an input": GIVEN, "steps alone": {"steps": [{"task": "noop"}]}}),
        refusals=(409,),
    ),
    "GET /api/v1/workflow-definitions": Operation("workflows", {200: Answer("the definitions", List, {"items": [SHORT]})}),
    "GET /api/v1/workflow-definitions/{name}": Operation("workflows", {200: Answer("the definition", Shown, SHOWN)}),
    "GET /api/v1/workflow-definitions/{name}/versions": Operation(
        "workflows", {200: Answer("its versions, the newest first", List, {"items": [SHORT]})}
    ),
    "DELETE /api/v1/workflow-definitions/{name}": Operation("workflows", {204: Answer("it is gone")}, refusals=(409,)),
}  # fmt: skip
