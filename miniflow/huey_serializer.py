"""JSON in place of huey's pickle: what is stored can be read with any tool, and reading it runs no code."""

from __future__ import annotations

import datetime as dt
from typing import Any

from huey.constants import EmptyData
from huey.utils import Error

from miniflow.huey_storage import FailedResult
from miniflow.outcome import decode_json
from miniflow.writer import json_text


class JsonSerializer:
    """For what huey keeps beside the jobs: revocations, locks and the like; and for the results that it reads."""

    def serialize(self, data: Any) -> Any:
        if isinstance(data, Error):
            return json_text({"$error": data.metadata})
        if isinstance(data, tuple) and data and isinstance(data[0], dt.datetime):  # a revocation: (until, once)
            return json_text({"$until": data[0].isoformat(), "once": data[1]})
        return json_text(data)

    def deserialize(self, data: Any) -> Any:
        if isinstance(data, FailedResult):
            return Error({"error": data.error, "task_id": data.job_id, "traceback": "", "retries": 0})
        if data is EmptyData or isinstance(data, int):
            return data
        value = decode_json(data)
        if isinstance(value, dict) and "$error" in value:
            return Error(value["$error"])
        if isinstance(value, dict) and "$until" in value:
            return (dt.datetime.fromisoformat(value["$until"]), value["once"])
        return value
