"""MiniFlow: an embedded job runner and workflow engine. This is what task code imports; the rest is the server's own."""

from __future__ import annotations

import importlib
from typing import Any

from miniflow.basejob import BaseJob
from miniflow.context import JobContext
from miniflow.context import current as current_job
from miniflow.errors import JobCancelled, JobTimeout, NonRetryable, RetryAfter
from miniflow.registry import Task, task
from miniflow.retry import RetryPolicy

__version__ = "0.1.0"

__all__ = [
    "BaseJob",
    "JobCancelled",
    "JobContext",
    "JobTimeout",
    "NonRetryable",
    "RetryAfter",
    "RetryPolicy",
    "Task",
    "__version__",
    "current_job",
    "task",
]


def __getattr__(name: str) -> Any:
    # ``from miniflow import huey`` is for code written for huey; nobody else should pay for importing it.
    if name == "huey":
        return importlib.import_module("miniflow.huey_adapter").huey
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
