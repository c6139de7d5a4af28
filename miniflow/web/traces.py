"""Traces over HTTP; and the header ``traceparent``, by which a caller says which trace a run belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from litestar import MediaType, Response, get
from litestar.params import Parameter

from miniflow import otlp
from miniflow.trace_shape import FoundTrace, shown
from miniflow.web.backend import Backend

Format = Annotated[
    Literal["json", "otlp"],
    Parameter(description="`otlp`: the JSON of the OpenTelemetry protocol, to be posted to a collector's `/v1/traces`"),
]

_encode = msgspec.json.Encoder().encode
_SHAPES: dict[str, Callable[[FoundTrace], Any]] = {"json": shown, "otlp": otlp.export}


@get("/api/v1/workflows/{workflow_id:str}/trace", summary="The trace of a workflow")
async def workflow_trace(workflow_id: str, backend: Backend, format: Format = "json") -> Response[bytes]:
    """What took how long: the run, below it its steps from the moment that their turn came, below these their attempts; of a
    durable function what it asked for. The ids are the same each time, and those that were passed on as ``traceparent``.

    A span that goes on has no ``ended_at``; a step whose turn has not come has no span yet. Of more than 25,000 spans the rest is
    left out (``truncated``)."""
    return await _answer(await backend.trace_queries.workflow(workflow_id, backend.clock.now_ms()), format)


@get("/api/v1/jobs/{job_id:str}/trace", summary="The trace of a job")
async def job_trace(job_id: str, backend: Backend, format: Format = "json") -> Response[bytes]:
    """As that of a workflow: the job, from its submit to its end, and its attempts. Of a step it is its part of the workflow's
    trace, and hangs below that; of a durable function it is the trace of the run."""
    return await _answer(await backend.trace_queries.job(job_id, backend.clock.now_ms()), format)


async def _answer(found: FoundTrace, format: str) -> Response[bytes]:
    """Put together beside the loop: a large one takes a tenth of a second."""
    body = await asyncio.to_thread(lambda: _encode(_SHAPES[format](found)))
    return Response(body, media_type=MediaType.JSON)


ROUTES: list[Any] = [workflow_trace, job_trace]
