"""What the HTTP side is given of the running system, and the two things that every route does with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from miniflow.clock import Clock
from miniflow.control import PoolSize, PoolSizeChange
from miniflow.definitions import Definitions
from miniflow.feed import Feed
from miniflow.function_intake import FunctionIntake
from miniflow.intake import Intake
from miniflow.jobs import Jobs
from miniflow.listing import Listing
from miniflow.metrics import Metrics
from miniflow.minutes import History
from miniflow.model import Accepted, NewJob
from miniflow.notices import Notices
from miniflow.operations import LoopWaiter
from miniflow.queries import Queries
from miniflow.registry import Registry
from miniflow.roster import Roster
from miniflow.schedule_queries import ScheduleQueries
from miniflow.schedules import Schedules
from miniflow.settings import Settings
from miniflow.trace_queries import TraceQueries
from miniflow.workflow_intake import WorkflowIntake
from miniflow.workflow_queries import WorkflowQueries
from miniflow.writer import Transaction, Writer


class Resizable(Protocol):
    """What the number of workers can be changed by."""

    def resize(self, change: PoolSizeChange) -> Callable[[Transaction], PoolSize]: ...


@dataclass(kw_only=True, slots=True)
class Backend:
    settings: Settings
    clock: Clock
    registry: Registry
    intake: Intake
    jobs: Jobs
    notices: Notices
    log_notices: Notices
    queries: Queries
    workflow_intake: WorkflowIntake
    workflow_queries: WorkflowQueries
    trace_queries: TraceQueries
    definitions: Definitions
    function_intake: FunctionIntake
    listing: Listing
    feed: Feed
    roster: Roster
    pool: Resizable
    writer: Writer
    waiter: LoopWaiter
    metrics: Metrics
    history: History
    schedules: Schedules
    schedule_queries: ScheduleQueries

    async def insert(self, jobs: list[NewJob]) -> list[Accepted]:
        """Commit these jobs, all or none. Raises what they were refused with."""
        accepted: list[Accepted] = await self.writer.call_async(self.waiter, "insert", jobs)
        return accepted

    async def verb(self, verb: Callable[[Transaction], Any]) -> Any:
        """Run one verb of ``Jobs`` in a transaction; its answer, or its refusal raised."""
        return await self.writer.call_async(self.waiter, "verb", verb)
