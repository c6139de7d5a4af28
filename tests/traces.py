"""Traces in tests: read as the API reads them, from the file of an engine that runs or has ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

from miniflow.readers import Readers
from miniflow.trace_queries import SPANS_MAX, TraceQueries
from miniflow.trace_shape import FoundSpan, FoundTrace

TRACE_ID, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE_ID}-{CALLER}-01"
NOW_MS = 4_000_000_000_000


def trace_of(path: str | Path, run_id: str, *, job: bool = False, spans_max: int = SPANS_MAX) -> FoundTrace:
    """The trace of a workflow, or of a ``job``."""

    async def read() -> FoundTrace:
        readers = Readers(str(path))
        await readers.open()
        try:
            queries = TraceQueries(readers, spans_max=spans_max)
            return await (queries.job if job else queries.workflow)(run_id, NOW_MS)
        finally:
            await readers.close()

    return asyncio.run(read())


def passed_on(trace: FoundTrace, span: FoundSpan) -> str:
    """What a call within that span has as its ``traceparent``."""
    return f"00-{trace.context.trace_id}-{span.span_id}-01"


def as_tree(trace: FoundTrace) -> list[str]:
    """``name status`` of each span, indented below that of its parent, in the order of the trace."""
    names = {one.span_id: one for one in trace.spans}

    def depth(one: FoundSpan) -> int:
        return 1 + depth(names[one.parent_id]) if one.parent_id in names else 0

    return [f"{'  ' * depth(one)}{one.name} {one.status}" for one in trace.spans]
