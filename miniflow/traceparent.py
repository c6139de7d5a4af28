"""Who belongs to which trace: the header ``traceparent`` of W3C Trace Context, and the ids of spans.

Ids of spans are derived from what they stand for, so that nothing has to be kept for them: whoever knows a job and its attempt
knows the span, in the process that runs it as well as years later in the file.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

SAMPLED = 0x01
KNOWN_FLAGS = 0x03  # sampled, and that of level 2: the trace id is random. Others are not passed on
TRACEPARENT_CHARS_MAX = 512
# Version, trace id, span id, flags. What a later version adds comes after another hyphen.
_HEADER = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceContext(NamedTuple):
    """A place in a trace: 32 and 16 hex digits, and flags. Without a span it is the trace as such."""

    trace_id: str
    span_id: str | None = None
    flags: int = SAMPLED

    def at(self, span_id: str) -> str:
        """The header for what is done within that span."""
        return f"00-{self.trace_id}-{span_id}-{self.flags & KNOWN_FLAGS:02x}"


def parse(header: str | None) -> TraceContext | None:
    """What a ``traceparent`` says; None for one that is none, which is as if there were none."""
    if header is None or len(header) > TRACEPARENT_CHARS_MAX:
        return None
    found = _HEADER.fullmatch(header.strip(" \t"))
    if found is None or (found[1] == "00" and found[5] is not None):
        return None
    return TraceContext(found[2], found[3], int(found[4], 16))


def own_trace(run_id: str) -> TraceContext:
    """The trace of a run that nobody gave one: its UUID without hyphens. An id of another form is brought into that one."""
    digits = run_id.replace("-", "").lower()
    if re.fullmatch("(?!0{32})[0-9a-f]{32}", digits):
        return TraceContext(digits)
    return TraceContext(hashlib.blake2b(run_id.encode(errors="replace"), digest_size=16).hexdigest())


def _span(*parts: object) -> str:
    return hashlib.blake2b(":".join(map(str, parts)).encode(errors="replace"), digest_size=8).hexdigest()


def span_of_workflow(workflow_id: str) -> str:
    return _span("workflow", workflow_id)


def span_of_job(job_id: str) -> str:
    """A job's, whether it is a step of a workflow or stands by itself."""
    return _span("job", job_id)


def span_of_attempt(job_id: str, number: int, started_at: int | None) -> str:
    """``started_at`` because attempts are counted anew when a job is replayed."""
    return _span("attempt", job_id, number, started_at or 0)


def span_of_checkpoint(workflow_id: str, idx: int) -> str:
    """Of what a durable function asked for."""
    return _span("checkpoint", workflow_id, idx)
