"""MiniFlow: an embedded job runner and workflow engine.

This is what task code imports, and what programs import that submit jobs over HTTP; the rest is the server's own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from miniflow.basejob import BaseJob
from miniflow.context import JobContext
from miniflow.context import current as current_job
from miniflow.declared import schedule
from miniflow.errors import (
    EventTimeout,
    JobCancelled,
    JobTimeout,
    NonRetryable,
    RetryAfter,
    StepFailed,
    WorkflowChanged,
    WorkflowFailed,
)
from miniflow.registry import Task, task
from miniflow.retry import RetryPolicy
from miniflow.step_calls import current_step
from miniflow.workflow_context import WorkflowContext
from miniflow.workflow_functions import workflow

if TYPE_CHECKING:
    from miniflow.answers import (
        Attempt,
        BulkResult,
        Busy,
        ClientError,
        Event,
        Explanation,
        Health,
        Invalid,
        Job,
        JobExpired,
        JobFailed,
        JobWasCancelled,
        LogLine,
        NoResult,
        NotFound,
        Page,
        QueueFull,
        QueueInfo,
        Refused,
        ResultNotReady,
        ServerError,
        ServerUnreachable,
        Stats,
        TaskInfo,
        Unauthorized,
        WorkerInfo,
    )
    from miniflow.async_client import AsyncClient
    from miniflow.client import Client
    from miniflow.huey_embedded import MiniFlowHuey
    from miniflow.trace_answers import Span, Trace
    from miniflow.workflow_answers import (
        Workflow,
        WorkflowDefinition,
        WorkflowEvent,
        WorkflowNotEnded,
        WorkflowPage,
        WorkflowStep,
    )

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
    "schedule",
    "task",
    # durable functions
    "EventTimeout",
    "StepFailed",
    "WorkflowChanged",
    "WorkflowContext",
    "WorkflowFailed",
    "current_step",
    "workflow",
    # for applications written for huey
    "MiniFlowHuey",
    # the client, and what it returns and raises
    "Client",
    "AsyncClient",
    "Attempt",
    "BulkResult",
    "Busy",
    "ClientError",
    "Event",
    "Explanation",
    "Health",
    "Invalid",
    "Job",
    "JobExpired",
    "JobFailed",
    "JobWasCancelled",
    "LogLine",
    "NoResult",
    "NotFound",
    "Page",
    "QueueFull",
    "QueueInfo",
    "Refused",
    "ResultNotReady",
    "ServerError",
    "ServerUnreachable",
    "Span",
    "Stats",
    "TaskInfo",
    "Trace",
    "Unauthorized",
    "WorkerInfo",
    "Workflow",
    "WorkflowDefinition",
    "WorkflowEvent",
    "WorkflowNotEnded",
    "WorkflowPage",
    "WorkflowStep",
]

_ELSEWHERE = {
    "Client": "client",
    "AsyncClient": "async_client",
    "huey": "huey_adapter",
    "MiniFlowHuey": "huey_embedded",
    "Span": "trace_answers",
    "Trace": "trace_answers",
    **dict.fromkeys(
        ("Workflow", "WorkflowDefinition", "WorkflowEvent", "WorkflowNotEnded", "WorkflowPage", "WorkflowStep"),
        "workflow_answers",
    ),
}


def __getattr__(name: str) -> Any:
    # ``from miniflow import huey`` is for code written for huey, the client for programs that talk to a server; a task file
    # should not pay for importing either.
    module = _ELSEWHERE.get(name, "answers" if name in __all__ else None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"miniflow.{module}"), name)
