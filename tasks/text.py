"""Tasks on text."""

from __future__ import annotations

import json
from typing import Any

from miniflow import current_job, task


# A payload of the wrong shape does not get better by trying again.
@task(no_retry_on=(AttributeError, TypeError))
def example_task(payload: dict[str, Any]) -> dict[str, Any]:
    """Put the field "text" in capitals and count its words."""
    job = current_job()
    try:
        job.log(f"Started processing payload keys={list(payload.keys())}")
        text = payload.get("text", "")
        result = {"uppercase": text.upper(), "token_count": len(text.split())}
        job.log(f"Computed result={json.dumps(result)[:200]}")
        return result
    except Exception as e:  # whatever it was, the job's own log says so; then the failure takes its course
        job.log(f"Task failed: {e}", level="ERROR")
        raise
